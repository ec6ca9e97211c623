"""Guidelines for crowdworkers as instructions: what told people how to do a task tells a model (Mishra 2022, Wang 2022).

A file describes one task. Natural Instructions' first and second version are read as they are, and YAML with the same keys. The texts
stand in this order, as far as a style uses them and a task has them: definition, emphasis and caution, things to avoid, positive and
negative examples with their explanations, the prompt, and last the input. An empty field, also one that holds "-" or "None", is left
out with its heading.
"""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import Field
from rich.console import Console

from manners.core.config import Settings
from manners.core.errors import InputError, nearest
from manners.core.files import jsonl_writer, read_mapping

ENDINGS = (".json", ".yaml", ".yml")
NOTHING = frozenset(("", "-", "none", "n/a", "na", "nan", "null"))
"""What stands in a field that is meant to be empty."""
SHOWN = 5
"""How many of the refused are listed."""


@dataclass(frozen=True, slots=True)
class Example:
    """An input with an output that is right (or wrong), and why."""

    input: str
    output: str
    explanation: str = ""


@dataclass(slots=True)
class Guideline:
    """What the guidelines of a task say, and its instances as (number in the file from 1, id, input, right outputs)."""

    task: str
    definition: str
    title: str = ""
    emphasis: str = ""
    avoid: str = ""
    prompt: str = ""
    categories: list[str] = field(default_factory=list)
    positive: list[Example] = field(default_factory=list)
    negative: list[Example] = field(default_factory=list)
    instances: list[tuple[int, str, str, list[str]]] = field(default_factory=list)
    source: str = ""
    license: str = ""
    languages: list[str] = field(default_factory=list)
    version: int = 2
    refused: list[tuple[str, str]] = field(default_factory=list)
    """(what, why) of examples and instances that cannot be used."""


class Style(NamedTuple):
    """Which texts are used, in the one order, and how they are announced. `positive` and `negative` are at most so many examples."""

    parts: frozenset[str]
    positive: int
    negative: int
    explained: bool
    headings: Mapping[str, str]


_PLAIN = {"input": "Input: ", "output": "Output: ", "explanation": "Why: ", "answer": "Output:"}
_ALL = frozenset(("definition", "emphasis", "avoid", "prompt"))
STYLES = {
    "guidelines": Style(
        _ALL,
        2,
        2,
        True,
        {
            "definition": "Definition: ",
            "emphasis": "Emphasis and caution: ",
            "avoid": "Things to avoid: ",
            "positive": "Positive example {n}",
            "negative": "Negative example {n}",
            "prompt": "Prompt: ",
            "input": "Input: ",
            "output": "Output: ",
            "explanation": "Explanation: ",
            "answer": "Output:",
        },
    ),
    "definition": Style(frozenset(("definition",)), 0, 0, False, {"definition": "", **_PLAIN, "input": ""}),
    "prompt": Style(frozenset(("prompt",)), 0, 0, False, {"prompt": "", **_PLAIN, "input": ""}),
    "rules": Style(
        _ALL,
        0,
        0,
        False,
        {"definition": "", "emphasis": "Keep in mind: ", "avoid": "Do not do this: ", "prompt": "", "input": "", "answer": ""},
    ),
    "examples": Style(frozenset(("definition",)), 2, 0, False, {"definition": "", "positive": "Example {n}", **_PLAIN, "input": "Input: "}),
    "contrast": Style(
        frozenset(("definition", "prompt")),
        1,
        1,
        True,
        {"definition": "", "positive": "A good answer", "negative": "A bad answer", "prompt": "", **_PLAIN, "answer": "Your output:"},
    ),
}
"""guidelines: everything, under its heading. definition, prompt: that text and the input. rules: the texts without examples. examples:
the definition and two positive examples. contrast: one good and one bad answer, and why."""


