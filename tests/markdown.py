"""Reading the project's pages in tests: tables, fenced blocks, names in code."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


def tables(text: str) -> list[tuple[list[str], list[list[str]]]]:
    """Every table of a page outside fenced blocks as (header, rows), cells stripped."""
    found: list[tuple[list[str], list[list[str]]]] = []
    inside = fenced = False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        if fenced or not line.startswith("|"):
            inside = False
            continue
        cells = [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]
        if not inside:
            found.append((cells, []))
            inside = True
        elif not all(re.fullmatch(r":?-+:?", cell) for cell in cells):
            found[-1][1].append(cells)
    return found


def table(text: str, first: str) -> dict[str, list[str]]:
    """The one table whose first header cell is `first`: the row's first cell, without backticks, to the other cells."""
    (rows,) = [rows for header, rows in tables(text) if header[0] == first]
    names = [row[0].strip("`") for row in rows]
    assert len(set(names)) == len(names), f"a name stands twice in the table '{first}'"
    return {name: row[1:] for name, row in zip(names, rows, strict=True)}


def blocks(text: str, language: str) -> list[tuple[int, str]]:
    """Fenced blocks of a language as (line number of the first line inside, text)."""
    found: list[tuple[int, str]] = []
    opened: int | None = None
    wanted = False
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        if not line.startswith("```"):
            continue
        if opened is None:
            opened, wanted = number, line[3:].strip() == language
        else:
            if wanted:
                found.append((opened + 1, "\n".join(lines[opened : number - 1]) + "\n"))
            opened = None
    assert opened is None, f"the block that begins at line {opened} is not closed"
    return found


def code(text: str) -> list[str]:
    """What stands in backticks in a line or cell."""
    return re.findall(r"`([^`]+)`", text)


def links(text: str) -> list[str]:
    """Targets of Markdown links that lead to files, without anchors."""
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    return [target for target in targets if target and "://" not in target]
