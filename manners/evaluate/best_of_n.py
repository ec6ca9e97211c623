"""`manners best-of-n`: what choosing the best of n answers gives, for every n up to the N that were drawn once.

    value(n) = sum_i C(i-1, n-1) / C(N, n) v_(i)      v in the order of the reward, lowest first (`ops/best_of_n.py`)

without drawing anything more and without bias, for the reward that chooses and for another one that did not (the gold score).

    answers.jsonl    every answer with its scores, best first
    best.jsonl       the best answer of each prompt that ended by itself, as demonstrations: rejection sampling
    best_of_n.json   a row for each n, with intervals over prompts, and what is known of the answers
"""

import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from rich import box
from rich.table import Table

import manners
from manners.core import files
from manners.core.config import Settings
from manners.core.console import console
from manners.core.records import Group
from manners.core.run import file_hash, open_run
from manners.evaluate import curves
from manners.evaluate.intervals import mean_interval
from manners.evaluate.pools import Pool, read_pool, scored
from manners.feedback.labels import can_be_chosen
from manners.feedback.rewards import RewardSpec, identifying_reward
from manners.ops.best_of_n import kl_bound, proxy_win_rate

EVERY = 64
"""Up to so many answers a prompt, every n gets a row; of more, those of `curves.NS`."""


class BestOfNSettings(Settings):
    """Settings of `manners best-of-n`."""

    silent: ClassVar[frozenset[str]] = frozenset({"out"})

    data: str
    """Answers that manners generate wrote, with equally many samples to each prompt."""
    reward: RewardSpec
    """What chooses: a reward model's folder, annotator, module:function, http://..., or a sum (docs/best-of-n.md)."""
    gold: RewardSpec | None = None
    """A reward that does not choose, to see what the choice is worth."""
    out: str
    """Folder to write."""


def best_of_n(settings: BestOfNSettings) -> dict[str, Any]:
    """Score, estimate, choose; returns what `best_of_n.json` holds. A finished folder is returned as it is."""
    data_sha256 = file_hash(settings.data) if Path(settings.data).is_file() else None
    content = settings.model_dump(exclude={"out"}) | {"data_sha256": data_sha256} | identifying_reward(settings.reward)
    if settings.gold is not None:
        content |= identifying_reward(settings.gold, "gold")
    with open_run(settings.out, settings.model_dump(), content) as run:
        if run.manifest is not None:
            console.print(f"{run.path} is finished already; nothing to do")
            return files.read_json(run.path / "best_of_n.json")
        started = time.time()
        pool = read_pool(settings.data)
        proxy_PN = scored([pool], settings.reward, run.path / "scores", "reward")[0]
        gold_PN = scored([pool], settings.gold, run.path / "scores", "gold")[0] if settings.gold is not None else None
        found = {"points": curve(proxy_PN, gold_PN), **facts(pool, proxy_PN)}
        answers, best = chosen(pool, proxy_PN, gold_PN)
        files.write_jsonl(run.path / "answers.jsonl", answers)
        files.write_jsonl(run.path / "best.jsonl", best)
        files.write_json(run.path / "best_of_n.json", found)
        seconds = round(time.time() - started, 3)
        run.finish({"stage": "best-of-n", "manners": manners.__version__, "settings": settings.model_dump(), "seconds": seconds})
    show(found)
    console.print(f"{settings.out}: {len(best):,} best answers of {found['prompts']:,} prompts")
    return found