class GuidelinesSettings(Settings):
    """Settings of `manners data guidelines`."""

    positional: ClassVar[str] = "guidelines"
    writes: ClassVar[str] = "instructions.jsonl"
    silent: ClassVar[frozenset[str]] = frozenset({"out"})

    guidelines: str
    """File of one task (Natural Instructions, version 1 or 2, or YAML with its keys), or folder of such files."""
    out: str
    """JSONL file of demonstrations to write."""
    style: str = "mixed"
    """A style by name, several with commas between them, of which each row gets one, or `mixed` for all of them."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """Use the first so many instances of each task only."""
    outputs: Annotated[int, Field(ge=0)] = 1
    """So many right outputs of an instance become a row each. 0 takes all; each row lists all of them as `references`."""
    categories: str | None = None
    """Use tasks of these categories only, with commas between them."""
    seed: int = 1
    """Chooses the style of a row."""
    license: str | None = None
    """Licence of the rows. None takes that of the file's instances, else unknown."""
    made_by: str = "guidelines"
    """Who or what made the rows."""


def guidelines(settings: GuidelinesSettings) -> dict[str, Any]:
    """Write the demonstrations and return what became of the tasks.

    Raises InputError for a style or file that is not there, a single file that cannot be read, and where no row comes of any task.
    """
    styles = _styles(settings.style)
    every = paths(settings.guidelines)
    wanted = {c.strip().casefold() for c in settings.categories.split(",")} if settings.categories else None
    failed: list[dict[str, str]] = []
    refused: list[dict[str, str]] = []
    tasks: list[dict[str, Any]] = []
    left_out = 0
    by_style: Counter[str] = Counter()
    with jsonl_writer(settings.out) as write:
        for path in every:
            try:
                task = load(path)
            except InputError as error:
                if len(every) == 1:
                    raise
                failed.append({"file": str(path), "why": str(error)})
                continue
            if wanted is not None and not wanted & {c.casefold() for c in task.categories}:
                left_out += 1
                continue
            written = 0
            for line in demonstrations(task, styles, settings):
                write(line)
                by_style[line["style"]] += 1
                written += 1
            refused += [{"file": str(path), "what": what, "why": why} for what, why in task.refused]
            about = {"task": task.task, "categories": task.categories, "version": task.version, "license": _license(task, settings)}
            tasks.append(about | {"instances": len(task.instances), "rows": written, "refused": len(task.refused)})
        if not by_style:
            first = failed[0]["why"] if failed else f"{refused[0]['what']}: {refused[0]['why']}." if refused else "no task is left."
            raise InputError(f"{settings.guidelines}: no row comes of {len(every):,} files; {first}")
    report = {
        "out": settings.out,
        "tasks": len(tasks),
        "rows": by_style.total(),
        "by_style": dict(sorted(by_style.items())),
        "by_category": dict(_by_category(tasks).most_common()),
        "left_out": left_out,
        "refused": len(refused),
        "first_refused": refused[:SHOWN],
        "failed": failed,
        "by_task": tasks,
    }
    _print(Console(highlight=False, markup=False, emoji=False), report)
    return report


