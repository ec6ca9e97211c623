"""Self-consistency: worked votes, weights, ties, what cannot be read, and a budget of tokens."""

from dataclasses import replace

import pytest
import torch

from manners.core.errors import InputError
from manners.core.records import Group, Message, Prompt, Response
from manners.data.chat import ChatFormat
from manners.feedback.rewards import reward_of
from manners.model.draw import Sampling
from manners.model.roles import Backbone
from manners.model.sampler import Sampler, ScriptedSampler
from manners.reason.best_of_n import BestOfN
from manners.reason.self_consistency import SelfConsistency, read_any
from tests.tiny import byte_tokenizer, tiny_llama

ASKED = [Prompt.user("How many?")]
HOT = Sampling(temperature=0.7, max_new_tokens=10)
SAID = ["9", "The answer is 9.", "8", "10", "It is 8", "8 it is"]
SCORES = [0.9, 0.8, 0.3, 0.5, 0.2, 0.4]


class Drawn:
    """A sampler whose draws are given: (text, log-probabilities of its tokens) in order; it keeps what it was asked."""

    def __init__(self, *draws: tuple[str, list[float]]):
        self.draws, self.calls = list(draws), []

    def sample(self, prompts, sampling, *, samples=1, rows=None, on_token=None, progress=None):
        self.calls.append((len(prompts), sampling.max_new_tokens, sampling.round))
        groups = []
        for prompt, row in zip(prompts, rows or range(len(prompts)), strict=True):
            responses = []
            for _ in range(samples):
                text, logps = self.draws.pop(0)
                cut = len(logps) > sampling.max_new_tokens
                logps = logps[: sampling.max_new_tokens]
                made = Response((Message("assistant", text),), [1] * len(logps), logps, logps, "length" if cut else "stop")
                responses.append(made)
            groups.append(Group(prompt, responses, row=row))
        return groups


def given(groups):
    """The scores of the worked example, as a reward."""
    return [[SCORES[SAID.index(r.text)] for r in group.responses] for group in groups]


def test_the_worked_votes():
    """algorithms: majority 8, weighted by the scores 9, best of N 9."""
    won = lambda **how: SelfConsistency(ScriptedSampler(SAID), 6, task="number", **how).sample(ASKED, HOT)[0].responses
    assert [r.text for r in won()] == ["8"] and won()[0].scores == {"votes": 0.5, "unreadable": 0.0, "drawn": 6.0}
    scaled = lambda factor: lambda groups: [[factor * score for score in scores] for scores in given(groups)]
    assert [won(weight="reward-softmax", reward=scaled(f))[0].text for f in (0.1, 1, 100)] == ["8", "9", "9"]
    logit = lambda groups: [[torch.logit(torch.tensor(score)).item() for score in scores] for scores in given(groups)]
    [best] = won(weight="reward", reward=logit)
    assert best.text == "9" and best.scores["votes"] == pytest.approx(1.7 / 3.1), "a sigmoid of the logits gives the scores back"
    assert BestOfN(ScriptedSampler(SAID), given, 6).sample(ASKED, HOT)[0].responses[0].text == "9"


def test_ties_and_what_cannot_be_read():
    scripted = ScriptedSampler(["none", "7", "3", "", "3", "7", "no", "nothing"])
    [group] = SelfConsistency(scripted, 6, task="number").sample(ASKED, HOT)
    assert group.responses[0].text == "7" and group.responses[0].scores == {"votes": 0.5, "unreadable": 2.0, "drawn": 6.0}
    [group] = SelfConsistency(scripted, 2, task="number").sample(ASKED, HOT)
    assert group.responses[0].text == "no" and group.responses[0].scores == {"votes": 0.0, "unreadable": 2.0, "drawn": 2.0}


def test_each_answer_has_its_own_draws_and_all_may_be_kept():
    scripted = lambda: ScriptedSampler(["1", "2", "2", "5", "4", "5"])
    [group] = SelfConsistency(scripted(), 3).sample(ASKED, HOT, samples=2)
    assert [r.text for r in group.responses] == ["2", "5"]
    [group] = SelfConsistency(scripted(), 3, keep_all=True).sample(ASKED, HOT, samples=2)
    assert [r.text for r in group.responses] == ["2", "2", "1", "5", "5", "4"]


def test_weights_by_log_probability():
    draws = (("4", [-0.1] * 4), ("5", [-3.0]), ("5", [-3.0]), ("4", [-0.2] * 30))
    won = lambda weight: SelfConsistency(Drawn(*draws), 4, task="number", weight=weight).sample(ASKED, replace(HOT, max_new_tokens=99))
    mean, total, plain = (won(weight)[0].responses[0] for weight in ("logprob", "logprob-sum", "none"))
    e = torch.tensor([-0.1, -3.0, -3.0, -0.2]).exp()
    assert mean.text == "4" and mean.scores["votes"] == pytest.approx(((e[0] + e[3]) / e.sum()).item())
    e = torch.tensor([-0.4, -3.0, -3.0, -6.0]).exp()
    assert total.scores["votes"] == pytest.approx(((e[0] + e[3]) / e.sum()).item()) and plain.scores["votes"] == 0.5
    assert mean.scores["tokens"] == 36 and plain.text == "4"
    tiny = SelfConsistency(Drawn(("1", [-900.0]), ("2", [-900.0]), ("2", [-901.0])), 3, task="number", weight="logprob-sum")
    assert tiny.sample(ASKED, HOT)[0].responses[0].text == "2", "what is too small for a float still has its ratios"


