"""What the page says: sentences, cells and badges made from a run. Plain data; the template only lays it out."""

import shlex
from collections.abc import Iterable, Sequence
from typing import Any

import yaml

from manners.evaluate.compare import EQUAL_LENGTH, LOGP, LOGP_TOKEN, MAIN_SET
from manners.evaluate.paired import HIGHER, LOWER, NO_DIFFERENCE
from manners.feedback import annotator
from manners.ops.overoptimisation import Fit
from manners.report.read import Row, Run, Stage, table

TRAINED_ORDER = ("dpo", "bon", "sft")
"""Which model the headline is about: the first of these that was measured."""
LANGUAGES = {"fr": "French", "es": "Spanish", "de": "German", "en": "English"}
METRICS = {
    "gold": ("gold score", "{:.2f}"),
    "held_out/gold": ("gold score, held-out cluster", "{:.2f}"),
    "stopped": ("stops by itself", "{:.0%}"),
    "words": ("words", "{:.1f}"),
    "repeated": ("repeats itself", "{:.1%}"),
    "refusal_right": ("refuses rightly", "{:.0%}"),
    "distinct_adjusted": ("distinct n-grams", "{:.3f}"),
    "kl": ("KL, nats a response", "{:.1f}"),
    "cost_seconds": ("seconds to make", "{:,.0f}"),
    "cost_tokens": ("tokens to make", "{:,.0f}"),
}
"""Columns of the results: heading and how a number is written."""
FOREST = (
    *(("sft", "start"), ("bon", "sft"), ("dpo", "sft"), ("dpo", "bon"), ("dpo", "start"), ("as-shipped", "start")),
    ("dpo", "as-shipped"),
)
"""Differences that are drawn; all are in the table below the chart."""


def number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def shown(value: Any, form: str = "{:.3f}") -> str:
    return form.format(value).replace("-", "\N{MINUS SIGN}") if number(value) else "\N{EN DASH}"


def signed(value: Any) -> str:
    return shown(value, "{:+.2f}")


def span(estimate: Row, form: str = "{:.3f}") -> str:
    """An interval as text, empty if there is none."""
    low, high = estimate.get("low"), estimate.get("high")
    return f"{shown(low, form)} to {shown(high, form)}" if number(low) and number(high) and low != high else ""


def comparisons(run: Run, metric: str = "gold") -> list[Row]:
    """The usable differences of a metric."""
    rows = run.summary.get("comparisons")
    usable = [r for r in rows if isinstance(r, dict) and r.get("metric") == metric] if isinstance(rows, list) else []
    return [r for r in usable if all(number(r.get(key)) for key in ("difference", "low", "high"))]


# The minute at the top ---------------------------------------------------------------------------------------------------------


def headline(run: Run) -> dict[str, Any] | None:
    """The one result: the last trained model against the start, with what the interval allows to be said."""
    found = {(r["a"], r["b"]): r for r in comparisons(run) if r.get("set") == MAIN_SET}
    for model in TRAINED_ORDER:
        if (model, "start") in found:
            row = found[model, "start"]
            value = lambda name: shown(table(table(table(run.summary, "models"), name), "gold").get("value"), "{:.2f}")
            return {
                "model": model,
                "difference": signed(row["difference"]),
                "span": f"{signed(row['low'])} to {signed(row['high'])}",
                "verdict": verdict(row),
                "from": value("start"),
                "to": value(model),
                "n": row.get("n"),
                "seeds": len(row.get("by_seed") or [0]),
                "ceiling": value("as-shipped") if "as-shipped" in table(run.summary, "models") else None,
                "further": [further(found[pair]) for pair in (("dpo", "sft"), ("bon", "sft")) if pair in found and pair[0] in run.models],
            }
    return None


def verdict(row: Row) -> str:
    """Higher, lower, or no difference: what the adjusted test allows, or the interval where an older summary holds no test."""
    if row.get("verdict") in (HIGHER, LOWER, NO_DIFFERENCE):
        return row["verdict"]
    return HIGHER if row["low"] > 0 else LOWER if row["high"] < 0 else NO_DIFFERENCE


