"""Whom a judge is: a local model or an endpoint, asked only when there is something to ask.

    voice = voice_of("smollm2-135m-instruct")
    voice.option_logprobs(prompts, ("A", "B"))     # [{"A": -0.9, "B": -1.4}, ...]

A local model is loaded with the first question that is not recorded, so a judge's answers can be replayed without it. What it is asked for
an option is the option's log-probability as the beginning of its answer, in nats, without the stop token.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from manners.core.errors import InputError
from manners.core.records import Group, Prompt, Response, TokenGroup
from manners.core.run import content_hash
from manners.data.chat import ChatFormat
from manners.model.draw import Sampling
from manners.model.endpoint import ChatEndpoint
from manners.model.load import load_tokenizer, resolve
from manners.model.logprob import load_frozen, response_logps
from manners.model.probe import probe
from manners.model.roles import Backbone
from manners.model.sampler import AnySampler, OnToken, Progress, Sampler, max_positions

MICRO_TOKENS = 2048
TOO_LONG = "too long"
"""`finish_reason` of a prompt that the model cannot read."""


class LocalVoice:
    """A model in memory, once it is needed. A prompt that is longer than the model reads has an empty answer with the reason TOO_LONG,
    and no options."""

    def __init__(self, name: str, fmt: str = "auto", *, slots: int = 32):
        self.name, self.slots = name, slots
        self.source = resolve(name)
        self.tokenizer = load_tokenizer(self.source)
        self.fmt = ChatFormat.of(self.tokenizer, fmt)
        self._limit: int | None = None

    @cached_property
    def identity(self) -> str:
        """What tells its answers from another's."""
        base, adapter = self.source.folder, self.source.adapter
        parts = [self.source.base if base is None else content_hash(base), adapter and content_hash(adapter)]
        return json.dumps([*parts, self.fmt.name])

    @cached_property
    def loaded(self) -> tuple[Backbone, str, Sampler]:
        backbone, role = load_frozen(self.source, self.tokenizer)
        probe(backbone)
        self._limit = max_positions(backbone.model)
        return backbone, role, Sampler(backbone, self.fmt, role=role, slots=self.slots)

    def sample(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        samples: int = 1,
        rows: Sequence[int] | None = None,
        on_token: OnToken | None = None,
        progress: Progress | None = None,
    ) -> list[Group]:
        """As a sampler does."""
        sampler = self.loaded[2]
        rows = list(range(len(prompts))) if rows is None else list(rows)
        fits = [i for i, prompt in enumerate(prompts) if self._fits(len(self.fmt.prompt_ids(prompt)) + sampling.max_new_tokens)]
        groups = [Group(p, [Response.answer("", finish_reason=TOO_LONG)] * samples, row=row) for p, row in zip(prompts, rows, strict=True)]
        held = [prompts[i] for i in fits]
        asked = sampler.sample(held, sampling, samples=samples, rows=[rows[i] for i in fits], progress=progress) if held else []
        for i, group in zip(fits, asked, strict=True):
            groups[i] = group
        return groups

    def option_logprobs(self, prompts: Sequence[Prompt], options: Sequence[str]) -> list[dict[str, float] | None]:
        """For each prompt each option's log-probability as the beginning of the answer; {} for a prompt that is too long."""
        backbone, role, _ = self.loaded
        encoded = [self._encoded(Group(prompt, [Response.answer(option) for option in options])) for prompt in prompts]
        fits = [i for i, group in enumerate(encoded) if self._fits(group.tokens)]
        found: list[dict[str, float] | None] = [{} for _ in prompts]
        scored = response_logps(backbone, role, [encoded[i] for i in fits], MICRO_TOKENS)
        for i, logps in zip(fits, scored, strict=True):
            found[i] = {option: logp for option, (logp, _) in zip(options, logps, strict=True)}
        return found

    def _encoded(self, group: Group) -> TokenGroup:
        """As tokens, each response without its stop token: how likely a model is to stop says nothing of an option."""
        encoded = self.fmt.encode(group)
        for response in encoded.responses:
            marked = enumerate(zip(response.token_ids, response.trained, strict=True))
            kept = 1 + max((i for i, (token, trained) in marked if trained and token not in self.fmt.stop_ids), default=0)
            del response.token_ids[kept:], response.trained[kept:]
        return encoded

    def _fits(self, tokens: int) -> bool:
        return self._limit is None or tokens <= self._limit


def voice_of(name: str, *, fmt: str = "auto", slots: int = 32, **endpoint: Any) -> LocalVoice | ChatEndpoint:
    """`http://host:port/v1#model` is an endpoint, with the keys of `ChatEndpoint` in `endpoint`; all else is a model. Raises InputError as
    these do."""
    if not name.strip():
        raise InputError("the judge is empty; name a model, or an endpoint as in http://localhost:8000/v1#my-model.")
    return ChatEndpoint.named(name, **endpoint) if name.startswith(("http://", "https://")) else LocalVoice(name, fmt, slots=slots)


def of_options(tops: dict[str, float] | None, options: Sequence[str]) -> dict[str, float] | None:
    """The options' log-probabilities among an endpoint's likeliest first tokens, white space around them not minded.

    An option that is not among them counts as likely as the least likely of them, which it is at most; {} where none is, None where the
    endpoint gave nothing.
    """
    if not tops:
        return None
    named = {token: max(logp for t, logp in tops.items() if t.strip() == token) for token in {t.strip() for t in tops}}
    if not any(option in named for option in options):
        return {}
    return {option: named.get(option, min(tops.values())) for option in options}


def greedy(max_new_tokens: int, stage: str) -> Sampling:
    """How a judge is asked: without chance."""
    return replace(Sampling(temperature=0.0), max_new_tokens=max_new_tokens, stage=stage)


__all__ = ["TOO_LONG", "AnySampler", "LocalVoice", "greedy", "of_options", "voice_of"]