def test_a_budget_of_tokens():
    """Draws of 4, 4 and 4 tokens: with 10, the third is cut after 2 and has no vote, but is spent."""
    draws = lambda: Drawn(("7", [-1.0] * 4), ("3", [-1.0] * 4), ("3", [-1.0] * 4), ("3", [-1.0] * 4))
    for budget, text, drawn, tokens in ((10, "7", 3, 10), (12, "3", 3, 12), (4, "7", 1, 4), (3, "7", 1, 3)):
        sampler = draws()
        [group] = SelfConsistency(sampler, 4, task="number", budget=budget).sample(ASKED, HOT)
        [response] = group.responses
        assert (response.text, response.scores["drawn"], response.scores["tokens"]) == (text, drawn, tokens), budget
        assert sum(call[0] for call in sampler.calls) == drawn and len({call[2] for call in sampler.calls}) == drawn
    assert response.scores["votes"] == 0.0, "the only draw was cut"
    [group] = SelfConsistency(draws(), 2, task="number", budget=1000).sample(ASKED, HOT)
    assert group.responses[0].scores["drawn"] == 2


def test_a_budget_draws_of_the_real_sampler_are_its_own(one_thread):
    tokenizer = byte_tokenizer()
    sampler = Sampler(Backbone(tiny_llama(width=32), tokenizer), ChatFormat.of(tokenizer, "plain"), slots=8)
    prompts = [Prompt.user("Count."), Prompt.user("Name a colour.")]
    done: list[int] = []
    groups = SelfConsistency(sampler, 5, budget=25, keep_all=True).sample(prompts, HOT, samples=2, progress=done.append)
    for group in groups:
        heads = [r for r in group.responses if "tokens" in r.scores]
        assert len(heads) == 2 and all(r.scores["tokens"] <= 25 for r in heads)
        assert sum(r.scores["drawn"] for r in heads) == len(group.responses)
        assert len({tuple(r.token_ids or ()) for r in group.responses}) == len(group.responses), "no two draws are the same"
    assert done[-1] == 4


def test_tokens_are_told_once_chosen(one_thread):
    tokenizer = byte_tokenizer()
    sampler = Sampler(Backbone(tiny_llama(width=32), tokenizer), ChatFormat.of(tokenizer, "plain"), slots=8)
    told: list[tuple[int, int, int]] = []
    [group] = SelfConsistency(sampler, 3).sample(ASKED, HOT, samples=2, on_token=lambda *what: told.append(what))
    assert told == [(0, s, t) for s, r in enumerate(group.responses) for t in r.token_ids or []]


def test_the_best_by_a_verifier():
    groups = [Group(ASKED[0], [], row=0, columns={"answer": "9"})]
    verifier = reward_of("contains")
    reward = lambda drawn: verifier([replace(g, columns=groups[0].columns) for g in drawn])
    [group] = BestOfN(ScriptedSampler(SAID), reward, 6).sample(ASKED, HOT)
    assert group.responses[0].text == "9" and group.responses[0].scores["reward"] == 1.0
    [group] = SelfConsistency(ScriptedSampler(SAID), 6, weight="reward-softmax", reward=lambda g: [[9 * x for x in reward(g)[0]]]).sample(
        ASKED, HOT
    )
    assert group.responses[0].text == "9"


def test_reading_anything():
    assert [read_any(t) for t in ("So the answer is Paris.", "I count 3, 4", "  Blue! ", "")] == ["paris", "4", "blue", None]


def test_what_cannot_be():
    scripted = ScriptedSampler(["a", "b"])
    for options, said in [
        ({"n": 0}, "votes must be 1 or more"),
        ({"n": 2, "weight": "rewards"}, "did you mean 'reward'"),
        ({"n": 2, "weight": "reward"}, "needs a reward"),
        ({"n": 2, "budget": 0}, "1 token or more"),
        ({"n": 2, "task": "numbers"}, "did you mean 'number'"),
    ]:
        with pytest.raises(InputError, match=said):
            SelfConsistency(scripted, **options)
    with pytest.raises(InputError, match="temperature 0"):
        SelfConsistency(scripted, 2).sample(ASKED, Sampling(temperature=0.0))
    with pytest.raises(InputError, match="gives no log-probabilities"):
        SelfConsistency(scripted, 2, weight="logprob").sample(ASKED, HOT)
    with pytest.raises(InputError, match="does not count its tokens"):
        SelfConsistency(ScriptedSampler(["a"]), 2, budget=5).sample(ASKED, HOT)
