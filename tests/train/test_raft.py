"""RAFT: what is kept, that the reward of fresh answers rises, and that a run killed anywhere ends as one that was not."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from manners.core.errors import InputError
from manners.core.files import read_json, read_jsonl
from manners.data.chat import ChatFormat
from manners.model.load import load_tokenizer
from manners.train.raft import RAFTSettings, accepted, fresh, mark_kept, raft
from manners.train.sft import DEFAULT_RATE, SFTSettings, sft
from tests.markdown import DOCS, table
from tests.test_docs import is_default
from tests.tiny import tiny_folder
from tests.train.test_resume import VOLATILE, kill

REWARD = """
def many_a(responses):
    return [response.count("a") for response in responses]

def broken(responses):
    return [float("nan")] * len(responses)
"""
WORDS = ["aaaa", "bbbb", "abab", "aabb", "bbba", "caca"]


@pytest.fixture(scope="module", autouse=True)
def functions(tmp_path_factory):
    """A reward that likes the letter a, in the current folder."""
    folder = tmp_path_factory.mktemp("functions")
    (folder / "rewards_of_raft_tests.py").write_text(REWARD)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", str(folder))
        yield


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Say {n}."}) + "\n" for n in range(24)))
    return path


@pytest.fixture(scope="module")
def held_out(prompts) -> Path:
    """Prompts that nothing trains on."""
    path = prompts.with_name("held_out.jsonl")
    path.write_text("".join(json.dumps({"prompt": f"Say {n}."}) + "\n" for n in range(30, 54)))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory, prompts) -> str:
    """A tiny model that answers any prompt with one of WORDS and stops."""
    import torch

    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("tiny")
    rows = [{"prompt": f"Say {n}.", "completion": word} for n in range(24) for word in WORDS]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"format": "plain", "finetune": "full", "epochs": 8, "batch_size": 16, "learning_rate": 1e-2, "save_every": 1000}
    folder = tiny_folder(place / "model", width=32)
    sft(SFTSettings(model=str(folder), data=str(place / "rows.jsonl"), out=str(place / "run"), **settings))
    return str(place / "run")


def settings(model: str, prompts: Path, out: Path, **keys) -> RAFTSettings:
    common = {
        "reward": "rewards_of_raft_tests:many_a",
        "format": "plain",
        "max_new_tokens": 10,
        "max_length": 64,
        "learning_rate": 1e-2,
        "batch_size": 2,
        "epochs": 3,
        "stages": 3,
        "samples": 8,
        "temperature": 1.0,
        "held_out_samples": 8,
    }
    return RAFTSettings(model=model, data=str(prompts), out=str(out), **{**common, **keys})


@pytest.fixture(scope="module")
def run(model, prompts, held_out, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("raft") / "run"
    raft(settings(model, prompts, out, held_out=str(held_out), finetune="full", learning_rate=2e-3))
    return out


@pytest.fixture(scope="module")
def leashed(model, prompts, tmp_path_factory) -> Path:
    """Two stages of a LoRA adapter, on a leash."""
    out = tmp_path_factory.mktemp("raft") / "leashed"
    raft(settings(model, prompts, out, beta=0.01, stages=2))
    return out


def test_the_reward_of_fresh_answers_rises_stage_by_stage(run):
    """The model answers 'aaaa' as often as five other words at first: 1.83 letters a; the best of 8 moves it."""
    told = [r for r in read_jsonl(run / "metrics.jsonl") if "loss" not in r]
    held_out = [r["held_out/reward"] for r in told]
    assert len(held_out) == 4 and all(later > earlier + 0.1 for earlier, later in pairwise(held_out)), held_out
    fresh_rewards = [r["reward"] for r in told[:3]]
    assert fresh_rewards == sorted(fresh_rewards) and fresh_rewards[-1] > fresh_rewards[0] + 0.5
    manifest = read_json(run / "manifest.json")
    assert manifest["stages"] == told and manifest["rows"] == sum(r["kept"] for r in told[:3])


def test_one_of_k_is_kept_and_it_is_the_best(run):
    for stage in ("1", "2", "3"):
        rows = read_jsonl(run / "stages" / stage / "answers.jsonl")
        assert len(rows) == 8
        for row in rows:
            able = [a for a in row["responses"] if a["finish_reason"] == "stop" and a["text"].strip()]
            kept = [a for a in row["responses"] if a["kept"]]
            assert len(row["responses"]) == 8 and len(kept) == 1 and kept[0]["reward"] == max(a["reward"] for a in able)
            assert all(a["reward"] == a["text"].count("a") for a in row["responses"])
    told = [r for r in read_jsonl(run / "metrics.jsonl") if "kept" in r]
    assert [(r["kept_fraction"], r["prompts_kept"], r["prompts"], r["answers"], r["kept"]) for r in told] == [(0.125, 1.0, 8, 64, 8)] * 3


def test_prompts_are_fresh(run, model, prompts):
    rows = [row["row"] for stage in ("1", "2", "3") for row in read_jsonl(run / "stages" / stage / "answers.jsonl")]
    assert sorted(rows) == list(range(24))
    asked = settings(model, prompts, run, stages=5, stage_prompts=10)
    taken = [fresh(24, number, asked) for number in range(5)]
    assert all(len(set(part)) == 10 for part in taken)
    assert not set(taken[0]) & set(taken[1]) and not set(taken[2]) & set(taken[3])  # a pass is two stages, four prompts are left over
    assert taken[0] != taken[2]


def test_what_is_trained_on_is_what_was_drawn(run, model):
    """The tokens of the answers that were kept, with the stop token; as many as the loss was a mean over."""
    form = ChatFormat.of(load_tokenizer(model), "plain")
    kept = [a for row in read_jsonl(run / "stages" / "1" / "answers.jsonl") for a in row["responses"] if a["kept"]]
    assert all(a["token_ids"][-1] in form.stop_ids for a in kept)
    manifest = read_json(run / "manifest.json")
    assert manifest["counts"]["stop_trained"] == manifest["counts"]["answers"] == 24 and manifest["counts"]["truncated"] == 0


def row(*answers: tuple) -> dict:
    keys = ("text", "reward", "finish_reason", "log_ratio")
    return {"responses": [{"token_ids": [0], **dict(zip(keys, (*a, *("stop", 0.0)[len(a) - 2 :]), strict=False))} for a in answers]}


def kept(rows: list[dict], **keys) -> list[list[str]]:
    mark_kept(rows, RAFTSettings(data="x", out="y", reward="length", **keys))
    return [[a["text"] for a in r["responses"] if a["kept"]] for r in rows]


def test_which_answers_are_kept():
    rows = [
        row(("a", 1.0), ("b", 3.0, "length"), ("c", 2.0)),
        row(("d", 9.0), ("e", 8.0), ("f", 9.0)),
        row(("g", 5.0, "length"), (" ", 6.0)),
    ]
    assert kept(rows) == [["c"], ["d"], []]  # never a cut or an empty one; of equal ones the first
    assert kept(rows, keep="top", top_share=0.4) == [[], ["d", "e", "f"], []]
    told = accepted(rows, RAFTSettings(data="x", out="y", reward="length", keep="top"))
    assert told["kept_fraction"] == 3 / 8 and told["prompts_kept"] == pytest.approx(1 / 3) and told["cut"] == 2 / 8
    assert (
        told["reward"] == pytest.approx(43 / 8)
        and told["reward/best"] == pytest.approx(18 / 3)
        and told["reward/kept"] == pytest.approx(26 / 3)
    )


def test_the_leash_counts_in_the_ranking():
    rows = [row(("far", 3.0, "stop", 4.0), ("near", 2.0, "stop", 1.0))]
    assert kept(rows) == [["far"]]
    assert kept(rows, beta=0.5) == [["near"]]  # 3 - 2 < 2 - 0.5


def test_the_leash_is_zero_at_first_and_grows(leashed):
    """Before the first stage the policy is its own reference, up to the float16 of the sampler's weights."""
    ratios = [[a["log_ratio"] for r in read_jsonl(leashed / "stages" / s / "answers.jsonl") for a in r["responses"]] for s in "12"]
    assert max(map(abs, ratios[0])) < 0.02 and max(map(abs, ratios[1])) > 0.1


