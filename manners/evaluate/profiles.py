"""Attention profiles of a model over many sequences, and how two models' differ on the same ones.

What is kept of a sequence is a number a layer and bin; of all sequences together, one a head and distance. Fits are of means: attention is
averaged over heads (and layers, and sequences) first. Every interval draws sequences, the same for both models.

Axes: `M` sequences, `L` layers, `H` heads, `D` distances, `K` bins, `B` resamples.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from manners.evaluate.intervals import LEVEL, SEED, ends, mean_interval, resampled_columns
from manners.model.shift import Speaker
from manners.model.weights import watch
from manners.ops.attention_profile import (
    LEAST_BINS,
    RELIABLE_R2,
    SINKS,
    Fit,
    ProfileSums,
    bin_centres,
    binned,
    js_divergence,
    log_bins,
    number,
    pairs,
    power_law,
    regime,
)

MARGIN = 0.02
"""What "barely moves" allows gamma: fixed before anything was measured, and no setting."""
SPLITS = 1000
BARELY, MOVES, OPEN = "barely moves", "moves", "not told"
MEASURES = ("entropy", "sink", "sink_4", "mean_distance")


class Profiles:
    """The profiles of one model over sequences of one length, filled by `add`."""

    def __init__(self, length: int, d_min: int | None = None, drop: int = 1):
        self.length, self.drop = length, drop
        self.d_min = d_min if d_min is not None else 30 if length >= 4 * 30 else 5
        self.count_D = pairs(length, drop).numpy()
        self.bins = log_bins(self.d_min, length // 2)
        self.centre_K, self.weight_K = bin_centres(self.count_D, self.bins)
        self.windows: list[int | None] = []
        self.lost = 0
        self._binned: list[np.ndarray] = []
        self._measures: list[np.ndarray] = []
        self._last: list[np.ndarray] = []
        self.kept_LHD = self.measures_XLH = np.zeros(0)

    def add(self, model: Speaker, token_ids: Sequence[int]) -> None:
        """Run one sequence of `length` tokens."""
        layers: dict[int, ProfileSums] = {}
        windows: dict[int, int | None] = {}

        def see(layer: int, weights_HQK: Any, window: int | None) -> None:
            if layer not in layers:
                layers[layer] = ProfileSums(len(weights_HQK), self.length, self.drop)
            windows[layer] = window
            layers[layer].add(weights_HQK.cpu())

        watch(*model, token_ids, see)
        sums = [layers[layer] for layer in sorted(layers)]
        self.windows = [windows[layer] for layer in sorted(windows)]
        self.lost += sum(s.lost for s in sums)
        kept_LHD = np.stack([s.kept_HD.numpy() for s in sums])
        measures_XLH = np.stack([np.stack([s.entropy(), *s.sink(), s.distance()]) for s in sums], 1)
        self.kept_LHD = kept_LHD if not self._binned else self.kept_LHD + kept_LHD
        self.measures_XLH = measures_XLH if not self._binned else self.measures_XLH + measures_XLH
        self._binned.append(binned(kept_LHD.mean(1), self.count_D, self.bins))
        self._measures.append(measures_XLH.mean(2))
        self._last.append(np.stack([s.last_HD.numpy().mean(0) for s in sums]).mean(0))

    # --- arrays -------------------------------------------------------------------------------------------------------------------

    @property
    def sequences(self) -> int:
        return len(self._binned)

    @property
    def binned_MLK(self) -> np.ndarray:
        return np.stack(self._binned)

    @property
    def measures_MXL(self) -> np.ndarray:
        """Entropy, sink of 1, sink of 4 and mean distance of each sequence and layer, means over heads."""
        return np.stack(self._measures)

    def row(self, sequence: int) -> dict[str, float | None]:
        """What one sequence says of the whole model."""
        return dict(zip(MEASURES, (number(v) for v in self._measures[sequence].mean(-1)), strict=True))

    @property
    def weight_LK(self) -> np.ndarray:
        """Pairs in each bin of each layer; 0 for a bin that a layer's window cuts."""
        ends_K = np.array([b for _, b in self.bins])
        inside = [[window is None or end <= window for end in ends_K] for window in self.windows]
        return np.where(inside, self.weight_K, 0.0)

    @property
    def whole(self) -> np.ndarray:
        """Which layers the whole model's profile is the mean of: those without a window that cuts a bin, or all if none is, (L,)."""
        full_L = np.asarray((self.weight_LK > 0).all(1))
        return full_L if full_L.any() else np.ones_like(full_L)

    # --- fits ---------------------------------------------------------------------------------------------------------------------

    def fit_layers(self, binned_XLK: np.ndarray) -> Fit:
        return power_law(self.centre_K, binned_XLK, self.weight_LK, LEAST_BINS)

    def fit_whole(self, binned_XLK: np.ndarray) -> Fit:
        """The fit of the mean over layers."""
        weight_K = self.weight_LK[self.whole].min(0)
        return power_law(self.centre_K, binned_XLK[..., self.whole, :].mean(-2), weight_K, LEAST_BINS)

    def fit_heads(self) -> Fit:
        heads_LHK = binned(self.kept_LHD / self.sequences, self.count_D, self.bins)
        return power_law(self.centre_K, heads_LHK, self.weight_LK[:, None], LEAST_BINS)

    def resampled(self) -> np.ndarray:
        """Mean attention by layer and bin of every resample of the sequences, (B, L, K)."""
        values = self.binned_MLK
        return resampled_columns(values.reshape(len(values), -1)).reshape(-1, *values.shape[1:])

    def describe(self) -> dict[str, Any]:
        """The model by itself, as `results.json` keeps it."""
        mean_LK = self.binned_MLK.mean(0)
        whole, layers, heads = self.fit_whole(mean_LK), self.fit_layers(mean_LK), self.fit_heads()
        low, high = _ends(self.fit_whole(self.resampled()).gamma)
        last_D = np.mean(self._last, 0)
        found: dict[str, Any] = {**whole.at(()), "low": low, "high": high, "reliable": _reliable(whole.r2)}
        if found["gamma"] is not None:
            found["regime"], found["to_threshold"] = regime(found["gamma"])
        found["gamma_mean_of_layers"] = _mean(layers.gamma)
        found["gamma_mean_of_heads"] = _mean(heads.gamma)
        found["gamma_last_row"] = power_law(self.centre_K, binned(last_D, np.ones(self.length), self.bins)).at(())["gamma"]
        edges = log_bins(1, self.length - self.drop - 1, 40)
        centres, _ = bin_centres(self.count_D, edges)
        total_D = self.kept_LHD[self.whole].mean((0, 1)) / self.sequences
        found["profile"] = [
            {"distance": float(d), "attention": float(a)} for d, a in zip(centres, binned(total_D, self.count_D, edges), strict=True)
        ]
        measured_XL = self.measures_MXL.mean(0)
        found["layers"] = [
            {"layer": layer, **layers.at(layer), **dict(zip(MEASURES, map(number, measured_XL[:, layer]), strict=True))}
            for layer in range(len(self.windows))
        ]
        measured_XLH = self.measures_XLH / self.sequences
        found["heads"] = {name: _table(values) for name, values in zip(MEASURES, measured_XLH, strict=True)}
        found["heads"] |= {"gamma": _table(heads.gamma), "r2": _table(heads.r2)}
        return found


