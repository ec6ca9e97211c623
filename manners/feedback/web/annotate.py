"""`manners annotate`: people judge answers, or write them, in the browser.

    manners annotate data=answers.jsonl mode=choose out=votes/helpful guidelines=guidelines.md

serves one page until Ctrl-C and then writes `votes.jsonl` and `summary.json` beside the store (docs/annotation.md). The same command
again goes on where everybody was. With serve=false it writes the files and leaves.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from socket import socket
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Field

from manners.core.config import Settings
from manners.core.console import console
from manners.core.errors import InputError
from manners.feedback import ballots
from manners.feedback.asking import Desk, Plan
from manners.feedback.items import ASPECTS, SCALE, Mode, Read, check_aspects, read_items
from manners.feedback.making import as_names
from manners.feedback.store import Store, Writer
from manners.feedback.web import serving
from manners.feedback.web.app import Door, Site, guarded, make_app
from manners.feedback.web.safety import Guard

Names = Annotated[list[str], BeforeValidator(as_names)]
LONGEST_GUIDELINES = 200_000
TITLES = {
    "choose": "Which answer is better?",
    "rank": "Rank the answers, the best first",
    "best": "Which answer is the best?",
    "rate": "How good is the answer?",
    "accept": "Is this answer acceptable?",
    "write": "Write the answer that should be given",
}


class AnnotateSettings(Settings):
    """Settings of `manners annotate`."""

    data: str | None = None
    """File of what is judged (JSONL, JSON, CSV, Parquet)."""
    mode: Mode | None = None
    """choose one of two, rank several, best of several, rate by aspects, accept or reject, write or edit an answer."""
    out: str
    """Folder of the votes; the same folder goes on."""
    map: str | None = None
    """Names of columns, as in prompt=query,a=answer 1,b=answer 2."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """Use the first so many rows only."""
    gold: str | None = None
    """File of questions with a known answer in the column gold, which everybody is asked; data may hold some itself."""
    guidelines: str | None = None
    """Markdown file that is shown beside."""
    title: str | None = None
    """Question at the head of the page; none is a plain one for the mode."""
    aspects: Names | None = None
    """What is rated with mode=rate, by commas; none is helpfulness, honesty, correctness, complexity and verbosity."""
    strength: bool = False
    """With mode=choose: by how much, in three steps, becomes the pair's margin."""
    annotators: Names | None = None
    """Who may judge, by commas; none lets anybody in by a name of their choice."""
    tokens: bool | None = None
    """Links hold a secret, each annotator's their own. none is true where others can reach the page."""
    overlap: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share of the items that everybody judges."""
    each: Annotated[int, Field(ge=1)] = 1
    """How many people judge each of the others."""
    shuffled: bool = True
    """Items come in an order of each person's own; false keeps the file's. The places of answers are always drawn."""
    seed: int = 0
    """Of what is drawn."""
    host: str = "127.0.0.1"
    """Address to serve at; another one than this machine's own needs tokens."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8765
    """0 takes a free one."""
    names: Names | None = None
    """Other host names by which the page is reached, by commas."""
    serve: bool = True
    """false only writes the votes that the folder holds."""


def annotate(settings: AnnotateSettings) -> dict[str, Any]:
    """Serve the page until it is stopped, write the votes, and return the summary.

    Raises InputError for rows of another shape, a folder with votes of another mode or aspects, an address that cannot be served, and a
    page that is open to others without tokens.
    """
    out = Path(settings.out)
    if not settings.serve:
        store = Store(out)
        try:
            return told(ballots.export(store, out), out)
        finally:
            store.close()
    with opened(settings) as page:
        say(settings, page)
        serving.serve(page.app, page.sock)
        page.site.writer.close()
        return told(ballots.export(page.site.desk.store, out), out)


class Page(NamedTuple):
    """A page that is ready to be served."""

    site: Site
    app: Guard
    sock: socket
    read: Read
    links: dict[str, str]


