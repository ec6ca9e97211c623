"""Whole or not at all: what a full disk, a failure within and a kill leave of a file and of a folder."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from manners.core import files
from manners.core.errors import InputError, MannersError
from tests.conftest import tree


class SafetensorError(Exception):
    """As safetensors raises it: no OSError, the number in the text only."""


def refuses(code: int) -> Callable[..., None]:
    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_full_disk_leaves_the_old_file_and_no_partial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str):
    path = tmp_path / "file.txt"
    files.write_text(path, "old")
    monkeypatch.setattr(files.os, step, refuses(errno.ENOSPC))
    with pytest.raises(MannersError, match=r"^the disk is full: .*file\.txt could not be written; free some space") as caught:
        files.write_text(path, "new")
    assert caught.value.exit_code == 1 and not isinstance(caught.value, InputError)
    assert path.read_text() == "old" and tree(tmp_path) == ["file.txt"]


def test_write_text_makes_folders_and_replaces_whole(tmp_path: Path):
    path = tmp_path / "a" / "b.txt"
    files.write_text(path, "a much longer text")
    files.write_text(path, "é\n")
    assert path.read_bytes() == b"\xc3\xa9\n" and tree(tmp_path) == ["a", "a/b.txt"]


def test_a_reader_never_meets_a_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "file.txt"
    files.write_text(path, "old")
    seen = []
    replace = os.replace
    monkeypatch.setattr(files.os, "replace", lambda a, b: (seen.append((path.read_text(), Path(a).read_text())), replace(a, b)))
    files.write_text(path, "new")
    assert seen == [("old", "new")] and path.read_text() == "new"


def test_equal_json_is_equal_bytes(tmp_path: Path):
    files.write_json(tmp_path / "a", {"x": 1, "y": "ü"})
    files.write_json(tmp_path / "b", {"y": "ü", "x": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert files.read_json(tmp_path / "a") == {"x": 1, "y": "ü"}


def test_read_jsonl_skips_a_half_line(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    assert files.read_jsonl(path) == []
    rows = [{"step": 1, "text": "a\u2028b"}, {"step": 2}]
    for row in rows:
        files.append_json(path, row)
    with path.open("ab") as file:
        file.write('{"step": 3, "text": "ü'.encode()[:-1])
    assert files.read_jsonl(path) == rows
    files.write_jsonl(path, rows[:1])
    assert files.read_jsonl(path) == rows[:1]


def test_whole_folder_appears_at_once(tmp_path: Path):
    target = tmp_path / "deep" / "target"
    with files.whole_folder(target) as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "a").write_text("1")
        assert not target.exists() and partial.name.endswith(files.PARTIAL)
    assert tree(tmp_path) == ["deep", "deep/target", "deep/target/sub", "deep/target/sub/a"]


def test_whole_folder_replaces_without_mixing(tmp_path: Path):
    target = tmp_path / "target"
    for name in ("old", "new"):
        with files.whole_folder(target) as partial:
            assert not list(partial.iterdir())
            (partial / name).write_text(name)
    assert tree(tmp_path) == ["target", "target/new"]


@pytest.mark.parametrize("error", [ValueError("a fault"), KeyboardInterrupt()])
def test_a_failure_within_leaves_the_old_folder(tmp_path: Path, error: BaseException):
    target = tmp_path / "target"
    with files.whole_folder(target) as partial:
        (partial / "a").write_text("old")

    def fill() -> None:
        with files.whole_folder(target) as partial:
            (partial / "a").write_text("new")
            raise error

    with pytest.raises(type(error)):
        fill()
    assert tree(tmp_path) == ["target", "target/a"] and (target / "a").read_text() == "old"


@pytest.mark.parametrize("step", ["mkdir", "fsync", "rename"])
def test_full_disk_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str):
    target = tmp_path / "target"
    with files.whole_folder(target) as partial:
        (partial / "a").write_text("old")
    monkeypatch.setattr(files.Path if step == "mkdir" else files.os, step, refuses(errno.ENOSPC))
    with pytest.raises(MannersError, match=r"^the disk is full: .*target could not"), files.whole_folder(target) as partial:
        (partial / "a").write_text("new")
    monkeypatch.undo()
    assert tree(tmp_path) == ["target", "target/a"] and (target / "a").read_text() == "old"


def test_the_old_folder_comes_back_if_the_new_cannot_take_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = tmp_path / "target"
    with files.whole_folder(target) as partial:
        (partial / "a").write_text("old")
    rename = os.rename
    monkeypatch.setattr(files.os, "rename", lambda a, b: refuses(errno.ENOSPC)() if Path(a) == partial else rename(a, b))
    with pytest.raises(MannersError), files.whole_folder(target):
        pass
    assert tree(tmp_path) == ["target", "target/a"] and (target / "a").read_text() == "old"


def test_a_partial_left_by_a_kill_is_no_part_of_the_next(tmp_path: Path):
    stale = tmp_path / ("target" + files.PARTIAL)
    stale.mkdir()
    (stale / "half").write_text("x")
    with files.whole_folder(tmp_path / "target") as partial:
        (partial / "a").write_text("1")
    assert tree(tmp_path) == ["target", "target/a"]


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (OSError(errno.ENOSPC, "x"), MannersError, "the disk is full"),
        (OSError(errno.EDQUOT, "x"), MannersError, "the disk is full"),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), MannersError, "the disk is full"),
        (OSError(errno.EACCES, "x"), InputError, "permission denied"),
        (OSError(errno.EROFS, "x"), InputError, "permission denied"),
        (OSError(errno.ENOTDIR, "x"), InputError, "a part of that path is a file"),
        (OSError(errno.EISDIR, "x"), InputError, "is a folder"),
    ],
)
def test_each_refusal_is_a_sentence(tmp_path: Path, error: Exception, kind: type[MannersError], says: str):
    with pytest.raises(MannersError, match=says) as caught, files.disk_errors(tmp_path / "here"):
        raise error
    assert type(caught.value) is kind and str(tmp_path / "here") in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize("error", [OSError(errno.EIO, "x"), ValueError("os error"), InputError("mine")])
def test_other_errors_pass_as_they_are(error: Exception):
    with pytest.raises(type(error)) as caught, files.disk_errors(Path("here")):
        raise error
    assert caught.value is error


def test_remove(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files.remove(tmp_path / "missing")
    (tmp_path / "file").write_text("x")
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "a").write_text("x")
    (tmp_path / "link").symlink_to(kept, target_is_directory=True)
    for name in ("file", "link"):
        files.remove(tmp_path / name)
    assert tree(tmp_path) == ["kept", "kept/a"], "a link is removed, not what it points to"

    def killed(path, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.shutil, "rmtree", lambda path, ignore_errors=False: None if ignore_errors else killed(path))
    with pytest.raises(KeyboardInterrupt):
        files.remove(kept)
    monkeypatch.undo()
    assert all(name.split("/")[0].endswith(files.PARTIAL) for name in tree(tmp_path)), "a half-removed folder bears a name nobody reads"
