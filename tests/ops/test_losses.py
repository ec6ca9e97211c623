"""Worked values of algorithms.md 1.7, 2.9 and 4.7, and slow float64 oracles."""

import itertools
import math

import pytest
import torch

from manners.ops.losses import bradley_terry, centring, dpo, nll, pick_best, plackett_luce, ranking
from manners.ops.segments import segment_count, segment_last, segment_place, segment_sum


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


@pytest.mark.parametrize("counts", [[3, 1, 2], [0, 2, 0, 0, 1, 0], [0], [0, 0], [5]])
def test_last_and_place_against_a_loop(counts):
    response = torch.tensor([r for r, n in enumerate(counts) for _ in range(n)], dtype=torch.long)
    place = [t for n in counts for t in range(n)]
    last = [sum(counts[: r + 1]) - 1 if n else -1 for r, n in enumerate(counts)]
    assert segment_place(response, len(counts)).tolist() == place
    assert segment_last(response, len(counts)).tolist() == last


def test_bradley_terry_worked_values():
    """R1, and the gradient with respect to the chosen reward."""
    chosen, rejected = f64(1.2).requires_grad_(), f64(0.3)
    loss = bradley_terry(chosen, rejected)
    loss.sum().backward()
    assert loss.item() == pytest.approx(0.3411538747, abs=1e-9)
    assert (chosen - rejected).sigmoid().item() == pytest.approx(0.7109495026, abs=1e-9)
    assert chosen.grad.item() == pytest.approx(-0.2890504974, abs=1e-9)


def test_bradley_terry_with_centring():
    """R2: coefficient .01."""
    chosen, rejected = f64(1.2), f64(0.3)
    assert (bradley_terry(chosen, rejected) + 0.01 * centring(chosen, rejected)).item() == pytest.approx(0.3636538747, abs=1e-9)


def test_bradley_terry_margins():
    """R3, as one tensor and as one number."""
    loss = bradley_terry(f64(1.2, 1.2, 1.2), f64(0.3, 0.3, 0.3), f64(1 / 3, 1, 3))
    assert loss.tolist() == pytest.approx([0.4494269163, 0.7443966601, 2.215519523], abs=1e-9)
    assert bradley_terry(f64(1.2), f64(0.3), 3.0).item() == pytest.approx(2.215519523, abs=1e-9)


def test_bradley_terry_is_blind_to_a_shift_and_centring_is_not():
    chosen, rejected = torch.randn(2, 9, dtype=torch.float64)
    torch.testing.assert_close(bradley_terry(chosen + 7, rejected + 7), bradley_terry(chosen, rejected))
    assert (centring(chosen + 7, rejected + 7) > centring(chosen, rejected)).all()


def test_label_smoothing_is_the_expected_loss_under_flipped_labels():
    chosen, rejected = torch.randn(2, 9, dtype=torch.float64)
    expected = 0.8 * bradley_terry(chosen, rejected) + 0.2 * bradley_terry(rejected, chosen)
    torch.testing.assert_close(bradley_terry(chosen, rejected, label_smoothing=0.2), expected)
    # Its least value is where the model says 80 %.
    gap = f64(math.log(4)).requires_grad_()
    bradley_terry(gap, f64(0.0), label_smoothing=0.2).sum().backward()
    assert gap.grad.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reward_losses_far_out(dtype):
    """At +-50 the loss is 100 or e^-100, never log of 0."""
    low, high = torch.tensor([-50.0], dtype=dtype), torch.tensor([50.0], dtype=dtype)
    both = torch.cat([low, high]).requires_grad_()
    assert bradley_terry(low, high).item() == pytest.approx(100) and bradley_terry(high, low).item() == pytest.approx(
        math.exp(-100), abs=1e-38
    )
    for loss in (ranking(both, torch.tensor([0, 1])), pick_best(both, 0), plackett_luce(both)):
        assert loss.item() == pytest.approx(100)
        (grad,) = torch.autograd.grad(loss, both)
        assert grad.tolist() == pytest.approx([-1, 1])


