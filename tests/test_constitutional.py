"""The recipes `constitutional` and `ultrafeedback`: what their stages read, and each whole on a tiny model."""

import re
from pathlib import Path
from typing import Any

import pytest

from manners.core.files import read_json, read_jsonl
from manners.data.writers.command import WriteSettings, write
from manners.feedback.judging import label as judge_label
from manners.model.sampler import ScriptedSampler
from manners.recipe.read import read_recipe
from manners.recipe.stages import resolve, starter
from tests.conftest import write_rows
from tests.markdown import ROOT

CONSTITUTIONAL, ULTRAFEEDBACK = ROOT / "recipes" / "constitutional.yaml", ROOT / "recipes" / "ultrafeedback.yaml"


def settings(path: Path) -> dict[str, dict[str, Any]]:
    return {stage.name: {"do": stage.do, **stage.settings.model_dump()} for stage in resolve(read_recipe(path), path)}


@pytest.mark.parametrize("path", [CONSTITUTIONAL, ULTRAFEEDBACK], ids=lambda p: p.stem)
def test_only_what_ships_is_read_and_the_test_prompts_are_only_asked(path):
    asked = {str(starter() / f"prompts_{name}.jsonl") for name in ("test", "held_out")}
    for name, stage in settings(path).items():
        if stage["do"] == "evaluate":
            assert set(stage["prompts"]) == asked
        else:
            assert not re.search(r"prompts_(test|held_out|tune)", str(stage)), name
        assert "shared" not in str({key: value for key, value in stage.items() if key != "out"}).replace(str(starter()), "")


def test_the_chain_of_constitutional():
    said = settings(CONSTITUTIONAL)
    assert said["revisions"]["principles"] == said["preferences"]["principles"] == str(starter() / "principles.yaml")
    assert said["mixture"]["sources"]["revised"] == f"{said['revisions']['out']}/rows.jsonl"
    assert said["sft"]["data"] == said["mixture"]["out"] and said["samples"]["model"] == said["sft"]["out"]
    labels = f"{said['preferences']['out']}/pairs.jsonl"
    assert said["reward"]["data"] == said["dpo"]["data"] == labels and said["reward"]["soft_labels"] and said["dpo"]["soft_labels"]
    assert said["ppo"]["reward"] == said["reward"]["out"] and said["ppo"]["model"] == said["dpo"]["model"] == said["sft"]["out"]
    assert said["preferences"]["orders"] == "both" and said["preferences"]["pairs"] == "all"


def test_the_chain_of_ultrafeedback():
    said = settings(ULTRAFEEDBACK)
    assert said["ratings"]["data"].keys() == {"sft", "few", "plain", "shipped"} and len(said["ratings"]["aspects"]) == 4
    assert said["pairs"]["policy"] == "zephyr" and said["pairs"]["data"] == f"{said['ratings']['out']}/rated.jsonl"
    assert said["dpo"]["data"] == said["pairs"]["out"]


def revising(prompt: Any, sample: int) -> str:
    """A first answer, a critique, or a revision that differs from all others."""
    text = prompt.messages[-1].content
    return f"Better, {hash(text)}." if "It could be kinder." in text else "It could be kinder." if "criticism" in text else "No."


@pytest.fixture
def prompts(tmp_path) -> tuple[Path, Path]:
    rows = [{"id": f"p-{i}", "cluster": "sums", "prompt": f"Is {i} more?", "reference": "Yes.", "wants": {}} for i in range(4)]
    return write_rows(tmp_path / "prompts_align.jsonl", rows), write_rows(tmp_path / "prompts_test.jsonl", rows)


