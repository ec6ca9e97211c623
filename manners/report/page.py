"""`manners report`: runs as one HTML page that opens anywhere, without a network.

    manners report runs/quickstart                  one run
    manners report runs/a runs/b evals/sycophancy   several, and evaluations of their models
    manners report runs                             a folder of them

Text of models and files is escaped by the template engine and never read as HTML by a script. Charts are drawn beforehand; with scripts
(the default) one copy of the chart library runs them: hover, filter, zoom. A content policy in the page's head names the page's own
scripts by their hashes and forbids all else, and anything from outside.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from pydantic import BeforeValidator

import manners
from manners.core import files
from manners.core.config import Settings, as_list
from manners.core.console import console
from manners.report import assets, charts, figures, story
from manners.report.assets import style_sheet
from manners.report.audit import audit
from manners.report.browse import model_key, samples
from manners.report.evaluations import Evaluation
from manners.report.ledger import COLUMNS, LEVEL, Cell, Line, ledger
from manners.report.minute import minute
from manners.report.read import Row, Run, read_runs, table

DRAWN = 3
"""Of more runs the charts of each are left out: the page stays quick, and each run's own report has them."""
MANY = 12
"""Beyond so many lines the ledger gets a field to search it."""


class ReportSettings(Settings):
    """Settings of `manners report`."""

    positional: ClassVar[str] = "runs"
    plural: ClassVar[bool] = True
    writes: ClassVar[str] = "report.html"
    silent: ClassVar[frozenset[str]] = frozenset({"out", "copy_to", "pictures"})

    runs: Annotated[list[str], BeforeValidator(as_list)] | None = None
    """Folders: runs, finished evaluations, or folders that hold some."""
    run: str | None = None
    """The same for one folder; with neither, runs/quickstart."""
    out: str | None = None
    """HTML file to write; none is report.html in the first folder."""
    copy_to: str | None = None
    """A second file for the same page, such as report.html in the run where out is a stage's."""
    scripts: bool = True
    """false leaves out every script: charts stand still, and the answers are a plain list."""
    pictures: str | None = None
    """Folder for the over-optimisation chart as an SVG file of its own."""


def report(settings: ReportSettings) -> dict[str, Any]:
    """Write the page; returns where it is, its size, and what had to be left out."""
    folders = [*(settings.runs or []), *([settings.run] if settings.run else [])] or ["runs/quickstart"]
    runs = read_runs(folders)
    out = Path(settings.out) if settings.out is not None else Path(folders[0]) / "report.html"
    places = [out, *([Path(settings.copy_to)] if settings.copy_to is not None else [])]
    for place in places:
        files.check_target(place)
    page = render(runs, settings.scripts)
    for place in places:
        files.write_text(place, page)
    if settings.pictures is not None:
        for run in runs:
            for told in story.overoptimisation(run):
                picture = Path(settings.pictures) / f"{told['name'].replace('/', '-')}.svg"
                files.write_text(picture, charts.alone(overoptimised(told, True), style_sheet()))
    size = len(page.encode("utf-8", "replace"))
    several = len(runs) > 1
    notes = [f"{run.name}: {note}" if several else note for run in runs for note in run.notes]
    for note in notes[:MANY]:
        console.print(f"left out: {note}")
    models = [model_key(run, model, several) for run in runs for model in run.models]
    stages = [model_key(run, stage.name, several) for run in runs for stage in run.stages]
    what = f"{len(runs)} runs, " if several else ""
    console.print(f"report of {what}{len(models)} models and {len(stages)} stages, {size / 1e6:.1f} MB: {places[-1]}")
    return {"out": str(out), "bytes": size, "models": models, "stages": stages, "notes": notes, "runs": [run.name for run in runs]}


