"""Four ways to other instructions: paraphrases that keep their slots, requests of given persons, constraints that a program can check, and
instructions for texts that are there already (back-translation, Li 2024)."""

from collections.abc import Callable, Sequence
from typing import Any

from manners.core.records import Message
from manners.data.writers.constraints import Constraint, draw
from manners.data.writers.desk import UNUSABLE, Desk
from manners.data.writers.filters import (
    ANSWER_RULES,
    INSTRUCTION_RULES,
    LEAK,
    Pool,
    answer_fault,
    bare,
    instruction_fault,
    leaks,
    rouge_l,
    slots,
    tokens,
)
from manners.data.writers.seeds import Seed

# ---------------------------------------------------------------------------------------------------------- paraphrase

LOST_SLOTS, SAME_WORDS, WANDERED = "a slot is lost, added or changed", "the same words", "three times as long, or a third"
PARAPHRASE_RULES = (*UNUSABLE, LEAK, LOST_SLOTS, SAME_WORDS, WANDERED)
TONES = ("plain", "formal", "casual", "as a question", "as an order", "as short as it can be said")
"""Ways to say it, of which each paraphrase of a text gets another one while they last."""


def paraphrase(desk: Desk, seeds: Sequence[Seed], *, per_row: int) -> list[dict[str, Any]]:
    """Each prompt in `per_row` other wordings, with the answer that it had; a row of `prompt` alone where it had none."""
    step = desk.step("paraphrases", PARAPHRASE_RULES)
    jobs = [(seed, number) for seed in seeds for number in range(per_row)]
    tones = {seed.key: desk.chance("paraphrase", seed.key).sample(TONES, len(TONES)) for seed in seeds}
    fields = [{"text": seed.asked, "tone": tones[seed.key][number % len(TONES)], "slots": list(slots(seed.asked))} for seed, number in jobs]
    replies = desk.ask("paraphrase", fields, [seed.key * per_row + number for seed, number in jobs])
    seen = {seed.key: {_same(seed.asked)} for seed in seeds}
    rows = []
    for (seed, number), given, reply in zip(jobs, fields, replies, strict=True):
        text = bare(reply.text)
        why = reply.fault or _paraphrase_fault(seed.asked, text, seen[seed.key])
        if step.keeps(why, {"from": seed.asked, "text": text}):
            seen[seed.key].add(_same(text))
            facts = {"tone": given["tone"], "number": number, "seed": seed.told}
            turns = [Message(m.role, m.content) for m in (*seed.messages(text), *(seed.group.responses[0].turns if seed.answer else ()))]
            row = desk.row(_plain(turns), "paraphrase", [reply], cluster=seed.cluster, license=seed.license, paraphrase=facts)
            if not seed.answer:
                row = {"prompt": row.pop("messages"), **row}
            rows.append(row)
    return rows


def _paraphrase_fault(before: str, after: str, seen: set[str]) -> str | None:
    if leaks(after) and not leaks(before):
        return LEAK
    if slots(before) != slots(after):
        return LOST_SLOTS
    if _same(after) in seen:
        return SAME_WORDS
    ratio = len(after) / max(len(before), 1)
    return WANDERED if not 1 / 3 <= ratio <= 3 else None


# ------------------------------------------------------------------------------------------------------------- persona

PERSONAS = (
    "a nurse on night shifts who is learning Spanish",
    "a retired bus driver who grows vegetables on a balcony",
    "a first-year student of economics who is afraid of statistics",
    "a father of three who cooks on weekdays and has half an hour for it",
    "the owner of a small bicycle workshop who hates paperwork",
    "a teacher of ten year olds who is planning a week about the oceans",
    "a volunteer who organises the summer party of a village",
    "a programmer who has to explain her work to people who do not program",
    "a hobby astronomer with a small telescope in a bright city",
    "a translator of old letters who likes rare words",
    "a young footballer with a sprained ankle",
    "somebody who has just moved to another country and does not know its habits",
)


def persona(desk: Desk, seeds: Sequence[Seed], personas: Sequence[str], *, per_row: int, limit: float) -> list[dict[str, Any]]:
    """`per_row` requests of each person, in the manner of two of the seeds, with the model's answers."""
    step = desk.step("requests", (*UNUSABLE, LEAK, *INSTRUCTION_RULES))
    given = [seed.asked for seed in seeds]
    jobs = [(person, number) for person in personas for number in range(per_row)]
    keys = list(range(len(jobs)))
    fields = [
        {"persona": person, "examples": desk.chance("persona", key).sample(given, min(2, len(given)))}
        for key, (person, _) in zip(keys, jobs, strict=True)
    ]
    replies = desk.ask("persona", fields, keys)
    pool = Pool(given, limit)
    kept = []
    for key, (person, _), reply in zip(keys, jobs, replies, strict=True):
        text = bare(reply.text)
        why = reply.fault or (LEAK if leaks(text) else instruction_fault(text, pool) if text else INSTRUCTION_RULES[0])
        if step.keeps(why, {"persona": person, "text": text}):
            pool.add(text)
            kept.append((key, person, text, reply))
    answers = desk.converse([[Message("user", text)] for _, _, text, _ in kept], [key for key, *_ in kept], stage="persona answer")
    step = desk.step("answers", (*UNUSABLE, *ANSWER_RULES))
    rows = []
    for (_, person, text, reply), answer in zip(kept, answers, strict=True):
        if step.keeps(answer.fault or answer_fault(answer.text), {"asked": text, "text": answer.text}):
            rows.append(desk.row(_dialogue(text, answer.text), "persona", [reply], persona=person))
    return rows


