"""Weighted means over strata: the value by hand, intervals against what is known of the spread of a mean."""

import numpy as np
import pytest

from manners.evaluate.intervals import mean_interval
from manners.evaluate.paired import paired
from manners.evaluate.strata import combined, difference

RANDOM = np.random.default_rng(0)


def test_each_stratum_weighs_alike_whatever_its_size():
    found = combined([np.ones((1, 9)), np.zeros((1, 1))])
    assert [found["value"], found["low"], found["high"], found["n"]] == pytest.approx([0.5, 0.5, 0.5, 10])
    assert combined([np.ones((1, 9)), np.full((1, 3), 0.25)], [1, -1])["value"] == pytest.approx(0.75)


def test_one_stratum_is_an_ordinary_mean():
    values = RANDOM.normal(size=(1, 200))
    mine, known = combined([values]), mean_interval(values)
    assert mine["value"] == pytest.approx(known["value"])
    assert mine["high"] - mine["low"] == pytest.approx(known["high"] - known["low"], rel=0.03)
    gaps, other = difference([values]), paired(values)
    assert gaps["difference"] == pytest.approx(other["difference"]) and gaps["p"] == pytest.approx(other["p"], abs=0.02)


def test_strata_are_drawn_independently():
    """Two sets with the same values: were they drawn alike, their gap would not vary at all."""
    values = RANDOM.normal(size=(1, 100))
    found = combined([values, values], [1, -1])
    assert found["value"] == 0
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * np.sqrt(2) * values.std() / 10, rel=0.05)


def test_seeds_are_drawn_together():
    """Seeds that differ by a constant in every stratum: their spread must not average out over strata."""
    strata = [np.array([[0.0] * 5, [1.0] * 5]) for _ in range(20)]
    found = combined(strata)
    assert [found["value"], found["low"], found["high"], *found["by_seed"]] == pytest.approx([0.5, 0, 1, 0, 1])


def test_a_share_without_spread_is_not_certain():
    found = combined([np.ones((1, 2)), np.ones((1, 2))], share=True)
    assert found["high"] == 1 and found["low"] == pytest.approx(1 - 1.959964**2 / (4 + 1.959964**2), rel=1e-6)


def test_a_gap_that_all_prompts_share_says_nothing_of_two_sets():
    """b is better by 3 on the one set and by 1 on the other: told by exchanging prompts. By 2 on both: not."""
    assert difference([np.full((1, 8), 1.0), np.full((1, 6), 3.0)], [1, -1])["p"] < 0.01
    noise = RANDOM.normal(size=(2, 40))
    found = difference([2 + noise[:1], 2 + noise[1:]], [1, -1])
    assert found["p"] > 0.05 and found["low"] < 0 < found["high"]


def test_a_difference_is_called_by_its_p():
    assert difference([np.full((1, 8), 0.2), np.full((1, 8), 0.4)])["p"] < 0.01
    assert difference([np.array([[1.0, -1.0]]), np.array([[-1.0, 1.0]])])["p"] == 1
