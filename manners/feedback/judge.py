"""A model as a judge: which of two answers is better, and how good is one?

    with open_judge("smollm2-135m-instruct", Manner(), "runs/judge/answers") as judge:
        opinions = judge.compare(comparisons)         # each with `share`, the probability that answer a is the better one
        marks = judge.rate(answered, {"helpfulness": "Is it of use?"})

Both orders are asked, and the verdict is the mean of the two probabilities: a judge that always takes the first answer says one half. A
verdict is read from the log-probabilities of the options as the judge's next token, normalised over the options, where the judge gives
them, else from its words. With thoughts the judge writes its reasons first and is then asked to decide (Lee 2023). A judge is asked
without chance, so it needs no seed. What cannot be read is unscored, with the reason: never a tie and never a zero.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, Literal

from manners.core.console import progress
from manners.core.errors import InputError
from manners.core.records import Message, Prompt
from manners.core.run import identity
from manners.core.text import words
from manners.data.sandbox import PIPES, STANDIN, TemplateFault
from manners.data.writers.desk import ENDING, VERDICT, Templates
from manners.feedback.comparisons import Answered, Comparison
from manners.feedback.verdicts import LETTERS, LONG, NA, NO_REASONS, NOT_APPLICABLE, Heard, of_logprobs, of_words
from manners.feedback.voices import TOO_LONG, greedy, of_options, voice_of
from manners.model.endpoint import ChatEndpoint
from manners.model.recorded import RecordedSampler
from manners.model.sampler import AnySampler

TOP = 20
"""Likeliest tokens that an endpoint is asked for."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How a judge is asked. `verdict` says what is read: the options' log-probabilities, its words, or (auto) the former where there are
    any. `ties` lets it say that neither is better. `low` and `high` are the ends of its marks."""

    verdict: Literal["auto", "logprob", "text"] = "auto"
    thoughts: bool = False
    orders: Literal["both", "given"] = "both"
    ties: bool = False
    low: int = 1
    high: int = 5
    max_new_tokens: int = 256


@dataclass(frozen=True, slots=True)
class Criterion:
    """By what two answers are compared: a rubric or a principle. `text` stands in the prompt."""

    name: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One order: the probability that the answer shown first is the better one, None if unscored."""

    swapped: bool
    first: float | None
    heard: Heard
    reasons: str = ""

    @property
    def share(self) -> float | None:
        """Answer a's."""
        return None if self.first is None else 1 - self.first if self.swapped else self.first


@dataclass(slots=True)
class Opinion:
    """What one judge says of one comparison."""

    judge: str
    verdicts: list[Verdict] = field(default_factory=list)

    @property
    def share(self) -> float | None:
        """The probability that answer a is the better one: the mean over the orders; None if one of them has no verdict."""
        shares = [verdict.share for verdict in self.verdicts]
        return None if not shares or None in shares else sum(s for s in shares if s is not None) / len(shares)

    @property
    def why(self) -> str:
        """Why it is unscored."""
        return next((verdict.heard.why for verdict in self.verdicts if verdict.first is None), "")

    @property
    def first_shown(self) -> float | None:
        """How often (0, 1/2, 1) the first-shown answer won over both orders; None unless both have a verdict."""
        firsts = [verdict.first for verdict in self.verdicts]
        return None if len(firsts) < 2 or None in firsts else sum(side(f) for f in firsts if f is not None) / len(firsts)

    @property
    def consistent(self) -> bool | None:
        """Whether both orders name the same winner, or both a tie; None unless both have a verdict."""
        shares = [verdict.share for verdict in self.verdicts]
        return None if len(shares) < 2 or None in shares else len({side(s) for s in shares if s is not None}) == 1


@dataclass(frozen=True, slots=True)
class Mark:
    """A rating: `value` is the expected mark, or None with the reason."""

    value: float | None
    heard: Heard

    @property
    def why(self) -> str:
        return "" if self.value is not None else self.heard.why


def side(share: float) -> float:
    """1 for more than one half, 0 for less, and one half."""
    return 0.5 if abs(share - 0.5) < 1e-12 else float(share > 0.5)


def clamped(share: float, clamp: Sequence[float] | None) -> float:
    """A probability within the bounds. Bai 2022 keeps those of verdicts with a chain of thought, which are too sure, in 0.4 to 0.6."""
    return share if clamp is None else min(max(share, clamp[0]), clamp[1])


def of_panel(shares: Sequence[float | None], rule: Literal["mean", "majority"]) -> float | None:
    """What several judges say together: the mean of those who have a verdict, or the share of them that name answer a (a tie is half a
    vote). None if nobody has one."""
    scored = [share if rule == "mean" else side(share) for share in shares if share is not None]
    return sum(scored) / len(scored) if scored else None


