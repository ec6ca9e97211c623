"""Whether the hub can be reached, asked before its libraries are: without a network each try of theirs hangs for most of a minute."""

import contextlib
import functools
import os
import socket
import threading
import urllib.parse
import urllib.request

HUB = "https://huggingface.co"
SECONDS = 3.0
"""How long an answer is waited for."""


def silent_hub() -> str:
    """Host and port of the hub (or of the proxy before it) if it takes no connection within SECONDS, else an empty string.

    Each address is tried once a process.
    """
    host, port = _address()
    return "" if _answers(host, port) else f"{host}:{port}"


def _address() -> tuple[str, int]:
    """Host and port of the first machine on the way to the hub: the proxy if one is set, else the hub itself."""
    url = os.environ.get("HF_ENDPOINT") or HUB
    parts = urllib.parse.urlsplit(url if "//" in url else f"//{url}")
    proxy = urllib.request.getproxies().get(parts.scheme or "https")
    if proxy and parts.hostname and not urllib.request.proxy_bypass(parts.hostname):
        parts = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
    return parts.hostname or "huggingface.co", parts.port or (80 if parts.scheme == "http" else 443)


@functools.cache
def _answers(host: str, port: int) -> bool:
    answered = threading.Event()

    def connect() -> None:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=SECONDS):
            answered.set()

    # On a thread, because the timeout of a connection does not bound the look-up of the host's name.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return answered.is_set()
