"""Best of N: draw N answers, return the one with the highest reward (Stiennon 2020; Nakano 2021).

    y* = argmax over y_1 .. y_N ~ pi(. | x) of r(x, y)

It wraps a sampler and is one, so it can stand wherever one does. Nothing is trained: the leash is N itself, for
KL(best of N || pi) is at most log N - (N - 1)/N nats (`ops/best_of_n.py`).
"""

from collections.abc import Sequence
from dataclasses import replace

from manners.core.errors import InputError
from manners.core.records import Group, Prompt, Response
from manners.feedback.rewards import Reward
from manners.model.draw import Sampling
from manners.model.sampler import AnySampler, OnToken, Progress

REWARD = "reward"
"""Name of the reward in `Response.scores`."""


class BestOfN:
    """Samples by choosing: each answer is the best of `n` draws of `sampler`.

    Answer j of a prompt is the best of draws j n .. (j+1) n - 1, so answers are independent of each other, and with n = 1 they are the
    sampler's own, bit for bit. Of equal rewards the first drawn wins; draws come from one distribution, so that is as good as chance.
    An answer's `scores["reward"]` is its reward. With `keep_all` every draw is returned instead, those of an answer together, best first.
    """

    def __init__(self, sampler: AnySampler, reward: Reward, n: int, *, keep_all: bool = False):
        if n < 1:
            raise InputError(f"best_of must be 1 or more, not {n}.")
        self.sampler, self.reward, self.n, self.keep_all = sampler, reward, n, keep_all

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
        """A group with `samples` answers for each prompt, or with samples x n where all are kept.

        `on_token` is told an answer's tokens once it is chosen, for before that nobody knows which it will be; `progress` counts answers,
        not draws. Raises InputError at temperature 0, where all draws of a prompt are one.
        """
        if sampling.greedy and self.n > 1:
            raise InputError(
                f"the best of {self.n} at temperature 0 would be chosen among {self.n} equal answers; set temperature above 0."
            )
        count = None if progress is None else lambda done: progress(done // self.n)
        drawn = self.sampler.sample(prompts, sampling, samples=samples * self.n, rows=rows, progress=count)
        scored = [_scored(group, scores) for group, scores in zip(drawn, self.reward(drawn), strict=True)]
        chosen = [self._chosen(group) for group in scored]
        if on_token is not None:
            for index, group in enumerate(chosen):
                for place, response in enumerate(group.responses):
                    for token in response.token_ids or ():
                        on_token(index, place, token)
        return chosen

    def _chosen(self, group: Group) -> Group:
        """The group with what is left of its draws."""
        left = []
        for start in range(0, len(group.responses), self.n):
            ranked = sorted(group.responses[start : start + self.n], key=lambda r: -r.scores[REWARD])  # stable: first drawn first
            left += ranked if self.keep_all else ranked[:1]
        return replace(group, responses=left)


def _scored(group: Group, scores: Sequence[float]) -> Group:
    """The group with each response's reward among its scores."""
    scored: list[Response] = [replace(r, scores={**r.scores, REWARD: s}) for r, s in zip(group.responses, scores, strict=True)]
    return replace(group, responses=scored)
