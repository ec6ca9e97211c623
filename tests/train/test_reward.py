"""A reward model from a file of judgements to a folder that scores, on a tiny model."""

import math
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from manners.core.errors import InputError
from manners.core.files import read_json, read_jsonl
from manners.data.formats import read
from manners.feedback.reward_model import load_reward
from manners.model.load import load_model, load_tokenizer, resolve
from manners.model.roles import Backbone
from manners.train import reward as module
from manners.train.reward import RewardSettings, reward, split
from manners.train.sft import SFTSettings, sft
from tests.conftest import write_rows
from tests.markdown import DOCS, table
from tests.test_docs import is_default
from tests.tiny import tiny_folder
from tests.train.test_resume import kill

WORTH = {"red": 2.0, "green": 1.0, "blue": 0.0, "grey": -1.0}
"""Planted utilities: answers that name a colour are worth so much."""


@pytest.fixture(scope="module", autouse=True)
def single():
    """One thread, as the fixture of that name, for a module."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("tiny") / "model", width=32)


def planted(rows: int, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs labelled by Bradley and Terry's rule from the planted utilities."""
    rng = random.Random(seed)
    found = []
    for i in range(rows):
        a, b = rng.sample(list(WORTH), 2)
        if rng.random() > 1 / (1 + math.exp(WORTH[b] - WORTH[a])):
            a, b = b, a
        pad = lambda: " yes" * rng.randint(0, 2)
        found.append({"prompt": f"n{i}", "chosen": a + pad(), "rejected": b + pad(), "margin": abs(WORTH[a] - WORTH[b])})
    return found


def run(model: Path, data: Path, out: Path, **more: Any) -> dict[str, Any]:
    settings = {"format": "plain", "learning_rate": 3e-3, "epochs": 2, "validation": 0.2, "save_every": 1000} | more
    return reward(RewardSettings(model=str(model), data=str(data), out=str(out), **settings))


@pytest.fixture(scope="module")
def trained(model, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """A run on 400 planted pairs."""
    folder = tmp_path_factory.mktemp("trained")
    data = write_rows(folder / "pairs.jsonl", planted(400))
    manifest = run(model, data, folder / "run", epochs=3, test=str(write_rows(folder / "test.jsonl", planted(100, seed=1))))
    return folder, manifest


def test_planted_utilities_are_found_again(trained):
    """Differences of raw scores between colours are those of the utilities, within what 320 noisy labels tell."""
    folder, _ = trained
    judge = load_reward(str(folder / "run"))
    rows = write_rows(folder / "one.jsonl", [{"prompt": "n9", "completion": colour} for colour in WORTH])
    said = [group[0] * judge.card.logit for group in judge(read(rows).groups)]
    worth = list(WORTH.values())
    assert said == sorted(said, reverse=True)
    assert np.corrcoef(said, worth)[0, 1] > 0.97
    assert float(np.polyfit(worth, said, 1)[0]) == pytest.approx(1.0, abs=0.5)


def test_the_report_says_how_good_it_is(trained):
    folder, manifest = trained
    report = read_json(folder / "run" / "report.json")
    assert manifest["report"]["validation"] == report["validation"] and {"kind", "validation", "test"} == report.keys()
    found = report["validation"]
    assert found["prompts"] == found["pairs"] == 80 == manifest["validation_rows"] and manifest["rows"] == 320
    best = sum(1 / (1 + math.exp(-abs(WORTH[a] - WORTH[b]))) for a in WORTH for b in WORTH if a != b) / 12  # no judge can do better
    assert 0.65 < found["accuracy"]["value"] < best + 0.1 and found["accuracy"]["low"] > 0.5
    assert found["log_loss"]["value"] < math.log(2) and found["ece"] < 0.2
    assert found["longer_wins"]["low"] < 0.5 < found["longer_wins"]["high"] and found["above_longer_wins"]["value"] > 0.1
    assert list(found["by_margin"]) == ["1", "2", "3"] and set(found["by_length"]) == {"within 25"} and found["by_source"] == {}
    assert sum(b["n"] for b in found["reliability"]) == 80


def test_scores_are_normalised_on_the_training_set_s_better_answers(trained):
    folder, manifest = trained
    judge = load_reward(str(folder / "run"))
    pairs = read(folder / "pairs.jsonl").groups
    train, held = split([g.prompt.id for g in pairs], 0.2, 0)
    assert len(train) == 320 and len(held) == 80
    scores = np.array([said[0] for said in judge([pairs[i] for i in train])])
    assert scores.mean() == pytest.approx(0, abs=1e-5) and scores.std() == pytest.approx(1, abs=1e-5)
    assert manifest["card"]["normalised_on"] == "the better answers of the training rows"
    assert manifest["card"]["members"][0]["gain"] > 0


def test_a_long_file_is_normalised_on_its_first_rows(model, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "NORMAL_ROWS", 5)
    data = write_rows(tmp_path / "pairs.jsonl", planted(12))
    manifest = run(model, data, tmp_path / "run", epochs=1, validation=0)
    assert manifest["card"]["normalised_on"] == "the better answers of the first 5 training rows" and "train" in manifest["report"]
    scores = np.array([said[0] for said in load_reward(str(tmp_path / "run"))(read(data).groups[:5])])
    assert scores.mean() == pytest.approx(0, abs=1e-4) and scores.std() == pytest.approx(1, abs=1e-4)


def test_it_reloads_to_the_same_scores(trained):
    """What the run itself reported and what the folder says anew agree; and loading twice gives the same numbers."""
    folder, manifest = trained
    pairs = read(folder / "test.jsonl").groups
    one, two = (load_reward(str(folder / name))(pairs) for name in ("run", "run/model"))
    assert np.abs(np.array(one) - np.array(two)).max() < 1e-6
    right = np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in one])
    assert right == pytest.approx(manifest["report"]["test"]["accuracy"]["value"], abs=1e-12)


