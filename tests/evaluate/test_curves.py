"""Over-optimisation curves from arrays: KL of best-of-n, both laws with intervals, the peak, ensembles; and a simulation in which all is
known."""

import math
from itertools import pairwise

import numpy as np
import pytest

from manners.evaluate import curves
from manners.ops.best_of_n import kl_bound, kl_of_outputs
from manners.ops.overoptimisation import Fit

RNG = np.random.default_rng(0)


def test_the_worked_values_of_both_laws():
    bon, rl = Fit(1.0, 0.1, "bon"), Fit(1.0, 0.4, "rl")
    assert bon.peak == pytest.approx((5, 2.5)) and bon.predict(3) == pytest.approx(2.1)
    assert rl.peak == pytest.approx((4.48168907, 1.792675628)) and rl.predict(2) == pytest.approx(1.445482256)


def test_points_are_fitted_as_worked_by_hand():
    """d = 1..4 with R = .9, 1.55, 2.1, 2.45, by least squares on R: three prompts that agree."""
    d, r = np.arange(5.0), np.array([0, 0.9, 1.55, 2.1, 2.45])
    found = curves.fitted(np.tile(d**2, (3, 1)), np.tile(r, (3, 1)), "bon", curves.prompt_weights(3))
    assert found["alpha"]["value"] == pytest.approx(0.9603225806) and found["beta"]["value"] == pytest.approx(0.08709677419)
    assert found["peak"]["d"]["value"] == pytest.approx(5.512962963) and found["peak"]["gold"]["value"] == pytest.approx(2.64711141)
    assert found["peak"]["d"]["low"] == pytest.approx(found["peak"]["d"]["high"]), "prompts that agree leave no doubt"
    assert not found["inside"], "the peak lies beyond the last point"


def test_n_runs_up_to_what_the_pool_holds():
    assert curves.numbers(4) == [1, 2, 3, 4] and curves.numbers(10) == [1, 2, 3, 4, 6, 8, 10] and curves.numbers(64)[-2:] == [48, 64]


# --- KL ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 4, 16, 64])
def test_without_ties_the_measured_kl_is_the_bound(n):
    scores = RNG.permutation(64).astype(float)
    assert curves.measured_kl(scores, n) == pytest.approx(kl_bound(n), abs=1e-12)
    known = {1: 0.0, 2: 0.1931471806, 4: 0.6362943611, 16: 1.835088722, 64: 3.174508083}
    assert curves.measured_kl(scores, n) == pytest.approx(known[n], abs=1e-9)


def test_with_ties_it_is_that_of_the_outputs():
    """Half of the samples one answer, half another: binary output, p = .5, N = 2 gives .1308120359, not .1931471806."""
    two = np.repeat([0.0, 1.0], 8)
    assert curves.measured_kl(two, 2) == pytest.approx(0.1308120359)
    mixed = np.repeat([3.0, 1.0, 2.0], [4, 10, 2])
    assert curves.measured_kl(mixed, 5) == pytest.approx(kl_of_outputs(np.array([10, 2, 4]) / 16, 5))
    assert curves.measured_kl(np.ones(16), 7) == pytest.approx(0), "all alike: nothing can be chosen"


def test_ties_can_only_lower_it():
    for scores in RNG.integers(0, 12, size=(20, 32)).astype(float):
        kl = [curves.measured_kl(scores, n) for n in range(1, 33)]
        assert all(0 <= value <= kl_bound(n) + 1e-12 for n, value in enumerate(kl, 1))
        assert all(a <= b + 1e-12 for a, b in pairwise(kl)), "more choice, more distance"


# --- laws -------------------------------------------------------------------------------------------------------------------------


def planted(law, alpha, beta, prompts, noise, rng):
    """A curve that is known, and each prompt's own noise about it, which grows with the distance."""
    d = np.linspace(0, 6, 13)
    r = Fit(alpha, beta, law).predict(d)
    kl = np.tile(d**2, (prompts, 1)) * (1 + 0.1 * rng.standard_normal((prompts, 1)))
    return kl, r + noise * rng.standard_normal((prompts, 1)) * d / 6 + noise * 0.3 * rng.standard_normal((prompts, 13)) * (d > 0)