def further(row: Row) -> str:
    size = f"{signed(row['difference'])} ({signed(row['low'])} to {signed(row['high'])})."
    if verdict(row) == NO_DIFFERENCE:
        return f"{row['a']} shows no difference from {row['b']}: {size}"
    return f"{row['a']} scores {verdict(row)} than {row['b']}: {size}"


def badges(row: Row) -> list[tuple[bool, str]]:
    """(good, what it says) of the checks that apply to an answer: it stops, in its own words, in the language, refuses as it should."""
    prompt, answer, wants = row["prompt"], row["answer"], row["wants"]
    if row["finish_reason"] != "stop":
        said = [(False, "cut off")]
    else:
        said = [(True, "stops") if annotator.stopped(answer, "stop") else (False, "runs on")]
    if not answer.strip():
        return [*said, (False, "says nothing")]
    said.append((False, "echoes the prompt") if annotator.echoes(prompt, answer) else (True, "own words"))
    if wants.get("language"):
        name = LANGUAGES.get(wants["language"], str(wants["language"]))
        said.append((True, name) if annotator.language_of(answer).name == wants["language"] else (False, f"not {name}"))
    declines = bool(annotator.refuses(answer))
    if wants.get("refuse"):
        said.append((True, "declines") if declines else (False, "does not decline"))
    elif declines:
        said.append((False, "declines"))
    if annotator.repeats(answer):
        said.append((False, "repeats itself"))
    return said


def classics(run: Run, count: int = 3) -> list[Row]:
    """The first prompts of the main set, each with every model's answer and its badges."""
    part = MAIN_SET if MAIN_SET in run.sets else next(iter(run.sets), "")
    return [{**card, "answers": [{**a, "badges": badges(a["row"])} for a in card["answers"]]} for card in cards(run, part)[:count]]


def cards(run: Run, part: str) -> list[Row]:
    """Every prompt of a set with the first seed's answer of each model that has one."""
    by_model = {model: {row["id"]: row for row in seeds[0] if row["set"] == part} for model, seeds in run.answers.items()}
    first = next((rows for rows in by_model.values() if rows), {})
    return [
        {
            **{key: row[key] for key in ("id", "cluster", "prompt", "reference")},
            "answers": [
                {
                    "model": model,
                    "row": by_model[model][label],
                    "text": by_model[model][label]["answer"],
                    "score": by_model[model][label]["score"],
                }
                for model in run.models
                if label in by_model.get(model, {})
            ],
        }
        for label, row in first.items()
    ]


