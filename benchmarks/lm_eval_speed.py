"""Multiple choice, five examples before each question: our rank scoring against lm-eval's transformers runner, on the same task file.

    python -m benchmarks.lm_eval_speed MODEL --arc arc_easy.jsonl --mmlu mmlu.jsonl --peer PYTHON [--rows N] [--batch-sizes 1,4,16]
        [--rounds N] [--sampler first_n|default] [--out R.json]

PYTHON is the interpreter of an environment that has lm-eval with torch and transformers. Both sides read the same YAML and data from a
temporary folder and run in processes of their own, one after the other. What is timed is the same on both: from requests as text to
log-likelihoods, tokenizing included; loading is not. For lm-eval each batch size is tried, and its fastest counts.

Log-likelihoods are compared row by row (the largest difference is printed, and a difference above 1e-3 is a fault), accuracy by the
largest sum. With --sampler first_n all questions have the same examples, which we compute once. lm-eval's default draws other examples
for every question, where only the options share: --sampler default measures that.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from manners.core import files

PEER = Path(__file__).with_name("peer_lm_eval.py")
TOLERANCE = 1e-3
CLOZE = "Question: {{question}}\nAnswer:"
LETTERS = (
    "{{question}}\n{% for choice in choices %}{{'ABCDEFGHIJ'[loop.index0]}}. {{choice}}\n{% endfor %}Answer:",
    "{{'ABCDEFGHIJ'[:choices|length]|list}}",
)


def prepared(folder: Path, name: str, path: str, rows: int | None, sampler: str) -> Path:
    """The task file of a set, its rows beside it."""
    import yaml

    from manners.evaluate.measurement import spaced
    from manners.evaluate.multiple_choice import questions_of

    shape, questions = questions_of(path, "auto")
    held = [{"question": q.text, "choices": list(q.options), "gold": q.right[0]} for q in spaced(questions, rows)]
    files.write_jsonl(folder / f"{name}.jsonl", held)
    letters = shape == "mmlu"
    task = {
        "task": f"local_{name}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "fewshot_split": "test",
        "num_fewshot": 5,
        "doc_to_text": LETTERS[0] if letters else CLOZE,
        "doc_to_choice": LETTERS[1] if letters else "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1},
        **({"fewshot_config": {"sampler": "first_n"}} if sampler == "first_n" else {}),
    }
    target = folder / f"{name}.yaml"
    files.write_text(target, yaml.safe_dump(task, sort_keys=False))
    return target


def ours(model: str, task: str, micro_tokens: int) -> dict[str, Any]:
    """Our side, in a process of its own: what `peer_lm_eval.py` prints."""
    import torch

    from manners.evaluate.continuations import Scorer
    from manners.evaluate.multiple_choice import task_items
    from manners.evaluate.subject import LocalSubject, open_subject

    subject = open_subject(model, "plain")
    assert isinstance(subject, LocalSubject)
    items = task_items(task, None, None)
    started = time.perf_counter()
    scored = iter(Scorer(subject, micro_tokens).logps([pair for item in items for pair in item.pairs]))
    seconds = time.perf_counter() - started
    rows = []
    for number, item in enumerate(items):
        logps = [next(scored).logp for _ in item.pairs]
        rows.append({"doc_id": number, "logps": logps, "acc": float(logps.index(max(logps)) in item.right)})
    accuracy = sum(row["acc"] for row in rows) / len(rows)
    return {"seconds": seconds, "accuracy": accuracy, "rows": rows, "threads": torch.get_num_threads()}


def ran(*command: str) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(lines[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--arc")
    parser.add_argument("--mmlu")
    parser.add_argument("--peer")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--batch-sizes", default="1,2,4,8,16")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--sampler", choices=("first_n", "default"), default="first_n")
    parser.add_argument("--micro-tokens", type=int, default=2048)
    parser.add_argument("--out")
    parser.add_argument("--task", help=argparse.SUPPRESS)  # our own side, started by this program
    args = parser.parse_args()
    if args.task:
        print(json.dumps(ours(args.model, args.task, args.micro_tokens)))
        return
    sets = {name: path for name, path in (("arc_easy", args.arc), ("mmlu", args.mmlu)) if path}
    if not sets or not args.peer:
        parser.error("give --peer, and --arc or --mmlu")
    report: dict[str, Any] = {"model": args.model, "sampler": args.sampler, "sets": {}}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, path in sets.items():
            task = prepared(folder, name, path, args.rows, args.sampler)
            mine, theirs = [], {size: [] for size in map(int, args.batch_sizes.split(","))}
            for _ in range(args.rounds):
                own = (sys.executable, "-m", "benchmarks.lm_eval_speed", args.model, "--task", str(task))
                mine.append(ran(*own, "--micro-tokens", str(args.micro_tokens)))
                for size in theirs:
                    theirs[size].append(ran(args.peer, str(PEER), args.model, str(folder), f"local_{name}", str(size)))
            report["sets"][name] = compared(name, mine, theirs)
    if args.out:
        files.write_json(Path(args.out), report)
    if any(found["largest_difference"] > TOLERANCE or not found["same_accuracy"] for found in report["sets"].values()):
        raise SystemExit("the two sides do not agree")


def compared(name: str, mine: list[dict[str, Any]], theirs: dict[int, list[dict[str, Any]]]) -> dict[str, Any]:
    """Print and return what the two sides say of a set."""
    seconds = {size: min(run["seconds"] for run in runs) for size, runs in theirs.items()}
    best = min(seconds, key=lambda size: seconds[size])
    first, other = mine[0], theirs[best][0]
    pairs = [(a, b) for x, y in zip(first["rows"], other["rows"], strict=True) for a, b in zip(x["logps"], y["logps"], strict=True)]
    largest = max(abs(a - b) for a, b in pairs)
    own = min(run["seconds"] for run in mine)
    same = first["accuracy"] == other["accuracy"]
    print(f"{name}: {len(first['rows'])} rows, {len(pairs)} log-likelihoods, largest difference {largest:.2e}")
    print(f"  accuracy {first['accuracy']:.4f} ours, {other['accuracy']:.4f} theirs: {'the same' if same else 'NOT the same'}")
    print(f"  seconds: {own:.1f} ours; theirs {', '.join(f'{s:.1f} at batch size {n}' for n, s in seconds.items())}")
    print(
        f"  {seconds[best] / own:.2f} times as fast as its fastest batch size ({best}); threads {first['threads']} and {other['threads']}"
    )
    return {
        "rows": len(first["rows"]),
        "log_likelihoods": len(pairs),
        "largest_difference": largest,
        "accuracy": {"ours": first["accuracy"], "theirs": other["accuracy"]},
        "same_accuracy": same,
        "seconds": {"ours": own, "theirs": seconds, "rounds": {"ours": [run["seconds"] for run in mine]}},
        "ratio": seconds[best] / own,
        "fastest_batch_size": best,
        "threads": {"ours": first["threads"], "theirs": other["threads"]},
    }


if __name__ == "__main__":
    main()
