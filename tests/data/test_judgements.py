"""Rows that say what is better: rankings, picks, ratings, classes."""

import json

import pytest

from manners.core.errors import InputError
from manners.data.formats import parse_map, read
from manners.data.shapes import CLASS_SHAPES, RATING_SHAPES
from tests.conftest import write_rows

THREE = ["red", "green", "blue"]


@pytest.fixture
def one(tmp_path):
    """Reads a file of one row."""
    return lambda row, **more: read(write_rows(tmp_path / "rows.jsonl", [row]), **more)


def said(data, name: str) -> list[float]:
    return [response.scores[name] for response in data.groups[0].responses]


@pytest.mark.parametrize("column", ["responses", "answers", "completions"])
@pytest.mark.parametrize("ranks", ["ranks", "rank", "ranking"])
def test_rankings(one, column, ranks):
    data = one({"prompt": "Name a colour.", column: THREE, ranks: [2, 1, 2]})
    assert (data.shape, data.kind) == ("ranking", "rankings") and said(data, "rank") == [2, 1, 2]
    assert [r.text for r in data.groups[0].responses] == THREE and data.groups[0].prompt.messages[0].content == "Name a colour."


def test_rankings_by_score_and_from_an_instruction(one):
    assert said(one({"prompt": "a", "responses": THREE, "scores": [0.5, 3, 1]}), "rank") == [-0.5, -3, -1]
    data = one({"instruction": "Name", "input": "a colour", "responses": THREE, "ranks": [1, 2, 3]})
    assert data.groups[0].prompt.messages[0].content == "Name\n\na colour"


def test_lists_written_as_json(one):
    data = one({"prompt": "a", "responses": json.dumps(THREE), "ranks": "[3, 1, 2]"})
    assert said(data, "rank") == [3, 1, 2]


@pytest.mark.parametrize("best", [1, "1", 1.0, "green", " green "])
def test_picks(one, best):
    data = one({"prompt": "a", "responses": THREE, "best": best})
    assert (data.shape, data.kind) == ("pick", "picks") and said(data, "best") == [0, 1, 0]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"responses": ["red"], "ranks": [1]}, "fewer than two answers"),
        ({"responses": THREE, "ranks": [1, 2]}, "'ranks' and 'responses' differ in number"),
        ({"responses": THREE, "ranks": [1, 1, 1]}, "all answers have the same rank"),
        ({"responses": THREE, "ranks": [1, "x", 2]}, "'ranks' is not a finite number: 'x'"),
        ({"responses": "red", "ranks": [1]}, "'responses' is not a list"),
        ({"responses": ["red", " "], "ranks": [1, 2]}, "empty answer"),
        ({"responses": THREE, "best": 3}, "'best' is none of the answers"),
        ({"responses": THREE, "best": 0.5}, "'best' is none of the answers"),
        ({"responses": THREE, "best": "grey"}, "'best' is none of the answers"),
        ({"responses": ["red", "red", "blue"], "best": "red"}, "'best' is the text of several answers"),
    ],
)
def test_rows_that_are_refused(tmp_path, row, why):
    good = {"ranks": [1, 2, 3]} if "ranks" in row else {"best": 0}
    data = read(write_rows(tmp_path / "rows.jsonl", [{"prompt": "a", "responses": THREE, **good}, {"prompt": "a", **row}]))
    assert data.refused == [(2, why)]


def test_ratings_are_read_by_who_asks_for_them(one):
    row = {"prompt": "a", "completion": "b", "aspects": {"helpfulness": 4, "safety": None, "honesty": "N/A", "wit": "2.5"}}
    data = one(row, first=RATING_SHAPES)
    assert (data.shape, data.kind) == ("rated", "ratings") and data.groups[0].responses[0].scores == {"helpfulness": 4.0, "wit": 2.5}
    assert one(row).kind == "demonstrations"
    with pytest.raises(InputError, match="no aspect is rated"):
        one({**row, "aspects": {"a": None}}, first=RATING_SHAPES)


def test_helpsteer_s_columns_are_aspects(one):
    grades = {"helpfulness": 3, "correctness": 4, "coherence": 4, "complexity": 1, "verbosity": 2}
    data = one({"prompt": "a", "response": "b", **grades}, first=RATING_SHAPES)
    assert (data.shape, data.kind) == ("helpsteer", "ratings") and data.groups[0].responses[0].scores == grades
    assert one({"prompt": "a", "response": "b", **grades}).kind == "demonstrations"


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"text": "So good", "label": "Positive"}, "So good"),
        ({"sentence": "So good", "label": "positive"}, "So good"),
        ({"prompt": "Review?", "completion": "So good", "label": "positive"}, "So good"),
        (
            {"messages": [{"role": "user", "content": "Review?"}, {"role": "assistant", "content": "So good"}], "label": "positive"},
            "So good",
        ),
    ],
)
def test_classes(one, row, text):
    data = one(row, first=CLASS_SHAPES)
    assert (data.shape, data.kind) == ("class", "classes")
    assert data.groups[0].responses[0].scores == {"class/positive": 1.0} and data.groups[0].responses[0].text == text


def test_classes_that_are_numbers_and_columns_of_other_names(one):
    assert one({"text": "a", "label": 2.0}, first=CLASS_SHAPES).groups[0].responses[0].scores == {"class/2": 1.0}
    data = one({"review": "a", "stars": 5}, first=CLASS_SHAPES, column_map=parse_map("text=review,label=stars"))
    assert data.groups[0].responses[0].scores == {"class/5": 1.0}
    with pytest.raises(InputError, match="no label"):
        one({"text": "a", "label": ""}, first=CLASS_SHAPES)


def test_without_being_asked_text_is_text(one):
    assert one({"text": "a", "label": 1}).kind == "text"
