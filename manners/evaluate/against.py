"""`manners eval against BEFORE AFTER ...`: evaluations of one kind side by side, row by row. What got better, what got worse?

It reads what `measurement.measure` wrote, whichever evaluation that was: rows of the same id are the same question, a metric's direction
says which way is better, and every metric of every set is a difference with a paired interval and a p (`paired`). All of them are one
family of Holm's: with so many figures some would differ by chance. A difference counts if its adjusted p is at most ALPHA and its
interval leaves out zero; else it is called no difference. A value of null in either row is unscored, and the pair is left out.

Figures that are no means over rows (a calibration error, say) have no pairs. They are listed with both values and not judged.
"""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from pydantic import BeforeValidator, Field
from rich import box
from rich.table import Table

import manners
from manners.core import files
from manners.core.config import Settings, as_list
from manners.core.console import console
from manners.core.errors import InputError, nearest
from manners.evaluate.compare import Folders
from manners.evaluate.intervals import RESAMPLES
from manners.evaluate.paired import ALPHA, NO_DIFFERENCE, judge, paired, too_many, unknown

BETTER, WORSE = "better", "worse"
VERSION = 1
Key = tuple[str, str, int]
"""Set, id, and which of the rows with this id: 0 for the first."""


class AgainstSettings(Settings):
    """Settings of `manners eval against`."""

    positional: ClassVar[str] = "runs"
    plural: ClassVar[bool] = True

    runs: Annotated[list[str], BeforeValidator(as_list), Field(min_length=2)] | None = None
    """Folders of finished evaluations of one kind; each later one is compared with the first."""
    models: Folders | None = None
    """The same with names, one folder a seed: "sft=DIR,DIR dpo=DIR,DIR". The first is what the others are compared with."""
    metrics: Annotated[list[str], BeforeValidator(as_list), Field(min_length=1)] | None = None
    """Compare these alone, by commas; the family of tests is smaller then. Name them before you look."""
    pairs: str = "first"
    """first: each with the first; all: each with each before it."""
    out: str | None = None
    """Folder to write; none only prints."""


class Evaluation(NamedTuple):
    """A finished evaluation: where it is, what results.json holds, and its rows by key."""

    folder: str
    report: dict[str, Any]
    rows: dict[Key, dict[str, Any]]


def against(settings: AgainstSettings) -> dict[str, Any]:
    """Compare, print, and write `results.json` if there is a place for it; returns what it holds.

    Raises InputError for a folder without a finished evaluation, for evaluations of different kinds or versions, and for ones that
    share no row.
    """
    started = time.time()
    if settings.pairs not in ("first", "all"):
        raise InputError(f"pairs must be first or all, not '{settings.pairs}'.")
    models = {name: [read_evaluation(folder) for folder in folders] for name, folders in named(settings).items()}
    if settings.out is not None:
        files.check_target(Path(settings.out) / "results.json")
    everything = [evaluation for seeds in models.values() for evaluation in seeds]
    check_kind(everything)
    directions, left_out = compared(everything, settings.metrics)
    names = list(models)
    couples = [(b, a) for i, b in enumerate(names) for a in names[: i if settings.pairs == "all" else min(i, 1)]]
    differences, notes = [], list(left_out)
    for after, before in couples:
        found, said = differences_of(models[after], models[before], directions)
        differences += [{"a": after, "b": before, **row} for row in found]
        notes += [f"{after} against {before}: {text}" for text in said]
    families = judge(differences, lambda row: "all")
    for row in differences:
        row["verdict"] = verdict_of(row)
    size = families.get("all", 0)
    if too_many(size):
        notes.append(f"{size} differences are too many to tell any apart by {RESAMPLES:,} resamples: narrow them with metrics=.")
    first = everything[0].report
    report = {
        "evaluation": "against",
        "of": first["evaluation"],
        "version": VERSION,
        "model": " against ".join(reversed(names)) if len(names) == 2 else ", ".join(names),
        "models": {name: [evaluation.folder for evaluation in seeds] for name, seeds in models.items()},
        "results": [as_result(row) for row in differences],
        "regressions": [told(row) for row in differences if row["verdict"] == WORSE],
        "unpaired": unpaired(models, directions),
        "tests": {"alpha": ALPHA, "correction": "Holm, all differences one family", "size": size},
        "notes": notes,
        "resamples": RESAMPLES,
        "manners": manners.__version__,
        "seconds": round(time.time() - started, 3),
    }
    if settings.out is not None:
        out = Path(settings.out)
        files.write_json(out / "settings.json", {"settings": settings.model_dump()})
        files.write_json(out / "results.json", report)
        files.write_json(out / "manifest.json", {"stage": "eval against", "settings": settings.model_dump(), "seconds": report["seconds"]})
    show(report)
    return report


# --- what is compared ------------------------------------------------------------------------------------------------------------


