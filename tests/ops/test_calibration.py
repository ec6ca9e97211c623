"""Worked values of algorithms.md 2.9 (R6) and 7.10 (ECE), and the curve and the temperature against slow searches."""

import math

import numpy as np
import pytest

from manners.core.errors import InputError
from manners.ops.calibration import COLDEST, HOTTEST, ece, fit_temperature, normaliser, reliability

CONFIDENCE, CORRECT = [0.95, 0.92, 0.85, 0.72, 0.65, 0.55], [1, 1, 0, 1, 0, 1]


def test_ece_worked_value():
    assert ece(CONFIDENCE, CORRECT) == pytest.approx(0.3933333333, abs=1e-9)


def test_normaliser_worked_values():
    """R6: (.4, -.2, 1) to mean 0, standard deviation 1."""
    gain, bias = normaliser([0.4, -0.2, 1])
    assert (gain, bias) == pytest.approx((2.041241452, -0.8164965809), abs=1e-9)
    gain, bias = normaliser([0.4, -0.2, 1], mean=2, std=3)
    moved = gain * np.array([0.4, -0.2, 1]) + bias
    assert (moved.mean(), moved.std()) == pytest.approx((2, 3))


@pytest.mark.parametrize("scores", [[], [1.0], [2.0, 2.0], [1.0, math.nan], [1.0, math.inf]])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_scores_without_spread_are_refused(scores):
    with pytest.raises(InputError, match="all equal or not finite"):
        normaliser(scores)


@pytest.mark.parametrize("bins", [1, 4, 10])
def test_reliability_against_a_loop(bins):
    random = np.random.default_rng(bins)
    p, right = random.random(300), random.integers(0, 3, 300) / 2
    curve = reliability(p, right, bins)
    assert len(curve) == bins and sum(b.n for b in curve) == 300
    off = 0.0
    for k, b in enumerate(curve):
        inside = [i for i in range(300) if k / bins <= p[i] < (k + 1) / bins]
        assert b.n == len(inside) and (b.low, b.high) == (k / bins, (k + 1) / bins)
        assert (b.confidence, b.accuracy) == pytest.approx((np.mean(p[inside]), np.mean(right[inside])))
        off += abs(sum(right[i] - p[i] for i in inside)) / 300
    assert ece(p, right, bins) == pytest.approx(off)


def test_borders_belong_to_the_bin_above_and_1_to_the_last():
    edges = [k / 10 for k in range(11)]
    assert [b.n for b in reliability(edges, [1] * 11)] == [1] * 9 + [2]
    empty = reliability([0.95], [1])[0]
    assert empty == (0.0, 0.1, 0, None, None)


def test_calibration_of_nothing_and_of_certainty():
    assert math.isnan(ece([], [])) and ece([1.0, 0.0], [1, 0]) == 0 and ece([1.0, 0.0], [0, 1]) == 1


@pytest.mark.parametrize("p, right, says", [([0.5], [1, 0], "one outcome"), ([1.1], [1], "0 to 1"), ([math.nan], [1], "NaN")])
def test_what_is_no_probability_is_refused(p, right, says):
    with pytest.raises(InputError, match=says):
        ece(p, right)


@pytest.mark.parametrize("truth", [0.3, 1.0, 4.0])
def test_temperature_against_a_grid_and_the_truth(truth):
    """Pairs whose labels follow sigma(gap / truth) give the truth back, and no grid point has a lower loss."""
    random = np.random.default_rng(0)
    size = random.normal(size=100_000) * 3
    gaps = np.where(random.random(100_000) < 1 / (1 + np.exp(-size / truth)), size, -size)
    found = fit_temperature(gaps)
    assert found == pytest.approx(truth, rel=0.05)
    loss = lambda t: np.logaddexp(0, -gaps / t).mean()
    assert all(loss(found) <= loss(t) + 1e-12 for t in np.geomspace(0.1, 20, 60))


def test_temperature_scales_with_the_gaps():
    gaps = np.array([2.0, 1.0, -0.5, 3.0, -1.0])
    assert fit_temperature(10 * gaps) == pytest.approx(10 * fit_temperature(gaps), rel=1e-9)


def test_temperature_where_the_pairs_do_not_determine_it():
    assert fit_temperature([1.0, 2.0, 0.0]) == COLDEST and fit_temperature([50.0, 1e5]) == COLDEST
    assert fit_temperature([1.0, -2.0]) == HOTTEST and fit_temperature([-1e5]) == HOTTEST
    assert fit_temperature([0.0, 0.0]) == 1.0
    with pytest.raises(InputError, match="at least one pair"):
        fit_temperature([])
    with pytest.raises(InputError, match="finite"):
        fit_temperature([1.0, math.nan])