def _styles(text: str) -> list[str]:
    """Names of styles. Raises InputError for one that is not known."""
    names = list(STYLES) if text == "mixed" else [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in STYLES:
            raise InputError(f"style={name} is not known; {nearest(name, [*STYLES, 'mixed'])}")
    return names or list(STYLES)


def _by_category(tasks: Sequence[Mapping[str, Any]]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for task in tasks:
        counts[_first(task["categories"]) or "unknown"] += task["rows"]
    return counts


# ------------------------------------------------------------------------------------------------------------- reading


def paths(name: str) -> list[Path]:
    """The file, or all files of tasks in a folder and below, by name. Raises InputError if there is none."""
    path = Path(name).expanduser()
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in ENDINGS)
        if not found:
            raise InputError(f"{name} is a folder without a {' or '.join(ENDINGS)} file; name a file of guidelines.")
        return found
    if not path.is_file():
        raise InputError(f"{name}: there is no such file; name a file of guidelines or a folder of them.")
    if path.suffix.lower() not in ENDINGS:
        raise InputError(f"{name}: the ending '{path.suffix}' is not known; guidelines are {', '.join(ENDINGS)} files.")
    return [path]


def load(path: str | Path) -> Guideline:
    """Reads the guidelines of a task. Examples and instances that cannot be used are in `refused`.

    Raises InputError for a file that cannot be read, has no text that says what to do, or no instances.
    """
    path = Path(path)
    content = read_mapping(path, "the guidelines of a task are one object")
    text = lambda *names: _field(path, content, *names)
    task = Guideline(task=text("task") or path.stem, definition=text("Definition", "definition"))
    task.title, task.prompt = text("Title"), text("Prompt")
    task.emphasis, task.avoid = text("Emphasis & Caution", "Emphasis and Caution"), text("Things to Avoid", "Things to avoid")
    if not (task.definition or task.prompt):
        raise InputError(f"{path} has neither a 'Definition' nor a 'Prompt', so that nothing says what to do.")
    task.categories = _several(content.get("Categories", content.get("Category")))
    task.source = ", ".join(_several(content.get("Source")))
    task.license = ", ".join(_several(content.get("Instance License")))
    task.languages = _several(content.get("Output_language")) or _several(content.get("Input_language"))
    # Version 1 has a title and keeps its examples in one field; version 2 has no prompt.
    task.version = 1 if "Title" in content or "Examples" in content else 2
    examples = content.get("Examples")
    home = examples if isinstance(examples, dict) else content
    task.positive = _examples(home.get("Positive Examples"), "positive example", task)
    task.negative = _examples(home.get("Negative Examples"), "negative example", task)
    _instances(path, content, task)
    return task


def _field(path: Path, content: Mapping[str, Any], *names: str) -> str:
    """Text of the first of these fields, lists of texts joined; empty if it says nothing. Raises InputError for another type."""
    name = next((n for n in names if content.get(n) is not None), None)
    if name is None:
        return ""
    value = content[name]
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(v, str) for v in values):
        raise InputError(f"{path}: '{name}' holds a {type(value).__name__}, and has to be text or a list of texts.")
    return "\n".join(v.strip() for v in values if v.strip().casefold() not in NOTHING)


def _several(value: object) -> list[str]:
    """Texts of a field that is a list of them, or one alone; others are passed over."""
    values = value if isinstance(value, list) else [value]
    return [v.strip() for v in values if isinstance(v, str) and v.strip().casefold() not in NOTHING]


def _examples(values: object, what: str, task: Guideline) -> list[Example]:
    """The examples of one kind; one that lacks input or output is refused. Version 1 writes "-" where there are none."""
    found = []
    for number, value in enumerate(values if isinstance(values, list) else [], 1):
        if isinstance(value, str) and value.strip().casefold() in NOTHING:
            continue
        if not isinstance(value, dict):
            task.refused.append((f"{what} {number}", "it is no object with input and output"))
            continue
        output = value.get("output")
        output = output[0] if isinstance(output, list) and output else output
        why = value.get("explanation", value.get("reason"))
        if not _said(value.get("input")) or not _said(output):
            task.refused.append((f"{what} {number}", "its input or output is empty, or no text"))
            continue
        why = why.strip() if isinstance(why, str) and why.strip().casefold() not in NOTHING else ""
        found.append(Example(str(value["input"]).strip(), str(output).strip(), why))
    return found


def _said(value: object) -> bool:
    """Whether a value is text that is not blank, or a number."""
    return (isinstance(value, str) and bool(value.strip())) or (isinstance(value, int | float) and not isinstance(value, bool))


