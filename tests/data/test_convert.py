"""Conversion: every pair of shapes there and back, what is lost is named, and nothing is made up."""

import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from manners.core.files import read_json, read_jsonl
from manners.core.records import TEXT_ROLE, Group, Message, Prompt, Response
from manners.data.bodies import TARGETS
from manners.data.convert import FIRST, ConvertSettings, Writer, convert
from manners.data.kinds import as_kind, gathered
from manners.data.shapes import CLASS, CLASS_SHAPES, RATING_SHAPES, SHAPES, RowRefused
from manners.data.stream import Faults, Reader
from tests.conftest import write_rows

ODD = ("\n\nHuman: Hi\n\nAssistant: Yes", '[{"role": "user", "content": "x"}]', "1.0", "true", "N/A", "naïve 你好", "a|||b", "{x}", "null")
"""Contents that look like something else."""
EXTRA = {
    "license": "CC0",
    "made_by": {"kind": "person", "name": "Ada"},
    "id": "r",
    "nothing": None,
    "best": "x",
    "output": "y",
    "rank": [3],
}


def content(random: Random) -> str:
    if random.random() < 0.25:
        return random.choice(ODD)
    return " ".join("".join(random.choices("abcdefgh", k=random.randint(1, 6))) for _ in range(random.randint(1, 6)))


def turns(random: Random, count: int) -> list[Message]:
    """So many turns, the user and the assistant in turn, the user first; now and then a tool speaks in the user's place."""
    said = []
    for place in range(count):
        role = ("user", "assistant")[place % 2] if place < 2 or place % 2 or random.random() < 0.7 else "tool"
        said.append(Message(role, f"{content(random)} {place}"))
    return said


def made_up(kind: str, random: Random, simple: bool = False) -> Group:
    """A group of a kind; a simple one has one question without a system turn, answers of one turn and no white space at the ends."""
    asked = turns(random, 1)
    system = [Message("system", content(random))] if not simple and random.random() < 0.4 else []
    if not simple and kind != "demonstrations" and random.random() < 0.3:
        asked = turns(random, 3)
    prompt = Prompt((*system, *asked), random.choice(["", "there"]), random.choice(["", "sums"]))
    count = {"pairs": 2, "rankings": 3, "picks": 3, "prompts": 0}.get(kind, 1)
    size = lambda: 1 if simple or random.random() < 0.7 else 3
    responses = [Response((Message("assistant", f"{content(random)} #{i}"), *turns(random, size())[1:])) for i in range(count)]
    columns = dict(random.sample(sorted(EXTRA.items(), key=lambda x: x[0]), 0 if simple else 3))
    group = Group(prompt, responses, columns=columns)
    if kind == "pairs" and random.random() < 0.5:
        group.margin, group.probability = random.choice([0.5, 2.0]), random.choice([None, 0.75])
    if kind in ("text", "classes"):
        group.prompt, group.responses = Prompt((), prompt.source), [Response((Message(TEXT_ROLE, content(random) + " ."),))]
    scores = {"labelled": [{"label": 1.0}], "ratings": [{"helpfulness": 3.0, "wit": 1.5}], "classes": [{f"{CLASS}spam": 1.0}]}
    scores |= {"rankings": [{"rank": r} for r in (2.0, 1.0, 2.0)], "picks": [{"best": b} for b in (0.0, 1.0, 0.0)]}
    for response, score in zip(group.responses, scores.get(kind, [{}] * count), strict=True):
        response.scores = dict(score)
    return group


def same(a: Group, b: Group) -> bool:
    return (a.prompt, [(r.turns, r.scores) for r in a.responses], a.margin, a.probability, a.columns) == (
        b.prompt,
        [(r.turns, r.scores) for r in b.responses],
        b.margin,
        b.probability,
        b.columns,
    )


def read_back(path: Path, target: str) -> list[Group]:
    kind = TARGETS[target].kind
    coding = {"coding": "a/b"} if target == "compared" else None
    reader = Reader(str(path), Faults(), coding, first=FIRST.get(kind, ()))
    groups = [gathered(group, kind) for _, _, found in reader for group in found]
    assert reader.kind == kind and reader.converter.shape == TARGETS[target].shape and not reader.faults.counts
    return groups


