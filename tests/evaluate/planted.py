"""Subjects whose manners are known: every answer and every log-probability follows a rule that a test plants."""

from collections.abc import Callable, Sequence

from manners.core.records import Group, Prompt, Response
from manners.evaluate.choices import Option
from manners.evaluate.subject import Subject
from manners.model.draw import Sampling

Chooser = Callable[[Prompt, Sequence[str]], Sequence[float]]


class Planted(Subject):
    """`says` answers a prompt (None: no answer); `likes` gives each option's log-probability, and None makes it a subject that only
    answers."""

    def __init__(self, says: Callable[[Prompt], str | None], likes: Chooser | None = None):
        self.name, self.says, self.likes = "planted", says, likes
        self.scores = likes is not None

    def answer(self, prompts: Sequence[Prompt], sampling: Sampling, *, samples: int = 1, what: str = "answers") -> list[Group]:
        said = [self.says(prompt) for prompt in prompts]
        return [Group(p, [] if text is None else [Response.answer(text)]) for p, text in zip(prompts, said, strict=True)]

    def options(self, groups: Sequence[Group], *, what: str = "options") -> list[list[Option]]:
        if self.likes is None:
            return super().options(groups, what=what)
        found = []
        for group in groups:
            texts = [response.text for response in group.responses]
            odds = self.likes(group.prompt, texts)
            found.append([Option(logp, 1, len(text.encode())) for logp, text in zip(odds, texts, strict=True)])
        return found


def last(prompt: Prompt) -> str:
    return prompt.messages[-1].content


def sure_of(index: int, texts: Sequence[str], by: float = 20.0) -> list[float]:
    """Log-probabilities that leave no doubt: e^-20 of the mass to the others."""
    return [0.0 if i == index else -by for i in range(len(texts))]
