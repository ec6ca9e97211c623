"""The page's charts, drawn when the page is built: rows in, SVG text out, with the specification that it was drawn from.

The drawing is what a page without scripts shows, and what is printed; a page with scripts runs the specification in its place. Colours
are CSS variables of the page, so that one drawing serves light and dark. Every chart is drawn twice, for a wide and for a narrow screen,
because shrinking one would shrink its text.
"""

import re
from collections.abc import Sequence
from itertools import count
from typing import Any

import altair as alt
import numpy as np
import vl_convert

from manners.report.assets import VEGALITE

Row = dict[str, Any]

WIDE, NARROW = 760, 300
"""Width of the drawing area in pixels, about: what labels take comes on top."""
MODELS = ("start", "as-shipped", "sft", "bon", "dpo")
OTHERS = 4
"""Colours for models of other names."""
_numbers = count(1)


def colours(models: Sequence[str]) -> list[str]:
    """A CSS variable for each model; see style.css."""
    others = [model for model in models if model not in MODELS]
    return [f"var(--model-{m})" if m in MODELS else f"var(--other-{others.index(m) % OTHERS})" for m in models]


class Drawing(str):
    """An SVG as text, with the Vega-Lite specification that it was drawn from."""

    spec: dict[str, Any]


def svg(chart: Any, label: str) -> Drawing:
    """The chart as an SVG element that can stand beside others in a page."""
    ink, soft, line = "var(--ink)", "var(--soft)", "var(--line)"
    axis = {"labelColor": soft, "titleColor": soft, "gridColor": line, "domainColor": line, "tickColor": line}
    text = {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "labelLimit": 220}
    chart = (
        chart.configure(background="transparent", font="system-ui, sans-serif", aria=False)
        .configure_view(stroke=None)
        .configure_axis(**axis, **text, domain=False, ticks=False, labelPadding=6, titlePadding=10)
        .configure_legend(orient="top", title=None, labelColor=ink, labelFontSize=12, symbolStrokeWidth=2, symbolOpacity=1, columns=5)
        .configure_header(labelColor=ink, titleColor=soft, labelFontSize=12, labelFontWeight="normal")
        .configure_title(color=ink, fontSize=13, fontWeight="normal", anchor="start", offset=8)
        .configure_text(color=ink)
    )
    spec = chart.to_dict()
    text_of = vl_convert.vegalite_to_svg(spec, vl_version=VEGALITE)
    # Clip paths are called clip0, clip1, ... in every drawing; in one page each needs a name of its own.
    number = next(_numbers)
    text_of = re.sub(r'(id="|url\(#)(clip|gradient)', rf"\1chart{number}-\2", text_of)
    start = text_of.index("<svg")
    drawing = Drawing(text_of[start:].replace("<svg", f'<svg role="img" aria-label="{_attribute(label)}"', 1))
    drawing.spec = {key: value for key, value in spec.items() if key not in ("$schema", "usermeta")}
    return drawing


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")


def extent(labels: Sequence[str]) -> float:
    """Room in pixels for the labels of a vertical axis: what the browser's font takes is not known when the chart is drawn."""
    return 7.2 * max(map(len, labels), default=0) + 8


