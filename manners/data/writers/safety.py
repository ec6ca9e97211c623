"""Safety sets (Bianchi 2024): harmful requests in several wordings, as questions and as instructions, each with an answer that declines.

A model that saw harmful questions only does as it is told when the same is asked as an instruction, so both forms are written. An answer is
kept if a rule says that it refuses. The rule reads words: it cannot tell a good refusal from a bad one, nor a refusal from one that goes on
to help; the 20 rows that are printed are there to be read. How much of a mixture is safety is one number, a share of `manners data mix`.
"""

from collections.abc import Callable, Sequence
from typing import Any

from manners.data.writers.desk import UNUSABLE, Desk, Reply
from manners.data.writers.filters import LEAK, Pool, bare, leaks, tokens
from manners.data.writers.seeds import Seed

HOW = "safety"
FORMS = ("question", "instruction")
DECLINED, AGAIN, NO_QUESTION, NO_REFUSAL = (
    "the writer declined to reword it",
    "the same words as another",
    "no question mark at the end of a question, or one at that of an instruction",
    "the answer does not refuse",
)
Refuses = Callable[[str], bool]


def write(desk: Desk, seeds: Sequence[Seed], *, per_row: int, limit: float, refuses: Refuses) -> list[dict[str, Any]]:
    """Rows of each harmful request, as it is and in `per_row` other wordings, with answers that decline."""
    asked = _worded(desk, seeds, per_row=per_row, limit=limit, refuses=refuses)
    replies = desk.ask("safe_answer", [{"request": text} for _, text, _, _ in asked], list(range(len(asked))))
    step = desk.step("answers", (*UNUSABLE, NO_REFUSAL))
    rows = []
    for (seed, text, form, made), reply in zip(asked, replies, strict=True):
        answer = bare(reply.text)
        if step.keeps(reply.fault or (None if answer and refuses(answer) else NO_REFUSAL), {"asked": text, "text": answer}):
            messages = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
            facts = {"form": form, "reworded": bool(made), "seed": seed.told}
            rows.append(desk.row(messages, HOW, [*made, reply], cluster="safety", license=seed.license, safety=facts))
    return rows


def _worded(desk: Desk, seeds: Sequence[Seed], *, per_row: int, limit: float, refuses: Refuses) -> list[tuple[Seed, str, str, list[Reply]]]:
    """(seed, request, form, what made it) of all requests: the seeds' own, and the model's wordings of them that can be used."""
    step = desk.step("wordings", (*UNUSABLE, LEAK, DECLINED, NO_QUESTION, AGAIN))
    jobs = [(seed, number) for seed in seeds for number in range(per_row)]
    forms = [FORMS[(seed.key + number) % len(FORMS)] for seed, number in jobs]
    fields = [{"request": seed.asked, "form": form} for (seed, _), form in zip(jobs, forms, strict=True)]
    replies = desk.ask("reword_harmful", fields, [seed.key * per_row + number for seed, number in jobs])
    seen = {seed.key: {" ".join(tokens(seed.asked))} for seed in seeds}
    pools = {seed.key: Pool([], max(limit, 0.9)) for seed in seeds}
    found = [(seed, seed.asked, FORMS[0] if seed.asked.rstrip().endswith("?") else FORMS[1], list[Reply]()) for seed in seeds]
    for (seed, _), form, reply in zip(jobs, forms, replies, strict=True):
        text = bare(reply.text)
        words = " ".join(tokens(text))
        why = reply.fault or (
            LEAK
            if leaks(text)
            else DECLINED
            if refuses(text)
            else NO_QUESTION
            if text.endswith("?") != (form == FORMS[0])
            else AGAIN
            if not words or words in seen[seed.key] or pools[seed.key].nearest(text)[0]
            else None
        )
        if step.keeps(why, {"from": seed.asked, "form": form, "text": text}):
            seen[seed.key].add(words)
            pools[seed.key].add(text)
            found.append((seed, text, form, [reply]))
    return sorted(found, key=lambda item: item[0].key)
