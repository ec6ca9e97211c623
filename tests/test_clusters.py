"""Held-out clusters as one command: the recipe that ships and `manners eval clusters`, whole, on a tiny model."""

import json
import re
from typing import Any

from manners.core.files import read_json, read_jsonl
from manners.recipe.clusters import copied, spread, tags_of
from manners.recipe.read import read_recipe
from manners.recipe.stages import resolve
from tests.conftest import tree, write_rows
from tests.markdown import ROOT

PATH = ROOT / "recipes" / "clusters.yaml"
FOLDS = ("classify", "facts", "translate")


def settings() -> dict[str, dict[str, Any]]:
    return {stage.name: {"do": stage.do, **stage.settings.model_dump()} for stage in resolve(read_recipe(PATH), PATH)}


def test_no_fold_is_asked_what_it_was_trained_on():
    said = settings()
    split = said["split"]["out"]
    for name in FOLDS:
        assert said[f"sft-{name}"]["data"] == f"{split}/{name}/train.jsonl"
        assert said[f"ask-{name}"]["data"] == [f"{split}/{name}/test.jsonl"] and said[f"ask-{name}"]["model"] == said[f"sft-{name}"]["out"]
    assert said["ask-start"]["data"] == said["ask-all"]["data"] == [f"{split}/{name}/test.jsonl" for name in FOLDS]
    alike = [{k: v for k, v in said[f"sft-{name}"].items() if k not in ("data", "out")} for name in (*FOLDS, "all")]
    assert all(one == alike[0] for one in alike)
    assert said["clusters"]["held"].keys() == set(FOLDS) == set(said["split"]["hold"])


def test_the_recipe_whole_on_a_tiny_model(manners, tiny_model, tmp_path):
    words = [f"sft-{name}.{word}" for name in (*FOLDS, "all") for word in ("rows=8", "epochs=1", "max_length=2048")]
    words += ["split.asked=2", "vars.longest=4"]
    done = manners("run", PATH, f"model={tiny_model}", f"out={tmp_path / 'run'}", *words)
    assert done.code == 0, done.stderr[-800:]
    report = read_json(tmp_path / "run" / "clusters" / "results.json")
    assert list(report["folds"]) == list(FOLDS) and all(fold["test"] == 2 and fold["train"] == 270 for fold in report["folds"].values())
    macro = [row for row in report["comparisons"] if row["cluster"] is None and row["metric"] == "rouge_l"]
    assert [(row["a"], row["b"], row["n"]) for row in macro] == [("held out", "start", 6), ("with", "held out", 6), ("with", "start", 6)]
    assert "held out is above the start in" in done.stderr


def test_any_set_of_instructions(manners, tiny_model, tmp_path):
    """Natural Instructions files, their categories as clusters; the same command again does nothing, a further seed is another run."""
    for name, category in (("one", "Text Sums"), ("two", "Text/Sums"), ("three", "Naming"), ("four", "Naming")):
        rows = [{"input": f"{name} {i} " + " ".join(f"{name}{i}{j}" for j in range(6)), "output": [f"{i}"]} for i in range(6)]
        task = {"Definition": [f"Do what {name} says."], "Categories": [category], "Instances": rows}
        (tmp_path / f"task_{name}.json").write_text(json.dumps(task))
    tasks = [str(path) for path in sorted(tmp_path.glob("task_*.json"))]
    words = ("eval", "clusters", *tasks, f"model={tiny_model}", "asked=2", "max_new_tokens=4", f"out={tmp_path / 'run'}")
    words += ("hold=naming,text/sums", "sft.epochs=1", "sft.batch_size=4", "ask.slots=4")
    done = manners(*words, "--json")
    assert done.code == 0, done.stderr[-800:]
    report = json.loads(done.stdout[-1])
    assert {row["cluster"] for row in report["comparisons"]} == {"naming", "text/sums", None}
    train = read_jsonl(tmp_path / "run" / "split" / "split" / "naming" / "train.jsonl")
    assert {row["cluster"] for row in train} == {"text sums", "text/sums"}
    assert read_json(tmp_path / "run" / "sft-naming" / "settings.json")["settings"]["batch_size"] == 4
    stages = read_recipe(tmp_path / "run" / "clusters.yaml").stages
    assert set(stages) == {
        "split",
        "sft-naming",
        "ask-naming",
        "sft-text-sums",
        "ask-text-sums",
        "sft-all",
        "ask-all",
        "ask-start",
        "clusters",
    }
    before = tree(tmp_path / "run")
    again = manners(*words)
    assert again.code == 0 and "nothing to do" in again.stderr and tree(tmp_path / "run") == before


def test_a_recipe_of_several_stages_is_trained_a_fold(manners, tmp_path):
    stages = {
        "first": {"do": "sft", "data": "{data}", "model": "{model}"},
        "second": {"do": "sft", "data": ["{data}"], "model": "{first}", "after": "first", "epochs": "{epochs}"},
    }
    found = copied(stages, "x", "{split}/x/train.jsonl")
    assert found["second-x"] == {
        "do": "sft",
        "data": ["{split}/x/train.jsonl"],
        "model": "{first-x}",
        "after": ["first-x"],
        "epochs": "{epochs}",
    }
    assert found["first-x"]["model"] == "{model}"
    written = {**found, "ask-x": {}, "ask-start": {}}
    words = ["first.epochs=1", "ask.slots=2", "split.near=1"]
    assert spread(words, stages, ["x"], written) == ["first-x.epochs=1", "ask-x.slots=2", "ask-start.slots=2", "split.near=1"]
    assert tags_of({"all": "all", "a b": "a-b", "A b": "a-b"}) == {"all": "all-1", "a b": "a-b", "A b": "a-b-3"}
    path = tmp_path / "none.yaml"
    path.write_text("stages: {sft: {do: sft, data: x.jsonl}}")
    data = write_rows(tmp_path / "d.jsonl", [{"prompt": "a", "completion": "b", "cluster": "c"}])
    refused = manners("eval", "clusters", data, f"recipe={path}", f"out={tmp_path / 'run'}")
    assert refused.code == 2 and re.search(r"reads \{data\}", refused.error)
    refused = manners("eval", "clusters", data, f"out={tmp_path / 'run'}")
    assert refused.code == 2 and "stage 'split': a split needs two clusters at least" in refused.stderr
