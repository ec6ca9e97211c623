"""`manners data render`: rows of fields through templates -> demonstrations, each of which says where it came from.

For each row the seed chooses the templates, the form, the exemplars and whether the task is turned round; a choice depends on the seed
and the row's number alone, so that a part of a file renders as it would in the whole. Rows are streamed. Exemplars are drawn from the
first POOL rows of the file, which alone are held in memory.
"""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from rich.console import Console

from manners.core.config import Settings
from manners.core.errors import InputError, nearest
from manners.core.files import jsonl_writer
from manners.data.files import Row, read_rows
from manners.data.sandbox import EmptySlot, TemplateFault
from manners.data.stream import LONGEST, Faults, rows_of
from manners.data.templates import NotApplicable, Rendered, Template, TemplateFile, load_all

POOL = 1000
"""Rows that exemplars are drawn from: the first of the file."""
SHOWN = 5
"""How many of the refused are listed."""
FORMS = ("zero-shot", "few-shot", "cot", "few-shot-cot")
FEWEST_WORDS = 4
"""An answer of fewer words says too little for its question to be written from it."""
THINK = (
    "Think it through step by step before you give the answer.",
    "Explain your reasoning first, and end with the answer.",
    "Reason step by step, then state the answer.",
    "Work towards the answer one step at a time.",
    "Give your reasons, and then the answer.",
)
INVERSIONS = (
    "Here is an answer:\n\n{target}\n\nWrite the request that it answers.",
    "What was asked, if this is the reply?\n\n{target}",
    "Below is the output of a task. Write an instruction, with whatever input it needs, that leads to it.\n\n{target}",
    "Somebody wrote this in reply to a request:\n\n{target}\n\nWrite that request.",
)
"""For templates whose file has no inverted ones."""


class RenderSettings(Settings):
    """Settings of `manners data render`."""

    writes: ClassVar[str] = "rendered.jsonl"
    silent: ClassVar[frozenset[str]] = frozenset({"out"})

    templates: str
    """File or folder of templates, promptsource's or ours; `starter:TASK` for a task of the library that ships."""
    data: str
    """File of rows whose columns are the templates' fields, or hub data set."""
    out: str
    """JSONL file of demonstrations to write."""
    names: str | None = None
    """Templates to use, with commas between their names. None uses all."""
    only_original: bool = False
    """Leave out templates that promptsource marks as not the data set's original task."""
    per_row: Annotated[int, Field(ge=0)] = 1
    """Templates for each row, drawn by the seed. 0 takes all."""
    form: str = "zero-shot"
    """zero-shot, few-shot, cot, few-shot-cot; of several, with commas between them, each row gets one."""
    shots: Annotated[int, Field(ge=1)] = 2
    """Exemplars in a few-shot prompt: other rows, never the row itself."""
    shot_style: Literal["plain", "labelled", "turns"] = "plain"
    """Exemplars as text, with Question: and Answer: before each part, or as earlier turns of the conversation."""
    reason: str | None = None
    """Field that holds the reasoning, for the forms with cot. None takes the one that the template file names, else `rationale`."""
    options: Literal["as-written", "list", "letters", "mixed"] = "as-written"
    """Add the answer choices where the prompt lacks them: as a list, by letters (the answer is then a letter), or a list for one half."""
    inversion: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of rows that are turned round: the answer is given, and what it answers is asked for."""
    map: str | None = None
    """Fields from columns of other names, as in text=sentence,label=gold."""
    labels: str | None = None
    """What the column `label` holds for the first answer choice, the second and so on, as in entailment,neutral,contradiction."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """Use the first so many rows only."""
    seed: int = 1
    """Chooses templates, forms, exemplars and what is turned round."""
    source: str | None = None
    """Where the rows come from. None takes the row's own `source`, else the name of the file."""
    cluster: str | None = None
    """Cluster of tasks. None takes the templates' cluster, else the row's own, else the task."""
    license: str | None = None
    """Licence of the rows. None takes the row's own `license`, else unknown."""
    made_by: str = "template"
    """Who or what made the rows."""
    max_line: Annotated[int, Field(ge=1)] = LONGEST
    """Bytes of the longest line that is read."""


@dataclass(slots=True)
class _Counts:
    """What became of the rows."""

    rows: int = 0
    written: int = 0
    without: int = 0
    passed_over: int = 0
    inverted: int = 0
    not_inverted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    first_refused: list[dict[str, Any]] = field(default_factory=list)
    by_template: Counter[str] = field(default_factory=Counter)
    by_form: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class _Work:
    """The settings made ready."""

    settings: RenderSettings
    forward: list[Template]
    inverted: list[Template]
    forms: list[str]
    reasons: dict[str, str]
    """File of templates -> its field of reasoning."""
    columns: dict[str, str]
    labels: dict[str, int] | None
    pool: list[tuple[int, Row]] = field(default_factory=list)
    counts: _Counts = field(default_factory=_Counts)
    unit: str = "row"
    unreadable: Faults = field(default_factory=Faults)
    """Lines that are no rows."""


