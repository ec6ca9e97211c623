"""Ways by name: what wraps what, `manners generate way=`, and what does not go together."""

import pytest

from manners.core.errors import InputError
from manners.core.files import read_jsonl
from manners.core.records import Prompt
from manners.model.draw import Sampling
from manners.model.sampler import ScriptedSampler
from manners.reason.chain_of_thought import ChainOfThought
from manners.reason.self_consistency import SelfConsistency
from manners.reason.ways import WaySettings, exemplars_for, wrapped


def test_what_wraps_what():
    sampler = ScriptedSampler([])
    assert wrapped(sampler, WaySettings()) is sampler
    asked = wrapped(sampler, WaySettings(way="few-shot-direct", task="yes-no"))
    assert isinstance(asked, ChainOfThought) and not asked.steps and len(asked.exemplars.items) == 6
    voted = wrapped(sampler, WaySettings(way="self-consistency", task="number", shots=2))
    assert isinstance(voted, SelfConsistency) and voted.n == 8 and isinstance(voted.sampler, ChainOfThought)
    assert len(voted.sampler.exemplars.items) == 2 and not voted.sampler.extract
    plain = wrapped(sampler, WaySettings(votes=3))
    assert isinstance(plain, SelfConsistency) and plain.sampler is sampler


def test_a_vote_of_two_stages():
    scripted = ScriptedSampler(["a", "b", "c", "1", "2", "2"])
    way = wrapped(scripted, WaySettings(way="zero-shot-cot", task="number", votes=3))
    [group] = way.sample([Prompt.user("How many?")], Sampling())
    assert group.responses[0].text == "b\nTherefore, the answer (arabic numerals) is 2" and len(group.responses[0].asked) == 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"way": "few-shot"}, "unknown way 'few-shot'; did you mean 'few-shot-"),
        ({"way": "direct", "task": "nummer"}, "did you mean 'number'"),
        ({"way": "direct", "budget": 9}, "weight and budget are of a vote"),
        ({"way": "zero-shot-cot", "exemplars": "arithmetic"}, "exemplars are shown by"),
        ({"way": "few-shot-cot", "task": "aqua"}, "suit the task aqua: name a file"),
    ],
)
def test_what_does_not_go_together(settings, said):
    with pytest.raises(InputError, match=said):
        wrapped(ScriptedSampler([]), WaySettings(**settings))
    assert exemplars_for(None, "gsm8k").items


def test_generate_by_a_way(manners, tiny_model, tmp_path):
    data = tmp_path / "questions.jsonl"
    data.write_text('{"prompt": "2+2?", "answer": "4"}\n{"prompt": "3+2?", "answer": "5"}\n')
    out = tmp_path / "answers.jsonl"
    words = ("generate", f"model={tiny_model}", f"data={data}", f"out={out}", "max_new_tokens=4", "answer_tokens=3", "format=plain")
    assert manners(*words, "way=zero-shot-cot", "task=number", "votes=2", "keep=all").code == 0
    rows = read_jsonl(out)
    assert [row["messages"][0]["content"] for row in rows] == ["2+2?", "3+2?"]
    for row in rows:
        assert row["asked"][0]["content"].endswith("?\nA: Let's think step by step.") and len(row["responses"]) == 2
        for response in row["responses"]:
            [again] = response["asked"]
            assert again[0]["content"].startswith(row["asked"][0]["content"])
            assert again[0]["content"].endswith("Therefore, the answer (arabic numerals) is")
        assert row["responses"][0]["scores"]["drawn"] == 2 and row["responses"][0]["scores"]["tokens"] >= 4
    assert manners(*words, "way=direct", "task=number", "temperature=0").code == 0
    assert "asked" not in read_jsonl(out)[0]["responses"][0] and read_jsonl(out)[0]["asked"][0]["content"].startswith("Q: 2+2?\nA: The")
    refused = manners(*words, "way=self-consistency", "task=number", "temperature=0")
    assert refused.code == 2 and "temperature 0" in refused.error