@pytest.mark.parametrize("source", TARGETS)
def test_every_pair_of_shapes_there_and_back(source, tmp_path):
    """A row that goes from one shape to another without a loss comes back as it was, through files, whatever was on the way."""
    random = Random(f"rows of {source}")
    groups, rows = [], []
    for place in range(60):
        group = made_up(TARGETS[source].kind, random, simple=place < 10)
        try:
            row, lost = Writer(source).row(group)
        except RowRefused:
            continue
        if not lost:
            groups.append(group)
            rows.append(row)
    assert len(groups) >= 10 or source in ("helpsteer", "scored")
    held = Counter()
    for target in TARGETS:
        there, back = Writer(target), Writer(source)
        for group, row in zip(groups, rows, strict=True):
            try:
                made, lost = as_kind(group, TARGETS[source].kind, TARGETS[target].kind)
                written = [there.row(one) for one in made]
            except RowRefused:
                continue
            if lost or any(missing for _, missing in written):
                continue
            file = tmp_path / "there.jsonl"
            write_rows(file, [written[0][0]])
            (read,) = read_back(file, target)
            again, lost = as_kind(read, TARGETS[target].kind, TARGETS[source].kind)
            assert not lost and len(again) == 1, (target, row)
            home, lost = back.row(again[0])
            assert not lost and home == json.loads(json.dumps(row)), (target, row, home)
            assert same(again[0], group), (target, row)
            held[TARGETS[target].kind] += 1
    assert held[TARGETS[source].kind] >= 2 * min(len(groups), 5) or source in (
        "text",
        "prompts",
        "labelled",
        "classes",
        "scored",
        "helpsteer",
    )


def test_simple_rows_go_between_all_shapes_of_a_kind():
    random = Random(0)
    for kind in ("demonstrations", "pairs"):
        for _ in range(5):
            group = made_up(kind, random, simple=True)
            group.margin, group.probability = (2.0 if kind == "pairs" else None), None
            for name, target in TARGETS.items():
                if target.kind == kind:
                    assert Writer(name).row(group)[1] == [], name


# --- through the command ------------------------------------------------------------------------------------------------------


def converted(tmp_path: Path, rows: list[dict[str, Any]], to: str, **more: Any) -> list[dict[str, Any]]:
    data = write_rows(tmp_path / "rows.jsonl", rows)
    convert(ConvertSettings(data=str(data), to=to, out=str(tmp_path / "out.jsonl"), **more))
    return read_jsonl(tmp_path / "out.jsonl")


def test_a_row_in_every_plain_form(tmp_path):
    row = {"instruction": "Add", "input": "1 2", "output": "3", "source": "s", "cluster": "sums", "license": "CC0", "made_by": "us", "n": 1}
    kept = {"license": "CC0", "made_by": "us", "n": 1, "source": "s", "cluster": "sums"}
    forms = {
        "messages": {"messages": [{"role": "user", "content": "Add\n\n1 2"}, {"role": "assistant", "content": "3"}]},
        "sharegpt": {"conversations": [{"from": "human", "value": "Add\n\n1 2"}, {"from": "gpt", "value": "3"}]},
        "prompt-completion": {"prompt": "Add\n\n1 2", "completion": "3"},
        "instances": {"instruction": "Add\n\n1 2", "instances": [{"input": "", "output": "3"}]},
    }
    for to, form in forms.items():
        assert converted(tmp_path, [row], to) == [form | kept]
    report = read_json(tmp_path / "out.conversion.json")
    assert report["from"] == {"shape": "alpaca", "kind": "demonstrations"} and (report["rows"], report["written"], report["lost"]) == (
        1,
        1,
        {},
    )


def test_pairs_keep_their_numbers_where_the_shape_has_no_place_for_them(tmp_path):
    row = {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?", "margin": 1.5, "probability": 0.75}
    ranking = converted(tmp_path, [row], "rankings")
    assert ranking == [{"prompt": "Hi", "responses": ["Hello!", "What?"], "ranks": [1, 2], "margin": 1.5, "probability": 0.75}]
    assert converted(tmp_path, ranking, "pairs") == [row]


def test_a_column_that_would_make_another_shape_stands_apart_and_comes_back(tmp_path):
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "instruction": "x", "input": "y", "k": 2}
    (alpaca,) = converted(tmp_path, [row], "alpaca")
    assert alpaca == {"instruction": "a", "input": "", "output": "b", "k": 2, "columns": {"instruction": "x", "input": "y"}}
    (back,) = converted(tmp_path, [alpaca], "messages")
    assert back == {"messages": row["messages"], "k": 2, "columns": {"instruction": "x", "input": "y"}}


def test_text_that_looks_like_turns_stays_text(tmp_path):
    row = {"messages": [{"role": "user", "content": "\n\nHuman: Hi\n\nAssistant: Yes"}, {"role": "assistant", "content": "1"}]}
    (made,) = converted(tmp_path, [row], "prompt-completion")
    assert made["prompt"] == [row["messages"][0]]