def ticks(width: int) -> alt.Axis:
    """So many ticks that their labels have room."""
    return alt.Axis(tickCount=max(3, width // 90))


def data(rows: Sequence[Row]) -> alt.Data:
    return alt.Data(values=list(rows))


def forest(rows: Sequence[Row], width: int) -> Drawing:
    """Differences with intervals. Rows: pair, set, difference, low, high."""
    pairs, sets = list(dict.fromkeys(row["pair"] for row in rows)), list(dict.fromkeys(row["set"] for row in rows))
    colour = alt.Color("set:N", scale=alt.Scale(domain=sets, range=["var(--accent)", "var(--second)", "var(--third)"]), sort=sets)
    base = alt.Chart(data(rows)).encode(
        y=alt.Y("pair:N", sort=pairs, title=None, axis=alt.Axis(minExtent=extent(pairs))),
        yOffset=alt.YOffset("set:N", sort=sets, scale=alt.Scale(paddingInner=0.6, paddingOuter=0.8)),
    )
    spans = base.mark_rule(strokeWidth=2.5, strokeCap="round").encode(
        x=alt.X("low:Q", title="difference in gold score", axis=ticks(width)), x2="high:Q", color=colour
    )
    shape = alt.Shape("set:N", scale=alt.Scale(domain=sets, range=["circle", "square", "diamond"]), sort=sets)
    points = base.mark_point(filled=True, size=70, opacity=1).encode(x="difference:Q", color=colour, shape=shape)
    nought = alt.Chart(data([{"nought": 0}])).mark_rule(color="var(--soft)", strokeDash=[4, 3]).encode(x="nought:Q")
    return svg(alt.layer(nought, spans, points).properties(width=width, height=40 * len(pairs)), "Differences in gold score with intervals")


def clusters(rows: Sequence[Row], models: Sequence[str], width: int) -> Drawing:
    """Gold score by cluster and model with intervals. Rows: cluster, model, value, low, high."""
    names = list(dict.fromkeys(row["cluster"] for row in rows))
    shades = alt.Scale(domain=list(models), range=colours(models))
    base = alt.Chart(data(rows)).encode(
        y=alt.Y("cluster:N", sort=names, title=None, axis=alt.Axis(grid=True, bandPosition=0, minExtent=extent(names))),
        yOffset=alt.YOffset("model:N", sort=list(models), scale=alt.Scale(paddingOuter=0.6)),
        color=alt.Color("model:N", scale=shades, sort=list(models), legend=alt.Legend(columns=5 if width > 300 else 3)),
    )
    spans = base.mark_rule(strokeWidth=1.5, opacity=0.55).encode(
        x=alt.X("low:Q", title="gold score", scale=alt.Scale(zero=False), axis=ticks(width)), x2="high:Q"
    )
    points = base.mark_point(filled=True, size=42, opacity=1).encode(x="value:Q")
    return svg(
        alt.layer(spans, points).properties(width=width, height=(10 * len(models) + 8) * len(names)), "Gold score by cluster and model"
    )


def distributions(scores: dict[str, list[float]], width: int, bins: int = 25) -> Drawing:
    """A histogram of gold scores for each model, one below the other, with its mean."""
    everything = [score for values in scores.values() for score in values]
    low, high = min([0.0, *everything]), max([10.0, *everything])
    rows = []
    for model, values in scores.items():
        shares, edges = np.histogram(values, bins=bins, range=(low, high))
        rows += [
            {"model": model, "left": float(a), "right": float(b), "share": n / len(values), "mean": float(np.mean(values))}
            for n, a, b in zip(shares.tolist(), edges[:-1], edges[1:], strict=True)
        ]
    models = list(scores)
    colour = alt.Color("model:N", scale=alt.Scale(domain=models, range=colours(models)), legend=None)
    base = alt.Chart().encode(color=colour)
    bars = base.mark_bar(opacity=0.75, binSpacing=1).encode(
        x=alt.X("left:Q", title="gold score", scale=alt.Scale(domain=[low, high], nice=False), axis=ticks(width)),
        x2="right:Q",
        y=alt.Y("share:Q", title=None, axis=None),
        y2=alt.datum(0),
    )
    means = alt.Chart().mark_rule(strokeWidth=2, color="var(--ink)").encode(x="max(mean):Q")
    row = alt.Row("model:N", sort=models, title=None, header=alt.Header(labelAngle=0, labelAlign="left", labelPadding=16))
    chart = alt.layer(bars, means, data=data(rows)).properties(width=width, height=52).facet(row=row, spacing=6)
    return svg(chart, "Distribution of gold scores by model")


def curve(rows: Sequence[Row], title: str, width: int, height: int = 150, reference: float | None = None) -> Any:
    """One panel of training curves: each step faintly, a moving mean boldly. Rows: step, value, mean, line, seed."""
    lines = list(dict.fromkeys(row["line"] for row in rows))
    legend = alt.Legend() if len(lines) > 1 else None
    colour = alt.Color("line:N", scale=alt.Scale(domain=lines, range=["var(--accent)", "var(--second)", "var(--third)"]), legend=legend)
    base = alt.Chart(data(rows)).encode(x=alt.X("step:Q", title="step", axis=alt.Axis(tickCount=4)), color=colour, detail="seed:N")
    y = lambda name: alt.Y(name, title=None, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=4))
    layers = [base.mark_line(opacity=0.25, strokeWidth=1).encode(y=y("value:Q")), base.mark_line(strokeWidth=2).encode(y=y("mean:Q"))]
    if reference is not None:
        layers.insert(0, alt.Chart(data([{"at": reference}])).mark_rule(color="var(--soft)", strokeDash=[4, 3]).encode(y="at:Q"))
    return alt.layer(*layers).properties(width=width, height=height, title=title)


def panels(charts: Sequence[Any], wide: bool, label: str) -> Drawing:
    """Panels with axes of their own: side by side on a wide screen, below each other on a narrow one."""
    joined = alt.hconcat(*charts, spacing=28) if wide else alt.vconcat(*charts, spacing=24)
    return svg(joined.resolve_scale(color="independent", x="independent", y="independent"), label)


def gold_against_kl(rows: Sequence[Row], width: int) -> Drawing:
    """Gold score over divergence, with both intervals. Rows: model, kl, kl_low, kl_high, gold, gold_low, gold_high."""
    models = [row["model"] for row in rows]
    scale = alt.Scale(domain=models, range=colours(models))
    base = alt.Chart(data(rows)).encode(color=alt.Color("model:N", scale=scale, legend=None))
    y = lambda name: alt.Y(name, title="gold score", scale=alt.Scale(zero=False, padding=14))
    x = lambda name: alt.X(name, title="KL from the start, nats a response", scale=alt.Scale(padding=18), axis=ticks(width))
    across = base.mark_rule(strokeWidth=1.5, opacity=0.6).encode(x=x("kl_low:Q"), x2="kl_high:Q", y=y("gold:Q"))
    upright = base.mark_rule(strokeWidth=1.5, opacity=0.6).encode(x=x("kl:Q"), y=y("gold_low:Q"), y2="gold_high:Q")
    points = base.mark_point(filled=True, size=90, opacity=1).encode(x=x("kl:Q"), y=y("gold:Q"))
    names = base.mark_text(align="left", dx=9, dy=-9, fontSize=13).encode(x=x("kl:Q"), y=y("gold:Q"), text="model:N")
    return svg(
        alt.layer(across, upright, points, names).properties(width=width, height=260), "Gold score against divergence from the start"
    )


LINES = ("var(--accent)", "var(--second)", "var(--third)", "var(--other-1)", "var(--model-as-shipped)", "var(--other-2)")
"""Colours of gold and proxy of best-of-n, then of each run's policies."""


def gold_against_proxy(panels_of: Sequence[Row], columns: int, width: int) -> Drawing:
    """Gold (solid, with the interval of its change) and proxy (dashed) along sqrt(KL), a panel a proxy, all on one scale of scores.

    A panel has `title`, `points` (d, score, low, high, line, at), `laws` (d, score, line) and `peak`, a list of none or one
    `{"value", "low", "high"}`: a line with a band.
    """
    everything = [row for panel in panels_of for row in panel["points"]]
    lines = list(dict.fromkeys(row["line"] for row in everything))
    ends = [row[key] for row in everything for key in ("low", "high")]
    room = 0.04 * (max(ends) - min(ends) or 1.0)
    shades = alt.Scale(domain=lines, range=[LINES[i % len(LINES)] for i in range(len(lines))])
    stroke = alt.Legend(symbolType="stroke", symbolSize=300)
    colour = alt.Color("line:N", scale=shades, sort=lines, legend=stroke)
    dash = alt.StrokeDash(
        "line:N", scale=alt.Scale(domain=lines, range=[[5, 3] if line.startswith("proxy") else [1, 0] for line in lines]), sort=lines
    )
    y = lambda name: alt.Y(
        name, title=None, scale=alt.Scale(domain=[min(ends) - room, max(ends) + room], nice=False), axis=alt.Axis(tickCount=5)
    )
    drawn = []
    for panel in panels_of:
        furthest = max(row["d"] for row in panel["points"])
        x = lambda name, furthest=furthest: alt.X(
            name, title="√KL from the start", scale=alt.Scale(domain=[0, furthest], nice=False), axis=alt.Axis(tickCount=4)
        )
        measured = alt.Chart(data(panel["points"])).encode(x=x("d:Q"), color=colour)
        layers: list[Any] = []
        for peak in panel["peak"]:
            low, high = (peak["value"] if peak[end] is None else min(max(peak[end], 0), furthest) for end in ("low", "high"))
            span = {"low": low, "high": furthest if peak["high"] is None else high, "d": peak["value"]}
            base = alt.Chart(data([span]))
            layers.append(base.mark_rect(color="var(--line)", opacity=0.5).encode(x=x("low:Q"), x2="high:Q"))
            layers.append(base.mark_rule(color="var(--soft)", strokeDash=[2, 3]).encode(x=x("d:Q")))
        layers.append(measured.mark_area(opacity=0.15).encode(y=y("low:Q"), y2="high:Q"))
        layers.append(measured.mark_line(strokeWidth=1.5).encode(y=y("score:Q"), strokeDash=dash))
        gold = [row for row in panel["points"] if row["line"].startswith("gold")]
        layers.append(alt.Chart(data(gold)).mark_point(filled=True, size=26, opacity=1).encode(x=x("d:Q"), y=y("score:Q"), color=colour))
        if panel["laws"]:
            law = alt.Chart(data(panel["laws"])).mark_line(strokeWidth=1, opacity=0.8, strokeDash=[1, 2])
            layers.append(law.encode(x=x("d:Q"), y=y("score:Q"), color=colour))
        drawn.append(alt.layer(*layers).properties(width=width, height=170, title=panel["title"]))
    return svg(
        alt.concat(*drawn, columns=columns, spacing=22).resolve_scale(color="shared", strokeDash="shared"),
        "Gold and proxy score along the square root of the KL",
    )


def alone(drawing: str, style: str) -> str:
    """A drawing as a file of its own, with the page's colours, light and dark: the beginning of its style sheet, `style`."""
    colours = style[: style.index("* { box-sizing")]
    start = drawing.index(">") + 1
    return f"{drawing[:start]}<style>{colours}</style>{drawing[start:]}"


def calibration(rows: Sequence[Row], width: int) -> Drawing:
    """How often a reward model was right over how sure it was; dots on the line are calibrated. Rows: model, confidence, accuracy, n."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    shades = alt.Scale(domain=models, range=[LINES[i % len(LINES)] for i in range(len(models))])
    legend = alt.Legend(symbolType="stroke", symbolSize=300) if len(models) > 1 else None
    side = alt.Scale(domain=[0.5, 1], nice=False, clamp=False)
    down = alt.Scale(domain=[min([0.4, *(row["accuracy"] for row in rows)]), 1], nice=False)
    x = lambda name: alt.X(name, title="how sure of the better answer", scale=side, axis=alt.Axis(format="%", tickCount=5))
    y = lambda name: alt.Y(name, title="how often right", scale=down, axis=alt.Axis(format="%", tickCount=5))
    even = alt.Chart(data([{"a": 0.5}, {"a": 1.0}])).mark_line(color="var(--soft)", strokeDash=[4, 3], strokeWidth=1)
    base = alt.Chart(data(rows)).encode(x=x("confidence:Q"), y=y("accuracy:Q"), color=alt.Color("model:N", scale=shades, legend=legend))
    dots = base.mark_point(filled=True, opacity=1).encode(size=alt.Size("n:Q", scale=alt.Scale(range=[30, 240]), legend=None))
    layers = alt.layer(even.encode(x=x("a:Q"), y=y("a:Q")), base.mark_line(strokeWidth=1.5, opacity=0.6), dots)
    return svg(layers.properties(width=width, height=220), "Accuracy over confidence of the reward models")


def overview(rows: Sequence[Row], width: int) -> Drawing:
    """Gold score of every model of several runs, a line a run. Rows: run, model, value, low, high."""
    runs, models = list(dict.fromkeys(row["run"] for row in rows)), list(dict.fromkeys(row["model"] for row in rows))
    shades = alt.Scale(domain=models, range=colours(models))
    base = alt.Chart(data(rows)).encode(
        y=alt.Y("run:N", sort=runs, title=None, axis=alt.Axis(minExtent=min(extent(runs), 160), labelLimit=160, grid=True)),
        yOffset=alt.YOffset("model:N", sort=models, scale=alt.Scale(paddingOuter=0.3)),
        color=alt.Color("model:N", scale=shades, sort=models, legend=alt.Legend(columns=6 if width > 300 else 3)),
    )
    x = alt.X("low:Q", title="gold score", scale=alt.Scale(zero=False), axis=ticks(width))
    spans = base.mark_rule(strokeWidth=1.5, opacity=0.5).encode(x=x, x2="high:Q")
    points = base.mark_point(filled=True, size=36, opacity=1).encode(x="value:Q")
    each = max(18, min(70, 7 * len(models))) if len(runs) <= 20 else 18
    return svg(alt.layer(spans, points).properties(width=width, height=each * len(runs)), "Gold score of every model, run by run")
