"""`manners eval safety`: shapes, planted subjects, the balanced score by hand, bad input."""

import json
from collections import Counter
from pathlib import Path

import pytest

from manners.core.errors import InputError
from manners.evaluate.safety import STARTER, SafetySettings, balanced, read_requests, safety, wilson
from tests.conftest import write_rows

NO, YES = "I'm sorry, but I can't help with that.", "Gladly: first take a pan, then an onion."


def planted(path: Path, answer) -> Path:
    """Recorded outputs to the starter set: what `answer` says to each request."""
    return write_rows(path, [{"prompt": r.prompt, "answer": text} for r in read_requests(STARTER) if (text := answer(r)) is not None])


def figures(report: dict, set: str = "safety") -> dict:
    return {found["name"]: found for found in report["results"] if found.get("set", "") == set}


def test_the_starter_set() -> None:
    requests = read_requests(STARTER)
    assert Counter(r.harmful for r in requests) == {True: 40, False: 40} and len({r.prompt for r in requests}) == 80
    assert len({r.category for r in requests}) == 8 and set(Counter((r.category, r.harmful) for r in requests).values()) == {5}


@pytest.mark.parametrize(
    ("answer", "harmful", "harmless", "score"),
    [
        (lambda r: NO if r.harmful else YES, 1.0, 0.0, 1.0),
        (lambda r: NO, 1.0, 1.0, 0.5),
        (lambda r: YES, 0.0, 0.0, 0.5),
    ],
    ids=["sees the difference", "refuses all", "refuses none"],
)
def test_planted_subjects(answer, harmful, harmless, score, tmp_path: Path) -> None:
    report = safety(SafetySettings(model=str(planted(tmp_path / "said.jsonl", answer)), out=str(tmp_path / "run")))
    found = figures(report)
    assert (found["refuses_harmful"]["value"], found["refuses_harmless"]["value"], found["balanced"]["value"]) == (harmful, harmless, score)
    assert found["refuses_harmful"]["direction"] == "higher" and found["refuses_harmless"]["direction"] == "lower"
    assert found["balanced"]["low"] < score + 1e-9 and found["balanced"]["high"] > found["balanced"]["low"], "40 are not certainty"
    theft = figures(report, "safety/theft")
    assert theft["refuses_harmful"]["n"] == 5 and theft["refuses_harmless"]["value"] == harmless
    rows = [json.loads(line) for line in (tmp_path / "run" / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 80 and rows[0]["answer"] in (NO, YES) and rows[0]["label"] in ("full_refusal", "compliance")


def test_what_was_not_answered_is_unscored(tmp_path: Path) -> None:
    said = planted(tmp_path / "said.jsonl", lambda r: None if r.category == "theft" else "" if r.category == "deceit" else NO)
    found = figures(safety(SafetySettings(model=str(said), out=str(tmp_path / "run"))))
    assert (found["refuses_harmful"]["n"], found["refuses_harmful"]["unscored"]) == (30, 10)
    assert (found["balanced"]["n"], found["balanced"]["unscored"]) == (60, 20)


def test_rows_take_both_kinds(tmp_path: Path) -> None:
    said = planted(tmp_path / "said.jsonl", lambda r: NO)
    found = figures(safety(SafetySettings(model=str(said), out=str(tmp_path / "run"), rows=10)))
    assert found["refuses_harmful"]["n"] == found["refuses_harmless"]["n"] == 5


def test_balanced_by_hand() -> None:
    share, low, high = wilson(14, 20)
    assert (share, low, high) == (0.7, pytest.approx(0.4810232238, abs=1e-5), pytest.approx(0.854524726, abs=1e-5)), (
        "the oracle has z = 1.96"
    )
    # p 14/20, q 6/20: by symmetry q's interval is 1 less p's, so both sides are hypot(.7 - .481, .7 - .481) and the other
    found = balanced([1] * 14 + [0] * 6, [1] * 6 + [0] * 14)
    assert found["value"] == pytest.approx(0.7) and found["n"] == 40
    assert found["low"] == pytest.approx((1 + 0.4 - 2**0.5 * (0.7 - 0.4810232238)) / 2, abs=1e-5)
    assert found["high"] == pytest.approx((1 + 0.4 + 2**0.5 * (0.854524726 - 0.7)) / 2, abs=1e-5)


SHAPES = {
    "xstest": ([{"prompt": "a", "type": "homonyms", "label": "safe"}, {"prompt": "b", "type": "c", "label": "unsafe"}], [True, False]),
    "do_not_answer": ([{"risk_area": "hate", "prompt": "a"}], [True]),
    "advbench": ([{"goal": "a", "target": "Sure"}], [True]),
    "jailbreakbench": ([{"Goal": "a", "Target": "Sure", "Behavior": "b", "Category": "c", "Source": "d"}], [True]),
    "llamas": ([{"set": "I-Alpaca", "instruction": "a"}, {"set": "Q-Harm", "instruction": "b"}], [True, False]),
    "ours": ([{"prompt": "a", "harmful": "false"}], [False]),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name: str, tmp_path: Path) -> None:
    rows, harmful = SHAPES[name]
    found = read_requests(str(write_rows(tmp_path / f"{name}.jsonl", rows)))
    assert [r.harmful for r in found] == harmful and {r.set for r in found} == {name}


def test_a_word_tells_of_files_that_do_not_say(tmp_path: Path) -> None:
    plain = str(write_rows(tmp_path / "plain.jsonl", [{"prompt": "a"}]))
    with pytest.raises(InputError, match="line 1 does not say whether its request is harmful; add a column harmful, or give harmful=true"):
        read_requests(plain)
    assert [r.harmful for r in read_requests(plain, False)] == [False]
    benign = str(write_rows(tmp_path / "benign.jsonl", SHAPES["jailbreakbench"][0]))
    assert [r.harmful for r in read_requests(benign, False)] == [False]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"ask": "a"}, "line 1 holds no request"),
        ({"prompt": " "}, "line 1 holds no request"),
        ({"prompt": "a", "harmful": "perhaps"}, "it must be true or false"),
        ({"prompt": "a", "type": "b", "label": "saef"}, "did you mean 'safe'?"),
    ],
)
def test_bad_input(row: dict, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        read_requests(str(write_rows(tmp_path / "rows.jsonl", [row])))
    assert said in str(error.value)


def test_a_tiny_model_end_to_end(tiny_model: Path, tmp_path: Path, manners) -> None:
    outcome = manners("eval", "safety", f"model={tiny_model}", f"out={tmp_path / 'run'}", "rows=4", "max_new_tokens=4", "--json")
    assert outcome.code == 0, outcome.stderr
    report = json.loads(outcome.stdout[-1])
    assert (
        report["evaluation"] == "safety" and figures(report)["refuses_harmful"]["n"] + figures(report)["refuses_harmful"]["unscored"] == 2
    )
