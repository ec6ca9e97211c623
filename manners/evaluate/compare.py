"""`manners compare`: evaluations of several models side by side, with paired differences and win rates.

Everything is computed from the rows of `answers.jsonl` and `kl.jsonl`, anew each time: it takes seconds, and reads no model.

The estimand of a difference is the mean, over prompts and seeds, of (score of a) - (score of b) on the same prompt and seed. A model
with one evaluation, such as one that was not trained, stands against every seed of another.
"""

import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import BeforeValidator, Field
from rich import box
from rich.table import Table

import manners
from manners.core import files
from manners.core.config import Settings
from manners.core.console import console
from manners.core.errors import InputError
from manners.core.run import stage_seconds
from manners.evaluate.intervals import RESAMPLES, absent, mean_interval
from manners.evaluate.measures import Row, by_cluster, describe, metric_values, sets_of

MAIN_SET = "test"
"""The set whose metrics bear their bare names; those of another are called set/metric."""
ORDER = ("start", "as-shipped", "sft", "bon", "raft", "dpo", "ppo", "ppo-ptx")
"""From untouched to most trained: differences are later less earlier. Other names follow in the order given."""
SETS_FIRST = (MAIN_SET, "held_out")
"""How reports order the sets."""
OPPONENTS = ("start", "as-shipped")
COMPARED = ("gold", "stopped", "words", "repeated")
STEPS = (("sft", "start"), ("bon", "sft"), ("raft", "sft"), ("dpo", "sft"), ("ppo", "sft"), ("ppo-ptx", "sft"), ("ppo", "dpo"))
"""Differences that are printed: a step of training and what it began from, and the judge's way beside the way without one."""


def as_models(value: Any) -> Any:
    """`start=DIR sft=DIR,DIR` as a mapping of lists; a mapping of folders as one of lists."""
    if isinstance(value, str):
        pairs = [word.partition("=") for word in value.split()]
        if not pairs or not all(name and folders for name, _, folders in pairs):
            raise ValueError("it must be words like start=FOLDER sft=FOLDER,FOLDER")
        value = {name: folders for name, _, folders in pairs}
    if not isinstance(value, dict):
        return value
    return {k: [f.strip() for f in v.split(",") if f.strip()] if isinstance(v, str) else v for k, v in value.items()}


class CompareSettings(Settings):
    """Settings of `manners compare`."""

    silent: ClassVar[frozenset[str]] = frozenset({"out", "summary"})

    models: Annotated[dict[str, Annotated[list[str], Field(min_length=1)]], BeforeValidator(as_models), Field(min_length=1)]
    """Evaluation folders by model, one a seed: "start=DIR sft=DIR,DIR", or a mapping in a file."""
    out: str
    """Folder to write."""
    summary: str | None = None
    """A second place for summary.json, such as that of the whole run."""


