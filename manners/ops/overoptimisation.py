"""How the gold score moves as a proxy is optimised: the two laws of Gao, Schulman and Hilton (2023), fitted by least squares.

With d = sqrt(KL(pi || pi_init)), KL in nats, and a gold score shifted to 0 at d = 0:

    best-of-n             R(d) = d (alpha - beta d)          peak at d = alpha / (2 beta), R = alpha^2 / (4 beta)
    reinforcement "rl"    R(d) = d (alpha - beta log d)      peak at d = e^(alpha/beta - 1), R = beta d

Both are linear in alpha and beta. Axis: `D` measured distances.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from manners.core.errors import InputError, nearest

NEAREST = 0.1
"""Points closer to the start than this are left out: the law of "rl" has an infinite slope at 0, and noise is all there is."""
Law = Literal["bon", "rl"]
LAWS = ("bon", "rl")
THROUGH = ("score", "ratio")


@dataclass(frozen=True, slots=True)
class Fit:
    """A law with its two coefficients, rewards a unit of d."""

    alpha: float
    beta: float
    law: Law

    @property
    def peak(self) -> tuple[float, float]:
        """(d, R) where the gold score is highest. (inf, inf) if the curve never turns down, (0, 0) if it falls from the start."""
        if self.beta < 0 or (self.beta == 0 and self.alpha > 0):
            return math.inf, math.inf
        if self.beta == 0 or (self.law == "bon" and self.alpha <= 0):
            return 0.0, 0.0
        if self.law == "bon":
            return self.alpha / (2 * self.beta), self.alpha**2 / (4 * self.beta)
        exponent = self.alpha / self.beta - 1
        distance = math.exp(exponent) if exponent < 700 else math.inf
        return distance, self.beta * distance

    def predict(self, distance: npt.ArrayLike) -> np.ndarray:
        """R at each distance >= 0, in its shape; 0 at 0."""
        d = np.asarray(distance, dtype=np.float64)
        return d * (self.alpha - self.beta * _bend(d, self.law))


def fit(
    distance: npt.ArrayLike,
    score: npt.ArrayLike,
    law: Law,
    weights: npt.ArrayLike | None = None,
    through: Literal["score", "ratio"] = "score",
) -> Fit:
    """Least squares without intercept of the gold score (D,) on [d, -d^2] ("bon") or [d, -d log d] ("rl"), points with d < 0.1 left out.

    `weights` (D,), best 1/variance, multiply the squared errors. `through="ratio"` fits R/d on [1, -d] or [1, -log d] instead: the
    same law with errors weighed by 1/d^2, so that early points count more. Raises InputError if fewer than two different distances
    remain, for numbers that are not finite, weights below 0, or other names of a law.
    """
    if law not in LAWS:
        raise InputError(f"There is no law '{law}' of over-optimisation; {nearest(law, LAWS)}")
    if through not in THROUGH:
        raise InputError(f"A law is fitted through 'score' or 'ratio', not '{through}'; {nearest(through, THROUGH)}")
    d, r = np.asarray(distance, dtype=np.float64).ravel(), np.asarray(score, dtype=np.float64).ravel()
    w = np.ones_like(d) if weights is None else np.asarray(weights, dtype=np.float64).ravel()
    if not d.size == r.size == w.size:
        raise InputError(f"A law needs one score and one weight a distance, but there are {d.size}, {r.size} and {w.size} of them.")
    if not (np.isfinite(d).all() and np.isfinite(r).all() and np.isfinite(w).all() and (w >= 0).all()):
        raise InputError("A law is fitted on finite distances and scores with weights of 0 or more.")
    used = (d >= NEAREST) & (w > 0)
    d, r, w = d[used], r[used], w[used]
    if np.unique(d).size < 2:
        raise InputError(f"Two coefficients need at least two different distances of {NEAREST} or more, but there are {np.unique(d).size}.")
    scale = np.sqrt(w) if through == "score" else np.sqrt(w) / d
    columns = np.stack([d, -d * _bend(d, law)], 1)
    (alpha, beta), *_ = np.linalg.lstsq(columns * scale[:, None], r * scale, rcond=None)
    return Fit(float(alpha), float(beta), law)


def _bend(d: np.ndarray, law: Law) -> np.ndarray:
    """What beta is multiplied by, beside d itself: d or log d (0 at 0, where d takes it to 0 anyway)."""
    return d if law == "bon" else np.log(np.where(d > 0, d, 1.0))