def samples(run: Run) -> list[Row]:
    """All cards by set and cluster."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for part in run.sets:
        for card in cards(run, part):
            groups.setdefault((part, card["cluster"]), []).append(card)
    return [{"set": part, "cluster": cluster or "other", "cards": found} for (part, cluster), found in groups.items()]


# Tables ------------------------------------------------------------------------------------------------------------------------


def results(run: Run) -> dict[str, Any] | None:
    """The table of results: columns that any model has, and a row a model."""
    models = {name: table(table(run.summary, "models"), name) for name in run.models}
    columns = [key for key in METRICS if any(number(table(found, key).get("value")) for found in models.values())]
    if not columns:
        return None
    listed = run.summary.get("win_rates")
    met = [r for r in listed if isinstance(r, dict) and r.get("set") == MAIN_SET] if isinstance(listed, list) else []
    rival = "start" if any(r.get("b") == "start" for r in met) else next((r.get("b") for r in met), None)
    against = [r for r in met if r.get("b") == rival]
    wins = {r.get("a"): r for r in against}
    heads = [METRICS[key][0] for key in columns]
    rows = []
    for name, found in models.items():
        cells = [(shown(table(found, key).get("value"), METRICS[key][1]), span(table(found, key), METRICS[key][1])) for key in columns]
        if wins:
            cells.insert(1, (shown(wins[name].get("value"), "{:.0%}"), span(wins[name], "{:.0%}")) if name in wins else ("\N{EN DASH}", ""))
        rows.append({"model": name, "cells": cells})
    if wins:
        heads.insert(1, f"wins against {rival}")
    return {"heads": heads, "rows": rows, "prompts": max(table(found, "gold").get("n") or 0 for found in models.values())}


def forest_rows(run: Run, more: Iterable[tuple[str, str]] = ()) -> list[Row]:
    """Rows of the forest plot, in the order of the story, then `more` pairs; all rows if no model bears a known name."""
    told = {pair: i for i, pair in enumerate(dict.fromkeys([*FOREST, *more]))}
    rows = [r for r in comparisons(run) if r.get("set") in run.sets or not run.sets]
    chosen = sorted((r for r in rows if (r["a"], r["b"]) in told), key=lambda r: told[r["a"], r["b"]]) or rows
    keep = ("difference", "low", "high")
    return [
        {"pair": f"{r['a']} \N{MINUS SIGN} {r['b']}", "set": str(r["set"]).replace("_", " "), **{key: r[key] for key in keep}}
        for r in chosen
    ]


def difference_rows(run: Run) -> list[Row]:
    """The table of all differences in gold score."""
    level = {(r["a"], r["b"], r.get("set")): f"{signed(r['difference'])}, {verdict(r)}" for r in comparisons(run, f"gold{EQUAL_LENGTH}")}
    return [
        {
            **{"a": r["a"], "b": r["b"], "set": str(r.get("set", "")).replace("_", " "), "n": r.get("n")},
            **{"difference": signed(r["difference"]), "span": f"{signed(r['low'])} to {signed(r['high'])}"},
            "by_seed": ", ".join(signed(v) for v in r.get("by_seed") or []),
            "p": shown(r.get("p_holm"), "{:.3g}"),
            "verdict": verdict(r),
            "level": level.get((r["a"], r["b"], r.get("set")), "\N{EN DASH}"),
        }
        for r in comparisons(run)
    ]


def best(run: Run) -> list[Row]:
    """Of each set whether any model is the best, in the words of the comparison."""
    found = table(run.summary, "best")
    return [
        {"set": str(part).replace("_", " "), "said": str(table(found, part)["sentence"])}
        for part in found
        if table(found, part).get("sentence")
    ]


def unseen_rows(run: Run) -> dict[str, Any] | None:
    """Log-probabilities of answers that none was trained on, a row a model."""
    models = {name: table(table(run.summary, "models"), name) for name in run.models}
    keys = list(dict.fromkeys(key for found in models.values() for key in found if key.startswith(LOGP)))
    if not keys:
        return None
    apart = [f"{LOGP_TOKEN}{key.removeprefix(LOGP)}" for key in keys]
    cell = lambda found, key, form: (shown(table(found, key).get("value"), form), span(table(found, key), form))
    rows = [
        {
            "model": name,
            "cells": [c for k, t in zip(keys, apart, strict=True) for c in (cell(found, k, "{:.1f}"), cell(found, t, "{:.2f}"))],
        }
        for name, found in models.items()
        if any(key in found for key in keys)
    ]
    names = [key.removeprefix(LOGP).replace("/", ", ").replace("_", " ") for key in keys]
    return {"heads": [head for name in names for head in (f"{name}: nats an answer", "a token")], "rows": rows}


def effects(run: Run) -> list[dict[str, Any]]:
    """For each stage that measured a grid: its cells, effects from the largest down, and which are larger than which."""
    return [_grid(name, content) for name, content in run.effects.items()]


def _grid(name: str, content: Row) -> dict[str, Any]:
    metric = str(content.get("metric") or "gold")
    factors = list(table(content, "factors"))
    cells = []
    for cell, found in table(content, "cells").items():
        own = found if isinstance(found, dict) else {}
        values = [
            (shown(table(own, key).get("value"), form), span(table(own, key), form))
            for key, form in ((metric, "{:.2f}"), ("kl", "{:.1f}"), ("words", "{:.1f}"), ("cost_seconds", "{:,.0f}"))
        ]
        cells.append({"model": cell, "levels": [str(table(own, "levels").get(f, "\N{EN DASH}")) for f in factors], "cells": values})
    rows = [
        {
            "name": _effect_name(r),
            **{"difference": signed(r["difference"]), "span": f"{signed(r['low'])} to {signed(r['high'])}", "size": signed(r.get("size"))},
            **{"p": shown(r.get("p_holm"), "{:.3g}"), "verdict": verdict(r)},
        }
        for r in sorted(_usable(content, "effects"), key=lambda r: -abs(r["difference"])) + _usable(content, "interactions")
    ]
    larger = [
        f"{r['a']} and {r['b']}: "
        + ("no difference in size" if verdict(r) == NO_DIFFERENCE else f"{r['a'] if verdict(r) == HIGHER else r['b']} is the larger")
        + f" ({signed(r['difference'])}, {signed(r['low'])} to {signed(r['high'])})."
        for r in _usable(content, "larger")
    ]
    set_of = str(content.get("set") or MAIN_SET).replace("_", " ")
    told = [f"{r['name']} {r['difference']} ({r['span']}), {r['verdict']}" for r in rows[: len(_usable(content, "effects"))]]
    lead = f"What each choice changed in {metric}: {'; '.join(told)}."
    return {"name": name, "lead": lead, "metric": metric, "set": set_of, "factors": factors, "cells": cells, "rows": rows, "larger": larger}


def _usable(content: Row, key: str) -> list[Row]:
    rows = content.get(key)
    keys = ("difference", "low", "high")
    return [r for r in rows if isinstance(r, dict) and all(number(r.get(k)) for k in keys)] if isinstance(rows, list) else []


def _effect_name(row: Row) -> str:
    if "factors" in row:
        return " by ".join(map(str, row["factors"]))
    return f"{row.get('factor')}: {row.get('level')} \N{MINUS SIGN} {row.get('less')}"


def cluster_rows(run: Run) -> list[Row]:
    """Gold score by cluster of all sets. Rows: cluster, model, value, low, high."""
    rows = []
    for model in run.models:
        for part, found in table(table(run.summary, "clusters"), model).items():
            for cluster, estimate in found.items() if isinstance(found, dict) else ():
                if isinstance(estimate, dict) and all(number(estimate.get(key)) for key in ("value", "low", "high")):
                    name = str(cluster) if part == MAIN_SET else f"{cluster} ({part.replace('_', ' ')})"
                    rows.append({"cluster": name, "model": model, **{key: estimate[key] for key in ("value", "low", "high")}})
    return sorted(rows, key=lambda row: row["cluster"].endswith(")"))


def kl_rows(run: Run) -> list[Row]:
    """Models with both a divergence and a gold score."""
    rows = []
    for model in run.models:
        found = table(table(run.summary, "models"), model)
        both = {"kl": table(found, "kl"), "gold": table(found, "gold")}
        if all(number(e.get(key)) for e in both.values() for key in ("value", "low", "high")):
            ends = {f"{name}_{end}": e[end] for name, e in both.items() for end in ("low", "high")}
            rows.append({"model": model, "kl": both["kl"]["value"], "gold": both["gold"]["value"], **ends})
    return rows


def curves(run: Run, kind: str, key: str, line: str, window: int = 9) -> list[Row]:
    """A metric of a stage over its steps, with a centred mean over `window` steps, seed by seed."""
    rows = []
    for stage in run.stages:
        points = [(r["step"], r[key]) for r in stage.metrics if number(r.get("step")) and number(r.get(key))] if stage.kind == kind else []
        for i, (step, value) in enumerate(points):
            near = [v for _, v in points[max(0, i - window // 2) : i + window // 2 + 1]]
            rows.append({"step": step, "value": value, "mean": sum(near) / len(near), "line": line, "seed": stage.name})
    return rows


# Over-optimisation -------------------------------------------------------------------------------------------------------------


def overoptimisation(run: Run) -> list[dict[str, Any]]:
    """For each stage that measured it: the curves' rows to draw, a table, the alarms, and the first curve in a sentence."""
    return [told for name, content in run.curves.items() if (told := _measured(name, content))["panels"]]


