"""Asking one subject the same things by log-probabilities and by answers, whichever it can give; and the questions that ship."""

from collections.abc import Sequence
from importlib.resources import files as resources
from typing import Literal

from manners.core.records import Group, Prompt, Response
from manners.evaluate.choices import Option
from manners.evaluate.subject import Subject
from manners.model.draw import Sampling

Way = Literal["auto", "options", "answers", "both"]


def starter_file(name: str) -> str:
    """Where a file of questions that ships lies."""
    return str(resources("manners.data.starter").joinpath("questions", name))


class Asker:
    """A subject and how it is asked. By log-probabilities of options, by answers, or both."""

    def __init__(self, subject: Subject, ask: Way, max_new_tokens: int):
        self.subject = subject
        self.by_options = ask in ("options", "both") or (ask == "auto" and subject.scores)
        self.by_answers = ask != "options"
        self.sampling = Sampling(temperature=0.0, max_new_tokens=max_new_tokens)

    def answers(self, prompts: Sequence[Prompt], what: str) -> list[str | None]:
        """The greedy answer to each prompt, equal ones asked once; None where there is none."""
        known = {prompt.id: prompt for prompt in prompts}
        groups = self.subject.answer(list(known.values()), self.sampling, what=what) if known else []
        said = {id: group.responses[0].text if group.responses else None for id, group in zip(known, groups, strict=True)}
        return [said[prompt.id] for prompt in prompts]

    def options(self, asked: Sequence[tuple[Prompt, Sequence[str]]], what: str) -> list[list[Option]]:
        """The log-probability of each option after each prompt."""
        groups = [Group(prompt, [Response.answer(text) for text in texts], row=i) for i, (prompt, texts) in enumerate(asked)]
        return self.subject.options(groups, what=what) if groups else []