def compare(settings: CompareSettings) -> dict[str, Any]:
    """Compare and write `summary.json`; returns what it holds."""
    started = time.time()
    out = Path(settings.out)
    names = sorted(settings.models, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    answers = {name: [read_answers(folder) for folder in settings.models[name]] for name in names}
    same_prompts(settings, answers)
    sets = list(answers[names[0]][0])
    of = {name: {part: [seed[part] for seed in answers[name]] for part in sets} for name in names}
    summary: dict[str, Any] = {
        "models": {name: {**measured(of[name]), "kl": divergence(settings.models[name])} for name in names},
        "clusters": {name: {part: by_cluster(seeds) for part, seeds in of[name].items()} for name in names},
        "comparisons": [
            {"a": a, "b": b, "set": part, "metric": metric, **difference(of[a][part], of[b][part], metric)}
            for b, a in combinations(names, 2)
            for part in sets
            for metric in COMPARED
        ],
        "win_rates": [
            {"a": a, "b": b, "set": part, "metric": "gold", **win_rate(of[a][part], of[b][part])}
            for a in names
            for b in OPPONENTS
            if b in names and a != b
            for part in sets
        ],
        "seeds": {name: len(folders) for name, folders in settings.models.items()},
        "resamples": RESAMPLES,
        "manners": manners.__version__,
    }
    seconds = round(time.time() - started, 3)
    run = Path(settings.summary).parent if settings.summary else out.parent
    own = {out.relative_to(run).as_posix(): seconds} if out.is_relative_to(run) and out != run else {}
    summary["seconds"] = {**stage_seconds(run), **own}
    files.write_json(out / "settings.json", {"settings": settings.model_dump()})
    for place in filter(None, (settings.summary, out / "summary.json")):
        files.write_json(place, summary)
    files.write_json(out / "manifest.json", {"stage": "compare", "settings": settings.model_dump(), "seconds": seconds})
    show(summary)
    return summary


def show(summary: dict[str, Any]) -> None:
    """Print the models with their main figures, and what each step of training changed in the gold score."""
    models, sets = summary["models"], list(next(iter(summary["clusters"].values())))
    first = "" if MAIN_SET in sets else f"{sets[0]}/"
    columns = {f"gold, {part}": (("" if part == MAIN_SET else f"{part}/") + "gold", "{:.2f}") for part in sets}
    columns |= {"stops": (f"{first}stopped", "{:.0%}"), "tokens": (f"{first}tokens", "{:.1f}"), "repeats": (f"{first}repeated", "{:.1%}")}
    columns["KL, nats"] = ("kl", "{:.1f}")
    table = Table("model", box=box.SIMPLE_HEAD)
    for heading in columns:
        table.add_column(heading, justify="right")
    for name, metrics in models.items():
        values = [(metrics.get(metric, {}).get("value"), form) for metric, form in columns.values()]
        table.add_row(name, *("-" if value is None else form.format(value) for value, form in values))
    console.print(table)
    for row in summary["comparisons"]:
        if (row["a"], row["b"]) in STEPS and row["metric"] == "gold":
            interval = f"[{row['low']:+.2f}, {row['high']:+.2f}]"
            console.print(f"{row['a']} less {row['b']}, {row['set']}: {row['difference']:+.2f} {interval}, {row['n']} prompts")


def read_answers(folder: str) -> dict[str, list[Row]]:
    """The rows of an evaluation by set. Raises InputError for a folder without a finished one."""
    path = Path(folder) / "answers.jsonl"
    if not path.is_file() or not (Path(folder) / "metrics.json").is_file():
        hint = "it is not finished" if path.parent.is_dir() else "there is no such folder"
        raise InputError(f"'{folder}' holds no evaluation ({hint}): give a folder that manners evaluate wrote.")
    return sets_of(files.read_jsonl(path))


def same_prompts(settings: CompareSettings, answers: dict[str, list[dict[str, list[Row]]]]) -> None:
    """Raises InputError unless all evaluations answer the same prompts, and models with several seeds have equally many."""
    counts = {name: len(folders) for name, folders in settings.models.items() if len(folders) > 1}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise InputError(f"models with several seeds must have equally many, seed by seed ({told}): add or leave out some folders.")
    first, wanted = "", None
    for name, seeds in answers.items():
        for folder, seed in zip(settings.models[name], seeds, strict=True):
            asked = {part: [(row["id"], row["prompt"]) for row in rows] for part, rows in seed.items()}
            if wanted is None:
                first, wanted = folder, asked
            if asked != wanted:
                raise InputError(f"'{folder}' and '{first}' answer different prompts: evaluate both on the same files, then compare.")


def measured(sets: dict[str, list[list[Row]]]) -> dict[str, dict[str, Any]]:
    """Every metric of every set, under one name each."""
    return {
        metric if part == MAIN_SET else f"{part}/{metric}": estimate
        for part, seeds in sets.items()
        for metric, estimate in describe(seeds).items()
    }


def difference(a: Sequence[Sequence[Row]], b: Sequence[Sequence[Row]], metric: str) -> dict[str, Any]:
    """`{"difference", "low", "high", "n"}`: a less b, prompt by prompt, with `by_seed` where there are several."""
    values_SP = np.asarray(metric_values(a, metric)) - np.asarray(metric_values(b, metric))  # one seed of either serves all of the other
    estimate = mean_interval(values_SP)
    return {"difference": estimate.pop("value"), **estimate}


def win_rate(a: Sequence[Sequence[Row]], b: Sequence[Sequence[Row]]) -> dict[str, Any]:
    """Share of prompts on which a's gold score is higher, ties one half, with the share of `ties` beside."""
    gap_SP = np.asarray(metric_values(a, "gold")) - np.asarray(metric_values(b, "gold"))
    ties_SP = np.isclose(gap_SP, 0, rtol=0, atol=1e-9)
    wins_SP = np.where(ties_SP, 0.5, gap_SP > 0)
    return {**mean_interval(wins_SP, share=True), "ties": float(ties_SP.mean())}


def divergence(folders: Sequence[str]) -> dict[str, Any]:
    """KL from the reference in nats a response over seeds, or none and why."""
    found = [files.read_json(Path(folder) / "metrics.json")["kl"] for folder in folders]
    samples = [files.read_jsonl(Path(folder) / "kl.jsonl") for folder in folders]
    if any(kl["value"] is None for kl in found) or not all(samples):
        return next((kl for kl in found if kl["value"] is None), found[0])
    if len({tuple(sample["id"] for sample in seed) for seed in samples}) > 1:
        return absent("the seeds were sampled on different prompts")
    return mean_interval([[sample["kl"] for sample in seed] for seed in samples])
