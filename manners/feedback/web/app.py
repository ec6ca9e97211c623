"""The application behind a page: a handful of routes, each a question to the desk, answered after the store's commit.

    GET  /            the page
    GET  /api/hello   what the page is about, and how one comes in
    POST /api/enter   a name (and the link's secret, where one is needed) -> a session's secret
    GET  /api/next    what to judge now
    POST /api/vote    a verdict -> its number, and what is next
    POST /api/undo    take the last one back

All but the first three want `Authorization: Bearer SECRET`. There is no route that takes a path or serves a file.
"""

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from manners.core.errors import MannersError
from manners.feedback.asking import Desk, Person
from manners.feedback.store import Refused, Writer
from manners.feedback.web.safety import Guard, policy

HERE = Path(__file__).parent
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Door:
    """How one comes in. `shared` is a secret that everybody's link holds (None: none is needed), `personal` whether each person has a
    link of their own, so that nobody may enter by a name."""

    shared: str | None = None
    personal: bool = False


@dataclass(frozen=True, slots=True)
class Site:
    """What an application is made of. `about` is told to the browsers of those who are in."""

    desk: Desk
    writer: Writer
    page: str
    door: Door = field(default_factory=Door)
    about: Mapping[str, Any] = field(default_factory=dict)

    async def do(self, work: Callable[[], T]) -> T:
        """Have something done in the writer's thread, and wait until it is on the disk."""
        return await asyncio.wrap_future(self.writer.submit(work))

    async def as_person(self, request: Request, work: Callable[[Person], T]) -> T:
        """The same for whoever asks. Raises Refused for who is not in."""
        secret = secret_of(request)
        return await self.do(lambda: work(self.desk.person(secret)))


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Enter(_Body):
    """A request to come in."""

    name: str = Field(max_length=200)
    secret: str | None = Field(None, max_length=200)


class Voted(_Body):
    """A verdict on what lies before one. `key` is the request's own: the same again is the same vote. `seconds` is the time on it."""

    item: int
    key: str
    verdict: dict[str, Any]
    seconds: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] | None = None


class Undo(_Body):
    """A request to take the last vote back."""

    key: str


def secret_of(request: Request) -> str:
    """What the browser shows. Raises Refused."""
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secret:
        raise Refused(401, "enter first")
    return secret


def assembled(body: str, scripts: Sequence[str], styles: Sequence[str] = ("page.css",)) -> tuple[str, str]:
    """One page out of files of this folder, scripts and styles inline, and the policy that lets these run and nothing else."""
    # between script tags "</script" would end the script; the files hold none, and a test says so
    script = "\n".join((HERE / name).read_text(encoding="utf-8") for name in scripts)
    style = "\n".join((HERE / name).read_text(encoding="utf-8") for name in styles)
    page = (HERE / body).read_text(encoding="utf-8").replace("/*STYLE*/", style).replace("/*SCRIPT*/", script)
    return page, policy((script,), (style,))


def make_app(site: Site) -> FastAPI:
    """The application; `guarded` puts it behind the rules of `safety`."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    page, rules = assembled(f"{site.page}.html", ("text.js", "common.js", f"{site.page}.js"))

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        return JSONResponse({"error": str(error)}, error.status)

    @app.exception_handler(MannersError)
    async def failed(request: Request, error: MannersError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 503)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "the request"
        return JSONResponse({"error": f"{where[:100]}: {first['msg']}"[:300]}, 422)

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code)

    @app.get("/")
    async def home() -> HTMLResponse:
        return HTMLResponse(page, headers={"content-security-policy": rules})

    @app.get("/api/hello")
    async def hello() -> dict[str, Any]:
        return {"title": site.about.get("title", ""), "secret": site.door.shared is not None, "personal": site.door.personal}

    @app.post("/api/enter")
    async def enter(body: Enter) -> dict[str, Any]:
        if site.door.personal:
            raise Refused(403, "each person has a link of their own; open yours")
        if site.door.shared is not None and not secrets.compare_digest((body.secret or "").encode(), site.door.shared.encode()):
            raise Refused(401, "this needs the whole link that was sent to you")
        person, secret = await site.do(lambda: site.desk.enter(body.name))
        return {"session": secret, "name": person.name}

    @app.get("/api/next")
    async def following(request: Request) -> dict[str, Any]:
        return await site.as_person(request, lambda who: {"name": who.name, "about": dict(site.about), **site.desk.next(who)})

    @app.post("/api/vote")
    async def vote(request: Request, body: Voted) -> dict[str, Any]:
        return await site.as_person(request, lambda who: site.desk.vote(who, body.item, body.key, body.verdict, body.seconds))

    @app.post("/api/undo")
    async def undo(request: Request, body: Undo) -> dict[str, Any]:
        return await site.as_person(request, lambda who: site.desk.undo(who, body.key))

    return app


def guarded(app: FastAPI, host: str, names: Sequence[str] = ()) -> Guard:
    """The application as it is served."""
    return Guard(app, host, names)
