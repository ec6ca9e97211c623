"""A chat model as the plain language model that it is: sentences scored as they stand, texts continued.

Sets of the field that were made for language models (CrowS-Pairs, Winogender, RealToxicityPrompts) know no roles. A sentence is scored
after the begin token that the tokenizer puts before every text, else after its own begin or end token, so that the first word counts
too. Only a model, an adapter or a run can do either; anything else is refused in a sentence.
"""

from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from manners.core.errors import InputError
from manners.core.records import TokenGroup, TokenResponse
from manners.data.chat import ChatFormat
from manners.data.tokens import begin_ids
from manners.evaluate.subject import LocalSubject, Subject

CONTINUE = (
    "{%- for message in messages -%}{{ message['content'] }}{%- if message['role'] == 'assistant' -%}{{ eos_token }}{%- endif -%}"
    "{%- endfor -%}"
)
"""No marks at all: what a model answers is how it goes on."""


class Pair(NamedTuple):
    """Log-probabilities in nats of two sentences: of all tokens, and of those that both share, each after all tokens to its left."""

    whole: tuple[float, float]
    shared: tuple[float, float]

    @property
    def modified(self) -> tuple[float, float]:
        """Of the tokens in which the sentences differ."""
        return (self.whole[0] - self.shared[0], self.whole[1] - self.shared[1])


def local(subject: Subject) -> LocalSubject:
    """The subject itself, if it is a model at hand. Raises InputError."""
    if not isinstance(subject, LocalSubject) or subject.fmt is None:
        raise InputError(f"{subject.name} only answers; this evaluation needs log-probabilities, so give it a model, an adapter or a run.")
    return subject


def continuing(subject: LocalSubject, slots: int = 32) -> LocalSubject:
    """The same model without a chat format."""
    assert subject.fmt is not None
    tokenizer = subject.fmt.tokenizer
    begin = "{{- bos_token -}}" if begin_ids(tokenizer) else ""
    fmt = ChatFormat.of(tokenizer, begin + CONTINUE)
    return LocalSubject(subject.name, subject.source, subject.backbone, subject.role, fmt, slots)


def start(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token that a sentence is scored after. Raises InputError for a tokenizer that has none."""
    loose: Any = tokenizer
    own = begin_ids(tokenizer) or [token for token in (loose.bos_token_id, loose.eos_token_id) if token is not None][:1]
    if not own:
        raise InputError("this tokenizer has neither a begin nor an end token, so the first word of a sentence cannot be scored.")
    return own


def shared_marks(first: Sequence[int], second: Sequence[int]) -> tuple[list[bool], list[bool]]:
    """Which tokens of two sentences stand in the other as well, in the same order: the longest matching blocks of `difflib`."""
    marks = [False] * len(first), [False] * len(second)
    for a, b, size in SequenceMatcher(None, first, second, autojunk=False).get_matching_blocks():
        marks[0][a : a + size] = marks[1][b : b + size] = [True] * size
    return marks


def score_pairs(subject: LocalSubject, pairs: Sequence[tuple[str, str]], *, what: str = "sentences") -> list[Pair]:
    """Score each pair of sentences. Raises InputError for a sentence that is empty, and for a pair without a shared token."""
    assert subject.fmt is not None
    tokenizer: Any = subject.fmt.tokenizer
    begin, groups = start(tokenizer), []
    for texts in pairs:
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        marks = shared_marks(*ids)
        if not all(map(any, marks)):
            raise InputError(f"the sentences {texts[0][:60]!r} and {texts[1][:60]!r} share no token, so they are no pair.")
        whole = [TokenResponse(list(i), [True] * len(i)) for i in ids]
        groups.append(TokenGroup(list(begin), [*whole, *(TokenResponse(list(i), m) for i, m in zip(ids, marks, strict=True))]))
    scored = subject.score(groups, what=what)
    return [Pair((a[0], b[0]), (c[0], d[0])) for a, b, c, d in scored]
