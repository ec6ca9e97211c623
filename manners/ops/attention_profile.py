"""How attention falls off with distance: sums over causal attention weights, and what is fitted to them.

A row-stochastic causal matrix P (query i, key j <= i) of a head is summed up by

    A(d)        mean over i >= d of P(i, i - d), the distance profile
    sink(s)     mean over i >= s of the mass on the first s keys
    entropy     mean over i >= 1 of -sum_j P(i, j) log P(i, j) / log(i + 1): 1 is uniform, 0 one key
    distance    mean over i of sum_j P(i, j) (i - j)

and A(d) ~ a d^-gamma is fitted by least squares of log A on log d. The first keys soak up mass whatever they hold, and would bend A
at long distances; so the profile for the fit leaves out the first `drop` keys and gives each row its sum back.

All sums are float64: a weight at a distance of a thousand is a ten-thousandth. Attention is averaged first and logarithms are taken
last. A mean of zero (beyond a window, or underflow) is left out of a fit, not floored.

The quantities are those of tafagent (gamma, its Pade prediction, eta, PDI, D90); the code is our own.
Axes: `H` heads, `Q` queries, `K` keys or points of a fit, `D` distances, `B` bins, `X` anything in front.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

SINKS = (1, 4)
BINS = 12
LEAST_BINS = 4
"""Points below which nothing is fitted to bins."""
RELIABLE_R2 = 0.9
"""A power law that explains less of log A than this is no description of it."""
CRITICAL = (0.95, 1.05)


# --- sums over attention weights --------------------------------------------------------------------------------------------------


def diagonal_sums(weights_HQK: Tensor) -> Tensor:
    """Sums along the diagonals of the last Q rows of causal K x K matrices: (H, K) in float64, entry d over the pairs d apart.

    Rows are mirrored and each is moved one place further than the one above, so that a distance becomes a column.
    """
    heads, queries, keys = weights_HQK.shape
    width = keys + queries
    padded = torch.nn.functional.pad(weights_HQK.flip(-1), (0, queries)).reshape(heads, queries * width)
    moved = padded[:, : queries * (width - 1)].reshape(heads, queries, width - 1)
    return moved.sum(1, dtype=torch.float64)[:, queries - 1 : queries - 1 + keys]


class ProfileSums:
    """What is kept of one layer's attention over one sequence of `length` tokens: a few numbers a head, and two a distance."""

    def __init__(self, heads: int, length: int, drop: int = 1):
        self.length, self.drop = length, drop
        zeros = lambda *shape: torch.zeros(*shape, dtype=torch.float64)
        self.all_HD, self.kept_HD, self.last_HD = zeros(heads, length), zeros(heads, length), zeros(heads, length)
        self.sink_SH, self.entropy_H = zeros(len(SINKS), heads), zeros(heads)
        self.lost = 0
        """Rows of a head that leave nothing beside the dropped keys."""

    def add(self, weights_HQK: Tensor) -> None:
        """Take in rows K - Q to K - 1 of the matrices, with all keys up to the last of them. Each row comes once, in any order."""
        queries, keys = weights_HQK.shape[1:]
        first = keys - queries
        self.all_HD[:, :keys] += diagonal_sums(weights_HQK)
        row_Q = torch.arange(first, keys, device=weights_HQK.device)
        for place, sink in enumerate(SINKS):
            self.sink_SH[place] += weights_HQK[:, row_Q >= sink, :sink].sum((1, 2), dtype=torch.float64)
        entropy_HQ = torch.special.entr(weights_HQK).sum(-1).double()
        self.entropy_H += (entropy_HQ[:, row_Q >= 1] / torch.log(row_Q[row_Q >= 1].double() + 1)).sum(1)
        kept = weights_HQK[:, row_Q >= self.drop, self.drop :]
        left = kept.sum(-1, keepdim=True)
        self.lost += int((left == 0).sum())
        if kept.numel():
            self.kept_HD[:, : keys - self.drop] += diagonal_sums(kept / left.where(left > 0, 1.0))
        if keys == self.length:
            self.last_HD += weights_HQK[:, -1].flip(-1).double()

    def profile(self) -> np.ndarray:
        """A(d) of each head, (H, D), all keys."""
        return (self.all_HD / pairs(self.length)).numpy()

    def sink(self) -> np.ndarray:
        """Mass on the first 1 and the first 4 keys, (S, H); nan where no row is long enough."""
        rows_S = torch.tensor([max(0, self.length - sink) for sink in SINKS], dtype=torch.float64)
        return (self.sink_SH / rows_S[:, None]).numpy()

    def entropy(self) -> np.ndarray:
        """Mean normalised entropy, (H,)."""
        return (self.entropy_H / (self.length - 1)).numpy()

    def distance(self) -> np.ndarray:
        """Mean distance in tokens, (H,)."""
        return (self.all_HD @ torch.arange(self.length, dtype=torch.float64) / self.length).numpy()


def pairs(length: int, drop: int = 0) -> Tensor:
    """How many pairs of a sequence are d apart when the first `drop` keys are left out, (D,); 0 where none are."""
    return (length - drop - torch.arange(length, dtype=torch.float64)).clamp(min=0)


# --- fits -----------------------------------------------------------------------------------------------------------------------


class Fit(NamedTuple):
    """A power law: `gamma` = -slope, `log_a0` the intercept, `r2`, and how much higher the AIC of an exponential (log A on d) is, all of
    shape X: positive `aic_gap` speaks for the power law. nan where there are too few points, or (r2) nothing to explain."""

    gamma: np.ndarray
    log_a0: np.ndarray
    r2: np.ndarray
    aic_gap: np.ndarray

    def at(self, place: Any) -> dict[str, float | None]:
        """One of the fits, None for nan."""
        return {name: number(values[place]) for name, values in self._asdict().items()}


