"""A sampler with a memory: replays, resumes, budgets."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from manners.core.errors import InputError, MannersError
from manners.core.records import Prompt
from manners.model.draw import Sampling
from manners.model.endpoint import ChatEndpoint
from manners.model.recorded import BudgetReached, RecordedSampler
from manners.model.sampler import Sampler, ScriptedSampler
from tests.endpoint import completion, last

PROMPTS = [Prompt.user(f"Say {word}.") for word in ("one", "two", "three", "one")]


def texts(groups) -> list[list[str]]:
    return [[r.text for r in g.responses] for g in groups]


def told(prompt: Prompt, sample: int) -> str:
    return f"{prompt.messages[-1].content} {sample}"


def test_the_second_run_asks_nothing(tmp_path: Path):
    scripted, done = ScriptedSampler(told), []
    with RecordedSampler(scripted, tmp_path, identity="a") as first:
        groups = first.sample(PROMPTS, Sampling(), samples=2, rows=[3, 4, 5, 6], progress=done.append)
        assert (first.counts.hits, first.counts.misses, done[-1]) == (0, 8, 8)
    before = (tmp_path / "answers.jsonl").read_bytes()
    with RecordedSampler(None, tmp_path, identity="a") as second:
        assert second.sample(PROMPTS, Sampling(), samples=2, rows=[3, 4, 5, 6]) == groups
        assert second.sample(PROMPTS[:1], Sampling(), rows=[3]) == [type(groups[0])(groups[0].prompt, groups[0].responses[:1], row=3)]
        assert (second.counts.hits, second.counts.misses) == (9, 0)
        with pytest.raises(MannersError, match="lacks 1 of the answers"):
            second.sample(PROMPTS[:1], Sampling(), samples=3, rows=[3])
    assert (tmp_path / "answers.jsonl").read_bytes() == before and len(scripted.calls) == 1


def test_what_changes_an_answer_changes_its_key(tmp_path: Path):
    scripted = ScriptedSampler(told)
    ask = lambda who, sampling, row=0: RecordedSampler(scripted, tmp_path, identity=who)
    with RecordedSampler(scripted, tmp_path, identity="a") as sampler:
        for sampling in (Sampling(), Sampling(seed=1), Sampling(temperature=0.5), Sampling(stage="x"), Sampling(max_new_tokens=5)):
            sampler.sample(PROMPTS[:1], sampling)
        sampler.sample(PROMPTS[:1], Sampling(), rows=[1])
        assert (sampler.counts.hits, sampler.counts.misses) == (0, 6)
        sampler.sample([PROMPTS[0], PROMPTS[3]], Sampling(temperature=0), samples=2)  # equal prompts, and greedy: one answer
        assert sampler.counts.misses == 7
    with ask("b", Sampling()) as other:
        other.sample(PROMPTS[:1], Sampling())
        assert other.counts.misses == 1


def test_a_local_model_replays_its_tokens(tmp_path: Path, one_thread):
    from manners.data.chat import ChatFormat
    from manners.model.roles import BASE, Backbone
    from tests.tiny import byte_tokenizer, tiny_llama

    sampler = Sampler(Backbone(tiny_llama(width=32)), ChatFormat.of(byte_tokenizer(), "plain"), role=BASE)
    sampling = Sampling(max_new_tokens=6)
    with pytest.raises(ValueError, match="identity"):
        RecordedSampler(sampler, tmp_path)
    with RecordedSampler(sampler, tmp_path, identity="tiny") as recorded:
        groups = recorded.sample(PROMPTS, sampling, samples=2)
    assert groups == sampler.sample(PROMPTS, sampling, samples=2)
    with RecordedSampler(None, tmp_path, identity="tiny") as recorded:
        assert recorded.sample(PROMPTS, sampling, samples=2) == groups
        assert recorded.spent == sum(len(r.token_ids) for g in groups for r in g.responses) + 2 * (2 + 2 + 3 + 2)  # four characters a token


def test_an_endpoint_replays_offline(tmp_path: Path, played):
    server = played(lambda body: f"{last(body)} {body['seed']}")
    ask = lambda: RecordedSampler(ChatEndpoint.named(server.name, tries=1), tmp_path)
    with ask() as first:
        groups = first.sample(PROMPTS, Sampling(), samples=3)
        assert first.spent == first.sampler.spent.tokens == 12 * (2 + 3)
    server.close()
    with ask() as second:
        assert second.sample(PROMPTS, Sampling(), samples=3) == groups and second.counts.hits == 12
        with pytest.raises(MannersError, match="could not be asked"):
            second.sample(PROMPTS, Sampling(seed=1))


def test_a_dead_endpoint_costs_only_what_it_had_not_answered(tmp_path: Path, played):
    server = played(*[lambda body: last(body)] * 2, 500)
    with RecordedSampler(ChatEndpoint(server.url, "m", tries=1, concurrency=1), tmp_path) as sampler:
        with pytest.raises(MannersError, match="500"):
            sampler.sample(PROMPTS, Sampling())
        assert sampler.counts.misses == 2
        server.script = [lambda body: last(body)]
        assert texts(sampler.sample(PROMPTS, Sampling())) == [[p.messages[0].content] for p in PROMPTS]
        assert (sampler.counts.hits, sampler.counts.misses, len(server.asked)) == (2, 4, 5)


def test_the_budget_stops_and_loses_nothing(tmp_path: Path, played):
    server = played(lambda body: last(body))  # 4 tokens a request
    make = lambda budget: RecordedSampler(ChatEndpoint(server.url, "m", concurrency=1), tmp_path, budget)
    with make(9) as sampler, pytest.raises(BudgetReached, match=r"9 tokens is spent \(12\); 3 answers are kept"):
        sampler.sample(PROMPTS * 2, Sampling())
    with make(9) as sampler:
        assert len(sampler.sample(PROMPTS[:3], Sampling())) == 3  # what is there costs nothing
        with pytest.raises(BudgetReached):
            sampler.sample(PROMPTS * 2, Sampling())
    assert len(server.asked) == 3
    with make(None) as sampler:
        sampler.sample(PROMPTS * 2, Sampling())
    assert len(server.asked) == 8
    with pytest.raises(InputError, match="1 token or more"):
        RecordedSampler(ScriptedSampler([]), tmp_path / "x", 0, identity="a")
    with RecordedSampler(ScriptedSampler(told), tmp_path / "local", 5, identity="a") as sampler:
        sampler.sample(PROMPTS[:1], Sampling())
        with pytest.raises(BudgetReached):
            sampler.sample(PROMPTS, Sampling())


def test_first_tokens_are_kept(tmp_path: Path, played):
    tokens = [{"token": "A", "logprob": -0.5, "top_logprobs": [{"token": "A", "logprob": -0.5}]}]
    server = played(lambda body: completion(body, "A", logprobs={"content": tokens}))
    for asked in (3, 3):
        with RecordedSampler(ChatEndpoint(server.url, "m"), tmp_path) as sampler:
            assert sampler.first_token_logprobs(PROMPTS, top=1) == [{"A": -0.5}] * 4
            assert len(server.asked) == asked
    with RecordedSampler(ScriptedSampler(told), tmp_path / "x", identity="a") as sampler, pytest.raises(InputError, match="endpoint"):
        sampler.first_token_logprobs(PROMPTS)


def test_half_lines_and_broken_ones(tmp_path: Path):
    with RecordedSampler(ScriptedSampler(told), tmp_path, identity="a") as sampler:
        groups = sampler.sample(PROMPTS, Sampling())
    kept = tmp_path / "answers.jsonl"
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-30])
    with RecordedSampler(ScriptedSampler(told), tmp_path, identity="a") as sampler:
        assert sampler.sample(PROMPTS, Sampling()) == groups and sampler.counts.misses == 1
    assert kept.read_bytes() == whole
    kept.write_bytes(b'{"key": "x"}\n' + whole)
    with pytest.raises(MannersError, match="byte 0: this line is no recorded answer"):
        RecordedSampler(ScriptedSampler(told), tmp_path, identity="a")
    (tmp_path / "b").mkdir()
    with RecordedSampler(None, tmp_path / "b", identity="a"), pytest.raises(InputError, match="another process"):
        RecordedSampler(None, tmp_path / "b", identity="a")


KILLED = """
import sys
from manners.core.records import Prompt
from manners.model.draw import Sampling
from manners.model.endpoint import ChatEndpoint
from manners.model.recorded import RecordedSampler
with RecordedSampler(ChatEndpoint.named(sys.argv[1], concurrency=2), sys.argv[2]) as sampler:
    sampler.sample([Prompt.user(f"Say {i}.") for i in range(12)], Sampling())
"""


def test_killed_and_begun_again(tmp_path: Path, played):
    def slowly(body):
        time.sleep(0.05)
        return f"{last(body)} {body['seed']}"

    server = played(slowly)
    process = subprocess.Popen([sys.executable, "-c", KILLED, server.name, str(tmp_path / "killed")], cwd=Path(__file__).parents[2])
    while len(server.asked) < 5:
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    prompts, asked = [Prompt.user(f"Say {i}.") for i in range(12)], len(server.asked)
    with RecordedSampler(ChatEndpoint.named(server.name), tmp_path / "killed") as sampler:
        groups = sampler.sample(prompts, Sampling())
        assert 0 < sampler.counts.hits < 12 and len(server.asked) - asked == sampler.counts.misses
    with RecordedSampler(ChatEndpoint.named(server.name), tmp_path / "whole") as sampler:
        assert sampler.sample(prompts, Sampling()) == groups
    lines = lambda name: sorted((tmp_path / name / "answers.jsonl").read_text().splitlines())
    assert lines("killed") == lines("whole") and all(json.loads(line)["key"] for line in lines("whole"))
