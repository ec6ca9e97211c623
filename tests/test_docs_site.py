"""The site: docs/commands.md is what the program says, every page has a place, nothing is fetched from elsewhere."""

import re
import sys
from pathlib import Path
from typing import Any, ClassVar

import yaml
from pydantic import Field

from manners.commands import COMMANDS
from manners.core.config import Settings
from tests.markdown import DOCS, ROOT, table
from tools import reference, site

CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def files_of(entries: list[Any]) -> list[str]:
    """Every file of a navigation, in order."""
    found: list[str] = []
    for entry in entries:
        for target in entry.values() if isinstance(entry, dict) else [entry]:
            found += files_of(target) if isinstance(target, list) else [target]
    return found


def test_the_command_reference_is_up_to_date():
    current = reference.PAGE.read_text(encoding="utf-8") == reference.text()
    assert current, f"docs/commands.md is not what the settings say; remake it with: {reference.COMMAND}"


def test_the_reference_has_every_command_and_no_path_of_this_machine():
    text = reference.PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r"^### (.+)$", text, re.M)) == {*COMMANDS, *reference.SHARED.values()}
    assert str(ROOT) not in text and str(Path.home()) + "/" not in text


def test_a_section_of_the_reference(monkeypatch):
    class Example(Settings):
        positional: ClassVar[str] = "data"

        data: str
        """A file, `a|b`, of *rows*."""
        rate: float = 1e-4
        flag: bool | None = None
        """Whether."""

    row = COMMANDS["sft"]
    monkeypatch.setattr(type(row), "load", lambda _: (Example, print))
    text = reference.section("example", row)
    assert text.startswith(f"### example\n\n{row.summary}\n\n`data` may be given as a bare word.\n")
    rows = {line.split(" | ")[0]: line for line in text.splitlines() if line.startswith("| `")}
    assert rows["| `data`"] == r"| `data` | *needed* | A file, `a\|b`, of \*rows\*. |"
    assert rows["| `rate`"] == "| `rate` | `0.0001` |  |"
    assert table(text, "Setting")["flag"] == ["`none`", "Whether."]


def test_defaults_are_written_as_they_are_typed():
    written = [reference.typed(value) for value in (None, True, 1e-05, 2.0, 3, "", ("a", "b"), [], f"{ROOT}/manners/x.jsonl")]
    assert written == ["none", "true", "1e-05", "2", "3", "none", "a,b", "none", "manners/x.jsonl"]
    assert reference.default(Field(default_factory=lambda: "x|y")) == r"`x\|y`"  # type: ignore[arg-type]


def test_every_page_has_one_place_in_the_navigation():
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    listed = files_of(CONFIG["nav"])
    assert len(set(listed)) == len(listed)
    assert set(listed) == pages, f"put {sorted(pages - set(listed))} into the nav of mkdocs.yml, take out {sorted(set(listed) - pages)}"


def test_modules_of_the_api_pages_exist():
    named = [name for path in (DOCS / "api").glob("*.md") for name in re.findall(r"^::: (\S+)$", path.read_text(encoding="utf-8"), re.M)]
    assert len(set(named)) == len(named) > 20
    assert all((ROOT / (name.replace(".", "/") + ".py")).is_file() for name in named)


def test_the_theme_fetches_nothing():
    assert CONFIG["theme"]["font"] is False
    assert any("iframe-worker" in name for name in CONFIG["extra"]["polyfills"]), "else the plugin offline adds a script from a CDN"
    assert not {"privacy", "social", "analytics"} & {
        name for plugin in CONFIG["plugins"] for name in ([plugin] if isinstance(plugin, str) else plugin)
    }
    assert not any(site.FETCHED.search(path.read_text(encoding="utf-8")) for path in (DOCS / "assets").iterdir())


def test_a_page_that_fetches_something_is_a_warning(tmp_path, caplog):
    (tmp_path / "a.html").write_text('<a href="https://example.org">there</a><img src="a.png">')
    site.on_post_build({"site_dir": str(tmp_path)})
    assert not caplog.records
    (tmp_path / "b.html").write_text('<script src="https://example.org/x.js"></script>')
    site.on_post_build({"site_dir": str(tmp_path)})
    assert [record.getMessage() for record in caplog.records] == ["b.html would fetch //example.org/x.js from another host"]


def test_lists_and_tables_get_the_empty_line_before_them():
    text = "A list:\n- one\n  more\n- two\n\n| a |\n|---|\nText\n| b |"
    assert site.prepared(text, {}) == "A list:\n\n- one\n  more\n- two\n\n| a |\n|---|\nText\n\n| b |"


def test_links_named_by_their_file_get_its_title():
    titles = dict(site.titled([{"Train": [{"SFT": "sft.md"}, {"Family": [{"DPO": "dpo.md"}]}]}]))
    assert titles == {"sft.md": "SFT", "dpo.md": "DPO"}
    text = site.prepared("[sft.md](sft.md), [dpo.md](dpo.md#losses), [here](sft.md), [x.md](x.md)", titles)
    assert text == "[SFT](sft.md), [DPO](dpo.md#losses), [here](sft.md), [x.md](x.md)"


def test_code_blocks_are_left_as_they_are():
    class Page:
        meta: ClassVar[dict[str, Any]] = {}

    text = "## A\nText\n- x\n\n```text\nText\n- x\n```\n"
    made = site.on_page_markdown(text, page=Page(), config=type("Config", (), {"nav": []}))
    assert made == "## A\nText\n\n- x\n\n```text\nText\n- x\n```\n"


def test_the_check_says_how_to_remake_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reference, "text", lambda: "new\n")
    monkeypatch.setattr(reference, "PAGE", tmp_path / "commands.md")
    monkeypatch.setattr(sys, "argv", ["reference", "--check"])
    assert reference.main() == 1 and reference.COMMAND in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["reference"])
    assert reference.main() == 0 and (tmp_path / "commands.md").read_text() == "new\n"
    monkeypatch.setattr(sys, "argv", ["reference", "--check"])
    assert reference.main() == 0