def render(settings: RenderSettings) -> dict[str, Any]:
    """Write the demonstrations and return what became of the rows.

    Raises InputError for files that cannot be read, settings that do not go together, an `out` that is the data, and where no row can
    be rendered.
    """
    out = Path(settings.out)
    if Path(settings.data).exists() and out.exists() and out.samefile(settings.data):
        raise InputError(f"out= is the file of rows, {settings.data}; give the demonstrations a file of their own.")
    files, failed = load_all(settings.templates)
    work = _work(settings, files)
    work.unit, _ = read_rows(settings.data, streaming=True)
    numbered = rows_of(settings.data, work.unreadable, settings.max_line)
    rows = ((number, _mapped(row, work)) for number, row in islice(numbered, settings.rows))
    if any(form.startswith("few-shot") for form in work.forms):
        work.pool = list(islice(rows, POOL))
        rows = chain(work.pool, rows)
    with jsonl_writer(out) as write:
        columns: list[str] = []
        for number, row in rows:
            columns = columns or list(row)
            work.counts.rows += 1
            before = work.counts.written
            for line in _demonstrations(number, row, work):
                write(line)
                work.counts.written += 1
            work.counts.without += work.counts.written == before
        if not work.counts.written:
            raise InputError(_nothing(work, columns))
    report = _report(work, files, failed)
    _print(Console(highlight=False, markup=False, emoji=False), report)
    return report


def _work(settings: RenderSettings, files: Sequence[TemplateFile]) -> _Work:
    """The settings made ready. Raises InputError for what they name and is not there."""
    every = [template for file in files for template in file.templates]
    if settings.names is not None:
        names = [name.strip() for name in settings.names.split(",") if name.strip()]
        for name in names:
            if all(name != template.name for template in every):
                raise InputError(f"names={name}: {settings.templates} has no such template; {nearest(name, [t.name for t in every])}")
        every = [template for template in every if template.name in names]
    if settings.only_original:
        every = [template for template in every if template.original_task is not False]
    if not every:
        refused = [(name, why) for file in files for name, why in file.refused]
        because = f"; '{refused[0][0]}': {refused[0][1]}" if refused else ""
        raise InputError(f"{settings.templates}: no template is left to render with{because}.")
    forms = [form.strip() for form in settings.form.split(",") if form.strip()]
    for form in forms:
        if form not in FORMS:
            raise InputError(f"form={form} is not known; {nearest(form, FORMS)}")
    inverted = [template for template in every if template.inverted]
    # A template that was asked for by name is used as it stands.
    forward = every if settings.names is not None else [template for template in every if not template.inverted]
    if not forward:
        raise InputError(f"{settings.templates}: only inverted templates are left; name those to use with names=.")
    labels = None
    if settings.labels is not None:
        labels = {label.strip(): index for index, label in enumerate(settings.labels.split(","))}
    reasons = {file.path: settings.reason or file.reason or "rationale" for file in files}
    return _Work(settings, forward, inverted, forms or ["zero-shot"], reasons, _columns(settings.map), labels)


def _columns(text: str | None) -> dict[str, str]:
    """Field -> column, from "text=sentence,label=gold". Raises InputError."""
    found: dict[str, str] = {}
    for part in filter(None, ((text or "").split(","))):
        ours, equals, theirs = (p.strip() for p in part.partition("="))
        if not equals or not ours or not theirs:
            raise InputError(f"map: '{part}' is not of the form field=column, as in map=text=sentence,label=gold.")
        found[ours] = theirs
    return found


def _mapped(row: Row, work: _Work) -> Row:
    """A row under the templates' names, its label as the number of its answer choice."""
    taken = set(work.columns.values()) - set(work.columns)
    row = {k: v for k, v in row.items() if k not in taken} | {o: row[t] for o, t in work.columns.items() if t in row}
    if work.labels is not None and "label" in row:
        row["label"] = work.labels.get(str(row["label"]).strip())  # None, an empty slot, for a label that was not listed
    return row


# ---------------------------------------------------------------------------------------------------------- one row