def _instances(path: Path, content: Mapping[str, Any], task: Guideline) -> None:
    """Fills `instances`; those without input or output are refused. Raises InputError if the field is no list."""
    values = content.get("Instances", content.get("instances"))
    if not isinstance(values, list) or not values:
        raise InputError(f"{path} has no 'Instances', which have to be a list of objects with input and output.")
    for number, value in enumerate(values, 1):
        name = f"instance {number}"
        if not isinstance(value, dict):
            task.refused.append((name, f"it is a {type(value).__name__}, and no object with input and output"))
            continue
        output = value.get("output")
        outputs = output if isinstance(output, list) else [output]
        if not _said(value.get("input")):
            task.refused.append((name, "its input is empty, not there, or no text"))
        elif not outputs or not all(_said(o) for o in outputs):
            task.refused.append((name, "its output is empty, not there, or no text"))
        else:
            different = list(dict.fromkeys(str(o).strip() for o in outputs))
            task.instances.append((number, str(value.get("id") or f"{task.task}-{number}"), str(value["input"]).strip(), different))


# ------------------------------------------------------------------------------------------------------------- writing


def instruction(task: Guideline, text: str, style: str) -> str:
    """The instruction for an input in a style of STYLES, its parts in the one order. Without a prompt the definition stands for it."""
    how = STYLES[style]
    told = {"definition": task.definition, "emphasis": task.emphasis, "avoid": task.avoid, "prompt": task.prompt}
    used = {name for name in how.parts if told[name]} or {"definition" if task.definition else "prompt"}
    heading = lambda name: how.headings.get(name, "")
    blocks = [heading(name) + told[name] for name in ("definition", "emphasis", "avoid") if name in used]
    # an example of the task must not give the answer away
    positive = [e for e in task.positive if e.input != text][: how.positive]
    negative = [e for e in task.negative if e.input != text][: how.negative]
    for kind, examples in (("positive", positive), ("negative", negative)):
        for number, example in enumerate(examples, 1):
            lines = [heading(kind).replace("{n}", str(number)), heading("input") + example.input, heading("output") + example.output]
            if how.explained and example.explanation:
                lines.append(heading("explanation") + example.explanation)
            blocks.append("\n".join(lines))
    if "prompt" in used:
        blocks.append(heading("prompt") + told["prompt"])
    # After examples the input has to be told from them.
    if positive or negative:
        blocks.append(f"{heading('input') or 'Input: '}{text}\n{heading('answer')}".rstrip())
    else:
        blocks.append(heading("input") + text + (f"\n{heading('answer')}" if heading("input") else ""))
    return "\n\n".join(blocks)


def demonstrations(task: Guideline, styles: Sequence[str], settings: GuidelinesSettings) -> Iterator[dict[str, Any]]:
    """The rows of a task: each instance in one of the styles, drawn by seed, task and instance."""
    for number, identity, text, outputs in task.instances[: settings.rows]:
        style = random.Random(f"{settings.seed}:{task.task}:{number}").choice(list(styles))
        asked = instruction(task, text, style)
        for index, output in enumerate(outputs[: settings.outputs or None], 1):
            yield {
                "id": identity if index == 1 else f"{identity}-{index}",
                "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": output}],
                "source": f"{task.task} ({task.source})" if task.source else task.task,
                "cluster": _first(task.categories) or "unknown",
                "license": _license(task, settings),
                "made_by": settings.made_by,
                "task": task.task,
                "style": style,
                "references": outputs,
            }


def _first(values: Sequence[str]) -> str:
    return values[0] if values else ""


def _license(task: Guideline, settings: GuidelinesSettings) -> str:
    return settings.license or (task.license if task.license.casefold() != "unknown" else "") or "unknown"


def _print(console: Console, report: Mapping[str, Any]) -> None:
    console.print(f"{report['rows']:,} demonstrations of {report['tasks']:,} tasks: {report['out']}")
    for category, count in report["by_category"].items():
        console.print(f"  {count:7,} {category}")
    if report["left_out"]:
        console.print(f"{report['left_out']:,} tasks of other categories left out")
    if report["refused"]:
        console.print(f"{report['refused']:,} examples and instances refused")
    for row in report["first_refused"]:
        console.print(f"  {row['file']}, {row['what']}: {row['why']}", soft_wrap=True)
    for row in report["failed"]:
        console.print(f"  not read: {row['why']}", soft_wrap=True)
