"""Asking a model by a template, and keeping count of what became of the answers.

A `Desk` is what every way of writing is given: `ask` renders a template for each row of fields and returns the model's replies in order;
`step` opens a tally. A step's rules are applied in one order, and what one drops the next does not see, so that the tally reads as a
yield after each rule. All of it depends on the seed, the settings and the model's answers alone, never on their order of arrival.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from manners.core.chance import stream_of, uniform
from manners.core.console import progress
from manners.core.errors import InputError, nearest
from manners.core.records import Group, Message, Prompt
from manners.data.sandbox import PIPES, STANDIN, EmptySlot, Jinja, TemplateFault
from manners.model.draw import Sampling
from manners.model.sampler import AnySampler

ENDING = ".jinja"
VERDICT = 16
"""Most tokens of a verdict: a word, and what a model likes to say before it."""
EMPTY, CUT, TOO_LONG = "empty answer", "cut off by the length", "longer than the model reads"
UNUSABLE = (TOO_LONG, EMPTY, CUT)
"""Why a reply cannot be used whatever was asked, in the order in which it is looked for."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model answered: the text without white space around it, whether the length cut it off, and what it was asked."""

    text: str
    cut: bool
    template: str
    prompt: str
    unread: bool = False
    """Whether the prompt did not fit the model, which was not asked then."""

    @property
    def fault(self) -> str | None:
        """Why it cannot be used, or None. An answer that is cut off may still be of use for all but its end."""
        return TOO_LONG if self.unread else EMPTY if not self.text else CUT if self.cut else None

    @property
    def asked(self) -> dict[str, str]:
        """For `written_with` of a row: the template's name and the prompt that it made."""
        return {"template": self.template, "prompt": self.prompt}


@dataclass
class Step:
    """How many items came to a step, and how many each of its rules dropped, in the rules' order."""

    name: str
    rules: Sequence[str]
    seen: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    """What was counted without being dropped."""
    write: Callable[[dict[str, Any]], None] | None = None

    def keeps(self, why: str | None, item: Mapping[str, Any]) -> bool:
        """Count an item; True if no rule speaks against it. What is dropped is written down with the reason."""
        self.seen += 1
        if why is None:
            return True
        assert why in self.rules, f"{self.name} has no rule '{why}'"
        self.dropped[why] += 1
        if self.write is not None:
            self.write({"step": self.name, "why": why, **item})
        return False

    @property
    def kept(self) -> int:
        return self.seen - self.dropped.total()

    def report(self) -> dict[str, Any]:
        """Counts, and what was left after each rule."""
        left, after = self.seen, {}
        for rule in self.rules:
            left -= self.dropped[rule]
            after[rule] = {"dropped": self.dropped[rule], "left": left}
        return {
            "step": self.name,
            "seen": self.seen,
            "kept": self.kept,
            "after": after,
            **({"notes": dict(self.notes)} if self.notes else {}),
        }


