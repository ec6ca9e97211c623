"""Public files as people bring them: each is read by itself, with one `--map` line, or refused with a sentence that says why.

`python -m tests.data.test_formats_shared` prints the table of docs/data-formats.md.
"""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from manners.core.errors import InputError
from manners.data.formats import DataFile, parse_map, read

DATA = Path(os.environ.get("MANNERS_SHARED") or Path(__file__).parents[3] / "shared") / "data"
pytestmark = pytest.mark.shared

# file: (map line, shape, rows, groups, rows refused and why)
READ: dict[str, tuple[str, str, int, int, dict[str, int]]] = {
    "instructions/alpaca_en_demo": ("", "alpaca", 481, 481, {}),
    "instructions/code_alpaca": ("", "alpaca", 300, 300, {}),
    "instructions/dolly_instructions": ("", "alpaca", 501, 501, {}),
    "instructions/identity_conversations": ("", "alpaca", 91, 91, {}),
    "instructions/koala_test_prompts": ("", "prompts", 109, 109, {}),
    "instructions/mnli_pairs": ("prompt=sentence,completion=label", "prompt-completion", 300, 300, {}),
    "instructions/p3_templated_tasks": ("", "prompt-completion", 858, 808, {"empty answer": 50}),
    "instructions/safety_tuning_instructions": ("", "alpaca", 900, 900, {}),
    "instructions/self_instruct_seed_tasks": ("", "instances", 109, 109, {}),
    "instructions/tool_call_conversations": ("", "sharegpt", 100, 100, {}),
    "instructions/user_oriented_instructions": ("", "instances", 136, 136, {}),
    "instructions/vicuna_identity_conversations": ("", "sharegpt", 150, 150, {}),
    "preferences/alpaca_eval_gpt4_annotations": (
        "instruction=instruction,a=output_1,b=output_2,label=preference",
        "compared",
        800,
        789,
        {"tie": 11},
    ),
    "preferences/autoj_human_pairwise": (
        "prompt=prompt,a=response 1,b=response 2,label=label,coding=0/1/2",
        "compared",
        300,
        212,
        {"tie": 87, "empty answer": 1},
    ),
    "preferences/domain_specific_responses": (
        "prompt=query,chosen=responses.academy,rejected=responses.normal",
        "pair",
        200,
        196,
        {"chosen and rejected are the same": 4},
    ),
    "preferences/dpo_demo_pairs": ("", "sharegpt-pair", 152, 152, {}),
    "preferences/fine_grained_feedback": (
        "prompt=question,a=prediction 1,b=prediction 2,label=preference.0",
        "compared",
        130,
        116,
        {"tie": 14},
    ),
    "preferences/hh_rlhf_harmless_pairs": ("", "hh-pair", 900, 899, {"empty answer": 1}),
    "preferences/hh_rlhf_helpful_pairs": ("", "hh-pair", 900, 900, {}),
    "preferences/hhh_alignment": ("", "pair", 84, 84, {}),
    "preferences/human_judged_pairs": (
        "prompt=input,a=output_1,b=output_2,label=label",
        "compared",
        253,
        252,
        {"chosen and rejected are the same": 1},
    ),
    "preferences/kto_demo_labels": ("", "labelled", 147, 147, {}),
    "preferences/llmbar_instruction_following": ("prompt=input,a=output_1,b=output_2,label=label", "compared", 215, 215, {}),
    "preferences/pandalm_human_comparisons": (
        "instruction=instruction,input=input,a=response1,b=response2,label=annotator1",
        "compared",
        550,
        460,
        {"tie": 54, "empty answer": 36},
    ),
    "preferences/stack_exchange_paired": ("prompt=question,chosen=response_j,rejected=response_k", "pair", 18, 18, {}),
    "preferences/webgpt_comparisons": (
        "prompt=question,a=answer_0,b=answer_1,score_a=score_0,score_b=score_1",
        "scored",
        425,
        327,
        {"tie": 98},
    ),
}
# file: (rows, why nothing in it can be trained on)
NOT_READ = {
    "instructions/constitutional_critique_revision": (16, "requests for critique and revision, no answers"),
    "instructions/monotonicity_entailment": (300, "two sentences and a label: a prompt must first be made of the two"),
    "preferences/alpaca_eval_preferences_by_model": (10, "judgements without the texts judged"),
}


