"""Questions with options of which one is right, in two shapes:

{"question", "choices": [text, ...], "answer": "C" or 2}                       MMLU's
{"instruction": "... Answer1: ... Answer2: ...", "answer": "answer2"}          ARC's as instructions
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from manners.core.errors import InputError

_NUMBERED = re.compile(r"\s*\bAnswer(\d+):\s*")
_TAIL = re.compile(r"\n+Answer format:.*$", re.S)
_LEAD = re.compile(r"^Please choose the correct answer to the question:\s*", re.I)


class Known(NamedTuple):
    """A question, its options, and which is right (from 0)."""

    question: str
    options: tuple[str, ...]
    right: int

    @property
    def lettered(self) -> str:
        """The question with its options as (A), (B), ..., one a line."""
        return with_options(self.question, self.options)


def with_options(question: str, options: tuple[str, ...]) -> str:
    """A question that lists its options and asks for one."""
    lines = "".join(f"\n ({letter(i)}) {option}" for i, option in enumerate(options))
    return f"{question}{lines}\n\nAnswer:"


def letter(index: int) -> str:
    return chr(ord("A") + index)


def is_known(row: Mapping[str, Any]) -> bool:
    """Whether a row has the columns of one of the two shapes."""
    return {"question", "choices", "answer"} <= row.keys() or {"instruction", "answer"} <= row.keys()


def known_of(row: Mapping[str, Any], where: str) -> Known:
    """The question of a row. Raises InputError, which begins with `where`, for fewer than two options, an empty one, or no right one."""
    if "choices" in row:
        question, options = row["question"], row["choices"]
        if not isinstance(options, list) or not isinstance(question, str):
            raise InputError(f"{where}: 'question' must be a text and 'choices' a list of texts.")
        right = row["answer"]
        at = ord(right.strip().upper()) - ord("A") if isinstance(right, str) and len(right.strip()) == 1 else right
    else:
        text = _TAIL.sub("", str(row["instruction"]))
        question, *parts = _NUMBERED.split(_LEAD.sub("", text))
        options = parts[1::2]
        found = re.fullmatch(r"answer(\d+)", str(row["answer"]).strip().lower())
        at = int(found[1]) - 1 if found else None
    options = tuple(option.strip() if isinstance(option, str) else "" for option in options)
    if len(options) < 2 or len(options) > 26 or not all(options):
        raise InputError(f"{where} has {len(options)} options of which some may be empty; a question needs 2 to 26, each with a text.")
    if isinstance(at, bool) or not isinstance(at, int) or not 0 <= at < len(options):
        raise InputError(f"{where}: the answer {row['answer']!r} is none of its {len(options)} options.")
    return Known(question.strip(), options, at)