class Desk:
    """A model to ask, templates to ask by, a seed, and the tally."""

    def __init__(
        self,
        sampler: AnySampler,
        name: str,
        sampling: Sampling,
        *,
        prompts: Path | None = None,
        fits: Callable[[Prompt, int], bool] | None = None,
        dropped: Callable[[dict[str, Any]], None] | None = None,
    ):
        self.sampler, self.name, self.sampling, self.fits = sampler, name, sampling, fits
        self.templates = Templates(prompts)
        self.steps: dict[str, Step] = {}
        self._dropped = dropped

    @property
    def seed(self) -> int:
        return self.sampling.seed

    def step(self, name: str, rules: Sequence[str]) -> Step:
        """The tally of this name, made when first asked for."""
        return self.steps.setdefault(name, Step(name, tuple(rules), write=self._dropped))

    def ask(
        self,
        template: str,
        rows: Sequence[Mapping[str, Any]],
        keys: Sequence[int],
        *,
        greedy: bool = False,
        verdict: bool = False,
        stage: str = "",
    ) -> list[Reply]:
        """A reply to each row of fields. `keys` number the draws of this template (or `stage`): equal prompts with other keys draw anew.

        `verdict` asks for a word: greedily, and of VERDICT tokens at most.
        A row that the template cannot be filled with gets an empty reply.
        """
        jinja = self.templates[template]
        texts: list[str | None] = []
        for row in rows:
            try:
                texts.append(jinja.render(row).replace(STANDIN, PIPES).strip())
            except EmptySlot:
                texts.append(None)
            except TemplateFault as fault:
                raise InputError(f"the template {self.templates.place(template)} cannot be filled: {fault}.") from None
        return self._send(template, [None if t is None else (Message("user", t),) for t in texts], keys, greedy, verdict, stage or template)

    def converse(self, prompts: Sequence[Sequence[Message]], keys: Sequence[int], *, stage: str) -> list[Reply]:
        """Replies to conversations as they are, without a template."""
        return self._send("", [tuple(p) for p in prompts], keys, False, False, stage)

    def _send(
        self,
        template: str,
        asked: Sequence[tuple[Message, ...] | None],
        keys: Sequence[int],
        greedy: bool,
        verdict: bool,
        stage: str,
    ) -> list[Reply]:
        sampling = replace(self.sampling, stage=stage)
        if greedy or verdict:
            sampling = replace(sampling, temperature=0.0)
        if verdict:
            sampling = replace(sampling, max_new_tokens=min(VERDICT, sampling.max_new_tokens))
        fits = self.fits or (lambda prompt, new: True)
        prompts = {i: Prompt(messages) for i, messages in enumerate(asked) if messages is not None}
        held = {i: p for i, p in prompts.items() if fits(p, sampling.max_new_tokens)}
        groups = dict(zip(held, self._sample(list(held.values()), sampling, [keys[i] for i in held], stage), strict=True))
        replies = []
        for i, messages in enumerate(asked):
            text = messages[-1].content if messages else ""
            if i not in groups:
                replies.append(Reply("", False, template, text, unread=messages is not None))
            else:
                response = groups[i].responses[0]
                replies.append(Reply(response.text.strip(), response.finish_reason == "length", template, text))
        return replies

    def _sample(self, prompts: Sequence[Prompt], sampling: Sampling, keys: Sequence[int], what: str) -> list[Group]:
        if not prompts:
            return []
        with progress() as bar:
            task = bar.add_task(what, total=len(prompts), note="")
            return self.sampler.sample(prompts, sampling, rows=list(keys), progress=lambda done: bar.update(task, completed=done))

    def chance(self, *key: int | str) -> random.Random:
        """Random numbers of their own for a purpose and a place: the same whatever else was drawn."""
        return random.Random(stream_of(self.seed, *key))

    def row(self, messages: Sequence[Mapping[str, str]], how: str, replies: Iterable[Reply], **columns: Any) -> dict[str, Any]:
        """A row of training data that this model wrote, with where it comes from and the prompts that made it."""
        origin = {"source": columns.pop("source", "") or how, "cluster": columns.pop("cluster", ""), "license": columns.pop("license", "")}
        return {
            "messages": [dict(message) for message in messages],
            **columns,
            **origin,
            "made_by": {"kind": "model", "name": self.name, "how": how},
            "written_with": [reply.asked for reply in replies if reply.template],
        }


class Templates:
    """The templates that ship, and those of a folder that stand in for them by name."""

    def __init__(self, folder: Path | None = None):
        self.folder = folder
        self._read: dict[str, Jinja] = {}
        if folder is not None:
            if not folder.is_dir():
                raise InputError(f"prompts={folder} is no folder of templates.")
            known = {path.name for path in self.shipped.values()}
            for path in sorted(folder.glob(f"*{ENDING}")):
                if path.name not in known:
                    raise InputError(f"{path} stands in for no template; {nearest(path.name, known)}")

    @cached_property
    def shipped(self) -> dict[str, Any]:
        folder = package_files("manners.data.writers") / "prompts"
        return {path.name.removesuffix(ENDING): path for path in folder.iterdir() if path.name.endswith(ENDING)}

    def place(self, name: str) -> str:
        """Where a template was read from."""
        own = self.folder / f"{name}{ENDING}" if self.folder is not None else None
        return str(own) if own is not None and own.is_file() else f"{name}{ENDING}"

    def source(self, name: str) -> str:
        """The text of a template."""
        own = self.folder / f"{name}{ENDING}" if self.folder is not None else None
        try:
            return own.read_text(encoding="utf-8") if own is not None and own.is_file() else self.shipped[name].read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise InputError(f"{own} is not UTF-8 text.") from None

    def __getitem__(self, name: str) -> Jinja:
        if name not in self._read:
            try:
                self._read[name] = Jinja(self.source(name))
            except TemplateFault as fault:
                raise InputError(f"the template {self.place(name)} is no template that can be used: {fault}.") from None
        return self._read[name]


def shown(rows: Sequence[Mapping[str, Any]], count: int, seed: int) -> list[Mapping[str, Any]]:
    """`count` of the rows at random, in their order."""
    key = stream_of(seed, "shown")
    chosen = sorted(range(len(rows)), key=lambda place: uniform(key, place))[:count]
    return [rows[place] for place in sorted(chosen)]
