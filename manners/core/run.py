"""The run folder: what a stage was asked, how far it came, what it made.

    settings.json     what was asked, resolved, and the hash of what it reads
    metrics.jsonl     one record a step
    checkpoints/      step-00000012/ ... enough to go on bit for bit
    model/            the result, in the ecosystem's formats
    manifest.json     written last: if it is there, the stage is finished

Finished means skip, a checkpoint without a manifest means resume, else run. A stage of a recipe has a stage.json beside these, which
`pipeline` writes: what it was made from.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from manners.core import files
from manners.core.errors import InputError, MannersError

STAGE = "stage.json"
"""What `pipeline` keeps of a stage in its folder."""
WHOLE = 16 * 2**20
"""Files of a model's folder up to this many bytes are hashed whole; of larger ones 16 blocks of a megabyte, evenly spaced."""


def file_hash(path: str | Path) -> str:
    """sha256 of a file's bytes, as hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(2**20), b""):
            digest.update(block)
    return digest.hexdigest()


def content_hash(path: Path) -> str:
    """sha256 over a file, or over the names and contents of the files of a folder; of a run's folder, over its `model/` alone."""
    if path.is_file():
        return file_hash(path)
    path = path / "model" if (path / "model").is_dir() else path
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")):
        digest.update(f"{file.relative_to(path).as_posix()} {_blocks_hash(file)}\n".encode())
    return digest.hexdigest()


def _blocks_hash(path: Path) -> str:
    size = path.stat().st_size
    if size <= WHOLE:
        return file_hash(path)
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for part in range(16):
            file.seek(part * (size - 2**20) // 15)
            digest.update(file.read(2**20))
    return digest.hexdigest()


def identity(content: dict[str, Any]) -> str:
    """Sixteen hex digits over whatever can change a stage's output."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


class RunFolder:
    """A run's files. Made by `open_run`, which holds the lock."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def manifest(self) -> dict[str, Any] | None:
        """What the finished stage wrote last, or None."""
        path = self.path / "manifest.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    @property
    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        folder = self.path / "checkpoints"
        found = folder.glob("step-*") if folder.is_dir() else []
        return sorted(p for p in found if not p.name.endswith(files.PARTIAL) and (p / "state.json").exists())

    @contextmanager
    def checkpoint(self, step: int, keep: int = 1) -> Iterator[Path]:
        """Yield a folder to fill; once filled it becomes the newest checkpoint and all but the newest `keep` are removed."""
        with files.whole_folder(self.path / "checkpoints" / f"step-{step:08d}") as partial:
            yield partial
        for old in self.checkpoints[:-keep]:
            files.remove(old)

    def log(self, record: dict[str, Any]) -> None:
        """Add a record to metrics.jsonl."""
        files.append_json(self.path / "metrics.jsonl", record)

    def rewind(self, step: int) -> None:
        """Drop the records of steps after `step`, which will be made again."""
        kept = [r for r in self.metrics if r.get("step", 0) <= step]
        files.write_jsonl(self.path / "metrics.jsonl", kept)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """All records of metrics.jsonl."""
        return files.read_jsonl(self.path / "metrics.jsonl")

    def finish(self, manifest: dict[str, Any]) -> None:
        """Declare the stage finished, then drop its checkpoints."""
        files.write_json(self.path / "manifest.json", manifest)
        files.remove(self.path / "checkpoints")


def hold(path: Path, doing: str = "running") -> FileLock:
    """Make a folder and hold it for this process alone, until the lock is released. Raises InputError if another process holds it."""
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"another process is {doing} in {path}; wait for it, or choose another out=.") from None
    return lock


@contextmanager
def open_run(path: str | Path, settings: dict[str, Any], identifying: dict[str, Any]) -> Iterator[RunFolder]:
    """Open or make a run folder for exactly one process.

    `settings` are kept for the reader; `identifying` is what can change the output. Raises InputError if another process holds the
    folder, if it belongs to a run of other settings (naming what differs), or if it holds something else.
    """
    path = Path(path)
    with files.disk_errors(path):
        made = not path.exists()
        if path.is_file():
            raise InputError(f"{path} is a file; out= takes a folder.")
        if path.is_dir() and not (path / "settings.json").exists() and not untouched(path):
            raise InputError(f"{path} holds other files and is not a run folder; choose another out=.")
        lock = hold(path)
    try:
        if not untouched(path):
            _check_settings(path, identifying)
        for stale in [*path.glob("*" + files.PARTIAL), *path.glob("checkpoints/*" + files.PARTIAL)]:
            files.remove(stale)
        files.write_json(path / "settings.json", {"settings": settings, "identifying": identifying, "identity": identity(identifying)})
        yield RunFolder(path)
    finally:
        # What failed before it began (a misspelt file, say) leaves nothing that the corrected command would stumble over.
        if untouched(path):
            files.remove(path / "settings.json")
            if made:
                with contextlib.suppress(OSError):  # not empty any more: another process has begun to use it
                    (path / ".lock").unlink(missing_ok=True)
                    path.rmdir()
        lock.release()


def untouched(path: Path) -> bool:
    """Whether nothing has come of a run yet, so that it may as well be another one."""
    return path.is_dir() and all(e.name in (".lock", "settings.json", STAGE) or e.name.endswith(files.PARTIAL) for e in path.iterdir())


def stage_seconds(out: str | Path) -> dict[str, float]:
    """Wall time of every finished stage of a recipe's run, in the order in which they ran, by folder: `sft`, or `seed-1/sft`.

    A stage that was interrupted counts the time of all its starts; what a `kill -9` took with it is not known and not in it.
    """
    found: list[tuple[float, str, float]] = []
    for manifest in [*Path(out).glob("*/manifest.json"), *Path(out).glob("seed-*/*/manifest.json")]:
        made = files.read_json(manifest)
        kept = manifest.with_name(STAGE)
        if kept.exists():
            made = {**made, **files.read_json(kept)}
        seconds = made.get("seconds") or made.get("wall_seconds")
        if isinstance(seconds, int | float):
            found.append((made.get("began", 0.0), manifest.parent.relative_to(out).as_posix(), seconds))
    return {name: seconds for _, name, seconds in sorted(found)}


def _check_settings(path: Path, identifying: dict[str, Any]) -> None:
    existing = path / "settings.json"
    if not existing.exists():
        return
    try:
        before = json.loads(existing.read_text(encoding="utf-8"))["identifying"]
    except (ValueError, KeyError) as error:
        raise MannersError(f"{existing} cannot be read ({error}); remove {path} to start anew.") from error
    now = json.loads(json.dumps(identifying, default=str))
    advice = f"choose another out=, or remove {path} to start anew."
    for key in sorted(set(before) | set(now), key=lambda key: (key != "stage", key)):  # another stage has other keys, too
        if before.get(key) == now.get(key):
            continue
        if key.endswith("_sha256"):  # the file's name sorts first, so it is the same one
            raise InputError(f"{path} holds a run made before {now.get(key.removesuffix('_sha256'))} was changed; {advice}")
        raise InputError(f"{path} holds a run with {key}={before.get(key)!r}, now it is {now.get(key)!r}; {advice}")