class Judge:
    """A judge with its prompts and its memory. `judge.recorded.counts` says what was asked and what it took."""

    def __init__(self, name: str, recorded: RecordedSampler, manner: Manner, prompts: Path | None = None):
        self.name, self.recorded, self.manner, self.templates = name, recorded, manner, JudgePrompts(prompts)

    def __enter__(self) -> "Judge":
        return self

    def __exit__(self, *_: Any) -> None:
        self.recorded.close()

    # ------------------------------------------------------------------------------------------------------- comparing

    def compare(
        self, items: Sequence[Comparison], criteria: Sequence[Criterion] | None = None, *, references: bool = False
    ) -> list[Opinion]:
        """An opinion of each comparison. `criteria` are as many, or none; with `references` each comparison's own is shown."""
        criteria = criteria if criteria is not None else [Criterion()] * len(items)
        orders = (False, True) if self.manner.orders == "both" else (False,)
        places = [(i, swapped) for swapped in orders for i in range(len(items))]
        fields = []
        for i, swapped in places:
            item = items[i]
            first, second = (item.b, item.a) if swapped else (item.a, item.b)
            content = {"first": shown(first), "second": shown(second), "reference": item.reference if references else ""}
            fields.append({"criterion": criteria[i].text, "conversation": item.conversation, "ties": self.manner.ties, **content})
        options = LETTERS if self.manner.ties else LETTERS[:2]
        opinions = [Opinion(self.name) for _ in items]
        for (i, swapped), (heard, reasons) in zip(places, self._ask("compare", "verdict", fields, options), strict=True):
            first = None if heard.shares is None else heard.shares["A"] + heard.shares.get("C", 0.0) / 2
            opinions[i].verdicts.append(Verdict(swapped, first, heard, reasons))
        return opinions

    # ---------------------------------------------------------------------------------------------------------- rating

    def rate(
        self, items: Sequence[Answered], aspects: Mapping[str, str], criterion: Criterion | None = None, *, references: bool = False
    ) -> list[dict[str, Mark]]:
        """A mark of each answer in each aspect (name -> what it means)."""
        low, high = self.manner.low, self.manner.high
        options = (*(str(mark) for mark in range(low, high + 1)), NOT_APPLICABLE)
        places = [(i, name) for name in aspects for i in range(len(items))]
        fields = [
            {
                "criterion": (criterion or Criterion()).text,
                "aspect": name.replace("_", " "),
                "description": aspects[name],
                "conversation": items[i].conversation,
                "answer": shown(items[i].text),
                "reference": items[i].reference if references else "",
                "low": low,
                "high": high,
            }
            for i, name in places
        ]
        marks: list[dict[str, Mark]] = [{} for _ in items]
        for (i, name), (heard, _) in zip(places, self._ask("rate", "mark", fields, options), strict=True):
            marks[i][name] = _mark(heard)
        return marks

    # ---------------------------------------------------------------------------------------------------------- asking

    def _ask(self, template: str, follow_up: str, fields: Sequence[Mapping[str, Any]], options: Sequence[str]) -> list[tuple[Heard, str]]:
        """For each question what was heard, and the reasons given before it."""
        thoughts = self.manner.thoughts
        asked = [Prompt.user(self.templates.filled(template, {**f, "thoughts": thoughts})) for f in fields]
        with progress() as bar:
            task = bar.add_task(f"{self.name}: {template}", total=len(asked) * (1 + thoughts), note="")
            done = lambda n: bar.update(task, completed=n)
            if not thoughts:
                return [(heard, "") for heard in self._heard(asked, options, template, done)]
            groups = self.recorded.sample(asked, greedy(self.manner.max_new_tokens, f"{template} reasons"), progress=done)
            replies = [group.responses[0] for group in groups]
            said = [reply.text.strip() for reply in replies]
            places = [i for i, text in enumerate(said) if text]
            turns = [
                (Message("assistant", said[i]), Message("user", self.templates.filled(follow_up, {"ties": self.manner.ties, **fields[i]})))
                for i in places
            ]
            decided = [Prompt((*asked[i].messages, *turn)) for i, turn in zip(places, turns, strict=True)]
            found = [(Heard(None, LONG if reply.finish_reason == TOO_LONG else NO_REASONS), "") for reply in replies]
            heard = self._heard(decided, options, follow_up, lambda n: done(len(asked) + n))
            for i, one in zip(places, heard, strict=True):
                found[i] = (one, said[i])
            return found

    def _heard(self, prompts: Sequence[Prompt], options: Sequence[str], stage: str, done: Any) -> list[Heard]:
        """What the judge says to each prompt, by log-probabilities or by words."""
        found: list[Heard | None] = [None] * len(prompts)
        if self.manner.verdict != "text":
            for i, logps in enumerate(self._logprobs(prompts, options)):
                found[i] = of_logprobs(logps, options)
        left = [i for i, heard in enumerate(found) if heard is None]
        if left and self.manner.verdict == "logprob":
            raise InputError(
                f"the judge '{self.name}' gives no log-probabilities of its first token; verdict=text (or auto) reads its words instead."
            )
        sampling = greedy(min(VERDICT, self.manner.max_new_tokens), stage)
        for i, group in zip(left, self.recorded.sample([prompts[i] for i in left], sampling) if left else [], strict=True):
            found[i] = of_words(group.responses[0].text, group.responses[0].finish_reason == TOO_LONG, options)
        done(len(prompts))
        return [heard for heard in found if heard is not None]

    def _logprobs(self, prompts: Sequence[Prompt], options: Sequence[str]) -> list[dict[str, float] | None]:
        sampler = self.recorded.sampler
        if hasattr(sampler, "option_logprobs"):
            return self.recorded.option_logprobs(prompts, options)
        if not isinstance(sampler, ChatEndpoint):
            return [None] * len(prompts)
        try:
            return [of_options(tops, options) for tops in self.recorded.first_token_logprobs(prompts, TOP)]
        except InputError as error:
            if "logprob" not in str(error):
                raise
            if self.manner.verdict == "auto":
                return [None] * len(prompts)
            raise InputError(f"{str(error).rstrip('.')}; verdict=text reads the judge's words instead.") from None


