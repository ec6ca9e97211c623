"""Worked values of algorithms.md 3.9 (P1, P1b, P7, P15), the estimators' laws, and the controller."""

import math

import pytest
import torch

from manners.core.errors import InputError, MannersError
from manners.ops.kl import ESTIMATORS, KLController, approx_kl, estimator, k1, k2, k3


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


P, Q = f64(0.7, 0.2, 0.1), f64(0.5, 0.3, 0.2)


def test_estimators_worked_values():
    """P1: log-probabilities -1 and -1.2."""
    values = [k(f64(-1.0), f64(-1.2)).item() for k in (k1, k2, k3)]
    assert values == pytest.approx([0.2, 0.02, 0.01873075308], abs=1e-9)


def test_estimators_in_expectation():
    """P1b: k1 and k3 are unbiased, k2 is not."""
    mean = lambda k: (P * k(P.log(), Q.log())).sum().item()
    assert [mean(k1), mean(k2), mean(k3)] == pytest.approx([0.08512282596, 0.08008759419, 0.08512282596], abs=1e-9)
    assert (Q * k1(Q.log(), P.log())).sum().item() == pytest.approx(0.09203285023, abs=1e-9)


def test_gradients_in_expectation():
    """As a loss on samples of the policy: k1 leads nowhere, k2 down KL(pi || ref), k3 down KL(ref || pi)."""
    logits = P.log().requires_grad_()
    logp, ref = logits.log_softmax(0), Q.log()
    gradient = lambda loss: torch.autograd.grad(loss, logits, retain_graph=True)[0]
    on_samples = lambda k: gradient((P * k(logp, ref)).sum())
    torch.testing.assert_close(on_samples(k1), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(on_samples(k2), gradient((logp.exp() * (logp - ref)).sum()))
    torch.testing.assert_close(on_samples(k3), gradient((Q * (ref - logp)).sum()))


def test_approx_kl_worked_values():
    """P15: means over d = (.1, -.2, 0)."""
    d = f64(0.1, -0.2, 0.0)
    means = [approx_kl(d - 1, f64(-1, -1, -1), name).mean().item() for name in ESTIMATORS]
    assert means == pytest.approx([0.03333333333, 0.008333333333, 0.007967223718], abs=1e-9)
    assert approx_kl(d, d).tolist() == [0, 0, 0]
    assert torch.equal(approx_kl(d, f64(0, 0, 0)), approx_kl(d, f64(0, 0, 0), "k3"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_estimators_far_out(dtype):
    """k3 is clamped where it would overflow, exact elsewhere, and never negative."""
    delta = torch.tensor([-1e4, -100, -50, 50, 100, 1e4, 1e-3, -1e-3, 0], dtype=dtype).requires_grad_()
    value = k3(delta, torch.zeros_like(delta))
    (grad,) = torch.autograd.grad(value.sum(), delta)
    assert torch.isfinite(value).all() and torch.isfinite(grad).all() and (value >= 0).all()
    assert value[:3].tolist() == pytest.approx([math.exp(20) - 21] * 3, rel=1e-6) and grad[:3].tolist() == [0, 0, 0]
    assert value[3:6].tolist() == pytest.approx([49, 99, 9999])
    assert value[6:].tolist() == pytest.approx([5e-7, 5e-7, 0], rel=1e-3, abs=1e-12)


def test_gradcheck():
    new, old = torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    new.requires_grad_()
    for k in (k1, k2, k3):
        assert torch.autograd.gradcheck(k, (new, old))
    assert not approx_kl(new, old).requires_grad


def test_an_unknown_estimator_is_refused():
    with pytest.raises(InputError, match=r"KL estimator 'k4'.*k1"):
        estimator("k4")


def test_adaptive_beta_worked_values():
    """P7: an error above .2 is clipped to it; a small one counts as it is."""
    assert KLController(0.2, target=6).update(9, 256) == pytest.approx(0.201024, abs=1e-12)
    assert KLController(0.2, target=6).update(5.7, 256) == pytest.approx(0.199744, abs=1e-12)
    assert KLController(0.2, target=6).update(0, 256) == pytest.approx(0.2 * (1 - 0.2 * 256 / 10_000), abs=1e-12)


def test_fixed_beta_stays():
    controller = KLController(0.05)
    assert [controller.update(kl, 512) for kl in (0, 100, -3)] == [0.05] * 3


def test_adaptive_beta_finds_the_target():
    """On a policy whose KL is 1 / beta the controller comes to rest at beta = 1 / target."""
    controller = KLController(1.0, target=4, horizon=100)
    for _ in range(400):
        controller.update(1 / controller.beta, 20)
    assert controller.beta == pytest.approx(0.25, rel=1e-3)


def test_state_goes_on_where_it_was():
    one, other = KLController(0.2, target=6), KLController(0.2, target=6)
    one.update(9, 256)
    other.load(one.state())
    assert other.update(3, 64) == one.update(3, 64)


@pytest.mark.parametrize("kl", [math.nan, math.inf])
def test_a_diverged_kl_does_not_pass_into_beta(kl):
    controller = KLController(0.2, target=6)
    with pytest.raises(MannersError, match="diverged"):
        controller.update(kl, 8)
    assert controller.beta == 0.2
