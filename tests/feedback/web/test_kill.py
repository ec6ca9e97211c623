"""`kill -9` of the server under twenty annotators: what it acknowledged is there."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from manners.feedback.store import Store
from tests.conftest import write_rows

PEOPLE = 20
SECONDS = 2.0


def start(data: Path, out: Path, port: int) -> subprocess.Popen[str]:
    words = ["annotate", f"data={data}", "mode=choose", f"out={out}", f"port={port}", "overlap=1"]
    server = subprocess.Popen([sys.executable, "-m", "manners", *words], stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3])
    assert server.stderr is not None
    for line in server.stderr:
        if re.search(r"serving http://127.0.0.1:\d+/", line):
            return server
    raise AssertionError("the server ended")


class Annotator(threading.Thread):
    """Votes as fast as it is answered, and remembers every acknowledged vote: number -> item, key."""

    def __init__(self, number: int, port: int, session: str | None = None):
        super().__init__(daemon=True)
        self.who, self.port, self.session, self.acknowledged = f"p{number}", port, session, {}

    def ask(self, path: str, body: dict | None = None) -> dict:
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {self.session}"} if self.session else {})
        self.line.request("POST" if body else "GET", path, json.dumps(body) if body else None, headers)
        heard = self.line.getresponse()
        told = json.loads(heard.read())
        assert heard.status == 200, told
        return told

    def run(self) -> None:
        self.line = HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            if self.session is None:
                self.session = self.ask("/api/enter", {"name": self.who, "secret": None})["session"]
            now = self.ask("/api/next")
            while now["item"] is not None:
                key = f"{self.who}-{os.urandom(8).hex()}"
                item = now["item"]["item"]
                now = self.ask("/api/vote", {"item": item, "key": key, "verdict": {"choice": item % 2}, "seconds": 0.5})
                self.acknowledged[now["vote"]] = (item, key)
        except (OSError, HTTPException, ValueError):
            return  # the server is gone


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_no_acknowledged_vote_is_lost(tmp_path):
    data = write_rows(tmp_path / "two.jsonl", [{"prompt": f"p{i}", "a": f"x{i}", "b": f"y{i}"} for i in range(3_000)])
    out, port = tmp_path / "out", free_port()
    people = [Annotator(i, port) for i in range(PEOPLE)]
    for life in range(2):  # the second one finds what the first one left
        server = start(data, out, port)
        for person in people:
            person.start()
        time.sleep(SECONDS)
        os.kill(server.pid, signal.SIGKILL)
        server.wait()
        for person in people:
            person.join(20)
        if life == 0:
            first = people
            people = [Annotator(i, port, person.session) for i, person in enumerate(first)]
    people = [*first, *people]
    acknowledged = {vote: said for person in people for vote, said in person.acknowledged.items()}
    with closing(Store(out)) as store:
        kept = {said.vote: said for said in store.standing()}
        keys = {number: key for (_, key), number in store.keys().items()}
        assert store.connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    assert len(acknowledged) > 10 * PEOPLE and sum(len(person.acknowledged) for person in people) == len(acknowledged)
    lost = [vote for vote in acknowledged if vote not in kept]
    assert lost == []
    assert all((kept[vote].item, keys[vote]) == said for vote, said in acknowledged.items())
    assert len(kept) - len(acknowledged) <= 2 * PEOPLE  # committed, and the answer did not arrive
    judged = [(said.annotator, said.item) for said in kept.values()]
    assert len(set(judged)) == len(judged)  # nobody was asked the same again in the second life
