"""The losses of a reward model on worked numbers, from scores to the step's loss, however the step is cut."""

import math

import pytest
import torch
from torch import Tensor

from manners.core.records import TokenGroup, TokenResponse
from manners.model.roles import Backbone
from manners.model.score import Scores
from manners.model.tree import TokenTree, pack
from manners.train.judgements import LabelLoss, PairLoss, RankingLoss, RatingLoss
from manners.train.learner import Learner, Loss, Micro, OptimizerSettings
from tests.families import tiny


def groups_of(*sizes: int) -> list[TokenGroup]:
    """A group for each size, with so many responses of one token."""
    return [TokenGroup([5, 6], [TokenResponse([7 + k], [True]) for k in range(size)], row=i) for i, size in enumerate(sizes)]


def value(loss: Loss, rewards: list[float] | list[list[float]], *sizes: int) -> tuple[float, dict[str, float]]:
    """The loss of a step on these rewards, and its metrics, as the learner reckons them."""
    groups = groups_of(*sizes)
    micro = Micro(groups, pack(groups))
    reward_RK = torch.tensor(rewards, dtype=torch.float64).view(sum(sizes), -1)
    scores = Scores(torch.empty(0), micro.tree.response_N, micro.tree.responses, reward_RK=reward_RK)
    found = loss(scores, micro)
    assert {n: t.weight for n, t in found.terms.items()} == loss.weigh(micro)
    total = sum(float(t.total) * t.coefficient / t.weight for t in found.terms.values())
    return total, {name: a / b for name, (a, b) in found.metrics.items()}


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (PairLoss(), 0.3411538747),
        (PairLoss(centring=0.01), 0.3636538747),
        (PairLoss({0: 1 / 3}), 0.4494269163),
        (PairLoss({0: 1.0}), 0.7443966601),
        (PairLoss({0: 3.0}), 2.215519523),
        (PairLoss(label_smoothing=0.1), 0.9 * 0.3411538747 + 0.1 * (0.3411538747 + 0.9)),
        (PairLoss(function=lambda chosen, rejected: (1 - (chosen - rejected)).clamp(min=0)), 0.1),
    ],
)
def test_a_pair(loss, expected):
    found, metrics = value(loss, [1.2, 0.3], 2)
    assert found == pytest.approx(expected, abs=1e-9)
    assert metrics["rewards/margins"] == pytest.approx(0.9) and metrics["rewards/accuracies"] == 1
    assert metrics["rewards/squares"] == pytest.approx((1.44 + 0.09) / 2)


def test_pairs_are_a_mean_and_a_tie_is_half_right():
    found, metrics = value(PairLoss(), [1.2, 0.3, 0.5, 0.5], 2, 2)
    assert found == pytest.approx((0.3411538747 + math.log(2)) / 2, abs=1e-9) and metrics["rewards/accuracies"] == 0.75


def test_the_margin_is_the_row_s_own():
    found, _ = value(PairLoss({0: 1.0, 1: 0.0}), [1.2, 0.3, 1.2, 0.3], 2, 2)
    assert found == pytest.approx((0.7443966601 + 0.3411538747) / 2, abs=1e-9)


@pytest.mark.parametrize(("how", "expected"), [("ranking", 0.1978548999), ("plackett-luce", 0.5729523098)])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_a_ranking_whatever_the_order_of_its_answers(how, expected, order):
    rewards, ranks = (2.0, 1.0, -0.5), (1, 2, 3)
    found, metrics = value(RankingLoss({0: [ranks[i] for i in order]}, how), [rewards[i] for i in order], 3)
    assert found == pytest.approx(expected, abs=1e-9) and metrics["rewards/accuracies"] == 1
    assert metrics["rewards/mean"] == pytest.approx(2.5 / 3)


def test_a_prompt_counts_once_however_many_answers_it_has():
    """Ranked three ways and two ways: the mean of the two prompts' means, not of their four pairs."""
    found, _ = value(RankingLoss({0: [1, 2, 3], 1: [1, 2]}), [2.0, 1.0, -0.5, 1.2, 0.3], 3, 2)
    assert found == pytest.approx((0.1978548999 + 0.3411538747) / 2, abs=1e-9)


def test_ties_in_a_ranking_are_left_out():
    found, metrics = value(RankingLoss({0: [1, 2, 2]}), [2.0, 1.0, -0.5], 3)
    assert found == pytest.approx((0.3132616875 + 0.07888973429) / 2, abs=1e-9) and metrics["rewards/accuracies"] == 1


def test_the_pick_of_four():
    found, metrics = value(RankingLoss({0: [0, 1, 1, 1]}, "pick-best"), [1.0, 0.0, 0.0, -1.0], 4)
    assert found == pytest.approx(0.626523375, abs=1e-9) and metrics["rewards/accuracies"] == 1


def test_ratings_are_a_mean_over_what_was_rated():
    nan = float("nan")
    found, metrics = value(RatingLoss({0: [[1.0, nan]], 1: [[2.0, 5.0]]}), [[3.0, 9.0], [2.0, 4.0]], 1, 1)
    assert found == pytest.approx((4 + 0 + 1) / 3) and metrics["errors/absolute"] == pytest.approx(1)


def test_labels_are_cross_entropy():
    found, metrics = value(LabelLoss({0: 0, 1: 2}), [[2.0, 1.0, 0.1], [0.0, 0.0, 0.0]], 1, 1)
    assert found == pytest.approx((0.4170300163 + math.log(3)) / 2, abs=1e-9) and metrics["accuracies"] == 0.5


def scaled(backbone: Backbone, tree: TokenTree) -> Scores:
    return backbone.rewards(tree, backbone.active)


LOSSES: dict[str, tuple[Loss, tuple[int, ...], int]] = {
    "pairs": (PairLoss({0: 0.5, 1: 0.0, 2: 1.0}, centring=0.1), (2, 2, 2), 1),
    "ranking": (RankingLoss({0: [1, 2, 3, 4], 1: [2, 1], 2: [1, 1, 2]}), (4, 2, 3), 1),
    "ratings": (RatingLoss({0: [[1.0, 2.0]] * 2, 1: [[0.0, float("nan")]], 2: [[3.0, 1.0]]}), (2, 1, 1), 2),
    "labels": (LabelLoss({0: 0, 1: 1, 2: 1}), (1, 1, 1), 2),
}


@pytest.mark.parametrize("name", LOSSES)
def test_how_a_step_is_cut_does_not_show(name):
    """One micro-batch or three: the same loss and gradient, and all answers of a prompt stay in one tree."""
    loss, sizes, outputs = LOSSES[name]
    found: list[tuple[float, dict[str, Tensor]]] = []
    for budget in (10_000, 1):
        backbone = Backbone(tiny("llama"))
        backbone.train_base()
        backbone.add_head("base", outputs, seed=1)
        learner = Learner(backbone, "base", OptimizerSettings(micro_tokens=budget), 1e-3, 1, forward=scaled)
        metrics = learner.accumulate(groups_of(*sizes), loss)
        assert metrics["micro_batches"] == (1 if budget > 1 else 3)
        found.append((metrics["loss"], {n: p.grad.clone() for n, p in learner.parameters.items() if p.grad is not None}))
    (whole, gradients), (cut, others) = found
    assert whole == pytest.approx(cut, abs=1e-6)
    assert all(torch.allclose(g, others[n], rtol=0, atol=1e-6) for n, g in gradients.items())
    assert max(float(g.abs().max()) for g in gradients.values()) > 1e-4