def named(settings: AgainstSettings) -> dict[str, list[str]]:
    """Folders by model. A bare folder is called by its own name, or by its path where two have the same."""
    if (settings.runs is None) == (settings.models is None):
        raise InputError("give the evaluations as bare folders (BEFORE AFTER), or with names as models=; one of the two.")
    if settings.models is not None:
        if len(settings.models) < 2:
            raise InputError("models= names one model; a comparison needs two.")
        return dict(settings.models)
    runs = settings.runs or []
    short = [Path(run).resolve().name for run in runs]
    if len(set(map(str, map(Path, runs)))) < len(runs):
        raise InputError("the same evaluation is named twice; a comparison needs two different ones.")
    return {name if short.count(name) == 1 else run: [run] for name, run in zip(short, runs, strict=True)}


def read_evaluation(folder: str) -> Evaluation:
    """A finished evaluation. Raises InputError for a folder that holds none."""
    path = Path(folder)
    if not path.is_dir():
        raise InputError(f"{folder} is no folder; name the folder of a finished evaluation.")
    if not (path / "results.json").is_file() or not (path / "rows.jsonl").is_file():
        begun = "has not finished its evaluation" if (path / "settings.json").is_file() else "holds no evaluation"
        raise InputError(f"{folder} {begun}: rows.jsonl and results.json are needed.")
    report = files.read_json(path / "results.json")
    rows: dict[Key, dict[str, Any]] = {}
    seen: dict[tuple[str, str], int] = defaultdict(int)
    for number, row in enumerate(files.read_jsonl(path / "rows.jsonl"), 1):
        name = row.get("id", row.get("prompt"))
        if name is None or not isinstance(row.get("values"), dict):
            raise InputError(f"{path / 'rows.jsonl'}, line {number} is no row of an evaluation: it needs 'id' and 'values'.")
        key = (str(row.get("set", "")), name if isinstance(name, str) else str(name))
        rows[*key, seen[key]] = row
        seen[key] += 1
    if not rows:
        raise InputError(f"{path / 'rows.jsonl'} is empty: the evaluation asked nothing.")
    return Evaluation(folder, report, rows)


def check_kind(evaluations: Sequence[Evaluation]) -> None:
    """Raise InputError unless all are of one kind and version."""
    first, *others = evaluations
    for other in others:
        for key in ("evaluation", "version"):
            mine, theirs = first.report.get(key), other.report.get(key)
            if mine != theirs:
                hint = " Run the older one again." if key == "version" else ""
                raise InputError(f"{first.folder} is of {key} {mine!r} and {other.folder} of {theirs!r}; they cannot be compared.{hint}")


def compared(evaluations: Sequence[Evaluation], wanted: Sequence[str] | None) -> tuple[dict[str, str], list[str]]:
    """Direction by metric of what all evaluations' rows hold, and a sentence for each that is left out."""
    directions = {found["name"]: found["direction"] for e in evaluations for found in e.report["results"]}
    held = [{name for row in e.rows.values() for name in row["values"]} for e in evaluations]
    names = [name for name in directions if all(name in metrics for metrics in held)]
    notes = [
        f"{name} is left out: not every evaluation holds it." for name in directions if sum(name in m for m in held) not in (0, len(held))
    ]
    if wanted is not None:
        for name in wanted:
            if name not in names:
                raise InputError(f"'{name}' is no metric of rows that all evaluations hold; {nearest(name, names)}")
        names = [name for name in names if name in wanted]
    tokenizers = {e.report.get("details", {}).get("tokenizer") for e in evaluations}
    if len(tokenizers - {None, ""}) > 1:
        by_tokens = {name for e in evaluations for name in e.report.get("details", {}).get("by_tokens", ())}
        notes += [f"{name} is left out: it counts by token, and the tokenizers differ." for name in names if name in by_tokens]
        names = [name for name in names if name not in by_tokens]
    if not names:
        raise InputError(f"{', '.join(e.folder for e in evaluations)} share no metric of rows, so there is nothing to compare.")
    return {name: directions[name] for name in names}, notes


