"""What answer does a text give? Extraction by family of task, equality of answers, and votes among several.

A rule reads the answer out of a recorded output and the right answer out of a target, both into the same normal form, so that two are
the same answer if and only if their normal forms are equal. What has no answer is None: a vote leaves it out.

The rules are those of the published evaluations where there are any (BIG-Bench Hard: Suzgun 2023; GSM8K: Cobbe 2021 and the two
filters of the evaluation harness; numbers: Kojima 2022). Where these differ, the choice is stated in the rule's docstring.
"""

import re
import string
from collections.abc import Callable, Hashable, Sequence
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import NamedTuple, TypeVar

from manners.core.errors import InputError, nearest
from manners.feedback.verify.math import gsm8k_number

Reader = Callable[[str], str | None]
Answer = TypeVar("Answer", bound=Hashable)

_MARK = re.compile(r"answer(?: \((?:arabic numerals|yes or no)\))? is:?\s*", re.I)
"""The words that an answer stands after, as models say them and as chain of thought asks for it."""
_NEXT = re.compile(r"\n\s*(?:Q|Question|Problem)\s*:", re.I)
"""Where a text that was not stopped goes on with a question of its own."""
_OPTION = re.compile(r"\(([A-Za-z])\)")
_LETTER = re.compile(r"(?<![A-Za-z'’])\(?([A-H])\)?(?![A-Za-z'’])")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?|-?\.\d+")
_YES_NO = re.compile(r"\b(yes|no|true|false)\b", re.I)


def said(text: str) -> str:
    """The text up to the first further question that it asks itself; a question that it begins with is no further one."""
    start = len(text) - len(text.lstrip())
    found = _NEXT.search(text, start)
    return text[: found.start()] if found else text


def after_mark(text: str) -> str | None:
    """What follows the last "answer is", without white space around it; None if the text does not say so."""
    parts = _MARK.split(said(text))
    return parts[-1].strip() if len(parts) > 1 else None


def ends_with_mark(text: str) -> bool:
    """Whether a text ends where the answer is to stand.

    >>> ends_with_mark("Therefore, the answer (arabic numerals) is"), ends_with_mark("So what is the answer?")
    (True, False)
    """
    return (match := list(_MARK.finditer(text))) != [] and match[-1].end() == len(text)


def number(text: str | None) -> str | None:
    """A number in one way of writing: `1,234.50` and `$1234.5` as 1234.5, `18.00` as 18; None for what is no number.

    >>> number("$1,234.50"), number("18.00"), number("-0"), number("1.2.3")
    ('1234.5', '18', '0', None)
    """
    cleaned = (text or "").replace(",", "").replace("$", "").strip().rstrip(".")
    try:
        value = Decimal(cleaned)
    except InvalidOperation:
        return None
    if not value.is_finite() or not _NUMBER.fullmatch(cleaned.removeprefix("+")):
        return None
    whole = format(value, "f")
    whole = whole.rstrip("0").rstrip(".") if "." in whole else whole
    return "0" if whole in ("-0", "") else whole


# --- the rules ----------------------------------------------------------------------------------------------------------------


def read_bbh(text: str) -> str | None:
    """After "the answer is": the first option in brackets, `(C)`, else all that follows on that line without a final full stop."""
    found = after_mark(text)
    return None if not found else target_bbh(found.split("\n", 1)[0])


def target_bbh(text: str) -> str | None:
    """An option stays `(C)`; words are compared without case."""
    option = _OPTION.search(text)
    if option:
        return f"({option[1].upper()})"
    return text.strip().removesuffix(".").strip().casefold() or None


def read_strict(text: str) -> str | None:
    """The first `#### NUMBER`, the data's own format and the official rule."""
    return _decimal(gsm8k_number(said(text), "strict"))


def read_flexible(text: str) -> str | None:
    """The last number, wherever it stands; a row of dots or commas, which the pattern also finds, is passed over."""
    return _decimal(gsm8k_number(said(text), "flexible"))


def _decimal(value: Fraction | None) -> str | None:
    if value is None or value.denominator == 1:
        return None if value is None else str(value.numerator)
    return number(format(Decimal(value.numerator) / value.denominator, "f"))


def read_number(text: str) -> str | None:
    """The first number after "the answer is"; without these words the last number of the text."""
    marked = after_mark(text)
    found = _NUMBER.findall((said(text) if marked is None else marked).replace(",", ""))
    return number(found[-1 if marked is None else 0]) if found else None


