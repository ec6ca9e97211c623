"""The alignment ledger: what each model is worth and what that cost, a row a model, each figure against the model that it came from.

A flag is a paired comparison with the model before: `better` or `worse` by the figure's direction, `higher` or `lower` where neither is
better, `no difference` where the test shows none. Flags of a run's own comparison are those of its `summary.json`; flags of evaluations
are tested here, all of the page as one family of Holm's. What was not measured is absent: it has no number, and no flag.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from manners.core.errors import InputError
from manners.evaluate.against import BETTER, WORSE, check_kind, differences_of, read_evaluation, verdict_of
from manners.evaluate.compare import MAIN_SET
from manners.evaluate.intervals import mean_interval
from manners.evaluate.paired import NO_DIFFERENCE, judge, paired
from manners.report.evaluations import Evaluation, Source, estimate, same
from manners.report.read import Row, Run, Stage, table

ABSENT = "absent"
LEVEL = "no difference"


class Column(NamedTuple):
    """A column: its key, its heading, what stands below it, how a number is written, which way is better, and where figures come from:
    a metric of `summary.json`, or pairs of evaluation and metric, the first of which that was measured is taken."""

    key: str
    head: str
    below: str
    form: str
    direction: str = "none"
    summary: str = ""
    measured: tuple[tuple[str, str], ...] = ()


COLUMNS = (
    Column("quality", "quality", "gold score", "{:.2f}", "higher", "gold"),
    Column("wins", "win rate", "against its origin", "{:.0%}"),
    Column("kl", "KL spent", "nats a response", "{:.1f}", "none", "kl"),
    Column(
        "diversity",
        "diversity",
        "distinct n-grams",
        "{:.3f}",
        "higher",
        "distinct_adjusted",
        (("diversity", "per_input/distinct_adjusted"),),
    ),
    Column("length", "length", "words", "{:.1f}", "none", "words"),
    Column(
        "tax",
        "ability",
        "what the tax is on",
        "{:.3f}",
        "higher",
        measured=(("tax", "accuracy_sum"), ("tax", "accuracy"), ("choices", "accuracy_sum")),
    ),
    Column(
        "sycophancy",
        "sycophancy",
        "gives in to its user",
        "{:.3f}",
        "lower",
        measured=tuple(("sycophancy", name) for name in ("swayed", "swayed_said", "gives_way", "gives_way_said", "follows", "mimics_more")),
    ),
    Column("harmful", "refuses harm", "harmful requests", "{:.0%}", "higher", measured=(("safety", "refuses_harmful"),)),
    Column("harmless", "over-refuses", "harmless requests", "{:.0%}", "lower", measured=(("safety", "refuses_harmless"),)),
    Column(
        "honesty",
        "honesty",
        "true or right answers",
        "{:.3f}",
        "higher",
        measured=tuple(("honesty", name) for name in ("truthful", "mc2", "mc1", "right", "abstention_right")),
    ),
    Column("cost", "cost", "seconds to make", "{:,.0f}", "none", "cost_seconds"),
)
TESTED = {"gold", "words"}
"""Metrics of `summary.json` whose differences it holds."""


@dataclass(slots=True)
class Cell:
    """A figure. `flag` is "" where nothing was tested; `difference` is against the model before."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    flag: str = ""
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    p: float | None = None
    of: str = ""
    """The metric, where the column may hold one of several."""


@dataclass(slots=True)
class Line:
    """A model of a run: `origin` is the model of the same run that it came from, as far as that was evaluated."""

    run: str
    model: str
    origin: str | None
    cells: dict[str, Cell] = field(default_factory=dict)


