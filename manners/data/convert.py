"""`manners data convert`: a file of rows in another shape. docs/data-formats.md.

What "lossless" means is not promised but tried: each row that is written is read back as the shape it was written in, and has to give the
same prompt, answers, margin, labels and columns as the row that was read. A row that does not is a loss, which ends the command with a
sentence, or, with `lossy=true`, is written as far as it goes and counted.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field
from rich.console import Console

from manners.core import files
from manners.core.config import Settings
from manners.core.errors import InputError, nearest
from manners.core.records import Group, Message
from manners.data.bodies import TARGETS
from manners.data.files import Row
from manners.data.formats import parse_map, recognise, view
from manners.data.kinds import as_kind, gathered
from manners.data.shapes import CLASS_SHAPES, RATING_SHAPES, RowRefused, Shape, compared_row
from manners.data.stream import LONGEST, TAKEN, Faults, Reader

CARRIED = {"margin", "probability"}
"""Columns that keep their place beside a shape that does not know them: they tell no shape apart."""
HIDDEN = (TAKEN - CARRIED) | {"source", "cluster", "columns"}
"""Columns that go under `columns`: names that shapes are told by, and a source or cluster that is no text."""
OF_TWO = {"a": "a", "b": "b"}
FIRST = {"auto": (), "ratings": RATING_SHAPES, "classes": CLASS_SHAPES}


# --------------------------------------------------------------------------------------------------------- writing and checking


class Writer:
    """Groups as rows of one shape, each read back and compared with what it was made of."""

    def __init__(self, to: str) -> None:
        self.target = TARGETS[to]
        self.first: Sequence[Shape] = FIRST.get(self.target.kind, ())
        self.known: dict[tuple[str, ...], tuple[Shape, dict[str, str]] | None] = {}

    def row(self, group: Group) -> tuple[Row, list[str]]:
        """The row of a group, and what of the group it does not hold. Raises RowRefused where the shape cannot hold it at all."""
        best: tuple[Row, list[str]] | None = None
        refusal = RowRefused("the shape cannot hold it")
        for body in self.target.body(group):
            row, back = self._placed(body, group)
            try:
                read = back()
            except RowRefused as why:
                refusal = why
                continue
            lost = _differences(group, read)
            if not lost:
                return row, []
            if best is None or len(lost) < len(best[1]):
                best = row, lost
        if best is None:
            raise refusal
        return best

    def _placed(self, body: Row, group: Group) -> tuple[Row, Callable[[], Group]]:
        """The columns with the row's own beside them, and a function that reads the row back."""
        folded = {n: value for n, value in group.columns.items() if n in body or n in HIDDEN}
        beside = {n: value for n, value in group.columns.items() if n not in folded}
        origin = {name: value for name, value in (("source", group.prompt.source), ("cluster", group.prompt.cluster)) if value}
        row = {**body, **beside, **origin, **({"columns": folded} if folded else {})}
        if self._known(row) is None and beside:
            row = {**body, **origin, "columns": {**beside, **folded}}
        return row, lambda: self._read(row)

    def _known(self, row: Row) -> tuple[Shape, dict[str, str]] | None:
        """The shape that a row would be read as and its columns, if that is the one that is written."""
        key = tuple(name for name, value in row.items() if value is not None)
        if key not in self.known:
            try:
                shape, bound = recognise("", [row], {}, self.first)
            except InputError:
                self.known[key] = None
            else:
                self.known[key] = (shape, bound) if shape.name == self.target.shape else None
        return self.known[key]

    def _read(self, row: Row) -> Group:
        known = self._known(row)
        if known is None:
            raise RowRefused("its columns would be taken for another shape")
        shape, bound = known
        convert = partial(compared_row, coding=OF_TWO) if shape.name == "compared" else shape.convert
        group = convert(view(row, bound), Counter())[0]
        group.columns = {name: value for name, value in row.items() if name not in bound.values()}
        return group


def _differences(group: Group, back: Group) -> list[str]:
    """What a row does not hold of the group that it was made of, in words; empty where it holds all."""
    found = []
    back = gathered(back, "pairs" if group.margin is not None or group.probability is not None else "")
    whole = lambda g: [[*g.prompt.messages, *r.turns] for r in g.responses] or [list(g.prompt.messages)]
    if whole(group) != whole(back):
        found.append(_of_turns(whole(group), whole(back)))
    elif group.prompt.messages != back.prompt.messages:
        found.append("which answers of the conversation are trained on")
    if group.margin != back.margin:
        found.append("the margin" if group.margin is not None else "that there is no margin")
    if group.probability != back.probability:
        found.append("the probability")
    if [r.scores for r in group.responses] != [r.scores for r in back.responses]:
        found.append("ratings or ranks")
    if group.columns != back.columns or (group.prompt.source, group.prompt.cluster) != (back.prompt.source, back.prompt.cluster):
        found.append("columns")
    return found


def _of_turns(here: Sequence[Sequence[Message]], back: Sequence[Sequence[Message]]) -> str:
    bare = lambda turns: [[(t.role, " ".join(t.content.split())) for t in of] for of in turns]
    if bare(here) == bare(back):
        return "white space at the ends of turns"
    if len(here) != len(back):
        return "answers"
    roles = lambda turns: [[t.role for t in of] for of in turns]
    return "turns, or who says them" if roles(here) != roles(back) else "what turns say"


