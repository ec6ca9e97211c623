"""Every shape of data that users bring -> Groups: demonstrations, preference pairs, labelled answers, plain text, prompts.

A shape is told by its columns (`shapes.SHAPES`) and each has one function from a row to its groups. A row that cannot be used is
refused with a reason and counted; only a file of which nothing can be used is an error. `files` does the reading.
"""

import difflib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path

from manners.core.errors import InputError, nearest
from manners.core.records import TEXT_ROLE, Group, Message
from manners.data.files import NumberedRows, Row, read_rows
from manners.data.shapes import (
    ANSWER_COLUMNS,
    COLUMN_NAMES,
    KINDS,
    KNOWN,
    OPTIONAL_COLUMNS,
    PROMPT_COLUMNS,
    SHAPES,
    Notes,
    RowRefused,
    Shape,
    compared_row,
    label_code,
    label_coding,
)

SAMPLE = 100
"""Rows whose columns decide the shape of a file."""
END_MARKERS = ("<|endoftext|>", "</s>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<end_of_turn>", "<|end|>", "<eos>", "[EOS]")
_ANSWER_LIKE = re.compile(r"(chosen|rejected|responses?|answers?|outputs?|completions?|predictions?|generations?)($|[\W_\d])", re.I)


@dataclass(slots=True)
class DataFile:
    """What was read from a file.

    `shape` is a name of SHAPES; `kind` is a key of KINDS. `rows` counts the rows read
    (all of the file unless a limit was given). `refused` lists (line or row number from 1, why). `notes` counts what was changed
    or is worth knowing.
    """

    path: str
    shape: str
    kind: str
    groups: list[Group]
    rows: int
    refused: list[tuple[int, str]]
    notes: Counter[str]


# -------------------------------------------------------------------------------------------------------- column maps


def parse_map(text: str) -> dict[str, str]:
    """Our column names -> those of the file, from "prompt=query,chosen=response_j,rejected=response_k".

    `coding` is no column: "coding=0/1/2" says which labels mean a, b and tie. Raises InputError for what cannot be understood.
    """
    found: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        ours, equals, theirs = (p.strip() for p in part.partition("="))
        if not equals or not ours or not theirs:
            raise InputError(f"--map: '{part}' is not of the form name=column, as in --map prompt=query,completion=reply.")
        if ours not in (*COLUMN_NAMES, "coding"):
            raise InputError(f"--map: there is no '{ours}' to map '{theirs}' to; {nearest(ours, [*COLUMN_NAMES, 'coding'])}")
        if ours in found:
            raise InputError(f"--map names '{ours}' twice: as '{found[ours]}' and as '{theirs}'.")
        found[ours] = theirs
    if not found:
        raise InputError("--map is empty; write it as in --map prompt=query,completion=reply.")
    return found


_ABSENT = object()


def _at(row: object, path: str) -> object:
    """Value of a column, or of a dotted path into it (`metadata.q`, `responses.0`); _ABSENT if it is not there."""
    if isinstance(row, Mapping) and path in row:
        return row[path]
    if isinstance(row, list) and path.isdecimal():
        return row[int(path)] if int(path) < len(row) else _ABSENT
    first, dot, rest = path.partition(".")
    value = _at(row, first) if dot else _ABSENT
    return value if value is _ABSENT else _at(value, rest)


def _mapped(row: Row, mapping: Mapping[str, str]) -> Row:
    """The row under our names; the columns that these were taken from are gone."""
    taken = {theirs if theirs in row else theirs.partition(".")[0] for theirs in mapping.values()}
    found = {ours: _at(row, theirs) for ours, theirs in mapping.items()}
    return {k: v for k, v in row.items() if k not in taken} | {k: v for k, v in found.items() if v is not _ABSENT}


def _columns(rows: Sequence[Row]) -> list[str]:
    """Names of the columns that hold something in at least one row, in order."""
    return list(dict.fromkeys(k for row in rows for k, v in row.items() if v is not None))


def _check_map(name: str, rows: Sequence[Row], mapping: Mapping[str, str]) -> None:
    """Raises InputError where the map names a column that no row has."""
    paths = list(dict.fromkeys(k for row in rows for k in row))
    paths += [f"{k}.{inner}" for row in rows[:1] for k, v in row.items() if isinstance(v, Mapping) for inner in v]
    for ours, theirs in mapping.items():
        if ours not in COLUMN_NAMES:
            raise InputError(f"{name}: the map gives '{ours}', which means nothing here; {nearest(ours, COLUMN_NAMES)}")
        if all(_at(row, theirs) is _ABSENT for row in rows):
            raise InputError(f"{name}: the map says {ours}={theirs}, but there is no column '{theirs}'; {nearest(theirs, paths)}")


