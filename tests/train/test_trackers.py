"""`track=`: the numbers of metrics.jsonl reach the trackers under the same names and steps, none twice, and nothing unless asked for."""

import json

import pytest

from manners.core.config import make_settings
from manners.core.errors import InputError
from manners.core.files import read_jsonl, write_jsonl
from manners.core.run import RunFolder
from manners.train import trackers
from manners.train.sft import SFTSettings, identifying
from manners.train.stage import TrainSettings


class Stub:
    """A tracker that keeps what it is given."""

    def __init__(self):
        self.got: list[tuple[int, dict]] = []
        self.ended = 0

    def log(self, values, step):
        self.got.append((step, values))

    def finish(self):
        self.ended += 1


@pytest.fixture
def stub(monkeypatch) -> Stub:
    found = Stub()
    monkeypatch.setattr(trackers, "started", lambda name, path, settings: found)
    monkeypatch.setattr(trackers, "names_of", lambda track: [n for n in (track or "").split(",") if n])
    return found


def test_numbers_go_on_and_nothing_else(stub, tmp_path):
    run = RunFolder(tmp_path)
    with trackers.tracking(run, "trackio", {}) as tracked:
        tracked.send({"step": 3, "loss": 0.5, "alarms": ["x"], "good": True, "note": "n", "n": 2})
    assert stub.got == [(3, {"loss": 0.5, "n": 2})] and stub.ended == 1


def test_a_resumed_run_writes_no_step_twice_and_a_late_tracker_gets_them_all(stub, tmp_path):
    run = RunFolder(tmp_path)
    records = [{"step": n, "loss": 1.0 / n} for n in range(1, 6)]
    with trackers.tracking(run, "wandb", {}) as tracked:
        for record in records[:4]:
            run.log(record)
            tracked.send(record)
    run.rewind(2)
    with trackers.tracking(run, "wandb", {}) as tracked:
        for record in records[2:]:
            run.log(record)
            tracked.send(record)
    assert [step for step, _ in stub.got] == [1, 2, 3, 4, 5]
    trackers.catch_up(run, "wandb,trackio", {})
    assert [step for step, _ in stub.got[5:]] == [1, 2, 3, 4, 5], "the second one, which came late; the first has them all"
    assert json.loads((tmp_path / "track.json").read_text()) == {"wandb": 5, "trackio": 5}


def test_off_by_default_and_silent(stub, tmp_path):
    write_jsonl(tmp_path / "metrics.jsonl", [{"step": 1, "loss": 1.0}])
    with trackers.tracking(RunFolder(tmp_path), None, {}) as tracked:
        tracked.send({"step": 2, "loss": 1.0})
    trackers.catch_up(RunFolder(tmp_path), None, {})
    assert stub.got == [] and not (tmp_path / "track.json").exists()
    assert "track" in TrainSettings.silent and TrainSettings.model_fields["track"].default is None
    assert "track" not in identifying(SFTSettings(data="x.jsonl", out="o"), "sft")


@pytest.mark.parametrize(
    ("track", "said"), [("tensorbord", "did you mean 'tensorboard'"), ("wandb", "the tracker wandb is not installed; pip install 'wandb'")]
)
def test_an_unknown_tracker_or_one_that_is_not_installed_is_a_sentence(track, said, monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=said):
        make_settings(SFTSettings, {"data": "x", "out": "y", "track": track})


def test_tensorboard_holds_what_metrics_hold(manners, tiny_model, demonstrations, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    done = manners("sft", f"model={tiny_model}", f"data={demonstrations}", f"out={out}", "format=plain", "epochs=1", "track=tensorboard")
    assert done.code == 0, done.stderr
    held = EventAccumulator(str(out / "tensorboard"))
    held.Reload()
    records = read_jsonl(out / "metrics.jsonl")
    assert [event.step for event in held.Scalars("loss")] == [record["step"] for record in records]
    assert [event.value for event in held.Scalars("loss")] == pytest.approx([record["loss"] for record in records], rel=1e-6)
    assert set(held.Tags()["scalars"]) == set(trackers.scalars(records[0]))
