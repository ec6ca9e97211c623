"""`manners eval held-out`: figures by hand from fabricated answers, a planted leak, models that were asked different rows."""

from pathlib import Path

import pytest

from manners.core.errors import InputError
from manners.core.files import write_json, write_jsonl
from manners.data.splits import SplitSettings, split
from manners.evaluate.held_out import HeldOutSettings, held_out
from manners.evaluate.references import MEASURES
from manners.report.generalisation import clusters_chart
from tests.conftest import write_rows


@pytest.fixture
def folds(tmp_path: Path) -> Path:
    """Two clusters of twelve rows that share no run of words, six of each asked."""
    rows = [
        {"id": f"{c}{i}", "prompt": " ".join(f"{c}{i}{j}" for j in range(9)), "completion": "x", "cluster": c}
        for c in "ab"
        for i in range(12)
    ]
    split(SplitSettings(data=[str(write_rows(tmp_path / "rows.jsonl", rows))], out=str(tmp_path / "split"), asked=6))
    return tmp_path / "split"


def answers(folder: Path, scores: dict[str, list[float]]) -> str:
    """A finished evaluation with so many rows of each cluster, each measure the given score."""
    rows = [
        {"id": f"{cluster}{i}", "set": cluster, "task": "t", "unscored": "", "values": dict.fromkeys(MEASURES, value)}
        for cluster, values in scores.items()
        for i, value in enumerate(values)
    ]
    write_jsonl(folder / "rows.jsonl", rows)
    write_json(folder / "results.json", {"evaluation": "references", "version": 1})
    write_json(folder / "manifest.json", {})
    return str(folder)


def settings(folds: Path, **changes) -> HeldOutSettings:
    home = folds.parent
    held = {c: [answers(home / f"held-{c}", {c: [0.5] * 6, "b" if c == "a" else "a": [0.9] * 6})] for c in "ab"}
    start = answers(home / "start", {"a": [0.1] * 6, "b": [0.5] * 6})
    trained = answers(home / "all", {"a": [0.7] * 6, "b": [0.5] * 6})
    return HeldOutSettings(
        **{"folds": str(folds), "held": held, "start": [start], "trained": [trained], "out": str(home / "out"), **changes}
    )


def test_figures_by_hand(folds):
    report = held_out(settings(folds))
    value = {(found["name"], found.get("set", "")): found["value"] for found in report["results"]}
    assert value["start/rouge_l", "a"] == pytest.approx(0.1) and value["held out/rouge_l", "a"] == 0.5  # not its .9 on the other cluster
    assert value["held out/macro/rouge_l", ""] == 0.5 and value["start/macro/rouge_l", ""] == pytest.approx(0.3)
    rows = {(row["a"], row["b"], row["cluster"]): row for row in report["comparisons"] if row["metric"] == "token_f1"}
    assert len(rows) == 9
    assert rows["held out", "start", "a"]["difference"] == pytest.approx(0.4) and rows["held out", "start", "a"]["n"] == 6
    assert rows["held out", "start", "b"]["verdict"] == "no difference"
    assert rows["with", "held out", None]["difference"] == pytest.approx(0.1) and rows["with", "held out", None]["n"] == 12
    assert rows["held out", "start", None]["p_holm"] >= rows["held out", "start", None]["p"]
    assert report["folds"]["a"]["test"] == 6 and report["folds"]["a"]["train"] == 12
    assert clusters_chart(report, 400).startswith("<svg")


def test_the_model_of_all_clusters_may_be_left_out(folds):
    report = held_out(settings(folds, trained=None))
    assert {row["a"] for row in report["comparisons"]} == {"held out"} and list(report["seeds"]) == ["start", "held out"]


@pytest.mark.parametrize(("source", "said"), [("test", "has the prompt of a row that is asked"), ("cluster", "is of that cluster")])
def test_a_planted_leak_is_found(folds, source, said):
    from manners.core.files import read_jsonl

    home = folds / "a"
    leaked = read_jsonl(home / "test.jsonl")[0]
    leaked = {**leaked, "cluster": "b"} if source == "test" else {**read_jsonl(home / "train.jsonl")[0], "cluster": "a"}
    write_jsonl(home / "train.jsonl", [*read_jsonl(home / "train.jsonl"), leaked])
    with pytest.raises(InputError, match=f"fold of 'a' leaks: training row 13 {said}"):
        held_out(settings(folds))


def test_bad_input_is_named(folds):
    whole = settings(folds).model_dump()
    for changes, said in (
        ({"metric": "rogue_l"}, "did you mean 'rouge_l'"),
        ({"folds": str(folds.parent)}, "holds no split"),
        ({"held": {"c": whole["held"]["a"]}}, "has no such fold"),
        ({"start": [str(folds)]}, "holds no finished evaluation"),
        ({"held": {"a": whole["held"]["a"] * 2, "b": whole["held"]["b"]}}, "one folder a seed"),
        ({"start": [answers(folds.parent / "other", {"b": [1.0]})]}, "no row of the cluster 'a' is answered"),
    ):
        with pytest.raises(InputError, match=said):
            held_out(HeldOutSettings(**{**whole, **changes}))
