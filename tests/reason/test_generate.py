"""`manners generate`: one prompt on the terminal, a file of prompts, and what is refused."""

import json

import pytest

from manners.core.files import read_jsonl


def test_a_prompt_is_answered_on_stdout_alike_each_time(manners, tiny_model):
    words = ("generate", f"model={tiny_model}", "prompt=Hello", "temperature=0", "max_new_tokens=8")
    first, second = manners(*words), manners(*words)
    assert first.code == 0 and first.stdout == second.stdout


def test_json_has_the_answers(manners, tiny_model):
    done = manners("generate", f"model={tiny_model}", "prompt=Hello", "max_new_tokens=4", "samples=3", "--json")
    result = json.loads(done.stdout[-1])
    assert len(result["answers"]) == 3 and set(result["finish_reasons"]) <= {"stop", "length"}


def test_each_prompt_of_a_file(manners, tiny_model, demonstrations, tmp_path):
    out = tmp_path / "answers.jsonl"
    assert (
        manners("generate", f"model={tiny_model}", f"data={demonstrations}", f"out={out}", "rows=3", "max_new_tokens=5", "samples=2").code
        == 0
    )
    rows = read_jsonl(out)
    assert [r["row"] for r in rows] == [0, 1, 2]
    assert all(len(r["responses"]) == 2 and 1 <= len(x["token_ids"]) <= 5 for r in rows for x in r["responses"])
    assert rows[0]["messages"] == [{"role": "user", "content": "What is 1 plus 2?"}]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "either prompt=... or data=FILE"),
        (["prompt=a", "data=b"], "not both"),
        (["prompt=a", "out=b"], "out= goes with data="),
        (["data=b"], "name the file to write with out="),
        (["prompt=a", "temperature=-1"], "temperature"),
        (["prompt=a", "top_p=0"], "top_p"),
    ],
)
def test_what_does_not_go_together_is_refused(manners, tiny_model, words, said):
    refused = manners("generate", f"model={tiny_model}", *words)
    assert refused.code == 2 and said in refused.error


def test_an_unusable_out_is_found_before_anything_is_sampled(manners, tiny_model, demonstrations, tmp_path):
    refused = manners("generate", f"model={tiny_model}", f"data={demonstrations}", f"out={tmp_path}")
    assert refused.code == 2 and str(tmp_path) in refused.error
