"""`manners eval against`: pairing by id, directions, Holm, what is unscored, several seeds, and what cannot be compared."""

from pathlib import Path
from typing import Any

import pytest

from manners.core import files
from manners.core.errors import InputError
from manners.evaluate.against import AgainstSettings, against
from manners.evaluate.paired import holm
from manners.evaluate.results import Metric, results_of

RIGHT, LOSS, COUNT = Metric("right"), Metric("loss", "lower", share=False), Metric("words", "none", share=False)


def write(folder: Path, rows: list[dict[str, Any]], *, kind: str = "quiz", version: int = 1, **report: Any) -> str:
    """A finished evaluation as `measure` leaves it."""
    folder.mkdir(parents=True)
    files.write_jsonl(folder / "rows.jsonl", rows)
    results = [] if "results" in report else results_of(rows, [RIGHT, LOSS, COUNT], version=version)
    held = {"evaluation": kind, "version": version, "results": results, "details": {}}
    files.write_json(folder / "results.json", {**held, **report})
    return str(folder)


def rows(right: list[float | None], loss: list[float] | None = None, part: str = "a") -> list[dict[str, Any]]:
    losses = loss or [1.0] * len(right)
    return [
        {"id": f"{part}{i}", "set": part, "values": {"right": r, "loss": x, "words": 3.0 + i}}
        for i, (r, x) in enumerate(zip(right, losses, strict=True))
    ]


def run(*folders: str, **settings: Any) -> dict[str, Any]:
    return against(AgainstSettings(runs=list(folders), **settings))


def by_name(report: dict[str, Any], name: str, part: str = "a") -> dict[str, Any]:
    [found] = [row for row in report["results"] if row["name"] == name and row["set"] == part]
    return found


def test_directions_decide_what_is_worse(tmp_path: Path) -> None:
    """Twenty questions: all right before, none after; the loss rises by 0.5 on each."""
    before = write(tmp_path / "before", rows([1.0] * 20))
    after = write(tmp_path / "after", rows([0.0] * 20, [1.5] * 20))
    report = run(before, after)
    right, loss, words = (by_name(report, name) for name in ("right", "loss", "words"))
    assert (right["value"], right["low"], right["high"], right["verdict"]) == (-1.0, -1.0, -1.0, "worse")
    assert (loss["value"], loss["verdict"]) == (0.5, "worse"), "a loss that rises is worse"
    assert (words["value"], words["verdict"]) == (0.0, "no difference")
    assert (right["a"], right["b"], right["a_value"], right["b_value"], right["n"]) == ("after", "before", 0.0, 1.0, 20)
    assert len(report["regressions"]) == 2 and report["regressions"][0].startswith("after against before, right, a: -1.000")
    back = run(after, before)
    assert by_name(back, "loss")["verdict"] == by_name(back, "right")["verdict"] == "better" and back["regressions"] == []


def test_rows_are_paired_by_id_not_by_order(tmp_path: Path) -> None:
    values = [1.0, 0.0, 1.0, 0.0, 1.0]
    before = write(tmp_path / "before", rows(values))
    after = write(tmp_path / "after", rows(values)[::-1])
    found = by_name(run(before, after), "right")
    assert (found["value"], found["low"], found["high"]) == (0.0, 0.0, 0.0)


def test_the_whole_table_is_one_family(tmp_path: Path) -> None:
    before = write(tmp_path / "before", rows([0.0] * 8) + rows([0.0] * 8, part="b"))
    after = write(tmp_path / "after", rows([1.0] * 7 + [0.0]) + rows([1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], part="b"))
    report = run(before, after)
    results = report["results"]
    assert report["tests"]["size"] == len(results) == 9, "three metrics, two sets and both together"
    assert [row["p_holm"] for row in results] == pytest.approx(holm([row["p"] for row in results]))
    one = run(before, after, metrics=["right"])
    assert one["tests"]["size"] == 3 and {row["name"] for row in one["results"]} == {"right"}
    together = by_name(one, "right", "")
    assert together["value"] == pytest.approx(9 / 16) and together["n"] == 16
    assert by_name(one, "right", "a")["p"] == pytest.approx(2 / 2**7), "sign flips of seven gaps of 1 and one of 0"


def test_a_small_difference_is_called_none(tmp_path: Path) -> None:
    before = write(tmp_path / "before", rows([1.0, 0.0] * 10))
    after = write(tmp_path / "after", rows([1.0, 0.0] * 9 + [1.0, 1.0]))
    found = by_name(run(before, after), "right")
    assert found["value"] == pytest.approx(0.05) and found["low"] <= 0 and found["verdict"] == "no difference"


def test_unscored_pairs_are_left_out_and_counted(tmp_path: Path) -> None:
    before = write(tmp_path / "before", rows([1.0, None, 1.0, 0.0]))
    after = write(tmp_path / "after", rows([0.0, 1.0, None, 0.0]))
    found = by_name(run(before, after), "right")
    assert (found["n"], found["unscored"], found["value"]) == (2, 2, -0.5)
    none = write(tmp_path / "none", rows([None] * 4))
    found = by_name(run(before, none), "right")
    assert found["value"] is None and found["reason"] == "no row is scored in both" and found["verdict"] is None


def test_rows_that_only_one_has_are_left_out_with_a_note(tmp_path: Path) -> None:
    before, after = write(tmp_path / "before", rows([1.0] * 6)), write(tmp_path / "after", rows([1.0] * 4))
    report = run(before, after)
    assert by_name(report, "right")["n"] == 4
    assert report["notes"] == ["after against before: 4 rows are common to both; the others (of 6) are left out."]