def _measured(name: str, content: Row) -> dict[str, Any]:
    curves = [c for key in ("curves", "policies") for c in content.get(key) or () if _drawable(c)]
    chosen = [c for c in curves if c.get("law") == "bon"]
    panels = [
        {"title": c["name"], **_panel(c, [p for p in curves if p.get("law") == "rl" and p.get("proxy") == c["name"]])} for c in chosen
    ]
    return {
        "name": name,
        "panels": panels,
        "lead": _lead(chosen[0]) if chosen else "",
        "rows": [_curve_row(c) for c in curves],
        "alarms": [(c["name"], a) for c in curves for a in (*(c.get("alarms") or ()), *(c.get("log_alarms") or ())) if a.get("fired")],
        **{key: content.get(key) for key in ("gold", "prompts", "samples")},
    }


def _drawable(curve: Any) -> bool:
    """Whether a curve has points with all that is drawn."""
    points = curve.get("points") if isinstance(curve, dict) else None
    return bool(points) and all(number(p.get(key)) for p in points for key in ("d", "gold", "gain_low", "gain_high", "proxy"))


def _panel(curve: Row, policies: Sequence[Row]) -> dict[str, Any]:
    """Rows to draw: measured points, the fitted law, and the fitted peak if it lies among the points."""
    points, laws = [], []
    for each in (curve, *policies):
        label = "best of n" if each["law"] == "bon" else each["name"]
        for p in each["points"]:
            base = {"d": p["d"], "at": f"n = {p['n']}" if "n" in p else f"step {p.get('step')}"}
            start = each["points"][0]["gold"]
            ends = {"low": start + p["gain_low"], "high": start + p["gain_high"]}
            points.append({**base, **ends, "score": p["gold"], "line": f"gold, {label}"})
            points.append({**base, "score": p["proxy"], "low": p["proxy"], "high": p["proxy"], "line": f"proxy, {label}"})
        laws += _law(each, f"gold, {label}")
    peak = table(table(curve, "fit"), "peak").get("d") or {}
    shown_peak = [peak] if table(curve, "fit").get("inside") and number(peak.get("value")) else []
    return {"points": points, "laws": laws, "peak": shown_peak}


