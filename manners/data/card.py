"""`manners data card`: what a file of rows is made of, as JSON and as a page. docs/cleaning.md.

One pass. Held in memory: 8 bytes of hash and some bytes of lengths a row, and the names of clusters, sources and licences.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field
from rich.console import Console

from manners.core import files
from manners.core.chance import stream_of, uniform
from manners.core.config import Settings
from manners.data import rules
from manners.data.formats import parse_map
from manners.data.stream import LONGEST, ORIGIN, Faults, Reader, answer_texts, counted_as, prompt_text

NAMES = 100_000
"""Different clusters, sources and the like that are counted by name; rows of further ones are counted together."""
LISTED = 20
FIRST_BIN = 16
"""Greatest length of a histogram's first bin; each further one ends at twice the length."""
LETTERS = 20
"""Letters a text must have for its language to be judged."""
OTHERS, NOT_SAID = "(others)", "(not said)"


class CardSettings(Settings):
    """Settings of `manners data card`."""

    positional: ClassVar[str] = "data"

    data: str
    """File of rows of any shape, or hub data set."""
    tokens: str | None = None
    """Model whose tokenizer counts tokens beside words. None counts words alone."""
    languages: Annotated[int, Field(ge=0)] = 300
    """Rows, drawn at random, whose language is told; 0 does not look."""
    seed: int = 0
    """Which rows those are."""
    out: str | None = None
    """Page to write: HTML if it ends in .html, else Markdown; the same as JSON goes beside it."""
    map: str | None = None
    """Column map for rows of an unknown shape."""
    max_line: Annotated[int, Field(ge=1)] = LONGEST
    """Bytes of the longest line that is read."""


