"""Gold against proxy along sqrt(KL), from arrays of scores: best-of-n, both laws, the peak and how far the gold falls behind it.

Everything is computed from a value of each prompt at each point of a path, so that one bootstrap over prompts serves every number: the
KL, the gold, the coefficients and the peak of a resample belong to the same prompts.

Axes: `P` prompts, `N` samples of one prompt, `K` points of a path (n of best-of-n, or checkpoints), `B` resamples.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from manners.core.errors import InputError
from manners.evaluate.intervals import LEVEL, SEED, mean_interval
from manners.ops import best_of_n
from manners.ops.overoptimisation import NEAREST, Fit, Law, fit

RESAMPLES = 2000
"""Fits are made one by one: fewer than for a mean."""
NS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192)
"""Best of how many, up to what the pool holds; about evenly spaced in sqrt(KL)."""


def numbers(samples: int) -> list[int]:
    """The n of NS up to `samples`, and `samples` itself."""
    return sorted({n for n in NS if n < samples} | {samples})


def prompt_weights(prompts: int) -> np.ndarray:
    """How often each resample draws each prompt, (B, P), as shares that sum to 1."""
    return np.random.default_rng(SEED).multinomial(prompts, np.full(prompts, 1 / prompts), size=RESAMPLES) / prompts


# --- best-of-n --------------------------------------------------------------------------------------------------------------------


def best_of(proxy_PN: np.ndarray, value_PN: np.ndarray, ns: Sequence[int]) -> np.ndarray:
    """Expected value of the best of n by the proxy, for each prompt and n, (P, K) (`ops.best_of_n.estimate`)."""
    return np.stack([best_of_n.estimate(proxy_PN, value_PN, n) for n in ns], 1)


def measured_kl(proxy_N: np.ndarray, n: int) -> float:
    """KL(best of n || one sample) in nats of one prompt, from the samples that were drawn.

    Answers of equal score are drawn at random among each other, so what they share of the N samples is one atom: of probability
    mass q = F^n - F'^n against p, F and F' the shares of samples with this score or less, and with less. A score that only one sample
    has is taken for a point of a continuous distribution: its cell of mass 1/N counts with the integral of n u^(n-1) log(n u^(n-1)).
    Without equal scores the sum is the bound log n - (n-1)/n itself, with them it is less; a score that stands twice is no accident in
    a model that gives the same answer twice.
    """
    _, counts = np.unique(proxy_N, return_counts=True)
    high = np.cumsum(counts) / proxy_N.size
    low = np.concatenate([[0.0], high[:-1]])
    q, p = high**n - low**n, high - low
    with np.errstate(divide="ignore", invalid="ignore"):
        atom = np.where(q > 0, q * np.log(q / p), 0.0)
    cell = _inside(high, n) - _inside(low, n)
    return float(np.where(counts > 1, atom, cell).sum())


def _inside(u: np.ndarray, n: int) -> np.ndarray:
    """Integral of n v^(n-1) log(n v^(n-1)) over v from 0 to u."""
    return u**n * (math.log(n) + (n - 1) * np.log(np.where(u > 0, u, 1.0)) - (n - 1) / n)


def kl_of_best(proxy_PN: np.ndarray, ns: Sequence[int]) -> np.ndarray:
    """`measured_kl` of every prompt and n, (P, K)."""
    return np.array([[measured_kl(proxy_N, n) for n in ns] for proxy_N in proxy_PN])


# --- the curve --------------------------------------------------------------------------------------------------------------------


def distance(kl: np.ndarray) -> np.ndarray:
    """sqrt(KL); 0 for an estimate that came out below nought."""
    return np.sqrt(np.maximum(kl, 0.0))


def points(kl_PK: np.ndarray, values: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """A row a point: `d` and `kl` with intervals, and the mean of each of `values` (P, K) with `_low` and `_high`."""
    found = []
    for k in range(kl_PK.shape[1]):
        kl = mean_interval(kl_PK[None, :, k])
        row = {"kl": kl["value"], "kl_low": kl["low"], "kl_high": kl["high"]}
        row |= {name.replace("kl", "d", 1): float(distance(np.array(value))) for name, value in row.items()}
        for name, value_PK in values.items():
            mean = mean_interval(value_PK[None, :, k])
            row |= {name: mean["value"], f"{name}_low": mean["low"], f"{name}_high": mean["high"]}
        found.append(row)
    return found


def fitted(kl_PK: np.ndarray, gain_PK: np.ndarray, law: Law, weights_BP: np.ndarray) -> dict[str, Any]:
    """A law fitted to the gold gained since the start, with intervals: `alpha`, `beta`, `peak` (its `d` and `gold`), `inside`, `r2`.

    `gain_PK` is the gold less that of the start of the same prompt, so R(0) = 0. Points are weighed by 1 / variance over resamples of
    prompts, with a floor of 1 % of the median, so that one lucky point cannot be all that counts. Each resample is fitted by itself.
    An end of an interval is None where the curve of that resample never turns down. `inside` says whether the peak lies among what was
    measured: if not, it is an extrapolation. Returns `{"reason"}` alone where too few points lie far enough from the start.
    """
    kl_BK, gain_BK = weights_BP @ kl_PK, weights_BP @ gain_PK
    d_K, r_K = distance(kl_PK.mean(0)), gain_PK.mean(0)
    used = d_K >= NEAREST
    if np.unique(d_K[used]).size < 2:
        return {"reason": f"a law needs two points at a distance of {NEAREST} or more, and there are {np.unique(d_K[used]).size}"}
    variance_K = gain_BK.var(0)
    weight_K = 1 / np.maximum(variance_K, max(0.01 * float(np.median(variance_K[used])), 1e-12))
    central = fit(d_K, r_K, law, weight_K)
    fits: list[Fit] = []
    for d, r in zip(distance(kl_BK), gain_BK, strict=True):
        try:
            fits.append(fit(d, r, law, weight_K))
        except InputError:  # a resample whose points all lie at the start
            continue
    peaks = np.array([each.peak for each in fits])
    left = r_K[used] - central.predict(d_K[used])
    around = r_K[used] - np.average(r_K[used], weights=weight_K[used])
    weighed = lambda errors: float((weight_K[used] * errors**2).sum())
    return {
        "law": law,
        "alpha": _interval(central.alpha, np.array([each.alpha for each in fits])),
        "beta": _interval(central.beta, np.array([each.beta for each in fits])),
        "peak": {"d": _interval(central.peak[0], peaks[:, 0]), "gold": _interval(central.peak[1], peaks[:, 1])},
        "inside": bool(0 < central.peak[0] <= d_K.max()),
        "r2": 1 - weighed(left) / weighed(around) if weighed(around) > 0 else None,
    }


def _interval(value: float, draws: np.ndarray) -> dict[str, float | None]:
    """`{"value", "low", "high"}` by percentiles that are draws themselves, for some may be infinite; None for infinity."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="nearest")
    return {name: float(x) if math.isfinite(x) else None for name, x in (("value", value), ("low", low), ("high", high))}


