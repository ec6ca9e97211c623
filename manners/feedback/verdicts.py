"""What a judge said -> probabilities of its options: from log-probabilities, or from words.

Words are read narrowly: a letter, or a sentence that names one. What names none, or both, is no verdict.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LETTERS = ("A", "B", "C")
NOT_APPLICABLE = "N"
UNREAD, ABSENT, LONG, NO_REASONS, NA = (
    "no verdict in its words",
    "no option among its likeliest tokens",
    "longer than the judge reads",
    "no reasons given",
    "does not apply",
)
"""Why there is no verdict or mark. The last is what the judge says itself, and no fault."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What a judge said to one question: probabilities of the options (None without a verdict, and why), how they were read, its words,
    and how much of its next token's probability the options had together, where that is known."""

    shares: dict[str, float] | None
    why: str = ""
    read: str = ""
    said: str = ""
    mass: float | None = None


def of_logprobs(logps: Mapping[str, float] | None, options: Sequence[str]) -> Heard | None:
    """Normalised over the options; None where the judge gives no log-probabilities."""
    if logps is None:
        return None
    if not logps:
        return Heard(None, ABSENT, "logprob")
    top = max(logps[option] for option in options)
    weights = {option: math.exp(logps[option] - top) for option in options}
    total = sum(weights.values())
    return Heard({o: w / total for o, w in weights.items()}, "", "logprob", json.dumps(dict(logps)), total * math.exp(top))


def of_words(text: str, too_long: bool, options: Sequence[str]) -> Heard:
    if too_long:
        return Heard(None, LONG, "text")
    chosen = read_letter(text, ties="C" in options) if options[0] == "A" else read_mark(text, int(options[0]), int(options[-2]))
    if chosen is None:
        return Heard(None, UNREAD, "text", text)
    if chosen == "tie":
        return Heard({o: 0.5 * (o in "AB") for o in options}, "", "text", text)
    if isinstance(chosen, float):  # between two marks: so much of each
        low = math.floor(chosen)
        shares = dict.fromkeys(options, 0.0) | {str(low): low + 1 - chosen}
        return Heard(shares | ({str(low + 1): chosen - low} if chosen > low else {}), "", "text", text)
    return Heard({o: float(o == chosen) for o in options}, "", "text", text)


_START = re.compile(
    r"\W*(?:the\s+)?(?:final\s+)?(?:better\s+|best\s+)?(?:answer|response|option|verdict|choice)?\s*(?:is)?\W*([ABC])\b(.*)", re.I | re.S
)
_NAMED = re.compile(r"(?i:answer|response|option|verdict|choice|choose|prefer|is)\W{1,4}([ABC])\b")
_BRACKETS = re.compile(r"\[\[?([ABC])\]\]?")
_TIE = re.compile(r"\b(tie|equal|equally|both|same|neither)\b", re.I)


def read_letter(text: str, *, ties: bool = False) -> str | None:
    """The letter that a reply names, "tie" where it says that neither is better, or None where it names none or both.

    >>> [read_letter(text) for text in ("B", "Answer A is better.", "**[[B]]**", "A and B are equal.", "Hm.")]
    ['B', 'A', 'B', 'tie', None]
    """
    found = set(_BRACKETS.findall(text))
    start = _START.match(text)
    if not found and start and start[1].isupper() and not re.match(r"\s+(?:better|best|good|great|more|clear|tie)\b", start[2], re.I):
        found = {start[1], *re.findall(r"^\s*(?:and|or|/|&|,)\s*(?i:answer|response)?\s*([ABC])\b", start[2])}
    if not found:
        found = set(_NAMED.findall(text))
    if found == {"C"}:
        return "tie" if ties else None
    if len(found) == 1:
        return found.pop()
    return "tie" if _TIE.search(text) else None


def read_mark(text: str, low: int, high: int) -> str | float | None:
    """The first number of a reply, as a float within the range; "N" where it says that the aspect does not apply; None for all else.

    >>> read_mark("4", 1, 5), read_mark("Mark: 4.5/5", 1, 5), read_mark("N/A", 1, 5), read_mark("7", 1, 5), read_mark("good", 1, 5)
    (4.0, 4.5, 'N', None, None)
    """
    number = re.search(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w])", text)
    if number is None:
        return NOT_APPLICABLE if re.search(r"\bn\s*/\s*a\b|^\W*n\W*$|\bnot applicable\b|\bdoes not apply\b", text, re.I) else None
    value = float(number[0])
    return value if low <= value <= high else None