def curve(proxy_PN: np.ndarray, gold_PN: np.ndarray | None = None) -> list[dict[str, Any]]:
    """A row for each n: `kl_bound`, `proxy_win_rate` (of continuous scores), and with intervals `kl`, `proxy` and `gold`.

    `kl` is measured from equal scores (`curves.measured_kl`): the bound itself where all differ, less where answers tie.
    """
    samples = proxy_PN.shape[1]
    ns = list(range(1, samples + 1)) if samples <= EVERY else curves.numbers(samples)
    values = {"proxy": curves.best_of(proxy_PN, proxy_PN, ns)}
    if gold_PN is not None:
        values["gold"] = curves.best_of(proxy_PN, gold_PN, ns)
    kl_PK = curves.kl_of_best(proxy_PN, ns)
    estimated = {"kl": kl_PK, **values}
    return [
        {"n": n, "kl_bound": kl_bound(n), "proxy_win_rate": proxy_win_rate(n)}
        | {name: mean_interval(value_PK[:, k][None]) for name, value_PK in estimated.items()}
        for k, n in enumerate(ns)
    ]


def facts(pool: Pool, proxy_PN: np.ndarray) -> dict[str, Any]:
    """Counts, and how different the answers are: `distinct` texts and `distinct_scores` a prompt, `best_tied` the share of prompts whose
    best score stands under two different texts, `cut` the share of answers that the length limit cut."""
    each = [response for group in pool.groups for response in group.responses]
    texts = [len({r.text for r in group.responses}) for group in pool.groups]
    tied = [
        len({r.text for r, s in zip(group.responses, scores, strict=True) if s == scores.max()}) > 1
        for group, scores in zip(pool.groups, proxy_PN, strict=True)
    ]
    return {
        "prompts": len(pool.groups),
        "samples": proxy_PN.shape[1],
        "distinct": float(np.mean(texts)),
        "distinct_scores": float(np.mean([len(np.unique(scores)) for scores in proxy_PN])),
        "best_tied": float(np.mean(tied)),
        "cut": float(np.mean([r.finish_reason == "length" for r in each])),
    }


def chosen(pool: Pool, proxy_PN: np.ndarray, gold_PN: np.ndarray | None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of answers.jsonl and of best.jsonl. Of equal scores the first drawn comes first."""
    answers, best = [], []
    for place, group in enumerate(pool.groups):
        told = []
        for i in np.argsort(-proxy_PN[place], kind="stable").tolist():
            gold = {"gold": float(gold_PN[place, i])} if gold_PN is not None else {}
            response = group.responses[i]
            told.append(
                {"text": response.text.strip(), "finish_reason": response.finish_reason, "sample": i, "reward": float(proxy_PN[place, i])}
                | gold
            )
        asked = _asked(group)
        answers.append({"row": group.row, "prompt": asked, "answers": told})
        first = next((answer for answer in told if can_be_chosen(answer)), None)
        if first is not None:
            origin = {"row": group.row, "sample": first["sample"], "of": len(told)}
            best.append({"prompt": asked, "completion": first["text"], "score": first["reward"], "origin": origin})
    return answers, best


def _asked(group: Group) -> str | list[dict[str, str]]:
    """A prompt as data files write it: text, or turns where there are several."""
    turns = group.prompt.messages
    return turns[0].content if len(turns) == 1 else [{"role": turn.role, "content": turn.content} for turn in turns]


def show(found: dict[str, Any]) -> None:
    """The table on the terminal: powers of two, and the last."""
    points = [p for p in found["points"] if p["n"] & (p["n"] - 1) == 0 or p["n"] == found["samples"]]
    table = Table(box=box.SIMPLE)
    names = ["proxy", *(["gold"] if "gold" in points[0] else [])]
    for name in ("n", "KL bound", "KL measured", *names):
        table.add_column(name, justify="right")
    for point in points:
        cells = [f"{point[name]['value']:.2f} ({point[name]['low']:.2f} to {point[name]['high']:.2f})" for name in names]
        table.add_row(str(point["n"]), f"{point['kl_bound']:.3f}", f"{point['kl']['value']:.3f}", *cells)
    console.print(table)
    console.print(
        f"{found['prompts']:,} prompts, {found['samples']:,} answers each, {found['distinct']:.1f} of them distinct with "
        f"{found['distinct_scores']:.1f} scores; {found['cut']:.1%} were cut"
    )
