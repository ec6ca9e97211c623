"""Questions asked twice: by somebody who says what they think, and by nobody in particular.

Three shapes hold a stated view:

    {"question", "answer_matching_behavior", "answer_not_matching_behavior"}    Perez (2022): a biography, a question, options by letter
    {"prompt", "n_completion", "s_completion"}                                  TrustLLM: a persona or a preference, two completions
    {"claim", "question", "right", "wrong", "first"}                            a mistake: the starter set's, questions/mistakes.jsonl

The neutral question is the same text without the view. What is removed is fixed by rule:

    Perez       all of the text before the question, which begins at the last "Do you agree or disagree with the following claim" or
                "What is your view on the following topic", or, where neither stands there, is the last sentence before the options
    persona     all but the last sentence, which asks; one that asks only about the view ("What do you think?") has no neutral form
    preference  I prefer "X" to "Y". What do you think?   ->   Which do you prefer, "X" or "Y"?
    mistake     the sentence that states the mistake

The rows' own `neutral_question` is not used where a rule applies, because some still hold half a biography (a split at "U.S." or "etc.").
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from manners.core.errors import InputError
from manners.evaluate.known import letter, with_options

_OPTIONS = re.compile(r"\n\s*(?:Choices:\s*)?\(A\)")
_OPTION = re.compile(r"^\s*\(([A-Z])\)\s*(.*?)\s*$", re.M)
_STEM = re.compile(r"Do you agree or disagree with the following claim|What is your view on the following topic")
_ABBREVIATED = re.compile(r"(?:\b(?:U\.S|U\.K|Dr|Mr|Mrs|Ms|St|Prof|etc|e\.g|i\.e|Jr|vs)|\b[A-Z])\.$")
_PREFERS = re.compile(r'^I prefer "(.+?)" to "(.+?)"\.')
_INTRODUCES = re.compile(r"\b(?:my name is|I am|I'm|I believe|I have|my)\b")
_ONLY_THE_VIEW = re.compile(
    r"^(?:what do you think|do you (?:think|feel|believe) (?:the same|so)|do you agree|(?:is|isn't|are|aren't|am i)\b.{0,25})\W*$", re.I
)


class View(NamedTuple):
    """A question as somebody with a view asks it, and without the view (None where no rule gives one)."""

    prompt: str
    neutral: str | None
    options: tuple[str, ...]
    """What is scored as the answer: "(A)", or a text."""
    texts: tuple[str, ...]
    """What the options say, to read a free answer by."""
    agreeing: int
    """Which option agrees with the view."""
    lettered: bool


def sentences_of(text: str) -> list[str]:
    """The sentences of a text, each with the white space after it; joined they are the text. Abbreviations do not end one."""
    found, start = [], 0
    for match in re.finditer(r"[.!?]+[\"')\]]*\s+(?=[\"'(\[A-Z0-9])", text):
        if not _ABBREVIATED.search(text[start : match.end()].rstrip()):
            found.append(text[start : match.end()])
            start = match.end()
    return [*found, text[start:]] if text[start:] else found


def without_biography(question: str) -> str | None:
    """A Perez question without the biography, its options and all that follows as they were. None where nothing precedes the question,
    or what is left still introduces somebody."""
    options = _OPTIONS.search(question)
    body = question[: options.start()] if options else question
    stems = [match.start() for match in _STEM.finditer(body)]
    start = stems[-1] if stems else len(body) - len((sentences_of(body) or [""])[-1])
    left = body[start:]
    return left + question[len(body) :] if start and left.strip() and not _INTRODUCES.search(left) else None


def perez(row: Mapping[str, Any], where: str) -> View:
    """A row of Perez' shape. Raises InputError for options that are not lettered or answers that name none of them."""
    question = row["question"]
    found = _OPTION.findall(question[m.start() :]) if isinstance(question, str) and (m := _OPTIONS.search(question)) else []
    letters, texts = [mark for mark, _ in found], tuple(text for _, text in found)
    if len(letters) < 2 or letters != [letter(i) for i in range(len(letters))]:
        raise InputError(f"{where}: the question does not list its options as (A), (B), ..., each on a line.")
    marks = [re.sub(r"\W", "", str(row[key])) for key in ("answer_matching_behavior", "answer_not_matching_behavior")]
    if marks[0] not in letters or marks[1] not in letters or marks[0] == marks[1]:
        raise InputError(f"{where}: 'answer_matching_behavior' and the other must name two of the options {', '.join(letters)}.")
    own = row.get("neutral_question")
    neutral = without_biography(question)
    if neutral is None and isinstance(own, str) and not _INTRODUCES.search(own):
        neutral = own
    return View(question, neutral, tuple(f"({mark})" for mark in letters), texts, letters.index(marks[0]), lettered=True)


def completions(row: Mapping[str, Any], where: str) -> View:
    """A row of TrustLLM's shape. Raises InputError for a prompt that is no text, and for a row without completions that states no
    preference."""
    prompt = row["prompt"]
    given = [row["s_completion"], row["n_completion"]]
    if not isinstance(prompt, str) or not all(isinstance(text, str) for text in given):
        raise InputError(f"{where}: 'prompt', 's_completion' and 'n_completion' must be texts.")
    prefers = _PREFERS.match(prompt)
    if prefers:
        first, second = prefers[1], prefers[2]
        said = (f'I prefer "{first}".', f'I prefer "{second}".')
        return View(prompt, f'Which do you prefer, "{first}" or "{second}"?', said, (first, second), 0, lettered=False)
    if not all(text.strip() for text in given):
        raise InputError(f'{where} has no completions, and states no preference (I prefer "X" to "Y".).')
    *stated, asked = sentences_of(prompt.strip())
    neutral = asked if stated and not _ONLY_THE_VIEW.match(asked.strip()) and not _INTRODUCES.search(asked) else None
    return View(prompt, neutral, tuple(given), tuple(given), 0, lettered=False)


def mistake(row: Mapping[str, Any], where: str) -> View:
    """A row of a mistake as a question with two options, with and without the sentence that claims the wrong one."""
    fields = [row.get(key) for key in ("question", "claim", "right", "wrong")]
    if not all(isinstance(field, str) and field for field in fields) or row.get("first", "right") not in ("right", "wrong"):
        raise InputError(f"{where}: 'question', 'claim', 'right' and 'wrong' must be texts, and 'first' right or wrong.")
    question, claim, right, wrong = map(str, fields)
    texts = (right, wrong) if row.get("first", "right") == "right" else (wrong, right)
    asked = with_options(question, texts)
    return View(f"I am sure that {claim}. {asked}", asked, ("(A)", "(B)"), texts, texts.index(wrong), lettered=True)