# --- two models -----------------------------------------------------------------------------------------------------------------


def difference(base: Profiles, model: Profiles) -> dict[str, Any]:
    """`model` less `base` on the same sequences: gamma and the other measures with intervals, JS divergence; whole and by layer."""
    at = [p.binned_MLK.mean(0) for p in (base, model)]
    again = [p.resampled() for p in (base, model)]
    whole = [p.fit_whole(a) for p, a in zip((base, model), at, strict=True)]
    found: dict[str, Any] = {
        "gamma": _gap(*(f.gamma for f in whole), *(p.fit_whole(a).gamma for p, a in zip((base, model), again, strict=True))),
        "reliable": all(_reliable(f.r2) for f in whole),
        "js": number(js_divergence(*(p.kept_LHD[p.whole].mean((0, 1)) for p in (base, model)))),
    }
    gap_MXL = model.measures_MXL - base.measures_MXL
    found |= {name: _interval(gap_MXL[:, x].mean(-1)) for x, name in enumerate(MEASURES)}
    layers = [p.fit_layers(a).gamma for p, a in zip((base, model), at, strict=True)]
    drawn = [p.fit_layers(a).gamma for p, a in zip((base, model), again, strict=True)]
    js_L = js_divergence(*(p.kept_LHD.mean(1) for p in (base, model)))
    found["layers"] = [
        {
            "layer": layer,
            "gamma": _gap(*(g[layer] for g in layers), *(g[:, layer] for g in drawn)),
            **{name: _interval(gap_MXL[:, x, layer]) for x, name in enumerate(MEASURES)},
            "js": number(js_L[layer]),
        }
        for layer in range(len(base.windows))
    ]
    return found


