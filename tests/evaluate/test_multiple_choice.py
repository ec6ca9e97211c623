"""`manners eval choices`: shapes, prompts to the character, rules against plain sums, the rule for ties, and bad input."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from manners.core.errors import InputError
from manners.core.files import read_json, read_jsonl
from manners.evaluate.continuations import Scorer, rolling_windows
from manners.evaluate.multiple_choice import ChoicesSettings, file_items, items_of, ranked, task_items
from manners.evaluate.question_shapes import SHAPES, examples_of, put
from manners.evaluate.subject import LocalSubject, RecordedSubject, open_subject
from manners.evaluate.task_file import Task
from tests.conftest import write_rows

ARC = [
    {
        "instruction": f"Please choose the correct answer to the question: Which is {a}?\n\n"
        f"Answer1: {a} Answer2: not {a} Answer3: a fish\n\n"
        "Answer format: answer1/answer2/answer3",
        "answer": "answer1",
    }
    for a in ("red", "blue", "round")
]
MMLU = [
    {"subject": s, "question": f"Pick {x}.", "choices": [x, "other", "third"], "answer": "A"}
    for s, x in [("plain_maths", "one"), ("marketing", "two"), ("plain_maths", "three")]
]
TRUTH = [{"Question": "Is it?", "Best Answer": "It is", "Correct Answers": "It is; Yes", "Incorrect Answers": "It is not; Never"}]


@pytest.fixture(scope="module")
def subject(tiny_model: Path) -> LocalSubject:
    found = open_subject(str(tiny_model), "plain")
    assert isinstance(found, LocalSubject)
    return found


# --- shapes and prompts ----------------------------------------------------------------------------------------------------------


def test_arc_is_asked_as_text(tmp_path: Path) -> None:
    [first, _, third] = file_items(str(write_rows(tmp_path / "arc.jsonl", ARC)), "auto", 1, None, "auto", None)
    assert first.pairs[0] == ("Question: Which is blue?\nAnswer: blue\n\nQuestion: Which is red?\nAnswer:", " red")
    assert third.pairs[2] == ("Question: Which is red?\nAnswer: red\n\nQuestion: Which is round?\nAnswer:", " a fish")
    assert (third.set, third.right, third.options) == ("arc", (0,), ("round", "not round", "a fish"))


def test_mmlu_lists_its_options_and_takes_examples_of_the_same_subject(tmp_path: Path) -> None:
    path = str(write_rows(tmp_path / "mmlu.jsonl", [MMLU[0], MMLU[2]]))
    [first, _] = file_items(path, "auto", 1, None, "auto", None)
    about = "The following are multiple choice questions (with answers) about plain maths.\n\n"
    example = "Pick three.\nA. three\nB. other\nC. third\nAnswer: A\n\n"
    assert first.pairs[1] == (about + example + "Pick one.\nA. one\nB. other\nC. third\nAnswer:", " B")
    whole = str(write_rows(tmp_path / "whole.jsonl", MMLU))
    with pytest.raises(InputError, match=r"whole.jsonl has 0 rows of the group 'marketing' to take 1 examples from"):
        file_items(whole, "mmlu", 1, None, "auto", None)


def test_truthfulqa_puts_the_best_answer_where_the_question_says() -> None:
    read = SHAPES["truthfulqa"].read
    places = {read({**TRUTH[0], "Question": f"Is it {i}?"}, "row").right for i in range(20)}
    assert places == {(0,), (1,), (2,)}, "no rule for ties can favour the right one"
    question = read(TRUTH[0], "row")
    assert question.options[question.right[0]] == "It is" and sorted(question.options) == ["It is", "It is not", "Never"]
    hub = read({"question": "Is it?", "mc1_targets": {"choices": ["It is", "It is not", "Never"], "labels": [1, 0, 0]}}, "row")
    assert hub == question


def test_arc_of_the_hub_and_answers_as_numbers() -> None:
    row = {"question": "Which?", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"}
    assert SHAPES["arc"].read(row, "row").right == (1,)
    assert SHAPES["mmlu"].read({**MMLU[0], "answer": 2}, "row").right == (2,)
    assert SHAPES["mmlu"].read({**MMLU[0], "answer": "other"}, "row").right == (1,)
    assert put(SHAPES["arc"].read(row, "row"), "letters") == ("Which?\nA. a\nB. b\nAnswer:", ["A", "B"])


def test_a_question_is_never_its_own_example() -> None:
    questions = [SHAPES["mmlu"].read({**MMLU[0], "question": str(i)}, "row") for i in range(3)]
    assert [q.text for q in examples_of(questions, 0, "plain_maths", 2, "here")] == ["1", "2"]
    assert [q.text for q in examples_of(questions, 2, "plain_maths", 2, "here")] == ["0", "1"]


# --- numbers ---------------------------------------------------------------------------------------------------------------------


def plain(subject: LocalSubject, context: str, continuation: str) -> float:
    """The sum by the model's own forward, with the tokenizer's own call."""
    tokenizer, model = subject.backbone.tokenizer, subject.backbone.model
    assert tokenizer is not None
    bare = context.rstrip()
    before, whole = tokenizer(bare)["input_ids"], tokenizer(context + continuation)["input_ids"]
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        logps = model(torch.tensor([whole]), use_cache=False).logits[0].log_softmax(-1)
    model.set_attn_implementation(implementation)
    return sum(logps[i - 1, whole[i]].item() for i in range(len(before), len(whole)))


def test_rows_hold_the_plain_sums_and_every_rule_its_own_choice(subject: LocalSubject, tmp_path: Path, one_thread: None) -> None:
    items = file_items(str(write_rows(tmp_path / "arc.jsonl", ARC)), "auto", 1, None, "auto", None)
    rows = ranked(subject, items, micro_tokens=80)
    for row, item in zip(rows, items, strict=True):
        sums = [plain(subject, *pair) for pair in item.pairs]
        priors = [plain(subject, "Answer:", pair[1]) for pair in item.pairs]
        assert [option["logp"] for option in row["options"]] == pytest.approx(sums, abs=1e-4)
        assert [option["prior"] for option in row["options"]] == pytest.approx(priors, abs=1e-4)
        by_rule = {
            "sum": sums,
            "mean": [s / (len(text) + 1) for s, text in zip(sums, item.options, strict=True)],  # a token a byte, the space is one
            "bytes": [s / len(text) for s, text in zip(sums, item.options, strict=True)],
            "pmi": [s - p for s, p in zip(sums, priors, strict=True)],
        }
        for rule, scores in by_rule.items():
            assert row["chosen"][rule] == scores.index(max(scores))
            assert row["values"][f"accuracy_{rule}"] == (row["chosen"][rule] in item.right)
        shares = torch.tensor(sums, dtype=torch.float64).softmax(0)
        assert row["values"]["right_probability"] == pytest.approx(shares[0].item(), abs=1e-4)
        assert row["values"]["chance"] == pytest.approx(1 / 3)


def test_a_trailing_space_belongs_to_the_continuation(subject: LocalSubject, one_thread: None) -> None:
    scorer = Scorer(subject)
    [(before, after)] = scorer.pairs([("Say: ", "yes")])
    assert subject.backbone.tokenizer is not None
    assert subject.backbone.tokenizer.decode(after) == " yes" and subject.backbone.tokenizer.decode(before) == "Say:"
    assert scorer.pairs([("", "yes")])[0][0] == [scorer.prefix_id]
    assert scorer.logps([("Say: ", "yes")])[0].logp == pytest.approx(plain(subject, "Say: ", "yes"), abs=1e-4)
    with pytest.raises(InputError, match="no token of its own"):
        scorer.pairs([("Say:", "")])


def test_of_equals_the_first_is_chosen(subject: LocalSubject, tmp_path: Path, one_thread: None) -> None:
    same = {"question": "Which?", "choices": ["as good", "as good"], "answer": 1}
    items = file_items(str(write_rows(tmp_path / "same.jsonl", [same])), "mmlu", 0, None, "cloze", None)
    [row] = ranked(subject, items)
    assert row["chosen"] == dict.fromkeys(("sum", "mean", "bytes", "pmi"), 0)
    assert row["values"]["accuracy_sum"] == 0 and row["values"]["right_probability"] == pytest.approx(0.5)


def test_a_chat_asks_in_the_models_format(subject: LocalSubject, tmp_path: Path, one_thread: None) -> None:
    path = str(write_rows(tmp_path / "arc.jsonl", ARC))
    text, chat = (ranked(subject, file_items(path, "auto", 1, None, "auto", 1), ask=ask) for ask in ("text", "chat"))
    assert text[0]["id"] == chat[0]["id"] and text[0]["options"][0]["logp"] != chat[0]["options"][0]["logp"]
    context = "### Prompt\nQuestion: Which is blue?\n\n### Response\nblue</s>\n\n### Prompt\nQuestion: Which is red?\n\n### Response\n"
    assert chat[0]["options"][2]["logp"] == pytest.approx(plain_ids(subject, context, "a fish"), abs=1e-4)


def plain_ids(subject: LocalSubject, context: str, continuation: str) -> float:
    scorer = Scorer(subject)
    encode = lambda text: scorer.tokenizer.encode(text, add_special_tokens=False)
    model, ids, first = subject.backbone.model, encode(context) + encode(continuation), len(encode(context))
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        logps = model(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
    model.set_attn_implementation(implementation)
    return sum(logps[i - 1, ids[i]].item() for i in range(first, len(ids)))


def test_windows_of_a_long_text() -> None:
    assert rolling_windows([1, 2, 3], 0, 5) == [([0], [1, 2, 3])]
    assert rolling_windows(list(range(1, 11)), 0, 4) == [([0], [1, 2, 3, 4]), ([4], [5, 6, 7, 8]), ([6, 7, 8], [9, 10])]
    assert rolling_windows([], 0, 4) == []


def test_the_command_writes_rows_and_results(manners, tiny_model: Path, tmp_path: Path) -> None:
    arc, mmlu = write_rows(tmp_path / "arc.jsonl", ARC), write_rows(tmp_path / "mmlu.jsonl", MMLU)
    done = manners("eval", "choices", arc, mmlu, f"model={tiny_model}", "format=plain", f"out={tmp_path / 'run'}")
    assert done.code == 0, done.stderr
    report, rows = read_json(tmp_path / "run" / "results.json"), read_jsonl(tmp_path / "run" / "rows.jsonl")
    assert [row["set"] for row in rows] == ["arc"] * 3 + ["mmlu"] * 3 and len({row["id"] for row in rows}) == 6
    by = {(found["name"], found.get("set")): found for found in report["results"]}
    assert by["chance", None]["value"] == pytest.approx(1 / 3) and by["chance", None]["direction"] == "none"
    assert by["accuracy_pmi", "mmlu"]["n"] == 3 and by["accuracy_sum", None]["direction"] == "higher"


# --- task files --------------------------------------------------------------------------------------------------------------------

TASK = {
    "task": "tiny",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
    "output_type": "multiple_choice",
    "test_split": "test",
    "fewshot_split": "test",
    "num_fewshot": 1,
    "fewshot_config": {"sampler": "first_n"},
    "description": "About {{topic}}.\n\n",
    "doc_to_text": "Q: {{question}}\n",
    "doc_to_choice": "{{choices.text}}",
    "doc_to_target": "{{choices.label.index(answerKey)}}",
}
DOCS = [
    {"topic": "t", "question": q, "choices": {"text": [q, "it's\nno"], "label": ["A", "B"]}, "answerKey": key}
    for q, key in [("x", "A"), ("y|||z", "B"), ("w", "A")]
]


def task_file(folder: Path, **changes: object) -> str:
    write_rows(folder / "rows.jsonl", DOCS)
    path = folder / "task.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in {**TASK, **changes}.items() if value is not None}))
    return str(path)


def test_a_task_file_is_filled_to_the_character(tmp_path: Path) -> None:
    [x, y, _] = task_items(task_file(tmp_path), None, None)
    assert x.pairs == (("About t.\n\nQ: y|||z\n it's\nno\n\nQ: x\n", " x"), ("About t.\n\nQ: y|||z\n it's\nno\n\nQ: x\n", " it's\nno"))
    assert y.pairs[0] == ("About t.\n\nQ: x\n x\n\nQ: y|||z\n", " y|||z") and y.right == (1,)
    assert (x.set, x.options) == ("tiny", ("x", "it's\nno"))
    assert task_items(task_file(tmp_path), 0, None)[0].pairs[0] == ("About t.\n\nQ: x\n", " x")


def test_contexts_by_option(tmp_path: Path) -> None:
    """As in Winogrande: the options stand before, and what is scored is the same."""
    path = task_file(
        tmp_path, doc_to_text="{{choices.label.index(answerKey)}}", doc_to_target="{{'the end'}}", num_fewshot=0, description=None
    )
    assert task_items(path, None, 1)[0].pairs == (("x", " the end"), ("it's\nno", " the end"))
    assert task_items(path, None, None)[1].right == (1,)


def test_examples_may_stand_in_the_file_and_are_drawn_as_the_harness_draws(tmp_path: Path) -> None:
    path = task_file(tmp_path, fewshot_split=None, fewshot_config={"sampler": "first_n", "samples": [DOCS[2]]})
    assert task_items(path, None, None)[0].pairs[0][0] == "About t.\n\nQ: w\n w\n\nQ: x\n"
    from random import Random

    task, random = Task(task_file(tmp_path, fewshot_config=None)), Random(1234)
    for asked, row in zip(task.asked(task.rows()), DOCS, strict=True):
        shown = next(other for other in random.sample(DOCS, 2) if other != row)
        assert asked.pairs[0][0].startswith(f"About t.\n\nQ: {shown['question']}\n")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"output_type": "generate_until"}, "output_type must be multiple_choice"),
        ({"doc_to_choice": None}, "has no 'doc_to_choice'"),
        ({"doc_to_txt": "a"}, "the key 'doc_to_txt' is not supported here; did you mean 'doc_to_text'"),
        ({"process_docs": "x"}, "the key 'process_docs' is not supported"),
        ({"dataset_path": "ai2_arc"}, "only local tasks"),
        ({"test_split": "testing"}, "data_files has no split 'testing'; did you mean 'test'"),
        ({"doc_to_text": "{{ ().__class__ }}"}, "cannot be filled"),
        ({"doc_to_text": "{{ missing }}"}, "'missing' is undefined"),
        ({"doc_to_target": "{{7}}"}, "row 1: the right answer is 7, which is none of its 2 choices"),
        ({"doc_to_choice": "{{question}}"}, "must give a list such as"),
        ({"num_fewshot": 3}, "asks for 3 examples, and there are 2"),
        ({"fewshot_config": {"sampler": "best"}}, "must be default or first_n"),
        ({"fewshot_split": None, "fewshot_config": None}, "says not where they are"),
    ],
)
def test_what_a_task_file_may_not_hold(changes: dict, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says.replace("(", r"\(").replace(")", r"\)")):
        task_items(task_file(tmp_path, **changes), None, None)


def test_functions_are_not_run(tmp_path: Path) -> None:
    path = Path(task_file(tmp_path))
    path.write_text(path.read_text().replace("doc_to_text: ", "process_docs: !function utils.f\ndoc_to_text: ", 1))
    with pytest.raises(InputError, match=r"'process_docs' is a Python function \(utils.f\), which is not run"):
        Task(str(path))


# --- bad input ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"question": "Which?", "choices": {"text": ["a", "b"], "label": ["A"]}, "answerKey": "A"}, "hold 2 texts and 1 labels"),
        ({"question": "Which?", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "A"}, "at least two options"),
        ({"question": "Which?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "C"}, "the answer is 'C'"),
        ({"question": "Which?", "choices": ["a", " "], "answer": "A"}, "none of them empty"),
        ({"question": "Which?", "choices": ["a", "b"], "answer": 2}, "the answer is 2, and the 2 options are 0, 1"),
        ({"question": " ", "choices": ["a", "b"], "answer": 1}, "has no question"),
        ({"question": "Which?", "choices": "a", "answer": 1}, "'choices' must be a list"),
        ({"question": "Which?", "answer": 1}, "of no known shape of multiple choice"),
        ({"instruction": "question: Which? Answer1: a Answer3: b", "answer": "answer1"}, "numbered 1, 3, not 1 to 2"),
        ({"question": "Is it?", "mc1_targets": {"choices": ["a", "b"], "labels": [1]}}, "as many labels as choices"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(row: dict, says: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [row])
    with pytest.raises(InputError, match=says) as error:
        file_items(str(path), "auto", 0, None, "auto", None)
    assert "rows.jsonl, line 1" in str(error.value)


def test_bad_settings(manners, tiny_model: Path, tmp_path: Path) -> None:
    empty, arc = tmp_path / "empty.jsonl", write_rows(tmp_path / "arc.jsonl", ARC)
    empty.write_text("")
    out = f"out={tmp_path / 'run'}"
    for words, says in [
        ((empty, out), "is empty (0 bytes)"),
        ((out,), "nothing is asked: name a file of questions with data="),
        ((arc, "task=arcc", out), "unknown task 'arcc'; did you mean 'arc'"),
        ((arc, "task=mmlu", out), "mmlu wants question, choices"),
        ((arc, f"task={task_file(tmp_path)}", out), "names its own files; leave data away"),
    ]:
        assert says in manners("eval", "choices", *words, f"model={tiny_model}").error
    recorded = write_rows(tmp_path / "said.jsonl", [{"prompt": "One?", "answer": "1"}])
    assert "needs log-probabilities" in manners("eval", "choices", arc, out, f"model={recorded}").error
    assert isinstance(open_subject(str(recorded)), RecordedSubject)


def test_rows_are_spread_over_the_file(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "arc.jsonl", ARC)
    items = items_of(ChoicesSettings(data=[str(path)], out="x", rows=2))
    assert [item.options[0] for item in items] == ["red", "blue"]
    assert json.dumps(items[0]._asdict())
