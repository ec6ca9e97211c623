"""What `manners eval ...` found, and whose it is: `results.json` folders, matched with the models of a run by what was evaluated."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass(slots=True)
class Evaluation:
    """A finished evaluation. `model` is the path or name that was asked, `label` what the page calls it."""

    folder: Path
    kind: str
    model: str
    format: str | None
    results: list[Row]
    details: Row = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: float | None = None
    label: str = ""


@dataclass(slots=True)
class Source:
    """What a model of a page is: the path or name that its evaluation was told, the format, and best of how many samples."""

    model: str
    format: str | None = None
    best_of: int | None = None


def evaluation(place: Path, content: Row) -> Evaluation | None:
    """An evaluation from what `results.json` holds; None for a file of that name that holds something else."""
    kind, rows = content.get("evaluation"), content.get("results")
    if not isinstance(kind, str) or not isinstance(rows, list):
        return None
    results = [r for r in rows if isinstance(r, dict) and isinstance(r.get("name"), str)]
    details, notes, seconds = content.get("details"), content.get("notes"), content.get("seconds")
    return Evaluation(
        place,
        kind,
        str(content.get("model") or place.name),
        content["format"] if isinstance(content.get("format"), str) else None,
        results,
        details if isinstance(details, dict) else {},
        [str(note) for note in notes] if isinstance(notes, list) else [],
        float(seconds) if isinstance(seconds, int | float) else None,
    )


def same(a: str, b: str) -> bool:
    """Whether two names are of one model: equal as paths, or paths with the same last two parts (runs are moved)."""
    left, right = os.path.normpath(a), os.path.normpath(b)
    if left == right:
        return True
    ends = [Path(path).parts[-2:] for path in (left, right)]
    return len(ends[0]) == 2 and ends[0] == ends[1]


def whose(found: Evaluation, sources: dict[str, list[Source]]) -> str | None:
    """The model of a run that an evaluation is of: the same path and, where several have it, the same format; never a best-of-n."""
    fitting = [
        (label, source)
        for label, several in sources.items()
        for source in several
        if source.best_of in (None, 1) and same(source.model, found.model)
    ]
    exact = [label for label, source in fitting if source.format == found.format]
    return next(iter([*exact, *(label for label, _ in fitting)]), None)


def estimate(found: Evaluation, metric: str) -> Row | None:
    """A metric's figure: over all sets where there is one, else of the first set that has a value."""
    rows = [r for r in found.results if r["name"] == metric and isinstance(r.get("value"), int | float)]
    return next((r for r in rows if not r.get("set")), rows[0] if rows else None)


def of_kind(evaluations: Sequence[Evaluation], kinds: Sequence[str]) -> list[Evaluation]:
    """Those of some kinds."""
    return [found for found in evaluations if found.kind in kinds]