def render(runs: Run | Sequence[Run], scripts: bool = False, live: bool = False) -> str:
    """The page as text. `live` is a page that a server keeps up to date."""
    runs = [runs] if isinstance(runs, Run) else list(runs)
    several = len(runs) > 1
    environment = Environment(
        loader=PackageLoader("manners.report", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    known = list(dict.fromkeys(model for run in runs for model in run.models))
    shades = dict(zip(known, charts.colours(known), strict=True))
    environment.globals.update(colour=lambda model: shades.get(model, "var(--soft)"), model_key=model_key)
    lines = ledger(runs)
    parts = [assets.library(), assets.script()] if scripts else []
    text = environment.get_template("page.jinja").render(
        title=runs[0].name if not several else f"{len(runs)} runs",
        style=Markup(style_sheet()),
        scripts=[Markup(part) for part in parts],
        policy=assets.policy(parts, live),
        live=live,
        several=several,
        drawn=len(runs) <= DRAWN,
        minute=minute(runs, lines),
        ledger=ledger_rows(runs, lines),
        overview=overview(runs, scripts) if several else None,
        told=[told(run, scripts, draws=len(runs) <= DRAWN) for run in runs],
        classics=story.classics(runs[0]) if not several else [],
        models=known,
        samples=samples(runs),
        evaluations=[panel(found, scripts, len(runs) <= DRAWN) for run in runs for found in run.evaluations],
        audit=audit(runs),
        made=time.strftime("%Y-%m-%d"),
        manners=manners.__version__,
    )
    return text.encode("utf-8", "replace").decode("utf-8")  # a half surrogate pair, which a model may write, is no UTF-8


def told(run: Run, scripts: bool, draws: bool) -> Row:
    """What the page says of one run."""
    over = story.overoptimisation(run)
    return {
        "run": run,
        "headline": story.headline(run),
        "models": run.models,
        "results": story.results(run),
        "figures": figures.draw(run, scripts) if draws else dict.fromkeys(figures.NAMES, Markup("")),
        "differences": story.difference_rows(run),
        "best": story.best(run),
        "unseen": story.unseen_rows(run),
        "effects": story.effects(run),
        "overoptimisation": [
            {**t, "figure": figures.both(lambda wide, t=t: overoptimised(t, wide), scripts) if draws else Markup("")} for t in over
        ],
        "rewards": story.reward_rows(run),
        "budget": story.budget(run),
        "settings": story.settings(run),
        "versions": story.versions(run),
        "commands": story.commands(run),
        "recipe": story.recipe(run),
        "notes": run.notes,
    }


def overoptimised(told: dict[str, Any], wide: bool) -> charts.Drawing:
    """The chart of one stage's over-optimisation."""
    return charts.gold_against_proxy(told["panels"], 3 if wide else 1, 220 if wide else 230)


def overview(runs: Sequence[Run], scripts: bool) -> Row:
    """The charts of several runs together: gold of every model, and gold over divergence."""
    rows = []
    for run in runs:
        for model in run.models:
            gold = table(table(table(run.summary, "models"), model), "gold")
            if all(story.number(gold.get(key)) for key in ("value", "low", "high")):
                rows.append({"run": run.name, "model": model, **{key: gold[key] for key in ("value", "low", "high")}})
    against = [{**row, "run": run.name} for run in runs for row in story.kl_rows(run)]
    width = lambda wide: 560 if wide else 150
    return {
        "gold": figures.both(lambda wide: charts.overview(rows, width(wide)), scripts) if rows else Markup(""),
        "kl": figures.both(lambda wide: charts.gold_against_kl(against, 700 if wide else 230), scripts) if len(against) > 1 else Markup(""),
    }


# --- the ledger and the evaluations as the template lays them out ---------------------------------------------------------------------


def ledger_rows(runs: Sequence[Run], lines: Sequence[Line]) -> Row:
    """Heads and rows of the ledger as text; `searched` where there are many."""
    of = {column.key: next((line.cells[column.key].of for line in lines if line.cells[column.key].of), "") for column in COLUMNS}
    heads = [{"name": column.head, "below": of[column.key].replace("_", " ") or column.below} for column in COLUMNS]
    rows = [
        {
            **{"run": line.run, "model": line.model, "key": f"{line.run} / {line.model}" if len(runs) > 1 else line.model},
            **{"origin": line.origin, "cells": [cell_text(line, line.cells[column.key], column.form) for column in COLUMNS]},
        }
        for line in lines
    ]
    return {"heads": heads, "rows": rows, "searched": len(rows) > MANY}


SIGNS = {"better": "▲", "worse": "▼", LEVEL: "=", "higher": "↑", "lower": "↓"}


def cell_text(line: Line, cell: Cell, form: str) -> Row:
    """A cell as text: value, interval, flag, and what the flag rests on."""
    if cell.value is None:
        return {"value": "absent", "absent": True, "span": "", "flag": "", "sign": "", "said": "", "sort": ""}
    said = ""
    if cell.difference is not None:
        signed = form.replace("{:", "{:+")
        ends = " to ".join(story.shown(end, signed) for end in (cell.difference_low, cell.difference_high))
        said = f"{story.shown(cell.difference, signed)} ({ends}) against {line.origin}"
        said += f", p {cell.p:.3g} after Holm" if cell.p is not None else ""
    return {
        **{"value": story.shown(cell.value, form), "absent": False, "sort": f"{cell.value:.6g}"},
        **{"span": story.span({"low": cell.low, "high": cell.high}, form), "said": said},
        **{"flag": cell.flag, "sign": SIGNS.get(cell.flag, "")},
    }


def panel(found: Evaluation, scripts: bool, draws: bool) -> Row:
    """An evaluation: its figures as a table, and its charts."""
    rows = [
        {
            **{"name": r["name"].replace("_", " "), "set": str(r.get("set") or ""), "n": r.get("n"), "unscored": r.get("unscored") or ""},
            **{
                "value": story.shown(r.get("value")),
                "span": story.span(r),
                "reason": "" if story.number(r.get("value")) else r.get("reason"),
            },
        }
        for r in found.results
    ]
    drawn = figures.of_evaluation(found, scripts) if draws else []
    return {"kind": found.kind, "label": found.label, "rows": rows, "notes": found.notes, "figures": drawn, "folder": found.folder.name}