def _demonstrations(number: int, row: Row, work: _Work) -> Iterator[dict[str, Any]]:
    """The demonstrations of a row, as they are written."""
    settings, counts = work.settings, work.counts
    draw = random.Random(f"{settings.seed}:{number}")
    turned = draw.random() < settings.inversion
    form = draw.choice(work.forms)
    templates = work.inverted if turned and work.inverted else work.forward
    wanted = min(settings.per_row, len(templates)) or len(templates)
    made = 0
    for template in draw.sample(templates, len(templates)):
        if made == wanted:
            return
        key = f"{settings.seed}:{number}:{template.name}"
        own_form = "zero-shot" if template.inverted and turned else form
        try:
            asked = _formed(template, row, key, own_form, work)
            shots = _exemplars(template, number, asked, key, own_form, work) if own_form.startswith("few-shot") else []
        except NotApplicable:
            counts.passed_over += 1
            continue
        except TemplateFault as why:
            counts.refused[str(why)] += 1
            if len(counts.first_refused) < SHOWN:
                counts.first_refused.append({work.unit: number, "template": template.name, "why": str(why)})
            continue
        inverted = template.inverted
        if turned and not template.inverted:
            asked, inverted = _turned(asked, draw)
            shots, own_form = ([], "zero-shot") if inverted else (shots, own_form)
            counts.not_inverted += not inverted
        made += 1
        counts.inverted += inverted
        counts.by_template[template.name] += 1
        counts.by_form[own_form] += 1
        yield _line(template, number, made, row, asked, shots, own_form, inverted, settings)


def _formed(template: Template, row: Mapping[str, Any], key: str, form: str, work: _Work) -> Rendered:
    """The row through the template, with options and reasoning as asked for. Raises TemplateFault and NotApplicable."""
    name = work.reasons[template.file]
    if form.endswith("cot") and (not template.cot or name in template.fields):
        raise NotApplicable  # it asks for the bare answer, or for the reasons themselves
    asked = _with_options(template, template.render(row, key), key, work.settings.options)
    if not form.endswith("cot"):
        return asked
    reason = row.get(name)
    if not isinstance(reason, str) or not reason.strip():
        raise EmptySlot(f"the field of reasoning, '{name}', is empty or not there")
    think = random.Random(f"{key}:think").choice(THINK)
    target = asked.target.removesuffix(".")
    return replace(asked, prompt=f"{asked.prompt}\n\n{think}", target=f"{reason.strip()}\n\nThe answer is {target}.")


def _with_options(template: Template, asked: Rendered, key: str, options: str) -> Rendered:
    """The prompt with its answer choices below, where it lacks them."""
    if options == "as-written" or not asked.choices or template.choices_in_prompt or asked.target not in asked.choices:
        return asked
    if options == "mixed" and random.Random(f"{key}:options").random() < 0.5:
        return asked
    if options == "letters":
        letters = [f"({chr(ord('A') + i)})" if i < 26 else f"({i + 1})" for i in range(len(asked.choices))]
        listed = [f"{letter} {choice}" for letter, choice in zip(letters, asked.choices, strict=True)]
        target = letters[asked.choices.index(asked.target)]
    else:
        listed, target = [f"- {choice}" for choice in asked.choices], asked.target
    return replace(asked, prompt="\n".join([f"{asked.prompt}\n\nOptions:", *listed]), target=target)


def _exemplars(template: Template, number: int, asked: Rendered, key: str, form: str, work: _Work) -> list[Rendered]:
    """Other rows through the same template. Raises TemplateFault if there are too few."""
    shots: list[Rendered] = []
    draw = random.Random(f"{key}:shots")
    for index in _shuffled(len(work.pool), 3 * work.settings.shots + 5, draw):
        other, row = work.pool[index]
        if other == number:
            continue
        try:
            # with the key of the row, so that options, and what is drawn by lot, are alike in all parts of a prompt
            shot = _formed(template, row, key, form, work)
        except (NotApplicable, TemplateFault):
            continue
        if shot.prompt != asked.prompt and shot not in shots:
            shots.append(shot)
        if len(shots) == work.settings.shots:
            return shots
    raise TemplateFault(f"there are {len(shots)} other rows to take as exemplars, and shots={work.settings.shots}")


def _shuffled(size: int, few: int, draw: random.Random) -> Iterator[int]:
    """All numbers below `size` in random order: first a few, which are nearly always enough; to shuffle all takes longer than the rest."""
    first = draw.sample(range(size), min(size, few))
    yield from first
    yield from (index for index in draw.sample(range(size), size) if index not in first)


def _turned(asked: Rendered, draw: random.Random) -> tuple[Rendered, bool]:
    """The answer given and what it answers asked for, by one of INVERSIONS; as it was if the answer says too little."""
    if asked.target in asked.choices or len(asked.target.split()) < FEWEST_WORDS:
        return asked, False
    return Rendered(draw.choice(INVERSIONS).replace("{target}", asked.target), asked.prompt), True


