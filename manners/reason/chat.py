"""Talking with a model on the terminal: a line in, an answer out as it is drawn, the conversation kept.

Answers go to stdout and nothing else does, so that a script may pipe questions in and read answers.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TextIO

from manners.core.config import Settings
from manners.core.console import console
from manners.core.errors import InputError
from manners.core.records import Message, Prompt
from manners.data.chat import ChatFormat
from manners.model.draw import Sampling
from manners.model.load import load_tokenizer, resolve
from manners.model.logprob import load_frozen
from manners.model.probe import probe
from manners.model.sampler import Sampler, max_positions

HALF = "\ufffd"
"""What decoding puts in the place of a character of which a part is missing."""


class ChatSettings(Settings):
    """Settings of `manners chat`."""

    model: str = "smollm2-135m-instruct"
    """Folder, run, adapter, hub id or alias."""
    format: str = "auto"
    """plain, chatml, template (the tokenizer's own), auto."""
    system: str | None = None
    """System message that begins the conversation."""
    temperature: float = 0.7
    """0 is greedy."""
    top_p: float = 0.9
    """Draw from the smallest set of tokens with so much probability; 1 is off."""
    max_new_tokens: int = 256
    seed: int = 0


class Stream:
    """An answer on its way: tokens in, text out as soon as its characters are whole.

    What is written is always a beginning of `fmt.decode` of all tokens, so that in the end the whole answer stands there once.
    """

    def __init__(self, fmt: ChatFormat, out: TextIO):
        self.token_ids: list[int] = []
        self._fmt, self._out, self._written = fmt, out, 0

    def take(self, token: int) -> None:
        """One more token; writes what it makes certain."""
        self.token_ids.append(token)
        text = self._fmt.decode(self.token_ids)
        if not text.endswith(HALF):
            self._write(text)

    def close(self) -> str:
        """Writes the rest and a line break, and returns the answer."""
        text = self._fmt.decode(self.token_ids).rstrip(HALF)  # what was stopped may end within a character
        self._write(text + "\n")
        return text

    def _write(self, text: str) -> None:
        # Not through rich, which would read [markup] and break lines.
        self._out.write(text[self._written :])
        self._out.flush()
        self._written = max(self._written, len(text))


@dataclass(slots=True)
class Conversation:
    """What was said, and whether a model with so many positions can be given it."""

    fmt: ChatFormat
    system: str | None
    room: int | None = None
    """Tokens that a prompt may have; None if the model does not say."""
    turns: list[Message] = field(default_factory=list)

    def prompt(self, first: int = 0) -> Prompt:
        """The turns from the first on, after the system message."""
        opening = [Message("system", self.system)] if self.system else []
        return Prompt((*opening, *self.turns[first:]))

    def fit(self) -> int:
        """Forget the oldest exchanges until the rest fits. Returns how many. Raises InputError if the last message alone does not."""
        length = 0
        for first in range(0, len(self.turns), 2):
            length = len(self.fmt.prompt_ids(self.prompt(first)))
            if self.room is None or length <= self.room:
                del self.turns[:first]
                return first // 2
        raise InputError(
            f"This message makes a prompt of {length:,} tokens, and the model has room for {self.room:,} beside the answer: "
            "shorten it, or start with a smaller max_new_tokens."
        )


def chat(settings: ChatSettings) -> dict[str, Any]:
    """Answer each line of stdin on stdout until it ends; returns the number of answers and the last conversation."""
    sampling = Sampling(**settings.model_dump(include={"temperature", "top_p", "max_new_tokens", "seed"}))
    source = resolve(settings.model)
    tokenizer = load_tokenizer(source)
    fmt = ChatFormat.of(tokenizer, settings.format)
    talk = Conversation(fmt, settings.system)
    talk.turns = [Message("user", "Hi")]
    talk.fit()  # a template that refuses system messages says so before the weights are loaded
    talk.turns = []
    backbone, role = load_frozen(source, tokenizer)
    probe(backbone)
    sampler = Sampler(backbone, fmt, role=role, slots=1)
    positions = max_positions(backbone.model)
    if positions is not None:
        talk.room = positions - settings.max_new_tokens
        if talk.room < 1:
            raise InputError(f"max_new_tokens={settings.max_new_tokens} leaves a prompt none of the model's {positions} positions.")
    if sys.stdin.isatty():
        console.print(f"{settings.model}, {fmt.name} format. /reset forgets, /exit or Ctrl-D ends, Ctrl-C stops an answer.", style="dim")
    answers = 0
    for index, line in enumerate(_lines()):
        if line == "/reset":
            talk.turns.clear()
            console.print("The conversation is forgotten.", style="dim")
            continue
        answers += _answer(line, talk, sampler, sampling, index)
    return {"answers": answers, "messages": [{"role": m.role, "content": m.content} for m in talk.prompt().messages]}


def _lines() -> Iterator[str]:
    """What the user says, until the end of stdin or /exit: stripped lines, empty ones left out."""
    while True:
        try:
            line = _line()
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            console.print("\n/exit or Ctrl-D ends.", style="dim")
            continue
        if line is None or line.strip() == "/exit":
            return
        if line.strip():
            yield line.strip()


def _line() -> str | None:
    """The next line of stdin, asked for if a person is there; None at its end."""
    if not sys.stdin.isatty():
        return sys.stdin.readline() or None
    try:
        return console.input("you> ")
    except EOFError:
        console.print()
        return None


def _answer(line: str, talk: Conversation, sampler: Sampler, sampling: Sampling, row: int) -> bool:
    """Answer a message, and keep both in the conversation. Whether there was an answer; without one the message is not kept."""
    talk.turns.append(Message("user", line))
    try:
        if forgotten := talk.fit():
            console.print(f"The conversation no longer fits the model: its oldest {forgotten} exchanges are forgotten.", style="dim")
    except InputError as error:
        talk.turns.pop()
        console.print(str(error))
        return False
    stream, end = Stream(talk.fmt, sys.stdout), "stop"
    try:
        drawn = sampler.sample([talk.prompt()], sampling, rows=[row], on_token=lambda index, sample, token: stream.take(token))
        end = drawn[0].responses[0].finish_reason
    except KeyboardInterrupt:
        end = "stopped"
    text = stream.close()
    if end == "stopped":
        console.print("Stopped.", style="dim")
    elif end == "length":
        console.print(f"Cut at max_new_tokens={sampling.max_new_tokens}.", style="dim")
    if not text:
        talk.turns.pop()
        console.print("There was no answer, so the message is not kept.", style="dim")
        return False
    talk.turns.append(Message("assistant", text))
    return True
