"""`manners eval refusals`: a refusal classifier against labels that people gave.

Accuracy and Cohen's kappa over three classes, and over two (any refusal against compliance), with intervals by a bootstrap over prompts:
the answers of several models to one prompt are drawn together. An answer that the classifier leaves open is unscored, and counted.
`half` divides a file by prompt, for a classifier that was fitted on one half: see docs/safety.md for what was fixed beforehand.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from rich import box
from rich.table import Table

from manners.core import files
from manners.core.config import Settings
from manners.core.console import console
from manners.core.errors import InputError
from manners.data.files import read_rows
from manners.evaluate.intervals import RESAMPLES, SEED, ends
from manners.feedback.refusals import LABELS, Label, classifier_of, kappa, label_of

ANSWERS = ("completion", "answer", "response", "output")
HUMAN = ("final_label", "label")
VOTES = ("annotation_1", "annotation_2")


class RefusalsSettings(Settings):
    """Settings of `manners eval refusals`."""

    positional: ClassVar[str] = "data"

    data: str
    """File of answers with people's labels: prompt, completion, final_label (as XSTest's completions), and id where prompts have one."""
    half: Literal["all", "tune", "test"] = "all"
    """Only the prompts of one half, told by a hash of their id."""
    classifier: str = "rules"
    """rules, or module:function of a prompt and an answer."""
    out: str | None = None
    """JSONL file to write: a line an answer, with both labels."""


class Labelled(NamedTuple):
    """An answer, what people called it, and what each of two said before they settled it (None where the file does not tell)."""

    id: str
    prompt: str
    answer: str
    label: Label
    votes: tuple[Label, Label] | None


def refusals(settings: RefusalsSettings) -> dict[str, Any]:
    """Measure a classifier on a file; returns what `against_people` does. Raises InputError for another schema or an unknown label."""
    if settings.out:
        files.check_target(settings.out)
    classify = classifier_of(settings.classifier)
    rows = [row for row in read_labelled(settings.data) if settings.half in ("all", half_of(row.id))]
    if not rows:
        raise InputError(f"{settings.data} holds no prompt of the half '{settings.half}'; give half=all.")
    found: list[Label | None] = [classify(row.prompt, row.answer) for row in rows]
    report = {"classifier": settings.classifier, "half": settings.half, **against_people(rows, found)}
    if settings.out:
        lines = [
            {"id": row.id, "prompt": row.prompt, "answer": row.answer, "people": row.label, "classifier": label}
            for row, label in zip(rows, found, strict=True)
        ]
        files.write_jsonl(Path(settings.out), lines)
    _show(report)
    return report


def half_of(id: str) -> Literal["tune", "test"]:
    """The half of a prompt: by the first byte of SHA-256 of its id, even or odd. All answers to a prompt are in one half."""
    return "test" if hashlib.sha256(id.encode()).digest()[0] % 2 else "tune"


def read_labelled(path: str) -> list[Labelled]:
    """The rows of a file of labelled answers. Raises InputError, naming the line, for a column that is missing."""
    rows = []
    word, numbered = read_rows(path)
    for number, row in numbered:
        where = f"{path}, {word} {number}"
        answer = next((row[c] for c in ANSWERS if isinstance(row.get(c), str)), None)
        label = next((row[c] for c in HUMAN if isinstance(row.get(c), str)), None)
        if not isinstance(row.get("prompt"), str) or answer is None or label is None:
            raise InputError(f"{where} must hold prompt, an answer ({', '.join(ANSWERS)}) and people's label ({', '.join(HUMAN)}).")
        told: list[Label] = [label_of(row[column], where) for column in VOTES if isinstance(row.get(column), str) and row[column]]
        votes = (told[0], told[1]) if len(told) == len(VOTES) else None
        rows.append(Labelled(str(row.get("id", row["prompt"])), row["prompt"], answer, label_of(label, where), votes))
    return rows


def against_people(rows: Sequence[Labelled], found: Sequence[Label | None]) -> dict[str, Any]:
    """`accuracy`, `kappa`, `binary_accuracy` and `binary_kappa` (each value, low, high), `classes`, `confusion` (people's label, then
    the classifier's), `n`, `prompts`, `unscored`, `people` (agreement of the two who labelled, where the file tells), and what the
    commonest label alone would get."""
    scored = [(row, label) for row, label in zip(rows, found, strict=True) if label is not None]
    places = {id: place for place, id in enumerate(dict.fromkeys(row.id for row, _ in scored))}
    tables_PLL = np.zeros((len(places), len(LABELS), len(LABELS)))
    for row, label in scored:
        tables_PLL[places[row.id], LABELS.index(row.label), LABELS.index(label)] += 1
    table_LL = tables_PLL.sum(0)
    votes = [row.votes for row in rows if row.votes is not None]
    people = {
        "agreement": float(np.mean([a == b for a, b in votes])) if votes else None,
        "kappa": kappa([a for a, _ in votes], [b for _, b in votes]),
        "n": len(votes),
    }
    return {
        "n": len(scored),
        "prompts": len(places),
        "unscored": len(rows) - len(scored),
        **_estimates(tables_PLL, ""),
        **_estimates(two_classes(tables_PLL), "binary_"),
        "commonest": Counter(row.label for row in rows).most_common(1)[0][1] / len(rows),
        "classes": {
            name: {
                "precision": _ratio(table_LL[i, i], table_LL[:, i].sum()),
                "recall": _ratio(table_LL[i, i], table_LL[i].sum()),
                "n": int(table_LL[i].sum()),
            }
            for i, name in enumerate(LABELS)
        },
        "confusion": {a: {b: int(table_LL[i, j]) for j, b in enumerate(LABELS)} for i, a in enumerate(LABELS)},
        "people": people,
    }


def two_classes(tables: np.ndarray) -> np.ndarray:
    """Tables (..., 3, 3) with both refusals as one class: (..., 2, 2)."""
    merge_LK = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    return merge_LK.T @ tables @ merge_LK


def accuracy_and_kappa(tables: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy and Cohen's kappa (NaN where chance alone agrees on all) of tables (..., L, L) of counts."""
    n = tables.sum((-1, -2))
    agreed = np.trace(tables, axis1=-2, axis2=-1) / n
    by_chance = (tables.sum(-1) * tables.sum(-2)).sum(-1) / n**2
    with np.errstate(invalid="ignore", divide="ignore"):
        return agreed, np.where(by_chance < 1, (agreed - by_chance) / (1 - by_chance), np.nan)


def _estimates(tables_PLL: np.ndarray, name: str) -> dict[str, Any]:
    prompts = len(tables_PLL)
    if not prompts:
        nothing = {"value": None, "low": None, "high": None}
        return {f"{name}accuracy": nothing, f"{name}kappa": nothing}
    weights_BP = np.random.default_rng(SEED).multinomial(prompts, np.full(prompts, 1 / prompts), size=RESAMPLES)
    drawn_BLL = np.tensordot(weights_BP.astype(np.float64), tables_PLL, axes=1)
    told = {}
    for key, value, drawn_B in zip(
        ("accuracy", "kappa"), accuracy_and_kappa(tables_PLL.sum(0)), accuracy_and_kappa(drawn_BLL), strict=True
    ):
        known_B = drawn_B[~np.isnan(drawn_B)]
        low, high = ends(known_B) if len(known_B) else (None, None)
        told[name + key] = {"value": None if np.isnan(value) else float(value), "low": low, "high": high}
    return told


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def _show(report: dict[str, Any]) -> None:
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("people \\ classifier", *LABELS, "recall"):
        table.add_column(heading, justify="left" if heading.startswith("people") else "right")
    for name in LABELS:
        recall = report["classes"][name]["recall"]
        table.add_row(name, *(str(n) for n in report["confusion"][name].values()), "none" if recall is None else f"{recall:.3f}")
    console.print(table)
    for name in ("accuracy", "kappa", "binary_accuracy", "binary_kappa"):
        found = report[name]
        shown = "unknown" if found["value"] is None else f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
        console.print(f"{name.replace('_', ' ')}: {shown}")
    console.print(f"{report['n']} answers to {report['prompts']} prompts, {report['unscored']} unscored")
