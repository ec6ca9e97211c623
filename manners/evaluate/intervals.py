"""Means with intervals: a bootstrap over prompts, and over seeds where there are several.

The prompts of a set are a sample of what might have been asked, the seeds a sample of how training might have gone. Both are drawn
anew, independently of each other, and every seed answers the same prompts: a crossed bootstrap. With one seed only prompts are drawn,
and the interval says nothing about another training run. With S seeds a resample holds the spread between seeds times (S-1)/S, so
with two or three the interval is too narrow, which is why each seed's own value stands beside it.

Axes: `S` seeds, `P` prompts, `B` resamples.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
Z = 1.959963984540054
"""Quantile of the normal distribution that belongs to LEVEL."""
SEED = 20_240
"""Of the resamples; fixed, so that a table can be made again to the last digit."""


@lru_cache(maxsize=8)
def _weights(seeds: int, prompts: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each resample draws each seed, (B, S), and each prompt, (B, P). The same for every metric of a set."""
    generator = np.random.default_rng(SEED)
    weights_BP = generator.multinomial(prompts, np.full(prompts, 1 / prompts), size=RESAMPLES).astype(np.float64)
    weights_BS = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES).astype(np.float64)
    return weights_BS, weights_BP


def resampled_means(values_SP: np.ndarray) -> np.ndarray:
    """The mean of every resample, (B,). Those of other values of the same seeds and prompts are of the same draws, one by one."""
    seeds, prompts = values_SP.shape
    weights_BS, weights_BP = _weights(seeds, prompts)
    if seeds == 1:  # every resample draws it: one product, ten times as fast
        return weights_BP @ values_SP[0] / prompts
    return ((weights_BS @ values_SP) * weights_BP).sum(1) / (seeds * prompts)


def resampled_columns(values_PK: np.ndarray) -> np.ndarray:
    """The mean over prompts of each column under every resample, (B, K): the draws of `resampled_means` of one seed."""
    return _weights(1, len(values_PK))[1] @ values_PK / len(values_PK)


def ends(means_B: np.ndarray) -> tuple[float, float]:
    """The percentile interval at LEVEL."""
    low, high = np.quantile(means_B, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def mean_interval(values_SP: Sequence[Sequence[float]] | np.ndarray, *, share: bool = False) -> dict[str, Any]:
    """`{"value", "low", "high", "n"}`: the mean over seeds and prompts, its percentile interval at 95 %, and the number of prompts.

    `values_SP` has one row a seed; all rows belong to the same prompts in the same order. With several seeds `by_seed` holds each
    one's mean. Without prompts the numbers are None. A `share` that is 0 or 1 on every prompt has no spread to draw from: it gets
    Wilson's interval for so many prompts instead, so that two right of two is not taken for certainty.
    """
    values_SP = np.asarray(values_SP, dtype=np.float64)
    seeds, prompts = values_SP.shape
    if not prompts:
        return absent()
    low, high = ends(resampled_means(values_SP))
    if share and values_SP.min() == values_SP.max() and values_SP.max() in (0.0, 1.0):
        doubt = Z**2 / (prompts + Z**2)
        low, high = (0.0, doubt) if values_SP.max() == 0 else (1 - doubt, 1.0)
    estimate = {"value": float(values_SP.mean()), "low": low, "high": high, "n": prompts}
    return estimate if seeds == 1 else {**estimate, "by_seed": [float(mean) for mean in values_SP.mean(1)]}


def point(values_S: Sequence[float], n: int) -> dict[str, Any]:
    """The mean over seeds of what is known of a whole set only, without an interval."""
    estimate = {"value": float(np.mean(values_S)), "low": None, "high": None, "n": n}
    return estimate if len(values_S) == 1 else {**estimate, "by_seed": [float(value) for value in values_S]}


def absent(reason: str = "") -> dict[str, Any]:
    """The estimate of what could not be measured."""
    return {"value": None, "low": None, "high": None, "n": 0, **({"reason": reason} if reason else {})}


def percent_interval(values_P: Sequence[float] | np.ndarray, *, share: bool = False) -> dict[str, Any]:
    """`mean_interval` of one seed in per cent, for many prompts with few different values, such as wins and ties.

    How often a resample of the prompts holds each value is drawn at once, which is the same distribution without a table of prompts.
    """
    values_P = np.asarray(values_P, dtype=np.float64)
    if not len(values_P):
        return absent()
    values_V, counts_V = np.unique(values_P, return_counts=True)
    generator, prompts, chunk = np.random.default_rng(SEED), len(values_P), max(1, 4_000_000 // len(values_V))
    sizes = [min(chunk, RESAMPLES - start) for start in range(0, RESAMPLES, chunk)]
    means_B = np.concatenate([generator.multinomial(prompts, counts_V / prompts, size=size) @ values_V / prompts for size in sizes])
    low, high = ends(means_B)
    if share and len(values_V) == 1 and values_V[0] in (0.0, 1.0):
        doubt = Z**2 / (prompts + Z**2)
        low, high = (0.0, doubt) if values_V[0] == 0 else (1 - doubt, 1.0)
    return {"value": float(100 * values_P.sum() / prompts), "low": 100 * low, "high": 100 * high, "n": prompts}
