"""Step by step to TensorBoard, trackio or Weights & Biases, beside metrics.jsonl: `track=tensorboard,trackio`.

Off unless asked for; nothing is ever sent that was not asked for by name. The trackers are accelerate's. Each is given the numbers of the
records that metrics.jsonl holds, under the same names. How many records a tracker was given stands in `track.json` of the run folder: a
run that is resumed makes the steps after its checkpoint again, bit for bit, and a tracker that has them is not given them twice.
"""

import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import tracking as accelerates

from manners.core import files
from manners.core.errors import nearest
from manners.core.run import RunFolder

PACKAGES = {"tensorboard": "tensorboard", "trackio": "trackio", "wandb": "wandb"}
"""Each tracker's package."""
MARKS, EVENTS = "track.json", "tensorboard"
Sender = Callable[[dict[str, float], int], None]


def names_of(track: str | None) -> list[str]:
    """The trackers named, by commas. Raises ValueError for an unknown one, and for one whose package is not installed."""
    names = [name.strip() for name in (track or "").split(",") if name.strip()]
    for name in names:
        if name not in PACKAGES:
            raise ValueError(f"'{name}' is no tracker; {nearest(name, PACKAGES)}")
        if importlib.util.find_spec(PACKAGES[name]) is None:
            extra = "manners[tensorboard]" if name == "tensorboard" else PACKAGES[name]
            raise ValueError(f"the tracker {name} is not installed; pip install '{extra}', or leave track= out")
    return list(dict.fromkeys(names))


def checked(track: str | None) -> str | None:
    """The setting, once `names_of` has passed it."""
    names_of(track)
    return track


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """What of a record is a number, but its step."""
    return {key: value for key, value in record.items() if key != "step" and isinstance(value, int | float) and not isinstance(value, bool)}


class Tracking:
    """The trackers of a run. `send` passes a record on; records that a tracker has had are counted and not sent again."""

    def __init__(self, run: RunFolder, track: str | None, settings: Mapping[str, Any]):
        self.path = run.path / MARKS
        self.seen = 0
        self.marks: dict[str, int] = _marks(self.path)
        self.trackers = {name: started(name, run.path, settings) for name in names_of(track)}
        if self.trackers:
            for record in run.metrics:  # those before an interruption, or before the tracker was asked for
                self.send(record)

    def send(self, record: Mapping[str, Any]) -> None:
        """Give the next record to every tracker that has not had it."""
        self.seen += 1
        late = [name for name in self.trackers if self.marks.get(name, 0) < self.seen]
        if not late:
            return
        # noted before it is sent: a kill in between loses one step in the tracker, and writes none twice
        self.marks |= dict.fromkeys(late, self.seen)
        files.write_json(self.path, self.marks)
        for name in late:
            self.trackers[name].log(scalars(record), step=int(record.get("step", self.seen)))

    def close(self) -> None:
        """End every tracker."""
        for tracker in self.trackers.values():
            tracker.finish()


@contextmanager
def tracking(run: RunFolder, track: str | None, settings: Mapping[str, Any]) -> Iterator[Tracking]:
    """The trackers of a run, ended when the block is left, however that happens."""
    found = Tracking(run, track, settings)
    try:
        yield found
    finally:
        found.close()


def started(name: str, path: Path, settings: Mapping[str, Any]) -> Any:
    """A tracker of accelerate's, begun. The run goes on under its own name where there is one already."""
    full = path.resolve()
    project, run_name = full.parent.name or "manners", full.name
    if name == "tensorboard":
        tracker: Any = accelerates.TensorBoardTracker(EVENTS, str(path))
    elif name == "trackio":
        tracker = accelerates.TrackioTracker(project, name=run_name, resume="allow", config=_plain(settings))
    else:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its own reports of its own errors
        tracker = accelerates.WandBTracker(project, name=run_name, id=f"{project}-{run_name}", resume="allow", config=_plain(settings))
    tracker.start()
    return tracker


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(dict(settings), default=str))


def _marks(path: Path) -> dict[str, int]:
    return {str(name): int(count) for name, count in files.read_json(path).items()} if path.is_file() else {}


def catch_up(run: RunFolder, track: str | None, settings: Mapping[str, Any]) -> None:
    """Give the trackers every record of metrics.jsonl that they have not had."""
    if track is not None:
        Tracking(run, track, settings).close()
