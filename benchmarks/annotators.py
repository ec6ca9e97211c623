"""Many annotators at once: votes a second, how long one waits for the next item, and whether an acknowledged vote was lost.

    .venv/bin/python -m benchmarks.annotators --people 50 --rate 250 --seconds 60

starts `manners annotate` in a process of its own, lets 50 people vote over HTTP at a fixed schedule (each vote has its time, whether or not
the one before came back: a slow server is not asked less), kills the server with SIGKILL at the end and compares what was acknowledged
with what the store holds. Latency is counted from the time a vote was due, so waiting in line is part of it. Prints one line of JSON.
"""

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from manners.feedback.store import Store


class Line:
    """One person's connection: as little of HTTP as the server needs, so that the two cores are the server's."""

    def __init__(self, port: int, name: str):
        self.port, self.name, self.session = port, name, ""
        self.acknowledged: dict[int, int] = {}
        self.waits: list[float] = []

    async def open(self) -> None:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.session = (await self.ask("POST", "/api/enter", {"name": self.name}))["session"]
        self.now = await self.ask("GET", "/api/next")

    async def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        content = json.dumps(body).encode() if body else b""
        who = f"Authorization: Bearer {self.session}\r\n" if self.session else ""
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n{who}Content-Type: application/json\r\n"
        self.writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        told = await self.reader.readuntil(b"\r\n\r\n")
        length = int(re.search(rb"(?i)content-length: (\d+)", told)[1])  # type: ignore[index]
        found = json.loads(await self.reader.readexactly(length))
        if not told.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(found)
        return found

    async def vote(self, start: float, every: float, count: int) -> None:
        for number in range(count):
            due = start + number * every
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            item = self.now["item"]["item"]
            body = {"item": item, "key": f"{self.name}-{number:06}", "verdict": {"choice": number % 2}, "seconds": 1.0}
            self.now = await self.ask("POST", "/api/vote", body)
            self.waits.append(time.perf_counter() - due)
            self.acknowledged[self.now["vote"]] = item


async def load(port: int, people: int, rate: float, seconds: float) -> tuple[list[Line], float]:
    lines = [Line(port, f"p{number}") for number in range(people)]
    for line in lines:
        await line.open()
    every = people / rate
    start = time.perf_counter() + 0.5
    votes = (line.vote(start + i / rate, every, round(seconds / every)) for i, line in enumerate(lines))
    await asyncio.gather(*votes)
    return lines, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--people", type=int, default=50)
    parser.add_argument("--rate", type=float, default=250.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--folder", default=None, help="where the store is put; the system's folder for temporary files by default")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        data, out = Path(folder) / "data.jsonl", Path(folder) / "out"
        answer = "An answer of some length, as answers are. " * 12
        rows = (
            {"prompt": f"Question {i}", "a": f"{answer}{i}", "b": f"{i} {answer}"} for i in range(round(given.rate * given.seconds * 1.2))
        )
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        words = ["annotate", f"data={data}", "mode=choose", f"out={out}", "port=0", "overlap=0.01"]
        server = subprocess.Popen([sys.executable, "-m", "manners", *words], stderr=subprocess.PIPE, text=True)
        assert server.stderr is not None
        port = next(int(found[1]) for line in server.stderr if (found := re.search(r"serving http://127.0.0.1:(\d+)/", line)))
        try:
            lines, took = asyncio.run(load(port, given.people, given.rate, given.seconds))
        finally:
            os.kill(server.pid, signal.SIGKILL)
            server.wait()
        acknowledged = {vote: item for line in lines for vote, item in line.acknowledged.items()}
        with closing(Store(out)) as store:
            kept = {said.vote: said.item for said in store.standing()}
        waits = np.array([wait for line in lines for wait in line.waits])
        p50, p95, p99 = np.quantile(waits, [0.5, 0.95, 0.99])
        lost = sum(kept.get(vote) != item for vote, item in acknowledged.items())
        told = {
            "people": given.people,
            "votes": len(acknowledged),
            "seconds": round(took, 2),
            "votes_per_second": round(len(waits) / took, 1),
        }
        told |= {f"{name}_ms": round(1000 * value, 1) for name, value in (("p50", p50), ("p95", p95), ("p99", p99), ("max", waits.max()))}
        print(json.dumps({**told, "lost": lost}))


if __name__ == "__main__":
    main()
