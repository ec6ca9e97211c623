"""Charts of `manners eval attention` and `manners eval shift`: what their `results.json` holds in, SVG text out, by name.

    for name, drawing in attention_charts(results, WIDE).items(): ...

Each is drawn for a width, as those of `charts.py` are, and uses the page's colours.
"""

from collections.abc import Sequence
from typing import Any

import altair as alt

from manners.report.charts import Row, data, svg, ticks

Results = dict[str, Any]

_BASE, _MODEL, _CONTROL = "var(--soft)", "var(--accent)", "var(--second)"
_NAMES = {"base": "before", "model": "after", "control": "plain text"}
_HEIGHT = 180
_MODULES = 12
"""Modules drawn, the most changed ones."""


def attention_charts(results: Results, width: int) -> dict[str, str]:
    """`decay/SET`: attention over distance, log by log. `layers/SET`: gamma by layer. `change/SET`: with a base,
    its change with intervals, over a band of +-margin."""
    details = results.get("details") or {}
    if details.get("protocol") == "tafagent":
        curves = {name: {who: model["curve"] for who, model in held["models"].items()} for name, held in details["sets"].items()}
        return {f"decay/{name}": _decay(models, name, width) for name, models in curves.items()}
    found = {}
    for name, held in details.get("sets", {}).items():
        models = held["models"]
        found[f"decay/{name}"] = _decay({who: model["profile"] for who, model in models.items()}, name, width)
        found[f"layers/{name}"] = _gammas({who: model["layers"] for who, model in models.items()}, name, width)
        if "difference" in held:
            found[f"change/{name}"] = _changes(held, name, width)
    return found


def shift_charts(results: Results, width: int) -> dict[str, str]:
    """`positions`: KL a token along the answer. `choices`: shares of unshifted, marginal and shifted tokens. `update`: the update's
    relative norm by layer. `modules`: the same by layer and module."""
    details = results.get("details") or {}
    found = {}
    sets = details.get("sets", {})
    if any(held["positions"] for held in sets.values()):
        found["positions"] = _positions({name: held["positions"] for name, held in sets.items()}, width)
    if shares := [r for r in results.get("results", []) if r["name"] in ("unshifted", "marginal", "shifted") and r["value"] is not None]:
        found["choices"] = _choices(shares, width)
    if (update := details.get("update")) and update["layers"]:
        found["update"] = _update(update["layers"], width)
        found["modules"] = _modules(update["modules"], width)
    return found


def _who(names: Sequence[str]) -> alt.Color:
    """A colour for each of before, after and the control, as far as they are there."""
    shades = {"base": _BASE, "model": _MODEL, "control": _CONTROL}
    scale = alt.Scale(domain=[_NAMES[n] for n in names], range=[shades[n] for n in names])
    return alt.Color("who:N", scale=scale, legend=alt.Legend(symbolType="stroke", symbolSize=300) if len(names) > 1 else None)


def _in_order(names: Sequence[str]) -> list[str]:
    return [name for name in _NAMES if name in names]


def _decay(curves: dict[str, list[Row]], name: str, width: int) -> str:
    names = _in_order(list(curves))
    rows = [{**point, "who": _NAMES[who]} for who in names for point in curves[who] if point["attention"] > 0]
    log = alt.Scale(type="log", nice=False)
    x = alt.X("distance:Q", title="distance in tokens", scale=log, axis=alt.Axis(tickCount=4, grid=False))
    y = alt.Y("attention:Q", title="attention", scale=log, axis=alt.Axis(tickCount=4, format=".0e"))
    chart = alt.Chart(data(rows)).mark_line(strokeWidth=2).encode(x=x, y=y, color=_who(names), detail="who:N")
    return svg(chart.properties(width=width, height=_HEIGHT, title=name), f"Attention against distance on {name} tokens")


def _gammas(layers: dict[str, list[Row]], name: str, width: int) -> str:
    names = _in_order(list(layers))
    rows = [{**row, "who": _NAMES[who]} for who in names for row in layers[who] if row["gamma"] is not None]
    y = alt.Y("gamma:Q", title="gamma", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5))
    base = alt.Chart(data(rows)).encode(x=_layer(width), y=y, color=_who(names))
    chart = alt.layer(base.mark_line(strokeWidth=1.5), base.mark_point(filled=True, size=26, opacity=1))
    return svg(chart.properties(width=width, height=_HEIGHT, title=name), f"Exponent of attention decay by layer on {name} tokens")


