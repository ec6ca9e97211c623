"""Which charts a run has: each drawn wide and narrow, with the specifications that a page with scripts runs in their place."""

import json
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Any

from markupsafe import Markup

from manners.report import charts, story
from manners.report.charts import NARROW, WIDE, Drawing
from manners.report.evaluations import Evaluation
from manners.report.ledger import origins
from manners.report.profile_charts import attention_charts, shift_charts
from manners.report.read import Row, Run, table
from manners.report.reasoning import accuracy_against_tokens, chart_rows

Chart = Callable[[bool], str]
_numbers = count(1)
LOSS_OF = {"sft": "nats a token", "raft": "nats a token", "dpo": "nats a pair", "reward": "nats a pair"}
NAMES = ("forest", "clusters", "distributions", "losses", "rewards", "rounds", "kl", "calibration")
ACROSS = 3
"""Panels beside each other."""


def both(chart: Chart, scripts: bool = False) -> Markup:
    """A chart for a wide and for a narrow screen; with scripts its specifications, too."""
    drawings = {kind: chart(kind == "wide") for kind in ("wide", "narrow")}
    parts = "".join(f'<div class="{kind}">{drawing}</div>' for kind, drawing in drawings.items())
    if scripts and all(isinstance(drawing, Drawing) for drawing in drawings.values()):
        specs = {kind: drawing.spec for kind, drawing in drawings.items() if isinstance(drawing, Drawing)}
        return Markup(f'<div class="chart" id="chart-{next(_numbers)}">{parts}{as_data(specs)}</div>')
    return Markup(parts)


def as_data(content: Any) -> Markup:
    """JSON in a page: a script of a kind that no browser runs, in which nothing looks like a tag."""
    text = json.dumps(_short(content), ensure_ascii=True, separators=(",", ":"))
    text = text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return Markup(f'<script type="application/json">{text}</script>')


def _short(value: Any) -> Any:
    """The same with six digits."""
    if isinstance(value, dict):
        return {key: _short(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [_short(held) for held in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def draw(run: Run, scripts: bool = False) -> dict[str, Markup]:
    """A run's own charts; empty where there are no rows for one."""
    figures: dict[str, Markup] = dict.fromkeys(NAMES, Markup(""))

    def add(name: str, chart: Chart) -> None:
        figures[name] += both(chart, scripts)

    width = lambda wide: WIDE if wide else NARROW
    if rows := story.forest_rows(run, origins(run).items()):
        add("forest", lambda wide: charts.forest(rows, 600 if wide else 180))
    if clustered := story.cluster_rows(run):
        add("clusters", lambda wide: charts.clusters(clustered, run.models, 640 if wide else 190))
    if run.answers:
        part = run.sets[0]
        scores = {
            m: [float(r["score"]) for rows in run.answers[m] for r in rows if r["set"] == part] for m in run.models if m in run.answers
        }
        if all(scores.values()):
            add("distributions", lambda wide: charts.distributions(scores, 640 if wide else 220))
    for figure, found in (("losses", _losses(run)), ("rewards", _rewards(run)), ("rounds", _rounds(run))):
        for part in chunks(found):
            add(figure, lambda wide, part=part, figure=figure: _panels(part, wide, figure))
    against = story.kl_rows(run)
    if len(against) > 1:
        add("kl", lambda wide: charts.gold_against_kl(against, width(wide) - (60 if wide else 70)))
    if sure := reliability(run):
        add("calibration", lambda wide: charts.calibration(sure, 420 if wide else 230))
    return figures


Panel = tuple[str, list[Row], float | None]
"""Title, rows, and where a line of reference stands."""
SAID = {"losses": "Training losses", "rewards": "Accuracy and implicit rewards", "rounds": "Score and divergence by round"}


def chunks(panels: Sequence[Panel]) -> Iterable[Sequence[Panel]]:
    """As many at a time as stand beside each other, in rows of about the same length."""
    rows = -(-len(panels) // ACROSS)
    each = -(-len(panels) // rows) if rows else 1
    return [panels[at : at + each] for at in range(0, len(panels), each)]


def _panels(panels: Sequence[Panel], wide: bool, figure: str) -> Drawing:
    each = max(200, min(340, WIDE // len(panels) - 20)) if wide else NARROW - 20
    return charts.panels([charts.curve(rows, title, each, reference=at) for title, rows, at in panels], wide, SAID[figure])


def _kinds(run: Run, key: str) -> list[tuple[str, str]]:
    """Kind and command of the stages that measured something at each step, in the order of the run."""
    found = [(s.kind, s.command) for s in run.stages if any(story.number(row.get(key)) for row in s.metrics)]
    return list(dict.fromkeys(found))


def _losses(run: Run) -> list[Panel]:
    kinds = [(kind, command) for kind, command in _kinds(run, "loss") if command not in ("ppo", "grpo")]
    units = {kind: f"{kind}: loss, {LOSS_OF[command]}" if command in LOSS_OF else f"{kind}: loss" for kind, command in kinds}
    return [(units[kind], story.curves(run, kind, "loss", "loss"), None) for kind, _ in kinds]


def _rewards(run: Run) -> list[Panel]:
    found: list[Panel] = []
    for kind, _ in _kinds(run, "rewards/accuracies"):
        found.append((f"{kind}: share of pairs ranked right", story.curves(run, kind, "rewards/accuracies", "accuracy"), 0.5))
        names = ("chosen", "rejected", "margins")
        rewards = [row for name in names for row in story.curves(run, kind, f"rewards/{name}", name.removesuffix("s"))]
        if rewards:
            found.append((f"{kind}: implicit rewards, nats", rewards, 0.0))
    return found


def _rounds(run: Run) -> list[Panel]:
    found: list[Panel] = []
    for kind, _ in _kinds(run, "kl_seq"):
        rows = {key: story.curves(run, kind, key, line) for key, line in (("score", "score"), ("kl_seq", "KL"))}
        titles = {"score": f"{kind}: score by the reward", "kl_seq": f"{kind}: KL, nats an answer"}
        found += [(titles[key], rows[key], None) for key in titles if rows[key]]
    return found


def reliability(run: Run) -> list[Row]:
    """Bins of every reward model's calibration that hold pairs."""
    rows = []
    for name, told in run.rewards.items():
        bins = table(told, "validation").get("reliability")
        for held in bins if isinstance(bins, list) else ():
            if isinstance(held, dict) and all(story.number(held.get(key)) for key in ("confidence", "accuracy", "n")) and held["n"]:
                rows.append({"model": name, **{key: held[key] for key in ("confidence", "accuracy", "n")}})
    return rows


def of_evaluation(found: Evaluation, scripts: bool = False) -> list[tuple[str, Markup]]:
    """The charts of an evaluation that has some, with their names. What does not have the shape of one is not drawn."""
    results = {"results": found.results, "details": found.details}
    width = lambda wide: WIDE - 120 if wide else NARROW - 60
    try:
        if found.kind == "attention":
            made = {wide: attention_charts(results, width(wide)) for wide in (True, False)}
        elif found.kind == "shift":
            made = {wide: shift_charts(results, width(wide)) for wide in (True, False)}
        elif found.kind == "reasoning" and (rows := chart_rows(results)):
            made = {wide: {"accuracy against tokens": accuracy_against_tokens(rows, width(wide))} for wide in (True, False)}
        else:
            return []
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        return []
    return [(name, both(lambda wide, name=name: made[wide][name], scripts)) for name in made[True]]
