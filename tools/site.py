"""Hooks of mkdocs (`hooks` in mkdocs.yml): pages that are written to be read as files, made ready for the site."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FENCE = re.compile(r"^(```.*?^```[ \t]*$)", re.M | re.S)
ITEM = re.compile(r"^(?:[-*+]|\d+\.) ")
NAMED = re.compile(r"\[([\w/-]+\.md)\]\(\1(#[\w-]+)?\)")
"""A link whose text is the name of the file that it leads to."""
FETCHED = re.compile(
    r"""(?:<(?:script|link|img|iframe)\b[^>]*\s(?:src|href)\s*=\s*["']?|url\(\s*["']?|@import\s+["']?)(?:https?:)?(//[^\s"')>]+)"""
)
"""What a browser would load from another host."""
log = logging.getLogger("mkdocs.hooks.site")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """The text of a page, made ready outside its code blocks."""
    if "\n## " not in markdown and "\n::: " not in markdown:
        page.meta.setdefault("hide", ["toc"])
    titles = dict(titled(config.nav or []))
    return "".join(part if index % 2 else prepared(part, titles) for index, part in enumerate(FENCE.split(markdown)))


def titled(entries: list[Any]) -> Iterator[tuple[str, str]]:
    """(file, title) of every page of the navigation that has a title there."""
    for entry in entries:
        for title, target in entry.items() if isinstance(entry, dict) else ():
            if isinstance(target, str):
                yield target, title
            else:
                yield from titled(target)


def prepared(text: str, titles: dict[str, str]) -> str:
    """Links by title in place of file name, and the empty line before a list or table that Python-Markdown wants."""
    text = NAMED.sub(lambda link: f"[{titles.get(link[1], link[1])}]({link[1]}{link[2] or ''})", text)
    lines: list[str] = []
    for line in text.split("\n"):
        before = lines[-1] if lines else ""
        item = ITEM.match(line) and not ITEM.match(before) and not before.startswith(" ")
        row = line.startswith("|") and not before.startswith("|")
        if before.strip() and (item or row):
            lines.append("")
        lines.append(line)
    return "\n".join(lines)


def on_post_build(config: Any, **_: Any) -> None:
    """A warning, which a strict build fails at, for each page that a browser could not show without a network."""
    for path in sorted(Path(config["site_dir"]).rglob("*.html")):
        for target in sorted(set(FETCHED.findall(path.read_text(encoding="utf-8")))):
            log.warning("%s would fetch %s from another host", path.name, target)