# --------------------------------------------------------------------------------------------------------------- the command


def _target(value: Any) -> Any:
    if isinstance(value, str) and value not in TARGETS:
        raise ValueError(f"'{value}' is no shape that rows can be written in; {nearest(value, TARGETS)}")
    return value


class ConvertSettings(Settings):
    """Settings of `manners data convert`."""

    positional: ClassVar[str] = "data"
    writes: ClassVar[str] = "converted.jsonl"
    silent: ClassVar[frozenset[str]] = frozenset({"out"})

    data: str
    """File of rows of any shape."""
    to: Annotated[str, BeforeValidator(_target)]
    """Shape to write, of the table in docs/data-formats.md."""
    out: str
    """JSONL file to write; NAME.conversion.json goes beside it, and NAME.refused.jsonl if rows could not be used."""
    lossy: bool = False
    """Write what the shape can hold and count what is lost, in place of an error."""
    read: Literal["auto", "ratings", "classes"] = "auto"
    """Take ratings or class labels for what they are, which auto takes for demonstrations."""
    map: str | None = None
    """Column map for rows of an unknown shape."""
    max_line: Annotated[int, Field(ge=1)] = LONGEST
    """Bytes of the longest line that is read."""


def convert(settings: ConvertSettings) -> dict[str, Any]:
    """Write the file in the other shape and the report beside it; returns the report.

    Raises InputError for a file that cannot be read, an `out` that is the data, a loss that was not allowed, and where no row is left.
    """
    out = Path(settings.out)
    if Path(settings.data).exists() and out.exists() and out.samefile(settings.data):
        raise InputError(f"out= is the file of rows, {settings.data}; give the converted rows a file of their own.")
    listed: list[dict[str, Any]] = []
    faults = Faults(write=listed.append)
    reader = Reader(settings.data, faults, parse_map(settings.map) if settings.map else None, settings.max_line, FIRST[settings.read])
    writer = Writer(settings.to)
    lost: Counter[str] = Counter()
    first: dict[str, int] = {}
    rows = written = 0
    with files.jsonl_writer(out) as write:
        for number, row, groups in reader:
            rows += 1
            try:
                made = [one for group in groups for one in _converted(_origin_of(group, row), reader.kind, writer)]
            except RowRefused as refusal:
                why, _, detail = str(refusal).partition(": ")
                faults.add(settings.data, number, f"not writable: {why}", f": {detail}" if detail else "")
                continue
            missing = list(dict.fromkeys(name for _, names in made for name in names))
            if missing and not settings.lossy:
                raise InputError(
                    f"{settings.data}, row {number}: as {settings.to} it would lose {_joined(missing)}; "
                    "choose another shape, or give lossy=true to write the rest and count what is lost."
                )
            for name in missing:
                lost[name] += 1
                first.setdefault(name, number)
            for converted, _ in made:
                if converted is not None:
                    write(converted)
                    written += 1
        if not written:
            said = "; ".join(f"{fault['why']} (row {fault['row']})" for fault in faults.first[:1]) or "every row would be lost"
            raise InputError(f"{settings.data}: no row can be written as {settings.to}: {said}.")
    report = {
        "data": settings.data,
        "out": str(out),
        "from": {"shape": reader.converter.shape, "kind": reader.kind},
        "to": settings.to,
        "rows": rows,
        "written": written,
        "lost": {name: {"rows": n, "first": first[name]} for name, n in lost.most_common()},
        "changed_in_reading": dict(reader.notes.most_common()),
        "refused": faults.report(),
    }
    if reader.converter.marker:
        report["changed_in_reading"][f"end marker '{reader.converter.marker}' removed"] = rows
    if listed:
        files.write_jsonl(out.with_name(f"{out.stem}.refused.jsonl"), listed)
    files.write_json(out.with_name(f"{out.stem}.conversion.json"), report)
    _print(report)
    return report


def _origin_of(group: Group, row: Row) -> Group:
    """The group with a source or cluster that is no text, which a prompt cannot hold, among its columns."""
    odd = {name: row[name] for name in ("source", "cluster") if row.get(name) is not None and not isinstance(row[name], str)}
    return replace(group, columns={**group.columns, **odd}) if odd else group


def _converted(group: Group, kind: str, writer: Writer) -> Iterator[tuple[Row | None, list[str]]]:
    """The rows of a group with what each has lost; None with a loss for a group of which nothing is left."""
    groups, lost = as_kind(group, kind, writer.target.kind)
    if not groups:
        yield None, lost
    for one in groups:
        row, more = writer.row(one)
        yield row, [*lost, *more]


def _joined(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _print(report: Mapping[str, Any]) -> None:
    out = Console(highlight=False, markup=False, emoji=False)
    told = f"{report['written']:,} rows of shape {report['to']} from {report['rows']:,} of shape {report['from']['shape']}: {report['out']}"
    out.print(told, soft_wrap=True)
    for name, of in report["lost"].items():
        out.print(f"  lost in {of['rows']:,} rows, the first is {of['first']}: {name}")
    for what, n in report["changed_in_reading"].items():
        out.print(f"  {what}: {n:,} rows")
    for why, n in report["refused"]["why"].items():
        out.print(f"  not used: {n:,} rows: {why}")
