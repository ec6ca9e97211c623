"""Writes docs/commands.md, the reference of all commands, from the command table and the settings classes.

    python -m tools.reference          write the page
    python -m tools.reference --check  only say whether it is up to date

A setting's text is the docstring under its key, so the page, `manners COMMAND --help` and the code cannot say different things.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from manners.commands import COMMANDS, GROUPS, Command
from manners.core.config import Settings
from manners.evaluate.measurement import MeasureSettings
from manners.train.stage import TrainSettings

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "commands.md"
COMMAND = "python -m tools.reference"
SHARED: dict[type[Settings], str] = {
    TrainSettings: "Settings of every trainer",
    MeasureSettings: "Settings of every measurement",
}
"""Classes whose settings are listed once, under this heading, and not with each command that inherits them."""
HEADINGS = {"": "Commands", "data": "`manners data`", "eval": "`manners eval`"}
INTRODUCTION = f"""# Commands

Every command and every setting. This page is made by `{COMMAND}` from the classes that read the settings; `manners COMMAND --help`
prints the same.

A setting is a word `key=value`, an option `--key value`, or a line of a YAML file that `--config FILE` names; words win over the file.
A setting marked *needed* has no default. `none` means that nothing is set. `--json` ends any command with one line of JSON for programs.
A command exits with 0, with 1 if Manners failed, with 2 if its input is wrong, with 3 if it waits for people, with 130 if interrupted.
"""


def text() -> str:
    """The whole page. Imports the module of every command."""
    parts = [INTRODUCTION]
    for group, heading in {**HEADINGS, **{group: f"`manners {group}`" for group in GROUPS if group not in HEADINGS}}.items():
        rows = {name: row for name, row in COMMANDS.items() if name.rpartition(" ")[0] == group}
        index = "\n".join(f"| [`manners {name}`](#{anchor(name)}) | {row.summary} |" for name, row in rows.items())
        said = f"{GROUPS[group]}\n\n" if group else ""
        parts.append(f"## {heading}\n\n{said}| Command | What it does |\n|---|---|\n{index}\n")
        parts += [section(name, row) for name, row in rows.items()]
        if not group:
            parts += [shared(kind, heading) for kind, heading in SHARED.items()]
    return "\n".join(parts)


def anchor(heading: str) -> str:
    """The name that a heading's text gets in the page."""
    return re.sub(r"[^a-z0-9-]+", "-", heading.lower()).strip("-")


def section(name: str, row: Command) -> str:
    """One command: what it does, how it is called, its own settings, and where the others are."""
    kind, _ = row.load()
    bases = [base for base in SHARED if issubclass(kind, base)]
    inherited = {key for base in bases for key, field in base.model_fields.items() if same(field, kind.model_fields[key])}
    own = {key: field for key, field in kind.model_fields.items() if key not in inherited and key != kind.rest}
    texts = {key: base.model_fields[key].description for base in bases for key in base.model_fields}
    lines = [f"### {name}", "", row.summary, ""]
    if kind.positional:
        bare = f"`{kind.positional}` may be given as a bare word"
        lines += [f"{bare}, or several." if kind.plural else f"{bare}.", ""]
    if kind.rest:
        lines += [f"`KEY=VALUE` of any other key: {described(kind.model_fields[kind.rest])}", ""]
    lines += [table(own, texts), ""] if own else []
    for base in bases:
        lines += [f"And the [{SHARED[base][0].lower()}{SHARED[base][1:]}](#{anchor(SHARED[base])}).", ""]
    return "\n".join(lines)


def shared(kind: type[Settings], heading: str) -> str:
    """The settings of a class that many commands inherit."""
    return f"### {heading}\n\nWhere a command has another default or meaning, its own table says so.\n\n{table(kind.model_fields)}\n"


def same(field: FieldInfo, other: FieldInfo) -> bool:
    """Whether a command takes a setting over as it is."""
    return (field.annotation, field.default, field.description) == (other.annotation, other.default, other.description)


def table(fields: dict[str, FieldInfo], texts: dict[str, str | None] | None = None) -> str:
    """The table of settings; a setting without a text of its own has that of `texts`."""
    rows = [f"| `{key}` | {default(field)} | {described(field, (texts or {}).get(key))} |" for key, field in fields.items()]
    return "\n".join(["| Setting | Default | What it does |", "|---|---|---|", *rows])


def default(field: FieldInfo) -> str:
    """The default as one would type it."""
    if field.is_required():
        return "*needed*"
    return f"`{typed(field.get_default(call_default_factory=True))}`".replace("|", r"\|")


def typed(value: Any) -> str:
    """A value as text; files of the package without the folder that it happens to lie in."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple | set | frozenset):
        return ",".join(map(typed, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value).replace(f"{ROOT}/", "") or "none"


def described(field: FieldInfo, otherwise: str | None = None) -> str:
    """A setting's text, with the choices that it does not name itself."""
    said = plain(" ".join((field.description or otherwise or "").split()))
    missing = [choice for choice in choices(field.annotation) if not re.search(rf"(?<!\w){re.escape(choice)}(?!\w)", said)]
    if missing:
        said = f"{said} One of {', '.join(f'`{choice}`' for choice in choices(field.annotation))}.".strip()
    return said


def choices(annotation: Any) -> list[str]:
    """The words that a setting can be, if there are only so many."""
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    return [choice for part in get_args(annotation) for choice in choices(part)]


def plain(said: str) -> str:
    """A docstring as text of a table's cell: outside backticks no character means anything to Markdown."""
    return "".join(_escaped(said))


def _escaped(said: str) -> Iterator[str]:
    for index, part in enumerate(said.split("`")):
        quoted = index % 2 == 1
        part = part.replace("|", r"\|") if quoted else re.sub(r"([*\[\]|]|\b_|_\b)", r"\\\1", part).replace("<", "&lt;")
        yield f"`{part}`" if quoted else part


def main() -> int:
    """Write the page, or with --check say whether it is what it would be."""
    made = text()
    if "--check" in sys.argv[1:]:
        current = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == made
        print(f"{PAGE.name} is up to date" if current else f"{PAGE.name} is out of date; remake it with {COMMAND}")
        return 0 if current else 1
    PAGE.write_text(made, encoding="utf-8")
    print(f"{PAGE}: {len(COMMANDS)} commands")
    return 0


if __name__ == "__main__":
    sys.exit(main())
