"""Evolving instructions (Xu 2023): harder by one of four operators, or another one of the same field; what got nowhere is dropped.

Each round draws an operator for every instruction, all equally likely, and asks the model to rewrite it. A rewriting that fails a rule
leaves the instruction as it was for the next round. Answers are the model's own, to every instruction that came through.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from manners.core.errors import InputError, nearest
from manners.core.records import Message
from manners.data.writers.desk import UNUSABLE, Desk, Reply
from manners.data.writers.filters import (
    ANSWER_RULES,
    EVOLVED_RULES,
    LEAK,
    NOTHING_GAINED,
    UNCHANGED,
    UNJUDGED,
    answer_fault,
    bare,
    leaks,
    tokens,
)
from manners.data.writers.seeds import Seed

HOW = "evolve"
OPERATORS = ("constrain", "deepen", "concretise", "reason", "broaden")
"""Four in depth, and in breadth."""


@dataclass
class Line:
    """A seed and what became of it."""

    seed: Seed
    text: str
    replies: list[Reply] = field(default_factory=list)


def write(
    desk: Desk, seeds: Sequence[Seed], *, rounds: int, operators: Sequence[str] = OPERATORS, judge: bool = True
) -> list[dict[str, Any]]:
    """Rows of every instruction that came through in any round, with its answer, round after round."""
    lines = [Line(seed, seed.asked) for seed in seeds]
    known = {_same(line.text) for line in lines}
    rows = []
    for number in range(rounds):
        drawn = [desk.chance(HOW, number, line.seed.key).choice(list(operators)) for line in lines]
        came = _round(desk, number, lines, drawn, known, judge)
        rows += _answered(desk, number, came)
    return rows


def checked(operators: Sequence[str]) -> Sequence[str]:
    """The operators themselves. Raises InputError for one that is not there."""
    for operator in operators:
        if operator not in OPERATORS:
            raise InputError(f"there is no operator '{operator}'; {nearest(operator, OPERATORS)}")
    return operators


def _round(
    desk: Desk, number: int, lines: Sequence[Line], drawn: Sequence[str], known: set[str], judge: bool
) -> list[tuple[Line, str, str, list[Reply]]]:
    """(line, operator, the text it came from, replies) of each line that came through; the line then holds the new text."""
    step = desk.step("rewritten", (*UNUSABLE, *EVOLVED_RULES))
    replies: dict[int, Reply] = {}
    for operator in dict.fromkeys(drawn):
        places = [i for i, op in enumerate(drawn) if op == operator]
        asked = desk.ask(
            f"evolve_{operator}",
            [{"instruction": lines[i].text} for i in places],
            [lines[i].seed.key for i in places],
            stage=f"evolve_{operator} {number}",
        )
        replies |= zip(places, asked, strict=True)
    texts = {i: bare(replies[i].text) for i in range(len(lines))}
    faults = {i: replies[i].fault or _form(texts[i], known) for i in texts}
    verdicts: dict[int, Reply] = {}
    if judge:
        places = [i for i in texts if faults[i] is None]
        rows = [{"first": lines[i].text, "second": texts[i]} for i in places]
        verdicts |= zip(places, desk.ask("evolve_judge", rows, places, verdict=True, stage=f"evolve_judge {number}"), strict=True)
    came = []
    for i, line in enumerate(lines):
        if faults[i] is None and _same(texts[i]) in known:  # another line of this round came to the same
            faults[i] = UNCHANGED
        why = faults[i] or (_verdict(verdicts[i].text) if judge else None)
        if step.keeps(why, {"operator": drawn[i], "from": line.text, "text": texts[i]}):
            came.append((line, drawn[i], line.text, [replies[i]]))
            line.text = texts[i]
            known.add(_same(texts[i]))
    return came


def _same(text: str) -> str:
    return " ".join(tokens(text)) or text


def _form(text: str, known: set[str]) -> str | None:
    if not text or _same(text) in known:
        return UNCHANGED
    return LEAK if leaks(text) else None


def _verdict(said: str) -> str | None:
    """The judge says `more` or `equal` first; anything else is no verdict, and an instruction without one is dropped."""
    first = next(iter(tokens(said)), "")
    return {"more": None, "equal": NOTHING_GAINED}.get(first, UNJUDGED)


def _answered(desk: Desk, number: int, came: Sequence[tuple[Line, str, str, list[Reply]]]) -> list[dict[str, Any]]:
    step = desk.step("answers", (*UNUSABLE, *ANSWER_RULES))
    prompts = [line.seed.messages(line.text) for line, *_ in came]
    answers = desk.converse(prompts, [line.seed.key for line, *_ in came], stage=f"answer {number}")
    rows = []
    for (line, operator, parent, replies), prompt, answer in zip(came, prompts, answers, strict=True):
        if step.keeps(answer.fault or answer_fault(answer.text), {"asked": line.text, "text": answer.text}):
            messages = [{"role": m.role, "content": m.content} for m in (*prompt, Message("assistant", answer.text))]
            facts = {"operator": operator, "round": number, "parent": parent, "seed": line.seed.told}
            rows.append(desk.row(messages, HOW, replies, cluster=line.seed.cluster, license=line.seed.license, evolved=facts))
    return rows
