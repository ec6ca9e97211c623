"""Constitutional critique and revision (Bai 2022): answers criticised and rewritten by principles drawn at random, several times.

Each round draws one principle for each answer, asks for a critique by it, then for a revision in the light of the critique. Every usable
revision becomes a row of training data with its principle and critique; the last one against the first answer becomes a pair. An answer
whose critique or revision cannot be used stays as it was, and goes on to the next round.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from manners.core.errors import InputError
from manners.core.files import read_mapping
from manners.core.records import Message
from manners.data.writers.desk import UNUSABLE, Desk, Reply
from manners.data.writers.filters import bare, tokens
from manners.data.writers.seeds import Seed

HOW = "constitutional"
UNCHANGED, META = "the same words as before", "speaks of the critique, not to the person"
_META = ("the critique", "this critique", "revised response", "revised answer", "original response", "original answer", "previous answer")


@dataclass(frozen=True, slots=True)
class Principle:
    """What an answer is criticised for, and how it is then to be rewritten. `name` is what rows call it. `choice`, which a file may leave
    out, says which of two answers is the better one by it: a judge is asked by that (`feedback/judging`)."""

    name: str
    critique: str
    revision: str
    choice: str = ""


@dataclass
class Draft:
    """An answer on its way: the first, the present one, and the revisions so far."""

    seed: Seed
    first: Reply
    text: str
    revisions: list[dict[str, Any]] = field(default_factory=list)


def read_principles(path: Path) -> list[Principle]:
    """The principles of a YAML or JSON file: `principles`, a list of {name, critique, revision}.

    Raises InputError for a file that cannot be read or holds something else, naming the entry.
    """
    content = read_mapping(path, "it must hold 'principles', a list of {name, critique, revision}")
    listed = content.get("principles")
    if not isinstance(listed, list) or not listed:
        raise InputError(f"{path} lacks 'principles', a list of {{name, critique, revision}} with one entry or more.")
    found: list[Principle] = []
    for number, entry in enumerate(listed, 1):
        texts = entry if isinstance(entry, Mapping) else {}
        wrong = [key for key in ("name", "critique", "revision") if not isinstance(texts.get(key), str) or not texts[key].strip()]
        if wrong:
            raise InputError(f"{path}, principle {number}: '{wrong[0]}' must be text; write {{name: ..., critique: ..., revision: ...}}.")
        if not isinstance(texts.get("choice", ""), str):
            raise InputError(f"{path}, principle {number}: 'choice' must be text, as in choice: The better answer is the one that ...")
        found.append(Principle(*(texts.get(key, "").strip() for key in ("name", "critique", "revision", "choice"))))
    names = [p.name for p in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"{path}: two principles are called '{twice}'; rows name their principle, so each needs a name of its own.")
    return found


def write(
    desk: Desk, seeds: Sequence[Seed], principles: Sequence[Principle], *, rounds: int, last_only: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(demonstrations, pairs). With `last_only` the demonstrations are the last revisions alone, else all of them."""
    step = desk.step("first answers", UNUSABLE)
    drafts = []
    answers = desk.converse([seed.messages() for seed in seeds], [seed.key for seed in seeds], stage="first answer")
    for seed, answer in zip(seeds, answers, strict=True):
        if step.keeps(answer.fault, {"asked": seed.asked, "text": answer.text}):
            drafts.append(Draft(seed, answer, answer.text))
    for number in range(rounds):
        _revise(desk, drafts, principles, number)
    rows = [row for draft in drafts for row in _rows(desk, draft, last_only)]
    step = desk.step("pairs", (UNCHANGED,))
    pairs = [_pair(desk, d) for d in drafts if step.keeps(None if d.revisions and not _same(d.text, d.first.text) else UNCHANGED, {})]
    return rows, pairs


def _revise(desk: Desk, drafts: Sequence[Draft], principles: Sequence[Principle], number: int) -> None:
    """One round over all drafts."""
    drawn = [desk.chance(HOW, number, draft.seed.key).choice(list(principles)) for draft in drafts]
    fields = [
        {"conversation": _conversation(draft), "answer": draft.text, "critique_request": p.critique, "revision_request": p.revision}
        for draft, p in zip(drafts, drawn, strict=True)
    ]
    keys = [draft.seed.key for draft in drafts]
    step = desk.step("critiques", UNUSABLE)
    critiques = desk.ask("critique", fields, keys, stage=f"critique {number}")
    places = [i for i, reply in enumerate(critiques) if step.keeps(reply.fault, {"principle": drawn[i].name, "text": reply.text})]
    asked = [{**fields[i], "critique": critiques[i].text} for i in places]
    step = desk.step("revisions", (*UNUSABLE, META, UNCHANGED))
    for i, reply in zip(places, desk.ask("revise", asked, [keys[i] for i in places], stage=f"revision {number}"), strict=True):
        draft, text = drafts[i], bare(reply.text)
        why = reply.fault or (META if not text or any(m in text.lower() for m in _META) else UNCHANGED if _same(text, draft.text) else None)
        if step.keeps(why, {"principle": drawn[i].name, "from": draft.text, "text": text}):
            draft.revisions.append(
                {
                    "round": number,
                    "principle": drawn[i].name,
                    "critique": critiques[i].text,
                    "before": draft.text,
                    "text": text,
                    "replies": [critiques[i], reply],
                }
            )
            draft.text = text


def _conversation(draft: Draft) -> str:
    """The prompt as text, with the speakers' names where there are several turns."""
    turns = draft.seed.messages()
    return turns[0].content if len(turns) == 1 else "\n\n".join(f"{turn.role.capitalize()}: {turn.content}" for turn in turns)


def _same(a: str, b: str) -> bool:
    return tokens(a) == tokens(b) if tokens(a) or tokens(b) else a == b


def _rows(desk: Desk, draft: Draft, last_only: bool) -> list[dict[str, Any]]:
    rows = []
    for revision in draft.revisions[-1:] if last_only else draft.revisions:
        turns = [*draft.seed.messages(), Message("assistant", revision["text"])]
        told = {key: revision[key] for key in ("round", "principle", "critique", "before")}
        messages = [{"role": m.role, "content": m.content} for m in turns]
        origin = {"cluster": draft.seed.cluster, "license": draft.seed.license}
        rows.append(desk.row(messages, HOW, revision["replies"], revised=told, seed=draft.seed.told, **origin))
    return rows


def _pair(desk: Desk, draft: Draft) -> dict[str, Any]:
    prompt = [{"role": m.role, "content": m.content} for m in draft.seed.messages()]
    replies = [reply for revision in draft.revisions for reply in revision["replies"]]
    path = [{key: r[key] for key in ("round", "principle", "critique", "text")} for r in draft.revisions]
    row = desk.row([], HOW, replies, cluster=draft.seed.cluster, license=draft.seed.license, revisions=path, seed=draft.seed.told)
    del row["messages"]
    answers = {name: [{"role": "assistant", "content": text}] for name, text in (("chosen", draft.text), ("rejected", draft.first.text))}
    return {"prompt": prompt, **answers, **row}
