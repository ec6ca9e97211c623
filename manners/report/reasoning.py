"""Accuracy against tokens: what an evaluation of reasoning found, as one chart.

`manners eval reasoning` ends here, so that the chart stands in its folder (`accuracy.svg`) beside the figures that it is drawn from.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt

from manners.core import files
from manners.evaluate.reasoning import ReasoningSettings
from manners.evaluate.reasoning import reasoning as measured
from manners.report import charts
from manners.report.assets import style_sheet

__all__ = ["ReasoningSettings", "accuracy_against_tokens", "chart_rows", "reasoning"]

SHADES = tuple(f"var(--{name})" for name in ("accent", "second", "third", "model-as-shipped", "other-1", "other-2", "other-3"))
SHAPES = ("circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "triangle-right", "triangle-left")


def reasoning(settings: ReasoningSettings) -> dict[str, Any]:
    """Run the evaluation (`manners.evaluate.reasoning`) and draw its chart; returns what `results.json` holds."""
    found = measured(settings)
    picture = Path(settings.out) / "accuracy.svg"
    rows = chart_rows(found)
    if rows and not picture.exists():
        files.write_text(picture, charts.alone(accuracy_against_tokens(rows, charts.WIDE), style_sheet()))
    return found


def chart_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The points of a `results.json` that can be drawn: set, way, k or budget, tokens, value, low, high (accuracy in per cent)."""
    rows = []
    for point in results.get("details", {}).get("points", []):
        estimate = point["accuracy"]
        if point["tokens"] and estimate["value"] is not None:
            shares = {key: 100 * estimate[key] for key in ("value", "low", "high")}
            rows.append({"set": point.get("set", ""), "way": point["way"], "k": point["k"], "tokens": point["tokens"], **shares})
    return rows


def accuracy_against_tokens(rows: Sequence[Mapping[str, Any]], width: int, height: int = 260) -> str:
    """Accuracy against generated tokens a question on a logarithmic axis, with intervals; a panel a set. A way that has several points is
    a line; ways stand a few pixels aside of each other. Rows as `chart_rows` returns them."""
    ways, sets = list(dict.fromkeys(row["way"] for row in rows)), list(dict.fromkeys(row["set"] for row in rows))
    repeated = lambda values: [values[i % len(values)] for i in range(len(ways))]  # seven and eight: no two of 56 ways look the same
    colour = alt.Color(
        "way:N",
        sort=ways,
        scale=alt.Scale(domain=ways, range=repeated(SHADES)),
        legend=alt.Legend(columns=3 if width > charts.NARROW else 1, labelLimit=320),
    )
    shape = alt.Shape("way:N", sort=ways, scale=alt.Scale(domain=ways, range=repeated(SHAPES)))
    low, high = min(row["tokens"] for row in rows), max(row["tokens"] for row in rows)
    scale = alt.Scale(type="log", domain=[low / 1.2, high * 1.2], nice=False)
    x = alt.X("tokens:Q", title="generated tokens a question", scale=scale, axis=charts.ticks(width))
    y = lambda field: alt.Y(field, title="right, per cent", scale=alt.Scale(domainMin=0))
    panels = []
    for name in sets:
        layers: list[alt.Chart] = []
        for place, way in enumerate(ways):
            aside = 3 * (place - (len(ways) - 1) / 2)  # pixels: ways of equal cost do not hide each other's intervals
            base = alt.Chart(charts.data([dict(row) for row in rows if (row["set"], row["way"]) == (name, way)])).encode(x=x, color=colour)
            layers.append(base.mark_rule(strokeWidth=1.5, opacity=0.45, xOffset=aside).encode(y=y("low:Q"), y2="high:Q"))
            layers.append(base.mark_line(strokeWidth=1.5, xOffset=aside).encode(y=y("value:Q")))
            layers.append(base.mark_point(filled=True, size=60, opacity=1, xOffset=aside).encode(y=y("value:Q"), shape=shape))
        panels.append(alt.layer(*layers).properties(width=width, height=height, title=name))
    return charts.svg(alt.vconcat(*panels, spacing=20), "Accuracy against generated tokens a question, by way of answering")
