"""`manners eval stereotypes`: CrowS-Pairs, Winogender and BBQ, each told by its columns.

CrowS-Pairs and Winogender are sentences that differ in a word or two; a causal model scores them as they stand (`sentence_pairs.py`).
BBQ asks questions with three options, one of them "cannot be told" (`bbq.py`). docs/safety.md has each one's formula and caveats.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import Field

from manners.core.errors import InputError
from manners.data.files import Row, read_rows
from manners.evaluate import bbq, sentence_pairs
from manners.evaluate.choices import Rule
from manners.evaluate.measurement import Measured, MeasureSettings, measure
from manners.evaluate.results import Metric, Result
from manners.evaluate.subject import Subject

VERSION = 1


class StereotypesSettings(MeasureSettings):
    """Settings of `manners eval stereotypes`."""

    positional: ClassVar[str] = "data"
    plural: ClassVar[bool] = True

    data: list[str]
    """Files in the shape of CrowS-Pairs, Winogender or BBQ; also as bare words."""
    occupations: str | None = None
    """Occupation statistics for Winogender: occupation and bls_pct_female (or pct_female), in per cent."""
    rule: Rule = "mean"
    """How BBQ's options are ranked: sum, mean (a token) or bytes of their log-probability. pmi is not offered here."""
    by: bbq.By = "auto"
    """How BBQ is asked: options (log-probabilities), answers (the option that a generated answer names first); auto: options if it can."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 32
    """Longest generated answer to a question of BBQ."""


class Kind(NamedTuple):
    """A shape: the columns that tell it, what reads its numbered rows, and what asks a subject about them."""

    columns: tuple[str, ...]
    read: Callable[[str, list[tuple[str, Row]], int | None], list[Any]]
    ask: Callable[[StereotypesSettings, Subject, list[Any]], tuple[list[dict[str, Any]], list[Result]]]
    metrics: tuple[Metric, ...]


KINDS = {
    "CrowS-Pairs": Kind(
        ("sent_more", "sent_less"),
        sentence_pairs.read_crows,
        lambda settings, subject, items: sentence_pairs.crows(subject, items),
        sentence_pairs.CROWS,
    ),
    "Winogender": Kind(
        ("sentid", "sentence"),
        sentence_pairs.read_winogender,
        lambda settings, subject, items: sentence_pairs.winogender(subject, items, settings.occupations),
        sentence_pairs.WINOGENDER,
    ),
    "BBQ": Kind(
        ("context", "question", "ans0", "ans1", "ans2", "label", "question_polarity", "context_condition"),
        bbq.read_bbq,
        lambda settings, subject, items: bbq.ask_bbq(
            subject, items, rule=settings.rule, by=settings.by, max_new_tokens=settings.max_new_tokens
        ),
        bbq.METRICS,
    ),
}


def stereotypes(settings: StereotypesSettings) -> dict[str, Any]:
    """Ask every file what its shape asks; returns what `results.json` holds. Raises InputError for another shape, naming the columns
    that are known, and as the parts and `open_subject` do."""
    if settings.rule == "pmi":
        raise InputError("rule=pmi is not offered for BBQ, whose options are in the question; give sum, mean or bytes.")
    sets = [_read(path, settings.rows) for path in settings.data]
    if settings.occupations:
        sentence_pairs.read_occupations(settings.occupations)  # before anything is scored

    def ask(_: StereotypesSettings, subject: Subject) -> Measured:
        rows: list[dict[str, Any]] = []
        results: list[Result] = []
        for kind, items in sets:
            found = KINDS[kind].ask(settings, subject, items)
            rows, results = [*rows, *found[0]], [*results, *found[1]]
        notes = [NOTES[kind] for kind in dict.fromkeys(kind for kind, _ in sets)]
        return Measured(rows, results, notes)

    metrics = [metric for kind in dict.fromkeys(kind for kind, _ in sets) for metric in KINDS[kind].metrics]
    return measure(settings, "stereotypes", VERSION, metrics, ask, [*settings.data, *filter(None, [settings.occupations])])


NOTES = {
    "CrowS-Pairs": "CrowS-Pairs: one half is no preference. `whole` compares sentences, `shared` only the tokens that both hold.",
    "Winogender": "Winogender: gaps are nats for the masculine sentence less the feminine one; 0 is no preference.",
    "BBQ": "BBQ: bias runs from -1 (against the stereotype) to 1 (with it); 0 is none.",
}


def _read(path: str, rows: int | None) -> tuple[str, list[Any]]:
    """The kind of a file and its items, at most `rows` of them. Raises InputError."""
    word, numbered = read_rows(path)
    lines: Sequence[tuple[str, Row]] = [(f"{path}, {word} {number}", row) for number, row in numbered]
    first = lines[0][1]
    kind = next((name for name, found in KINDS.items() if all(column in first for column in found.columns)), None)
    if kind is None:
        known = "; ".join(f"{name} has {', '.join(found.columns)}" for name, found in KINDS.items())
        raise InputError(f"{path} is of none of the shapes known here (its columns: {', '.join(first)}): {known}.")
    for where, row in lines:
        missing = [column for column in KINDS[kind].columns if column not in row]
        if missing:
            raise InputError(f"{where} lacks {', '.join(missing)}, which {kind} has.")
    return kind, KINDS[kind].read(path, list(lines), rows)
