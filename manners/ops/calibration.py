"""Whether a probability means what it says, and what makes scores mean the same everywhere. In float64. Axes: `P` pairs, `N` scores."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from manners.core.errors import InputError

COLDEST, HOTTEST = 1e-3, 1e3
"""Between these the temperature is looked for."""


class Bin(NamedTuple):
    """Predictions with low <= p < high (in the last bin p <= high): how many, their mean p and the share of them that was right.

    `confidence` and `accuracy` of an empty bin are None.
    """

    low: float
    high: float
    n: int
    confidence: float | None
    accuracy: float | None


def reliability(p: npt.ArrayLike, right: npt.ArrayLike, bins: int = 10) -> list[Bin]:
    """The calibration curve of predictions p (P,), each `right` (P,) or not (1 or 0; one half for a tie), in equal bins of [0, 1].

    For a reward model p = sigma(|r_1 - r_2|) and right = whether the label agrees. A p on a border belongs to the bin above it.
    Raises InputError for different lengths and for p outside [0, 1].
    """
    p_P, right_P = np.asarray(p, dtype=np.float64).ravel(), np.asarray(right, dtype=np.float64).ravel()
    if p_P.shape != right_P.shape:
        raise InputError(f"Calibration needs one outcome a prediction, but there are {p_P.size} predictions and {right_P.size} outcomes.")
    if not ((p_P >= 0) & (p_P <= 1)).all():
        raise InputError("Calibration is of probabilities, but some predictions lie outside 0 to 1 or are NaN.")
    edges = np.arange(bins + 1) / bins
    bin_P = np.searchsorted(edges[1:-1], p_P, side="right")
    count, confidence, accuracy = (np.bincount(bin_P, weights=w, minlength=bins) for w in (None, p_P, right_P))
    return [
        Bin(float(edges[b]), float(edges[b + 1]), int(n), *((float(confidence[b] / n), float(accuracy[b] / n)) if n else (None, None)))
        for b, n in enumerate(count)
    ]


def ece(p: npt.ArrayLike, right: npt.ArrayLike, bins: int = 10) -> float:
    """Expected calibration error (Naeini 2015): sum over `reliability`'s bins of n_b/n |accuracy_b - confidence_b|; NaN of nothing."""
    curve = reliability(p, right, bins)
    total = sum(b.n for b in curve)
    off = sum(b.n * abs(b.accuracy - b.confidence) for b in curve if b.accuracy is not None and b.confidence is not None)
    return off / total if total else float("nan")


def fit_temperature(gaps: npt.ArrayLike) -> float:
    """The T that minimises the mean of -log sigma(gap / T), gap = r_w - r_l of held-out pairs (P,) (Guo 2017).

    Above 1: the rewards are too sure of themselves. The loss is convex in 1/T, whose zero of the slope is found by halving. Pairs that
    are all right give the lower limit 0.001, pairs that are no better than chance the upper limit 1000, gaps that are all 0 give 1.
    Raises InputError for no gaps or for gaps that are not finite.
    """
    gap_P = np.asarray(gaps, dtype=np.float64).ravel()
    if not gap_P.size or not np.isfinite(gap_P).all():
        raise InputError("A temperature is fitted on finite reward differences of at least one pair.")
    if not gap_P.any():
        return 1.0

    def falls(a: float) -> bool:
        """Whether the loss still falls at a = 1/T: its slope is -mean of gap sigma(-a gap)."""
        return bool((gap_P * np.exp(-np.logaddexp(0, a * gap_P))).mean() > 0)

    if not falls(1 / HOTTEST):
        return HOTTEST
    if (gap_P >= 0).all() or falls(1 / COLDEST):
        return COLDEST
    low, high = np.log(1 / HOTTEST), np.log(1 / COLDEST)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if falls(np.exp(middle)) else (low, middle)
    return float(np.exp(-(low + high) / 2))


def normaliser(scores: npt.ArrayLike, mean: float = 0.0, std: float = 1.0) -> tuple[float, float]:
    """(gain, bias) such that gain * score + bias has the given mean and standard deviation on these scores (N,).

    gain = std / s, bias = mean - gain * m, with m and s (the population's) of the scores (Ziegler 2019). Raises InputError
    for scores that are all equal or not finite.
    """
    score_N = np.asarray(scores, dtype=np.float64).ravel()
    spread = float(score_N.std()) if score_N.size else 0.0
    if not np.isfinite(spread) or not spread > 0:
        raise InputError(f"{score_N.size} scores that are all equal or not finite cannot be brought to a standard deviation of {std:g}.")
    gain = std / spread
    return gain, mean - gain * float(score_N.mean())
