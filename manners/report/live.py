"""`manners watch`: the page of `manners report`, served while the run is still going.

    manners watch runs/quickstart

The page stands at an address of this machine alone, and who asks under another name is refused (`feedback.web.safety`). It is made anew
when files change, no more often than `every` seconds; between, the browser is told how far the running stages are, from the last lines of
their metrics.jsonl. Nothing in the run's folder is written. Ctrl-C ends it.
"""

import json
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, ClassVar

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BeforeValidator, Field

from manners.core.config import Settings, as_list
from manners.core.console import console
from manners.core.errors import InputError
from manners.feedback.web import serving
from manners.feedback.web.safety import Guard, is_loopback
from manners.report import assets
from manners.report.page import render
from manners.report.read import Row, read_object, read_runs
from manners.report.story import number

READ = (
    "summary.json",
    "plan.json",
    "settings.json",
    "manifest.json",
    "answers.jsonl",
    "results.json",
    "curve.json",
    "effects.json",
    "report.json",
)
"""Files whose change makes the page anew at once; metrics.jsonl grows at every step and does so every `every` seconds."""
TAIL = 65_536
"""Bytes at the end of metrics.jsonl that are read for the progress."""


class WatchSettings(Settings):
    """Settings of `manners watch`."""

    positional: ClassVar[str] = "runs"
    plural: ClassVar[bool] = True

    runs: Annotated[list[str], BeforeValidator(as_list)] | None = None
    """Folders: runs, finished evaluations, or folders that hold some. None is runs/quickstart."""
    host: str = "127.0.0.1"
    """Address to serve at; only this machine's own."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8766
    """0 takes a free one."""
    every: Annotated[float, Field(ge=0.5)] = 10.0
    """Seconds between two pages at the least."""


class Watched:
    """The folders that are watched: their page, made when it is asked for and they have changed, and how far they are."""

    def __init__(self, folders: Sequence[str], every: float):
        self.folders, self.every = [Path(folder) for folder in folders], every
        self.lock = threading.Lock()
        self.text, self.stamp, self.made = "", "", 0.0

    def files(self) -> list[Path]:
        """What the page is made of."""
        return [place for folder in self.folders for name in (*READ, "metrics.jsonl") for place in _found(folder, name)]

    def version(self) -> str:
        """Another text whenever a file has changed; growing metrics count once in `every` seconds."""
        parts = []
        for place in self.files():
            try:
                told = place.stat()
            except OSError:
                continue
            grows = place.name == "metrics.jsonl"
            parts.append(f"{place} {int(told.st_mtime / self.every)}" if grows else f"{place} {told.st_mtime_ns} {told.st_size}")
        return assets.hashed("\n".join(parts))

    def page(self) -> str:
        """The page as the files are now, or as they were at most `every` seconds ago."""
        with self.lock:
            stamp = self.version()
            if not self.text or (stamp != self.stamp and time.monotonic() - self.made >= self.every):
                try:
                    self.text = render(read_runs(self.folders), scripts=True, live=True)
                except InputError as error:
                    self.text = _waiting(str(error))
                self.stamp, self.made = stamp, time.monotonic()
            return self.text

    def state(self) -> Row:
        """What the browser asks every second and a half."""
        stages = [told for folder in self.folders for told in running(folder)]
        due = time.monotonic() - self.made >= self.every
        said = f"{len(stages)} running" if stages else "nothing is running; the page follows the files"
        return {"version": self.version() if due else self.stamp, "said": f"{time.strftime('%H:%M:%S')}, {said}.", "stages": stages}


def _found(folder: Path, name: str) -> list[Path]:
    return [place for pattern in (name, f"*/{name}", f"*/*/{name}", f"*/seed-*/*/{name}") for place in sorted(folder.glob(pattern))]


def running(folder: Path) -> list[Row]:
    """The stages that have begun and not finished, with what their last record says: name, share that is done (None: unknown), sentence."""
    found = []
    for place in dict.fromkeys(place.parent for place in _found(folder, "settings.json")):
        if (place / "manifest.json").exists():
            continue
        asked = read_object(place / "settings.json").get("settings")
        record = last_record(place / "metrics.jsonl")
        told = [f"step {record['step']:,}"] if isinstance(record.get("step"), int) else []
        told += [f"{key} {record[key]:.3f}" for key in ("loss", "score", "kl_seq") if number(record.get(key))]
        share = done(record, asked if isinstance(asked, dict) else {})
        found.append({"name": place.relative_to(folder).as_posix(), "share": share, "said": ", ".join(told) or "has begun"})
    return found


def done(record: Row, asked: Row) -> float | None:
    """Which share of a stage is done, from its last record and its settings."""
    if number(record.get("epoch")) and number(asked.get("epochs")) and asked["epochs"]:
        return min(1.0, record["epoch"] / asked["epochs"])
    if number(record.get("step")) and number(asked.get("episodes")) and number(asked.get("rollout_size")) and asked["episodes"]:
        return min(1.0, record["step"] * asked["rollout_size"] / asked["episodes"])
    return None


def last_record(path: Path) -> Row:
    """The last whole line of a file of records, {} if there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            lines = file.read().split(b"\n")
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            return record
    return {}


def _waiting(why: str) -> str:
    """A page for a folder that holds nothing yet: it comes back by itself."""
    from markupsafe import escape

    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="3">'
        f"<title>waiting</title></head><body><p>Nothing to show yet: {escape(why)}</p></body></html>"
    )


def make_app(watched: Watched, host: str) -> Guard:
    """The application behind its rules: the page and its state, nothing else."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    rules = assets.policy([assets.library(), assets.script()], live=True) + "; frame-ancestors 'none'"

    @app.get("/")
    def home() -> HTMLResponse:
        return HTMLResponse(watched.page(), headers={"content-security-policy": rules})

    @app.get("/state")
    def state() -> JSONResponse:
        return JSONResponse(watched.state())

    return Guard(app, host)


def watch(settings: WatchSettings) -> dict[str, Any]:
    """Serve the page until Ctrl-C. Raises InputError for a folder that is not there and an address that is not this machine's own."""
    folders = settings.runs or ["runs/quickstart"]
    for folder in folders:
        if not Path(folder).is_dir():
            raise InputError(f"there is no folder '{folder}' to watch: give the folder of a run that has begun.")
    if not is_loopback(settings.host):
        raise InputError(f"host={settings.host} would show the run to others, and the page asks nobody who they are; use 127.0.0.1.")
    watched = Watched(folders, settings.every)
    with closing(serving.bound(settings.host, settings.port)) as sock:
        address = serving.address(settings.host, sock)
        console.print(f"watching {', '.join(folders)} at {address}  (Ctrl-C ends it)", soft_wrap=True)
        serving.serve(make_app(watched, settings.host), sock)
    return {"address": address, "runs": folders}
