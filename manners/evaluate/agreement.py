"""How often the annotator prefers what people preferred, on public files of human comparisons.

    python -m manners.evaluate.agreement FOLDER [OUT.json]

FOLDER holds the files named in SETS. The annotator is given the prompt (of a dialogue its last user turn) and an answer, and neither a
reference nor wants, which these files do not have: it is measured at its weakest. A tie of the annotator counts one half; pairs on
which people tied or had no majority are dropped and counted.
"""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from manners.core import files
from manners.data.files import read_rows
from manners.data.formats import read
from manners.evaluate.intervals import LEVEL, RESAMPLES, SEED
from manners.feedback.annotator import annotate


@dataclass(frozen=True, slots=True)
class Compared:
    """A prompt and two answers, of which people preferred the first."""

    prompt: str
    better: str
    worse: str


@dataclass(frozen=True, slots=True)
class Judged:
    """The comparisons of a file, how many of its rows are dropped, and their agreement with one another where it is known.

    `among_people` is the share of pairs of votes on one row that are alike, votes for a tie left out.
    """

    pairs: list[Compared]
    dropped: int = 0
    among_people: float | None = None


def panda(path: Path) -> Judged:
    """PandaLM's test set: three votes a row (0 tie, 1 or 2); the majority decides."""
    pairs, dropped, alike, compared = [], 0, 0, 0
    for _, row in read_rows(str(path))[1]:
        votes = [row[f"annotator{i}"] for i in (1, 2, 3)]
        for a, b in combinations([vote for vote in votes if vote], 2):
            alike, compared = alike + (a == b), compared + 1
        vote, count = Counter(votes).most_common(1)[0]
        if not vote or count < 2:
            dropped += 1
            continue
        prompt = "\n\n".join(part for part in (row["instruction"], row["input"]) if part.strip())
        pairs.append(Compared(prompt, row[f"response{vote}"], row[f"response{3 - vote}"]))
    return Judged(pairs, dropped, alike / compared)


def llmbar(path: Path) -> Judged:
    """LLMBar's natural subset: one label a row, 1 or 2, that its authors agreed on."""
    rows = [row for _, row in read_rows(str(path))[1] if row["subset"] == "Natural"]
    return Judged([Compared(row["input"], row[f"output_{row['label']}"], row[f"output_{3 - row['label']}"]) for row in rows])


def hh(path: Path) -> Judged:
    """Anthropic's HH pairs: dialogues that part at the last answer."""
    data = read(path)
    pairs = [Compared(g.prompt.messages[-1].content, g.responses[0].text, g.responses[1].text) for g in data.groups]
    return Judged(pairs, len(data.refused))


SETS: dict[str, tuple[str, Callable[[Path], Judged]]] = {
    "pandalm": ("pandalm_human_comparisons.jsonl", panda),
    "llmbar_natural": ("llmbar_instruction_following.jsonl", llmbar),
    "hh_helpful": ("hh_rlhf_helpful_pairs.jsonl", hh),
    "hh_harmless": ("hh_rlhf_harmless_pairs.jsonl", hh),
}


def wins(scores: Sequence[tuple[float, float]]) -> list[float]:
    """1 where the better answer has the larger number, 0 where the worse has, one half at a tie."""
    return [0.5 if better == worse else float(better > worse) for better, worse in scores]


def share(values: Sequence[float], prompts: Sequence[str]) -> dict[str, float]:
    """Mean and its percentile interval at 95 %, by a bootstrap over prompts: the pairs of a prompt are drawn together."""
    index = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    sums, counts = np.zeros(len(index)), np.zeros(len(index))
    for prompt, value in zip(prompts, values, strict=True):
        sums[index[prompt]] += value
        counts[index[prompt]] += 1
    weights = np.random.default_rng(SEED).multinomial(len(index), np.full(len(index), 1 / len(index)), size=RESAMPLES)
    low, high = np.quantile((weights @ sums) / (weights @ counts), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"value": float(np.mean(values)), "low": float(low), "high": float(high)}


def agreement(judged: Judged) -> dict[str, Any]:
    """The annotator's agreement with people on a file, and that of the rule that the longer answer (in characters) is better."""
    prompts = [pair.prompt for pair in judged.pairs]
    scores = [(annotate(p.prompt, p.better).score, annotate(p.prompt, p.worse).score) for p in judged.pairs]
    return {
        "n": len(judged.pairs),
        "prompts": len(set(prompts)),
        "dropped": judged.dropped,
        "ties": sum(a == b for a, b in scores),
        "agreement": share(wins(scores), prompts),
        "longer_wins": share(wins([(len(p.better), len(p.worse)) for p in judged.pairs]), prompts),
        "among_people": judged.among_people,
    }


def measure(folder: str | Path) -> dict[str, dict[str, Any]]:
    """The agreement on every set, read from a folder of their files. Raises InputError for a file that is missing."""
    return {name: agreement(read_set(Path(folder) / file)) for name, (file, read_set) in SETS.items()}


def main(folder: str, out: str | None = None) -> None:
    """Print a line a set; write all figures to `out`."""
    found = measure(folder)
    print(f"{'set':<16}{'n':>5}{'dropped':>9}{'ties':>6}  agreement              longer wins")
    for name, figures in found.items():
        shown = "  ".join(f"{f['value']:.3f} [{f['low']:.3f}, {f['high']:.3f}]" for f in (figures["agreement"], figures["longer_wins"]))
        print(f"{name:<16}{figures['n']:>5}{figures['dropped']:>9}{figures['ties']:>6}  {shown}")
    if out is not None:
        main_set = found["pandalm"]
        record = {
            "command": "python -m manners.evaluate.agreement FOLDER docs/results/annotator.json",
            "commit": None,
            "seed": SEED,
            "n": main_set["n"],
            "value": main_set["agreement"]["value"],
            "interval": [main_set["agreement"]["low"], main_set["agreement"]["high"]],
            "note": "value and interval are PandaLM's. No reference and no wants; measured once, after the annotator was fixed.",
            "sets": found,
        }
        files.write_json(out, record)


if __name__ == "__main__":
    main(*sys.argv[1:])