def card(settings: CardSettings, page_of: Callable[[Mapping[str, Any]], str] | None = None) -> dict[str, Any]:
    """Read the file once; print, write if asked to, and return what it is made of. `page_of` makes the page that is written.

    Raises InputError for a file that cannot be read or of which no row can be used.
    """
    if settings.out:
        files.check_target(settings.out)
    faults = Faults()
    reader = Reader(settings.data, faults, parse_map(settings.map) if settings.map else None, settings.max_line)
    count = _token_counter(settings.tokens)
    units = ("words", "tokens") if count else ("words",)
    lengths = {unit: {part: array("L") for part in ("prompt", "answer")} for unit in units}
    named: dict[str, Counter[str]] = {of: Counter() for of in ORIGIN}
    turns: Counter[int] = Counter()
    seen: set[int] = set()
    sample: list[tuple[float, str]] = []
    key = stream_of(settings.seed, "card")
    rows = groups_read = duplicates = 0
    for _, _, groups in reader:
        rows += 1
        for group in groups:
            groups_read += 1
            prompt, answers = prompt_text(group), answer_texts(group)
            for unit, measure in zip(units, (lambda text: len(text.split()), count), strict=False):
                assert measure is not None
                if prompt:
                    lengths[unit]["prompt"].append(measure(prompt))
                lengths[unit]["answer"].extend(map(measure, answers))
            own = {"source": group.prompt.source, "cluster": group.prompt.cluster}
            for of, counter in named.items():
                name = counted_as(own.get(of) or group.columns.get(of)) or NOT_SAID
                counter[name if name in counter or len(counter) < NAMES else OTHERS] += 1
            turns[len(group.prompt.messages)] += 1
            digest = int.from_bytes(
                blake2b(rules.normal([prompt, *answers]).encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big"
            )
            duplicates += digest in seen
            seen.add(digest)
            _draw(sample, settings.languages, uniform(key, groups_read), (answers or [prompt])[0])
    report = {
        "data": settings.data,
        "kind": reader.kind,
        "shape": reader.converter.shape,
        "bytes": Path(settings.data).stat().st_size if Path(settings.data).is_file() else None,
        "rows": rows,
        "groups": groups_read,
        "totals": {unit: {part: sum(v) for part, v in parts.items()} for unit, parts in lengths.items()},
        "tokenizer": settings.tokens,
        "lengths": {unit: {part: _quantiles(v) for part, v in parts.items() if len(v)} for unit, parts in lengths.items()},
        "histograms": {unit: {part: _histogram(v) for part, v in parts.items() if len(v)} for unit, parts in lengths.items()},
        "prompt_turns": {str(n): turns[n] for n in sorted(turns)},
        **{("made_by" if of == "made_by" else f"{of}s"): dict(counter.most_common()) for of, counter in named.items()},
        "languages": _languages(sample),
        "duplicates": {"exact": duplicates, "share": duplicates / max(groups_read, 1)},
        "refused": faults.report(),
    }
    page = as_page(report)
    if settings.out:
        files.write_text(settings.out, page_of(report) if page_of else page)
        files.write_json(Path(settings.out).with_suffix(".json"), report)
    Console(highlight=False, markup=False, emoji=False).print(page, soft_wrap=True)
    return report


def _token_counter(model: str | None):
    """A function from text to its number of tokens, without special ones; None if no model is named."""
    if model is None:
        return None
    from manners.data.inspect import tokenizer_of

    tokenizer = tokenizer_of(model)
    return lambda text: len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _draw(sample: list[tuple[float, str]], size: int, lot: float, text: str) -> None:
    """Keep the texts with the `size` smallest lots: a random sample of a stream whose length nobody knows."""
    if len(sample) < size:
        sample.append((lot, text[:2000]))
        sample.sort()
    elif size and lot < sample[-1][0]:
        sample[-1] = (lot, text[:2000])
        sample.sort()


def _languages(sample: list[tuple[float, str]]) -> dict[str, Any]:
    if not sample:
        return {"judged": 0, "rows": {}}
    from manners.data.language import detected

    said = [detected(text) if sum(map(str.isalpha, text)) >= LETTERS else None for _, text in sample]
    found = Counter(code for code in said if code)
    return {"judged": found.total(), "too_short": len(said) - found.total(), "rows": dict(found.most_common())}


def _quantiles(values: array) -> dict[str, float]:
    least, median, most, p90, p99 = np.percentile(np.frombuffer(values, dtype=f"u{values.itemsize}"), [0, 50, 100, 90, 99])
    return {"least": int(least), "median": float(median), "p90": float(p90), "p99": float(p99), "greatest": int(most)}


def _histogram(values: array) -> list[dict[str, int]]:
    """How many lengths lie in each of the bins 0 to 16, 17 to 32, 33 to 64 and so on, up to the greatest."""
    lengths = np.frombuffer(values, dtype=f"u{values.itemsize}")
    edges = [-1, FIRST_BIN]
    while edges[-1] < lengths.max():
        edges.append(2 * edges[-1])
    counts = np.histogram(lengths, bins=[edge + 0.5 for edge in edges])[0]
    return [{"from": low + 1, "to": high, "rows": int(n)} for low, high, n in zip(edges, edges[1:], counts, strict=False)]


def as_page(report: Mapping[str, Any]) -> str:
    """The card as Markdown."""
    told = [f"# {Path(report['data']).name}", ""]
    size = "" if report["bytes"] is None else f", {report['bytes']:,} bytes"
    told += [
        f"{report['rows']:,} rows of {report['kind']} (shape `{report['shape']}`){size}; {report['refused']['rows']:,} more cannot be used."
    ]
    told += ["", "| | total | least | median | 90 % up to | 99 % up to | greatest |", "|---|---:|---:|---:|---:|---:|---:|"]
    for unit, parts in report["lengths"].items():
        for part, q in parts.items():
            cells = [report["totals"][unit][part], q["least"], q["median"], q["p90"], q["p99"], q["greatest"]]
            told.append(f"| {unit} of {part} | " + " | ".join(f"{cell:,.0f}" for cell in cells) + " |")
    for title, key in (("Clusters", "clusters"), ("Sources", "sources"), ("Licences", "licenses"), ("Made by", "made_by")):
        names = list(report[key].items())
        more = f", and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
        told += ["", f"**{title}**: " + ", ".join(f"{name} {n:,}" for name, n in names[:LISTED]) + more]
    languages = report["languages"]
    if languages["judged"]:
        said = ", ".join(f"{code} {n / languages['judged']:.1%}" for code, n in list(languages["rows"].items())[:LISTED])
        told += ["", f"**Languages** (of {languages['judged']:,} rows drawn at random): {said}"]
    again = report["duplicates"]
    told += ["", f"**Exact duplicates**: {again['exact']:,} ({again['share']:.2%})"]
    if report["refused"]["rows"]:
        why = ", ".join(f"{why} {n:,}" for why, n in report["refused"]["why"].items())
        first = report["refused"]["first"][0]
        told += ["", f"**Not usable**: {why}; the first is row {first['row']}"]
    return "\n".join(told) + "\n"
