"""Starting a page: the store is locked, the address bound and printed, and on Ctrl-C what was said is written out."""

import secrets
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn
from filelock import FileLock, Timeout

from manners.core import files
from manners.core.console import console
from manners.core.errors import InputError
from manners.feedback.asking import Desk
from manners.feedback.web.safety import is_loopback

LINKS = "links.json"


@contextmanager
def only_one(out: Path) -> Iterator[None]:
    """Hold the folder's lock: two servers on one store would each know half of it. Raises InputError if another holds it."""
    with files.disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(str(out / "serving.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"{out} is in use: another page serves its votes; stop that one, or choose another folder with out=.") from None
    try:
        yield
    finally:
        lock.release()


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens at the address. Raises InputError if it is taken or not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        found.listen(256)  # who comes before the server is up waits in line
    except (OSError, OverflowError) as error:
        found.close()
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{host}:{port} cannot be served ({why}); choose another port with port=, 0 takes a free one.") from None
    return found


def links(out: Path, names: Sequence[str]) -> dict[str, str]:
    """Name -> secret of their link ("" is everybody's), the same at every start: they are kept in a file that only its owner reads."""
    path = out / LINKS
    kept: dict[str, str] = files.read_json(path) if path.is_file() else {}
    found = kept | {name: secrets.token_urlsafe(24) for name in names if name not in kept}
    if found != kept:
        with files.disk_errors(path):
            path.touch(mode=0o600)
        files.write_json(path, found)
        path.chmod(0o600)
    return {name: found[name] for name in names}


def admitted(desk: Desk, out: Path, people: Sequence[str] | None) -> dict[str, str]:
    """The links' secrets by name: everybody's own, known to the store, or one for all ("") where anybody may come."""
    found = links(out, list(people or ("",)))

    def admit() -> None:
        for name, secret in found.items():
            if name:
                desk.add_session(secret, desk.known(name))

    desk.store.transaction(admit)
    return found


def address(host: str, sock: socket.socket) -> str:
    """The page's address as one writes it into a browser."""
    shown = "127.0.0.1" if host == "0.0.0.0" else "[::1]" if host == "::" else f"[{host}]" if ":" in host else host
    return f"http://{shown}:{sock.getsockname()[1]}/"


def serve(app: Any, sock: socket.socket) -> None:
    """Answer until Ctrl-C or SIGTERM."""
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, lifespan="off", timeout_graceful_shutdown=3)
    before = signal.getsignal(signal.SIGTERM)
    with suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[sock])
    finally:
        with suppress(ValueError):
            signal.signal(signal.SIGTERM, before)


def check_open(host: str, tokens: bool | None) -> bool:
    """Whether links need a secret. Raises InputError for a page that is open to others without one."""
    if tokens is None:
        return not is_loopback(host)
    if not tokens and not is_loopback(host):
        raise InputError(f"host={host} lets others reach the page, so links must hold a secret; leave tokens=false out.")
    return tokens


def show_links(base: str, found: dict[str, str]) -> None:
    """Print where people go."""
    for name, secret in found.items():
        console.print(f"  {name or 'everybody'}: {base}#{secret}", soft_wrap=True)
