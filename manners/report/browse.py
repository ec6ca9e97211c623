"""The sample browser's rows: every prompt with every model's answer, of one run or of many, within a budget of text."""

from collections.abc import Sequence

from manners.report import story
from manners.report.read import Row, Run

BUDGET = 1_600_000
"""Characters of answers and what surrounds them; beyond it, prompts evenly spaced over all are shown."""
AROUND = 190


def model_key(run: Run, model: str, several: bool) -> str:
    """A model's name in a page: with its run where there are several."""
    return f"{run.name} / {model}" if several else model


def samples(runs: Sequence[Run]) -> Row:
    """`{"cards", "shown", "all", "sets", "clusters", "models"}`; a card has the answers of all runs to the same prompt of the same set."""
    several = len(runs) > 1
    merged: dict[tuple[str, str, str], Row] = {}
    models: dict[str, None] = {}
    for run in runs:
        for part in run.sets:
            for card in story.cards(run, part):
                key = (part, card["id"], card["prompt"])
                held = merged.setdefault(key, {**card, "set": part, "cluster": card["cluster"] or "other", "answers": []})
                for answer in card["answers"]:
                    name = model_key(run, answer["model"], several)
                    models[name] = None
                    held["answers"].append({**answer, "key": name, "colour": answer["model"]})
    cards = list(merged.values())
    size = sum(len(answer["text"]) + AROUND for card in cards for answer in card["answers"])
    keep = len(cards) if size <= BUDGET else max(1, int(len(cards) * BUDGET / size))
    chosen = [cards[i * len(cards) // keep] for i in range(keep)] if keep < len(cards) else cards
    unique = lambda name: list(dict.fromkeys(card[name] for card in chosen))
    return {
        **{"cards": chosen, "shown": len(chosen), "all": len(cards), "models": list(models)},
        **{"sets": unique("set"), "clusters": unique("cluster")},
    }
