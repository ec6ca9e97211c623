"""The chart of accuracy against tokens: what is drawn, and what cannot be."""

import pytest

from manners.report.reasoning import accuracy_against_tokens, chart_rows


def point(way: str, tokens: float | None, value: float | None, k: int = 1, set: str = "gsm8k") -> dict:
    return {"set": set, "way": way, "k": k, "tokens": tokens, "accuracy": {"value": value, "low": 0.1, "high": 0.6, "n": 9}}


POINTS = [point("direct", 8, 0.2), point("self-consistency", 90, 0.3), point("self-consistency", 180, 0.4, 2), point("x", None, 0.2)]


def test_rows_are_the_points_that_have_tokens():
    rows = chart_rows({"details": {"points": [*POINTS, point("y", 3, None)]}})
    assert [(r["way"], r["tokens"], r["value"]) for r in rows] == [
        ("direct", 8, 20.0),
        ("self-consistency", 90, 30.0),
        ("self-consistency", 180, 40.0),
    ]
    assert (rows[0]["low"], rows[0]["high"]) == pytest.approx((10.0, 60.0)) and chart_rows({}) == []


def test_every_point_is_drawn_with_its_interval():
    rows = chart_rows({"details": {"points": [*POINTS, point("direct", 8, 0.2, set="svamp")]}})
    for width in (760, 300):
        drawing = accuracy_against_tokens(rows, width)
        assert drawing.startswith("<svg role=") and drawing.count('aria-roledescription="point"') in (0, 4)
        for text in ("direct", "self-consistency", "gsm8k", "svamp", "right, per cent", "generated tokens a question"):
            assert text in drawing
        assert drawing.count('class="mark-symbol') >= 2 and drawing.count('class="mark-rule') >= 2
