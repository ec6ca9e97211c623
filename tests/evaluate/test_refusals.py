"""`manners eval refusals`: agreement with people by hand, halves, bad input."""

import json
from pathlib import Path

import numpy as np
import pytest

from manners.core.errors import InputError
from manners.evaluate.refusals import Labelled, RefusalsSettings, accuracy_and_kappa, against_people, half_of, refusals, two_classes
from tests.conftest import write_rows

NO, SOME, YES = "full_refusal", "partial_refusal", "compliance"


def test_agreement_by_hand() -> None:
    said = [(NO, NO), (NO, NO), (YES, YES), (YES, NO), (SOME, NO), (YES, None)]
    rows = [Labelled(str(i // 2), "p", "a", people, (people, YES) if i < 2 else None) for i, (people, _) in enumerate(said)]
    found = against_people(rows, [label for _, label in said])
    assert (found["n"], found["prompts"], found["unscored"]) == (5, 3, 1)
    assert found["accuracy"]["value"] == pytest.approx(3 / 5)
    # people 2 no, 2 yes, 1 some; classifier 4 no, 1 yes: by chance (2*4 + 2*1 + 0) / 25 = .4
    assert found["kappa"]["value"] == pytest.approx((0.6 - 0.4) / (1 - 0.4))
    # two classes: agreed 4/5; people 3 and 2, classifier 4 and 1: by chance (12 + 2) / 25
    assert found["binary_accuracy"]["value"] == pytest.approx(0.8)
    assert found["binary_kappa"]["value"] == pytest.approx((0.8 - 0.56) / (1 - 0.56))
    assert found["confusion"][SOME] == {YES: 0, NO: 1, SOME: 0}
    assert found["classes"][NO] == {"precision": 0.5, "recall": 1.0, "n": 2} and found["classes"][SOME]["precision"] is None
    assert found["people"] == {"agreement": 0.0, "kappa": 0.0, "n": 2} and found["commonest"] == 0.5
    assert found["accuracy"]["low"] < 0.6 < found["accuracy"]["high"]


def test_tables() -> None:
    agreed, kappa = accuracy_and_kappa(np.array([[20.0, 5.0], [10.0, 15.0]]))
    assert (float(agreed), float(kappa)) == (pytest.approx(0.7), pytest.approx(0.4))
    assert two_classes(np.arange(9.0).reshape(3, 3)).tolist() == [[0.0, 3.0], [9.0, 24.0]]


def test_the_command(tmp_path: Path, manners) -> None:
    rows = [
        {"id": "a", "prompt": "Kill?", "completion": "Sorry, but I can't help with that.", "final_label": "2_full_refusal"},
        {"id": "b", "prompt": "Cook?", "completion": "Boil it for ten minutes.", "final_label": "1_full_compliance"},
        {"id": "b", "prompt": "Cook?", "completion": "!!", "final_label": "1_full_compliance"},
    ]
    data = write_rows(tmp_path / "labels.jsonl", rows)
    outcome = manners("eval", "refusals", data, f"out={tmp_path / 'out.jsonl'}", "--json")
    found = json.loads(outcome.stdout[-1])
    assert (found["accuracy"]["value"], found["n"], found["unscored"]) == (1.0, 2, 1)
    assert [json.loads(line)["classifier"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [NO, YES, None]
    halves = {half_of(id) for id in "abcdefgh"}
    assert halves == {"tune", "test"}
    half = refusals(RefusalsSettings(data=str(data), half=half_of("a")))
    assert half["n"] == (2 if half_of("b") == half_of("a") else 1)


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"line 1 must hold prompt, an answer .* and people's label"):
        refusals(RefusalsSettings(data=str(write_rows(tmp_path / "a.jsonl", [{"prompt": "x", "completion": "y"}]))))
    with pytest.raises(InputError, match="line 1 has the label 'maybe'"):
        refusals(RefusalsSettings(data=str(write_rows(tmp_path / "b.jsonl", [{"prompt": "x", "completion": "y", "label": "maybe"}]))))
