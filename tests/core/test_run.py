"""The run folder: one process, one set of settings, checkpoints whole, the manifest last."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from manners.core import files
from manners.core.errors import InputError, MannersError
from manners.core.run import RunFolder, file_hash, identity, open_run
from tests.conftest import tree

ASKED = {"stage": "sft", "data": "rows.jsonl", "data_sha256": "aa", "epochs": 1}
OPEN = """
import sys
from manners.core.errors import MannersError
from manners.core.run import open_run
try:
    with open_run(sys.argv[1], {}, {"stage": "sft"}):
        print("open", flush=True)
        sys.stdin.readline()
except MannersError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def begin(path: Path, **changed: Any) -> None:
    """A run that was stopped after its first checkpoint."""
    with open_run(path, {}, {**ASKED, **changed}) as run:
        run.log({"step": 1})
        save(run, 1)


def save(run: RunFolder, step: int, keep: int = 1) -> None:
    with run.checkpoint(step, keep) as folder:
        files.write_json(folder / "state.json", {"step": step})


def refused(path: Path, **changed: Any) -> str:
    with pytest.raises(InputError) as caught, open_run(path, {}, {**ASKED, **changed}):
        pass
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".") and caught.value.exit_code == 2
    return message


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path):
    path = tmp_path / "run"
    command = [sys.executable, "-c", OPEN, str(path)]
    with open_run(path, {}, {"stage": "sft"}):
        second = subprocess.run(command, capture_output=True, text=True, input="\n")
        assert second.returncode == 2 and second.stdout == ""
        assert second.stderr == f"another process is running in {path}; wait for it, or choose another out=.\n"
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "open\n"
        assert refused(path) == f"another process is running in {path}; wait for it, or choose another out=."
        other.kill()  # leaves the lock file, but not the lock
    assert tree(path) == [".lock", "settings.json"]
    with open_run(path, {}, {"stage": "sft"}) as run:
        assert run.path == path


def test_the_lock_is_free_after_an_error(tmp_path: Path):
    with pytest.raises(MannersError), open_run(tmp_path / "run", {}, ASKED) as run:
        run.log({"step": 1})
        raise MannersError("diverged.")
    with open_run(tmp_path / "run", {}, ASKED) as run:
        assert run.metrics == [{"step": 1}]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"epochs": 2}, "holds a run with epochs=1, now it is 2;"),
        ({"beta": 0.1}, "holds a run with beta=None, now it is 0.1;"),
        ({"stage": "dpo", "beta": 0.1}, "holds a run with stage='sft', now it is 'dpo';"),
        ({"data_sha256": "bb"}, "holds a run made before rows.jsonl was changed;"),
        ({"data": "other.jsonl", "data_sha256": "bb"}, "holds a run with data='rows.jsonl', now it is 'other.jsonl';"),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path: Path, changed: dict[str, Any], says: str):
    path = tmp_path / "run"
    begin(path)
    before = (path / "settings.json").read_bytes()
    assert refused(path, **changed) == f"{path} {says} choose another out=, or remove {path} to start anew."
    assert (path / "settings.json").read_bytes() == before
    begin(path)


def test_what_json_cannot_tell_apart_is_the_same_setting(tmp_path: Path):
    begin(tmp_path / "run", ratio=(1, 2))
    begin(tmp_path / "run", ratio=[1, 2])


def test_a_run_that_failed_before_it_began_leaves_nothing(tmp_path: Path):
    with pytest.raises(InputError), open_run(tmp_path / "run", {}, ASKED):
        raise InputError("no such file.")
    assert tree(tmp_path) == []
    (tmp_path / "mine").mkdir()
    with pytest.raises(KeyboardInterrupt), open_run(tmp_path / "mine", {}, ASKED) as run:
        (run.path / "reference.partial").mkdir()
        raise KeyboardInterrupt
    assert "mine/settings.json" not in tree(tmp_path) and (tmp_path / "mine").is_dir(), "a folder that was there stays"
    with open_run(tmp_path / "mine", {}, {**ASKED, "epochs": 2}) as run:
        assert tree(run.path) == [".lock", "settings.json"]


def test_a_run_killed_before_it_began_may_become_another(tmp_path: Path):
    path = tmp_path / "run"
    path.mkdir()
    (path / ".lock").touch()
    files.write_json(path / "settings.json", {"identifying": ASKED})
    begin(path, epochs=2)
    assert files.read_json(path / "settings.json")["identifying"]["epochs"] == 2


@pytest.mark.parametrize("content", ["{", "{}"])
def test_damaged_settings_are_no_reason_to_go_on(tmp_path: Path, content: str):
    begin(tmp_path / "run")
    (tmp_path / "run" / "settings.json").write_text(content)
    with pytest.raises(MannersError, match=r"settings\.json cannot be read .*; remove .*run to start anew\.$"):
        begin(tmp_path / "run")


