"""A tiny model, trained for some seconds on sums of digits, answers better with steps than without, and better with more samples.

The task: digits below 3, their sum modulo 3. The model is taught both ways of answering, equally often, on all inputs but those that it
is asked: `210212=` is answered by the sum, `210212?` by the running sums as letters and then the sum. Without steps it would have to
know a sum of six digits at once; with them each token needs the last one and one digit.
"""

import random
from collections.abc import Iterator

import pytest
import torch
from torch.nn.functional import cross_entropy

from manners.core.records import Group, Prompt
from manners.data.chat import ChatFormat
from manners.evaluate.at_k import maj_at_k
from manners.model.draw import Sampling
from manners.model.roles import Backbone
from manners.model.sampler import Sampler
from manners.reason.answers import read_number
from manners.reason.self_consistency import SelfConsistency
from tests.tiny import byte_tokenizer, tiny_llama

DIGITS, BASE, ASKED, STEPS, BATCH, RATE, HEAT = 6, 3, 60, 250, 64, 5e-3, 1.5
BARE = "{% for m in messages %}{{ m['content'] + (eos_token if m['role'] == 'assistant' else '') }}{% endfor %}"
"""A format without anything around prompt and answer."""
DIRECT, BY_STEPS = "=", "?"


def answer(digits: tuple[int, ...], way: str) -> str:
    sums = [sum(digits[: i + 1]) % BASE for i in range(DIGITS)]
    return str(sums[-1]) if way == DIRECT else "".join("abc"[s] for s in sums[:-1]) + str(sums[-1])


def text(digits: tuple[int, ...], way: str) -> str:
    return "".join(map(str, digits)) + way


@pytest.fixture(scope="module")
def taught() -> Iterator[tuple[Sampler, list[tuple[int, ...]]]]:
    """The model as a sampler, and the inputs that it never saw."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    draw, tokenizer = random.Random(0), byte_tokenizer(BARE)
    every = [tuple(number // BASE**i % BASE for i in range(DIGITS)) for number in range(BASE**DIGITS)]
    draw.shuffle(every)
    asked, known = every[:ASKED], every[ASKED:]
    ids = lambda digits, way: [*tokenizer.encode(text(digits, way) + answer(digits, way)), tokenizer.eos_token_id]
    model = tiny_llama().train()
    with torch.no_grad():  # weights of the usual size for so narrow a model hardly learn in so few steps
        for weight in model.parameters():
            weight.mul_(4 if weight.ndim == 2 else 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 20) * (1 - step / STEPS)
        for way in (DIRECT, BY_STEPS):  # rows of one way are equally long: nothing is padded
            rows_RT = torch.tensor([ids(digits, way) for digits in draw.choices(known, k=BATCH)])
            logits_RTV = model(input_ids=rows_RT).logits[:, DIGITS:-1]
            cross_entropy(logits_RTV.flatten(0, 1), rows_RT[:, DIGITS + 1 :].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    yield Sampler(Backbone(model.eval(), tokenizer), ChatFormat.of(tokenizer), slots=64), asked
    torch.set_num_threads(before)


def prompts(asked: list[tuple[int, ...]], way: str) -> list[Prompt]:
    return [Prompt.user(text(digits, way)) for digits in asked]


def right(groups: list[Group], asked: list[tuple[int, ...]]) -> float:
    said = [[read_number(response.text) for response in group.responses] for group in groups]
    return sum(a == str(sum(d) % BASE) for d, answers in zip(asked, said, strict=True) for a in answers) / sum(map(len, said))


def test_steps_beat_direct_answers(taught):
    sampler, asked = taught
    greedy = Sampling(temperature=0.0, max_new_tokens=DIGITS + 2)
    found = {way: right(sampler.sample(prompts(asked, way), greedy), asked) for way in (DIRECT, BY_STEPS)}
    assert found[BY_STEPS] > 0.9 and found[BY_STEPS] > found[DIRECT] + 0.3


def test_more_samples_beat_fewer(taught):
    sampler, asked = taught
    hot = Sampling(temperature=HEAT, max_new_tokens=DIGITS + 2, seed=1)
    drawn = sampler.sample(prompts(asked, BY_STEPS), hot, samples=15)
    one = right(drawn, asked)
    said = [[read_number(r.text) for r in group.responses] for group in drawn]
    expected = [sum(maj_at_k(a, str(sum(d) % BASE), k) for a, d in zip(said, asked, strict=True)) / len(asked) for k in (1, 3, 15)]
    assert expected[0] == pytest.approx(one) and expected[0] < expected[1] < expected[2] and expected[2] > one + 0.15
    voted = SelfConsistency(sampler, 15, task="number").sample(prompts(asked, BY_STEPS), hot)
    assert right(voted, asked) == pytest.approx(expected[2]), "the wrapper votes as the estimate of all samples says"
