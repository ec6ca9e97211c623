"""`manners eval tax`: a fixed battery, to be asked of a model before and after each stage. What did alignment cost?

    multiple choice     ARC-Easy, MMLU, TruthfulQA by rank scoring, in plain text with the same examples (`multiple_choice`)
    generated answers   GSM8K, SVAMP, BIG-Bench Hard, greedy, in the model's chat format, read by `reason/answers`
    plain text          the loss in nats a token, and in bits a byte, which tokenizers do not sway

A part that has no file is left out, and said so. The tax itself is a difference: `manners eval against BEFORE AFTER` pairs the rows of
two of these evaluations, one question with the same question.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from manners.core.config import as_list
from manners.core.errors import InputError, nearest
from manners.core.files import read_mapping
from manners.core.records import Message, Prompt
from manners.data.files import read_rows
from manners.evaluate.continuations import Scorer
from manners.evaluate.measurement import Measured, MeasureSettings, measure, spaced
from manners.evaluate.multiple_choice import BY_TOKENS, METRICS, details_of, file_items, is_task_file, ranked, task_items
from manners.evaluate.results import Metric, Result, result
from manners.evaluate.subject import LocalSubject, RecordedSubject, Subject
from manners.model.draw import Sampling
from manners.reason.answers import task_of

VERSION = 1
ANSWERED = Metric("accuracy")
NO_ANSWER = Metric("without_answer", "lower")
"""Share of outputs in which no answer could be read; they count as wrong."""
NATS, BITS = Metric("nats_token", "lower", share=False), Metric("bits_byte", "lower", share=False)
Kind = Literal["choices", "answers", "loss"]
PARTS: dict[str, tuple[Kind, str]] = {
    "arc": ("choices", "arc"),
    "mmlu": ("choices", "mmlu"),
    "truthfulqa": ("choices", "truthfulqa"),
    "gsm8k": ("answers", "gsm8k"),
    "svamp": ("answers", "svamp"),
    "bbh": ("answers", "bbh"),
    "text": ("loss", ""),
}
"""The battery: what kind a part is, and its shape or family of tasks."""
Files = Annotated[list[str], BeforeValidator(as_list), Field(min_length=1)]


class Part(BaseModel):
    """One part of a battery, as a battery file holds it under the part's name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    files: Files
    task: str = ""
    shots: Annotated[int, Field(ge=0)] = 0
    rows: Annotated[int, Field(ge=1)] | None = None