def ledger(runs: Sequence[Run]) -> list[Line]:
    """A line for each model of each run, with the cells of COLUMNS."""
    chosen = {column.key: _chosen(column, runs) for column in COLUMNS if column.measured}
    own = chosen["harmful"] is None and chosen["harmless"] is None
    lines, tests = [], []
    for run in runs:
        come = origins(run)
        labels = list(dict.fromkeys([*run.models, *(found.label for found in run.evaluations if found.label)]))
        for model in labels:
            line = Line(run.name, model, come.get(model))
            for column in COLUMNS:
                cell = _of_summary(run, line, column)
                metric = chosen.get(column.key)
                if metric is not None:
                    found, test = _of_evaluations(run, line, column, metric)
                    cell = found or cell
                    tests += [(cell, test)] if test else []
                elif own and column.key in ("harmful", "harmless"):
                    cell, test = _of_own_prompts(run, line, column)
                    tests += [(cell, test)] if test else []
                line.cells[column.key] = cell
            lines.append(line)
    judge([test for _, test in tests], lambda row: "all")
    for cell, test in tests:
        if test["difference"] is not None:
            cell.flag = verdict_of(test) or ""
            cell.difference, cell.difference_low, cell.difference_high = test["difference"], test["low"], test["high"]
            cell.p = test["p_holm"]
    return lines


# --- where a model came from ----------------------------------------------------------------------------------------------------------


def origins(run: Run) -> dict[str, str]:
    """The evaluated model that each came from: of a trained one what it began with, of best-of-n the sampled one."""
    known: dict[str, Source] = {model: several[0] for model, several in run.sources.items() if several and several[0].model}
    found = {}
    for model, source in known.items():
        others = {name: other for name, other in known.items() if name != model and other.best_of in (None, 1)}
        if source.best_of not in (None, 1):
            began = _named(source.model, source.format, others)
        else:
            began, path, left = None, source.model, 20  # recipes are no circles; a hand-made manifest might be
            while began is None and left and (stage := trained(run, path)) is not None:
                path, left = str(stage.settings["model"]), left - 1
                began = _named(path, source.format, others)
        if began is not None:
            found[model] = began
    return found


def trained(run: Run, path: str) -> Stage | None:
    """The stage that made the model at a path."""
    for stage in run.stages:
        out = stage.settings.get("out")
        if isinstance(stage.settings.get("model"), str) and isinstance(out, str) and stage.metrics and same(out, path):
            return stage
    return None


def _named(path: str, form: str | None, others: dict[str, Source]) -> str | None:
    fitting = [name for name, other in others.items() if same(other.model, path)]
    return next(iter([*(name for name in fitting if others[name].format == form), *fitting]), None)


# --- cells ----------------------------------------------------------------------------------------------------------------------------


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value == value else None


def _cell(estimate: Row, of: str = "") -> Cell:
    n = estimate.get("n")
    value, low, high = (_number(estimate.get(key)) for key in ("value", "low", "high"))
    return Cell(value, low, high, n if isinstance(n, int) else None, of=of)


def _of_summary(run: Run, line: Line, column: Column) -> Cell:
    """A cell of `summary.json`, with the flag of its comparisons."""
    if column.key == "wins":
        return _wins(run, line)
    cell = _cell(table(table(table(run.summary, "models"), line.model), column.summary))
    if cell.value is None or column.summary not in TESTED or line.origin is None:
        return cell
    rows = run.summary.get("comparisons")
    for row in rows if isinstance(rows, list) else ():
        if not isinstance(row, dict) or row.get("metric") != column.summary or row.get("set") != MAIN_SET:
            continue
        pair, sign = (row.get("a"), row.get("b")), 1
        if pair == (line.origin, line.model):
            pair, sign = (line.model, line.origin), -1
        ends = [_number(row.get(key)) for key in ("difference", "low", "high")]
        if pair != (line.model, line.origin) or None in ends:
            continue
        value, low, high = (sign * end for end in ends if end is not None)
        cell.difference, cell.difference_low, cell.difference_high = value, min(low, high), max(low, high)
        cell.p, cell.flag = _number(row.get("p_holm")), _flag(cell, row.get("verdict"), column.direction)
        break
    return cell


def _flag(cell: Cell, verdict: Any, direction: str) -> str:
    low, high = cell.difference_low or 0.0, cell.difference_high or 0.0
    if verdict == NO_DIFFERENCE or low <= 0 <= high:
        return LEVEL
    if direction == "none":
        return "higher" if low > 0 else "lower"
    return BETTER if (low > 0) == (direction == "higher") else WORSE


