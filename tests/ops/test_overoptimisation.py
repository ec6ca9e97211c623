"""Worked values of algorithms.md 6, planted laws found again, and the peak against a search."""

import math

import numpy as np
import pytest

from manners.core.errors import InputError
from manners.ops.overoptimisation import LAWS, Fit, fit

D, R = [1, 2, 3, 4], [0.9, 1.55, 2.1, 2.45]


def test_worked_laws():
    bon, rl = Fit(1, 0.1, "bon"), Fit(1, 0.4, "rl")
    assert (*bon.peak, bon.predict(3)) == pytest.approx((5, 2.5, 2.1), abs=1e-9)
    assert (*rl.peak, rl.predict(2)) == pytest.approx((4.48168907, 1.792675628, 1.445482256), abs=1e-8)


def test_worked_fits():
    through_score = fit(D, R, "bon")
    assert (through_score.alpha, through_score.beta) == pytest.approx((0.9603225806, 0.08709677419), abs=1e-9)
    assert through_score.peak == pytest.approx((5.512962963, 2.64711141), abs=1e-8)
    through_ratio = fit(D, R, "bon", through="ratio")
    assert (through_ratio.alpha, through_ratio.beta) == pytest.approx((0.98125, 0.09375), abs=1e-9)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("through", ["score", "ratio"])
def test_planted_coefficients_are_found(law, through):
    random = np.random.default_rng(0)
    for _ in range(5):
        alpha, beta = random.normal(), random.normal()
        d = random.random(12) * 6 + 0.2
        found = fit(d, Fit(alpha, beta, law).predict(d), law, random.random(12) + 0.1, through)
        assert (found.alpha, found.beta) == pytest.approx((alpha, beta), abs=1e-9)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("through", ["score", "ratio"])
def test_no_neighbour_has_a_smaller_weighted_error(law, through):
    random = np.random.default_rng(1)
    d, score, w = random.random(20) * 5 + 0.2, random.normal(size=20), random.random(20)
    error = lambda f: (w * ((score - f.predict(d)) / (d if through == "ratio" else 1)) ** 2).sum()
    best = fit(d, score, law, w, through)
    for da in (-1e-3, 0, 1e-3):
        for db in (-1e-3, 0, 1e-3):
            assert error(best) <= error(Fit(best.alpha + da, best.beta + db, law))


def test_a_whole_weight_is_a_repeated_point():
    weighted = fit(D, R, "rl", [1, 3, 2, 1])
    repeated = fit([1, 2, 2, 2, 3, 3, 4], [0.9, 1.55, 1.55, 1.55, 2.1, 2.1, 2.45], "rl")
    assert (weighted.alpha, weighted.beta) == pytest.approx((repeated.alpha, repeated.beta))


def test_points_at_the_start_and_without_weight_are_left_out():
    assert fit([0, 0.05, *D], [9, 9, *R], "rl") == fit(D, R, "rl")
    assert fit([*D, 5], [*R, 99], "bon", [1, 1, 1, 1, 0]) == fit(D, R, "bon")


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("alpha, beta", [(1, 0.3), (2, 1), (-0.5, 0.4), (0.2, 0.05)])
def test_the_peak_against_a_search(law, alpha, beta):
    d = np.concatenate([[0], np.geomspace(1e-6, 100, 200_001)])
    curve = Fit(alpha, beta, law).predict(d)
    distance, height = Fit(alpha, beta, law).peak
    assert distance == pytest.approx(d[curve.argmax()], rel=1e-3, abs=1e-6) and height == pytest.approx(curve.max(), abs=1e-6)


def test_a_curve_without_a_peak():
    for law in LAWS:
        assert Fit(1, 0, law).peak == Fit(1, -0.1, law).peak == (math.inf, math.inf)
        assert Fit(-1, 0, law).peak == (0, 0)
    assert Fit(1, 1e-4, "rl").peak == (math.inf, math.inf)  # e^9999


def test_predictions_keep_their_shape_and_start_at_0():
    for law in LAWS:
        assert Fit(1, 0.4, law).predict([[0, 1], [2, 3]]).shape == (2, 2) and Fit(1, 0.4, law).predict(0) == 0


@pytest.mark.parametrize(
    "arguments, says",
    [
        ((D, R, "ppo"), "no law 'ppo'"),
        ((D, R, "bon", None, "scores"), "did you mean 'score'"),
        ((D, R[:3], "bon"), "4, 3 and 4"),
        ((D, [*R[:3], math.nan], "bon"), "finite"),
        ((D, R, "bon", [1, 1, 1, -1]), "weights of 0 or more"),
        (([2, 2, 0.01], [1, 1, 1], "bon"), "there are 1"),
        (([], [], "rl"), "there are 0"),
    ],
)
def test_unusable_points_are_refused(arguments, says):
    with pytest.raises(InputError, match=says):
        fit(*arguments)