def open_judge(
    name: str,
    manner: Manner,
    folder: str | Path,
    *,
    fmt: str = "auto",
    prompts: Path | None = None,
    budget: int | None = None,
    sampler: AnySampler | None = None,
    **voice: Any,
) -> Judge:
    """A judge whose answers are kept in a folder. `sampler` takes the place of the model, which then only lends its name; `voice` are keys
    of `voice_of`."""
    asked = sampler if sampler is not None else voice_of(name, fmt=fmt, **voice)
    who = getattr(asked, "identity", None) or name
    return Judge(name, RecordedSampler(asked, folder, budget, identity=who), manner, prompts)


class JudgePrompts(Templates):
    """The judge's templates, and those of a folder that stand in for them by name."""

    @cached_property
    def shipped(self) -> dict[str, Any]:
        folder = package_files("manners.feedback") / "prompts"
        return {path.name.removesuffix(ENDING): path for path in folder.iterdir() if path.name.endswith(ENDING)}

    def filled(self, name: str, fields: Mapping[str, Any]) -> str:
        """A template filled in. Raises InputError where it cannot be."""
        try:
            text = self[name].render(fields).replace(STANDIN, PIPES).strip()
        except TemplateFault as fault:
            raise InputError(f"the judge's template {self.place(name)} cannot be filled: {fault}.") from None
        return re.sub(r"\n{3,}", "\n\n", text)

    @property
    def hash(self) -> str:
        """Sixteen hex digits over all of them."""
        return identity({name: self.source(name) for name in sorted(self.shipped)})


def _mark(heard: Heard) -> Mark:
    """The expected mark, over the marks alone; none where the judge says rather than not that the aspect does not apply."""
    if heard.shares is None:
        return Mark(None, heard)
    if heard.shares[NOT_APPLICABLE] > 0.5:
        return Mark(None, Heard(None, NA, heard.read, heard.said, heard.mass))
    given = {int(option): share for option, share in heard.shares.items() if option != NOT_APPLICABLE}
    return Mark(sum(mark * share for mark, share in given.items()) / sum(given.values()), heard)


def shown(text: str) -> str:
    """An answer as a judge sees it; one without words is said to be empty."""
    return text.strip() if text.strip() else "(an empty answer)"


def told(judge: Judge, opinions: Sequence[Opinion]) -> dict[str, Any]:
    """What a judge did, in numbers: verdicts by how they were read, what was unscored and why, how often the first-shown answer won and
    both orders agreed, how much probability the options had, the cost."""
    verdicts = [verdict for opinion in opinions for verdict in opinion.verdicts]
    firsts = [f for o in opinions if (f := o.first_shown) is not None]
    alike = [c for o in opinions if (c := o.consistent) is not None]
    masses = [v.heard.mass for v in verdicts if v.heard.mass is not None]
    mean = lambda values: sum(values) / len(values) if values else None
    return {
        "comparisons": len(opinions),
        "scored": sum(o.share is not None for o in opinions),
        "unscored": dict(Counter(o.why for o in opinions if o.share is None)),
        "read": dict(Counter(v.heard.read for v in verdicts if v.first is not None)),
        "first_shown_wins": mean(firsts),
        "consistent": mean([float(c) for c in alike]),
        "mass": mean(masses),
        "reason_words": mean([len(words(v.reasons)) for v in verdicts if v.reasons]),
        "cost": {**judge.recorded.counts.as_dict(), "tokens_in_folder": judge.recorded.spent},
    }
