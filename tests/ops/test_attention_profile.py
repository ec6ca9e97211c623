"""Attention profiles against numbers worked by hand, and against a slow loop."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from manners.ops.attention_profile import (
    ProfileSums,
    bin_centres,
    binned,
    d90,
    diagonal_sums,
    eta,
    js_divergence,
    log_bins,
    number,
    pade_gamma,
    pairs,
    pdi,
    power_law,
    regime,
)

STORED = [10, 20, 50, 100, 200, 500, 1000, 2000]
BEFORE = [0.007876912066221849, 0.005768730380768829, 0.002727720131567821, 0.0014364854118707627]
BEFORE += [0.0007443138907158442, 0.00028645839140396313, 0.0001556541892953689, 6.468147635719013e-05]
AFTER = [0.007941762741293133, 0.00567333775366933, 0.002715980579916959, 0.0014180658569782167]
AFTER += [0.0007151647645909165, 0.000281991663518415, 0.00015078636685665004, 7.066360648636639e-05]


def causal(heads: int, length: int, seed: int = 0) -> torch.Tensor:
    scores = 3 * torch.randn(heads, length, length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.softmax(scores.masked_fill(~torch.ones(length, length, dtype=torch.bool).tril(), float("-inf")), -1)


# --- fits -------------------------------------------------------------------------------------------------------------------------


def test_a_power_law_is_found_exactly():
    d = [10, 50, 200, 1000]
    fit = power_law(d, [0.1 * x**-0.8 for x in d])
    assert float(fit.gamma) == pytest.approx(0.8, abs=1e-12) and float(fit.log_a0) == pytest.approx(-2.302585093, abs=1e-9)
    assert float(fit.r2) == pytest.approx(1, abs=1e-12) and float(fit.aic_gap) > 100


def test_an_exponential_is_told_from_a_power_law():
    d = np.arange(10, 200, 10)
    assert float(power_law(d, np.exp(-0.02 * d)).aic_gap) < -100
    noisy = np.exp(-0.9 * np.log(d) + 0.05 * np.sin(np.arange(len(d)) * 2.3))
    gap, n = power_law(d, noisy).aic_gap, len(d)
    line = lambda x: np.sum((np.log(noisy) - np.polyval(np.polyfit(x, np.log(noisy), 1), x)) ** 2)
    assert float(gap) == pytest.approx(n * math.log(line(d) / line(np.log(d))), rel=1e-6)


@pytest.mark.parametrize(
    "curve, whole, intercept, r2, long, long_r2",
    [
        (BEFORE, 0.9192337618, -2.450530052, 0.9915678913, 1.002306297, 0.9978859317),
        (AFTER, 0.9127684668, None, 0.9938241031, 0.9860538131, None),
    ],
)
def test_the_stored_curves_of_smollm2_360m(curve, whole, intercept, r2, long, long_r2):
    fit = power_law(STORED, curve)
    assert float(fit.gamma) == pytest.approx(whole, abs=1e-9) and float(fit.r2) == pytest.approx(r2, abs=1e-9)
    assert intercept is None or float(fit.log_a0) == pytest.approx(intercept, abs=1e-9)
    far = power_law(STORED[2:], curve[2:])
    assert float(far.gamma) == pytest.approx(long, abs=1e-9)
    assert long_r2 is None or float(far.r2) == pytest.approx(long_r2, abs=1e-9)


def test_the_window_moves_gamma_more_than_alignment_does():
    both = power_law(STORED, [BEFORE, AFTER]).gamma
    assert both[1] - both[0] == pytest.approx(-0.00646529504, abs=1e-10)
    far = power_law(STORED[2:], [BEFORE[2:], AFTER[2:]]).gamma
    assert far[1] - far[0] == pytest.approx(-0.0162524839, abs=1e-9)
    assert abs(far[0] - both[0]) > 5 * abs(both[1] - both[0])


def test_weights_are_honoured_and_points_without_attention_left_out():
    d, a = np.array([1.0, 2, 4, 8, 16]), np.array([1.0, 0.4, 0.3, 0.1, 0.0])
    weight = np.array([5.0, 4, 3, 2, 1])
    fit = power_law(d, a, weight)
    slope, intercept = np.polyfit(np.log(d[:4]), np.log(a[:4]), 1, w=np.sqrt(weight[:4]))
    assert float(fit.gamma) == pytest.approx(-slope, abs=1e-12) and float(fit.log_a0) == pytest.approx(intercept, abs=1e-12)
    repeated = power_law(np.repeat(d[:4], [5, 4, 3, 2]), np.repeat(a[:4], [5, 4, 3, 2]))
    assert float(fit.r2) == pytest.approx(float(repeated.r2), abs=1e-12)
    assert math.isnan(power_law(d, a, weight, least=5).gamma) and power_law(d, a, weight, least=5).at(())["gamma"] is None


def test_no_decay_is_gamma_nought_with_nothing_explained():
    fit = power_law([1, 10, 100], [0.2, 0.2, 0.2])
    assert float(fit.gamma) == pytest.approx(0, abs=1e-12) and number(fit.r2) is None


# --- single numbers ---------------------------------------------------------------------------------------------------------------


def test_predictions_from_the_config():
    assert pade_gamma(1e4, 2000) == pytest.approx(0.7522013138, abs=1e-10)
    assert pade_gamma(1e6, 2000) == pytest.approx(0.9971755672, abs=1e-10)
    found = [(g, eta(g, 1e4, 2000), pdi(g, 1e4, 2000)) for g in (0.9, 0.75, 0.7, 0.45)]
    assert [e for _, e, _ in found] == pytest.approx([2.477986862, 0.9911947448, 0.8259956207, 0.4505430658], abs=1e-9)
    assert [p for _, _, p in found] == pytest.approx([0.3721614638, 1.010152545, 1.247835496, 2.68212917], abs=1e-8)
    assert eta(1.0, 1e4, 2000) is None
    assert (d90(0.8, 2000), d90(1.2, 1000)) == (1314, 227)


@pytest.mark.parametrize("gamma, label, away", [(0.9, "long-range", 0.05), (0.97, "critical", 0.02), (1.2, "local", 0.15)])
def test_regimes_come_with_the_distance_to_the_nearest_threshold(gamma, label, away):
    assert regime(gamma)[0] == label and regime(gamma)[1] == pytest.approx(away, abs=1e-12)


def test_jensen_shannon():
    assert float(js_divergence((0.5, 0.3, 0.2), (0.4, 0.4, 0.2))) == pytest.approx(0.006367198334, abs=1e-12)
    assert float(js_divergence((5, 3, 2), (50, 30, 20))) == pytest.approx(0, abs=1e-15)
    assert float(js_divergence((1, 0), (0, 1))) == pytest.approx(math.log(2), abs=1e-12)


# --- sums -------------------------------------------------------------------------------------------------------------------------


def hand() -> torch.Tensor:
    rows = torch.zeros(1, 4, 4, dtype=torch.float64)
    for i, row in enumerate([[1.0], [0.6, 0.4], [0.5, 0.2, 0.3], [0.4, 0.1, 0.2, 0.3]]):
        rows[0, i, : i + 1] = torch.tensor(row, dtype=torch.float64)
    return rows


def test_the_matrix_worked_by_hand():
    sums = ProfileSums(1, 4)
    sums.add(hand())
    assert sums.profile()[0].tolist() == pytest.approx([0.5, 1 / 3, 0.3, 0.4], abs=1e-12)
    assert sums.sink()[0].tolist() == pytest.approx([0.5], abs=1e-12) and number(sums.sink()[1, 0]) is None
    assert float(sums.entropy()[0]) == pytest.approx(0.9438002767, abs=1e-9)
    assert float(sums.distance()[0]) == pytest.approx(0.85, abs=1e-12)
    assert sums.last_HD[0].tolist() == pytest.approx([0.3, 0.2, 0.1, 0.4])
    # without the first key: rows [1], [.4, .6], [1/6, 1/3, 1/2]
    kept = sums.kept_HD[0].numpy() / np.maximum(pairs(4, 1).numpy(), 1)
    assert kept.tolist() == pytest.approx([(1 + 0.6 + 0.5) / 3, (0.4 + 1 / 3) / 2, 1 / 6, 0], abs=1e-12)


def test_entropies_of_single_rows():
    sums = ProfileSums(1, 3)
    sums.add(torch.tensor([[[1.0, 0, 0], [1, 0, 0], [0.5, 0.25, 0.25]]], dtype=torch.float64))
    assert 2 * float(sums.entropy()[0]) == pytest.approx(0.9463946304, abs=1e-9)  # the second row has none
    assert float(sums.entropy_H[0]) * math.log(3) == pytest.approx(1.039720771, abs=1e-9)


@pytest.mark.parametrize("rows", [1, 3, 7, 20])
def test_blocks_of_rows_add_up_to_the_whole_and_to_a_slow_loop(rows):
    heads, length, drop = 2, 20, 2
    weights, sums = causal(heads, length), ProfileSums(heads, length, drop)
    for first in range(0, length, rows):
        last = min(first + rows, length)
        sums.add(weights[:, first:last, :last])
    slow, kept = torch.zeros(heads, length, dtype=torch.float64), torch.zeros(heads, length, dtype=torch.float64)
    for i in range(length):
        for j in range(i + 1):
            slow[:, i - j] += weights[:, i, j]
            if j >= drop:
                kept[:, i - j] += weights[:, i, j] / weights[:, i, drop:].sum(-1)
    assert torch.allclose(sums.all_HD, slow, atol=1e-12) and torch.allclose(sums.kept_HD, kept, atol=1e-12)
    assert torch.allclose(diagonal_sums(weights), slow, atol=1e-12)
    assert np.allclose(sums.sink()[1], weights[:, 4:, :4].sum((1, 2)).numpy() / 16)
    assert torch.allclose(sums.last_HD, weights[:, -1].flip(-1))


def test_uniform_attention_in_closed_form():
    length = 50
    weights = (torch.ones(length, length, dtype=torch.float64).tril() / torch.arange(1, length + 1)[:, None])[None]
    sums = ProfileSums(1, length)
    sums.add(weights)
    harmonic = np.concatenate([[0], np.cumsum(1 / np.arange(1, length + 1))])
    assert sums.profile()[0] == pytest.approx([(harmonic[-1] - harmonic[d]) / (length - d) for d in range(length)], abs=1e-12)
    assert float(sums.entropy()[0]) == pytest.approx(1, abs=1e-12)
    assert float(sums.distance()[0]) == pytest.approx((length - 1) / 4, abs=1e-12)


def test_rows_that_lie_on_the_first_key_alone_are_counted_and_do_no_harm():
    weights = torch.zeros(1, 4, 4)
    weights[:, :, 0] = 1
    sums = ProfileSums(1, 4)
    sums.add(weights)
    assert sums.lost == 3 and sums.kept_HD.tolist() == [[0.0] * 4]
    assert float(sums.sink()[0, 0]) == 1


def test_bins_are_whole_and_cover_the_range_once():
    bins = log_bins(30, 256)
    assert len(bins) >= 8 and bins[0][0] == 30 and bins[-1][1] == 257
    assert all(a[1] == b[0] for a, b in pairwise(bins))
    assert len(log_bins(5, 16)) >= 8
    count = pairs(512, 1).numpy()
    d = np.maximum(np.arange(512), 1)
    centres, weight = bin_centres(count, bins)
    assert weight.sum() == count[30:257].sum()
    fit = power_law(centres, binned(count * d**-0.9, count, bins), weight)
    assert float(fit.gamma) == pytest.approx(0.9, abs=2e-3) and float(fit.r2) > 0.99999
