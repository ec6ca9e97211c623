"""What a chat is made of: a conversation that is kept short enough, an answer on its way, and who speaks (`chat.py` is the command)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from manners.core.errors import InputError
from manners.core.records import Group, Message, Prompt, Response
from manners.data.chat import ChatFormat
from manners.feedback.rewards import Reward, RewardSpec, reward_of
from manners.model.draw import Sampling
from manners.model.load import load_tokenizer, resolve
from manners.model.logprob import load_frozen
from manners.model.probe import probe
from manners.model.sampler import AnySampler, Sampler, max_positions
from manners.reason.best_of_n import REWARD, BestOfN
from manners.reason.self_consistency import DRAWN, UNREADABLE, VOTES, SelfConsistency, logprob_of

HALF = "\ufffd"
"""What decoding puts in the place of a character of which a part is missing."""


class Writes(Protocol):
    """What an answer is written to: stdout, or a pane of the screen."""

    def write(self, text: str, /) -> Any: ...

    def flush(self) -> Any: ...


class Stream:
    """An answer on its way: tokens in, text out as soon as its characters are whole.

    What is written is always a beginning of `fmt.decode` of all tokens, so that in the end the whole answer stands there once. Without
    a format (an endpoint answers in whole texts) only `close` writes.
    """

    def __init__(self, fmt: ChatFormat | None, out: Writes):
        self.token_ids: list[int] = []
        self._fmt, self._out, self._written = fmt, out, 0

    def take(self, token: int) -> None:
        """One more token; writes what it makes certain."""
        self.token_ids.append(token)
        assert self._fmt is not None
        text = self._fmt.decode(self.token_ids)
        if not text.endswith(HALF):
            self._write(text)

    def close(self, text: str | None = None) -> str:
        """Writes the rest and a line break, and returns the answer: what the tokens say, or `text` where there were none."""
        if self.token_ids or text is None:
            # What was stopped may end within a character.
            text = self._fmt.decode(self.token_ids).rstrip(HALF) if self._fmt is not None else ""
        self._write(text + "\n")
        return text

    def _write(self, text: str) -> None:
        # Not through rich, which would read [markup] and break lines.
        self._out.write(text[self._written :])
        self._out.flush()
        self._written = max(self._written, len(text))


@dataclass(slots=True)
class Conversation:
    """What was said, and whether a model with so many positions can be given it. Two models may share the `turns` of one talk."""

    fmt: ChatFormat | None
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
        if self.fmt is None:
            return 0
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


@dataclass(slots=True)
class Speaker:
    """A model that answers: its name, what samples from it, and its own view of the conversation."""

    name: str
    sampler: AnySampler
    talk: Conversation
    backbone: Any = None
    source: Any = None
    rewards: list[Reward] = field(default_factory=list)
    """The reward of /best, once it was asked for."""

    @property
    def fmt(self) -> ChatFormat | None:
        return self.talk.fmt

    def answers(self, mode: str, n: int, task: str, reward: RewardSpec | None) -> AnySampler:
        """What answers: the model itself, the best of n of its draws, or a vote of n."""
        if mode == "best":
            return BestOfN(self.sampler, self._judge(reward), n)
        if mode == "vote":
            return SelfConsistency(self.sampler, n, task=task)
        return self.sampler

    def _judge(self, spec: RewardSpec | None) -> Reward:
        if spec is None:
            return likeliest
        if not self.rewards:
            self.rewards.append(reward_of(spec, backbone=self.backbone, source=self.source))
        return self.rewards[0]


def likeliest(groups: Sequence[Group]) -> list[list[float]]:
    """A reward for want of another: the mean log-probability of an answer's tokens, in nats."""
    return [[logprob_of(response, mean=True) for response in group.responses] for group in groups]


def open_speaker(name: str, fmt: str, system: str | None, max_new_tokens: int, turns: list[Message]) -> Speaker:
    """The model of a name (or the endpoint, `http://HOST/v1#MODEL`), ready to talk.

    Raises InputError for a template that refuses system messages, before the weights are loaded, and for an answer that would leave a
    prompt no position.
    """
    if name.startswith(("http://", "https://")):
        from manners.model.endpoint import ChatEndpoint  # only here: it asks for the network

        return Speaker(name, ChatEndpoint.named(name), Conversation(None, system, turns=turns))
    source = resolve(name)
    tokenizer = load_tokenizer(source)
    chat_format = ChatFormat.of(tokenizer, fmt)
    Conversation(chat_format, system, turns=[Message("user", "Hi")]).fit()
    backbone, role = load_frozen(source, tokenizer)
    probe(backbone)
    positions = max_positions(backbone.model)
    room = None if positions is None else positions - max_new_tokens
    if room is not None and room < 1:
        raise InputError(f"max_new_tokens={max_new_tokens} leaves a prompt none of the model's {positions} positions.")
    sampler = Sampler(backbone, chat_format, role=role, slots=8)
    return Speaker(name, sampler, Conversation(chat_format, system, room, turns), backbone, source)


def speak(
    speaker: Speaker, sampler: AnySampler, sampling: Sampling, row: int, out: Writes, on_text: Callable[[], None] | None = None
) -> tuple[str, str, Response | None]:
    """One answer, written to `out` as it is drawn: its text, how it ended ("stop", "length", "stopped"), and the response (None if
    Ctrl-C stopped it). Raises InputError as the sampler does."""
    stream = Stream(speaker.fmt, out)
    response, end = None, "stop"

    def take(index: int, sample: int, token: int) -> None:
        stream.take(token)
        if on_text is not None:
            on_text()

    try:
        [group] = sampler.sample([speaker.talk.prompt()], sampling, rows=[row], on_token=take)
        [response] = group.responses
        end = response.finish_reason or "stop"
    except KeyboardInterrupt:
        end = "stopped"
    text = stream.close(None if response is None else response.text)
    return text, end, response


def chosen_how(mode: str, n: int, response: Response | None) -> str:
    """A sentence on how an answer was chosen; empty for a plain one."""
    if response is None or mode == "plain":
        return ""
    if mode == "best":
        return f"The best of {n}: {response.scores[REWARD]:.3g}."
    drawn, unread = (int(response.scores[key]) for key in (DRAWN, UNREADABLE))
    agree = math.floor(response.scores[VOTES] * (drawn - unread) + 0.5)
    return f"{agree} of {drawn} draws agree" + (f"; {unread} gave no answer." if unread else ".")
