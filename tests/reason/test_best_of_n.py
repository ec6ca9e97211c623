"""Best of N: with N = 1 the sampler itself, bit for bit; the best of its own draws; larger N, higher rewards."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from manners.core.errors import InputError
from manners.core.files import read_jsonl
from manners.core.records import Group, Prompt
from manners.data.chat import ChatFormat
from manners.feedback.rewards import reward_of
from manners.model.draw import Sampling
from manners.model.roles import Backbone
from manners.model.sampler import Sampler, ScriptedSampler
from manners.reason.best_of_n import BestOfN
from manners.reason.generate import GenerateSettings, generate
from tests.tiny import byte_tokenizer, tiny_llama

PROMPTS = [Prompt.user("Count."), Prompt.user("Name a colour."), Prompt.user("Count.")]
HOT = Sampling(temperature=1.0, max_new_tokens=12, seed=3)
length = reward_of("length")


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    torch.set_num_threads(1)
    tokenizer = byte_tokenizer()
    return Sampler(Backbone(tiny_llama(width=32), tokenizer), ChatFormat.of(tokenizer, "plain"), slots=8)


def letters(groups: list[Group]) -> list[list[float]]:
    """Share of letters: a reward of few values, so that draws often tie."""
    return [[sum(c.isalpha() for c in r.text) / max(len(r.text), 1) for r in group.responses] for group in groups]


def test_n_1_is_plain_sampling_bit_for_bit(sampler):
    plain = sampler.sample(PROMPTS, HOT, samples=3, rows=[4, 7, 9])
    best = BestOfN(sampler, letters, 1).sample(PROMPTS, HOT, samples=3, rows=[4, 7, 9])
    assert [g.row for g in best] == [4, 7, 9]
    for ours, theirs, scores in zip(best, plain, letters(plain), strict=True):
        assert [r.scores["reward"] for r in ours.responses] == scores
        assert [replace(r, scores={}) for r in ours.responses] == theirs.responses


def test_each_answer_is_the_best_of_its_own_draws(sampler):
    draws = sampler.sample(PROMPTS, HOT, samples=8)
    chosen = BestOfN(sampler, letters, 4).sample(PROMPTS, HOT, samples=2)
    for group, drawn, scores in zip(chosen, draws, letters(draws), strict=True):
        assert len(group.responses) == 2
        for place, response in enumerate(group.responses):
            part = scores[4 * place : 4 * place + 4]
            first = 4 * place + part.index(max(part))
            assert response.token_ids == drawn.responses[first].token_ids and response.scores["reward"] == max(part)


def test_mean_reward_does_not_fall_with_n(sampler):
    """Each n's draws hold those of the smaller ones, so not even one prompt may fall."""
    rewards = [[g.responses[0].scores["reward"] for g in BestOfN(sampler, letters, n).sample(PROMPTS, HOT)] for n in (1, 2, 4, 8, 16)]
    for fewer, more in pairwise(rewards):
        assert all(a <= b for a, b in zip(fewer, more, strict=True))
    assert sum(rewards[-1]) > sum(rewards[0])


def test_all_draws_best_first():
    scripted = ScriptedSampler({"Count.": ["one", "one two", "one two three", "four"]})
    kept = BestOfN(scripted, length, 2, keep_all=True).sample(PROMPTS[:1], HOT, samples=2)
    assert [[r.text for r in g.responses] for g in kept] == [["one two", "one", "one two three", "four"]]
    best = BestOfN(scripted, length, 4).sample(PROMPTS[:1], HOT)
    assert [(r.text, r.scores) for r in best[0].responses] == [("one two three", {"reward": 3.0})]
    first_of_equals = BestOfN(ScriptedSampler(["a b", "c d"]), length, 2).sample(PROMPTS[:1], HOT)
    assert first_of_equals[0].responses[0].text == "a b"


def test_it_wraps_itself():
    """A best of 2 of best of 2 is a best of 4."""
    scripted = lambda: ScriptedSampler({"Count.": ["one", "one two", "a b c", "four"]})
    twice = BestOfN(BestOfN(scripted(), length, 2), length, 2).sample(PROMPTS[:1], HOT)
    assert [r.text for r in twice[0].responses] == ["a b c"]


def test_tokens_are_told_once_chosen_and_progress_counts_answers(sampler):
    told, done = [], []
    groups = BestOfN(sampler, letters, 3).sample(
        PROMPTS, HOT, samples=2, on_token=lambda *what: told.append(what), progress=lambda count: done.append(count)
    )
    assert told == [(i, s, t) for i, g in enumerate(groups) for s, r in enumerate(g.responses) for t in r.token_ids or []]
    assert done[-1] == 6 and sorted(done) == done


def test_what_cannot_be():
    with pytest.raises(InputError, match="best_of must be 1 or more"):
        BestOfN(ScriptedSampler([]), length, 0)
    with pytest.raises(InputError, match="temperature 0"):
        BestOfN(ScriptedSampler([]), length, 2).sample(PROMPTS, Sampling(temperature=0.0))
    assert BestOfN(ScriptedSampler(["a"]), length, 1).sample(PROMPTS[:1], Sampling(temperature=0.0))[0].responses[0].text == "a"


def test_generate_keeps_the_best_and_writes_its_reward(tiny_model, tmp_path, one_thread):
    data = tmp_path / "prompts.jsonl"
    data.write_text('{"prompt": "Count."}\n{"prompt": "Name a colour."}\n')
    common = {"model": str(tiny_model), "data": str(data), "max_new_tokens": 8, "reward": "length", "format": "plain"}
    made = {}
    for name, keys in {"all": {"samples": 4}, "best": {"best_of": 4}, "kept": {"best_of": 4, "keep": "all"}}.items():
        generate(GenerateSettings(**common, **keys, out=str(tmp_path / name)))
        made[name] = read_jsonl(tmp_path / name)
    for row_all, row_best, row_kept in zip(made["all"], made["best"], made["kept"], strict=True):
        rewards = [r["scores"]["reward"] for r in row_all["responses"]]
        assert len(rewards) == 4 and [r["scores"]["reward"] for r in row_best["responses"]] == [max(rewards)]
        assert [r["scores"]["reward"] for r in row_kept["responses"]] == sorted(rewards, reverse=True)
        assert row_best["responses"][0] == row_kept["responses"][0] and row_best["responses"][0] in row_all["responses"]
    with pytest.raises(InputError, match="best_of=4 needs a reward"):
        generate(GenerateSettings(model=str(tiny_model), prompt="Hi", best_of=4))
