"""The battery of evaluations: both models are asked the same, and its whole chain on a tiny model that is set beside itself."""

import re
from typing import Any

from manners.core.files import read_json
from manners.recipe.read import read_recipe
from manners.recipe.stages import resolve
from tests.conftest import write_rows
from tests.markdown import DOCS, ROOT

PATH = ROOT / "recipes" / "evaluate.yaml"
STARTER = ROOT / "manners" / "data" / "starter"


def settings() -> dict[str, dict[str, Any]]:
    changes = ["model=aligned", "vars.base=before", "vars.format=chatml", "vars.base_format=plain"]
    return {stage.name: {"do": stage.do, **stage.settings.model_dump()} for stage in resolve(read_recipe(PATH, changes), PATH)}


def test_both_models_are_asked_the_same():
    said = settings()
    pairs = [name.removesuffix("-base") for name in said if name.endswith("-base")]
    assert len(pairs) >= 7
    for name in pairs:
        base, aligned = said[f"{name}-base"], said[f"{name}-model"]
        assert (base["model"], base["format"], aligned["model"], aligned["format"]) == ("before", "plain", "aligned", "chatml")
        differ = {key for key in base if base[key] != aligned[key]} - {"out", "model", "format", "reference", "reference_format"}
        assert not differ, f"{name}: {differ}"
    assert said["shift"]["base"] == said["attention"]["base"] == "before"
    assert all(said[name]["do"] == "eval against" for name in pairs if name in said)


def test_it_needs_nothing_but_what_ships():
    ships = {path.relative_to(STARTER).as_posix() for path in STARTER.rglob("*.jsonl")}
    assert set(re.findall(r'"starter:([^"]+)"', PATH.read_text(encoding="utf-8"))) <= ships
    assert "recipes/evaluate.yaml" in (DOCS / "evaluation.md").read_text(encoding="utf-8")


def test_the_whole_chain_on_a_tiny_model(manners, tiny_model, tmp_path):
    prompts = [{"id": f"p-{i}", "cluster": "sums", "prompt": f"Is {i} more?", "reference": "Yes.", "wants": {}} for i in range(4)]
    test, held = (write_rows(tmp_path / f"prompts_{name}.jsonl", prompts) for name in ("test", "held_out"))
    known = [{"question": f"Is {i} odd?", "choices": ["Yes", "No"], "answer": "AB"[i % 2]} for i in range(4)]
    questions = write_rows(tmp_path / "known.jsonl", known)
    words = [
        "vars.longest=6",
        f"vars.base={tiny_model}",
        "shift.rows=2",
        "attention.rows=2",
        "attention.length=64",
        f"shift.prompts=[{test}]",
    ]
    for name in ("base", "model"):
        words += [f"evaluate-{name}.prompts=[{test}, {held}]", f"references-{name}.data=[{test}, {held}]", "evaluate-model.kl_prompts=2"]
        words += [f"diversity-{name}.{word}" for word in (f"prompts=[{test}]", "samples=2")]
        words += [f"tax-{name}.{word}" for word in (f"mmlu=[{questions}]", "shots=1")]
        words += [f"{kind}-{name}.{word}" for kind in ("sycophancy", "honesty") for word in ("rows=2", "max_new_tokens=4")]
        words += [f"safety-{name}.{word}" for word in ("rows=2", "max_new_tokens=4")]
        words += [f"groups-{name}.{word}" for word in ("rows=1", "samples=2", "max_new_tokens=4")]
    out = tmp_path / "run"
    done = manners("run", PATH, f"out={out}", f"model={tiny_model}", *words)
    assert done.code == 0, done.stderr[-1200:]
    for name in ("references", "diversity", "sycophancy", "honesty", "safety", "tax"):
        report = read_json(out / name / "results.json")
        found = [row["verdict"] for row in report["results"] if row["verdict"] is not None]
        # drawn answers are the same for the same seed, greedy ones anyway: a model does not differ from itself
        assert set(found) <= {"no difference"} and not report["regressions"], name
        assert found or name == "safety", f"{name}: of four tokens only a refusal classifier may make nothing"
    gap = read_json(out / "gap" / "gap.json")
    assert gap["models"].keys() == {"base", "aligned"} and "per_input/self_bleu" in gap["models"]["aligned"]["diversity"]
    assert {row["verdict"] for row in gap["comparisons"]} == {"no difference"}
    assert manners("run", PATH, f"out={out}", f"model={tiny_model}", *words).code == 0
