"""The quickstart's models on prompts that nobody here wrote: Koala's and Vicuna's test questions, Self-Instruct's user-oriented tasks.

    python -m benchmarks.foreign runs/protocol DATA [--rows N] [--seeds N] [--out docs/results/foreign.json]

DATA is the folder of the development data. Every model of the run, each of its first `--seeds` seeds, answers every prompt greedily, as
the recipe evaluates; Koala's and Vicuna's have no reference, so there the annotator judges form alone. `--rows` takes the first so many of
each set. Then the figures are put on docs/quickstart.md.
"""

import argparse
import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.quickstart import COLUMNS, ROOT, shown, span, table
from manners.core.files import read_json, read_jsonl, write_json, write_jsonl, write_text
from manners.evaluate.compare import ORDER, CompareSettings, compare
from manners.evaluate.prompts import EvaluateSettings, evaluate

SETS = {
    "koala": "instructions/koala_test_prompts.jsonl",
    "vicuna": "evaluation/vicuna_bench_questions.jsonl",
    "user_oriented": "instructions/user_oriented_instructions.jsonl",
}
RECORD = ROOT / "docs" / "results" / "foreign.json"
PAGE = "docs/quickstart.md"
SHOWN = ("gold", "stopped", "tokens", "repeated", "distinct_2")
PENDING = "*Not measured yet.*"
BEGIN, END = "<!-- figures: made by benchmarks/foreign.py -->", "<!-- end of foreign figures -->"


def files_of(data: Path, folder: Path, rows: int | None) -> list[str]:
    """The sets under their own names, cut to `rows`."""
    paths = []
    for name, place in SETS.items():
        kept = read_jsonl(data / place)[:rows]
        write_jsonl(folder / f"{name}.jsonl", kept)
        paths.append(str(folder / f"{name}.jsonl"))
    return paths


def models_of(run: Path) -> dict[str, list[tuple[str, str]]]:
    """Model and format of every evaluation of the run, by the model's name, one a seed."""
    found: dict[str, list[tuple[str, str]]] = {}
    for place in [*sorted(run.glob("evaluate-*")), *sorted(run.glob("seed-*/evaluate-*"))]:
        made = read_json(place / "manifest.json")["settings"]
        found.setdefault(place.name.removeprefix("evaluate-"), []).append((made["model"], made["format"]))
    return found


def measure(run: Path, data: Path, out: Path, rows: int | None, seeds: int | None = None, max_new_tokens: int = 48) -> dict[str, Any]:
    """Evaluate and compare all models of a run; what is finished is not done again."""
    prompts = files_of(data, out / "prompts", rows)
    folders: dict[str, list[str]] = {}
    for name, found in models_of(run).items():
        for seed, (model, form) in enumerate(found[:seeds]):
            folder = str(out / f"{name}-{seed}")
            evaluate(EvaluateSettings(model=model, prompts=prompts, out=folder, format=form, max_new_tokens=max_new_tokens))
            folders.setdefault(name, []).append(folder)
            gc.collect()  # a model lies in reference cycles
    return compare(CompareSettings(models=folders, out=str(out / "compare")))


def record(summary: Mapping[str, Any], command: str) -> dict[str, Any]:
    """What the page shows."""
    keys = [f"{name}/{metric}" for name in SETS for metric in SHOWN]
    return {
        "command": command,
        "models": {name: {key: metrics[key] for key in keys if key in metrics} for name, metrics in summary["models"].items()},
        "comparisons": [row for row in summary["comparisons"] if row["metric"] == "gold"],
    }


def told(kept: Mapping[str, Any] | None) -> str:
    """What stands between the page's markers."""
    if kept is None:
        return PENDING
    forms = {**{key: form for key, (_, form) in COLUMNS.items()}, "distinct_2": "{:.2f}"}
    heads = {"gold": "gold", "stopped": "stops by itself", "tokens": "tokens", "repeated": "repeats itself", "distinct_2": "distinct-2"}
    names = sorted(kept["models"], key=ORDER.index)
    rows = [
        [part, f"`{name}`", *(shown(kept["models"][name].get(f"{part}/{metric}"), forms[metric]) for metric in SHOWN)]
        for part in SETS
        for name in names
    ]
    scores = table(["prompts", "model", *(heads[m] for m in SHOWN)], rows, "|---|---|" + "---:|" * len(SHOWN))
    steps: Sequence[tuple[str, str]] = (("sft", "start"), ("bon", "sft"), ("dpo", "sft"), ("dpo", "as-shipped"))
    differences = [
        [f"{row['a']} less {row['b']}", row["set"], span(row["difference"], row["low"], row["high"]), str(row["n"])]
        for pair in steps
        for row in kept["comparisons"]
        if (row["a"], row["b"]) == pair
    ]
    gaps = table(["gold score", "prompts", "difference and 95 % interval", "n"], differences, "|---|---|---:|---:|")
    return "\n\n".join([f"`{kept['command']}`", scores, gaps])


def fill() -> None:
    """Put the record's figures on the page."""
    path = ROOT / PAGE
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    assert begin and END in rest, f"{PAGE} lacks the markers"
    kept = read_json(RECORD) if RECORD.exists() else None
    write_text(path, f"{before}{BEGIN}\n\n{told(kept)}\n\n{END}{rest.partition(END)[2]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--out", type=Path, default=RECORD)
    given = parser.parse_args()
    summary = measure(given.run, given.data, given.run / "foreign", given.rows, given.seeds)
    words = [f"--{name} {value}" for name in ("rows", "seeds") if (value := getattr(given, name))]
    write_json(given.out, record(summary, " ".join(["python -m benchmarks.foreign", str(given.run), "DATA", *words])))
    if given.out == RECORD:
        fill()


if __name__ == "__main__":
    main()
