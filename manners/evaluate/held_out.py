"""`manners eval held-out`: what training on other clusters of tasks is worth on a cluster never trained on (Wei 2022, leave one out).

    start       the model before training
    held out    trained on every cluster but the one that it is asked
    with        trained on that cluster too, on other rows of it; absent if none is given

All three answer the same rows, so differences are paired. Held out less start is what carries over from other tasks; with less held out is
what the cluster's own rows add. Before anything is counted, the training rows of each fold are looked at: one of the held-out cluster, or
with the prompt of a row that is asked, is a leak, and an error. Tasks of one name on both sides are listed.

    results.json    every measure for each cluster and as a macro average, for each model; the differences with Holm's verdicts
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from rich import box
from rich.table import Table

import manners
from manners.core import files
from manners.core.config import Settings
from manners.core.console import console
from manners.core.errors import InputError, nearest
from manners.data.splits import row_text
from manners.evaluate.compare import Folders
from manners.evaluate.paired import ALPHA, NO_DIFFERENCE, judge
from manners.evaluate.references import MACRO, MEASURES, SHARES
from manners.evaluate.references import VERSION as ASKED_VERSION
from manners.evaluate.results import Result, result
from manners.evaluate.strata import combined, difference

VERSION = 1
START, HELD, WITH = "start", "held out", "with"
PAIRS = ((HELD, START), (WITH, HELD), (WITH, START))
Answers = dict[str, dict[str, Mapping[str, Any]]]
"""Cluster -> id -> a line of `rows.jsonl`."""


class HeldOutSettings(Settings):
    """Settings of `manners eval held-out`."""

    folds: str
    """Folder that manners data split wrote, with a fold a cluster."""
    held: Folders
    """By cluster the manners eval references folders of the model that was not trained on it, one a seed."""
    start: Annotated[list[str], Field(min_length=1)]
    """The same of the model before training, asked the test rows of all folds."""
    trained: Annotated[list[str], Field(min_length=1)] | None = None
    """The same of the model that was trained on every cluster, one a seed."""
    metric: str = "rouge_l"
    """The measure that is printed and tested: exact_match, squad_exact, token_f1, rouge_l."""
    out: str
    """Folder to write."""


def held_out(settings: HeldOutSettings) -> dict[str, Any]:
    """Check, compare, print and write; returns what `results.json` holds."""
    started = time.time()
    if settings.metric not in MEASURES:
        raise InputError(f"metric={settings.metric}: there is no such measure; {nearest(settings.metric, MEASURES)}")
    checked = check_folds(settings.folds, settings.held)
    values = gather(settings)
    results = [found for metric in MEASURES for found in _figures(values, metric)]
    rows = [row for metric in MEASURES for row in _differences(values, metric)]
    families = judge(rows, lambda row: (row["metric"], row["cluster"] is None))
    report = {
        "evaluation": "held-out",
        "version": VERSION,
        "metric": settings.metric,
        "results": results,
        "comparisons": rows,
        "folds": checked,
        "seeds": {model: len(next(iter(of[settings.metric].values()))) for model, of in values.items()},
        "tests": {
            "alpha": ALPHA,
            "correction": "Holm; all clusters of a measure are a family, its macro averages another",
            "families": {f"{MACRO if macro else ''}{metric}": size for (metric, macro), size in families.items()},
        },
        "manners": manners.__version__,
    }
    out = Path(settings.out)
    files.write_json(out / "results.json", report)
    seconds = round(time.time() - started, 3)
    files.write_json(out / "manifest.json", {"stage": "eval held-out", "settings": settings.model_dump(), "seconds": seconds})
    show(report)
    return report


# --- is anything held out? --------------------------------------------------------------------------------------------------------


def check_folds(folder: str, clusters: Iterable[str]) -> dict[str, Any]:
    """The folds of a split by cluster, each with its counts. Raises InputError for one that is not there, and for a leak."""
    place = Path(folder)
    if not (place / "split.json").is_file():
        raise InputError(f"'{folder}' holds no split; give the folder that manners data split wrote.")
    folds = files.read_json(place / "split.json").get("folds") or {}
    found = {}
    for cluster in clusters:
        if cluster not in folds:
            raise InputError(f"held= names the cluster '{cluster}', and '{folder}' has no such fold; {nearest(cluster, folds)}")
        home = place / folds[cluster]["folder"]
        train, asked = files.read_jsonl(home / "train.jsonl"), files.read_jsonl(home / "test.jsonl")
        refuse_leak(cluster, train, asked)
        both = {row.get("task") for row in train} & {row.get("task") for row in asked} - {None, ""}
        found[cluster] = {
            **{key: value for key, value in folds[cluster].items() if key != "shown"},
            "tasks_on_both_sides": sorted(map(str, both)),
        }
    return found


def refuse_leak(cluster: str, train: Sequence[Mapping[str, Any]], asked: Sequence[Mapping[str, Any]]) -> None:
    """Raise InputError if a training row is of the held-out cluster, or has the prompt of a row that is asked."""
    tell = lambda row: " ".join(row_text(dict(row)).casefold().split())
    prompts = {tell(row) for row in asked}
    for number, row in enumerate(train, 1):
        why = (
            "is of that cluster"
            if row.get("cluster") == cluster
            else "has the prompt of a row that is asked"
            if tell(row) in prompts
            else ""
        )
        if why:
            raise InputError(f"the fold of '{cluster}' leaks: training row {number} {why} ({row_text(dict(row))[:80]!r}); split again.")


# --- the answers ------------------------------------------------------------------------------------------------------------------

Values = dict[str, dict[str, dict[tuple[str, str], np.ndarray]]]
"""Model -> measure -> (cluster, task) -> values (S, P) on the rows that every model scored."""


def gather(settings: HeldOutSettings) -> Values:
    """The values of all models on the same rows. Raises InputError for an unfinished evaluation, and where no row is common to all."""
    clusters = list(settings.held)
    models: dict[str, list[Answers]] = {START: [read(folder) for folder in settings.start]}
    seeds = {len(folders) for folders in settings.held.values()}
    if len(seeds) > 1 or (settings.trained and seeds != {len(settings.trained)}):
        raise InputError("every cluster, and trained=, needs one folder a seed, equally many each.")
    # a fold's model answers for its own cluster alone
    models[HELD] = [
        {cluster: read(folders[s]).get(cluster, {}) for cluster, folders in settings.held.items()} for s in range(next(iter(seeds)))
    ]
    if settings.trained:
        models[WITH] = [read(folder) for folder in settings.trained]
    found: Values = {model: {metric: {} for metric in MEASURES} for model in models}
    for cluster in clusters:
        every = [answers.get(cluster, {}) for of in models.values() for answers in of]
        scored = [label for label in every[0] if all(label in of and not of[label]["unscored"] for of in every)]
        if not scored:
            raise InputError(f"no row of the cluster '{cluster}' is answered and scored by all models; ask each the fold's test.jsonl.")
        for task in dict.fromkeys(every[0][label]["task"] for label in scored):
            own = [label for label in scored if every[0][label]["task"] == task]
            for model, of in models.items():
                for metric in MEASURES:
                    values = [[answers[cluster][label]["values"][metric] for label in own] for answers in of]
                    found[model][metric][cluster, task] = np.array(values, dtype=np.float64)
    return found


def read(folder: str) -> Answers:
    """The rows of a finished `manners eval references` by cluster and id. Raises InputError for anything else."""
    place = Path(folder)
    report = files.read_json(place / "results.json") if (place / "manifest.json").is_file() and (place / "results.json").is_file() else {}
    if report.get("evaluation") != "references" or report.get("version") != ASKED_VERSION:
        raise InputError(f"'{folder}' holds no finished evaluation of manners eval references (version {ASKED_VERSION}).")
    found: Answers = {}
    for row in files.read_jsonl(place / "rows.jsonl"):
        found.setdefault(row["set"], {})[row["id"]] = row
    return found


# --- figures ----------------------------------------------------------------------------------------------------------------------


def _parts(keys: Sequence[tuple[str, str]]) -> list[tuple[str | None, list[tuple[str, str]], list[float]]]:
    """(cluster, its tasks, their weights), then (None, all of them, their weights in the mean over clusters)."""
    clusters = list(dict.fromkeys(cluster for cluster, _ in keys))
    of = {cluster: [key for key in keys if key[0] == cluster] for cluster in clusters}
    every = [(name, own, [1 / len(own)] * len(own)) for name, own in of.items()]
    return [*every, (None, list(keys), [1 / (len(clusters) * len(of[cluster])) for cluster, _ in keys])]


def _figures(values: Values, metric: str) -> list[Result]:
    found = []
    for model, of in values.items():
        for cluster, keys, weights in _parts(list(of[metric])):
            estimate = combined([of[metric][key] for key in keys], weights, share=metric in SHARES)
            name = f"{model}/{metric}" if cluster is not None else f"{model}/{MACRO}{metric}"
            found.append(result(name, estimate, version=VERSION, direction="higher", set=cluster or ""))
    return found


def _differences(values: Values, metric: str) -> list[dict[str, Any]]:
    found = []
    for a, b in PAIRS:
        if a in values and b in values:
            for cluster, keys, weights in _parts(list(values[a][metric])):
                gaps = [np.atleast_2d(values[a][metric][key] - values[b][metric][key]) for key in keys]
                found.append({"a": a, "b": b, "cluster": cluster, "metric": metric, **difference(gaps, weights)})
    return found


def show(report: Mapping[str, Any]) -> None:
    """Print the clusters, one a line, and the macro averages, with what held-out training changed."""
    metric = report["metric"]
    value = {(found["name"], found.get("set", "")): found for found in report["results"]}
    models = list(report["seeds"])
    table = Table("cluster", title=f"{metric}, leaving a cluster out", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("rows", *models, f"{HELD} less {START}", "95 %", "verdict"):
        table.add_column(heading, justify="right")
    lines = [row for row in report["comparisons"] if row["metric"] == metric and (row["a"], row["b"]) == (HELD, START)]
    for row in lines:
        name = lambda model, row=row: (f"{model}/{metric}", row["cluster"]) if row["cluster"] else (f"{model}/{MACRO}{metric}", "")
        shown = [f"{value[name(model)]['value']:.3f}" for model in models]
        between = f"{row['low']:+.3f} to {row['high']:+.3f}"
        table.add_row(row["cluster"] or "mean of clusters", str(row["n"]), *shown, f"{row['difference']:+.3f}", between, row["verdict"])
    console.print(table)
    better = sum(row["difference"] > 0 for row in lines if row["cluster"])
    shown = sum(row["verdict"] not in (NO_DIFFERENCE, None) and row["difference"] > 0 for row in lines if row["cluster"])
    count = len(lines) - 1
    console.print(f"held out is above the start in {better} of {count} clusters, shown beyond chance in {shown}")