# -------------------------------------------------------------------------------------------------- which shape is it


def recognise(name: str, rows: Sequence[Row], mapping: Mapping[str, str], first: Sequence[Shape] = ()) -> tuple[Shape, dict[str, str]]:
    """The shape of the (mapped) rows, and its columns -> those of the rows. Raises InputError if there is none."""
    columns = _columns(rows)
    own = [c for c in columns if c in mapping or c in OPTIONAL_COLUMNS]
    # What a map names may be all that is wanted, or the rest of a shape may stand in the file under its own name.
    passes = [(own, False, False), (columns, True, True), (own, True, False)] if mapping else [(columns, True, True)]
    for names, may_be_weak, be_careful in passes:
        for shape in (*first, *SHAPES):
            bound = shape.bound(names)
            if bound is None or (shape.weak and not may_be_weak) or not set(mapping) <= set(bound.values()):
                continue
            unused = [c for c in columns if c not in bound.values()]
            if shape.weak and be_careful and any(_ANSWER_LIKE.match(c) or _misspelt(c, columns) for c in unused):
                continue
            if any(shape.fits(view(row, bound)) for row in rows if all(row.get(bound[need[0]]) is not None for need in shape.needs)):
                return shape, bound
    raise InputError(_unrecognised(name, rows, columns))


def view(row: Row, bound: Mapping[str, str]) -> Row:
    """A shape's own columns of a row, under its own names."""
    return {ours: row[theirs] for ours, theirs in bound.items() if theirs in row}


def _misspelt(column: str, columns: Sequence[str]) -> str:
    """The known name, missing from `columns`, that `column` seems to mean; empty if none."""
    if column in COLUMN_NAMES or not column.isalpha() or _ANSWER_LIKE.match(column):
        return ""
    known = [n for n in COLUMN_NAMES if n not in columns and n not in OPTIONAL_COLUMNS and len(n) > 3]
    return next(iter(difflib.get_close_matches(column.lower(), known, n=1, cutoff=0.8)), "")


def _unrecognised(name: str, rows: Sequence[Row], columns: Sequence[str]) -> str:
    """The sentence for a file of no known shape: what was found, what was perhaps meant, what is known, what to write."""
    hints = [f"Did you mean '{known}' by '{c}'?" for c in columns if (known := _misspelt(c, columns))]
    if {"chosen", "rejected"} <= set(columns):
        hints.append("'chosen' and 'rejected' are not whole conversations here, so a 'prompt' is needed.")
    several = [c for c in columns if c in ANSWER_COLUMNS]
    if len(several) > 1:
        hints.append(f"{' and '.join(several)} could each be the completion: say which.")
    return (
        f"{name}: the columns {', '.join(columns) or '(none)'} are of no known shape. {' '.join([*hints, ''])}"
        f"Known shapes: {KNOWN}. Other names can be mapped, as in --map '{_suggest(rows, columns)}'."
    )


