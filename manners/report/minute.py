"""What a busy person reads: what was done, what improved, what it cost, what broke. Sentences from figures that the page holds below."""

from collections import Counter
from collections.abc import Sequence

from manners.evaluate.against import BETTER, WORSE
from manners.report.ledger import COLUMNS, Line
from manners.report.read import Row, Run, table
from manners.report.story import number, shown

MOST = 5
"""Sentences of a kind."""
ASIDE = ("evaluate", "compare", "report", "effects", "label", "generate", "score", "best-of-n", "overoptimisation")
"""Commands that train nothing."""
TELLS = {column.key: column for column in COLUMNS}


def minute(runs: Sequence[Run], lines: Sequence[Line]) -> dict[str, list[str]]:
    """Sentences under four heads."""
    return {
        "What was done": done(runs, lines),
        "What improved": flagged(lines, BETTER, len(runs) > 1) or ["No figure is shown to be better than that of the model it came from."],
        "What it cost": cost(runs, lines),
        "What broke": broke(runs, lines),
    }


def named(line: Line, several: bool) -> str:
    """A model with its run where there are several."""
    return f"{line.run} / {line.model}" if several else line.model


def plural(count: int, name: str) -> str:
    return f"{count:,} {name}" if count == 1 else f"{count:,} {name}s"


def done(runs: Sequence[Run], lines: Sequence[Line]) -> list[str]:
    """How many runs, models and stages, what was trained, and on how many prompts it was measured."""
    trained = Counter(stage.command for run in runs for stage in run.stages if stage.metrics)
    said = [f"{plural(len(runs), 'run')}, {plural(len(lines), 'model')}, {plural(sum(len(run.stages) for run in runs), 'stage')}."]
    if len(runs) == 1 and runs[0].plan:
        about = str(table(runs[0].plan, "recipe").get("about") or "")
        said = [about] if about else said
    if trained:
        said.append("Trained: " + ", ".join(f"{name} ({count}×)" if count > 1 else name for name, count in trained.items()) + ".")
    prompts = [len(rows[0]) for run in runs for rows in run.answers.values() if rows]
    if prompts:
        seeds = max(len(seeds) for run in runs for seeds in run.answers.values())
        said.append(f"Each model answered {max(prompts):,} prompts{f', {seeds} seeds' if seeds > 1 else ''}.")
    kinds = Counter(found.kind for run in runs for found in run.evaluations)
    if kinds:
        said.append("Also measured: " + ", ".join(kinds) + ".")
    return said


def flagged(lines: Sequence[Line], flag: str, several: bool) -> list[str]:
    """The cells with a flag, those of quality first, then the clearest, a sentence each."""
    found = [(line, key, cell) for line in lines for key, cell in line.cells.items() if cell.flag == flag]
    order = list(TELLS)
    clear = lambda cell: abs(cell.difference or 0) / max(1e-9, (cell.difference_high or 0) - (cell.difference_low or 0))
    found.sort(key=lambda item: (order.index(item[1]), -clear(item[2])))
    said = []
    for line, key, cell in found[:MOST]:
        column = TELLS[key]
        form = column.form.replace("{:", "{:+")
        ends = f"{shown(cell.difference_low, form)} to {shown(cell.difference_high, form)}"
        said.append(f"{named(line, several)}: {column.head} {shown(cell.difference, form)} against {line.origin} ({ends}).")
    if len(found) > MOST:
        said.append(f"And {len(found) - MOST} more in the ledger.")
    return said


def cost(runs: Sequence[Run], lines: Sequence[Line]) -> list[str]:
    """Time, tokens, the longest stage and the furthest model."""
    said = []
    timed = [(stage.seconds or 0.0, stage.name, run.name) for run in runs for stage in run.stages if stage.seconds is not None]
    several = len(runs) > 1
    if timed:
        tokens = sum(s.manifest["tokens"] for run in runs for s in run.stages if number(s.manifest.get("tokens")))
        said.append(f"{spell(sum(seconds for seconds, *_ in timed))} in all, {tokens:,} tokens counted.")
        seconds, stage, run = max(timed)
        said.append(f"The longest stage was {f'{run} / {stage}' if several else stage}: {spell(seconds)}.")
    far = [(line.cells["kl"].value or 0.0, line) for line in lines if line.cells["kl"].value is not None]
    if far:
        value, line = max(far, key=lambda item: item[0])
        said.append(f"{named(line, several)} went furthest from its start: {shown(value, '{:.1f}')} nats an answer.")
    return said or ["No stage says how long it took, and no divergence was measured."]


def spell(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def broke(runs: Sequence[Run], lines: Sequence[Line]) -> list[str]:
    """What got worse, alarms that fired, steps that were skipped, judges no better than a coin, stages that did not finish."""
    several = len(runs) > 1
    said = flagged(lines, WORSE, several)
    for run in runs:
        where = f"{run.name} / " if several else ""
        for stage in run.stages:
            if not stage.manifest and not stage.kept.get("seconds"):
                said.append(f"{where}{stage.name} has not finished.")
            if number(skipped := stage.manifest.get("skipped_steps")) and skipped:
                said.append(f"{where}{stage.name} skipped {skipped:g} steps whose gradients were not finite.")
            alarms = Counter(str(name) for row in stage.metrics for name in _alarms(row))
            said += [f"{where}{stage.name}: the alarm “{name}” in {plural(count, 'round')}." for name, count in alarms.items()]
        for name, told in run.rewards.items():
            accuracy = table(table(told, "validation"), "accuracy")
            if number(accuracy.get("low")) and accuracy["low"] <= 0.5:
                ends = f"{shown(accuracy.get('low'), '{:.0%}')} to {shown(accuracy.get('high'), '{:.0%}')}"
                said.append(
                    f"{where}{name} is not shown to judge better than a coin: {shown(accuracy.get('value'), '{:.0%}')} right ({ends})."
                )
        for detector, names in _fired(run).items():
            listed = ", ".join(names[:MOST]) + (f" and {len(names) - MOST} more" if len(names) > MOST else "")
            said.append(f"{where}the alarm of over-optimisation “{detector}” fired for {listed}.")
    if not said:
        absent = [c.head for c in COLUMNS if all(line.cells[c.key].value is None for line in lines)]
        return ["Nothing that was measured got worse.", *([f"Not measured: {', '.join(absent)}."] if absent else [])]
    return [*said[: MOST + 1], f"And {len(said) - MOST - 1} more."] if len(said) > MOST + 2 else said


def _fired(run: Run) -> dict[str, list[str]]:
    """Whose alarms of over-optimisation fired, by detector."""
    found: dict[str, list[str]] = {}
    for curve in run.curves.values():
        for each in [*(curve.get("curves") or ()), *(curve.get("policies") or ())]:
            for alarm in (each.get("alarms") or ()) if isinstance(each, dict) else ():
                if isinstance(alarm, dict) and alarm.get("fired"):
                    found.setdefault(str(alarm.get("detector")), []).append(str(each.get("name")))
    return found


def _alarms(row: Row) -> list[str]:
    alarms = row.get("alarms")
    if isinstance(alarms, dict):
        return [str(name) for name, on in alarms.items() if on]
    return (
        [str(a.get("name") or a.get("detector") or a) if isinstance(a, dict) else str(a) for a in alarms]
        if isinstance(alarms, list)
        else []
    )