def test_ranking_worked_value():
    """R4: the three pairs and their mean."""
    scores = f64(2, 1, -0.5)
    pairs = [ranking(scores[[i, j]], torch.tensor([0, 1])).item() for i, j in ((0, 1), (0, 2), (1, 2))]
    assert pairs == pytest.approx([0.3132616875, 0.07888973429, 0.201413278], abs=1e-9)
    assert ranking(scores, torch.tensor([0, 1, 2])).item() == pytest.approx(0.1978548999, abs=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_ranking_against_a_loop_over_pairs(seed):
    random = torch.Generator().manual_seed(seed)
    k = 2 + seed
    reward, ranks = torch.randn(k, generator=random, dtype=torch.float64), torch.randint(0, 4, (k,), generator=random)
    ranks[0], ranks[1] = 0, 3
    losses = [math.log1p(math.exp(reward[j] - reward[i])) for i, j in itertools.permutations(range(k), 2) if ranks[i] < ranks[j]]
    assert ranking(reward, ranks).item() == pytest.approx(sum(losses) / len(losses), abs=1e-12)
    shuffled = torch.randperm(k, generator=random)
    assert ranking(reward[shuffled], ranks[shuffled]).item() == pytest.approx(ranking(reward, ranks).item(), abs=1e-12)


def test_ranking_of_equals_is_a_zero_with_a_gradient():
    reward = f64(3, 1).requires_grad_()
    loss = ranking(reward, torch.tensor([2, 2]))
    loss.backward()
    assert loss.item() == 0 and reward.grad.tolist() == [0, 0]


def test_plackett_luce_worked_value():
    """R5: .3715390319 for the pick of three, .201413278 for the rest."""
    scores = f64(2, 1, -0.5)
    assert plackett_luce(scores).item() == pytest.approx(0.5729523098, abs=1e-9)
    assert pick_best(scores, 0).item() == pytest.approx(0.3715390319, abs=1e-9)
    assert plackett_luce(scores[1:]).item() == pytest.approx(0.201413278, abs=1e-9)


def test_plackett_luce_is_a_distribution_over_rankings():
    """The likelihoods of all 24 orders of 4 responses sum to 1, each being the product of its picks."""
    reward = torch.randn(4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    total = 0.0
    for order in itertools.permutations(range(4)):
        picks = [pick_best(reward[list(order[k:])], 0).item() for k in range(3)]
        loss = plackett_luce(reward[list(order)]).item()
        assert loss == pytest.approx(sum(picks), abs=1e-12)
        total += math.exp(-loss)
    assert total == pytest.approx(1, abs=1e-12)


def test_two_responses_make_all_of_them_bradley_terry():
    reward = f64(0.4, -1.1)
    pair = bradley_terry(reward[:1], reward[1:]).item()
    assert [ranking(reward, torch.tensor([0, 1])).item(), pick_best(reward, 0).item(), plackett_luce(reward).item()] == pytest.approx(
        [pair] * 3
    )
    alone = f64(2.0).requires_grad_()
    plackett_luce(alone).backward()
    assert plackett_luce(alone).item() == 0 and alone.grad.item() == 0


def test_pick_best_worked_value():
    """R5: (1, 0, 0, -1), the first picked."""
    assert pick_best(f64(1, 0, 0, -1), 0).item() == pytest.approx(0.626523375, abs=1e-9)


def test_gradients_of_the_reward_losses():
    reward = torch.randn(5, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    ranks = torch.tensor([1, 0, 1, 3, 2])
    assert torch.autograd.gradcheck(lambda r: ranking(r, ranks), reward)
    assert torch.autograd.gradcheck(lambda r: pick_best(r, 3), reward)
    assert torch.autograd.gradcheck(plackett_luce, reward)
    assert torch.autograd.gradcheck(lambda r: bradley_terry(r[:2], r[2:4], 0.5, 0.1) + 0.01 * centring(r[:2], r[2:4]), reward)
