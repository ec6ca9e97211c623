"""The protocol's result as `docs/results/quickstart.json`, and its figures on the pages that show them.

    python -m benchmarks.quickstart runs/protocol COMMIT     read the run, write the record, fill the pages
    python -m benchmarks.quickstart seconds runs/quickstart  take the seconds from another run, one that had the machine to itself
    python -m benchmarks.quickstart                          fill the pages from the record that is there

What stands between two markers of a page is made here and nowhere else; `tests/test_quickstart.py` compares.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from manners.core.files import read_json, read_jsonl, write_json, write_text
from manners.core.run import stage_seconds
from manners.evaluate.compare import ORDER
from manners.feedback.annotator import fingerprint

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "docs" / "results" / "quickstart.json"
COMMAND = "manners run recipes/quickstart.yaml seeds=0,1,2 out=runs/protocol"
GOALS = (("sft", "start"), ("dpo", "sft"))
"""The differences of docs/protocol.md that have to be above zero."""
COLUMNS = {
    "gold": ("gold, test", "{:.2f}"),
    "held_out/gold": ("gold, held out", "{:.2f}"),
    "stopped": ("stops by itself", "{:.0%}"),
    "tokens": ("tokens", "{:.1f}"),
    "repeated": ("repeats itself", "{:.1%}"),
    "refusal_right": ("refuses rightly", "{:.0%}"),
    "kl": ("KL from start, nats", "{:.1f}"),
}
STAGES = {
    "sft": "300 demonstrations, 2 epochs",
    "samples": "4 answers to each of 150 prompts",
    "labels": "the annotator ranks them, with noise",
    "bon": "SFT on the best of 4",
    "dpo": "DPO on best against worst",
    "evaluate-start": "190 prompts",
    "evaluate-as-shipped": "190 prompts",
    "evaluate-sft": "190 prompts",
    "evaluate-bon": "190 prompts",
    "evaluate-dpo": "190 prompts",
    "compare": "differences, 10,000 resamples each",
    "report": "one HTML page",
}
CLASSICS = 3
BEGIN, END = "<!-- figures: made by benchmarks/quickstart.py -->", "<!-- end of figures -->"


def record(run: Path, commit: str) -> dict[str, Any]:
    """What the run says, as far as pages show it."""
    summary, plan = read_json(run / "summary.json"), read_json(run / "plan.json")
    gold = [row for row in summary["comparisons"] if row["metric"] == "gold"]
    of = {f"{row['a']} less {row['b']}": row for row in gold if row["set"] == "test"}
    goals = {f"{a} less {b}": of[f"{a} less {b}"] for a, b in GOALS}
    return {
        "command": COMMAND,
        "commit": commit,
        "seed": plan["recipe"]["seeds"],
        "n": next(iter(goals.values()))["n"],
        "value": {name: row["difference"] for name, row in goals.items()},
        "interval": {name: [row["low"], row["high"]] for name, row in goals.items()},
        "met": {name: row["low"] > 0 and min(row.get("by_seed", [row["difference"]])) > 0 for name, row in goals.items()},
        "annotator": fingerprint(),
        "versions": plan["versions"],
        "models": {name: {key: metrics[key] for key in COLUMNS if key in metrics} for name, metrics in summary["models"].items()},
        "comparisons": gold,
        "seconds": seconds_of(stage_seconds(run)),
        "seconds_from": COMMAND,
        "classics": classics(run, list(summary["models"])),
    }


def seconds_of(stages: Mapping[str, float]) -> dict[str, float]:
    """Seconds by stage, the mean where there are several seeds: what a run with one seed takes."""
    found: dict[str, list[float]] = {}
    for name, seconds in stages.items():
        found.setdefault(name.rpartition("/")[2], []).append(seconds)
    return {name: round(sum(found[name]) / len(found[name]), 1) for name in STAGES if name in found}


def classics(run: Path, models: Sequence[str]) -> list[dict[str, Any]]:
    """The first test prompts with every model's answer, of the first seed where there are several."""
    shown: list[dict[str, Any]] = []
    for model in models:
        place = next(p for p in [run / f"evaluate-{model}", *sorted(run.glob(f"seed-*/evaluate-{model}"))] if p.is_dir())
        for i, row in enumerate(read_jsonl(place / "answers.jsonl")[:CLASSICS]):
            if i == len(shown):
                shown.append({"prompt": row["prompt"], "answers": {}})
            shown[i]["answers"][model] = row["answer"]
    return shown


# --- pages ------------------------------------------------------------------------------------------------------------------------


