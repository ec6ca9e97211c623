"""Charts of held-out clusters and of the gap between two sets, as SVG (see `charts`)."""

from collections.abc import Mapping
from typing import Any

import altair as alt

from manners.evaluate.gap import GAP, INSIDE, OUTSIDE
from manners.evaluate.held_out import HELD, START, WITH
from manners.evaluate.varied import DIRECTIONS, PER
from manners.report.charts import colours, data, extent, svg, ticks

SHADES = {START: "var(--soft)", HELD: "var(--accent)", WITH: "var(--second)"}


def gap_chart(found: Mapping[str, Any], width: int) -> str:
    """What `eval gap` found: score out of distribution over score in distribution, with both intervals; on the line there is no gap."""
    models = list(found["models"])
    estimates = {name: {figure: of[figure] for figure in (INSIDE, OUTSIDE)} for name, of in found["models"].items()}
    keys = (("", "value"), ("_low", "low"), ("_high", "high"))
    rows = [{"model": name, **{f + end: of[f][key] for f in of for end, key in keys}} for name, of in estimates.items()]
    ends = [row[f"{figure}_{end}"] for row in rows for figure in (INSIDE, OUTSIDE) for end in ("low", "high")]
    line = [{"a": min(ends), "b": min(ends)}, {"a": max(ends), "b": max(ends)}]
    metric, sets = found["metric"], found["sets"]
    scale = alt.Scale(zero=False, padding=12)
    x = lambda name: alt.X(name, title=f"{metric}, {sets[INSIDE]}", scale=scale, axis=ticks(width))
    y = lambda name: alt.Y(name, title=f"{metric}, {sets[OUTSIDE]}", scale=scale)
    shade = alt.Color("model:N", scale=alt.Scale(domain=models, range=colours(models)), legend=None)
    base = alt.Chart(data(rows)).encode(color=shade)
    even = alt.Chart(data(line)).mark_line(color="var(--soft)", strokeDash=[4, 3], strokeWidth=1).encode(x=x("a:Q"), y=y("b:Q"))
    across = base.mark_rule(strokeWidth=1.5, opacity=0.6).encode(x=x(f"{INSIDE}_low:Q"), x2=f"{INSIDE}_high:Q", y=y(f"{OUTSIDE}:Q"))
    upright = base.mark_rule(strokeWidth=1.5, opacity=0.6).encode(x=x(f"{INSIDE}:Q"), y=y(f"{OUTSIDE}_low:Q"), y2=f"{OUTSIDE}_high:Q")
    points = base.mark_point(filled=True, size=90, opacity=1).encode(x=x(f"{INSIDE}:Q"), y=y(f"{OUTSIDE}:Q"))
    names = base.mark_text(align="left", dx=9, dy=-9, fontSize=13).encode(x=x(f"{INSIDE}:Q"), y=y(f"{OUTSIDE}:Q"), text="model:N")
    layers = alt.layer(even, across, upright, points, names).properties(width=width, height=260)
    return svg(layers, f"{metric} out of distribution against in distribution, by model")


def diversity_chart(found: Mapping[str, Any], width: int) -> str:
    """The gap beside the diversity per input of the same models, one panel a measure; empty text if none was measured."""
    models = [name for name, of in found["models"].items() if of["diversity"]]
    panels = []
    for measure in DIRECTIONS:
        held = {name: found["models"][name]["diversity"].get(PER + measure) for name in models}
        rows = [{"model": n, "gap": found["models"][n][GAP]["value"], **v, **_ends(v)}
                for n, v in held.items() if v]  # fmt: skip
        if rows:
            panels.append(_beside(rows, measure, models, width))
    return svg(alt.vconcat(*panels, spacing=24), "Diversity per input and gap, by model") if panels else ""


def _ends(estimate: Mapping[str, Any]) -> dict[str, float]:
    """The interval; of an estimate without one a point."""
    return {end: estimate["value"] if estimate[end] is None else estimate[end] for end in ("low", "high")}


def _beside(rows: list[dict[str, Any]], measure: str, models: list[str], width: int) -> Any:
    shade = alt.Color("model:N", scale=alt.Scale(domain=models, range=colours(models)), legend=None)
    base = alt.Chart(data([{k: v for k, v in row.items() if k != "by_seed"} for row in rows])).encode(color=shade)
    x = alt.X("low:Q", title=f"{measure.replace('_', ' ')}, per input", scale=alt.Scale(zero=False, padding=18), axis=ticks(width))
    y = alt.Y("gap:Q", title="gap", scale=alt.Scale(zero=False, padding=12))
    spans = base.mark_rule(strokeWidth=1.5, opacity=0.6).encode(x=x, x2="high:Q", y=y)
    points = base.mark_point(filled=True, size=80, opacity=1).encode(x="value:Q", y=y)
    names = base.mark_text(align="left", dx=9, dy=-9, fontSize=13).encode(x="value:Q", y=y, text="model:N")
    return alt.layer(spans, points, names).properties(width=width, height=170)


def clusters_chart(report: Mapping[str, Any], width: int) -> str:
    """What `eval held-out` found: each cluster's score before training, trained without it, and trained with it, with intervals."""
    metric = report["metric"]
    rows = []
    for found in report["results"]:
        model, _, name = found["name"].partition("/")
        if name == metric and found.get("set"):
            rows.append({"cluster": found["set"], "model": model, **{key: found[key] for key in ("value", "low", "high")}})
    clusters, models = list(dict.fromkeys(row["cluster"] for row in rows)), list(dict.fromkeys(row["model"] for row in rows))
    base = alt.Chart(data(rows)).encode(
        y=alt.Y("cluster:N", sort=clusters, title=None, axis=alt.Axis(grid=True, bandPosition=0, minExtent=extent(clusters))),
        yOffset=alt.YOffset("model:N", sort=models, scale=alt.Scale(paddingOuter=0.6)),
        color=alt.Color("model:N", scale=alt.Scale(domain=models, range=[SHADES[m] for m in models]), sort=models),
    )
    spans = base.mark_rule(strokeWidth=1.5, opacity=0.6).encode(
        x=alt.X("low:Q", title=metric.replace("_", " "), axis=ticks(width)), x2="high:Q"
    )
    points = base.mark_point(filled=True, size=48, opacity=1).encode(x="value:Q")
    height = (12 * len(models) + 8) * len(clusters)
    return svg(alt.layer(spans, points).properties(width=width, height=height), "Score by cluster: start, held out, with")
