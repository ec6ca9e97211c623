"""Text as token ids: with control tokens or without, at the start of a text or within one."""

import json
import re
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

_GUARDS = ("\n", "a", "|", "0", ".")
"""Texts that a word may follow, tried in turn: what continues other text is encoded after one of them."""


class Refused(Exception):
    """A conversation or a text cannot be made into tokens: a template raised, or its rendering cannot be taken apart; the text says why."""


class Encoder:
    """Text as token ids, with control tokens (template text) or without (contents), at the start of a text or within.

    A control token is an added token that is special, or one with a sign in it (`<think>`); added words and runs of white space
    are ordinary vocabulary.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer: Any = tokenizer
        added = self._tokenizer.added_tokens_decoder
        self.control: dict[str, int] = {
            token.content: index for index, token in added.items() if token.special or re.search(r"[^\w\s▁]", token.content)
        }
        longest_first = sorted(self.control, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        # A character that the vocabulary lacks may become the unknown token, but only where that says nothing else.
        unknown = {self._tokenizer.unk_token_id} - {self._tokenizer.eos_token_id, self._tokenizer.bos_token_id}
        self._control_ids = frozenset(self.control.values()) - unknown
        self.begin = begin_ids(tokenizer)
        self._backends: dict[bool, Tokenizer] = {}
        self._heads: dict[tuple[str, bool], list[int]] = {}
        # Without a prefix space a word is the same tokens at the start of a text and within: no guard is needed.
        self._guarded = True
        self._guarded = any(self._bare(x, False) != self._continued(x, False) for x in ("x", "The", "1"))

    def literals(self, text: str) -> list[str]:
        """Control tokens that the text spells out, as it stands or once the tokenizer has normalized it."""
        normalizer = self._tokenizer.backend_tokenizer.normalizer if self._tokenizer.is_fast else None
        return self.pattern.findall(text) or (self.pattern.findall(normalizer.normalize_str(text)) if normalizer else [])

    def encode(self, text: str, *, first: bool) -> list[int]:
        """Tokens of text in which control tokens count; `first` says that nothing comes before it."""
        if not text:
            return []
        return self._bare(text, False) if first else self._continued(text, False)

    def encode_content(self, text: str, *, first: bool) -> list[int]:
        """Tokens of a content, none of them a control token. Raises Refused if the tokenizer has no other tokens for it."""
        ids = self._bare(text, True) if first else self._continued(text, True)
        if self._control_ids.isdisjoint(ids):
            return ids
        # The tokenizer's model itself knows the control token (Unigram does): cut the literal ones in two.
        match = self.pattern.search(text)
        if match is None or len(match[0]) < 2:
            raise Refused("the tokenizer makes a control token out of a message's text")
        cut = match.start() + 1
        return self.encode_content(text[:cut], first=first) + self.encode_content(text[cut:], first=False)

    def _continued(self, text: str, as_text: bool) -> list[int]:
        """Tokens of text that continues other text: encoded after a guard, whose tokens are then taken off."""
        if self._guarded:
            for guard in _GUARDS:
                if (guard, as_text) not in self._heads:
                    self._heads[guard, as_text] = self._bare(guard, as_text)
                head = self._heads[guard, as_text]
                ids = self._bare(guard + text, as_text)
                if ids[: len(head)] == head:
                    return ids[len(head) :]
        return self._bare(text, as_text)

    def _bare(self, text: str, as_text: bool) -> list[int]:
        """Tokens of the text by itself, without begin and end tokens."""
        if not self._tokenizer.is_fast:
            return self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=as_text)
        if as_text not in self._backends:
            self._backends[as_text] = self._backend(as_text)
        return self._backends[as_text].encode(text, add_special_tokens=False).ids

    def _backend(self, as_text: bool) -> Tokenizer:
        """A copy of the fast tokenizer without truncation and padding; with `as_text` it takes no control token out of a text.

        `encode_special_tokens` spares only tokens flagged special, so in that copy exactly the control tokens are.
        """
        state = json.loads(self._tokenizer.backend_tokenizer.to_str())
        state["truncation"] = state["padding"] = None
        if as_text:
            for token in state["added_tokens"]:
                token["special"] = token["content"] in self.control
        backend = Tokenizer.from_str(json.dumps(state))
        backend.encode_special_tokens = as_text
        return backend


def begin_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The begin token if this tokenizer puts one before every text, else nothing."""
    loose: Any = tokenizer
    begin = loose.bos_token_id
    return [begin] if begin is not None and loose("a")["input_ids"][:1] == [begin] else []
