"""Constraints on an answer that a program can check: what is said, what IFEval calls it, and a check of our own.

The kinds and their arguments are a part of IFEval's (Zhou 2023), so that rows with them can be checked again by others. A check here is
as strict as theirs or stricter: what passes here is meant to pass there.
"""

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Constraint:
    """One constraint: its kind, its arguments, and the sentence that asks for it."""

    kind: str
    said: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


ENDINGS = ("That is all.", "I hope this helps.", "End of answer.")
SECTIONS = (2, 3)


def _end(text: str, arguments: Mapping[str, Any]) -> bool:
    return text.strip().endswith(arguments["end_phrase"])


def _bullets(text: str, arguments: Mapping[str, Any]) -> bool:
    return len(re.findall(r"^\s*\*[^\s*][^\n]*|^\s*\* [^\n]+", text, re.M)) == arguments["num_bullets"] and not re.search(
        r"^\s*-", text, re.M
    )


def _words(text: str, arguments: Mapping[str, Any]) -> bool:
    count, counted = len(re.findall(r"\w+", text)), len(text.split())
    if arguments["relation"] == "at least":
        return min(count, counted) >= arguments["num_words"]
    return max(count, counted) < arguments["num_words"]


def _json(text: str, arguments: Mapping[str, Any]) -> bool:
    try:
        json.loads(text.strip())
    except ValueError:
        return False
    return True


def _quoted(text: str, arguments: Mapping[str, Any]) -> bool:
    text = text.strip()
    return len(text) > 2 and text[0] == text[-1] == '"'


def _paragraphs(text: str, arguments: Mapping[str, Any]) -> bool:
    return len([part for part in re.split(r"\s?\*\*\*\s?", text) if part.strip()]) == arguments["num_paragraphs"] == text.count("***") + 1


CHECKS: dict[str, Callable[[str, Mapping[str, Any]], bool]] = {
    "punctuation:no_comma": lambda text, arguments: "," not in text,
    "change_case:english_lowercase": lambda text, arguments: text == text.lower() and text.isascii() and any(c.isalpha() for c in text),
    "change_case:english_capital": lambda text, arguments: text == text.upper() and text.isascii() and any(c.isalpha() for c in text),
    "startend:end_checker": _end,
    "startend:quotation": _quoted,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:title": lambda text, arguments: bool(re.search(r"<<[^\n<>]*\w[^\n<>]*>>", text)),
    "detectable_format:json_format": _json,
    "length_constraints:number_words": _words,
    "length_constraints:number_paragraphs": _paragraphs,
}
_APART = (
    {"change_case:english_lowercase", "change_case:english_capital"},
    {"detectable_format:json_format", "startend:end_checker"},
    {"detectable_format:json_format", "startend:quotation"},
    {"detectable_format:json_format", "detectable_format:number_bullet_lists"},
    {"detectable_format:json_format", "detectable_format:title"},
    {"detectable_format:json_format", "length_constraints:number_paragraphs"},
    {"detectable_format:json_format", "punctuation:no_comma"},
    {"startend:end_checker", "startend:quotation"},
    {"startend:end_checker", "change_case:english_lowercase"},
    {"startend:end_checker", "change_case:english_capital"},
    {"detectable_format:number_bullet_lists", "length_constraints:number_paragraphs"},
)
"""Kinds that no answer can keep together, or hardly one."""


def keeps(constraint: Constraint, answer: str) -> bool:
    """Whether an answer keeps a constraint."""
    return bool(answer.strip()) and CHECKS[constraint.kind](answer, constraint.arguments)


def draw(chance: random.Random, count: int) -> list[Constraint]:
    """Up to `count` constraints that go together."""
    kinds: list[str] = []
    for kind in chance.sample(sorted(CHECKS), len(CHECKS)):
        if len(kinds) < count and not any({kind, other} in _APART for other in kinds):
            kinds.append(kind)
    return [_made(kind, chance) for kind in kinds]


def _made(kind: str, chance: random.Random) -> Constraint:
    pick: Callable[[Sequence[Any]], Any] = chance.choice
    match kind:
        case "punctuation:no_comma":
            return Constraint(kind, pick(("Do not use any commas.", "Your answer must not contain a comma.")))
        case "change_case:english_lowercase":
            return Constraint(kind, pick(("Answer in English, in small letters only.", "Write in English and without any capital letter.")))
        case "change_case:english_capital":
            return Constraint(kind, pick(("Answer in English, in capital letters only.", "Write in English, with every letter a capital.")))
        case "startend:end_checker":
            phrase = pick(ENDINGS)
            return Constraint(kind, f'The last words of your answer must be "{phrase}", with nothing after them.', {"end_phrase": phrase})
        case "startend:quotation":
            return Constraint(kind, "Put your whole answer between double quotation marks.")
        case "detectable_format:number_bullet_lists":
            number = pick((2, 3, 4, 5))
            return Constraint(kind, f"Use exactly {number} bullet points, each on a line that begins with '* '.", {"num_bullets": number})
        case "detectable_format:title":
            return Constraint(kind, "Give your answer a title in double angle brackets, such as <<A title>>.")
        case "detectable_format:json_format":
            return Constraint(kind, "Give the whole answer as JSON, with nothing before or after it.")
        case "length_constraints:number_words":
            relation, number = pick((("less than", 30), ("less than", 60), ("at least", 40), ("at least", 80)))
            said = {"less than": f"Use fewer than {number} words.", "at least": f"Use {number} words or more."}[relation]
            return Constraint(kind, said, {"relation": relation, "num_words": number})
        case _:
            number = pick(SECTIONS)
            said = f"Write {number} paragraphs, and put a line with *** between them."
            return Constraint(kind, said, {"num_paragraphs": number})