@pytest.mark.parametrize(("law", "alpha", "beta"), [("bon", 1.0, 0.15), ("rl", 1.0, 0.7)])
def test_the_fit_recovers_planted_constants(law, alpha, beta):
    kl, gold = planted(law, alpha, beta, 200, 1.0, np.random.default_rng(1))
    found = curves.fitted(kl, gold, law, curves.prompt_weights(200))
    for name, true in (("alpha", alpha), ("beta", beta)):
        assert found[name]["value"] == pytest.approx(true, rel=0.1)
        assert found[name]["low"] < true < found[name]["high"]
    peak = Fit(alpha, beta, law).peak
    assert found["peak"]["d"]["low"] < peak[0] < found["peak"]["d"]["high"] and found["inside"]
    assert found["peak"]["d"]["value"] == pytest.approx(peak[0], rel=0.05) and found["r2"] > 0.9


def test_intervals_cover_about_what_they_say():
    hits = 0
    for seed in range(40):
        kl, gold = planted("bon", 1.0, 0.15, 60, 1.0, np.random.default_rng(100 + seed))
        found = curves.fitted(kl, gold, "bon", curves.prompt_weights(60)[:300])
        hits += found["beta"]["low"] <= 0.15 <= found["beta"]["high"]
    assert 34 <= hits <= 40, f"{hits} of 40 intervals at 95 % hold the truth"


def test_a_curve_that_does_not_turn_has_no_peak():
    d = np.linspace(0, 2, 6)
    found = curves.fitted(np.tile(d**2, (4, 1)), np.tile(d + 0.1 * d**2, (4, 1)), "bon", curves.prompt_weights(4))
    assert found["peak"]["d"] == {"value": None, "low": None, "high": None} and not found["inside"]
    near = curves.fitted(np.zeros((4, 3)), np.zeros((4, 3)), "bon", curves.prompt_weights(4))
    assert set(near) == {"reason"} and "there are 0" in near["reason"]


def test_the_fall_is_not_made_of_luck():
    """Gold that only rises and falls by chance: the highest of its points lies above the last, but the fall does not say so."""
    above = crosswise = 0.0
    for seed in range(30):
        gold = np.random.default_rng(seed).standard_normal((40, 10))
        found = curves.observed_peak(np.tile(np.arange(10.0), (40, 1)), gold, curves.prompt_weights(40)[:200])
        above += float(gold.mean(0).max() - gold.mean(0)[-1]) / 30
        crosswise += found["fall"]["value"] / 30
    assert above > 0.2 and abs(crosswise) < 0.08


def test_a_real_fall_is_found():
    r = Fit(1.0, 0.15, "bon").predict(np.linspace(0, 6, 13))
    gold = r + 0.5 * np.random.default_rng(2).standard_normal((100, 13))
    found = curves.observed_peak(np.tile(np.linspace(0, 6, 13) ** 2, (100, 1)), gold, curves.prompt_weights(100))
    assert found["d"]["low"] <= 10 / 3 <= found["d"]["high"] and abs(found["d"]["value"] - 10 / 3) < 1.1
    assert found["fall"]["low"] > 0 and found["fall"]["value"] == pytest.approx(r.max() - r[-1], abs=0.3)


def test_n_at_a_distance():
    kl = np.array([[0.0, 1.0, 4.0]])
    assert curves.n_at(1.0, [1, 4, 16], kl) == pytest.approx(4) and curves.n_at(1.5, [1, 4, 16], kl) == pytest.approx(8)
    assert curves.n_at(2.5, [1, 4, 16], kl) is None and curves.n_at(None, [1, 4, 16], kl) is None


# --- scales -----------------------------------------------------------------------------------------------------------------------