def _law(curve: Row, line: str, steps: int = 40) -> list[Row]:
    """The fitted law between the start and the furthest point."""
    fitted = table(curve, "fit")
    alpha, beta = (table(fitted, key).get("value") for key in ("alpha", "beta"))
    if not (number(alpha) and number(beta)):
        return []
    law = Fit(float(alpha or 0), float(beta or 0), curve["law"])
    far = max(p["d"] for p in curve["points"])
    at = [far * i / steps for i in range(steps + 1)]
    return [{"d": d, "score": curve["points"][0]["gold"] + float(law.predict(d)), "line": line} for d in at]


def _curve_row(curve: Row) -> Row:
    points, observed, fitted = curve["points"], table(curve, "observed"), table(curve, "fit")
    peak = table(table(fitted, "peak"), "d")
    last = points[-1]
    return {
        "name": curve["name"],
        "by": f"best of 1 to {last['n']}" if "n" in last else f"{len(points) - 1} kept policies",
        "start": shown(points[0]["gold"], "{:.2f}"),
        "peak": shown(table(observed, "gold").get("value"), "{:.2f}"),
        "at": shown(table(observed, "d").get("value"), "{:.2f}"),
        "end": shown(last["gold"], "{:.2f}"),
        "fall": signed(table(observed, "fall").get("value")),
        "fall_span": span(table(observed, "fall"), "{:+.2f}"),
        "law": f"α {shown(table(fitted, 'alpha').get('value'), '{:.2f}')}, β {shown(table(fitted, 'beta').get('value'), '{:.2f}')}",
        "fitted": shown(peak.get("value"), "{:.2f}") + ("" if fitted.get("inside") or not number(peak.get("value")) else " (beyond)"),
        "fitted_span": span(peak, "{:.2f}"),
    }


def _lead(curve: Row) -> str:
    """What the first curve says, and no more than its interval allows."""
    points, fall = curve["points"], table(table(curve, "observed"), "fall")
    first, last = (shown(points[at]["gold"], "{:.2f}") for at in (0, -1))
    best = shown(table(table(curve, "observed"), "gold").get("value"), "{:.2f}")
    begun = f"Choosing the best of up to {points[-1]['n']} answers by {curve['name']} takes the gold score from {first}"
    ends = f"(95 % interval {signed(fall.get('low'))} to {signed(fall.get('high'))})"
    if number(fall.get("low")) and fall["low"] > 0:
        return f"{begun} to {best} and back to {last}: {shown(fall['value'], '{:.2f}')} lost {ends}."
    if number(fall.get("high")) and fall["high"] <= 0:
        return f"{begun} to {last}, and it rises to the end."
    return f"{begun} to {last}; that it falls behind a peak cannot be told from chance {ends}."


