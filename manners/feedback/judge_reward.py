"""A judge's marks as a reward: reinforcement learning from a model's feedback without a reward model between them (Lee 2023, d-RLAIF).

    reward=judge:smollm2-135m-instruct
    reward=judge:http://localhost:8000/v1#my-model
    reward=judge:judge.yaml             # judge, verdict, thoughts, rubric, aspects, scale ... as for `manners judge rate`

The reward is the expected mark, of several aspects their mean, put from the scale onto [-1, 1]. An answer without a mark gets 0, the
middle: a reward must be a number. How many there were is said in a warning.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from manners.core.config import load_settings
from manners.core.console import console
from manners.core.errors import InputError
from manners.core.records import Group
from manners.feedback.comparisons import Answered
from manners.feedback.judge import Criterion, Judge
from manners.feedback.judge_settings import RateSettings
from manners.feedback.judging import aspects_of, judging, rubric_of
from manners.feedback.verify.base import asked, row_number
from manners.model.sampler import AnySampler


class JudgeReward:
    """`spec` is a judge, or a YAML file of settings of `manners judge rate` without data and out. Answers are remembered while it lives."""

    def __init__(self, spec: str, sampler: AnySampler | None = None):
        settings = settings_of(spec)
        if len(settings.judge) > 1:
            raise InputError(
                f"the reward judge:{spec} names {len(settings.judge)} judges; a panel is a sum: 0.5*judge:A.yaml + 0.5*judge:B.yaml."
            )
        self.settings, self.sampler = settings, sampler
        self.aspects, self.unscored, self.seen = aspects_of(settings.aspects), 0, 0
        self._folder = TemporaryDirectory(prefix="manners-judge-")
        self._judge: Judge | None = None
        self._open = ExitStack()

    @property
    def judge(self) -> Judge:
        """The judge, opened with the first answer."""
        if self._judge is None:
            self._judge = self._open.enter_context(judging(self.settings, self.settings.judge[0], Path(self._folder.name), self.sampler))
        return self._judge

    def __call__(self, groups: Sequence[Group]) -> list[list[float]]:
        answers = [
            Answered(row_number(group, place), conversation_of(group), response.text, reference=str(group.columns.get("reference") or ""))
            for place, group in enumerate(groups)
            for response in group.responses
        ]
        marks = iter(
            self.judge.rate(
                answers, self.aspects, Criterion("rubric", rubric_of(self.settings.rubric)), references=self.settings.references
            )
        )
        found = [[self._score(next(marks)) for _ in group.responses] for group in groups]
        return found

    def _score(self, marks: Mapping[str, Any]) -> float:
        low, high = self.settings.scale
        given = [mark.value for mark in marks.values() if mark.value is not None]
        self.seen += 1
        if not given:
            self.unscored += 1
            if self.unscored == 1 or self.unscored % 100 == 0:
                why = next(iter(marks.values())).why
                console.print(f"warning: {self.unscored} of {self.seen} answers have no mark ({why}) and count as the middle of the scale")
            return 0.0
        return 2 * (sum(given) / len(given) - low) / (high - low) - 1


def conversation_of(group: Group) -> Any:
    """A group's prompt as a judge reads it."""
    turns = [{"role": m.role, "content": m.content} for m in group.prompt.messages]
    return turns if len(turns) > 1 else asked(group)


def settings_of(spec: str) -> RateSettings:
    """The settings that a reward's name stands for: one aspect, overall, unless a file says otherwise."""
    given = ["data=unused", "out=unused"]
    if spec.endswith((".yaml", ".yml")):
        found = load_settings(RateSettings, spec, given)
        return found if "aspects" in found.model_fields_set else found.model_copy(update={"aspects": ["overall"]})
    return load_settings(RateSettings, None, [*given, f"judge={spec}", "aspects=[overall]"])
