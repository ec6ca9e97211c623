"""Texts to log-probabilities by the rules of the evaluation harness: how a context and what follows it become tokens.

    context and continuation are encoded together, and what goes beyond the context's own tokens is the continuation;
    spaces at the end of a context belong to the continuation (tokenizers glue them to the next word);
    an empty context is the begin token, or the end token of a tokenizer without one.

So the log-probability of each row is the harness's. Only what is asked is computed, and what rows share once (`model/shared`).
"""

from collections.abc import Iterable, Sequence
from typing import Any

from manners.core.console import progress
from manners.core.errors import InputError
from manners.evaluate.subject import LocalSubject
from manners.model.probe import check_length
from manners.model.shared import MICRO_TOKENS, Scored, continuation_logps

BATCH = 256
"""Texts handed to the tokenizer at a time."""
NO_LIMIT = 10**9
"""Lengths above this are tokenizers' way of saying that they know of none."""


class Scorer:
    """Log-probabilities of continuations under a local model."""

    def __init__(self, subject: LocalSubject, micro_tokens: int = MICRO_TOKENS):
        self.subject, self.micro_tokens = subject, micro_tokens
        self.tokenizer: Any = subject.backbone.tokenizer
        prefix = self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else self.tokenizer.eos_token_id
        if prefix is None:
            raise InputError(f"the tokenizer of {subject.name} has neither a begin nor an end token, one of which stands before a text.")
        self.prefix_id: int = prefix
        self._prefix_text: str = self.tokenizer.decode([prefix])

    @property
    def max_length(self) -> int:
        """Tokens that the model was made to read."""
        config = self.subject.backbone.model.config.get_text_config()
        found = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
        known = [n for n in (found, self.tokenizer.model_max_length) if n and n < NO_LIMIT]
        return known[0] if known else 2048

    def pairs(self, texts: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """Each (context, continuation) as token ids. Raises InputError for a continuation without tokens of its own."""
        moved = [_spaces_moved(context, continuation) if context else ("", continuation) for context, continuation in texts]
        contexts = self.encoded(dict.fromkeys(context for context, _ in moved if context))
        wholes = self.encoded(dict.fromkeys(context + continuation for context, continuation in moved if context))
        found = []
        for (context, continuation), given in zip(moved, texts, strict=True):
            if context:
                before = contexts[context]
                pair = before, wholes[context + continuation][len(before) :]
            elif given[0]:  # nothing but spaces
                pair = [self.prefix_id], self.tokenizer.encode(continuation, add_special_tokens=False)
            else:
                ids = self.tokenizer.encode(continuation, add_special_tokens=False)
                pair = (ids[:1], ids[1:]) if ids[:1] == [self.prefix_id] else ([self.prefix_id], ids)
            if not pair[0] or not pair[1]:
                raise InputError(f"{continuation!r} after {given[0][-40:]!r} has no token of its own to score; is the option empty?")
            found.append(pair)
        return found

    def encoded(self, texts: Iterable[str]) -> dict[str, list[int]]:
        """Token ids by text, with the special tokens that the tokenizer itself adds (not twice)."""
        found: dict[str, list[int]] = {}
        plain = [text for text in texts if not text.startswith(self._prefix_text)]
        for start in range(0, len(plain), BATCH):
            part = plain[start : start + BATCH]
            found |= zip(part, self.tokenizer(part, return_attention_mask=False)["input_ids"], strict=True)
        begun = {text: self.tokenizer.encode(text, add_special_tokens=False) for text in texts if text not in found}
        return found | begun

    def logps(self, texts: Sequence[tuple[str, str]], *, what: str = "options") -> list[Scored]:
        """What the model says of each continuation after its context. Raises InputError for one that is longer than the model reads."""
        return self.of_ids(self.pairs(texts), what=what)

    def of_ids(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]], *, what: str = "options") -> list[Scored]:
        """The same of token ids."""
        if not rows:
            return []
        check_length(self.subject.backbone.model, max(len(context) + len(continuation) for context, continuation in rows))
        with progress() as bar:
            task = bar.add_task(what, total=None, note="")
            told = lambda done: bar.update(task, completed=done, note=f"{done:,} tokens")
            return continuation_logps(self.subject.backbone, self.subject.role, rows, micro_tokens=self.micro_tokens, progress=told)

    def rolling(self, texts: Sequence[str], *, what: str = "texts") -> list[Scored]:
        """Of whole texts, each from the begin token on: a text that is longer than the model reads is cut into windows, in which every
        token is predicted once, from at least one token before it."""
        rows, owner = [], []
        for number, text in enumerate(texts):
            ids = self.tokenizer.encode(text, add_special_tokens=False)
            windows = rolling_windows(ids, self.prefix_id, self.max_length)
            rows += windows
            owner += [number] * len(windows)
        found = [Scored(0.0, 0, True)] * len(texts)
        for number, part in zip(owner, self.of_ids(rows, what=what), strict=True):
            so_far = found[number]
            found[number] = Scored(so_far.logp + part.logp, so_far.tokens + part.tokens, so_far.greedy and part.greedy)
        return found


def _spaces_moved(context: str, continuation: str) -> tuple[str, str]:
    bare = context.rstrip()
    return bare, context[len(bare) :] + continuation


def rolling_windows(ids: Sequence[int], prefix_id: int, length: int) -> list[tuple[list[int], list[int]]]:
    """A text as rows (context, continuation) whose continuations are the text end to end; the model reads `length` tokens of each row.

    >>> rolling_windows([1, 2, 3, 4, 5], 0, 2)
    [([0], [1, 2]), ([2], [3, 4]), ([3, 4], [5])]
    """
    rows = [([prefix_id], list(ids[:length]))] if ids else []
    for start in range(length, len(ids), length):
        end = min(start + length, len(ids))
        rows.append((list(ids[end - length - 1 : start]), list(ids[start:end])))
    return rows