class TaxSettings(MeasureSettings):
    """Settings of `manners eval tax`."""

    battery: str | None = None
    """YAML file of parts, instead of the keys below: NAME: {kind: choices | answers | loss, files: [...], task, shots, rows}."""
    arc: Files | None = None
    """Files of ARC's questions."""
    mmlu: Files | None = None
    """Files of MMLU's questions."""
    truthfulqa: Files | None = None
    """Files of TruthfulQA's questions (MC1)."""
    gsm8k: Files | None = None
    """Files of GSM8K's problems."""
    svamp: Files | None = None
    """Files of SVAMP's problems."""
    bbh: Files | None = None
    """Files of BIG-Bench Hard, one a task."""
    text: Files | None = None
    """Files of plain text: a document a row."""
    shots: Annotated[int, Field(ge=0)] = 5
    """Examples before each question of multiple choice."""
    answer_shots: Annotated[int, Field(ge=0)] = 3
    """Examples before each question whose answer is generated, as turns of the chat."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 256
    """Longest generated answer, in tokens."""
    characters: Annotated[int, Field(ge=1)] = 2000
    """So much of the beginning of each document is scored: the same text for every model."""
    silent: ClassVar[frozenset[str]] = MeasureSettings.silent


def tax(settings: TaxSettings) -> dict[str, Any]:
    """Ask the battery; returns what `results.json` holds. Raises InputError where no part has a file, and for files of another schema."""
    parts = parts_of(settings)
    read = [file for part in parts.values() for file in part.files] + ([settings.battery] if settings.battery else [])
    metrics = (*METRICS, ANSWERED, NO_ANSWER, NATS, BITS)
    return measure(settings, "tax", VERSION, metrics, lambda _, subject: asked(settings, subject, parts), read)


def parts_of(settings: TaxSettings) -> dict[str, Part]:
    """The parts that have files, by name."""
    named = {name: given for name in PARTS if (given := getattr(settings, name))}
    if settings.battery is None:
        if not named:
            raise InputError(f"nothing is asked: name the files of at least one part ({', '.join(PARTS)}), or a battery.")
        shots = {"choices": settings.shots, "answers": settings.answer_shots, "loss": 0}
        return {
            name: Part(kind=PARTS[name][0], files=files, task=PARTS[name][1], shots=shots[PARTS[name][0]]) for name, files in named.items()
        }
    if named:
        raise InputError(f"a battery and '{next(iter(named))}' are both given; put the files of all parts into the battery.")
    found = {}
    for name, held in read_mapping(Path(settings.battery), "a battery holds parts by name, each with kind and files").items():
        try:
            kind, task = PARTS.get(name, ("", ""))
            defaults = {"kind": kind, "task": task} if kind else {}
            found[name] = Part(**{**defaults, **(held if isinstance(held, dict) else {"files": held})})
        except ValidationError as error:
            problem = error.errors()[0]
            key = ".".join(str(part) for part in problem["loc"])
            hint = f" {nearest(key, Part.model_fields)}" if problem["type"] == "extra_forbidden" else ""
            said = problem["msg"].rstrip(".").lower()
            raise InputError(f"{settings.battery}: '{key}' of the part '{name}' is wrong: {said}.{hint}") from None
    if not found:
        raise InputError(f"{settings.battery} holds no part.")
    return found


def asked(settings: TaxSettings, subject: Subject, parts: dict[str, Part]) -> Measured:
    """All parts of a subject. Parts that need log-probabilities are left out for one that only answers."""
    rows: list[dict[str, Any]] = []
    results: list[Result] = []
    notes = [f"{name}: left out, no file was named." for name in PARTS if name not in parts and settings.battery is None]
    for name, part in parts.items():
        limit = part.rows or settings.rows
        if part.kind == "answers":
            rows += answered(settings, subject, name, part, limit)
        elif not isinstance(subject, LocalSubject):
            notes.append(f"{name}: left out, it needs log-probabilities and {subject.name} only answers.")
        elif part.kind == "choices":
            items = [item for file in part.files for item in _choices(file, part, limit)]
            rows += ranked(subject, [item._replace(set=name) for item in items])
        else:
            found = losses(settings, subject, name, part, limit)
            rows += found
            results += of_corpus(found, name)
    if not rows:
        raise InputError(f"no part of the battery can be asked of {subject.name}: {' '.join(notes)}")
    details = details_of(subject)
    details["by_tokens"] = [*BY_TOKENS, NATS.name]
    return Measured(rows, results, notes, details)


def _choices(file: str, part: Part, rows: int | None) -> list[Any]:
    if is_task_file(file):
        return task_items(file, part.shots, rows)
    return file_items(file, part.task or "auto", part.shots, None, "auto", rows)


# --- generated answers -----------------------------------------------------------------------------------------------------------

ENDINGS = {
    "gsm8k": "\nWork it out step by step. End with a line #### and the number.",
    "svamp": '\nEnd with "The answer is" and the number.',
    "bbh": '\nEnd with "The answer is" and the answer.',
}
"""What is added to a problem, so that the answer can be read."""


def answered(settings: TaxSettings, subject: Subject, name: str, part: Part, rows: int | None) -> list[dict[str, Any]]:
    """A row a problem: what was answered, what was read out of it, and whether it is right. The first problems are the examples of all
    others, and are not asked themselves."""
    family = task_of(part.task or "exact")
    rule, reader = next(iter(family.rules.items()))
    prompts, targets, files = [], [], []
    for path in part.files:
        word, numbered = read_rows(path)
        held = [problem(row, f"{path}, {word} {number}", part.task) for number, row in numbered]
        if len(held) <= part.shots:
            raise InputError(f"{path} has {len(held)} problems, of which {part.shots} would be examples; none is left to ask.")
        turns = [m for asks, solved, _ in held[: part.shots] for m in (Message("user", asks), Message("assistant", solved))]
        for asks, _, wanted in spaced(held[part.shots :], rows):
            target = family.target(wanted)
            if target is None:
                raise InputError(f"{path}: a target is {wanted[:60]!r}, but a target of the task {part.task} is {family.wanted}.")
            shown = [] if isinstance(subject, RecordedSubject) else turns
            prompts.append(Prompt((*shown, Message("user", asks))))
            targets.append(target)
            files.append(Path(path).stem)
    groups = subject.answer(prompts, Sampling(temperature=0.0, max_new_tokens=settings.max_new_tokens), what=name)
    found, seen = [], Counter[str]()
    for prompt, target, file, group in zip(prompts, targets, files, groups, strict=True):
        text = group.responses[0].text if group.responses else None
        read = reader(text) if text is not None else None
        key = hashlib.sha256(f"{name}\n{file}\n{prompt.messages[-1].content}".encode("utf-8", "surrogatepass")).hexdigest()[:16]
        seen[key] += 1
        values = {"accuracy": None, "without_answer": None} if text is None else {}
        values = values or {"accuracy": float(read == target), "without_answer": float(read is None)}
        found.append(
            {
                "id": key if seen[key] == 1 else f"{key}-{seen[key]}",
                "set": name,
                "file": file,
                "prompt": prompt.messages[-1].content,
                "answer": text,
                "read": read,
                "rule": rule,
                "target": target,
                "values": values,
            }
        )
    return found


def problem(row: dict[str, Any], where: str, task: str) -> tuple[str, str, str]:
    """What is asked, a solution as an example would give it, and the target. Raises InputError for columns of another shape."""
    ending = ENDINGS.get(task, ENDINGS["bbh"])
    if {"Body", "Question", "Answer"} <= row.keys():
        body = str(row["Body"]).rstrip()
        asks = f"{body}{'' if body.endswith(('.', '?', '!')) else '.'} {row['Question']}"
        number = f"{row['Answer']:g}" if isinstance(row["Answer"], float) else str(row["Answer"])
        return asks + ending, f"The answer is {number}.", number
    for asks, wanted in (("question", "answer"), ("input", "target"), ("prompt", "target"), ("prompt", "answer")):
        if isinstance(row.get(asks), str) and isinstance(row.get(wanted), str | int | float):
            target = str(row[wanted])
            solved = target if "####" in target else f"#### {target}" if task == "gsm8k" else f"The answer is {target}."
            return row[asks] + ending, solved, target
    raise InputError(
        f"{where}: a problem needs question and answer, input and target, or SVAMP's Body, Question and Answer; "
        f"the columns are: {', '.join(map(str, row))}."
    )


# --- plain text ------------------------------------------------------------------------------------------------------------------


def losses(settings: TaxSettings, subject: LocalSubject, name: str, part: Part, rows: int | None) -> list[dict[str, Any]]:
    """A row a document: nats a token and bits a byte of its beginning, the first token after the begin token included."""
    texts = []
    for path in part.files:
        word, numbered = read_rows(path)
        held = []
        for number, row in numbered:
            text = row.get("text", row.get("content"))
            if not isinstance(text, str):
                raise InputError(f"{path}, {word} {number}: plain text needs a column 'text'; the columns are: {', '.join(map(str, row))}.")
            if text.strip():
                held.append(text[: settings.characters])
        texts += spaced(held, rows)
    if not texts:
        raise InputError(f"{', '.join(part.files)}: no document holds any text.")
    found, seen = [], Counter[str]()
    for text, scored in zip(texts, Scorer(subject).rolling(texts, what=name), strict=True):
        size = len(text.encode("utf-8", "surrogatepass"))
        key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        seen[key] += 1
        found.append(
            {
                "id": key if seen[key] == 1 else f"{key}-{seen[key]}",
                "set": name,
                "prompt": text[:80],
                "answer": None,
                "nats": -scored.logp,
                "tokens": scored.tokens,
                "bytes": size,
                "values": {NATS.name: -scored.logp / scored.tokens, BITS.name: -scored.logp / size / math.log(2)},
            }
        )
    return found


def of_corpus(rows: Sequence[dict[str, Any]], name: str) -> list[Result]:
    """The same of all documents as one text: long ones weigh more. A point each, beside the means over documents."""
    nats, tokens, size = (sum(row[key] for row in rows) for key in ("nats", "tokens", "bytes"))
    points = {"nats_token_corpus": nats / tokens, "bits_byte_corpus": nats / size / math.log(2)}
    return [
        result(key, {"value": value, "low": None, "high": None, "n": len(rows)}, version=VERSION, direction="lower", set=name)
        for key, value in points.items()
    ]
