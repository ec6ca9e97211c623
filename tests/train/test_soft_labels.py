"""Pairs that say how sure they are: the loss is the expected one, pair by pair, for policies and for judges."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from manners.core.errors import InputError
from manners.core.files import read_jsonl
from manners.core.records import TokenGroup, TokenResponse
from manners.data.formats import read
from manners.model.score import Scores
from manners.ops import losses
from manners.train.judgements import PairLoss
from manners.train.preference import LOSSES, DPOSettings, dpo, pair_loss
from manners.train.reward import RewardSettings, reward
from tests.conftest import write_rows

P, Q = 0.8, None
ROWS = [
    {"prompt": "Hi.", "chosen": "Hello, friend.", "rejected": "What?", "probability": 0.9},
    {"prompt": "Thanks.", "chosen": "You are welcome.", "rejected": "Yes.", "probability": 0.5},
    {"prompt": "Bye.", "chosen": "Good bye.", "rejected": "!"},
]


def micro(*probabilities: float | None) -> SimpleNamespace:
    given = [
        TokenGroup([1], [TokenResponse([2, 3, 4], [True] * 3), TokenResponse([5], [True])], row=i, probability=p)
        for i, p in enumerate(probabilities)
    ]
    return SimpleNamespace(groups=given)


def scores(logp: list[float], tokens: list[int]) -> Scores:
    """Responses whose tokens share their log-probability evenly."""
    response_N = torch.tensor([r for r, n in enumerate(tokens) for _ in range(n)])
    logp_N = torch.tensor([p / n for p, n in zip(logp, tokens, strict=True) for _ in range(n)], dtype=torch.float64)
    return Scores(logp_N=logp_N, response_N=response_N, responses=len(tokens))


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "odpo"])
def test_the_loss_of_a_pair_is_the_expected_one_over_both_ways_round(name: str) -> None:
    told = scores([-3.0, -4.0, -5.0, -1.0], [3, 1, 3, 1])
    turned = scores([-4.0, -3.0, -1.0, -5.0], [1, 3, 1, 3])
    reference = {0: (-3.5, -3.2), 1: (-4.0, -2.0)}
    turned_reference = {row: pair[::-1] for row, pair in reference.items()}
    hard = SimpleNamespace(soft_labels=False, nll=0.0)
    soft = pair_loss(name, SimpleNamespace(soft_labels=True, nll=0.0), reference)
    if soft.nll:
        soft.nll = 0.0
    each = [[], []]
    for part, (given, held) in enumerate(((told, reference), (turned, turned_reference))):
        loss = pair_loss(name, hard, held)
        loss.nll = 0.0
        for row in range(2):
            alone = micro(None)
            alone.groups[0].row = row
            cut = slice(2 * row, 2 * row + 2)
            one = scores(given.logp_R[cut].tolist(), torch.bincount(given.response_N)[cut].tolist())
            each[part].append(float(loss(one, alone).terms["dpo"].total))
    expected = P * each[0][0] + (1 - P) * each[1][0] + each[0][1]
    assert float(soft(told, micro(P, Q)).terms["dpo"].total) == pytest.approx(expected, rel=1e-9)


def test_by_hand_for_dpo() -> None:
    """beta 0.1, log-ratios 2 and -1, p = 0.8: 0.8 ln(1 + e^-0.3) + 0.2 ln(1 + e^0.3)."""
    loss = pair_loss("sigmoid", DPOSettings(model="m", data="d", out="o", soft_labels=True), {0: (0.0, 0.0)})
    found = float(loss(scores([2.0, -1.0], [3, 1]), micro(P)).terms["dpo"].total)
    assert found == pytest.approx(0.8 * math.log1p(math.exp(-0.3)) + 0.2 * math.log1p(math.exp(0.3)), rel=1e-7)


def test_a_judge_learns_each_pair_with_its_own_doubt() -> None:
    given = Scores(logp_N=torch.zeros(0), response_N=torch.zeros(0, dtype=torch.long), responses=4)
    given.reward_RK = torch.tensor([[1.0], [0.2], [0.3], [0.9]], dtype=torch.float64)
    found = float(PairLoss(soft=True)(given, micro(P, Q)).terms["pairs"].total)
    first, second = (losses.bradley_terry(torch.tensor(gap, dtype=torch.float64), torch.tensor(0.0)) for gap in (0.8, -0.8))
    third = losses.bradley_terry(torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.9, dtype=torch.float64))
    assert found == pytest.approx(float(P * first + (1 - P) * second + third), rel=1e-7)


def test_the_column_is_read_checked_and_kept(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "pairs.jsonl", ROWS)
    assert [group.probability for group in read(str(path)).groups] == [0.9, 0.5, None]
    write_rows(path, [*ROWS, {**ROWS[0], "probability": 1.2}])
    found = read(str(path))
    assert len(found.groups) == 3 and "not between 0 and 1" in found.refused[0][1]


def test_a_pair_that_is_a_coin_toss_teaches_dpo_nothing(tiny_model: Path, tmp_path: Path) -> None:
    """At p = 1/2 the gradient of DPO at its start is zero: the first step's norm says so, and that of certain pairs is not zero."""
    norms = {}
    for name, p in (("toss", 0.5), ("sure", 1.0)):
        data = write_rows(tmp_path / f"{name}.jsonl", [{**row, "probability": p} for row in ROWS])
        out = tmp_path / name
        more = {"format": "plain", "finetune": "full", "learning_rate": 1e-3, "batch_size": 3, "epochs": 1}
        dpo(DPOSettings(model=str(tiny_model), data=str(data), out=str(out), soft_labels=True, **more))
        norms[name] = read_jsonl(out / "metrics.jsonl")[0]["grad_norm"]
    assert norms["toss"] < 1e-4 < 0.01 < norms["sure"]


def test_what_does_not_go_together_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "hard.jsonl", [{k: v for k, v in row.items() if k != "probability"} for row in ROWS])
    given = {"model": str(tiny_model), "data": str(data), "format": "plain", "soft_labels": True}
    with pytest.raises(InputError, match="has a probability"):
        dpo(DPOSettings(out=str(tmp_path / "a"), **given))
    with pytest.raises(InputError, match="set one of them"):
        dpo(DPOSettings(out=str(tmp_path / "b"), label_smoothing=0.1, **given))
    with pytest.raises(InputError, match="learns from margins"):
        dpo(DPOSettings(out=str(tmp_path / "c"), loss="odpo", **given))
    with pytest.raises(InputError, match="goes with none of"):
        reward(RewardSettings(out=str(tmp_path / "d"), margin=1.0, **given))


def test_probabilities_that_are_not_used_are_said(tiny_model: Path, tmp_path: Path, manners) -> None:
    data = write_rows(tmp_path / "pairs.jsonl", ROWS)
    said = manners("dpo", "--model", tiny_model, "--data", data, "--out", tmp_path / "run", "--format", "plain", "--epochs", 1)
    assert "2 pairs say how sure they are" in said.stderr
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["settings"]["soft_labels"] is False
