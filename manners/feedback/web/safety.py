"""What stands between the network and a page: who may ask, from where, how much, and what a browser may do with the answer.

The texts on these pages come from models and strangers, and a page on localhost can be reached by any other page in the same browser.
So each request is held against four rules before anything reads it:

1. Its Host is one of ours. A stranger's name that was made to point to 127.0.0.1 (DNS rebinding) is not; a literal address cannot be
   rebound and is.
2. If it says where it comes from (Origin, Sec-Fetch-Site), that is this page and no other.
3. Its body is no longer than `most` bytes, told beforehand or counted on the way.
4. Its answer carries a content security policy that lets run only the page's own script, by its hash, lets nothing be fetched but from
   here, and lets no other page frame it.

Who asks is told by a bearer secret that the page keeps to itself; there is no cookie, so no other page can borrow one.
"""

import hashlib
import ipaddress
import json
from base64 import b64encode
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from starlette.exceptions import HTTPException

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

MOST_BYTES = 300_000
"""Of a body: a demonstration of the greatest length in characters of four bytes, and some."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def policy(scripts: Sequence[str], styles: Sequence[str]) -> str:
    """A content security policy under which only these scripts and styles count, and nothing is loaded from anywhere."""
    rules = {
        "default-src": "'none'",
        "script-src": " ".join(hashed(text) for text in scripts) or "'none'",
        "style-src": " ".join(hashed(text) for text in styles) or "'none'",
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def hashed(text: str) -> str:
    """How a policy names an inline script or style."""
    return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


CLOSED = policy((), ())
HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Whether a server bound to this host is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """The rules above around an ASGI app. `host` is what the server is bound to, `names` are other names by which it may be called."""

    def __init__(self, app: App, host: str, names: Sequence[str] = (), most: int = MOST_BYTES):
        self.app, self.most, self.open = app, most, not is_loopback(host)
        self.names = {*LOOPBACK, host.lower(), *(name.lower() for name in names)}

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        sending = _Sending(send)
        if refusal := self.refusal(headers):
            await refuse(sending, *refusal)
            return
        await self.app(scope, _Counted(receive, self.most), sending)

    def refusal(self, headers: Sequence[tuple[str, str]]) -> tuple[int, str] | None:
        """Status and reason, if a request with these headers is not to be heard."""
        hosts = [value for name, value in headers if name == "host"]
        if len(hosts) != 1 or not self.is_ours(hosts[0]):
            return 421, "this server does not go by that name; use the address that was printed, or name it with names="
        found = dict(headers)
        origin = found.get("origin")
        if origin is not None and origin.lower() not in (f"http://{hosts[0]}".lower(), f"https://{hosts[0]}".lower()):
            return 403, "requests of other pages are refused"
        if found.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            # a link on another page may lead here, which only opens the page; anything else of other pages is refused
            leads = found.get("sec-fetch-mode") == "navigate" and found.get("sec-fetch-dest") == "document"
            if not leads:
                return 403, "requests of other pages are refused"
        length = found.get("content-length")
        if length is not None and (not length.isdecimal() or int(length[:18]) > self.most):
            return 413, f"a request may have {self.most} bytes"
        return None

    def is_ours(self, host: str) -> bool:
        """Whether a Host header names this server: a name of ours, or a literal address where it is bound to more than this machine."""
        if any(letter in host for letter in "/\\@?# \t,"):
            return False
        name, _, port = host.partition("]") if host.startswith("[") else host.partition(":")
        port = port.removeprefix(":")
        if port and not port.isdecimal():
            return False
        name = name.removeprefix("[").lower().rstrip(".")
        if name in self.names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return self.open


class _Counted:
    """`receive`, counting the bytes of the body."""

    def __init__(self, receive: Receive, most: int):
        self.receive, self.most, self.left = receive, most, most

    async def __call__(self) -> Message:
        message = await self.receive()
        self.left -= len(message.get("body", b""))
        if self.left < 0:
            raise HTTPException(413, f"a request may have {self.most} bytes")
        return message


class _Sending:
    """`send`, with the headers that every answer has."""

    def __init__(self, send: Send):
        self.send = send

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            given = {name.lower() for name, _ in message.get("headers", [])}
            added = {**HEADERS, "content-security-policy": CLOSED}
            more = [(name.encode(), value.encode()) for name, value in added.items() if name.encode() not in given]
            message = {**message, "headers": [*message.get("headers", []), *more]}
        await self.send(message)


async def refuse(send: Send, status: int, why: str) -> None:
    """Answer with a sentence and no more."""
    body = json.dumps({"error": why}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