def target_number(text: str) -> str | None:
    """A bare number, or a solution in GSM8K's own format."""
    return number(text) or read_strict(text)


def read_letter(text: str) -> str | None:
    """A to H: the first after "the answer is", else the last in brackets, else one that the text begins with (`B. Paris`) or is."""
    marked = after_mark(text)
    if marked is not None:
        found = _LETTER.search(marked)
        return found[1] if found else None
    bracketed = [letter.upper() for letter in _OPTION.findall(said(text)) if letter.upper() <= "H"]
    if bracketed:
        return bracketed[-1]
    found = re.match(r"\s*([A-H])(?:[.):]|\s*$)", text)
    return found[1] if found else None


def target_letter(text: str) -> str | None:
    """`B`, `(B)` or `B.`"""
    found = re.fullmatch(r"\s*\(?([A-Ha-h])\)?\.?\s*", text)
    return found[1].upper() if found else None


def read_yes_no(text: str) -> str | None:
    """The first yes or no after "the answer is", else the first of the text; true and false count as yes and no."""
    found = _YES_NO.search(after_mark(text) or said(text))
    return {"true": "yes", "false": "no"}.get(found[1].lower(), found[1].lower()) if found else None


def read_exact(text: str) -> str | None:
    """The whole text in lower case, without punctuation, white space made even; articles stay (as in Super-NaturalInstructions)."""
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(bare.split()) or None


# --- by name ------------------------------------------------------------------------------------------------------------------


class Task(NamedTuple):
    """How a family's answers are read: its rules by name, the first of which is the one that counts, and the rule of its targets."""

    rules: dict[str, Reader]
    target: Reader
    wanted: str
    """What a target must hold, for the sentence that says it does not."""


_A_NUMBER, _A_LETTER, _WORDS = "a number", "a letter from A to H", "words"
TASKS = {
    "bbh": Task({"answer is": read_bbh}, target_bbh, _WORDS),
    "gsm8k": Task({"strict": read_strict, "flexible": read_flexible}, target_number, "a number, or a solution that ends in #### NUMBER"),
    "svamp": Task({"number": read_number}, target_number, _A_NUMBER),
    "number": Task({"number": read_number}, target_number, _A_NUMBER),
    "aqua": Task({"letter": read_letter}, target_letter, _A_LETTER),
    "mmlu": Task({"letter": read_letter}, target_letter, _A_LETTER),
    "arc": Task({"letter": read_letter}, target_letter, _A_LETTER),
    "letter": Task({"letter": read_letter}, target_letter, _A_LETTER),
    "strategyqa": Task({"yes or no": read_yes_no}, read_yes_no, "yes or no"),
    "yes-no": Task({"yes or no": read_yes_no}, read_yes_no, "yes or no"),
    "exact": Task({"exact": read_exact}, read_exact, _WORDS),
}
"""Families by name. Several data sets share a family's rules and stand here under their own names."""


def task_of(name: str) -> Task:
    """The family called `name`. Raises InputError that names the nearest."""
    if name not in TASKS:
        raise InputError(f"unknown task '{name}'; {nearest(name, TASKS)}")
    return TASKS[name]


# --- votes --------------------------------------------------------------------------------------------------------------------


def vote(answers: Sequence[Answer | None], weights: Sequence[float] | None = None) -> Answer | None:
    """The answer with the most votes, or the greatest sum of weights; of equals the one seen first. None if there is no answer.

    Answers must be normalised, as the rules above return them. Weights are not negative: exp of a mean log-probability, or a reward
    made positive by a sigmoid or a softmax. Raises ValueError for a weight below 0, or one that is missing.

    >>> vote([9, 9, 8, 10, 8, 8]), vote([9, 9, 8, 10, 8, 8], [0.9, 0.8, 0.3, 0.5, 0.2, 0.4])
    (8, 9)
    """
    if weights is not None and min(weights, default=0) < 0:
        raise ValueError("a vote's weight must not be negative; pass rewards through a sigmoid first")
    total: dict[Answer, float] = {}
    for answer, weight in zip(answers, weights or [1.0] * len(answers), strict=True):
        if answer is not None:
            total[answer] = total.get(answer, 0.0) + weight
    return max(total, key=lambda answer: total[answer]) if total else None