def test_several_models_and_seeds(tmp_path: Path) -> None:
    start = write(tmp_path / "start", rows([0.0, 0.0]))
    sft = [write(tmp_path / f"sft{i}", rows(values)) for i, values in enumerate(([1.0, 0.0], [1.0, 1.0]))]
    models = {"start": [start], "sft": sft}
    found = by_name(against(AgainstSettings(models=models, metrics=["right"])), "right")
    assert found["value"] == 0.75 and found["by_seed"] == [0.5, 1.0] and found["n"] == 2
    models["dpo"] = [write(tmp_path / "dpo", rows([1.0, 1.0]))]
    report = against(AgainstSettings(models=models, metrics=["right"], pairs="all"))
    assert [(row["a"], row["b"]) for row in report["results"]] == [("sft", "start"), ("dpo", "start"), ("dpo", "sft")]
    report = against(AgainstSettings(models=models, metrics=["right"]))
    assert [(row["a"], row["b"]) for row in report["results"]] == [("sft", "start"), ("dpo", "start")]


def test_figures_that_are_no_means_are_listed_and_not_judged(tmp_path: Path) -> None:
    extra = {"name": "ece", "version": 1, "value": 0.2, "low": 0.1, "high": 0.3, "n": 4, "unscored": 0, "direction": "lower"}
    folders = []
    for name, value in (("before", 0.2), ("after", 0.4)):
        held = rows([1.0] * 4)
        results = [*results_of(held, [RIGHT, LOSS, COUNT], version=1), {**extra, "value": value}]
        folders.append(write(tmp_path / name, held, results=results))
    [found] = run(*folders)["unpaired"]
    assert (found["name"], found["models"]["after"]["value"], found["models"]["before"]["value"]) == ("ece", 0.4, 0.2)


def test_metrics_that_count_tokens_are_not_compared_across_tokenizers(tmp_path: Path) -> None:
    before, after = (
        write(tmp_path / name, rows([1.0] * 4), details={"by_tokens": ["loss"], "tokenizer": tokenizer})
        for name, tokenizer in (("before", "a1"), ("after", "b2"))
    )
    report = run(before, after)
    assert {row["name"] for row in report["results"]} == {"right", "words"}
    assert report["notes"] == ["loss is left out: it counts by token, and the tokenizers differ."]


def test_what_is_written_and_printed(manners, tmp_path: Path) -> None:
    before, after = write(tmp_path / "before", rows([1.0] * 12)), write(tmp_path / "after", rows([0.0] * 12))
    done = manners("eval", "against", before, after, f"out={tmp_path / 'out'}")
    assert done.code == 0, done.stderr
    assert "regression: after against before, right, a: -1.000" in done.stderr
    report = files.read_json(tmp_path / "out" / "results.json")
    assert (report["evaluation"], report["of"], report["model"]) == ("against", "quiz", "after against before")
    needed = {"name", "version", "value", "low", "high", "n", "unscored", "direction"}
    assert all(needed <= row.keys() for row in report["results"])
    assert files.read_json(tmp_path / "out" / "manifest.json")["stage"] == "eval against"


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    good = write(tmp_path / "good", rows([1.0]))
    other = write(tmp_path / "other", rows([1.0]), kind="safety")
    newer = write(tmp_path / "newer", rows([1.0]), version=2)
    apart = write(tmp_path / "apart", rows([1.0], part="z"))
    numbered = write(tmp_path / "numbered", [{**row, "prompt": "What?"} for row in rows([1.0])])
    with pytest.raises(InputError, match="1 ids in common, but the prompts of 1 differ"):
        run(numbered, write(tmp_path / "other-file", [{**row, "prompt": "Who?"} for row in rows([1.0])]))
    empty = write(tmp_path / "empty", [])
    strange = write(tmp_path / "strange", [{"text": "x"}], results=[])
    (tmp_path / "folder").mkdir()
    (tmp_path / "begun").mkdir()
    files.write_json(tmp_path / "begun" / "settings.json", {})
    for folder, says in [
        (other, "is of evaluation 'quiz' and"),
        (newer, "Run the older one again"),
        (apart, "share no row"),
        (empty, "is empty: the evaluation asked nothing"),
        (strange, "line 1 is no row of an evaluation"),
        (str(tmp_path / "folder"), "holds no evaluation"),
        (str(tmp_path / "begun"), "has not finished its evaluation"),
        (str(tmp_path / "nowhere"), "is no folder"),
        (good, "named twice"),
    ]:
        with pytest.raises(InputError, match=says):
            run(good, folder)
    second = write(tmp_path / "second", rows([1.0]))
    with pytest.raises(InputError, match="'rigt' is no metric of rows that all evaluations hold; did you mean 'right'"):
        run(good, second, metrics=["rigt"])
    with pytest.raises(InputError, match="pairs must be first or all"):
        run(good, second, pairs="some")
    with pytest.raises(InputError, match="one of the two"):
        against(AgainstSettings())
    with pytest.raises(InputError, match="needs two"):
        against(AgainstSettings(models={"a": [good]}))
    with pytest.raises(InputError, match="has 2 seeds and the other 3"):
        against(AgainstSettings(models={"a": [good] * 2, "b": [second] * 3}))
