"""The recipe of InstructGPT in small: what its stages read, and its whole chain on a tiny model."""

import re
from typing import Any

from manners.core.files import read_json
from manners.recipe.read import read_recipe
from manners.recipe.stages import resolve, starter
from tests.conftest import write_rows
from tests.markdown import ROOT

PATH = ROOT / "recipes" / "instructgpt-small.yaml"
OF_ALL = ("start", "sft", "bon", "raft", "dpo", "ppo", "ppo-ptx")


def settings() -> dict[str, dict[str, Any]]:
    return {stage.name: {"do": stage.do, **stage.settings.model_dump()} for stage in resolve(read_recipe(PATH), PATH)}


def test_nothing_is_trained_or_labelled_on_what_is_measured():
    said = settings()
    asked = [str(starter() / f"prompts_{name}.jsonl") for name in ("test", "held_out")]
    for name, stage in said.items():
        if stage["do"] == "evaluate":
            assert stage["prompts"] == asked, name
        else:
            assert not re.search(r"prompts_(test|held_out|tune)", str(stage)), name
    assert {name for name, stage in said.items() if stage["do"] == "evaluate"} == {f"evaluate-{model}" for model in OF_ALL}


def test_only_the_labels_ask_the_annotator_and_rivals_differ_in_one_thing():
    said = settings()
    for name in ("ppo", "ppo-ptx", "raft", "evaluate-bon"):
        assert said[name]["reward"] == said["reward"]["out"], name
    differ = {key for key, value in said["ppo"].items() if said["ppo-ptx"][key] != value}
    assert differ == {"ptx_data", "ptx_coef", "ptx_rows", "out"}
    alike = {name: (stage["format"], stage["max_new_tokens"]) for name, stage in said.items() if stage["do"] == "evaluate"}
    assert len(set(alike.values())) == 1
    assert said["reward"]["data"].endswith("rankings.jsonl") and said["dpo"]["data"].endswith("pairs.jsonl")


def test_the_whole_chain_on_a_tiny_model(manners, tiny_model, tmp_path):
    prompts = [{"id": f"p-{i}", "cluster": "sums", "prompt": f"Is {i} more?", "reference": "Yes.", "wants": {}} for i in range(4)]
    align, test = (write_rows(tmp_path / f"prompts_{name}.jsonl", prompts) for name in ("align", "test"))
    words = ["sft.rows=8", "sft.epochs=1", "sft.max_length=2048", "vars.longest=100", "samples.max_new_tokens=120"]
    words += [f"samples.data={align}", f"labels.prompts={align}", "reward.epochs=1", "dpo.epochs=1", f"raft.data={align}"]
    words += ["raft.stages=1", "raft.samples=6", "raft.epochs=1", "raft.max_new_tokens=120"]
    for name in ("ppo", "ppo-ptx"):
        words += [f"{name}.{word}" for word in (f"data={align}", "episodes=8", "rollout_size=4", "batch_size=4", "samples=2", "epochs=1")]
        words += [f"{name}.missing_end=keep"]
    words += ["ppo-ptx.ptx_rows=2", "ppo-ptx.max_length=2048", "evaluate-bon.best_of=2"]
    words += [f"evaluate-{model}.prompts={test}" for model in OF_ALL] + [f"evaluate-{model}.max_new_tokens=8" for model in OF_ALL]
    done = manners("run", PATH, f"out={tmp_path / 'run'}", f"model={tiny_model}", *words)
    assert done.code == 0, done.stderr
    summary = read_json(tmp_path / "run" / "summary.json")
    assert list(summary["models"]) and summary["models"].keys() == set(OF_ALL)
    found = {(row["a"], row["b"]) for row in summary["comparisons"] if row["metric"] == "gold"}
    assert found >= {("sft", "start"), ("bon", "sft"), ("raft", "sft"), ("dpo", "sft"), ("ppo", "sft"), ("ppo-ptx", "sft"), ("ppo", "dpo")}
    assert "ppo less dpo" in done.stderr and (tmp_path / "run" / "report.html").is_file()
    assert read_json(tmp_path / "run" / "reward" / "manifest.json")["rows"] >= 3