def test_a_score_is_the_same_alone_and_in_company(trained):
    folder, _ = trained
    judge = load_reward(str(folder / "run"))
    pairs = read(folder / "test.jsonl").groups[:30]
    together = np.array(judge(pairs))
    alone = np.array([judge([pair])[0] for pair in pairs])
    assert np.abs(together - alone).max() < 1e-4
    judge.micro_tokens = 1
    assert np.abs(together - np.array(judge(pairs[::-1]))[::-1]).max() < 1e-4


def test_it_is_no_language_model(trained):
    folder, _ = trained
    for name in ("run", "run/model"):
        with pytest.raises(InputError, match="is a reward model, which scores answers and cannot write them"):
            resolve(str(folder / name))


def test_it_becomes_a_role_of_a_backbone_that_holds_its_base(trained, model):
    folder, _ = trained
    source = resolve(str(model))
    backbone = Backbone(load_model(source), load_tokenizer(source), source.base)
    backbone.add_adapter("policy")
    judge = load_reward(str(folder / "run"), backbone=backbone)
    assert judge.backbone is backbone and judge.role == "reward" and "reward" in backbone.roles and judge.same_tokens
    assert not backbone.trainable("reward")
    again = load_reward(str(folder / "run"), backbone=backbone)
    assert again.role == "reward2"
    pairs = read(folder / "test.jsonl").groups[:5]
    assert np.abs(np.array(judge(pairs)) - np.array(load_reward(str(folder / "run"))(pairs))).max() < 1e-6
    other = Backbone(load_model(resolve(str(model))), None, "elsewhere")
    assert load_reward(str(folder / "run"), backbone=other).backbone is not other


# --- the other kinds of judgements ------------------------------------------------------------------------------------------------