@pytest.mark.parametrize("stranger", ["thesis.txt", "sub/thesis.txt"])
@pytest.mark.parametrize("lock", [True, False])
def test_a_foreign_folder_is_refused_and_left_alone(tmp_path: Path, stranger: str, lock: bool):
    path = tmp_path / "mine"
    (path / stranger).parent.mkdir(parents=True)
    (path / stranger).write_text("x")
    (path / "work.partial").write_text("x")
    if lock:
        (path / ".lock").touch()  # as other programs call theirs
    before = tree(path)
    assert refused(path) == f"{path} holds other files and is not a run folder; choose another out=."
    assert tree(path) == before


def test_a_file_is_no_run_folder(tmp_path: Path):
    path = tmp_path / "file"
    path.write_text("x")
    assert refused(path) == f"{path} is a file; out= takes a folder."
    assert refused(path / "run") == f"{path / 'run'} cannot be made, because a part of that path is a file; choose another place with out=."
    assert path.read_text() == "x"


@pytest.mark.parametrize("step", ["mkdir", "acquire"])
def test_an_unwritable_place_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str):
    """By patching, because root may write anywhere."""

    def denied(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("manners.core.run." + ("Path.mkdir" if step == "mkdir" else "FileLock.acquire"), denied)
    assert refused(tmp_path / "run").endswith("run cannot be written (permission denied); choose another place with out=.")


def test_stale_partials_are_removed(tmp_path: Path):
    path = tmp_path / "run"
    begin(path)
    (path / "model.partial").mkdir()
    (path / "model.partial" / "half").write_text("x")
    (path / "manifest.json.partial").write_text("{")
    (path / "checkpoints" / "step-00000002.partial").mkdir()
    with open_run(path, {}, ASKED) as run:
        assert [p.name for p in run.checkpoints] == ["step-00000001"]
        assert not [name for name in tree(path) if "partial" in name]


def test_settings_are_kept_for_the_reader(tmp_path: Path):
    with open_run(tmp_path / "run", {"out": "run"}, ASKED) as run:
        kept = files.read_json(run.path / "settings.json")
    assert kept == {"settings": {"out": "run"}, "identifying": ASKED, "identity": identity(ASKED)}


def test_identity_depends_on_content_and_not_on_order():
    assert identity({"a": 1, "b": 2}) == identity({"b": 2, "a": 1}) != identity({"a": 1, "b": 3})


def test_file_hash(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_hash(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_checkpoints_come_in_order_and_the_newest_are_kept(tmp_path: Path):
    with open_run(tmp_path / "run", {}, ASKED) as run:
        assert run.checkpoints == []
        for step in (9, 10, 100):
            save(run, step, keep=2)
        assert [p.name for p in run.checkpoints] == ["step-00000010", "step-00000100"]
        save(run, 101)
        assert [p.name for p in run.checkpoints] == ["step-00000101"]
        (run.path / "checkpoints" / "step-00000200").mkdir()
        assert [p.name for p in run.checkpoints] == ["step-00000101"], "without its state it is none"


def test_a_checkpoint_that_fails_leaves_the_earlier_one(tmp_path: Path):
    with open_run(tmp_path / "run", {}, ASKED) as run:
        save(run, 1)
        with pytest.raises(ValueError, match="a fault"), run.checkpoint(2) as folder:
            files.write_json(folder / "state.json", {})
            raise ValueError("a fault")
        assert [p.name for p in run.checkpoints] == ["step-00000001"]
        assert tree(run.path / "checkpoints") == ["step-00000001", "step-00000001/state.json"]


def test_rewind_drops_what_will_be_made_again(tmp_path: Path):
    with open_run(tmp_path / "run", {}, ASKED) as run:
        run.log({"note": "no step"})
        for step in (1, 2, 3):
            run.log({"step": step})
        with (run.path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 4')
        run.rewind(2)
        run.log({"step": 3, "again": True})
        assert run.metrics == [{"note": "no step"}, {"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def test_the_manifest_is_last_and_the_checkpoints_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "run"
    order = []
    write, remove = files.write_json, files.remove
    with open_run(path, {}, ASKED) as run:
        save(run, 1)
        assert run.manifest is None
        monkeypatch.setattr(files, "write_json", lambda p, c: (order.append(Path(p).name), write(p, c)))
        monkeypatch.setattr(files, "remove", lambda p: (order.append(Path(p).name), remove(p)))
        run.finish({"stage": "sft"})
        assert order == ["manifest.json", "checkpoints"]
        assert tree(path) == [".lock", "manifest.json", "settings.json"]
    with open_run(path, {}, ASKED) as run:
        assert run.manifest == {"stage": "sft"}
    assert "epochs" in refused(path, epochs=2)