def observed_peak(kl_PK: np.ndarray, gold_PK: np.ndarray, weights_BP: np.ndarray) -> dict[str, Any]:
    """Where the measured gold is highest, without a law: `index`, `d` and `gold` with intervals, and `fall`, gold lost from there to the
    end.

    The highest of noisy points is too high by luck, so the fall is measured crosswise: prompts in even places choose the peak, those in
    odd places say how much is lost behind it, and the reverse. It has the interval of a mean of paired differences; it is negative if
    the gold rises to the end.
    """
    at_B = (weights_BP @ gold_PK).argmax(1)
    top = int(gold_PK.mean(0).argmax())
    d_BK = distance(weights_BP @ kl_PK)
    gold_BK = weights_BP @ gold_PK
    each = np.arange(len(at_B))
    lost = np.zeros(len(gold_PK))
    if len(gold_PK) > 1:
        for half in (0, 1):
            chosen = int(gold_PK[1 - half :: 2].mean(0).argmax())
            lost[half::2] = gold_PK[half::2, chosen] - gold_PK[half::2, -1]
    return {
        "index": top,
        "d": _interval(float(distance(kl_PK.mean(0))[top]), d_BK[each, at_B]),
        "gold": _interval(float(gold_PK.mean(0)[top]), gold_BK[each, at_B]),
        "fall": mean_interval(lost[None]),
    }


def n_at(d: float | None, ns: Sequence[int], kl_PK: np.ndarray) -> float | None:
    """The n whose best-of-n lies at distance d, between the measured ones by log n; None beyond them."""
    d_K = distance(kl_PK.mean(0))
    if d is None or not d_K[0] <= d <= d_K[-1]:
        return None
    return float(np.exp(np.interp(d, d_K, np.log(ns))))


# --- scales -----------------------------------------------------------------------------------------------------------------------


def spread(score_PN: np.ndarray) -> float:
    """Standard deviation of a score among the samples of a prompt, pooled over prompts: what choosing among them can move."""
    return float(np.sqrt(score_PN.var(1).mean()))


def on_scale(proxy_PN: np.ndarray, gold_PN: np.ndarray) -> tuple[float, float]:
    """(factor, shift) that give the proxy the gold's mean and spread in the pool, so that one axis serves both."""
    width = spread(proxy_PN)
    factor = spread(gold_PN) / width if width > 0 else 0.0
    return factor, float(gold_PN.mean() - factor * proxy_PN.mean())


def pair_accuracy(proxy_PN: np.ndarray, gold_PN: np.ndarray) -> float | None:
    """Share of pairs of a prompt's samples that the proxy orders as the gold does; ties of the proxy one half, of the gold left out."""
    right = pairs = 0.0
    for proxy, gold in zip(proxy_PN, gold_PN, strict=True):
        order = np.sign(gold[:, None] - gold[None, :])
        agree = np.sign(proxy[:, None] - proxy[None, :]) * order
        decided = np.triu(order != 0, 1)
        right += float(((agree[decided] + 1) / 2).sum())
        pairs += float(decided.sum())
    return right / pairs if pairs else None


def combined(members_MPN: np.ndarray, how: str, coefficient: float) -> np.ndarray:
    """The members of an ensemble as one score (P, N), each first brought to mean 0 and spread 1 in the pool (`ops.ensemble`)."""
    return _combine(standardised(members_MPN, members_MPN), how, coefficient)


def standardised(members_MPN: np.ndarray, pool_MPN: np.ndarray) -> np.ndarray:
    """Each member's scores less its mean over its standard deviation, both those of the pool; one that never differs there is 0."""
    flat = pool_MPN.reshape(len(pool_MPN), -1)
    mean, std = flat.mean(1)[:, None, None], flat.std(1)[:, None, None]
    return np.where(std > 0, (members_MPN - mean) / np.where(std > 0, std, 1.0), 0.0)


def _combine(scores_MPN: np.ndarray, how: str, coefficient: float) -> np.ndarray:
    import torch

    from manners.ops.ensemble import combine

    flat = torch.from_numpy(scores_MPN.reshape(len(scores_MPN), -1).copy())
    return combine(flat, how, coefficient).numpy().reshape(scores_MPN.shape[1:])