def test_going_on_from_an_adapter_and_from_all_stages(leashed, prompts, tmp_path):
    """A run can start where another ended; with train_on=all the second stage has the answers of both."""
    again = raft(
        settings(str(leashed), prompts, tmp_path / "again", stages=2, stage_prompts=8, beta=0.01, train_on="all", epochs=1, batch_size=8)
    )
    steps = [r for r in read_jsonl(tmp_path / "again" / "metrics.jsonl") if "loss" in r]
    assert [r["stage"] for r in steps] == [0, 1, 1] and again["stages"][0]["reward"] > 2.1
    first = [a["log_ratio"] for r in read_jsonl(tmp_path / "again" / "stages" / "1" / "answers.jsonl") for a in r["responses"]]
    assert max(map(abs, first)) < 0.02


def test_what_cannot_be(model, prompts, tmp_path):
    def refused(says: str, **keys) -> None:
        with pytest.raises(InputError, match=says):
            raft(settings(model, prompts, tmp_path / "run", **keys))

    refused("did you mean 'annotator'", reward="annotater")
    refused("stage_prompts=25 is more than the 24 prompts", stage_prompts=25)
    refused("24 prompts, too few for 25 stages", stages=25)
    refused("row 1 of .*prompts.jsonl: the prompt has .* tokens", max_length=20)
    refused("beta needs the policy as it was", finetune="full", beta=0.1)
    refused("must be a finite number|every score must be", reward="rewards_of_raft_tests:broken")
    refused("none of the 192 answers ended by itself within 1 tokens", max_new_tokens=1, stages=1)
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_killed_six_times(model, prompts, tmp_path):
    command = ["raft", f"model={model}", f"data={prompts}", "out={out}", "format=plain", "reward=rewards_of_raft_tests:many_a"]
    command += [
        "max_new_tokens=10",
        "max_length=64",
        "stages=4",
        "stage_prompts=6",
        "batch_size=2",
        "save_every=1",
        "samples=4",
        f"held_out={prompts}",
    ]
    report = kill(6, 5, tmp_path, command, anywhere=True)
    calm = Path(report["undisturbed"])
    assert report["finished"]
    for folder in map(Path, report["finished"]):
        for name in ("model/adapter_model.safetensors", *(f"stages/{n}/answers.jsonl" for n in (1, 2, 3, 4)), "stages/5/held_out.jsonl"):
            assert (folder / name).read_bytes() == (calm / name).read_bytes(), name
        logs = [[{k: v for k, v in r.items() if k not in VOLATILE} for r in read_jsonl(f / "metrics.jsonl")] for f in (folder, calm)]
        assert logs[0] == logs[1]
        assert {p.name for p in folder.iterdir()} <= {"manifest.json", "metrics.jsonl", "model", "settings.json", ".lock", "stages"}
        assert {p.name for p in (folder / "stages" / "1").iterdir()} == {"answers.jsonl", "held_out.jsonl"}


def test_the_page_has_every_setting_and_every_metric(run, leashed):
    page = (DOCS / "raft.md").read_text(encoding="utf-8")
    rows = table(page, "Setting")
    assert rows.keys() == RAFTSettings.model_fields.keys()
    for key, field in RAFTSettings.model_fields.items():
        default, meaning = rows[key]
        assert default == "needed" if field.is_required() else is_default(default.strip("`"), field.default), key
        assert len(meaning) > 10
    assert all(str(rate) in rows["learning_rate"][1] for rate in DEFAULT_RATE.values())
    logged = {key for folder in (run, leashed) for record in read_jsonl(folder / "metrics.jsonl") for key in record}
    assert table(page, "Key").keys() == logged