def differences_of(after: Sequence[Evaluation], before: Sequence[Evaluation], directions: Mapping[str, str]) -> tuple[list[Any], list[str]]:
    """The differences of every metric and set, and what a reader should know of the pairing."""
    if len(after) != len(before) and 1 not in (len(after), len(before)):
        raise InputError(f"one model has {len(before)} seeds and the other {len(after)}; give each as many, or one of them one.")
    everyone = [*after, *before]
    common = [key for key in everyone[0].rows if all(key in e.rows for e in everyone)]
    if not common:
        raise InputError(f"{after[0].folder} and {before[0].folder} share no row: were they asked different questions?")
    notes = []
    other = [key for key in common if len({str(e.rows[key].get("prompt")) for e in everyone if "prompt" in e.rows[key]}) > 1]
    if 2 * len(other) > len(common):
        raise InputError(
            f"{after[0].folder} and {before[0].folder} have {len(common)} ids in common, but the prompts of {len(other)} differ: were they "
            "asked different questions?"
        )
    if other:
        notes.append(f"{len(other)} of {len(common)} rows have the same id and another prompt; they are paired all the same.")
    most = max(len(e.rows) for e in everyone)
    if len(common) < most:
        notes.append(f"{len(common)} rows are common to both; the others (of {most}) are left out.")
    sets = list(dict.fromkeys(key[0] for key in common))
    found = []
    for metric, direction in directions.items():
        for part in [*sets, *([None] if len(sets) > 1 else [])]:
            keys = [key for key in common if part in (None, key[0])]
            holding = [key for key in keys if all(metric in e.rows[key]["values"] for e in everyone)]
            if not holding or (part is None and len({key[0] for key in holding}) == 1):
                continue
            scored = [key for key in holding if all(e.rows[key]["values"][metric] is not None for e in everyone)]
            value_of = lambda seeds, keys=scored, metric=metric: np.array(
                [[float(e.rows[k]["values"][metric]) for k in keys] for e in seeds]
            )
            a_SP, b_SP = value_of(after), value_of(before)
            difference = paired(a_SP - b_SP) if scored else unknown("no row is scored in both")
            found.append(
                {
                    "metric": metric,
                    "set": part or "",
                    "direction": direction,
                    **difference,
                    "unscored": len(holding) - len(scored),
                    "a_value": float(a_SP.mean()) if scored else None,
                    "b_value": float(b_SP.mean()) if scored else None,
                }
            )
    return found, notes


def verdict_of(row: Mapping[str, Any]) -> str | None:
    """`judge`'s verdict by the metric's direction; no difference where the interval holds zero, whatever the p."""
    said = row["verdict"]
    if said is None:
        return None
    if said == NO_DIFFERENCE or row["low"] <= 0 <= row["high"]:
        return NO_DIFFERENCE
    if row["direction"] == "none":
        return said
    return BETTER if (row["difference"] > 0) == (row["direction"] == "higher") else WORSE


def as_result(row: Mapping[str, Any]) -> dict[str, Any]:
    """A difference as a result (see `results`): its value is a less b, its `direction` the metric's."""
    kept = {key: row[key] for key in ("low", "high", "n", "unscored", "direction", "set", "p", "p_holm", "verdict", "a_value", "b_value")}
    extra = {key: row[key] for key in ("by_seed", "reason") if key in row}
    return {"name": row["metric"], "version": VERSION, "value": row["difference"], "a": row["a"], "b": row["b"], **kept, **extra}


def unpaired(models: Mapping[str, Sequence[Evaluation]], directions: Mapping[str, str]) -> list[dict[str, Any]]:
    """Figures that are no means over rows, by model (of the first seed)."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for name, seeds in models.items():
        in_rows = {metric for row in seeds[0].rows.values() for metric in row["values"]}
        for held in seeds[0].report["results"]:
            if held["name"] not in in_rows and held["name"] not in directions:
                key = (held["name"], held.get("set", ""))
                row = found.setdefault(key, {"name": key[0], "set": key[1], "direction": held["direction"], "models": {}})
                row["models"][name] = {end: held[end] for end in ("value", "low", "high", "n")}
    return list(found.values())


# --- what is printed -------------------------------------------------------------------------------------------------------------


def told(row: Mapping[str, Any]) -> str:
    """A difference as a sentence."""
    where = f", {row['set']}" if row["set"] else ""
    between = f"{row['low']:+.3f} to {row['high']:+.3f}, n {row['n']}, p {row['p_holm']:.3g} after Holm"
    return f"{row['a']} against {row['b']}, {row['metric']}{where}: {row['difference']:+.3f} ({between})"


def show(report: Mapping[str, Any]) -> None:
    """Print a table of the differences, then the regressions and the notes."""
    table = Table(title=f"{report['of']}: {report['model']}", box=box.SIMPLE, title_justify="left")
    for name in ("pair", "metric", "set"):
        table.add_column(name)
    for name in ("before", "after", "difference", "95 % interval", "n", "unscored", "p, Holm", "verdict"):
        table.add_column(name, justify="right")
    for row in report["results"]:
        if row["value"] is None:
            table.add_row(f"{row['a']} - {row['b']}", row["name"], row["set"], "", "", row.get("reason", "absent"))
            continue
        numbers = (f"{row['b_value']:.3f}", f"{row['a_value']:.3f}", f"{row['value']:+.3f}", f"{row['low']:+.3f} to {row['high']:+.3f}")
        rest = (str(row["n"]), str(row["unscored"]), f"{row['p_holm']:.3g}", row["verdict"])
        table.add_row(f"{row['a']} - {row['b']}", row["name"], row["set"], *numbers, *rest)
    console.print(table)
    for sentence in report["regressions"]:
        console.print(f"regression: {sentence}")
    if not report["regressions"]:
        console.print("no regression stands out; see the intervals for what is still possible")
    for note in report["notes"]:
        console.print(note)
