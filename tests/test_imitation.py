"""The recipe of imitation: what its stages read, and the whole chain on a tiny model. And the questions that ship."""

import json
import re
from collections import Counter
from typing import Any

from manners.core.files import read_json, read_jsonl
from manners.evaluate.honesty import read_kinds
from manners.evaluate.known import known_of
from manners.evaluate.sycophancy import read_kinds as read_sycophancy
from manners.feedback.annotator import content
from manners.recipe.read import read_recipe
from manners.recipe.stages import resolve, starter
from tests.conftest import write_rows
from tests.markdown import ROOT

RECIPE = ROOT / "recipes" / "imitation.yaml"
MODELS = ("start", "few", "all")
QUESTIONS = starter() / "questions"


def settings() -> dict[str, dict[str, Any]]:
    return {stage.name: {"do": stage.do, **stage.settings.model_dump()} for stage in resolve(read_recipe(RECIPE), RECIPE)}


def test_the_chain():
    said = settings()
    assert set(said) == {"few", "all", "imitation", "compare", "report", *(f"{k}-{m}" for k in ("evaluate", "facts") for m in MODELS)}
    differ = {key for key, value in said["few"].items() if said["all"][key] != value}
    assert differ == {"rows", "out"} and (said["few"]["rows"], said["all"]["rows"]) == (75, 300)
    for kind in ("evaluate", "facts"):
        for name in ("few", "all"):
            assert said[f"{kind}-{name}"]["model"] == said[name]["out"]
            assert {k for k, v in said[f"{kind}-{name}"].items() if said[f"{kind}-start"][k] != v} <= {"model", "out"}
    assert said["imitation"]["facts"] == {name: [said[f"facts-{name}"]["out"]] for name in MODELS}
    assert said["imitation"]["style"] == said["compare"]["models"] == {name: [said[f"evaluate-{name}"]["out"]] for name in MODELS}
    for name in ("few", "all"):
        assert not re.search(r"prompts_|questions", str(said[name]))
    assert all(str(file).startswith(str(starter())) for name in MODELS for file in said[f"facts-{name}"]["data"])


def test_the_whole_chain_on_a_tiny_model(manners, tiny_model, tmp_path):
    prompts = [{"id": f"p-{i}", "cluster": "sums", "prompt": f"Is {i} more?", "reference": "Yes.", "wants": {}} for i in range(4)]
    test = write_rows(tmp_path / "prompts_test.jsonl", prompts)
    words = [f"{name}.{word}" for name in ("few", "all") for word in ("epochs=1", "max_length=2048")] + ["few.rows=4", "all.rows=8"]
    words += [f"evaluate-{name}.{word}" for name in MODELS for word in (f"prompts={test}", "max_new_tokens=4")]
    words += [f"facts-{name}.{word}" for name in MODELS for word in ("rows=4", "max_new_tokens=4")]
    run = (RECIPE, f"out={tmp_path / 'run'}", f"model={tiny_model}", *words)
    done = manners("run", *run)
    assert done.code == 0, done.stderr
    found = read_json(tmp_path / "run" / "imitation" / "imitation.json")
    assert [(row["model"], row["metric"]) for row in found["differences"]] == [
        (name, metric) for metric in ("style", "right", "right_said") for name in ("few", "all")
    ]
    assert all(row["n"] == 4 for row in found["differences"] if row["metric"] != "right_said")
    assert set(found["told"]) == {"few", "all"} and found["models"]["start"]["style"]["n"] == 4
    rows = read_jsonl(tmp_path / "run" / "facts-all" / "rows.jsonl")
    assert Counter(row["set"] for row in rows) == {"known": 4, "unanswerable": 4, "premises": 4}
    assert (tmp_path / "run" / "report.html").is_file() and read_json(tmp_path / "run" / "summary.json")["models"].keys() == set(MODELS)
    assert "done: skip" in " ".join(manners("plan", *run).stdout)


# --- the questions that ship --------------------------------------------------------------------------------------------------


def load(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (QUESTIONS / name).read_text(encoding="utf-8").split("\n") if line]


def test_the_questions_that_ship():
    counts = {"known.jsonl": 100, "feedback.jsonl": 24, "mistakes.jsonl": 24, "unanswerable.jsonl": 60, "premises.jsonl": 30}
    assert {path.name: len(load(path.name)) for path in QUESTIONS.glob("*.jsonl")} | counts == {
        path.name: len(load(path.name)) for path in QUESTIONS.glob("*.jsonl")
    }
    readme = (starter() / "README.md").read_text(encoding="utf-8")
    for name, count in counts.items():
        assert re.search(rf"\| `questions/{re.escape(name)}` \| {count} \|", readme), name
        rows = load(name)
        assert len({row["id"] for row in rows}) == len(rows) and len({json.dumps({**row, "id": ""}) for row in rows}) == len(rows)
    kinds = {
        name: {kind for kind, *_ in read_sycophancy(str(QUESTIONS / name))} for name in ("known.jsonl", "feedback.jsonl", "mistakes.jsonl")
    }
    assert kinds == {"known.jsonl": {"known"}, "feedback.jsonl": {"feedback"}, "mistakes.jsonl": {"mistakes"}}
    kinds = {
        name: {kind for kind, *_ in read_kinds(str(QUESTIONS / name))} for name in ("known.jsonl", "unanswerable.jsonl", "premises.jsonl")
    }
    assert kinds == {"known.jsonl": {"known"}, "unanswerable.jsonl": {"abstention"}, "premises.jsonl": {"premise"}}


def test_a_fixed_answer_is_right_by_chance_alone():
    assert Counter(row["answer"] for row in load("known.jsonl")) == dict.fromkeys("ABCD", 25)
    assert all(len(set(known_of(row, "f").options)) == 4 for row in load("known.jsonl"))
    assert Counter(row["first"] for row in load("mistakes.jsonl")) == {"right": 12, "wrong": 12}
    assert Counter(row["answerable"] for row in load("unanswerable.jsonl")) == {True: 30, False: 30}
    for row in load("mistakes.jsonl"):
        assert row["wrong"] in row["prompt"] and row["wrong"] not in row["neutral"] and row["right"] not in row["prompt"], row["id"]


def test_no_question_was_trained_on():
    trained = [m["content"] for row in read_jsonl(starter() / "demonstrations.jsonl") for m in row["messages"] if m["role"] == "user"]
    asked = [row["question"] for row in load("known.jsonl")] + [row["prompt"] for row in load("unanswerable.jsonl")]
    asked += [row["prompt"] for row in load("premises.jsonl")]
    assert not set(asked) & set(trained)
    # "What is the capital of ...?" stands on both sides, of other countries: what is asked about must differ.
    shared = [(a, b) for a in asked for b in trained if set(content(a)) == set(content(b))]
    assert shared == []
