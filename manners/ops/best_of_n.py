"""What drawing n responses and keeping the one with the highest score would give, from N drawn once.

`proxy` scores choose, `value`s (a gold score, a length, a win) are what is asked of the chosen one; both may be the same. Everything
in float64. Axes: `G` prompts, `N` samples of one prompt, `K` distinct outputs.
"""

import math

import numpy as np
import numpy.typing as npt

from manners.core.errors import InputError


def weights(samples: int, n: int) -> np.ndarray:
    """Probability that the i-th lowest of N `samples` is the best of n drawn from them without replacement, (N,), summing to 1.

    w_i = C(i-1, n-1) / C(N, n) for i = 1..N (Nakano 2021; Gao 2023), by w_N = n/N and
    w_{i-1} = w_i (i - n) / (i - 1), since the binomials of 12,600 overflow. Raises InputError unless 1 <= n <= N.
    """
    if not 1 <= n <= samples:
        raise InputError(f"The best of {n} cannot be estimated from {samples} samples a prompt; n must lie between 1 and {samples}.")
    i = np.arange(samples, 1, -1, dtype=np.float64)
    falling = np.cumprod(np.concatenate([[n / samples], np.maximum(i - n, 0) / (i - 1)]))
    return falling[::-1]


def expected(values_in_proxy_order: npt.ArrayLike, n: int) -> np.ndarray:
    """Unbiased estimate of the mean value of the best of n, () for values (N,), (G,) for (G, N): sum_i w_i v_(i).

    The last axis runs from the lowest proxy score to the highest. Where scores tie, `estimate` is right and this depends on the order.
    """
    values = np.asarray(values_in_proxy_order, dtype=np.float64)
    return values @ weights(values.shape[-1], n)


def estimate(proxy: npt.ArrayLike, value: npt.ArrayLike, n: int) -> np.ndarray:
    """`expected` of values sorted by their proxy scores, both (N,) or (G, N): () or (G,).

    Samples with equal scores share the mean of their values, which is what breaking the tie at random gives on average. Equal
    responses are samples of their own and must not be removed. Raises InputError for different shapes and for scores that are NaN.
    """
    proxy, value = np.asarray(proxy, dtype=np.float64), np.asarray(value, dtype=np.float64)
    if proxy.shape != value.shape:
        raise InputError(f"Best-of-n needs one value a score, but scores have shape {proxy.shape} and values {value.shape}.")
    if np.isnan(proxy).any():
        raise InputError(f"{np.isnan(proxy).sum()} of {proxy.size} scores are NaN, so no best one can be chosen.")
    ordered = [_ordered(p, v) for p, v in zip(np.atleast_2d(proxy), np.atleast_2d(value), strict=True)]
    return expected(np.reshape(ordered, value.shape), n)


def _ordered(proxy_N: np.ndarray, value_N: np.ndarray) -> np.ndarray:
    """Values from the lowest score to the highest, each tie's replaced by their mean."""
    _, tie_N, count = np.unique(proxy_N, return_inverse=True, return_counts=True)
    return np.repeat(np.bincount(tie_N, weights=value_N) / count, count)


def kl_bound(n: float) -> float:
    """log n - (n - 1)/n, in nats: the most that KL(best of n || one sample) can be.

    It is the KL itself if no two outputs have the same score (Stiennon 2020), as for continuous ones; with few distinct
    outputs the KL is smaller (Beirami 2024), see `kl_of_outputs`.
    """
    return math.log(n) - (n - 1) / n


def kl_of_outputs(probability_in_proxy_order_K: npt.ArrayLike, n: float) -> float:
    """KL(best of n || one sample) in nats, where K distinct outputs with no two equal scores are all there is.

    The probabilities p_k run from the output of the lowest score to that of the highest and are scaled to sum to 1. The best of n is
    output k with probability q_k = F_k^n - F_{k-1}^n, F the running sum of p; KL = sum q_k log(q_k / p_k) <= `kl_bound(n)`. Given
    counts of equal responses among N samples it is a plug-in estimate, which cannot exceed what N samples can show.
    """
    p_K = np.asarray(probability_in_proxy_order_K, dtype=np.float64)
    p_K = p_K[p_K > 0] / p_K.sum()
    share_K = np.concatenate([[0.0], np.minimum(np.cumsum(p_K), 1.0)])
    q_K = np.diff(share_K**n)
    p_K, q_K = p_K[q_K > 0], q_K[q_K > 0]
    return float((q_K * np.log(q_K / p_K)).sum())


def proxy_win_rate(n: float) -> float:
    """n / (n + 1): how often the best of n beats one fresh sample under the proxy itself, if no two scores are equal."""
    return n / (n + 1)
