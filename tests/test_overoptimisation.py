"""The recipe of over-optimisation: what it optimises and measures on, and its whole chain on a tiny model."""

import re
from typing import Any

from manners.core.files import read_json, read_jsonl
from manners.recipe.read import read_recipe
from manners.recipe.stages import resolve, starter
from tests.conftest import write_rows
from tests.markdown import ROOT

PATH = ROOT / "recipes" / "overoptimisation.yaml"
JUDGES = ("proxy", "rivals", "held-out")


def settings() -> dict[str, dict[str, Any]]:
    return {stage.name: {"do": stage.do, **stage.settings.model_dump()} for stage in resolve(read_recipe(PATH), PATH)}


def test_no_judge_is_trained_on_the_prompts_of_the_pool():
    said = settings()
    pool = str(starter() / "prompts_tune.jsonl")
    assert said["pool"]["data"] == said["curve"]["prompts"] == pool and said["pool"]["samples"] == 64
    for name, stage in said.items():
        assert not re.search(r"prompts_(test|held_out)", str(stage)), f"{name}: the test prompts are for the protocol alone"
        if name not in ("pool", "curve"):
            assert pool not in str(stage), name


def test_judges_differ_as_the_recipe_says():
    said = settings()
    assert said["proxy"]["data"] == said["rivals"]["data"] != said["held-out"]["data"]
    assert len({said[name]["seed"] for name in JUDGES}) == 3 and said["rivals"]["members"] == 2
    alike = lambda stage: {k: v for k, v in stage.items() if k not in ("data", "out", "seed", "members")}
    assert alike(said["proxy"]) == alike(said["rivals"]) == alike(said["held-out"])
    assert said["curve"]["gold"] == "annotator" and "annotator" not in said["ppo"]["reward"]


def test_policies_are_asked_as_the_pool_was():
    said = settings()
    for key in ("format", "max_new_tokens"):
        assert said["pool"][key] == said["curve"][key] == said["ppo"][key] == said["samples"][key], key
    assert said["pool"]["temperature"] == said["ppo"]["temperature"] == 1 and said["pool"]["model"] == said["curve"]["reference"]
    assert said["ppo"]["episodes"] / said["ppo"]["rollout_size"] / said["ppo"]["snapshot_every"] >= 6, "enough policies for a law"


def test_the_whole_chain_on_a_tiny_model(manners, tiny_model, tmp_path):
    prompts = [{"id": f"p-{i}", "cluster": "sums", "prompt": f"Is {i} more?", "reference": "Yes.", "wants": {}} for i in range(4)]
    tune, align = (write_rows(tmp_path / f"prompts_{name}.jsonl", prompts) for name in ("tune", "align"))
    words = ["sft.rows=8", "sft.epochs=1", "sft.max_length=2048", "vars.longest=120", f"samples.data={align}", "ppo.missing_end=keep"]
    words += [f"{name}.prompts={align}" for name in ("labels", "labels-2")] + [f"{name}.epochs=1" for name in (*JUDGES, "ppo")]
    words += [f"ppo.data={align}", "ppo.episodes=8", "ppo.rollout_size=4", "ppo.batch_size=4", "ppo.samples=2", "ppo.snapshot_every=1"]
    words += [
        f"pool.data={tune}",
        "pool.samples=4",
        f"curve.prompts={tune}",
        "curve.policy_prompts=4",
        "labels.policy=all",
        "labels-2.policy=all",
    ]
    out = tmp_path / "run"
    done = manners("run", PATH, f"out={out}", f"model={tiny_model}", *words)
    assert done.code == 0, done.stderr[-600:]
    found = read_json(out / "curve" / "curve.json")
    names = ["proxy", "length", "the gold itself", "ensemble, mean", "ensemble, worst", "ensemble, uncertainty"]
    assert [curve["name"] for curve in found["curves"]] == names
    assert [point["step"] for point in found["policies"][0]["points"]] == [0, 1, 2]
    assert len(read_jsonl(out / "pool" / "rows.jsonl")) == 4
    page = (out / "report.html").read_text(encoding="utf-8")
    assert 'id="over-optimisation"' in page and "gold, ppo" in page and "gold, best of n" in page
