"""DPO starts at ln 2 and moves a tiny model to a margin worked out by hand."""

import json
import math

import pytest
import torch

from manners.core.files import read_jsonl
from manners.core.records import TokenGroup, TokenResponse
from manners.model.logprob import response_logps
from manners.model.roles import BASE, Backbone
from manners.model.tree import pack
from manners.train.learner import Learner, Micro, OptimizerSettings
from manners.train.preference import DPOLoss, DPOSettings, dpo
from tests.families import tiny
from tests.tiny import tiny_folder


def pairs(tmp_path, rows):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "chosen": c, "rejected": r}) + "\n" for p, c, r in rows))
    return str(path)


def test_a_run_starts_at_ln_2_and_ends_with_the_pairs_told_apart(tmp_path):
    folder = tiny_folder(tmp_path / "model")
    data = pairs(tmp_path, [("Hi.", "Hello, friend.", "What do you want?"), ("Thanks.", "You are welcome.", "Yes."), ("?", "Sorry?", "!")])
    settings = {"format": "plain", "epochs": 20, "batch_size": 3, "learning_rate": 3e-3, "finetune": "full", "save_every": 1000}
    manifest = dpo(DPOSettings(model=str(folder), data=data, out=str(tmp_path / "run"), **settings))
    steps = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert abs(steps[0]["rewards/margins"]) < 1e-4 and abs(steps[0]["rewards/chosen"]) < 1e-4
    assert steps[-1]["rewards/accuracies"] == 1.0 and steps[-1]["rewards/margins"] > 1
    assert manifest["last_loss"] < 0.2


def test_margin_worked_out_by_hand():
    """Over few weights DPO can be followed on paper. A one-token prompt, one-token answers w and l, no other loss: with z the logits

        h = (z_w - z_l) - (z_w - z_l at the start), so d L / d h = -beta sigma(-beta h)

    and a step of plain gradient descent on an output bias (d z_w / d b_w = 1) moves h by 2 * rate * beta * sigma(-beta h). The bias
    is all that trains here; the normaliser of the softmax cancels in h.
    """
    beta, rate, steps = 0.5, 0.3, 12
    backbone = Backbone(tiny("phi"))  # Phi's output layer has a bias
    bias = backbone.model.get_output_embeddings().bias
    bias.requires_grad_(True)
    group = TokenGroup([5], [TokenResponse([11], [True]), TokenResponse([17], [True])], row=0)
    [start] = list(response_logps(backbone, BASE, [group], 100))
    loss = DPOLoss({0: (start[0][0], start[1][0])}, beta)
    expected = 0.0
    for _ in range(steps):
        scores = backbone.score(pack([group]))
        terms = loss(scores, Micro([group], pack([group])))
        assert terms.metrics["rewards/margins"][0] == pytest.approx(beta * expected, abs=1e-9)
        bias.grad = None
        terms.terms["dpo"].total.backward()
        with torch.no_grad():
            bias -= rate * bias.grad
        expected += 2 * rate * beta / (1 + math.exp(beta * expected))
    assert expected > 1.3


def test_metrics_are_means_over_pairs_and_ties_count_one_half():
    backbone = Backbone(tiny("llama"))
    groups = [TokenGroup([5, 6], [TokenResponse([7, 8], [True] * 2), TokenResponse([9, 10, 11], [True] * 3)], row=i) for i in range(4)]
    [[chosen, rejected]] = list(response_logps(backbone, BASE, groups[:1], 100))
    # log-ratios: +1 and 0 (right), 0 and +1 (wrong), equal (tie), equal (tie)
    reference = {0: (chosen[0] - 1, rejected[0]), 1: (chosen[0], rejected[0] - 1), 2: (chosen[0], rejected[0]), 3: (chosen[0], rejected[0])}
    tree = pack(groups)
    with torch.no_grad():
        scores = backbone.score(tree)
    exact = {k: tuple(scores.logp_R.view(4, 2)[k].tolist()) for k in (2, 3)}
    found = DPOLoss({**reference, **exact}, beta=2.0)(scores, Micro(groups, tree)).metrics
    mean = {name: total / weight for name, (total, weight) in found.items()}
    assert mean["rewards/accuracies"] == pytest.approx((1 + 0 + 0.5 + 0.5) / 4)
    assert mean["rewards/chosen"] == pytest.approx(2.0 * 1 / 4, abs=1e-6) and mean["rewards/margins"] == pytest.approx(0.0, abs=1e-6)
    assert mean["length/chosen"] == 2 and mean["length/rejected"] == 3


def test_the_policy_trains_and_the_reference_stays():
    """The reference is numbers in a file: training the policy cannot move it."""
    backbone = Backbone(tiny("llama"))
    backbone.train_base()
    group = TokenGroup([5, 6], [TokenResponse([7, 8], [True] * 2), TokenResponse([9, 10], [True] * 2)], row=0)
    [[chosen, rejected]] = list(response_logps(backbone, BASE, [group], 100))
    learner = Learner(backbone, BASE, OptimizerSettings(warmup=0, schedule="constant"), 1e-3, 10)
    loss = DPOLoss({0: (chosen[0], rejected[0])}, 0.1)
    losses = [learner.step([group], loss)["loss"] for _ in range(5)]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-9) and losses == sorted(losses, reverse=True)


def test_swapping_chosen_and_rejected_swaps_the_gradient():
    found = []
    for order in ((0, 1), (1, 0)):
        backbone = Backbone(tiny("llama"))
        backbone.train_base()
        responses = [TokenResponse([7, 8], [True] * 2), TokenResponse([9, 10], [True] * 2)]
        group = TokenGroup([5, 6], [responses[i] for i in order], row=0)
        [[chosen, rejected]] = list(response_logps(backbone, BASE, [group], 100))
        tree = pack([group])
        DPOLoss({0: (chosen[0], rejected[0])}, 0.1)(backbone.score(tree), Micro([group], tree)).terms["dpo"].total.backward()
        found.append(backbone.model.base_model.layers[0].mlp.up_proj.weight.grad)
    assert found[0].abs().max() > 0
    assert torch.allclose(found[0], -found[1], rtol=0, atol=1e-9 * float(found[0].abs().max()))
