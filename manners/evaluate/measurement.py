"""The frame of an evaluation: its run folder, its subject, what it writes. What is asked, and what it means, is each evaluation's own.

    def sycophancy(settings: SycophancySettings) -> dict[str, Any]:
        return measure(settings, "sycophancy", VERSION, METRICS, _asked)

where `_asked(settings, subject)` returns the rows. `version` is raised whenever a figure would come out otherwise for the same answers.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVar

import torch
from pydantic import Field

import manners
from manners.core import files
from manners.core.config import Settings
from manners.core.console import console
from manners.core.run import content_hash, file_hash, open_run
from manners.evaluate.results import Metric, Result, results_of, show
from manners.evaluate.subject import Subject, open_subject

T = TypeVar("T")


class MeasureSettings(Settings):
    """What the settings of every evaluation hold."""

    silent: ClassVar[frozenset[str]] = frozenset({"out", "slots"})

    model: str = "smollm2-135m-instruct"
    """Folder, run, adapter, hub id or alias; http://HOST/v1#MODEL for an endpoint; a file of recorded outputs."""
    out: str
    """Folder to write."""
    format: str = "auto"
    """plain, chatml, template (the tokenizer's own), auto."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """Use so many rows of each set only: evenly spaced over the file, the same for every model."""
    slots: Annotated[int, Field(ge=1)] = 32
    """Answers decoded together."""
    seed: int = 0
    """Of what is drawn; greedy answers and log-probabilities do not hang on it."""


class Measured(NamedTuple):
    """What an evaluation found: a row for each question, results that are not means over rows, remarks for the reader, and whatever
    else it wants kept (curves, say), which goes into `results.json` under `details`."""

    rows: list[dict[str, Any]]
    results: Sequence[Result] = ()
    notes: Sequence[str] = ()
    details: dict[str, Any] | None = None


def measure(
    settings: MeasureSettings,
    evaluation: str,
    version: int,
    metrics: Sequence[Metric],
    ask: Callable[[Any, Subject], Measured],
    read: Sequence[str] = (),
) -> dict[str, Any]:
    """Open the run folder and the subject, ask, and write `rows.jsonl`, `results.json` and the manifest; returns what `results.json` holds.

    A finished evaluation is returned as it is. `read` names the files and folders that the figures hang on, whose content is part of the
    run's identity.
    """
    with open_run(settings.out, settings.model_dump(), identifying(settings, evaluation, version, read)) as run:
        if run.manifest is not None:
            console.print(f"{run.path} is finished already; nothing to do")
            return files.read_json(run.path / "results.json")
        started = time.time()
        subject = open_subject(settings.model, settings.format, slots=settings.slots)
        found = ask(settings, subject)
        results = [*results_of(found.rows, metrics, version=version), *found.results]
        seconds = round(time.time() - started, 3)
        report = {
            "evaluation": evaluation,
            "version": version,
            "model": settings.model,
            "format": subject.fmt.name if subject.fmt else None,
            "results": results,
            "notes": list(found.notes),
            "details": found.details or {},
            "seconds": seconds,
        }
        files.write_jsonl(run.path / "rows.jsonl", found.rows)
        files.write_json(run.path / "results.json", report)
        run.finish(
            {
                "stage": f"eval {evaluation}",
                "manners": manners.__version__,
                "torch": torch.__version__,
                "settings": settings.model_dump(),
                "rows": len(found.rows),
                "seconds": seconds,
            }
        )
        show(f"{evaluation} of {settings.model}", results)
        for note in found.notes:
            console.print(note)
        return report


def identifying(settings: MeasureSettings, evaluation: str, version: int, read: Sequence[str] = ()) -> dict[str, Any]:
    """What can change the figures: the settings, the files read, the evaluation's version, and the run that the model comes from."""
    content: dict[str, Any] = settings.model_dump(exclude=set(settings.silent))
    content |= {"stage": f"eval {evaluation}", "version": version}
    content |= {f"{path}_sha256": content_hash(Path(path)) for path in read if Path(path).exists()}
    model = Path(settings.model)
    manifest = model / "manifest.json"
    if manifest.is_file() or model.is_file():
        content["model_sha256"] = file_hash(manifest if manifest.is_file() else model)
    elif model.is_dir():
        content["model_sha256"] = content_hash(model)
    return content


def spaced(rows: Sequence[T], count: int | None) -> list[T]:
    """`count` rows spread evenly over all, the same each time; all of them where there are no more."""
    if count is None or count >= len(rows):
        return list(rows)
    return [rows[i * len(rows) // count] for i in range(count)]
