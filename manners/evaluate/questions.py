"""Questions with a right answer, from files of the shapes that data sets of reasoning have.

question, answer            GSM8K (the answer ends in #### NUMBER), FLAN's chain-of-thought sets (AQuA, StrategyQA, ECQA, CREAK)
Body, Question, Answer      SVAMP
input, target               BIG-Bench Hard
prompt, reference           prompts of Manners
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from manners.core.errors import InputError
from manners.data.files import read_rows
from manners.reason.answers import target_letter, target_number, task_of

AUTO = "auto"
SHAPES = (("question", "answer"), ("input", "target"), ("prompt", "reference"), ("prompt", "answer"))


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its right answer in normal form, where it stands in its file, and that row."""

    text: str
    target: str
    row: int
    columns: Mapping[str, Any]


def read_questions(path: str, task: str = AUTO) -> tuple[str, list[Question]]:
    """The task of a file and its questions. Raises InputError for a row of no known shape and an answer that the task cannot have."""
    word, rows = read_rows(path)
    found = [(number, *_of(row, f"{path}, {word} {number}"), row) for number, row in rows]
    if not found:
        raise InputError(f"{path} holds no questions.")
    if task == AUTO:
        task = task_for([answer for _, _, answer, _ in found], options="input" in found[0][3])
    family = task_of(task)
    questions = []
    for number, text, answer, row in found:
        target = family.target(answer)
        if target is None:
            raise InputError(f"{path}, {word} {number}: the answer is {answer[-60:]!r}, but one of the task {task} is {family.wanted}.")
        questions.append(Question(text, target, number - 1, row))
    return task, questions


def task_for(answers: list[str], *, options: bool = False) -> str:
    """The task that answers look like: number, letter, yes-no, or else bbh, which compares the words after "the answer is".

    GSM8K's own rule, `#### NUMBER`, is for models that were trained on its solutions: ask for it with task=gsm8k. With `options` (BIG-Bench
    Hard) answers like (B) are read by its own rule.
    """
    if all(target_number(answer) is not None for answer in answers):
        return "number"
    if all(answer.strip().lower() in ("yes", "no") for answer in answers):
        return "yes-no"
    if not options and all(target_letter(answer) is not None for answer in answers):
        return "letter" if any(target_letter(answer) > "E" for answer in answers) else "aqua"  # type: ignore[operator]
    return "bbh"


def _of(row: Mapping[str, Any], where: str) -> tuple[str, str]:
    """Question and answer of a row, as text."""
    if all(key in row for key in ("Body", "Question", "Answer")):
        pair = (f"{str(row['Body']).strip()} {str(row['Question']).strip()}", row["Answer"])
    else:
        pair = next(((row[a], row[b]) for a, b in SHAPES if a in row and b in row), (None, None))
    text, answer = pair
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    if isinstance(text, str) and text.strip() and isinstance(answer, str | int | float) and str(answer).strip():
        return text.strip(), str(answer).strip()
    raise InputError(f"{where}: a question needs columns {', '.join(' and '.join(s) for s in SHAPES)}, or Body, Question and Answer.")
