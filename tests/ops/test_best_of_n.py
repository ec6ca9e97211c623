"""Worked values of algorithms.md 5.7, and estimates against enumeration of all subsets."""

import itertools
import math

import numpy as np
import pytest

from manners.core.errors import InputError
from manners.ops.best_of_n import estimate, expected, kl_bound, kl_of_outputs, proxy_win_rate, weights

GOLD = [0.1, 0.5, 0.4, 0.2]


def test_worked_values():
    assert [expected(GOLD, n) for n in (1, 2, 3, 4)] == pytest.approx([0.3, 0.3166666667, 0.25, 0.2], abs=1e-9)
    bounds = [kl_bound(n) for n in (1, 2, 4, 16, 64, 12_500)]
    assert bounds == pytest.approx([0, 0.1931471806, 0.6362943611, 1.835088722, 3.174508083, 8.433563923], abs=1e-9)
    assert proxy_win_rate(4) == pytest.approx(0.8, abs=1e-12) and proxy_win_rate(1) == 0.5


@pytest.mark.parametrize("samples", range(1, 8))
def test_weights_against_enumeration(samples):
    """Over all subsets of n, how often each sample is the highest."""
    for n in range(1, samples + 1):
        tops = [max(subset) for subset in itertools.combinations(range(samples), n)]
        assert weights(samples, n).tolist() == pytest.approx([tops.count(i) / len(tops) for i in range(samples)], abs=1e-12)


@pytest.mark.parametrize("samples, n", [(12_600, 1), (12_600, 2), (12_600, 6_300), (12_600, 12_500), (12_600, 12_600), (1, 1)])
def test_weights_of_many_samples(samples, n):
    w = weights(samples, n)
    assert w.shape == (samples,) and w.dtype == np.float64
    assert w.sum() == pytest.approx(1, abs=1e-10) and np.isfinite(w).all() and (w >= 0).all() and (np.diff(w) >= 0).all()
    assert not w[: n - 1].any()
    for i in {n, (n + samples) // 2, samples}:
        log = math.lgamma(i) - math.lgamma(n) - math.lgamma(i - n + 1)
        log -= math.lgamma(samples + 1) - math.lgamma(n + 1) - math.lgamma(samples - n + 1)
        # Differences of logarithms near 1e5 keep about nine digits.
        assert w[i - 1] == pytest.approx(math.exp(log), rel=1e-7, abs=1e-300)


@pytest.mark.parametrize("seed", range(4))
def test_estimate_against_enumeration_with_ties_broken_at_random(seed):
    random = np.random.default_rng(seed)
    proxy, gold = random.integers(0, 4, 6).astype(float), random.normal(size=6)
    for n in range(1, 7):
        means = []
        for subset in itertools.combinations(range(6), n):
            top = max(proxy[i] for i in subset)
            means.append(np.mean([gold[i] for i in subset if proxy[i] == top]))
        assert estimate(proxy, gold, n) == pytest.approx(np.mean(means), abs=1e-12)


def test_a_row_a_prompt():
    random = np.random.default_rng(0)
    proxy, gold = random.integers(0, 5, (3, 8)), random.normal(size=(3, 8))
    together = estimate(proxy, gold, 4)
    assert together.shape == (3,) and together.tolist() == pytest.approx(
        [float(estimate(p, g, 4)) for p, g in zip(proxy, gold, strict=True)]
    )
    assert expected(gold, 4).shape == (3,) and estimate(proxy[0], gold[0], 4).shape == ()
    assert estimate(np.zeros((0, 8)), np.zeros((0, 8)), 4).shape == (0,)


def test_laws():
    """One sample is plain sampling, all samples the best one; the proxy's own mean never falls; a flat proxy chooses nothing."""
    random = np.random.default_rng(1)
    proxy, gold = random.normal(size=(2, 30))
    assert estimate(proxy, gold, 1) == pytest.approx(gold.mean())
    assert estimate(proxy, gold, 30) == pytest.approx(gold[proxy.argmax()])
    assert (np.diff([estimate(proxy, proxy, n) for n in range(1, 31)]) >= 0).all()
    assert [estimate(np.zeros(30), gold, n) for n in (1, 7, 30)] == pytest.approx([gold.mean()] * 3)
    shuffled = random.permutation(30)
    assert estimate(proxy[shuffled], gold[shuffled], 5) == pytest.approx(estimate(proxy, gold, 5))


def test_the_kl_of_few_outputs_lies_below_the_bound_and_reaches_it_with_many():
    """A coin, n = 2: .1308120359 where the bound says .1931471806."""
    assert kl_of_outputs([0.5, 0.5], 2) == pytest.approx(0.1308120359, abs=1e-9)
    assert kl_of_outputs([1.0], 9) == 0 and kl_of_outputs([0.2, 0.3, 0.5], 1) == pytest.approx(0, abs=1e-12)
    assert kl_of_outputs([3, 0, 1], 4) == pytest.approx(kl_of_outputs([0.75, 0.25], 4), abs=1e-12)
    for n in (2, 4, 16):
        assert kl_of_outputs(np.random.default_rng(n).random(50), n) < kl_bound(n)
        assert kl_of_outputs(np.ones(200_000), n) == pytest.approx(kl_bound(n), abs=1e-3)


def test_the_kl_of_few_outputs_against_enumeration_of_draws():
    p, n = [0.2, 0.5, 0.3], 3
    q = [0.0] * 3
    for drawn in itertools.product(range(3), repeat=n):
        q[max(drawn)] += math.prod(p[i] for i in drawn)
    assert kl_of_outputs(p, n) == pytest.approx(sum(b * math.log(b / a) for a, b in zip(p, q, strict=True)), abs=1e-12)


@pytest.mark.parametrize("n", [0, 5, -1])
def test_n_beyond_the_samples_is_refused(n):
    with pytest.raises(InputError, match="between 1 and 4"):
        weights(4, n)


def test_unusable_scores_are_refused():
    with pytest.raises(InputError, match="1 of 3 scores are NaN"):
        estimate([0.1, math.nan, 0.3], [1, 2, 3], 2)
    with pytest.raises(InputError, match="one value a score"):
        estimate([0.1, 0.2], [1, 2, 3], 2)