def _suggest(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """An example map, of the file's own columns where their names say enough."""
    first = {c: next((row[c] for row in rows if row.get(c) is not None), None) for c in columns}
    first |= {f"{c}.{k}": inner for c, v in first.items() if isinstance(v, Mapping) for k, inner in v.items()}
    texts = [c for c in first if isinstance(first[c], str)]
    prompt = next((c for c in (*PROMPT_COLUMNS, "instruction", "input", "sentence", "sentence1", "context", "text") if c in texts), None)
    if prompt is None:
        return "prompt=query,chosen=better,rejected=worse"
    start = f"{'instruction' if prompt == 'instruction' else 'prompt'}={prompt}"
    for one, two in (("1", "2"), ("0", "1"), ("a", "b"), ("A", "B"), ("j", "k")):
        pairs = [(c, c[: -len(one)] + two) for c in columns if c.endswith(one) and c[: -len(one)] + two in columns]
        answers = [(a, b) for a, b in pairs if a in texts and _ANSWER_LIKE.match(a)]
        if answers:
            a, b = answers[0]
            words = ("label", "preference", "winner", "choice", "annotator")
            labels = [c for word in words for c in columns if c.startswith(word) and len(str(first[c])) < 20]
            scores = [(c, d) for c, d in pairs if isinstance(first[c], (int, float))]
            if labels:
                return f"{start},a={a},b={b},label={labels[0]}{'.0' if isinstance(first[labels[0]], list) else ''}"
            if scores:
                return f"{start},a={a},b={b},score_a={scores[0][0]},score_b={scores[0][1]}"
            return f"{start},chosen={a},rejected={b}"
    like = re.compile(_ANSWER_LIKE.pattern + r"|.*(label|target|solution|answer)", re.I)
    answer = next((c for c in texts if c != prompt and like.match(c)), "reply")
    return f"{start},completion={answer}"


# ------------------------------------------------------------------------------------------------------------ reading


def read(
    path: str | Path, *, column_map: Mapping[str, str] | None = None, limit: int | None = None, first: Sequence[Shape] = ()
) -> DataFile:
    """Reads a file, or a hub data set `owner/name[:split]`, of any known shape.

    `column_map` is as parse_map returns it; `limit` reads that many rows only; shapes in `first` are tried before SHAPES. Rows that
    cannot be used are listed in `refused`.
    Raises InputError where the file cannot be read, its shape is not known, or no row is left.
    """
    name = str(path)
    if limit is not None and limit < 1:
        raise InputError(f"{name}: a limit of {limit} rows leaves nothing to read; give 1 or more.")
    mapping = dict(column_map or {})
    columns_map = {ours: theirs for ours, theirs in mapping.items() if ours != "coding"}
    unit, numbered = read_rows(name, streaming=limit is not None)
    head = list(islice(numbered, SAMPLE if limit is None else min(limit, SAMPLE)))
    sample = [row for _, row in head]
    _check_map(name, sample, columns_map)
    shape, bound = recognise(name, [_mapped(row, columns_map) for row in sample], columns_map, first)
    notes: Notes = Counter()
    every: NumberedRows | list[tuple[int, Row]] = chain(head, numbered)
    convert = shape.convert
    if shape.name == "compared":
        every = list(every)  # what a label means shows only in all of them, whatever the limit
        labels = Counter(label_code(view(_mapped(row, columns_map), bound).get("label")) for _, row in every)
        convert = partial(compared_row, coding=label_coding(name, labels, mapping, notes))
    used = {columns_map.get(theirs, theirs).partition(".")[0] for theirs in bound.values()} | set(bound.values())
    used |= set(columns_map.values())
    data = DataFile(name, shape.name, shape.kind, [], 0, [], notes)
    numbers: list[int] = []
    for number, row in islice(every, limit):
        numbers.append(number)
        seen: Notes = Counter()
        mapped = _mapped(row, columns_map)
        try:
            groups = convert(view(mapped, bound), seen)
        except RowRefused as refusal:
            data.refused.append((number, _in_words_of_the_file(str(refusal), bound, columns_map)))
            notes[_in_words_of_the_file(refusal.why, bound, columns_map)] += 1
            continue
        notes.update(seen.keys())  # a note counts rows
        columns = {name: value for name, value in mapped.items() if name not in used}
        data.groups += [replace(group, row=len(numbers) - 1, columns=columns) for group in groups]
    data.rows = len(numbers)
    _remove_end_markers(data, numbers)
    if not data.groups:
        raise InputError(_none_left(data, unit))
    unused = [c for c in _columns(sample) if c not in used]
    if unused:
        notes["columns not used: " + ", ".join(unused)] = data.rows
    return data


def _in_words_of_the_file(why: str, bound: Mapping[str, str], mapping: Mapping[str, str]) -> str:
    """A reason that quotes our column names, with those of the file in their place."""
    return re.sub(r"'(\w+)'", lambda m: f"'{mapping.get(theirs := bound.get(m[1], m[1]), theirs)}'", why)


def _none_left(data: DataFile, unit: str) -> str:
    reasons = Counter(why for _, why in data.refused).most_common(2)
    said = "; ".join(f"{why} ({n} of {data.rows}, first in {unit} {_first(data, why)})" for why, n in reasons)
    return f"{data.path}: no usable row is left; read as '{data.shape}' (rows of {KINDS[data.kind]}), refused: {said}."


def _first(data: DataFile, why: str) -> int:
    return next(number for number, reason in data.refused if reason == why)


def _remove_end_markers(data: DataFile, numbers: Sequence[int]) -> None:
    """Removes an end marker that closes every answer of the file: the tokenizer's own is added when the answer is encoded."""
    while True:
        answers = [r for group in data.groups for r in group.responses]
        marker = next((m for m in END_MARKERS if answers and all(r.text.rstrip().endswith(m) for r in answers)), None)
        if marker is None:
            return
        data.notes[f"end marker '{marker}' removed"] += len(answers)
        for response in answers:
            response.turns = tuple(_without(turn, marker) for turn in response.turns)
        empty = {g.row for g in data.groups if not all(r.text.strip() for r in g.responses)}
        data.refused = sorted(data.refused + [(numbers[row], "empty answer") for row in empty])
        data.notes["empty answer"] += len(empty)
        data.groups = [group for group in data.groups if group.row not in empty]
        data.notes = +data.notes


def _without(turn: Message, marker: str) -> Message:
    content = turn.content.rstrip()
    if turn.role not in ("assistant", TEXT_ROLE) or not content.endswith(marker):
        return turn
    return Message(turn.role, content.removesuffix(marker))


def derive(data: DataFile, kind: str) -> DataFile:
    """`data` as another kind: chosen or good answers as demonstrations, pairs as labelled answers, anything's prompts.

    A prompt keeps the answer that it had, if that was a demonstration, the chosen one of a pair, or labelled good: as the column
    `answer`, unless the row has a column of that name. Raises InputError where `kind` cannot be had from what the file holds.
    """
    if kind == data.kind:
        return data
    groups: list[Group] | None = None
    if kind == "prompts" and data.kind != "text":
        groups = [replace(g, responses=[], margin=None, probability=None, columns=_with_answer(g, data.kind)) for g in data.groups]
    elif kind == "demonstrations" and data.kind == "pairs":
        groups = [replace(g, responses=g.responses[:1], margin=None, probability=None) for g in data.groups]
    elif kind == "demonstrations" and data.kind == "labelled":
        groups = [g for g in data.groups if g.responses[0].scores["label"] == 1.0]
    elif kind == "labelled" and data.kind == "pairs":
        groups = [
            replace(g, responses=[replace(r, scores={**r.scores, "label": label})], margin=None, probability=None)
            for g in data.groups
            for r, label in zip(g.responses, (1.0, 0.0), strict=True)
        ]
    if not groups:
        raise InputError(
            f"{data.path} holds {data.kind} (read as '{data.shape}'), from which {kind} cannot be had; "
            f"these need {KINDS.get(kind, kind)}. If the file has such columns under other names, say so with --map."
        )
    return replace(data, kind=kind, groups=groups, notes=data.notes + Counter({f"{data.kind} read as {kind}": len(groups)}))


def _with_answer(group: Group, kind: str) -> dict[str, object]:
    """A group's columns, and under `answer` what its row holds as the right one, if it holds one."""
    first = group.responses[0] if group.responses else None
    right = kind in ("demonstrations", "pairs") or (kind == "labelled" and first is not None and first.scores.get("label") == 1.0)
    return {"answer": first.text, **group.columns} if right and first is not None else group.columns


# --------------------------------------------------------------------------------------------------------- row by row


@dataclass(frozen=True, slots=True)
class Converter:
    """One row -> its groups, for who reads a file row by row because it may not fit into memory (`read` holds all of it).

    Shape and end marker are those of the first rows, so that a later row may be refused which `read` would have understood.
    """

    shape: str
    kind: str
    convert: Callable[[Row, Notes], list[Group]]
    bound: dict[str, str]
    mapping: dict[str, str]
    used: frozenset[str]
    marker: str

    @classmethod
    def of(cls, name: str, head: Sequence[Row], column_map: Mapping[str, str] | None = None, first: Sequence[Shape] = ()) -> "Converter":
        """The converter for rows such as `head`; shapes in `first` are tried before SHAPES. Raises InputError where none fits."""
        mapping = {ours: theirs for ours, theirs in (column_map or {}).items() if ours != "coding"}
        _check_map(name, head, mapping)
        shape, bound = recognise(name, [_mapped(row, mapping) for row in head], mapping, first)
        convert = shape.convert
        if shape.name == "compared":
            if "coding" not in (column_map or {}):
                raise InputError(f"{name}: what the labels mean is not told row by row; add it to the map, as in coding=1/2/0.")
            convert = partial(compared_row, coding=label_coding(name, Counter(), column_map or {}, Counter()))
        used = {mapping.get(theirs, theirs).partition(".")[0] for theirs in bound.values()} | {*bound.values(), *mapping.values()}
        found = cls(shape.name, shape.kind, convert, bound, mapping, frozenset(used), "")
        groups: list[Group] = []
        for row in head:
            with suppress(RowRefused):
                groups += found(row, Counter())
        answers = [r.text.rstrip() for group in groups for r in group.responses]
        return replace(found, marker=next((m for m in END_MARKERS if answers and all(a.endswith(m) for a in answers)), ""))

    def __call__(self, row: Row, notes: Notes) -> list[Group]:
        """The groups of a row. Raises RowRefused, with the reason in the words of the file."""
        mapped = _mapped(row, self.mapping) if self.mapping else row
        try:
            groups = self.convert(view(mapped, self.bound), notes)
        except RowRefused as refusal:
            raise RowRefused(_in_words_of_the_file(str(refusal), self.bound, self.mapping)) from None
        columns = {name: value for name, value in mapped.items() if name not in self.used}
        for group in groups:
            group.columns = columns
            if self.marker:
                for response in group.responses:
                    response.turns = tuple(_without(turn, self.marker) for turn in response.turns)
                    if not response.text.strip():
                        raise RowRefused("empty answer")
        return groups