def _changes(held: Row, name: str, width: int) -> str:
    """Change of gamma by layer with intervals, over a band of +-margin."""
    rows = [{"layer": r["layer"], **r["gamma"]} for r in held["difference"]["layers"] if r["gamma"]["value"] is not None]
    margin = held["equivalence"]["margin"]
    y = lambda field: alt.Y(field, title="change of gamma", axis=alt.Axis(tickCount=5))
    band = alt.Chart(data([{"low": -margin, "high": margin}])).mark_rect(color="var(--line)", opacity=0.5)
    base = alt.Chart(data(rows)).encode(x=_layer(width))
    spans = alt.Chart(data([r for r in rows if r["low"] is not None])).mark_rule(strokeWidth=1.5, color=_MODEL, opacity=0.6)
    points = base.mark_point(filled=True, size=32, opacity=1, color=_MODEL).encode(y=y("value:Q"))
    chart = alt.layer(band.encode(y=y("low:Q"), y2="high:Q"), spans.encode(x=_layer(width), y=y("low:Q"), y2="high:Q"), points)
    return svg(chart.properties(width=width, height=_HEIGHT, title=name), f"Change of the exponent by layer on {name} tokens")


def _layer(width: int) -> alt.X:
    return alt.X("layer:Q", title="layer", scale=alt.Scale(nice=False, padding=6), axis=ticks(width))


_SHADES = ("var(--accent)", "var(--second)")


def _positions(curves: dict[str, list[Row]], width: int) -> str:
    """KL a token by position, a line a set; drawn at the middle of each bin, positions counted from 1 on a logarithmic scale."""
    names = list(curves)
    rows = [{"set": name, "place": ((bin_["from"] + 1) * (bin_["to"] + 1)) ** 0.5, **bin_["kl"]} for name in names for bin_ in curves[name]]
    scale = alt.Scale(domain=names, range=[_SHADES[i % len(_SHADES)] for i in range(len(names))])
    legend = alt.Legend(symbolType="stroke", symbolSize=300) if len(names) > 1 else None
    x = alt.X("place:Q", title="token of the answer", scale=alt.Scale(type="log", nice=False), axis=alt.Axis(tickCount=4, grid=False))
    y = lambda field: alt.Y(field, title="KL, nats a token", axis=alt.Axis(tickCount=4))
    base = alt.Chart(data(rows)).encode(x=x, color=alt.Color("set:N", scale=scale, legend=legend))
    area, line = base.mark_area(opacity=0.15).encode(y=y("low:Q"), y2="high:Q"), base.mark_line(strokeWidth=2).encode(y=y("value:Q"))
    points = base.mark_point(filled=True, size=32, opacity=1).encode(y=y("value:Q"))
    return svg(alt.layer(area, line, points).properties(width=width, height=_HEIGHT), "Divergence from the base along the answer")


def _choices(shares: Sequence[Row], width: int) -> str:
    kinds = ["unshifted", "marginal", "shifted"]
    rows = [{"set": r.get("set", ""), "kind": r["name"], "value": r["value"], "order": kinds.index(r["name"])} for r in shares]
    scale = alt.Scale(domain=kinds, range=["var(--line)", "var(--second)", "var(--accent)"])
    bars = (
        alt.Chart(data(rows))
        .mark_bar(size=18)
        .encode(
            x=alt.X("value:Q", title="share of tokens", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%", tickCount=4)),
            y=alt.Y("set:N", title=None),
            color=alt.Color("kind:N", scale=scale, sort=kinds),
            order="order:Q",
        )
    )
    return svg(
        bars.properties(width=width, height=34 * len({r["set"] for r in rows})), "How often the base would have chosen the same token"
    )


def _update(layers: Sequence[Row], width: int) -> str:
    bars = alt.Chart(data([r for r in layers if r["relative"] is not None])).mark_bar(color=_MODEL, opacity=0.75)
    bars = bars.encode(
        x=alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0, labelOverlap=True, grid=False)),
        y=alt.Y("relative:Q", title="norm of the update / of the weights", axis=alt.Axis(tickCount=4)),
    )
    return svg(bars.properties(width=width, height=_HEIGHT), "Size of the update by layer")


def _modules(rows: Sequence[Row], width: int) -> str:
    """A field for each layer and module, the darker the more it changed."""
    largest: dict[str, float] = {}
    for row in rows:
        largest[row["module"]] = max(largest.get(row["module"], 0.0), row["relative"] or 0.0)
    shown = sorted(sorted(largest, key=lambda m: -largest[m])[:_MODULES], key=list(largest).index)
    kept = [row for row in rows if row["module"] in shown and row["relative"] is not None]
    fields = (
        alt.Chart(data(kept))
        .mark_rect(color=_MODEL)
        .encode(
            x=alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0, labelOverlap=True, grid=False)),
            y=alt.Y("module:N", title=None, sort=shown, axis=alt.Axis(grid=False)),
            opacity=alt.Opacity("relative:Q", scale=alt.Scale(domainMin=0, range=[0, 1]), legend=None),
        )
    )
    return svg(fields.properties(width=width, height=16 * len(shown)), "Size of the update by layer and module")
