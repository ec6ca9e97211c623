"""Worked values of algorithms.md 1.7 and 4.7, and slow float64 oracles."""

import math

import pytest
import torch

from manners.ops.losses import dpo, nll
from manners.ops.segments import segment_count, segment_sum


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_completion_only_nll():
    """S1: prompt log-probs are left out by never becoming targets; response (-1.2, -.3, -.1) gives 0.5333333333."""
    assert nll(f64(-1.2, -0.3, -0.1)).mean().item() == pytest.approx(0.5333333333, abs=1e-9)


def test_dpo_worked_value():
    """D1: l_w -10, l_l -14, reference -11, -13, beta .1: h = 2."""
    assert dpo(f64(1.0), f64(-1.0), 0.1).item() == pytest.approx(0.5981388694, abs=1e-9)


def test_conservative_dpo_worked_value():
    assert dpo(f64(1.0), f64(-1.0), 0.1, label_smoothing=0.1).item() == pytest.approx(0.6181388694, abs=1e-9)


def test_dpo_displacement_lowers_the_loss_though_the_chosen_lost_two_nats():
    """D15: chosen -10 to -12, rejected -14 to -20: h 2 to 6."""
    assert dpo(f64(-1.0), f64(-7.0), 0.1).item() == pytest.approx(0.4374879505, abs=1e-9)


def test_dpo_gradient_weight():
    """D1: the gradient with respect to the chosen log-ratio is -beta sigma(-beta h)."""
    chosen = f64(1.0).requires_grad_()
    dpo(chosen, f64(-1.0), 0.1).sum().backward()
    assert chosen.grad.item() == pytest.approx(-0.04501660027, abs=1e-9)


def test_dpo_starts_at_ln_2_and_swapping_flips_the_margin():
    assert dpo(f64(3.0), f64(3.0)).item() == pytest.approx(math.log(2), abs=1e-12)
    h = dpo(f64(-1.0), f64(1.0)).item() - dpo(f64(1.0), f64(-1.0)).item()
    assert h == pytest.approx(0.2, abs=1e-9)  # log sigma(z) - log sigma(-z) = z


def test_dpo_is_finite_far_out():
    loss = dpo(f64(-1e5, 1e5), f64(1e5, -1e5), 1.0)
    assert torch.isfinite(loss).all() and loss[0] == pytest.approx(2e5) and loss[1] == pytest.approx(0)


def test_segments_against_a_loop():
    values, response = torch.randn(20, dtype=torch.float64), torch.tensor(sorted([0, 2, 2, 4] * 5))
    expected = [sum((v.item() for v, r in zip(values, response, strict=True) if r == i), 0.0) for i in range(6)]
    assert segment_sum(values, response, 6).tolist() == pytest.approx(expected, abs=1e-12)
    assert segment_count(response, 6).tolist() == [5, 0, 10, 0, 5, 0]