def names() -> list[str]:
    return sorted(f"{p.parent.name}/{p.stem}" for folder in ("instructions", "preferences") for p in (DATA / folder).glob("*.jsonl"))


def load(name: str) -> DataFile:
    line = READ[name][0]
    return read(DATA / f"{name}.jsonl", column_map=parse_map(line) if line else None)


def test_every_file_is_in_a_table():
    assert names() == sorted([*READ, *NOT_READ])


@pytest.mark.parametrize("name", READ)
def test_a_file_is_read(name):
    _, shape, rows, groups, refused = READ[name]
    data = load(name)
    assert (data.shape, data.rows, len(data.groups)) == (shape, rows, groups)
    assert Counter(why for _, why in data.refused) == refused
    for group in data.groups:
        assert group.prompt.messages[-1].role in ("user", "tool")
        assert len(group.responses) == {"pairs": 2, "prompts": 0}.get(data.kind, 1)
        assert all(r.turns[0].role == r.turns[-1].role == "assistant" and r.text.strip() for r in group.responses)


@pytest.mark.parametrize("name", [*NOT_READ, *(name for name, expected in READ.items() if expected[0])])
def test_a_file_that_is_not_read_by_itself_is_explained(name):
    with pytest.raises(InputError, match=rf"{name}\.jsonl: the columns .* are of no known shape.*--map") as caught:
        read(DATA / f"{name}.jsonl")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["text/c4_documents", "text/wikipedia_articles"])
def test_plain_text(name):
    data = read(DATA / f"{name}.jsonl")
    assert (data.kind, data.rows, data.refused) == ("text", len(data.groups), [])


def test_what_is_changed_is_counted():
    assert load("instructions/p3_templated_tasks").notes["end marker '<|endoftext|>' removed"] == 858
    merged = [load(f"preferences/hh_rlhf_{which}_pairs").notes["neighbouring assistant turns merged"] for which in ("harmless", "helpful")]
    assert merged == [3, 6]
    assert load("preferences/hhh_alignment").notes["Human/Assistant text split into turns"] == 17
    assert load("preferences/hh_rlhf_harmless_pairs").refused == [(198, "empty answer")]


def test_first_rows_say_what_they_said_in_the_file():
    row = json.loads((DATA / "preferences/autoj_human_pairwise.jsonl").read_bytes().split(b"\n")[0])
    first = load("preferences/autoj_human_pairwise").groups[0]
    assert row["label"] == 1 and [r.text for r in first.responses] == [
        row["response 2"],
        row["response 1"],
    ]  # 0 is the first answer
    row = json.loads((DATA / "preferences/llmbar_instruction_following.jsonl").read_bytes().split(b"\n")[0])
    first = load("preferences/llmbar_instruction_following").groups[0]
    assert row["label"] == 1 and [r.text for r in first.responses] == [row["output_1"], row["output_2"]]  # here 1 is
    scored = load("preferences/webgpt_comparisons")
    assert scored.groups[0].margin == 1.0 and scored.groups[0].responses[0].text.startswith("The first widely-held theory")
    call = load("instructions/tool_call_conversations").groups[0]
    assert [m.role for m in call.prompt.messages] == ["user"]
    assert [m.role for m in call.responses[0].turns] == ["assistant", "user", "assistant", "tool", "assistant", "user", "assistant"]


def table() -> str:
    """The table of the documentation, in Markdown."""
    lines = ["| file | shape | map line, if needed | rows | groups | refused | why |", "|---|---|---|---:|---:|---:|---|"]
    for name in names():
        base = name.split("/")[1]
        if name in NOT_READ:
            rows, why = NOT_READ[name]
            lines.append(f"| {base} | none | | {rows} | 0 | all | {why} |")
            continue
        data, line = load(name), READ[name][0]
        why = ", ".join(f"{n} {reason}" for reason, n in Counter(why for _, why in data.refused).items())
        cells = (base, data.shape, f"`{line}`" if line else "", data.rows, len(data.groups), len(data.refused), why)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