def number(value: Any) -> float | None:
    """A number as JSON can hold it."""
    return float(value) if math.isfinite(value) else None


def power_law(distance_K: Any, attention_XK: Any, weight_XK: Any = None, least: int = 2) -> Fit:
    """Least squares of log A on log d. Points where A is not above 0, or the weight is 0, are left out; fewer than `least` give nan."""
    distance_K, attention_XK = np.asarray(distance_K, np.float64), np.asarray(attention_XK, np.float64)
    weight_XK = np.broadcast_to(np.ones(1) if weight_XK is None else np.asarray(weight_XK, np.float64), attention_XK.shape)
    used_XK = (attention_XK > 0) & (weight_XK > 0)
    weight_XK = np.where(used_XK, weight_XK, 0.0)
    log_XK = np.log(np.where(used_XK, attention_XK, 1.0))
    points_X = used_XK.sum(-1)
    slope, intercept, rss, tss = _line(np.log(distance_K), log_XK, weight_XK)
    exponential = _line(distance_K, log_XK, weight_XK)[2]
    tiny = 1e-24  # of rounding errors, whose ratio says nothing
    with np.errstate(invalid="ignore", divide="ignore"):
        r2 = np.where(tss > tiny, 1 - rss / tss, np.nan)
        gap = points_X * np.log(np.maximum(exponential, tiny) / np.maximum(rss, tiny))
    enough = points_X >= max(2, least)
    return Fit(*(np.where(enough, values, np.nan) for values in (-slope, intercept, r2, gap)))


def _line(x_K: np.ndarray, y_XK: np.ndarray, weight_XK: np.ndarray) -> tuple[np.ndarray, ...]:
    """Slope, intercept, and mean squares left over and in all, by weighted least squares."""
    share_XK = weight_XK / np.maximum(weight_XK.sum(-1, keepdims=True), 1e-300)
    mean_x, mean_y = (share_XK * x_K).sum(-1, keepdims=True), (share_XK * y_XK).sum(-1, keepdims=True)
    dx, dy = x_K - mean_x, y_XK - mean_y
    sxx, sxy, syy = ((share_XK * a * b).sum(-1) for a, b in ((dx, dx), (dx, dy), (dy, dy)))
    slope = sxy / np.maximum(sxx, 1e-300)
    rss = (share_XK * (dy - slope[..., None] * dx) ** 2).sum(-1)
    return slope, mean_y[..., 0] - slope * mean_x[..., 0], rss, syy


def log_bins(first: int, last: int, count: int = BINS) -> list[tuple[int, int]]:
    """Bins (from, to; to exclusive) of whole distances `first` to `last`, as even on a logarithmic scale as whole numbers allow."""
    edges = np.unique(np.round(np.geomspace(first, last + 1, count + 1)).astype(int)).tolist()
    return list(pairwise(edges))


def binned(sums_XD: np.ndarray, count_D: np.ndarray, bins: Sequence[tuple[int, int]]) -> np.ndarray:
    """Mean attention in each bin, (X, B): sums over pairs by their number."""
    total = [sums_XD[..., a:b].sum(-1) / max(1.0, float(count_D[a:b].sum())) for a, b in bins]
    return np.stack(total, -1)


def bin_centres(count_D: np.ndarray, bins: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Geometric mean distance of the pairs in each bin, and their number, (B,) each."""
    logs = np.log(np.maximum(np.arange(len(count_D)), 1))
    weight = np.array([count_D[a:b].sum() for a, b in bins])
    return np.exp([np.average(logs[a:b], weights=count_D[a:b]) for a, b in bins]), weight


# --- single numbers -------------------------------------------------------------------------------------------------------------


def js_divergence(p_XK: Any, q_XK: Any) -> np.ndarray:
    """Jensen-Shannon divergence in nats of two distributions, or profiles, each divided by its sum."""
    p, q = (np.asarray(v, np.float64) / np.asarray(v, np.float64).sum(-1, keepdims=True) for v in (p_XK, q_XK))
    middle = (p + q) / 2
    part = lambda a: np.where(a > 0, a * np.log(np.where(a > 0, a, 1.0) / np.where(middle > 0, middle, 1.0)), 0.0).sum(-1)
    return (part(p) + part(q)) / 2


def pade_gamma(theta: float, length: int) -> float:
    """What tafagent predicts from the RoPE base and the length alone."""
    return (2 * theta - length * math.sqrt(2)) / (2 * theta + length * math.sqrt(2))


def eta(gamma: float, theta: float, length: int) -> float | None:
    """RoPE base that gamma would stand for, over the one that there is; None from gamma = 1 on."""
    return None if gamma >= 1 else length * math.sqrt(2) / (1 - gamma) / (theta + length / math.sqrt(2))


def pdi(gamma: float, theta: float, length: int) -> float:
    """tafagent's PDI; it calls .5 to 1.5 canonical."""
    return theta * (1 - gamma) * math.sqrt(2) / ((1 + gamma) * length)


def d90(gamma: float, length: int) -> int:
    """The smallest distance within which 90 % of a power law's mass over 1 to `length` lies."""
    mass = np.arange(1, length + 1, dtype=np.float64) ** -gamma
    return int(np.searchsorted(np.cumsum(mass), 0.9 * mass.sum())) + 1


def regime(gamma: float) -> tuple[str, float]:
    """Label, and how far gamma is from the nearest threshold: a label that hangs on a hundredth says nothing."""
    low, high = CRITICAL
    label = "long-range" if gamma < low else "critical" if gamma <= high else "local"
    return label, min(abs(gamma - low), abs(gamma - high))
