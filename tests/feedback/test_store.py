"""The store of votes: durable, unchanging, one writer for many."""

import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from manners.core.errors import InputError, MannersError
from manners.feedback.store import Item, Refused, Store, Writer


def item(key: str = "k", **fields) -> Item:
    return Item(**{"key": key, "row": 1, "prompt": "p", "answers": ("x", "y"), "models": (None, None), **fields})


def filled(folder: Path) -> tuple[Store, int, int]:
    """A store with an item, a person and a showing: (store, annotator, showing)."""
    store = Store(folder, "choose")

    def fill() -> tuple[int, int]:
        store.add_items([item()])
        who = store.annotator("anna")
        return who, store.show(1, who, (1, 0))

    return store, *store.transaction(fill)


def test_what_is_put_in_comes_out(tmp_path):
    store, who, shown = filled(tmp_path)
    vote = store.transaction(lambda: store.vote(who, "key-1", shown, {"choice": 0, "note": "ü\ud800"}, 1.5))
    store.close()
    again = Store(tmp_path)
    (said,) = again.standing()
    assert (said.vote, said.item, said.annotator, said.places, said.seconds) == (vote, 1, who, (1, 0), 1.5)
    assert said.verdict == {"choice": 0, "note": "ü\ud800"} and again.mode == "choose"
    assert again.names() == {who: "anna"} and again.items()[1].answers == ("x", "y") and again.keys() == {(who, "key-1"): vote}
    assert list(again.shown()) == [(shown, 1, who, (1, 0))]
    settings = {name: again.connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous", "foreign_keys")}
    assert settings == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    again.close()


def test_an_undo_is_a_record_and_nothing_is_changed(tmp_path):
    store, who, shown = filled(tmp_path)
    vote = store.transaction(lambda: store.vote(who, "key-1", shown, {"choice": 0}, None))
    store.transaction(lambda: store.undo(who, "key-2", vote))
    assert store.standing() == [] and store.records() == 2
    for change in ("UPDATE votes SET verdict = '{}'", "DELETE FROM votes", "UPDATE shown SET places = '[]'", "DELETE FROM shown"):
        with pytest.raises(sqlite3.IntegrityError, match="never"):
            store.transaction(lambda change=change: store.connection.execute(change))
    with pytest.raises(sqlite3.IntegrityError):  # one vote is taken back once
        store.transaction(lambda: store.undo(who, "key-3", vote))
    with pytest.raises(sqlite3.IntegrityError):  # and the same key is not used again
        store.transaction(lambda: store.vote(who, "key-1", shown, {"choice": 1}, None))
    assert store.records() == 2
    store.close()


def test_stores_that_cannot_be_used(tmp_path):
    with pytest.raises(InputError, match="holds no votes"):
        Store(tmp_path / "none")
    Store(tmp_path / "a", "choose").close()
    with pytest.raises(InputError, match="mode=choose, not rate"):
        Store(tmp_path / "a", "rate")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "votes.sqlite").write_text("this is no database, only a text of some length\n" * 40)
    with pytest.raises(InputError, match="no SQLite file"):
        Store(tmp_path / "b", "choose")
    (tmp_path / "c").mkdir()
    other = sqlite3.connect(tmp_path / "c" / "votes.sqlite")
    other.execute("CREATE TABLE votes (x)")
    other.commit()
    other.close()
    with pytest.raises(InputError, match="no store of votes"):
        Store(tmp_path / "c", "choose")


def test_the_writer_commits_together_and_refuses_alone(tmp_path):
    store, who, shown = filled(tmp_path)
    failures: list[int] = []
    writer = Writer(store, lambda: failures.append(1))
    gate = threading.Event()
    writer.submit(gate.wait)  # what comes now waits, and goes together

    def bad() -> None:
        store.vote(who, "bad-key", shown, {}, None)
        raise Refused(422, "no")

    def worse() -> None:
        store.vote(who, "worse-key", shown, {}, None)
        raise RuntimeError("broken")

    votes = [writer.submit(lambda i=i: store.vote(who, f"key-{i}", shown, {"choice": i % 2}, None)) for i in range(50)]
    refused, broken = writer.submit(bad), writer.submit(worse)
    last = writer.submit(lambda: store.vote(who, "key-last", shown, {"choice": 1}, None))
    gate.set()
    numbers = [vote.result(10) for vote in votes]
    assert len(set(numbers)) == 50 and last.result(10) > max(numbers)
    with pytest.raises(Refused, match="no"):
        refused.result(10)
    with pytest.raises(RuntimeError, match="broken"):
        broken.result(10)
    assert failures == [1] and writer.commits <= 3
    writer.close()
    writer.close()
    assert store.records() == 51
    store.close()


def test_a_commit_that_fails_is_heard_by_all_of_it(tmp_path):
    store, who, shown = filled(tmp_path)
    failures: list[int] = []
    writer = Writer(store, lambda: failures.append(1))
    store.connection.execute("PRAGMA max_page_count=1")  # as a full disk: it is raised to what there is, and no page more
    with pytest.raises(MannersError, match="full"):
        writer.submit(lambda: store.vote(who, "key-long", shown, {"text": "x" * 100_000}, None)).result(10)
    assert failures and store.records() == 0
    store.connection.execute("PRAGMA max_page_count=100000")
    assert writer.submit(lambda: store.vote(who, "key-long", shown, {"text": "x" * 100_000}, None)).result(10) == 1
    writer.close()
    store.close()


def test_a_killed_process_keeps_what_it_committed(tmp_path):
    code = """
import os, signal, sys
from tests.feedback.test_store import filled
from pathlib import Path
store, who, shown = filled(Path(sys.argv[1]))
for i in range(20):
    store.transaction(lambda: store.vote(who, f"key-{i}", shown, {"choice": 0}, None))
store.connection.execute("BEGIN"); store.vote(who, "key-open", shown, {"choice": 0}, None)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[2], env={**os.environ})
    assert done.returncode == -9
    store = Store(tmp_path)
    assert len(store.standing()) == 20
    store.close()
