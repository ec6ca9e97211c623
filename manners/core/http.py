"""How Manners asks a server over HTTP: patiently, and saying in words what went wrong in the end."""

import urllib.parse

import requests
from requests.adapters import HTTPAdapter
from urllib3 import BaseHTTPResponse
from urllib3.util import Retry

LONGEST_WAIT = 120.0
"""Seconds waited at most before a further try, whatever the server's Retry-After says."""
AGAIN = (429, *range(500, 512))
"""Answers after which a request is made again."""


class _Patience(Retry):
    def get_retry_after(self, response: BaseHTTPResponse) -> float | None:
        asked = super().get_retry_after(response)
        return None if asked is None else min(asked, LONGEST_WAIT)


def patient_session(url: str, *, tries: int, wait: float = 1.0, connections: int = 10) -> requests.Session:
    """A session for requests to `url`. One that times out, finds nobody or is answered by 429 or 5xx is made again, `tries` times in all,
    after waits that double from `wait` seconds, or after the server's Retry-After; the last answer is returned whatever it is.

    On this machine's own servers no proxy is used: it would look for them on its own machine.
    """
    retry = _Patience(
        tries - 1, backoff_factor=wait, backoff_max=LONGEST_WAIT, status_forcelist=AGAIN, allowed_methods=None, raise_on_status=False
    )
    session = requests.Session()
    if is_local(url):
        session.trust_env = False
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(pool_maxsize=connections, max_retries=retry))
    return session


def host_of(url: str) -> str:
    """The host that a URL names, or an empty string.

    >>> host_of("http://localhost:8000/v1"), host_of("localhost/v1"), host_of("http://[")
    ('localhost', '', '')
    """
    try:
        return urllib.parse.urlsplit(url).hostname or ""
    except ValueError:
        return ""


def is_local(url: str) -> bool:
    """Whether a URL names this machine."""
    host = host_of(url)
    return host in ("localhost", "::1") or host.startswith("127.")


def in_words(error: requests.RequestException, timeout: float) -> str:
    """What kept a request from being answered. requests wraps urllib3's account of the last try, which says it in words only."""
    told = {
        "timed out": f"no answer within {timeout:g} s",
        "refused": "the connection was refused",
        "resolve": "no machine of that name is known",
        "Connection aborted": "the connection broke off",
        "Connection broken": "the connection broke off",
        "IncompleteRead": "the connection broke off",
        "Response ended prematurely": "the connection broke off",
    }
    return next((said for word, said in told.items() if word in str(error)), type(error).__name__)
