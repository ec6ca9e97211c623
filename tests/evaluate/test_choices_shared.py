"""The shared ARC-Easy, MMLU and TruthfulQA files, every row: read, asked, and scored by a real model as the plain forward scores it."""

import os
from collections import Counter
from pathlib import Path

import pytest

from manners.evaluate.multiple_choice import file_items, questions_of, ranked
from manners.evaluate.subject import LocalSubject, open_subject
from tests.evaluate.test_multiple_choice import plain

pytestmark = pytest.mark.shared
DATA = Path(os.environ.get("MANNERS_SHARED", Path(__file__).parents[3] / "shared")) / "data" / "evaluation"


@pytest.mark.parametrize(
    ("name", "shape", "rows", "options"),
    [("arc_easy", "arc", 400, {4, 3, 5}), ("mmlu", "mmlu", 300, {4}), ("truthfulqa", "truthfulqa", 426, set(range(2, 14)))],
)
def test_every_row_is_a_question(name: str, shape: str, rows: int, options: set[int]) -> None:
    found, questions = questions_of(str(DATA / f"{name}.jsonl"), "auto")
    assert (found, len(questions)) == (shape, rows)
    numbers = Counter(len(question.options) for question in questions)
    assert set(numbers) <= options and all(len(question.right) == 1 for question in questions)
    assert len(file_items(str(DATA / f"{name}.jsonl"), "auto", 5, None, "auto", None)) == rows
    first = Counter(question.right[0] for question in questions)
    assert first.most_common(1)[0][1] < 0.6 * rows, "no rule for ties can win"


def test_a_real_model_with_examples(one_thread: None) -> None:
    subject = open_subject("smollm2-135m-instruct")
    assert isinstance(subject, LocalSubject)
    items = file_items(str(DATA / "arc_easy.jsonl"), "auto", 2, None, "auto", 3)
    rows = ranked(subject, items, micro_tokens=128)
    for row, item in zip(rows, items, strict=True):
        assert [option["logp"] for option in row["options"]] == pytest.approx([plain(subject, *pair) for pair in item.pairs], abs=1e-3)
