"""The frame of evaluations: subjects, rows, results, and a run folder that resumes."""

import json
from pathlib import Path
from typing import Any

import pytest

from manners.core.errors import InputError
from manners.core.records import Group, Prompt, Response
from manners.evaluate.measurement import Measured, MeasureSettings, measure, spaced
from manners.evaluate.results import Metric, results_of
from manners.evaluate.subject import LocalSubject, RecordedSubject, open_subject
from manners.model.draw import Sampling
from tests.conftest import write_rows

GREEDY = Sampling(temperature=0.0, max_new_tokens=4)


def test_null_is_unscored_and_never_a_zero() -> None:
    rows = [{"set": "a", "values": {"right": value}} for value in (1, 1, None)] + [{"set": "b", "values": {"right": 0}}]
    a, b, over_all = results_of(rows, [Metric("right")], version=3)
    assert (a["value"], a["n"], a["unscored"], a["set"], a["version"]) == (1.0, 2, 1, "a", 3)
    assert (b["value"], b["n"], b["unscored"]) == (0.0, 1, 0)
    assert over_all["value"] == pytest.approx(2 / 3) and over_all["n"] == 3 and "set" not in over_all
    assert a["low"] is not None and 0 < a["low"] < 1, "two of two is not certainty"


def test_nothing_scored_says_why() -> None:
    [found] = results_of([{"values": {"right": None}}], [Metric("right")], version=1)
    assert found["value"] is None and found["unscored"] == 1 and found.get("reason") == "no row could be scored"


def test_spaced_rows_are_the_same_each_time_and_cover_the_file() -> None:
    assert spaced(range(10), 5) == [0, 2, 4, 6, 8]
    assert spaced(range(3), 5) == [0, 1, 2] == spaced(range(3), None)


def test_recorded_outputs_answer_what_they_hold(tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "said.jsonl", [{"prompt": "One?", "answer": "1"}, {"question": "Two?", "responses": [{"text": "2"}, "two"]}]
    )
    subject = open_subject(str(path))
    assert isinstance(subject, RecordedSubject)
    one, two, three = subject.answer([Prompt.user("One?"), Prompt.user("Two?"), Prompt.user("Three?")], GREEDY, samples=2)
    assert [r.text for r in one.responses] == ["1"] and [r.text for r in two.responses] == ["2", "two"] and three.responses == []
    with pytest.raises(InputError, match="none of the 1 prompts"):
        subject.answer([Prompt.user("Four?")], GREEDY)
    with pytest.raises(InputError, match="needs log-probabilities"):
        subject.options([])


def test_recorded_outputs_of_another_schema_are_named(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "said.jsonl", [{"prompt": "One?", "answer": "1"}, {"ask": "Two?"}])
    with pytest.raises(InputError, match="line 2: recorded outputs need"):
        open_subject(str(path))


def test_options_are_scored_without_the_stop_token(tiny_model: Path) -> None:
    subject = open_subject(str(tiny_model), "plain")
    assert isinstance(subject, LocalSubject) and subject.fmt is not None
    group = Group(Prompt.user("Which?"), [Response.answer("left"), Response.answer("no")])
    [[left, no]] = subject.options([group])
    whole = subject.fmt.encode(group)
    assert (left.bytes, no.bytes) == (4, 2)
    assert (left.tokens, no.tokens) == tuple(r.targets - 1 for r in whole.responses), "one target less: the stop token"
    [[with_stop, _]] = subject.score([whole])
    assert with_stop[0] < left.logp < 0


def test_a_finished_measurement_is_returned_as_it_is(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "said.jsonl", [{"prompt": "One?", "answer": "1"}])
    asked: list[str] = []

    def ask(settings: MeasureSettings, subject: Any) -> Measured:
        asked.append(settings.model)
        return Measured([{"id": "1", "values": {"right": 1}}], notes=["a remark"], details={"curve": [1, 2]})

    settings = MeasureSettings(model=str(path), out=str(tmp_path / "run"))
    first = measure(settings, "counting", 1, [Metric("right")], ask)
    assert measure(settings, "counting", 1, [Metric("right")], ask) == json.loads(json.dumps(first)) and len(asked) == 1
    assert first["results"][0]["value"] == 1.0 and first["details"] == {"curve": [1, 2]}
    write_rows(path, [{"prompt": "One?", "answer": "2"}])
    with pytest.raises(InputError, match="was changed"):
        measure(settings, "counting", 1, [Metric("right")], ask)
