"""`manners data card`: what a file of rows is made of, as one HTML page that opens anywhere; `data.card` does the counting.

The page holds no script and loads nothing: names out of the file are escaped by the template engine, and a content policy forbids the rest.
"""

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from manners.data import card as counted
from manners.data.card import LISTED, CardSettings

PARTS = (("Clusters", "clusters"), ("Sources", "sources"), ("Licences", "licenses"), ("Made by", "made_by"))


def card(settings: CardSettings) -> dict[str, Any]:
    """The card; its page is HTML where `out` ends in .html. Raises InputError as `data.card.card` does."""
    html = Path(settings.out or "").suffix.lower() in (".html", ".htm")
    return counted.card(settings, as_html if html else None)


def as_html(report: Mapping[str, Any]) -> str:
    """The page of a card."""
    environment = Environment(loader=PackageLoader("manners.report", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    style = resources.files("manners.report").joinpath("style.css").read_text(encoding="utf-8")
    languages = report["languages"]
    parts = [(title, *bars(report[key], report["groups"])) for title, key in PARTS]
    if languages["judged"]:
        told = f"Languages, of {languages['judged']:,} rows drawn at random"
        parts.append((told, *bars(languages["rows"], languages["judged"])))
    histograms = [
        (f"{unit.capitalize()} of {part}", *bars({span(row): row["rows"] for row in rows}, sum(row["rows"] for row in rows), len(rows)))
        for unit, kinds in report["histograms"].items()
        for part, rows in kinds.items()
    ]
    text = environment.get_template("card.jinja").render(
        style=Markup(style), name=Path(report["data"]).name, report=report, parts=parts, histograms=histograms
    )
    return text.encode("utf-8", "replace").decode("utf-8")


def span(row: Mapping[str, int]) -> str:
    return f"{row['from']:,} to {row['to']:,}"


def bars(counts: Mapping[str, int], total: int, listed: int = LISTED) -> tuple[Sequence[dict[str, Any]], int]:
    """Names with their counts and shares of all; and how many names are not listed."""
    rows = [{"name": name, "rows": n, "share": n / max(total, 1)} for name, n in list(counts.items())[:listed]]
    return rows, max(len(counts) - listed, 0)