def test_the_whole_constitutional_chain_on_a_tiny_model(manners, tiny_model, tmp_path, prompts):
    align, test = prompts
    words = [f"vars.judge={tiny_model}", f"revisions.seeds={align}", "revisions.rounds=1", "revisions.max_new_tokens=20"]
    # a random model's revisions are never fit to learn from: what becomes of good ones is the test below
    demonstrations = starter() / "demonstrations.jsonl"
    words += [f"mixture.sources={{helpful: {demonstrations}}}", "sft.rows=8", "sft.epochs=1", "sft.max_length=2048"]
    words += [f"samples.data={align}", "samples.max_new_tokens=60", f"gold.prompts={align}", "trust.rows=2"]
    words += [
        f"ppo.data={align}",
        "ppo.episodes=8",
        "ppo.rollout_size=8",
        "ppo.batch_size=8",
        "ppo.epochs=1",
        "ppo.max_new_tokens=6",
        "ppo.missing_end=keep",
    ]
    words += [f"evaluate-{name}.{word}" for name in ("start", "sft", "ppo", "dpo") for word in (f"prompts={test}", "max_new_tokens=6")]
    run = ("run", CONSTITUTIONAL, f"out={tmp_path / 'run'}", f"model={tiny_model}", *words)
    done = manners(*run)
    assert done.code == 0, done.stderr
    folder = tmp_path / "run"
    made = read_jsonl(folder / "preferences" / "pairs.jsonl")
    assert made and all(0.5 < pair["probability"] <= 1 and pair["origin"]["principle"] for pair in made)
    assert len({pair["origin"]["principle"] for pair in made}) > 1
    report = read_json(folder / "preferences" / "judge.json")
    assert sum(report["principles"].values()) == report["comparisons"] and report["pairs"] == len(made)
    assert read_json(folder / "reward" / "manifest.json")["settings"]["soft_labels"] is True
    assert read_json(folder / "trust" / "check.json")["scored"] == 2
    assert read_json(folder / "summary.json")["models"].keys() == {"start", "sft", "ppo", "dpo"} and (folder / "report.html").is_file()
    before = (folder / "preferences" / "pairs.jsonl").read_bytes()
    (folder / "preferences" / "manifest.json").unlink()
    stages = resolve(read_recipe(CONSTITUTIONAL, [str(word) for word in run[2:]]), CONSTITUTIONAL)
    judge_label(next(stage.settings for stage in stages if stage.name == "preferences"))
    assert (folder / "preferences" / "pairs.jsonl").read_bytes() == before
    assert read_json(folder / "preferences" / "manifest.json")["cost"][str(tiny_model)]["misses"] == 0


def test_revisions_stand_in_the_mixture_with_their_principles(manners, tmp_path, prompts):
    said = settings(CONSTITUTIONAL)["revisions"]
    kept = {key: value for key, value in said.items() if key not in ("do", "out", "seeds")}
    write(WriteSettings(**kept, seeds=str(prompts[0]), out=str(tmp_path / "revisions")), ScriptedSampler(revising))
    revised = read_jsonl(tmp_path / "revisions" / "rows.jsonl")
    assert len(revised) == 4 and all(row["revised"]["principle"] and row["revised"]["round"] == 1 for row in revised)
    sources = (f"helpful={starter() / 'demonstrations.jsonl'}", f"revised={tmp_path / 'revisions' / 'rows.jsonl'}")
    done = manners("data", "mix", *sources, f"out={tmp_path / 'mixture.jsonl'}")
    assert done.code == 0, done.stderr
    mixed = read_jsonl(tmp_path / "mixture.jsonl")
    assert len(mixed) == 304 and sum("Better, " in str(row["messages"][-1]) for row in mixed) == 4


def test_the_whole_ultrafeedback_chain_on_a_tiny_model(manners, tiny_model, tmp_path, prompts):
    align, test = prompts
    words = [
        f"vars.judge={tiny_model}",
        "sft.rows=8",
        "sft.epochs=1",
        "sft.max_length=2048",
        "few.rows=4",
        "few.epochs=1",
        "few.max_length=2048",
    ]
    words += [
        f"by-{name}.{word}"
        for name in ("sft", "few", "plain", "shipped")
        for word in (f"data={align}", "max_new_tokens=120", "temperature=1")
    ]
    words += [f"evaluate-{name}.{word}" for name in ("start", "sft", "dpo") for word in (f"prompts={test}", "max_new_tokens=6")]
    done = manners("run", ULTRAFEEDBACK, f"out={tmp_path / 'run'}", f"model={tiny_model}", "dpo.epochs=1", *words)
    assert done.code == 0, done.stderr
    folder = tmp_path / "run"
    rated = {row["prompt"]: row["responses"] for row in read_jsonl(folder / "ratings" / "rated.jsonl")}
    assert len(rated) == 4 and all([a["model"] for a in answers] == ["sft", "few", "plain", "shipped"] for answers in rated.values())
    mean = lambda a: (
        sum(v for v in a["aspects"].values() if isinstance(v, float)) / sum(isinstance(v, float) for v in a["aspects"].values())
    )
    for pair in read_jsonl(folder / "pairs" / "pairs.jsonl"):
        answers = {a["text"].strip(): a for a in rated[pair["prompt"]]}
        means = {text: mean(a) for text, a in answers.items() if any(isinstance(v, float) for v in a["aspects"].values())}
        assert means[pair["chosen"].strip()] - means[pair["rejected"].strip()] == pytest.approx(pair["margin"], abs=1e-5)
        may_win = [value for text, value in means.items() if "finish_reason" not in answers[text]]
        assert means[pair["chosen"].strip()] == max(may_win)
    assert read_json(folder / "pairs" / "pairs.counts.json")["prompts"] == 4
    assert read_json(folder / "summary.json")["models"].keys() == {"start", "sft", "dpo"}