def pages(kept: Mapping[str, Any]) -> dict[str, str]:
    """What stands between the markers of each page."""
    brief = [models_table(kept), goals_told(kept)]
    return {
        "README.md": "\n\n".join(brief),
        "docs/quickstart.md": "\n\n".join([*brief, differences_table(kept), classics_table(kept), seconds_table(kept)]),
    }


def models_table(kept: Mapping[str, Any]) -> str:
    head = ["model", *(heading for heading, _ in COLUMNS.values())]
    rows = [
        [f"`{name}`", *(shown(metrics.get(key), form) for key, (_, form) in COLUMNS.items())]
        for name, metrics in ordered(kept["models"], ORDER)
    ]
    return table(head, rows, "|---|" + "---:|" * len(COLUMNS))


def goals_told(kept: Mapping[str, Any]) -> str:
    seeds = ", ".join(map(str, kept["seed"]))
    goals = ordered(kept["met"], [f"{a} less {b}" for a, b in GOALS])
    told = [f"{name} {span(kept['value'][name], *kept['interval'][name])}, goal {'met' if met else 'not met'}" for name, met in goals]
    minutes = sum(kept["seconds"].values()) / 60
    return (
        f"Gold score on {kept['n']} test prompts, seeds {seeds}: {'; '.join(told)}.\n"
        f"Commit `{kept['commit']}`, `{kept['command']}`. One seed takes {minutes:.1f} minutes, all stages together "
        f"(`{kept['seconds_from']}`)."
    )


def differences_table(kept: Mapping[str, Any]) -> str:
    rows = []
    for row in kept["comparisons"]:
        seeds = " ".join(f"{value:+.2f}" for value in row.get("by_seed", [row["difference"]]))
        rows.append([f"{row['a']} less {row['b']}", row["set"], span(row["difference"], row["low"], row["high"]), seeds, str(row["n"])])
    return table(["gold score", "prompts", "difference and 95 % interval", "each seed", "n"], rows, "|---|---|---:|---:|---:|")


def classics_table(kept: Mapping[str, Any]) -> str:
    rows = [
        [cell(found["prompt"]), f"`{model}`", cell(answer)]
        for found in kept["classics"]
        for model, answer in ordered(found["answers"], ORDER)
    ]
    return table(["prompt", "model", f"answer, seed {kept['seed'][0]}"], rows, "|---|---|---|")


def seconds_table(kept: Mapping[str, Any]) -> str:
    rows = [[f"`{name}`", STAGES[name], f"{seconds:.0f}"] for name, seconds in ordered(kept["seconds"], list(STAGES))]
    rows.append(["in all", "", f"{sum(kept['seconds'].values()):.0f}"])
    return table(["stage", "what", "seconds"], rows, "|---|---|---:|")


def ordered(found: Mapping[str, Any], order: Sequence[str]) -> list[tuple[str, Any]]:
    """Items in a given order: a file of JSON holds them by the alphabet."""
    return sorted(found.items(), key=lambda item: order.index(item[0]))


def shown(estimate: Mapping[str, Any] | None, form: str) -> str:
    return "–" if estimate is None or estimate["value"] is None else form.format(estimate["value"])


def span(value: float, low: float, high: float) -> str:
    """A difference with its interval, in as many digits (two or three) as it takes to see on which side of zero the ends lie."""
    digits = 3 if any(end and abs(end) < 0.005 for end in (low, high)) else 2
    return f"{value:+.2f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def cell(text: str) -> str:
    """Text as a cell of a table, in which nothing of it is markup."""
    return re.sub(r"([\\|`*_<>\[\]#])", r"\\\1", " / ".join(text.split("\n"))) or "(nothing)"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], rule: str) -> str:
    return "\n".join([f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)])


def between(text: str) -> str:
    """What stands between the markers."""
    return text.partition(BEGIN)[2].partition(END)[0].strip()


def fill() -> None:
    """Put the record's figures on the pages."""
    for name, content in pages(read_json(RECORD)).items():
        path = ROOT / name
        before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
        assert begin and END in rest, f"{name} lacks the markers"
        write_text(path, f"{before}{BEGIN}\n\n{content}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "seconds":
        run = Path(sys.argv[2])
        said = {"seconds": seconds_of(stage_seconds(run)), "seconds_from": "make quickstart"}
        write_json(RECORD, read_json(RECORD) | said)
    elif len(sys.argv) == 3:
        write_json(RECORD, record(Path(sys.argv[1]), sys.argv[2]))
    fill()