def ranked(rows: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    found = []
    for i in range(rows):
        order = sorted(WORTH, key=lambda c: WORTH[c] - math.log(-math.log(rng.random())), reverse=True)  # Gumbel noise: Plackett-Luce
        shown = rng.sample(order, 4)
        found.append({"prompt": f"n{i}", "responses": shown, "ranks": [order.index(c) + 1 for c in shown]})
    return found


@pytest.mark.parametrize("objective", ["ranking", "plackett-luce", "pick-best"])
def test_rankings(model, tmp_path, objective):
    data = write_rows(tmp_path / "rankings.jsonl", ranked(120))
    manifest = run(model, data, tmp_path / "run", objective=objective)
    report = manifest["report"]["validation"]
    assert report["pairs"] == 6 * report["prompts"] == 6 * 24
    assert report["accuracy"]["low"] > 0.5 and manifest["last_loss"] < manifest["first_loss"]


def test_picks(model, tmp_path):
    rows = [{**row, "best": row["ranks"].index(1)} for row in ranked(100)]
    data = write_rows(tmp_path / "picks.jsonl", [{k: v for k, v in row.items() if k != "ranks"} for row in rows])
    manifest = run(model, data, tmp_path / "run")
    assert manifest["card"]["kind"] == "picks" and manifest["report"]["validation"]["accuracy"]["low"] > 0.5
    assert manifest["report"]["validation"]["pairs"] == 3 * 20


def test_ratings_by_aspect(model, tmp_path):
    rng = random.Random(0)
    rows = []
    for i in range(160):
        colour, words = rng.choice(list(WORTH)), rng.randint(0, 3)
        aspects = {"helpfulness": WORTH[colour] + 1 + rng.gauss(0, 0.2), "verbosity": words if i % 5 else None}
        rows.append({"prompt": f"n{i}", "completion": colour + " yes" * words, "aspects": aspects})
    data = write_rows(tmp_path / "ratings.jsonl", rows)
    manifest = run(model, data, tmp_path / "run", epochs=6, aspect_weights="helpfulness=1,verbosity=-0.5")
    found = manifest["report"]["validation"]["aspects"]
    assert found["helpfulness"]["squared_error"]["value"] < 0.5 * found["helpfulness"]["of_the_mean"]
    assert found["helpfulness"]["correlation"] > 0.8 and found["verbosity"]["n"] < found["helpfulness"]["n"] == 32
    card = manifest["card"]
    assert card["outputs"] == ("helpfulness", "verbosity") and card["weights"] == (1.0, -0.5)
    judge = load_reward(str(tmp_path / "run"))
    [[short], [long]] = judge(
        read(write_rows(tmp_path / "two.jsonl", [{"prompt": "a", "completion": f"red{w}"} for w in ("", " yes" * 3)])).groups
    )
    assert short > long
    first = load_reward(f"{tmp_path / 'run'}#helpfulness")
    assert first.card.weights == (1.0, 0.0)


@pytest.mark.parametrize("finetune", ["frozen", "lora"])
def test_a_head_of_labels(model, tmp_path, finetune):
    """Task fine-tuning: three labels of a text, on a body that is frozen or adapted."""
    rng = random.Random(0)
    kinds = {"a": "red hot", "b": "green tree", "c": "blue sea"}
    rows = [{"text": f"{kinds[k]} {i}", "label": k} for i in range(120) for k in [rng.choice("abc")]]
    data = write_rows(tmp_path / "labels.jsonl", rows)
    manifest = run(
        model, data, tmp_path / "run", labels=3, finetune=finetune, epochs=6, learning_rate=2e-2 if finetune == "frozen" else 3e-3
    )
    report = manifest["report"]["validation"]
    assert report["accuracy"]["low"] > report["commonest"] and report["log_loss"]["value"] < math.log(3)
    assert manifest["card"]["outputs"] == ("a", "b", "c") and manifest["card"]["good"] == "c" and manifest["card"]["normalised_on"] is None
    trained = {"frozen": {"head"}, "lora": {"head", "adapter"}}[finetune]
    assert ("adapter" in trained) == (tmp_path / "run" / "model" / "adapter_model.safetensors").is_file()
    judge = load_reward(f"{tmp_path / 'run'}#a")
    groups = read(write_rows(tmp_path / "two.jsonl", [{"text": "red hot 7"}, {"text": "blue sea 7"}])).groups
    [[hot], [cold]] = judge(groups)
    assert hot > 0 > cold  # log-odds of label a
    logits_RK = judge.outputs([judge.encode(g) for g in groups])[0]
    assert hot == pytest.approx(float(logits_RK[0, 0] - torch.logsumexp(logits_RK[0, 1:], 0)), abs=1e-9)


@pytest.mark.parametrize("finetune", ["lora", "frozen"])
def test_members_differ_and_are_combined(model, tmp_path, finetune):
    data = write_rows(tmp_path / "pairs.jsonl", planted(80))
    manifest = run(model, data, tmp_path / "run", members=3, combine="uncertainty", coefficient=0.5, finetune=finetune)
    judge = load_reward(str(tmp_path / "run"))
    assert judge.roles == ["reward", "reward-1", "reward-2"]
    pairs = read(data).groups[:6]
    raw_MR = judge.outputs([judge.encode(pair) for pair in pairs])[:, :, 0].numpy()
    gain, bias = (np.array([m[key] for m in manifest["card"]["members"]]) for key in ("gain", "bias"))
    each_MR = gain[:, None] * raw_MR + bias[:, None]
    assert np.abs(each_MR[0] - each_MR[1]).max() > 1e-3
    expected = each_MR.mean(0) - 0.5 * each_MR.var(0)
    assert np.abs(np.array(judge(pairs)).ravel() - expected).max() < 1e-6
    assert len(manifest["report"]["validation"]["members"]) == 3
    records = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [r["step"] for r in records] == list(range(1, 49)) and {r["member"] for r in records} == {0, 1, 2}
    assert not (tmp_path / "run" / "members").exists()


def test_all_weights(model, tmp_path):
    data = write_rows(tmp_path / "pairs.jsonl", planted(60))
    manifest = run(model, data, tmp_path / "run", finetune="full", centring=0.01, margin="column", label_smoothing=0.1, normalise="all")
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file() and manifest["card"][
        "normalised_on"
    ] == "all answers of the training rows"
    assert {"loss/pairs", "loss/centring"} <= read_jsonl(tmp_path / "run" / "metrics.jsonl")[0].keys()
    scores = load_reward(str(tmp_path / "run"))(read(data).groups)
    assert all(math.isfinite(s) for pair in scores for s in pair)


def test_a_margin_costs_what_it_should_at_the_start(model, tmp_path):
    """With the same head, a constant margin of 1 makes each first loss log(1 + e^(1 - gap)) instead of log(1 + e^(-gap))."""
    data = write_rows(tmp_path / "pairs.jsonl", planted(1) + planted(2)[1:])
    more = {"epochs": 1, "batch_size": 2, "validation": 0, "normalise": "none", "learning_rate": 0}
    first = {}
    for name, margin in (("none", "none"), ("one", 1.0)):
        run(model, data, tmp_path / name, margin=margin, **more)
        first[name] = read_jsonl(tmp_path / name / "metrics.jsonl")[0]
    gaps = np.array([a - b for a, b in load_reward(str(tmp_path / "none"))(read(data).groups)])
    assert first["none"]["loss"] == pytest.approx(np.logaddexp(0, -gaps).mean(), abs=1e-6)
    assert first["one"]["loss"] == pytest.approx(np.logaddexp(0, 1 - gaps).mean(), abs=1e-6)


def test_an_adapter_goes_on_and_a_normaliser_may_come_from_a_file(trained, model, tmp_path):
    data = write_rows(tmp_path / "demos.jsonl", [{"prompt": f"n{i}", "completion": "red"} for i in range(4)])
    settings = {"model": str(model), "data": str(data), "out": str(tmp_path / "sft"), "format": "plain", "epochs": 1, "lora_rank": 4}
    sft(SFTSettings(**settings))
    pairs = write_rows(tmp_path / "pairs.jsonl", planted(20))
    written = write_rows(tmp_path / "written.jsonl", [{"prompt": f"n{i}", "completion": f"red {i}"} for i in range(9)])
    for finetune in ("lora", "frozen"):
        manifest = run(tmp_path / "sft", pairs, tmp_path / finetune, normalise=str(written), finetune=finetune, members=2)
        assert manifest["card"]["normalised_on"] == f"all answers of {written}" and manifest["card"]["base"] == str(model)
        judge = load_reward(str(tmp_path / finetune))
        assert judge.backbone.lora(judge.role).rank == 4
        with_members = [
            np.array(one_member) for one_member in judge.outputs([judge.encode(g) for g in read(written).groups])[..., 0].tolist()
        ]
        for said, member in zip(with_members, judge.card.members, strict=True):
            score = member.gain * said + member.bias
            assert score.mean() == pytest.approx(0, abs=1e-6) and score.std() == pytest.approx(1, abs=1e-6)


# --- splitting, refusing, resuming --------------------------------------------------------------------------------------------


def test_rows_of_a_prompt_stay_on_one_side():
    keys = [f"p{i % 20}" for i in range(100)]
    train, held = split(keys, 0.25, 0)
    assert sorted(train + held) == list(range(100))
    assert {keys[i] for i in train}.isdisjoint({keys[i] for i in held}) and len({keys[i] for i in held}) == 5
    assert split(keys, 0.25, 1)[1] != held and split(keys, 0.25, 0)[1] == held
    assert split(keys, 0.001, 0)[1] and split(keys, 0, 0) == (list(range(100)), [])
    with pytest.raises(InputError, match="only one prompt"):
        split(["p"] * 5, 0.1, 0)


DEMO = {"prompt": "a", "completion": "b"}
PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
TIED = {"prompt": "a", "responses": ["b", "c", "d"], "ranks": [1, 2, 2]}
RATED = {**DEMO, "aspects": {"helpfulness": 3}}


@pytest.mark.parametrize(
    ("row", "more", "says"),
    [
        (DEMO, {}, "holds demonstrations .* do not say what is better"),
        ({**DEMO, "label": "true"}, {}, "labels=2"),
        ({"text": "a", "label": "x"}, {"labels": 3}, "labels=3, but .* has 1 labels: x"),
        ({"text": "a", "label": "x"}, {"labels": None, "objective": "labels", "good": "y"}, "good=y is no label of .*known are: x"),
        (PAIR, {"objective": "ranking"}, "holds pairs, from which objective=ranking cannot be learned; known are: bradley-terry"),
        (PAIR, {"margin": "column"}, "no row of .* has a margin"),
        (TIED, {"objective": "plackett-luce"}, "rankings with ties"),
        ({**TIED, "ranks": [1, 1, 2]}, {"objective": "pick-best"}, "several best answers"),
        (TIED, {"loss": "json:dumps"}, "loss= replaces the loss on pairs"),
        (RATED, {"aspect_weights": "helpfullness=1"}, "did you mean 'helpfulness'"),
        (RATED, {"aspect_weights": "helpfulness=much"}, "not of the form name=number"),
        (PAIR, {"max_length": 8}, "every row of .* is longer than max_length=8"),
        (PAIR, {"finetune": "full", "members": 2}, "finetune=full can have only one"),
        (PAIR, {"validation": 0.1}, "only one prompt"),
        (PAIR, {"validation": 0, "test": "manners/data/starter/demonstrations.jsonl"}, "do not say what is better"),
        (PAIR, {"validation": 0, "normalise": "manners/data/starter/prompts_test.jsonl"}, "prompts without answers"),
    ],
)
def test_what_cannot_be_learned_is_refused_in_a_sentence(model, tmp_path, row, more, says):
    with pytest.raises(InputError) as caught:
        run(model, write_rows(tmp_path / "rows.jsonl", [row]), tmp_path / "run", epochs=1, **more)
    assert re.search(says, str(caught.value)) and str(caught.value).endswith((".", "?")), str(caught.value)


def test_long_rows_are_left_out_and_counted(model, tmp_path):
    data = write_rows(tmp_path / "pairs.jsonl", [*planted(10), {"prompt": "x" * 300, "chosen": "b", "rejected": "c"}])
    manifest = run(model, data, tmp_path / "run", epochs=1, max_length=200)
    assert manifest["notes"]["longer than 200 tokens, left out"] == 1 and manifest["counts"]["truncated"] == 0


def test_a_run_whose_scores_are_no_numbers_does_not_finish(model, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "fit", lambda run, learner, *_: [p.data.fill_(float("nan")) for p in learner.parameters.values()])
    with pytest.raises(InputError, match="no finite number"):
        run(model, write_rows(tmp_path / "pairs.jsonl", planted(10)), tmp_path / "run")
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_killed_runs_end_in_the_same_bytes(model, tmp_path):
    data = write_rows(tmp_path / "pairs.jsonl", planted(40))
    command = ["reward", f"model={model}", f"data={data}", "out={out}", "format=plain", "learning_rate=1e-3", "epochs=4"]
    report = kill(3, 5, tmp_path / "one", [*command, "save_every=1"])
    check_equal_rewards(report)


def test_a_killed_ensemble_ends_in_the_same_bytes(model, tmp_path):
    data = write_rows(tmp_path / "pairs.jsonl", planted(30))
    command = ["reward", f"model={model}", f"data={data}", "out={out}", "format=plain", "members=2", "epochs=4", "save_every=2"]
    report = kill(3, 6, tmp_path / "two", command)
    check_equal_rewards(report, members=2)


def check_equal_rewards(report: dict[str, Any], members: int = 1) -> None:
    """As `check_equal`, for the heads, cards and members, too."""
    calm = Path(report["undisturbed"])
    assert report["finished"]
    for folder in map(Path, report["finished"]):
        names = [
            "head.safetensors",
            "reward.json",
            "adapter_model.safetensors",
            *(f"member-{m}/adapter_model.safetensors" for m in range(1, members)),
        ]
        for name in names:
            assert (folder / "model" / name).read_bytes() == (calm / "model" / name).read_bytes(), name
        assert (folder / "report.json").read_bytes() == (calm / "report.json").read_bytes()
        assert read_json(folder / "manifest.json")["steps"] == len(read_jsonl(calm / "metrics.jsonl"))


# --- the page -------------------------------------------------------------------------------------------------------------------


def test_the_page_has_every_setting_with_its_default_and_every_metric(trained):
    folder, _ = trained
    text = (DOCS / "reward.md").read_text(encoding="utf-8")
    rows = table(text, "Setting")
    assert rows.keys() == RewardSettings.model_fields.keys()
    for key, field in RewardSettings.model_fields.items():
        assert rows[key][0] == "needed" if field.is_required() else is_default(rows[key][0].strip("`"), field.default), key
    assert all(f"{rate:g}" in rows["learning_rate"][1] for rate in module.DEFAULT_RATE.values())
    logged = {key for record in read_jsonl(folder / "run" / "metrics.jsonl") for key in record}
    assert logged <= table(text, "Key").keys()
