"""The recipe of the quickstart: what it trains and measures on, its whole chain on a tiny model, and the pages that show its figures."""

import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quickstart import GOALS, RECORD, STAGES, between, classics, pages, record, span
from manners.core.files import read_json, read_jsonl
from manners.feedback.annotator import fingerprint
from manners.recipe.read import read_recipe
from manners.recipe.stages import resolve, starter
from tests.conftest import write_rows
from tests.markdown import DOCS, ROOT, table

PATH = ROOT / "recipes" / "quickstart.yaml"
TINY = (
    *("sft.rows=8", "sft.epochs=1", "sft.max_length=2048", "samples.rows=4", "samples.max_new_tokens=120", "dpo.epochs=1", "bon.epochs=1"),
    "vars.longest=4",
)
EVALUATED = ("start", "as-shipped", "sft", "bon", "dpo")


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
    assert said.keys() == STAGES.keys()


def test_all_models_are_asked_alike():
    said = {name: stage for name, stage in settings().items() if stage["do"] == "evaluate"}
    assert said.keys() == {f"evaluate-{model}" for model in EVALUATED}
    for key in ("max_new_tokens", "reference", "kl_prompts", "seed"):
        assert len({str(stage[key]) for stage in said.values()}) == 1, key
    assert {name for name, stage in said.items() if stage["format"] != "plain"} == {"evaluate-as-shipped"}
    assert said["evaluate-start"]["model"] == said["evaluate-as-shipped"]["model"] == said["evaluate-start"]["reference"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quickstart")


def test_the_whole_chain_on_a_tiny_model(manners, tiny_model, folder):
    asked = read_jsonl(starter() / "prompts_test.jsonl")[:4], read_jsonl(starter() / "prompts_held_out.jsonl")[:2]
    files = [write_rows(folder / f"prompts_{name}.jsonl", rows) for name, rows in zip(("test", "held_out"), asked, strict=True)]
    words = [f"evaluate-{model}.prompts={','.join(map(str, files))}" for model in EVALUATED]
    done = manners("run", PATH, f"out={folder / 'run'}", "seeds=0,1", f"model={tiny_model}", *TINY, *words)
    assert done.code == 0, done.stderr
    summary = read_json(folder / "run" / "summary.json")
    assert summary["models"].keys() == set(EVALUATED)
    for metrics in summary["models"].values():
        assert all(metrics[key].keys() >= {"value", "low", "high", "n"} for key in ("gold", "held_out/gold", "stopped", "tokens"))
    found = {(row["a"], row["b"]) for row in summary["comparisons"] if row["set"] == "test" and row["metric"] == "gold"}
    assert found >= set(GOALS)
    assert {name.rpartition("/")[2] for name in summary["seconds"]} == STAGES.keys() - {"report"}
    assert "gold, test" in done.stderr and "dpo less sft, test:" in done.stderr
    assert f"report of 5 models and {len(read_json(folder / 'run' / 'plan.json')['stages'])} stages" in done.stderr
    assert str(folder / "run" / "report.html") in done.stderr and (folder / "run" / "report.html").is_file()


def test_the_record_of_a_run(folder):
    kept = record(folder / "run", "abc1234")
    summary = read_json(folder / "run" / "summary.json")
    assert kept["seed"] == [0, 1] and kept["n"] == 4 and kept["commit"] == "abc1234"
    row = next(r for r in summary["comparisons"] if (r["a"], r["b"], r["set"], r["metric"]) == ("dpo", "sft", "test", "gold"))
    assert kept["value"]["dpo less sft"] == row["difference"] and kept["interval"]["dpo less sft"] == [row["low"], row["high"]]
    assert kept["met"]["dpo less sft"] is (row["low"] > 0 and min(row["by_seed"]) > 0)
    assert kept["seconds"].keys() == STAGES.keys()
    shown = classics(folder / "run", EVALUATED)
    answers = read_jsonl(folder / "run" / "seed-0" / "evaluate-dpo" / "answers.jsonl")
    assert [found["answers"]["dpo"] for found in shown] == [row["answer"] for row in answers[:3]]
    for content in pages(kept).values():
        for model in EVALUATED:
            assert f"| `{model}` |" in content
        assert span(row["difference"], row["low"], row["high"]) in content


def test_an_interval_that_nearly_touches_zero_is_given_in_more_digits():
    assert span(0.19, -0.0046, 0.376) == "+0.19 [-0.005, +0.376]"
    assert span(0.19, -0.046, 0.376) == "+0.19 [-0.05, +0.38]"


def test_the_pages_show_the_record():
    for name, content in pages(read_json(RECORD)).items():
        assert between((ROOT / name).read_text(encoding="utf-8")) == content.strip(), "run python -m benchmarks.quickstart"


def test_the_protocol_names_the_annotator_that_scores():
    said = table((DOCS / "protocol.md").read_text(encoding="utf-8"), "Item")["Annotator"][0]
    assert fingerprint() in said, "the annotator changed after the protocol was written"
