"""A page that is served in a thread of the test, and a browser to look at it, where there is one."""

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn

from manners.feedback.web import serving
from manners.feedback.web.annotate import AnnotateSettings, Page, opened

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def running(app: Any, sock: Any) -> Iterator[None]:
    """An application that answers on a socket."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(10)


@contextmanager
def served(**settings: Any) -> Iterator[tuple[str, Page]]:
    """Address and page of `manners annotate` with these settings, on a free port."""
    chosen = AnnotateSettings(**{"port": 0, **settings})
    with opened(chosen) as page, running(page.app, page.sock):
        yield serving.address(chosen.host, page.sock), page


def browser_path() -> str:
    """The browser of this machine. Skips the test where there is none, or nothing to drive it."""
    pytest.importorskip("playwright", reason="playwright is not installed")
    found = os.environ.get("MANNERS_BROWSER") or next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("there is no Chromium on this machine")
    return found


@contextmanager
def browsing(**context: Any) -> Iterator[Any]:
    """A browser context of headless Chromium."""
    path = browser_path()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            yield browser.new_context(**context)
        finally:
            browser.close()
