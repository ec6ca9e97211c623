"""The recipes that ask whether instruction data pays: what their stages read, the data made for them, and each chain on a tiny model."""

import json
import re
from pathlib import Path

import pytest

from manners.core.files import read_json, read_jsonl
from manners.data import tasks
from manners.evaluate.safety import STARTER as SAFETY
from manners.recipe.stages import starter
from tests.chain import models_of, recipe, run_whole, settings
from tests.markdown import ROOT

NAMES = ("flan", "tasks", "cot", "lima", "safety")
FOLDER = starter() / "tasks"
PAGE = (ROOT / "docs" / "does-it-pay.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_no_stage_trains_on_what_is_asked(name):
    said = settings(recipe(name))
    for stage, of in said.items():
        read = [json.dumps(of.get(key)) for key in ("data", "sources", "clusters") if of["do"] not in ("evaluate", "eval safety")]
        assert not re.search(r"prompts_|sets/safety", " ".join(read)), stage
    models = [stage for stage, of in said.items() if of["do"] == "sft"]
    differ = {key for a in models for key, value in said[a].items() if said[models[0]][key] != value}
    assert differ <= {"out", "data", "rows", "epochs"}
    assert f"<!-- figures: {name} -->" in PAGE and f"recipes/{name}.yaml" in PAGE


def test_equal_rows_and_steps():
    said = settings(recipe("lima"))
    assert {said[m]["epochs"] * (said[m]["rows"] or said["templated"]["rows"]) for m in ("few", "all", "many")} == {576}
    said = settings(recipe("tasks"))
    assert {said[f"rows-{n}"]["rows"] for n in (1, 2, 4, 6)} == {288}
    assert [len(said[f"rows-{n}"]["sources"]) for n in (1, 2, 4, 6)] == [1, 2, 4, 6]
    said = settings(recipe("safety"))
    assert {said[f"rows-{n}"]["rows"] for n in (0, 3, 10, 30)} == {240}
    said = settings(recipe("flan"))
    for name in ("sentiment", "topic", "paraphrase", "inference", "problem", "write"):
        one, many = said[f"one-{name}"], said[f"many-{name}"]
        assert {key for key in one if one[key] != many[key]} == {"names", "out"} and many["names"] is None and "," not in one["names"]
    said = settings(recipe("cot"))
    assert {key for key, value in said["rows-answers"].items() if said["rows-reasons"][key] != value} == {"map", "out"}


# --- the data -----------------------------------------------------------------------------------------------------------------


def test_the_files_that_ship_are_what_the_program_makes():
    made = tasks.made()
    assert {path.name for path in FOLDER.glob("*.jsonl")} == set(made)
    for name, rows in made.items():
        assert read_jsonl(FOLDER / name) == rows, name
    counts = {name: len(rows) for name, rows in made.items()}
    assert counts == dict.fromkeys((f"{task}.jsonl" for task in tasks.TRAINED), 96) | {
        "problems.jsonl": 288,
        "prompts_seen.jsonl": 60,
        "prompts_unseen.jsonl": 120,
        "prompts_problems_test.jsonl": 120,
        "prompts_problems_held_out.jsonl": 60,
    }
    readme = (starter() / "README.md").read_text(encoding="utf-8")
    for name, count in counts.items():
        assert re.search(rf"\| `tasks/{re.escape(name)}` \| {count} \|", readme), name


def test_sums_are_right():
    rows = read_jsonl(FOLDER / "problems.jsonl") + read_jsonl(FOLDER / "word_problem.jsonl")
    for row in rows:
        for a, sign, b, result in re.findall(r"(\d+) ([+x-]) (\d+) = (\d+)", row["rationale"]):
            assert {"+": int(a) + int(b), "-": int(a) - int(b), "x": int(a) * int(b)}[sign] == int(result), row
        assert row["rationale"].rstrip(".").endswith(f"= {row['answer']}") and int(row["answer"]) >= 0
        assert row["worked"].endswith(row["short"])


def test_what_is_asked_is_not_what_is_trained_on():
    for name in tasks.TRAINED:
        rows = tasks.distinct(name, tasks.TRAINED[name], tasks.TRAIN + tasks.SEEN)
        trained = read_jsonl(FOLDER / f"{name}.jsonl")
        assert trained == rows[: tasks.TRAIN] and not any(row in trained for row in rows[tasks.TRAIN :])
    asked = {row["prompt"] for split in ("test", "held_out") for row in read_jsonl(FOLDER / f"prompts_problems_{split}.jsonl")}
    assert len(asked) == 180 and not asked & {row["question"] for row in read_jsonl(FOLDER / "problems.jsonl")}
    harmful = {row["prompt"] for row in read_jsonl(SAFETY)}
    told = {turn["content"] for row in read_jsonl(starter() / "demonstrations.jsonl") for turn in row["messages"]}
    assert len(harmful) == 80 and not harmful & told


# --- the chains ---------------------------------------------------------------------------------------------------------------


def test_flan(manners, tiny_model, tmp_path):
    run = run_whole(manners, "flan", tiny_model, tmp_path, "vars.take=2")
    assert models_of(run) == {"start", "one", "many"}
    one, many = (read_jsonl(run / f"{name}-rows" / "mixture.jsonl") for name in ("one", "many"))
    assert len(one) == len(many) == 12 and {(row["task"], row["row"]) for row in one} == {(row["task"], row["row"]) for row in many}
    assert all(len({row["template"] for row in one if row["task"] == task}) == 1 for task in tasks.TRAINED)
    assert not {row["cluster"] for row in one} & {"answer"}
    assert read_json(run / "compare-said" / "summary.json")["metric"] == "checks.said"


def test_tasks(manners, tiny_model, tmp_path):
    run = run_whole(manners, "tasks", tiny_model, tmp_path, "vars.rows=12")
    assert models_of(run) == {"start", *(f"tasks-{n}" for n in (1, 2, 4, 6))}
    for n in (1, 2, 4, 6):
        rows = read_jsonl(run / f"rows-{n}" / "mixture.jsonl")
        assert len(rows) == 12 and len({row["task"] for row in rows}) == n


def test_cot(manners, tiny_model, tmp_path):
    run = run_whole(manners, "cot", tiny_model, tmp_path, "vars.take=8")
    assert models_of(run) == {"start", "answers", "reasons"}
    short, worked = (read_jsonl(run / f"rows-{name}" / "rendered.jsonl") for name in ("answers", "reasons"))
    for a, b in zip(short, worked, strict=True):
        assert a["messages"][0] == b["messages"][0] and b["messages"][1]["content"].endswith(" " + a["messages"][1]["content"])
    assert len(short) == 8


def test_lima(manners, tiny_model, tmp_path):
    run = run_whole(manners, "lima", tiny_model, tmp_path, "vars.few_rows=2", "vars.all_rows=4", "vars.many_rows=6")
    assert models_of(run) == {"start", "few", "all", "many"} and (run / "report.html").is_file()


def test_safety(manners, tiny_model, tmp_path):
    run = run_whole(manners, "safety", tiny_model, tmp_path, "vars.rows=20")
    shares = [sum(row["cluster"] == "safety" for row in read_jsonl(run / f"rows-{n}" / "mixture.jsonl")) for n in (0, 3, 10, 30)]
    assert shares == [0, 1, 2, 6]
    found = read_json(run / "against" / "results.json")
    assert set(found["models"]) == {"safety-0", "start", "safety-3", "safety-10", "safety-30"}
    assert {(row["name"].split("/")[-1]) for row in found["results"]} >= {"refuses_harmful", "refuses_harmless"}


def test_guidelines_as_a_stage(manners, tmp_path):
    task = {"Definition": ["Add."], "Instances": [{"input": "1 2", "output": ["3"]}], "Positive Examples": [], "Negative Examples": []}
    (tmp_path / "task.json").write_text(json.dumps(task))
    told = {"do": "data guidelines", "guidelines": str(tmp_path / "task.json")}
    path = Path(tmp_path / "chain.yaml")
    path.write_text(json.dumps({"stages": {"told": told, "mix": {"do": "data mix", "sources": {"told": "{told}"}}}}))
    done = manners("run", path, f"out={tmp_path / 'run'}")
    assert done.code == 0, done.stderr
    (row,) = read_jsonl(tmp_path / "run" / "mix" / "mixture.jsonl")
    assert row["messages"][1]["content"] == "3" and row["made_by"] == "guidelines"