# --------------------------------------------------------------------------------------------------------- constraints

BROKEN = "breaks a constraint"
Check = Callable[[Constraint, str], bool]
"""Whether an answer keeps a constraint."""


def constrained(desk: Desk, seeds: Sequence[Seed], *, per_row: int, most: int, check: Check) -> list[dict[str, Any]]:
    """Each prompt with one to `most` constraints in `per_row` draws, with the answers that keep them all. The rows name them as IFEval
    does (`instruction_id_list`, `kwargs`), so that `manners eval ifeval` and the reward `ifeval` read them."""
    step = desk.step("answers", (*UNUSABLE, *ANSWER_RULES, BROKEN))
    jobs = [(seed, number) for seed in seeds for number in range(per_row)]
    keys = [seed.key * per_row + number for seed, number in jobs]
    drawn = []
    for key in keys:
        chance = desk.chance("constraints", key)
        drawn.append(draw(chance, chance.randint(1, most)))
    texts = [" ".join([seed.asked.rstrip(), *(c.said for c in held)]) for (seed, _), held in zip(jobs, drawn, strict=True)]
    prompts = [seed.messages(text) for (seed, _), text in zip(jobs, texts, strict=True)]
    answers = desk.converse(prompts, keys, stage="constrained answer")
    rows = []
    for (seed, number), held, prompt, text, answer in zip(jobs, drawn, prompts, texts, answers, strict=True):
        broken = [c.kind for c in held if not check(c, answer.text)] if answer.text else []
        why = answer.fault or answer_fault(answer.text) or (BROKEN if broken else None)
        if step.keeps(why, {"asked": text, "text": answer.text, "broken": broken}):
            messages = _plain([*prompt, Message("assistant", answer.text)])
            named = {"instruction_id_list": [c.kind for c in held], "kwargs": [dict(c.arguments) for c in held]}
            facts = {"number": number, "seed": seed.told}
            rows.append(desk.row(messages, "constraints", [], cluster=seed.cluster, license=seed.license, constrained=facts, **named))
    return rows


# ----------------------------------------------------------------------------------------------------- back-translation

COPIED, UNRATED, LOW = "copies the text", "no mark that can be read", "marked too low by the model"
COPY = 0.6
"""Share of the instruction's words, in order, that may stand in the text."""
GOOD = 4
"""Mark out of 5 that an instruction and its text need to be kept."""


def backtranslated(desk: Desk, seeds: Sequence[Seed], *, per_row: int, limit: float, curate: bool) -> list[dict[str, Any]]:
    """For each text (an answer, or plain text) `per_row` instructions that it could be the answer to. The text stays as it is: the row's
    answer is its author's, only what is asked is the model's."""
    step = desk.step("instructions", (*UNUSABLE, LEAK, *INSTRUCTION_RULES, COPIED))
    jobs = [(seed, number) for seed in seeds for number in range(per_row)]
    keys = [seed.key * per_row + number for seed, number in jobs]
    replies = desk.ask("backtranslate", [{"text": seed.answer or seed.asked} for seed, _ in jobs], keys)
    pool = Pool(limit=limit)
    kept = []
    for key, (seed, number), reply in zip(keys, jobs, replies, strict=True):
        text = bare(reply.text)
        why = reply.fault or (LEAK if leaks(text) else instruction_fault(text, pool) if text else INSTRUCTION_RULES[0])
        if why is None and _copied(text, seed.answer or seed.asked):
            why = COPIED
        if step.keeps(why, {"from": (seed.answer or seed.asked)[:500], "text": text}):
            pool.add(text)
            kept.append((key, seed, number, text, reply))
    marks = _marks(desk, kept) if curate else {}
    rows = []
    for key, seed, number, text, reply in kept:
        if curate and key not in marks:
            continue
        facts = {"number": number, "seed": {**seed.told, "text": ""}, "answer_by": seed.row.get("made_by", "")}
        if curate:
            facts["mark"] = marks[key]
        rows.append(
            desk.row(
                _dialogue(text, seed.answer or seed.asked),
                "backtranslate",
                [reply],
                cluster=seed.cluster,
                license=seed.license,
                source=seed.group.prompt.source,
                backtranslated=facts,
            )
        )
    return rows


def _copied(instruction: str, text: str) -> bool:
    asked, given = tokens(instruction), tokens(text)
    if not asked or not given:
        return False
    # rouge_l's F1 turned back into the share of the instruction
    return rouge_l(asked, given) * (len(asked) + len(given)) / 2 / len(asked) > COPY


def _marks(desk: Desk, kept: Sequence[tuple[int, Seed, int, str, Any]]) -> dict[int, int]:
    """The model's own mark of each pair, 1 to 5, of those that pass."""
    step = desk.step("curation", (UNRATED, LOW))
    fields = [{"instruction": text, "answer": seed.answer or seed.asked} for _, seed, _, text, _ in kept]
    found = {}
    for (key, _, _, text, _), reply in zip(kept, desk.ask("curate", fields, [k[0] for k in kept], verdict=True), strict=True):
        digits = [int(t) for t in tokens(reply.text) if t.isdigit() and 1 <= int(t) <= 5]
        mark = digits[0] if digits else None
        if step.keeps(UNRATED if mark is None else LOW if mark < GOOD else None, {"asked": text, "text": reply.text, "mark": mark}):
            found[key] = mark
    return found


def _same(text: str) -> str:
    return " ".join(tokens(text)) or text


def _dialogue(asked: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def _plain(turns: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in turns]