def test_pairs_are_counted_with_ties():
    gold = np.array([[1.0, 2.0, 3.0], [5.0, 5.0, 6.0]])
    assert curves.pair_accuracy(gold, gold) == 1 and curves.pair_accuracy(-gold, gold) == 0
    assert curves.pair_accuracy(np.array([[1.0, 3.0, 2.0], [1.0, 1.0, 1.0]]), gold) == pytest.approx((2 + 1) / 5)
    assert curves.pair_accuracy(gold, np.ones((2, 3))) is None


def test_the_proxy_gets_the_golds_scale():
    gold = RNG.standard_normal((30, 8)) * 2 + 5
    factor, shift = curves.on_scale(100 * gold - 7, gold)
    assert factor == pytest.approx(0.01) and shift == pytest.approx(0.07)
    assert curves.on_scale(np.ones((30, 8)), gold) == (0.0, pytest.approx(gold.mean()))


# --- a simulation in which all is known -------------------------------------------------------------------------------------------


def world(seed=0, prompts=150, samples=128, members=5, rare=0.03, harm=1.5):
    """Answers with a gold score, and reward models that are right but for a mistake each: `rare` of all answers, its own ones, it takes
    for excellent that are poor."""
    rng = np.random.default_rng(seed)
    gold = rng.standard_normal((prompts, samples))
    proxies = []
    for _ in range(members):
        fooled = rng.random(gold.shape) < rare
        gold = np.where(fooled, gold - harm, gold)
        proxies.append((fooled, 0.6 * rng.standard_normal(gold.shape)))
    return gold, np.stack([gold + noise + np.where(fooled, 6.0, 0.0) for fooled, noise in proxies])


def peak_of(proxy, gold):
    ns = curves.numbers(gold.shape[1])
    kl, value = curves.kl_of_best(proxy, ns), curves.best_of(proxy, gold, ns)
    return curves.observed_peak(kl, value, curves.prompt_weights(len(gold))), value.mean(0)


def test_an_ensemble_delays_the_peak():
    gold, members = world()
    alone, curve = peak_of(members[0], gold)
    assert alone["fall"]["low"] > 0.5 and curve[-1] < curve[0], "one model: the best of many is among its mistakes"
    for how in ("worst", "uncertainty"):
        together, better = peak_of(curves.combined(members, how, 0.5), gold)
        assert together["d"]["value"] > alone["d"]["high"] and together["gold"]["low"] > alone["gold"]["high"], how
        assert better[-1] > curve[-1] + 1
    mean, _ = peak_of(curves.combined(members, "mean", 0.5), gold)
    assert mean["gold"]["low"] > alone["gold"]["high"], "even the mean, in which a mistake of one has a fifth of its weight"


def climb(beta, steps=40, rate=0.05, outputs=2000):
    """Natural policy gradient on E[proxy] - beta KL over a softmax of so many outputs, exactly: (KL, gold) after each step."""
    gold, members = (each[..., 0, :] for each in world(prompts=1, samples=outputs, members=1, harm=3.0))
    start = np.full(outputs, -math.log(outputs))
    logits, kl, value = start.copy(), [], []
    for _ in range(steps):
        logp = logits - np.logaddexp.reduce(logits)
        p = np.exp(logp)
        kl.append(float((p * (logp - start)).sum()))
        value.append(float((p * gold).sum()))
        logits = logits + rate * (members[0] - beta * (logits - start))
    return np.array(kl), np.array(value)


def test_the_leash_delays_the_peak():
    runs = {beta: climb(beta) for beta in (0.0, 1.0, 3.0)}
    peaks = [int(gold.argmax()) for _, gold in runs.values()]
    assert peaks[0] < peaks[1] <= peaks[2], "the tighter the leash, the later the peak, if it comes at all"
    ends = [gold[-1] for _, gold in runs.values()]
    assert ends[0] < 0 < ends[2] and ends[0] < ends[1], "without a leash the gold falls below where it began"
    furthest = [kl[-1] for kl, _ in runs.values()]
    assert furthest[0] > furthest[1] > furthest[2]
    for kl, gold in runs.values():
        assert gold.max() <= runs[0.0][1].max() + 1e-2, "it goes the same way, only less far: no better frontier"
        assert kl[0] == pytest.approx(0)