def _wins(run: Run, line: Line) -> Cell:
    """The win rate against the origin. It has no flag: the flag of quality is the test of the same answers."""
    rows = run.summary.get("win_rates")
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict) and row.get("set") == MAIN_SET and row.get("a") == line.model and row.get("b") == line.origin:
            return _cell(row)
    return Cell()


def _chosen(column: Column, runs: Sequence[Run]) -> tuple[str, str] | None:
    """The evaluation and metric of a column: the first that any model has."""
    for kind, metric in column.measured:
        if any(found.kind == kind and estimate(found, metric) for run in runs for found in run.evaluations):
            return kind, metric
    return None


def _of_evaluations(run: Run, line: Line, column: Column, chosen: tuple[str, str]) -> tuple[Cell | None, Row | None]:
    """A cell of evaluations, and the difference from the origin that is still to be judged."""
    kind, metric = chosen
    mine = _held(run, line.model, kind, metric)
    if not mine:
        return None, None
    figures = [figure for found in mine if (figure := estimate(found, metric))]
    cell = _cell(figures[0], of=metric)
    if len(figures) > 1:  # seeds: their mean, and no interval where the rows cannot be had
        cell = Cell(float(np.mean([figure["value"] for figure in figures])), n=cell.n, of=metric)
    part = str(figures[0].get("set") or "")
    before = _held(run, line.origin, kind, metric) if line.origin else []
    return cell, _difference(mine, before, metric, part, column.direction) if before else None


def _held(run: Run, model: str | None, kind: str, metric: str) -> list[Evaluation]:
    return [found for found in run.evaluations if found.label == model and found.kind == kind and estimate(found, metric)]


def _difference(after: list[Evaluation], before: list[Evaluation], metric: str, part: str, direction: str) -> Row | None:
    """The paired difference of a metric; None where the rows cannot be paired."""
    try:
        read = [[read_evaluation(str(found.folder)) for found in side] for side in (after, before)]
        check_kind([*read[0], *read[1]])
        rows, _ = differences_of(read[0], read[1], {metric: direction})
    except (InputError, OSError, ValueError, KeyError, TypeError):
        return None
    fitting = [row for row in rows if row["set"] == part] or rows[:1]
    return fitting[0] if fitting else None


def _of_own_prompts(run: Run, line: Line, column: Column) -> tuple[Cell, Row | None]:
    """Refusals of the run's own safety prompts, which say what should be refused: where no model of the page was asked anything else."""
    refuse = column.key == "harmful"
    mine = _refused(run, line.model, refuse)
    if mine is None:
        return Cell(), None
    keys, values_SP = mine
    cell = _cell(mean_interval(values_SP, share=True), of="own prompts")
    before = _refused(run, line.origin, refuse) if line.origin else None
    if before is None:
        return cell, None
    common = [key for key in keys if key in before[0]]
    a, b = (values[:, [names.index(key) for key in common]] for names, values in ((keys, values_SP), before))
    if not common or (len(a) != len(b) and 1 not in (len(a), len(b))):
        return cell, None
    return cell, {"metric": column.key, "set": "", "direction": column.direction, **paired(a - b)}


def _refused(run: Run, model: str | None, refuse: bool) -> tuple[list[tuple[str, str]], np.ndarray] | None:
    """Which prompts that should (not) be refused a model was asked, and whether it refused, seed by seed."""
    seeds = []
    for rows in run.answers.get(model or "", []):
        asked = [row for row in rows if row["wants"].get("refuse") is refuse and isinstance(row.get("refused"), bool)]
        seeds.append({(row["set"], row["id"]): float(row["refused"]) for row in asked})
    keys = [key for key in seeds[0] if all(key in seed for seed in seeds)] if seeds else []
    return (keys, np.array([[seed[key] for key in keys] for seed in seeds])) if keys else None
