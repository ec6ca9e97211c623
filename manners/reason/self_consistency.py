"""Self-consistency: draw several answers, return the one that most of them agree on (Wang 2022).

    answer* = argmax over a of  sum over i with a_i = a of  w_i

Every w_i is 1, or grows with how likely or how good the i-th draw is. Votes are over the answers that a task's rule reads out of the
texts (`answers.py`), not over texts; a draw without an answer does not vote. Of equal sums the answer drawn first wins.

It wraps a sampler and is one. The response that it returns is the first draw with the winning answer.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

from manners.core.errors import InputError, nearest
from manners.core.records import Group, Prompt, Response
from manners.feedback.rewards import Reward
from manners.model.draw import Sampling
from manners.model.sampler import AnySampler, OnToken, Progress
from manners.reason.answers import Reader, read_bbh, read_exact, read_number, task_of, vote
from manners.reason.best_of_n import REWARD
from manners.reason.chain_of_thought import TOKENS, read_answer, spent

Weight = Literal["none", "logprob", "logprob-sum", "reward", "reward-softmax"]
"""What a vote weighs: 1; exp of a draw's mean log-probability a token (Wang's normalised sum) or of its sum; a sigmoid of its reward, or
its share in a softmax over the question's draws."""
VOTES, UNREADABLE, DRAWN = "votes", "unreadable", "drawn"
"""Names in `Response.scores`: the winner's share of all weights, the draws without an answer, the draws."""
ANY = "any"
"""The task of what may be any question: words after "the answer is", else the last number, else the whole text."""


def rule_of(task: str) -> Reader:
    """The rule that counts of a task, or of ANY. Raises InputError that names the nearest task."""
    return read_any if task == ANY else next(iter(task_of(task).rules.values()))


def read_any(text: str) -> str | None:
    """See ANY."""
    return read_bbh(text) or read_number(text) or read_exact(text)


