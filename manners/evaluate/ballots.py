"""Rows of one vote each, as `manners annotate` writes them -> rows of an item with a column for every annotator, for `eval agreement`.

A vote between two answers stands in its row as it was shown, so the same comparison may stand there in both orders. Here the answers get
one order (by their text) and the labels with them, and `NAME_first` keeps which of them was shown first to whom. Ratings become an item for
each answer and aspect. A second vote of the same person on the same item opens a second row of it: that is how people are compared with
themselves.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Row = dict[str, Any]
CODING = "a/b/tie"
FIRST = "_first"
"""After an annotator's name: the column that says which answer was shown to them first, 1 or 2."""


def is_ballots(row: Mapping[str, Any]) -> bool:
    """Whether a row is one person's vote."""
    return isinstance(row.get("annotator"), str) and any(name in row for name in ("label", "best", "ratings", "aspects"))


def gathered(rows: Sequence[Row]) -> tuple[list[str], list[Row]]:
    """The annotators, and a row for each item with their labels in columns of their names; `NAME_seconds` and `NAME_first` beside."""
    people: dict[str, None] = {}
    found: dict[tuple[str, int], Row] = {}
    times: Counter[tuple[str, str]] = Counter()
    for row in rows:
        name = str(row["annotator"])
        people.setdefault(name)
        for key, item, label in _labels(row):
            times[name, key] += 1
            here = found.setdefault((key, times[name, key]), {**item, "item": key})
            here[name] = label
            if "first" in item:
                here[f"{name}{FIRST}"] = item["first"]
            if row.get("seconds") is not None:
                here[f"{name}_seconds"] = row["seconds"]
    for item in found.values():
        item.pop("first", None)
    return list(people), list(found.values())


def _labels(row: Row) -> Iterator[tuple[str, Row, Any]]:
    """(what names the item, its columns, the label), one or several of a row."""
    prompt = row.get("prompt")
    if "a" in row and "b" in row:
        turned = str(row["a"]) > str(row["b"])
        one, two = (row["b"], row["a"]) if turned else (row["a"], row["b"])
        label = {"a": "b", "b": "a"}.get(row["label"], row["label"]) if turned else row["label"]
        item = {"prompt": prompt, "response_a": one, "response_b": two, "first": 2 if turned else 1}
        yield _key(prompt, one, two), item, label
        return
    if row.get("aspects") is not None or row.get("ratings") is not None:
        rated = [(row.get("completion"), row["aspects"])] if row.get("aspects") else zip(row["responses"], row["ratings"], strict=True)
        for answer, ratings in rated:
            given = ratings if isinstance(ratings, Mapping) else {"rating": ratings}
            for aspect, value in given.items():
                yield _key(prompt, answer, aspect), {"prompt": prompt, "aspect": aspect}, value
        return
    answers = row.get("responses", row.get("completion"))
    yield _key(prompt, answers), {"prompt": prompt}, row["best"] if "best" in row else row["label"]


def _key(*parts: Any) -> str:
    return json.dumps(parts, sort_keys=True, ensure_ascii=False)
