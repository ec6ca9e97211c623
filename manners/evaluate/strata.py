"""Means over groups of prompts (tasks, clusters, sets) that weigh alike whatever their size, with bootstrap intervals.

    value = sum over strata k of  c_k mean_k         c_k = 1/K for a macro average, +1 and -1 for the gap between two sets

Prompts are drawn anew within each stratum, independently of the other strata, and seeds jointly: the strata are those that were asked,
not a sample of all there might be, so the interval says nothing about further tasks.

Axes: `K` strata, `S` seeds, `P` prompts of a stratum, `B` resamples.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from manners.evaluate.intervals import RESAMPLES, SEED, Z, ends
from manners.evaluate.paired import NOUGHT, bootstrap_p, p_value

CHUNK = 4_000_000
Strata = Sequence[np.ndarray]
"""An array (S, P) a stratum, of equally many seeds each."""


def resampled(strata: Strata, weights: Sequence[float]) -> np.ndarray:
    """The weighted sum of the strata's means in every resample, (B,)."""
    seeds = len(strata[0])
    drawn_BS = np.random.default_rng(SEED).multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES) / seeds
    total_B = np.zeros(RESAMPLES)
    for number, (values_SP, weight) in enumerate(zip(strata, weights, strict=True)):
        prompts = values_SP.shape[1]
        generator = np.random.default_rng([SEED, number])
        size = max(1, CHUNK // prompts)
        for start in range(0, RESAMPLES, size):
            part = slice(start, min(start + size, RESAMPLES))
            drawn_BP = generator.multinomial(prompts, np.full(prompts, 1 / prompts), size=part.stop - start) / prompts
            total_B[part] += weight * ((drawn_BS[part] @ values_SP) * drawn_BP).sum(1)
    return total_B


def combined(strata: Strata, weights: Sequence[float] | None = None, *, share: bool = False) -> dict[str, Any]:
    """`{"value", "low", "high", "n"}` of the weighted sum, with `by_seed` where there are several; by default the mean of the means.

    A `share` that is 0 or 1 everywhere has no spread to draw from and gets Wilson's interval for so many prompts.
    """
    strata = [np.asarray(values, dtype=np.float64) for values in strata]
    weights = [1 / len(strata)] * len(strata) if weights is None else weights
    value_S = _sum(strata, weights)
    count = sum(values.shape[1] for values in strata)
    low, high = ends(resampled(strata, weights))
    held = {float(v) for values in strata for v in (values.min(), values.max())}
    if share and len(held) == 1 and held <= {0.0, 1.0}:
        doubt = Z**2 / (count + Z**2)
        low, high = (0.0, doubt) if held == {0.0} else (1 - doubt, 1.0)
    found = {"value": float(value_S.mean()), "low": low, "high": high, "n": count}
    return found if len(value_S) == 1 else {**found, "by_seed": value_S.tolist()}


def difference(strata: Strata, weights: Sequence[float] | None = None) -> dict[str, Any]:
    """`{"difference", "low", "high", "n", "p"}` of gaps prompt by prompt, as `paired` returns it; p is the larger of two, as there.

    The second p flips the signs of gaps where all weights have one sign. Where they have not, it is of one stratum against another, and
    a gap that all prompts share is no evidence: then prompts change strata instead, as if it did not matter which they are in.
    """
    strata = [np.asarray(values, dtype=np.float64) for values in strata]
    weights = [1 / len(strata)] * len(strata) if weights is None else weights
    value_S = _sum(strata, weights)
    means_B = resampled(strata, weights)
    low, high = ends(means_B)
    shares_P = np.concatenate([np.full(values.shape[1], weight / values.shape[1]) for values, weight in zip(strata, weights, strict=True)])
    gaps_P = np.concatenate([values.mean(0) for values in strata])
    one_sided = min(weights) >= 0 or max(weights) <= 0
    p = p_value(means_B, shares_P * gaps_P) if one_sided else max(bootstrap_p(means_B), exchange_p(shares_P, gaps_P))
    found = {"difference": float(value_S.mean()), "low": low, "high": high, "n": len(gaps_P), "p": p}
    return found if len(value_S) == 1 else {**found, "by_seed": value_S.tolist()}


def exchange_p(shares_P: np.ndarray, gaps_P: np.ndarray) -> float:
    """Two-sided p of "prompts might as well stand in each other's strata": the share of permutations, drawn, with a sum as far from 0."""
    generator = np.random.default_rng(SEED)
    found = abs(float(shares_P @ gaps_P)) - NOUGHT
    as_far = sum(abs(float(shares_P @ generator.permutation(gaps_P))) >= found for _ in range(RESAMPLES))
    return (1 + as_far) / (1 + RESAMPLES)


def _sum(strata: Strata, weights: Sequence[float]) -> np.ndarray:
    return np.sum([weight * values.mean(1) for values, weight in zip(strata, weights, strict=True)], axis=0)