def messages(asked: Rendered, shots: Sequence[Rendered], style: str) -> list[dict[str, str]]:
    """A question, after exemplars in one of three styles, and its answer as turns."""
    if style == "turns":
        pairs = [*shots, asked]
        return [turn for p in pairs for turn in ({"role": "user", "content": p.prompt}, {"role": "assistant", "content": p.target})]
    prompt = asked.prompt
    if shots and style == "labelled":
        blocks = [f"Question: {shot.prompt}\nAnswer: {shot.target}" for shot in shots]
        prompt = "\n\n".join([*blocks, f"Question: {asked.prompt}\nAnswer:"])
    elif shots:
        prompt = "\n\n".join([*(f"{shot.prompt}\n{shot.target}" for shot in shots), asked.prompt])
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": asked.target}]


def _line(
    template: Template,
    number: int,
    made: int,
    row: Row,
    asked: Rendered,
    shots: Sequence[Rendered],
    form: str,
    inverted: bool,
    settings: RenderSettings,
) -> dict[str, Any]:
    """A demonstration with all that is known of where it came from."""
    own = {name: value for name in ("source", "cluster", "license") if isinstance(value := row.get(name), str) and value.strip()}
    line = {
        "id": f"{template.task}-{number}-{made}",
        "messages": messages(asked, shots, settings.shot_style),
        "source": settings.source or own.get("source") or Path(settings.data).name,
        "cluster": settings.cluster or template.cluster or own.get("cluster") or template.task,
        "license": settings.license or own.get("license") or "unknown",
        "made_by": settings.made_by,
        "task": template.task,
        "template": template.name,
        "form": form,
        "inverted": inverted,
        "row": number,
    }
    return line | ({"choices": list(asked.choices)} if asked.choices and not inverted else {})


# ------------------------------------------------------------------------------------------------------- what is told


def _nothing(work: _Work, columns: Sequence[str]) -> str:
    """The sentence for a file of which no row could be rendered."""
    counts, settings = work.counts, work.settings
    if not counts.rows:
        said = f": {work.unreadable.first[0]['why']} (line {work.unreadable.first[0]['row']})" if work.unreadable.first else ""
        return f"{settings.data} holds no row that can be read{said}."
    if not counts.refused:
        return f"{settings.data}: no template applies to any of {counts.rows:,} rows; each passes them over by its own condition."
    first = counts.first_refused[0]
    needed = sorted({name for template in work.forward for name in template.fields} - set(columns))
    hint = f" The templates need {', '.join(needed)}; the columns are {', '.join(columns)}: give map=field=column." if needed else ""
    return (
        f"{settings.data}: none of {counts.rows:,} rows can be rendered; {work.unit} {first[work.unit]}, template "
        f"'{first['template']}': {first['why']}.{hint}"
    )


def _report(work: _Work, files: Sequence[TemplateFile], failed: Sequence[tuple[str, str]]) -> dict[str, Any]:
    counts = work.counts
    return {
        "out": work.settings.out,
        "rows": counts.rows,
        "written": counts.written,
        "rows_without": counts.without,
        "refused": counts.refused.total(),
        "refused_why": dict(counts.refused.most_common(20)),
        "first_refused": counts.first_refused,
        "passed_over": counts.passed_over,
        "inverted": counts.inverted,
        "not_inverted": counts.not_inverted,
        "by_template": dict(sorted(counts.by_template.items())),
        "by_form": dict(counts.by_form),
        "unreadable": work.unreadable.report(),
        "templates_refused": [{"file": f.path, "template": name, "why": why} for f in files for name, why in f.refused],
        "files_failed": [{"file": file, "why": why} for file, why in failed],
    }


def _print(console: Console, report: Mapping[str, Any]) -> None:
    console.print(
        f"{report['written']:,} demonstrations of {report['rows']:,} rows by {len(report['by_template'])} templates: {report['out']}"
    )
    told = {
        "renderings refused": report["refused"],
        "rows of which nothing came": report["rows_without"],
        "passed over by the templates' own conditions": report["passed_over"],
        "turned round": report["inverted"],
        "not turned round, as the answer says too little": report["not_inverted"],
    }
    for what, number in told.items():
        if number:
            console.print(f"  {number:,} {what}")
    for fault in report["unreadable"]["first"][:SHOWN]:
        console.print(f"  not read: {fault['file']}, line {fault['row']}: {fault['why']}", soft_wrap=True)
    if report["unreadable"]["rows"] > SHOWN:
        console.print(f"  not read: {report['unreadable']['rows']:,} lines in all")
    for line in report["first_refused"]:
        place, number = next(iter(line.items()))
        console.print(f"  refused: {place} {number}, '{line['template']}': {line['why']}", soft_wrap=True)
    for line in report["templates_refused"]:
        console.print(f"  template refused: {line['file']}, '{line['template']}': {line['why']}", soft_wrap=True)
    for line in report["files_failed"]:
        console.print(f"  not read: {line['why']}", soft_wrap=True)