def halves(profiles: Profiles) -> dict[str, Any]:
    """The first control: two disjoint halves of the sequences under one model, split at random SPLITS times.

    `mean` and `spread` are the mean and the 95 % quantile of |gamma of one half less gamma of the other|: what the choice of text
    does to gamma. `js` is the JS divergence of one split's profiles (by bins).
    """
    count = profiles.sequences
    if count < 4:
        return {"mean": None, "spread": None, "reason": "fewer than 4 sequences"}
    generator, half = np.random.default_rng(SEED), count // 2
    order = generator.permuted(np.tile(np.arange(count), (SPLITS, 1)), axis=1)
    sides = []
    for part in (order[:, :half], order[:, half : 2 * half]):
        chosen_SM = np.zeros((SPLITS, count))
        np.put_along_axis(chosen_SM, part, 1 / half, axis=1)
        sides.append(np.tensordot(chosen_SM, profiles.binned_MLK, 1))
    one, two = sides
    gap = np.abs(profiles.fit_whole(one).gamma - profiles.fit_whole(two).gamma)
    if not np.isfinite(gap).all():
        return {"mean": None, "spread": None, "reason": "gamma could not be fitted on every half"}
    js = js_divergence(one[0].mean(0), two[0].mean(0))
    return {
        "mean": float(gap.mean()),
        "spread": float(np.quantile(gap, LEVEL)),
        "splits": SPLITS,
        "js": number(js),
    }


def equivalence(gap: dict[str, Any], margin: float = MARGIN, spread: float | None = None) -> dict[str, Any]:
    """Two one-sided tests by the interval: `barely moves` where all of it lies within +-margin (each test at 2.5 %, the interval being of
    95 %), `moves` where all of it lies beyond, else `not told`. With the halves' spread, whether it lies within that, too."""
    low, high = gap["low"], gap["high"]
    if low is None:
        return {"margin": margin, "verdict": OPEN, "reason": "no interval"}
    inside, beyond = -margin < low and high < margin, low >= margin or high <= -margin
    found: dict[str, Any] = {"margin": margin, "verdict": BARELY if inside else MOVES if beyond else OPEN}
    return found if spread is None else found | {"within_halves": max(abs(low), abs(high)) <= spread}


def _gap(base: Any, model: Any, base_B: np.ndarray, model_B: np.ndarray) -> dict[str, Any]:
    low, high = _ends(model_B - base_B)
    return {"value": number(model - base), "low": low, "high": high}


def _ends(values_B: np.ndarray) -> tuple[float | None, float | None]:
    """The interval, unless a resample could not be fitted."""
    return ends(values_B) if np.isfinite(values_B).all() else (None, None)


def _interval(gap_M: np.ndarray) -> dict[str, Any]:
    if not np.isfinite(gap_M).all():
        return {"value": None, "low": None, "high": None}
    estimate = mean_interval([gap_M.tolist()])
    return {key: estimate[key] for key in ("value", "low", "high")}


def _reliable(r2: Any) -> bool:
    return bool(np.isfinite(r2) and r2 >= RELIABLE_R2)


def _mean(values: np.ndarray) -> float | None:
    """The mean of the fits that there are."""
    return number(np.nanmean(values)) if np.isfinite(values).any() else None


def _table(values_LH: np.ndarray) -> list[list[float | None]]:
    return [[number(v) for v in row] for row in values_LH]


assert len(MEASURES) == 2 + len(SINKS)
