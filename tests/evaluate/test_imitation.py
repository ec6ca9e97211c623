"""`manners eval imitation`: style against accuracy, by hand; either outcome is told."""

import json
from pathlib import Path

import pytest

from manners.core.errors import InputError
from manners.evaluate.imitation import STYLE, ImitationSettings, imitation, style_of
from manners.feedback.annotator import WEIGHTS
from tests.conftest import write_rows

GOOD = dict.fromkeys(WEIGHTS, 1.0)


def style_folder(folder: Path, lengths: list[float]) -> str:
    folder.mkdir(parents=True)
    parts = [{**GOOD, "length": value, "answers": 0.1 * i} for i, value in enumerate(lengths)]
    rows = [{"set": "test", "id": str(i), "prompt": f"p{i}", "score": 1, "parts": part} for i, part in enumerate(parts)]
    write_rows(folder / "answers.jsonl", rows)
    (folder / "metrics.json").write_text("{}")
    return str(folder)


def facts_folder(folder: Path, right: list[float | None], evaluation: str = "honesty") -> str:
    folder.mkdir(parents=True)
    write_rows(folder / "rows.jsonl", [{"set": "known", "id": str(i), "prompt": "q", "values": {"right": v}} for i, v in enumerate(right)])
    (folder / "results.json").write_text(json.dumps({"evaluation": evaluation}))
    return str(folder)


def compared(tmp_path: Path, lengths: list[float], right: list[float | None]) -> dict:
    style = {"start": [style_folder(tmp_path / "s0", [0.25] * 20)], "all": [style_folder(tmp_path / "s1", lengths)]}
    facts = {"start": [facts_folder(tmp_path / "f0", [1.0, 0.0] * 10)], "all": [facts_folder(tmp_path / "f1", right)]}
    return imitation(ImitationSettings(style=style, facts=facts, out=str(tmp_path / "out")))


def test_the_style_score_by_hand():
    assert set(WEIGHTS) - set(STYLE) == {"answers", "refusal"}
    assert style_of({**GOOD, "answers": 0.0, "refusal": 0.05}) == 10.0
    assert style_of({**GOOD, "length": 0.25, "ends": 0.0}) == pytest.approx(10 * 0.25**0.3 * 0.01**0.2)


def test_style_rises_and_accuracy_does_not(tmp_path):
    found = compared(tmp_path, [1.0] * 20, [0.0, 1.0] * 10)
    style, right = found["differences"]
    assert style["difference"] == pytest.approx(10 - 10 * 0.25**0.3) and style["verdict"] == "higher"
    assert right["difference"] == 0 and right["low"] < 0 < right["high"] and right["verdict"] == "no difference" and right["n"] == 20
    assert found["told"] == {"all": "style rose; accuracy was not shown to rise"}
    assert json.loads((tmp_path / "out" / "imitation.json").read_text())["told"] == found["told"]


@pytest.mark.parametrize(
    ("lengths", "right", "told"),
    [
        ([1.0] * 20, [1.0] * 20, "style rose; accuracy rose (right)"),
        ([1.0] * 20, [0.0] * 20, "style rose; accuracy was not shown to rise; it fell in right"),
        ([0.25] * 20, [1.0, 0.0] * 10, "style was not shown to rise; accuracy was not shown to rise"),
    ],
)
def test_the_other_outcomes_are_told_too(lengths, right, told, tmp_path):
    assert compared(tmp_path, lengths, right)["told"]["all"] == told


def test_what_one_side_could_not_score_falls_out_of_both(tmp_path):
    found = compared(tmp_path, [1.0] * 20, [None] * 5 + [1.0] * 15)
    right = found["differences"][1]
    assert (right["n"], right["unscored"]) == (15, 5) and right["difference"] == pytest.approx(1 - 7 / 15)
    none = compared(tmp_path / "b", [1.0] * 20, [None] * 20)["differences"][1]
    assert none["difference"] is None and none["verdict"] is None and none["unscored"] == 20


def test_what_is_refused(tmp_path):
    style = {name: [style_folder(tmp_path / f"s{name}", [1.0, 0.5])] for name in ("start", "all")}
    facts = {name: [facts_folder(tmp_path / f"f{name}", [1.0, 0.0])] for name in ("start", "all")}
    other = {"start": facts["start"], "all": [facts_folder(tmp_path / "other", [1.0] * 3)]}
    wrong = {"start": facts["start"], "all": [facts_folder(tmp_path / "wrong", [1.0, 0.0], "sycophancy")]}
    seeds = {"start": facts["start"] * 2, "all": facts["all"] * 3}
    for given, said in (
        ({"facts": {"start": facts["start"]}}, "only one of them names all"),
        ({"against": "strat"}, "did you mean 'start'"),
        ({"facts": other}, "right of 'all' was measured on other questions"),
        ({"facts": wrong}, "was written by manners eval sycophancy"),
        ({"facts": {**facts, "all": [str(tmp_path)]}}, "holds no finished evaluation"),
        ({"facts": seeds}, "has 3 seeds and the model compared with 2"),
        ({"metrics": ["mc3"]}, "hold none of mc3"),
    ):
        with pytest.raises(InputError, match=said):
            imitation(ImitationSettings(**{"style": style, "facts": facts, "out": str(tmp_path / "out"), **given}))
