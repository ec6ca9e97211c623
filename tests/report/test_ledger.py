"""The alignment ledger: its figures are those of the files, flags follow the paired test, and what was not measured is absent."""

import shutil
from pathlib import Path

import pytest

from manners.core.files import read_json, write_json, write_jsonl
from manners.report.ledger import COLUMNS, ledger, origins
from manners.report.page import render
from manners.report.read import read_run, read_runs
from tests.report import fabricate
from tests.report.test_page import Page


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run in which sft came from the start, and bon and dpo from sft."""
    folder = fabricate.run(tmp_path_factory.mktemp("runs") / "quickstart", tests=60, held_out=10)
    for model, began in (("sft", "smollm2"), ("bon", "sft"), ("dpo", "sft")):
        told = read_json(folder / model / "settings.json")
        told["settings"]["model"] = str(folder / began) if began == "sft" else began
        write_json(folder / model / "settings.json", told)
        manifest = read_json(folder / model / "manifest.json")
        write_json(folder / model / "manifest.json", {**manifest, "settings": told["settings"]})
    for model in fabricate.MEANS:
        for name in ("settings.json", "manifest.json"):
            place = folder / f"evaluate-{model}" / name
            told = read_json(place)
            told["settings"] |= {"model": str(folder / model) if model in fabricate.TRAINED else "smollm2"}
            told["settings"] |= {"format": "chatml" if model == "as-shipped" else "plain"}
            write_json(place, told)
    return folder


def evaluated(out: Path, model: str, kind: str, metric: str, values: list[float | None], direction: str = "higher") -> Path:
    """A finished evaluation by hand."""
    rows = [{"id": str(i), "set": "s", "prompt": f"p{i}", "values": {metric: value}} for i, value in enumerate(values)]
    known = [value for value in values if value is not None]
    mean = sum(known) / len(known) if known else None
    figure = {"name": metric, "version": 1, "value": mean, "low": mean, "high": mean, "n": len(known), "direction": direction}
    write_jsonl(out / "rows.jsonl", rows)
    results = [{**figure, "set": "s", "unscored": len(values) - len(known)}]
    write_json(
        out / "results.json", {"evaluation": kind, "version": 1, "model": model, "format": "plain", "results": results, "details": {}}
    )
    write_json(out / "settings.json", {"settings": {"model": model}})
    write_json(out / "manifest.json", {"stage": f"eval {kind}", "settings": {"model": model}})
    return out


def test_each_comes_from_what_it_was_trained_on(made):
    assert origins(read_run(made)) == {"sft": "start", "bon": "sft", "dpo": "sft"}, "as-shipped has the start's weights and another format"


def test_figures_are_those_of_the_summary(made):
    summary = read_json(made / "summary.json")
    lines = {line.model: line for line in ledger([read_run(made)])}
    assert list(lines) == list(fabricate.MEANS)
    for model, line in lines.items():
        for column in COLUMNS:
            if column.summary:
                held = summary["models"][model].get(column.summary) or {}
                cell = line.cells[column.key]
                assert (cell.value, cell.low, cell.high) == tuple(held.get(key) for key in ("value", "low", "high")), (model, column.key)
    (row,) = [r for r in summary["comparisons"] if {r["a"], r["b"]} == {"dpo", "sft"} and (r["set"], r["metric"]) == ("test", "gold")]
    cell = lines["dpo"].cells["quality"]
    sign = 1 if row["a"] == "dpo" else -1
    assert cell.difference == sign * row["difference"] and cell.p == row["p_holm"]
    assert lines["sft"].cells["quality"].flag == "better" and lines["start"].cells["quality"].flag == ""
    (win,) = [r for r in summary["win_rates"] if (r["a"], r["b"], r["set"]) == ("sft", "start", "test")]
    assert lines["sft"].cells["wins"].value == win["value"]


def test_what_was_not_measured_is_absent_and_never_nought(made):
    lines = {line.model: line for line in ledger([read_run(made)])}
    for line in lines.values():
        for key in ("tax", "sycophancy", "honesty"):
            assert line.cells[key].value is None and line.cells[key].flag == ""
    assert lines["as-shipped"].cells["kl"].value is None
    page = Page(render(read_run(made)))
    rows = page.text[page.text.index("The alignment ledger") :]
    assert rows.count("absent") >= 3 * len(lines)


def test_evaluations_join_the_model_they_are_of_and_are_tested_in_pairs(made, tmp_path):
    run = shutil.copytree(made, tmp_path / "runs" / "quickstart")
    sway = [0.0, 1.0] * 15
    evaluated(tmp_path / "syc-sft", str(made / "sft"), "sycophancy", "swayed", sway, "lower")
    evaluated(tmp_path / "syc-dpo", str(made / "dpo"), "sycophancy", "swayed", [value + 1.0 for value in sway], "lower")
    evaluated(tmp_path / "syc-bon", str(made / "bon"), "sycophancy", "swayed", [None] * 30, "lower")
    evaluated(tmp_path / "tax-sft", str(made / "sft"), "tax", "accuracy_sum", [1.0, 0.0] * 15)
    evaluated(tmp_path / "odd", "somebody/else", "honesty", "truthful", [1.0] * 4)
    (read, rest) = read_runs(
        [run, tmp_path / "syc-sft", tmp_path / "syc-dpo", tmp_path / "syc-bon", tmp_path / "tax-sft", tmp_path / "odd"]
    )
    lines = {line.model: line for line in ledger([read, rest])}
    assert lines["sft"].cells["sycophancy"].value == 0.5 and lines["dpo"].cells["sycophancy"].flag == "worse", "lower is better"
    assert lines["dpo"].cells["sycophancy"].difference == pytest.approx(1.0)
    assert lines["bon"].cells["sycophancy"].value is None, "asked, and nothing could be read"
    assert lines["sft"].cells["tax"].value == 0.5 and lines["dpo"].cells["tax"].value is None
    assert lines["else"].cells["honesty"].value == 1.0 and lines["else"].cells["quality"].value is None


def test_a_folder_of_evaluations_is_no_run(made, tmp_path):
    for model in ("sft", "dpo"):
        evaluated(tmp_path / "evals" / model, str(made / model), "honesty", "truthful", [1.0, 0.0, 1.0] * 10)
    (run,) = read_runs([made, tmp_path / "evals"])
    assert sorted(found.label for found in run.evaluations) == ["dpo", "sft"]
    lines = {line.model: line for line in ledger([run])}
    assert lines["dpo"].cells["honesty"].flag == "no difference"
    (alone,) = read_runs([tmp_path / "evals"])
    assert {line.model: line.cells["honesty"].value for line in ledger([alone])} == {
        "sft": pytest.approx(2 / 3),
        "dpo": pytest.approx(2 / 3),
    }
    assert "No answers were found." in Page(render(alone)).text


def test_refusals_are_those_of_own_safety_prompts_where_nothing_else_was_asked(made):
    lines = {line.model: line for line in ledger([read_run(made)])}
    run = read_run(made)
    asked = [row for row in run.answers["dpo"][0] if row["wants"].get("refuse") is True]
    assert lines["dpo"].cells["harmful"].value == pytest.approx(sum(row["refused"] for row in asked) / len(asked))
    assert lines["dpo"].cells["harmful"].of == "own prompts" and lines["dpo"].cells["harmful"].n == len(asked)


def test_a_flag_says_no_difference_where_the_test_does(made, tmp_path):
    folder = shutil.copytree(made, tmp_path / "run")
    summary = read_json(folder / "summary.json")
    for row in summary["comparisons"]:
        row |= {"difference": 1.0, "low": 0.5, "high": 1.5, "verdict": "no difference"}
    write_json(folder / "summary.json", summary)
    assert {line.cells["quality"].flag for line in ledger([read_run(folder)]) if line.origin} == {"no difference"}
