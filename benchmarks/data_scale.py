"""Rows per second and peak memory of `manners data render`, `mix`, `clean` and `card` at several sizes, each in a process of its own.

    python -m benchmarks.data_scale rows=10000,100000 [commands=mix,card]

Templating, mixing, taking near-duplicates out and counting are what a mixture goes through. At the end, for each command, by which power
of the rows its seconds and its memory grow from the smallest size to the largest: 1 is linear, 0 is not at all.

Rows are made up: a prompt of 10 to 60 words and an answer of 5 to 80, one in twenty a copy, one in twenty a copy but for some words.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

COMMANDS = {
    "render": ["render", "templates=starter:summary", "data={data}", "map=document=prompt,summary=completion", "out={out}"],
    "mix": ["mix", "a={data}", "b={data}", "weights=a=3,b=1", "rows={rows}", "out={out}"],
    "clean": ["clean", "{data}", "near=null", "out={out}"],
    "clean near": ["clean", "{data}", "out={out}"],
    "card": ["card", "{data}", "languages=0"],
}
MEASURE = """
import resource, sys
from manners.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
finally:
    # the peak of this program alone: ru_maxrss is inherited from the process that started it
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print("peak", int(peak.split()[1]) / 1024, file=sys.stderr)
"""


def made_up(rows: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Rows with planted copies among them."""
    random = Random(seed)
    words = ["".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=random.randint(2, 9))) for _ in range(30_000)]
    text = lambda low, high: " ".join(random.choices(words, k=random.randint(low, high)))
    earlier: list[dict[str, Any]] = []
    for i in range(rows):
        lot = random.random()
        if lot < 0.1 and earlier:
            row = dict(random.choice(earlier))
            if lot < 0.05:
                row["completion"] += " " + text(1, 2)
        else:
            row = {"prompt": text(10, 60), "completion": text(5, 80), "cluster": f"c{i % 20}"}
            if len(earlier) < 1000:
                earlier.append(row)
        yield row


def measure(name: str, rows: int, folder: Path) -> dict[str, Any]:
    """Run a command on a file of made-up rows."""
    data = folder / f"{rows}.jsonl"
    if not data.exists():
        with data.open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in made_up(rows))
    words = [word.format(data=data, rows=rows, out=folder / "out.jsonl") for word in COMMANDS[name]]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, "data", *words], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(done.stderr)
    peak = float(done.stderr.rpartition("peak ")[2])
    return {
        "command": name,
        "rows": rows,
        "seconds": round(seconds, 2),
        "rows_per_second": round(rows / seconds),
        "megabytes_per_second": round(data.stat().st_size / seconds / 1e6, 2),
        "peak_megabytes": round(peak),
    }


def growth(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The powers of a command's rows with which its seconds and its peak of memory grow, from the smallest size to the largest."""
    least, most = (pick(found, key=lambda row: row["rows"]) for pick in (min, max))
    times = math.log(most["rows"] / least["rows"])
    power = {key: round(math.log(most[key] / least[key]) / times, 2) for key in ("seconds", "peak_megabytes")}
    return {"command": least["command"], "from": least["rows"], "to": most["rows"], "power": power}


def main() -> None:
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    names = given["commands"].split(",") if "commands" in given else list(COMMANDS)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        for rows in map(int, given.get("rows", "10000,100000").split(",")):
            for name in names:
                found[name].append(measure(name, rows, Path(folder)))
                print(json.dumps(found[name][-1]), flush=True)
    for several in found.values():
        if len(several) > 1:
            print(json.dumps(growth(several)), flush=True)


if __name__ == "__main__":
    main()
