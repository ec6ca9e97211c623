"""Bootstrap intervals against scipy's, against the normal formula, and on cases that can be reckoned by hand."""

import numpy as np
import pytest
from scipy import stats

from manners.evaluate.intervals import absent, mean_interval, point


def test_one_seed_is_the_bootstrap_of_scipy():
    values_P = np.random.default_rng(1).normal(size=150) ** 2
    ours = mean_interval([values_P])
    theirs = stats.bootstrap((values_P,), np.mean, n_resamples=20_000, method="percentile", rng=2).confidence_interval
    assert ours["value"] == pytest.approx(values_P.mean()) and ours["n"] == 150 and "by_seed" not in ours
    width = theirs.high - theirs.low
    assert ours["low"] == pytest.approx(theirs.low, abs=0.04 * width)
    assert ours["high"] == pytest.approx(theirs.high, abs=0.04 * width)


def test_it_is_the_same_each_time():
    values = np.random.default_rng(3).normal(size=(2, 40))
    assert mean_interval(values) == mean_interval(values.tolist())


def test_the_spread_of_seeds_widens_the_interval():
    """Seeds 10 apart, prompts alike: the mean of two drawn seeds is 0, 5 or 10, with probability 1/4, 1/2, 1/4."""
    two = mean_interval([[0.0] * 30, [10.0] * 30])
    assert (two["value"], two["low"], two["high"]) == pytest.approx((5.0, 0.0, 10.0))
    assert two["by_seed"] == [0.0, 10.0] and two["n"] == 30


def test_prompts_and_seeds_are_drawn_independently():
    """Crossed: the variance of the mean is nearly that of prompt effects plus that of seed effects."""
    generator = np.random.default_rng(5)
    prompts_P, seeds_S = generator.normal(size=200), generator.normal(size=8)
    found = mean_interval(seeds_S[:, None] + prompts_P[None])
    half = 1.96 * np.sqrt(prompts_P.var() / 200 + seeds_S.var() / 8)
    assert found["high"] - found["low"] == pytest.approx(2 * half, rel=0.05)


def test_coverage_is_about_what_it_says():
    """Of intervals for the mean of 60 draws whose true mean is 0.3, about 95 in 100 hold it."""
    draws = np.random.default_rng(7).random((300, 60)) < 0.3
    found = [mean_interval([draw]) for draw in draws]
    assert 0.91 < np.mean([estimate["low"] <= 0.3 <= estimate["high"] for estimate in found]) < 0.98


def test_a_share_without_spread_gets_the_interval_of_wilson():
    for hits, n in ((0, 2), (40, 40)):
        wilson = stats.binomtest(hits, n).proportion_ci(method="wilson")
        found = mean_interval([[float(hits > 0)] * n], share=True)
        assert (found["low"], found["high"]) == pytest.approx((wilson.low, wilson.high), abs=1e-9)
    assert mean_interval([[0.0, 0.0]])["high"] == 0, "a difference that is nought everywhere is no share"
    assert mean_interval([[1.0, 0.0, 1.0]], share=True) == mean_interval([[1.0, 0.0, 1.0]])


def test_what_has_no_interval():
    assert point([0.5], 9) == {"value": 0.5, "low": None, "high": None, "n": 9}
    assert point([0.5, 0.7], 9)["by_seed"] == [0.5, 0.7]
    assert mean_interval(np.zeros((1, 0))) == absent() == {"value": None, "low": None, "high": None, "n": 0}
    assert mean_interval([[2.0]]) == {"value": 2.0, "low": 2.0, "high": 2.0, "n": 1}