LOSSES = [
    ({"prompt": "a", "chosen": "b", "rejected": "c"}, "messages", "answers that are not the best"),
    ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": 1}, "labelled", "which two answers were compared and the margin"),
    ({"prompt": "a", "completion": "b", "label": False}, "messages", "answers labelled bad"),
    ({"prompt": "a", "completion": "b"}, "prompts", "the answers"),
    ({"prompt": "a", "completion": "b"}, "text", "who says what"),
    ({"prompt": "a", "chosen": "b", "rejected": "c"}, "scored", "that there is no margin"),
    ({"prompt": "a ", "chosen": "b", "rejected": "c"}, "hh-pair", "white space at the ends of turns"),
    ({"instruction": "c", "output": "d", "history": [["a", "b"]]}, "messages", "which answers of the conversation are trained on"),
    ({"prompt": "a", "responses": ["b", "c", "d"], "ranks": [1, 2, 3]}, "picks", "the order of the answers behind the best"),
]


@pytest.mark.parametrize("row, to, lost", LOSSES, ids=[f"{to}: {lost}" for _, to, lost in LOSSES])
def test_a_loss_is_a_sentence_or_a_count(row, to, lost, manners, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", [row, row])
    out = tmp_path / "out.jsonl"
    told = manners("data", "convert", data, f"to={to}", f"out={out}")
    assert told.code == 2 and f"row 1: as {to} it would lose {lost};" in told.error and "lossy=true" in told.error
    assert not out.exists()
    told = manners("data", "convert", data, f"to={to}", f"out={out}", "lossy=true")
    if lost == "answers labelled bad":
        assert told.code == 2 and "no row can be written" in told.error
        return
    assert told.code == 0 and "lost in 2 rows, the first is 1" in " ".join(told.stdout)
    report = read_json(tmp_path / "out.conversion.json")
    assert {n["rows"] for n in report["lost"].values()} == {2} and len(read_jsonl(out)) == report["written"]


MADE_UP = [
    ({"prompt": "a", "completion": "b"}, "pairs", "demonstrations cannot become pairs: a row has one answer only"),
    ({"prompt": "a", "completion": "b"}, "labelled", "nobody said whether the answer is good or bad"),
    ({"text": "a"}, "messages", "text cannot become demonstrations: a text has no prompt"),
    ({"prompt": "a"}, "messages", "a prompt has no answer"),
    ({"prompt": "a", "responses": ["b", "c", "d"], "ranks": [1, 2, 3]}, "pairs", "use manners pairs"),
]


@pytest.mark.parametrize("row, to, why", MADE_UP, ids=[to for _, to, _ in MADE_UP])
def test_nothing_is_made_up(row, to, why, manners, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", [row])
    assert why in manners("data", "convert", data, f"to={to}", f"out={tmp_path / 'out.jsonl'}", "lossy=true").error


def test_bad_rows_are_named_and_the_rest_goes_on(manners, tmp_path):
    data = tmp_path / "rows.jsonl"
    good = json.dumps({"prompt": "a", "completion": "b"}).encode()
    numbers = b'{"prompt": "a", "completion": 5.5}'
    wrong = b'{"prompt": "a", "completion": {"x": 1}}'
    data.write_bytes(b"\n".join([good, b'{"prompt": "\xe9"}', b"{", b"[1]", good, numbers, wrong]))
    done = manners("data", "convert", data, "to=messages", f"out={tmp_path / 'out.jsonl'}")
    assert done.code == 0 and len(read_jsonl(tmp_path / "out.jsonl")) == 3
    assert [row["row"] for row in read_jsonl(tmp_path / "out.refused.jsonl")] == [2, 3, 4, 7]
    assert read_json(tmp_path / "out.conversion.json")["changed_in_reading"] == {"number in 'completion' read as text": 1}


def test_ratings_and_classes_are_read_by_who_asks(tmp_path):
    rated = {"prompt": "a", "completion": "b", "aspects": {"wit": 3, "tact": 1}}
    (made,) = converted(tmp_path, [rated], "messages", read="ratings")
    assert made["columns"] == {"aspects": {"wit": 3.0, "tact": 1.0}}
    assert converted(tmp_path, [made], "rated") == [rated]
    assert converted(tmp_path, [{"text": "a b", "label": "spam"}], "text", read="classes") == [
        {"text": "a b", "columns": {"label": "spam"}}
    ]
    assert converted(tmp_path, [{"text": "a b", "columns": {"label": "spam"}}], "classes") == [{"text": "a b", "label": "spam"}]


def test_the_shape_is_spelt_right(manners, pairs, tmp_path):
    assert "did you mean 'sharegpt'" in manners("data", "convert", pairs, "to=sharegtp", f"out={tmp_path / 'x.jsonl'}").error
    assert "out= is the file of rows" in manners("data", "convert", pairs, "to=hh-pair", f"out={pairs}").error


def test_every_shape_can_be_written():
    assert {target.shape for target in TARGETS.values()} == {shape.name for shape in (*SHAPES, *RATING_SHAPES, *CLASS_SHAPES)}