@contextmanager
def opened(settings: AnnotateSettings) -> Iterator[Page]:
    """The page of these settings, its store locked and its address bound; closed again on leaving."""
    if settings.data is None or settings.mode is None:
        raise InputError("annotate needs data=FILE and mode=choose|rank|best|rate|accept|write; serve=false only writes what is there.")
    out, secret = Path(settings.out), serving.check_open(settings.host, settings.tokens)
    aspects = check_aspects(settings.aspects or ASPECTS)
    about = {
        "title": settings.title or TITLES[settings.mode],
        "mode": settings.mode,
        "aspects": list(aspects),
        "scale": list(SCALE),
        "strength": settings.strength,
        "guidelines": guidelines_of(settings.guidelines),
    }
    read = read_items(settings.data, settings.mode, columns=settings.map, rows=settings.rows)
    if settings.gold is not None:
        read.items += read_items(settings.gold, settings.mode, columns=settings.map, gold=True).items
    people = tuple(settings.annotators) if settings.annotators else None
    rated = aspects if settings.mode == "rate" else ()
    plan = Plan(settings.seed, settings.overlap, settings.each, settings.shuffled, rated, people)
    with serving.only_one(out), closing(Store(out, settings.mode)) as store:
        desk, door, found = prepared(store, plan, read, out, secret)
        with closing(serving.bound(settings.host, settings.port)) as sock, closing(Writer(store, desk.load)) as writer:
            site = Site(desk, writer, "annotate", door, about)
            yield Page(site, guarded(make_app(site), settings.host, settings.names or ()), sock, read, found)


def prepared(store: Store, plan: Plan, read: Read, out: Path, secret: bool) -> tuple[Desk, Door, dict[str, str]]:
    """Items and people put into the store, and the desk over it; how one comes in, and the links' secrets by name."""
    aspects = ",".join(plan.aspects)
    known = store.meta("aspects")
    if known is not None and known != aspects:
        raise InputError(f"{store.path} holds ratings of {known}, not of {aspects}; give these a folder of their own with out=.")

    def fill() -> None:
        store.set_meta("aspects", aspects)
        store.set_meta("seed", str(plan.seed))
        store.add_items(read.items)

    store.transaction(fill)
    desk = Desk(store, plan, [item.key for item in read.items])
    if not secret:
        return desk, Door(), {}
    found = serving.admitted(desk, out, plan.people)
    return desk, Door(found.get(""), personal=plan.people is not None), found


def guidelines_of(name: str | None) -> str:
    """The text of the guidelines, "" if there are none. Raises InputError for a file that cannot be read or is too long."""
    if name is None:
        return ""
    try:
        text = Path(name).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"the guidelines {name} are not UTF-8 text.") from None
    except OSError as error:
        raise InputError(f"the guidelines {name} cannot be read ({error.strerror}).") from None
    if len(text) > LONGEST_GUIDELINES:
        raise InputError(f"the guidelines {name} have {len(text):,} characters; people read fewer than {LONGEST_GUIDELINES:,}.")
    return text


def say(settings: AnnotateSettings, page: Page) -> None:
    """Print what is asked and where."""
    read, base = page.read, serving.address(settings.host, page.sock)
    gold = sum(item.gold is not None for item in read.items)
    console.print(f"{settings.data}: {len(read.items) - gold:,} items to judge, {gold} gold questions, mode={settings.mode}")
    for why, count in read.refused.most_common():
        console.print(f"  left out: {count:,} x {why} (first in {read.unit} {read.first[why]})")
    console.print(f"serving {base}  (Ctrl-C stops and writes the votes)", soft_wrap=True)
    serving.show_links(base, page.links)


def told(summary: dict[str, Any], out: Path) -> dict[str, Any]:
    """Print the summary; return it."""
    console.print(
        f"{out / summary['file']}: {summary['votes']:,} votes on {summary['judged']:,} of {summary['items']:,} items, "
        f"{summary['judged_by_several']:,} of them judged by several; {summary['skipped']} skipped, {summary['undone']} taken back",
        soft_wrap=True,
    )
    for name, one in summary["annotators"].items():
        gold = f", right in {100 * one['gold']['accuracy']:.0f} % of {one['gold']['n']} gold questions" if one["gold"] else ""
        time = f", {one['median_seconds']:.1f} s each (median)" if one["median_seconds"] is not None else ""
        console.print(f"  {name}: {one['votes']:,} votes{time}{gold}", soft_wrap=True)
    for flag in summary["flags"]:
        console.print(f"  look at this: {flag}", style="yellow", soft_wrap=True)
    return summary