class SelfConsistency:
    """Samples by voting: each answer is the winner among `n` draws of `sampler`.

    Answer j of a prompt is voted among draws j n .. (j+1) n - 1, so answers are independent. With `budget` draws are made one after the
    other until so many tokens are spent on the answer (at most n draws); what goes beyond the budget does not vote. `scores` of a
    response hold `votes`, `unreadable`, `drawn` and, where the draws were counted, `tokens`, those of all draws together. With
    `keep_all` every draw is returned, the winner first, then the other draws with its answer, then the rest as drawn.
    """

    def __init__(
        self,
        sampler: AnySampler,
        n: int,
        *,
        task: str = ANY,
        weight: Weight = "none",
        reward: Reward | None = None,
        budget: int | None = None,
        keep_all: bool = False,
    ):
        if n < 1:
            raise InputError(f"votes must be 1 or more, not {n}.")
        if weight not in get_args(Weight):
            raise InputError(f"unknown weight '{weight}'; {nearest(weight, get_args(Weight))}")
        if weight.startswith(REWARD) and reward is None:
            raise InputError(f"weight={weight} needs a reward to weigh by; add reward=NAME.")
        if budget is not None and budget < 1:
            raise InputError(f"budget must be 1 token or more, not {budget}.")
        self.sampler, self.n, self.rule, self.weight, self.reward = sampler, n, rule_of(task), weight, reward
        self.budget, self.keep_all = budget, keep_all

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

        `on_token` is told an answer's tokens once it is chosen; `progress` counts answers. Raises InputError at temperature 0, where all
        draws are one, and for weights by log-probability where the sampler gives none.
        """
        if sampling.greedy and self.n > 1:
            raise InputError(f"a vote of {self.n} at temperature 0 would be among {self.n} equal answers; set temperature above 0.")
        if self.budget is not None:
            groups = self._within_budget(prompts, sampling, samples, rows, progress)
        else:
            count = None if progress is None else lambda done: progress(done // self.n)
            drawn = self.sampler.sample(prompts, sampling, samples=samples * self.n, rows=rows, progress=count)
            parts = [[g.responses[i : i + self.n] for i in range(0, samples * self.n, self.n)] for g in drawn]
            groups = [self._voted(group, given) for group, given in zip(drawn, parts, strict=True)]
        if on_token is not None:
            for index, group in enumerate(groups):
                for place, response in enumerate(group.responses):
                    for token in response.token_ids or ():
                        on_token(index, place, token)
        return groups

    def _voted(self, group: Group, parts: Sequence[Sequence[Response]], late: Sequence[int] = ()) -> Group:
        """The group with the winner of each part; of the parts in `late` the last draw does not vote, for it went beyond the budget."""
        weights = self._weights(group, parts)
        left: list[Response] = []
        for place, (draws, weight) in enumerate(zip(parts, weights, strict=True)):
            answers = [read_answer(self.rule, response) for response in draws]
            voting = [*answers[:-1], None] if place in late else answers
            won = vote(voting, weight)
            first = voting.index(won) if won is not None else 0
            total = sum(w for a, w in zip(voting, weight, strict=True) if a is not None)
            share = sum(w for a, w in zip(voting, weight, strict=True) if a is not None and a == won) / total if total else 0.0
            told = {VOTES: share, UNREADABLE: float(answers.count(None)), DRAWN: float(len(draws))}
            tokens = [spent(response) for response in draws]
            if None not in tokens:
                told[TOKENS] = float(sum(t for t in tokens if t is not None))
            winner = replace(draws[first], scores={**draws[first].scores, **told})
            if not self.keep_all:
                left.append(winner)
                continue
            others = [i for i in range(len(draws)) if i != first]
            left += [winner, *(draws[i] for i in sorted(others, key=lambda i: (won is None or voting[i] != won, i)))]
        return replace(group, responses=left)

    def _weights(self, group: Group, parts: Sequence[Sequence[Response]]) -> list[list[float]]:
        """A weight for each draw of each part, not negative. Only their ratios within a part count, so the largest is 1."""
        if self.weight == "none":
            return [[1.0] * len(draws) for draws in parts]
        if self.weight.startswith(REWARD):
            assert self.reward is not None
            scores = iter(self.reward([replace(group, responses=[r for draws in parts for r in draws])])[0])
            values = [[next(scores) for _ in draws] for draws in parts]
            if self.weight == REWARD:
                return [[_sigmoid(value) for value in given] for given in values]
        else:
            values = [[logprob_of(response, mean=self.weight == "logprob") for response in draws] for draws in parts]
        return [[math.exp(value - max(given)) for value in given] for given in values]

    def _within_budget(
        self, prompts: Sequence[Prompt], sampling: Sampling, samples: int, rows: Sequence[int] | None, progress: Progress | None
    ) -> list[Group]:
        """Draws in rounds, each of one draw for every answer that has tokens left; the round is part of a draw's key."""
        rows = list(range(len(prompts))) if rows is None else list(rows)
        budget = self.budget
        assert budget is not None
        groups: list[Group] = [Group(prompt, [], row=row) for prompt, row in zip(prompts, rows, strict=True)]
        drawn: list[list[list[Response]]] = [[[] for _ in range(samples)] for _ in prompts]
        left = [[budget] * samples for _ in prompts]
        late: list[list[int]] = [[] for _ in prompts]
        finished = 0
        for number in range(self.n):
            for place in range(samples):
                going = [i for i in range(len(prompts)) if left[i][place] > 0 and place not in late[i]]
                for room in sorted({min(left[i][place], sampling.max_new_tokens) for i in going}):
                    part = [i for i in going if min(left[i][place], sampling.max_new_tokens) == room]
                    way = replace(
                        sampling,
                        max_new_tokens=room,
                        min_new_tokens=min(sampling.min_new_tokens, room),
                        round=(sampling.round * self.n + number) * samples + place,
                    )
                    given = self.sampler.sample([prompts[i] for i in part], way, rows=[rows[i] for i in part])
                    for i, group in zip(part, given, strict=True):
                        [response] = group.responses
                        took = spent(response)
                        if took is None:
                            raise InputError("this sampler does not count its tokens, so a budget of tokens cannot be kept.")
                        left[i][place] -= took
                        cut = room < sampling.max_new_tokens and response.finish_reason == "length"
                        if left[i][place] < 0 or cut:
                            late[i].append(place)
                        drawn[i][place].append(response)
            done = sum(n <= 0 or place in late[i] for i in range(len(prompts)) for place, n in enumerate(left[i]))
            if progress is not None and done > finished and number < self.n - 1:
                progress(finished := done)
        if progress is not None:
            progress(len(prompts) * samples)
        return [self._voted(group, parts, ends) for group, parts, ends in zip(groups, drawn, late, strict=True)]


def logprob_of(response: Response, *, mean: bool) -> float:
    """A response's log-probability under the untruncated policy in nats, summed or a token. Raises InputError if it has none."""
    if not response.policy_logprobs:
        raise InputError("weighing votes by log-probability needs a model in memory; this sampler gives no log-probabilities.")
    total = sum(response.policy_logprobs)
    return total / len(response.policy_logprobs) if mean else total


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))