def reward_rows(run: Run) -> list[Row]:
    """Each reward model's report: how often it is right on pairs it was not trained on, how well it knows, and whether length sways it."""
    rows = []
    for name, told in run.rewards.items():
        held = table(told, "validation")
        cell = lambda key, form, held=held: (shown(table(held, key).get("value"), form), span(table(held, key), form))
        cells = [cell("accuracy", "{:.0%}"), cell("log_loss", "{:.3f}"), (shown(held.get("ece"), "{:.3f}"), "")]
        cells += [(shown(held.get("temperature"), "{:.2f}"), ""), cell("longer_wins", "{:.0%}"), cell("above_longer_wins", "{:+.0%}")]
        count = lambda key, held=held: f"{held[key]:,}" if number(held.get(key)) else "\N{EN DASH}"
        rows.append(
            {"name": name, "kind": str(told.get("kind") or ""), "cells": cells, "pairs": count("pairs"), "prompts": count("prompts")}
        )
    return rows


def budget(run: Run) -> dict[str, Any] | None:
    """Time and tokens of every finished stage."""
    timed = [stage for stage in run.stages if stage.seconds is not None]
    if not timed:
        return None
    total = sum(stage.seconds or 0 for stage in timed)
    longest = max(stage.seconds or 0 for stage in timed) or 1
    count = lambda value: f"{value:,}" if number(value) else "\N{EN DASH}"
    rows = [
        {
            "name": stage.name,
            "seconds": f"{stage.seconds or 0:,.0f}",
            "share": round(100 * (stage.seconds or 0) / longest, 1),
            "steps": count(stage.manifest.get("steps")),
            "tokens": count(stage.manifest.get("tokens")),
        }
        for stage in timed
    ]
    tokens = sum(stage.manifest["tokens"] for stage in timed if number(stage.manifest.get("tokens")))
    return {"rows": rows, "seconds": f"{total:,.0f}", "minutes": f"{total / 60:.1f}", "tokens": f"{tokens:,}"}


def settings(run: Run) -> list[Row]:
    """Each stage's settings as (key, value) texts."""
    return [
        {"name": s.name, "keys": [(str(k), "none" if v is None else str(v)) for k, v in s.settings.items()]}
        for s in run.stages
        if s.settings
    ]


def recipe(run: Run) -> dict[str, str] | None:
    """The recipe that was run: its file, and what it held with the changes of the command line, as YAML."""
    asked = table(run.plan, "recipe")
    if not asked:
        return None
    return {"file": str(run.plan.get("file") or ""), "text": yaml.safe_dump(asked, sort_keys=False, allow_unicode=True, width=100)}


def versions(run: Run) -> list[tuple[str, str]]:
    """Versions of programs: of the run as a whole if it has a plan, else those that the manifests name."""
    if told := table(run.plan, "versions"):
        return [(str(name), str(version)) for name, version in told.items()]
    found: dict[str, dict[str, None]] = {}
    for stage in run.stages:
        for name in ("manners", "python", "torch", "transformers", "peft", "numpy"):
            if isinstance(stage.manifest.get(name), str):
                found.setdefault(name, {})[stage.manifest[name]] = None
    return [(name, ", ".join(values)) for name, values in found.items()]


def commands(run: Run) -> list[str]:
    """A command line for each stage, with the settings that have a value."""
    return [command(stage) for stage in run.stages if stage.settings]


def command(stage: Stage) -> str:
    words = [f"{key}={word(value)}" for key, value in stage.settings.items() if value is not None]
    return shlex.join(["manners", stage.command, *words])


def word(value: Any) -> str:
    """A setting's value as the command line takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return " ".join(f"{k}={word(v)}" for k, v in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ",".join(word(v) for v in value)
    return str(value)
