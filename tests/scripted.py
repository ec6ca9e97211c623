"""Commands that cost nothing, for tests of recipes: each writes what it was given, and notes that it was called."""

from pathlib import Path
from typing import Any, ClassVar

from manners.commands import Command
from manners.core.config import Settings
from manners.core.errors import InputError

CALLS: list[str] = []
"""The `out` of every call."""


class WriteSettings(Settings):
    """One file, like `generate`."""

    writes: ClassVar[str] = "rows.jsonl"

    data: str | None = None
    text: str = "text"
    model: str | None = None
    count: int = 1
    seed: int = 0
    out: str


def write(settings: WriteSettings) -> dict[str, Any]:
    CALLS.append(settings.out)
    if settings.text == "fail":
        raise InputError("the text fails.")
    if settings.text == "interrupt":
        raise KeyboardInterrupt
    before = Path(settings.data).read_text() if settings.data else ""
    Path(settings.out).write_text(before + f"{settings.text} {settings.seed}\n" * settings.count)
    return {"lines": settings.count}


class GatherSettings(Settings):
    """A folder of several files without a manifest."""

    files: list[str] = []  # noqa: RUF012
    named: dict[str, list[str]] = {}  # noqa: RUF012
    out: str


def gather(settings: GatherSettings) -> dict[str, Any]:
    CALLS.append(settings.out)
    found = [*settings.files, *(file for named in settings.named.values() for file in named)]
    (Path(settings.out) / "all.txt").write_text("".join(Path(file).read_text() for file in found))
    return {"files": len(found)}


ROWS = {
    "write": Command("tests.scripted", "WriteSettings", "write", "Writes a file."),
    "gather": Command("tests.scripted", "GatherSettings", "gather", "Puts files together."),
}
