"""What a demonstration that a person wrote looks like."""

import json
from datetime import UTC, datetime

import pytest

from manners.core.errors import InputError
from manners.core.files import write_jsonl
from manners.core.records import Message
from manners.data.formats import read
from manners.data.people import demonstration, fault
from manners.data.stream import Faults, Reader, record

TURNS = [Message("system", "Be brief."), Message("user", "Name a river."), Message("assistant", "The Loire.")]


def test_a_row_has_one_shape_and_goes_through_the_readers(tmp_path):
    row = demonstration(
        TURNS, "ada", cluster="facts", license="CC0", when=datetime(2026, 3, 1, 12, tzinfo=UTC), seconds=41.5, language="en"
    )
    assert list(row) == ["messages", "source", "cluster", "license", "made_by"] and fault(json.loads(json.dumps(row))) is None
    assert row["made_by"] == {"kind": "person", "name": "ada", "when": "2026-03-01T12:00:00+00:00", "seconds": 41.5, "language": "en"}
    write_jsonl(tmp_path / "d.jsonl", [row])
    data = read(str(tmp_path / "d.jsonl"))
    assert (data.kind, data.shape, data.groups[0].responses[0].text) == ("demonstrations", "messages", "The Loire.")
    reader = Reader(str(tmp_path / "d.jsonl"), Faults())
    ((_, _, groups),) = list(reader)
    assert record(groups[0], reader.kind, {"made_by": "nobody"}) == row


@pytest.mark.parametrize(
    "change, said",
    [
        ({"messages": []}, "a question and an answer"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]}, "turn 2 is empty"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant"}]}, "turn 2 must be"),
        ({"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]}, "turns begin with the user's"),
        ({"made_by": "ada"}, "'made_by' must be {kind: person"),
        ({"made_by": {"kind": "person", "name": ""}}, "a name"),
        ({"made_by": {"kind": "person", "name": "a", "seconds": -1}}, "'seconds'"),
        ({"license": 5}, "'license' must be text"),
    ],
)
def test_what_is_none(change, said):
    assert said in str(fault({**demonstration(TURNS, "ada"), **change}))


def test_writing_one_that_is_none_is_refused():
    with pytest.raises(InputError, match=r"no demonstration: turns begin"):
        demonstration(TURNS[:2], "ada")
