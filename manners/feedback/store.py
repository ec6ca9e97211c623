"""Where votes are kept: one SQLite file in which nothing is ever changed.

    items        what is judged: prompt, answers, whose they are, and for a gold question the right verdict
    annotators   who judges, by name; `sessions` holds the SHA-256 of what their browsers show
    shown        which answer stood where, for every time an item was put before somebody
    votes        what was said, as it was said: places on the screen, not answers; an undo is a record of its own

Triggers refuse to change or delete a row of `shown` and `votes`. The file is in WAL mode with synchronous=FULL: a vote is acknowledged
after the log that holds it was flushed to the disk, so that neither `kill -9` nor a power cut takes it back. Flushing costs
milliseconds, whether for one vote or for fifty; `Writer` therefore commits together whatever waits (group commit), in one thread that
owns the connection.
"""

import json
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from manners.core.errors import InputError, MannersError
from manners.core.files import disk_errors

NAME = "votes.sqlite"
SCHEMA = 1
"""Number in the file's header; another one is refused."""
TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE items (
  item INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, row INTEGER NOT NULL, prompt TEXT NOT NULL, answers TEXT NOT NULL,
  models TEXT NOT NULL, gold TEXT, columns TEXT NOT NULL, at REAL NOT NULL
);
CREATE TABLE annotators (annotator INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, at REAL NOT NULL);
CREATE TABLE sessions (digest TEXT PRIMARY KEY, annotator INTEGER NOT NULL REFERENCES annotators, at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE shown (
  shown INTEGER PRIMARY KEY, item INTEGER NOT NULL REFERENCES items, annotator INTEGER NOT NULL REFERENCES annotators,
  places TEXT NOT NULL, at REAL NOT NULL
);
CREATE TABLE votes (
  vote INTEGER PRIMARY KEY, annotator INTEGER NOT NULL REFERENCES annotators, key TEXT NOT NULL,
  shown INTEGER REFERENCES shown, undoes INTEGER UNIQUE REFERENCES votes, verdict TEXT NOT NULL, seconds REAL, at REAL NOT NULL,
  UNIQUE (annotator, key), CHECK ((shown IS NULL) <> (undoes IS NULL))
);
CREATE TRIGGER votes_stay BEFORE UPDATE ON votes BEGIN SELECT RAISE(ABORT, 'votes are never changed'); END;
CREATE TRIGGER votes_last BEFORE DELETE ON votes BEGIN SELECT RAISE(ABORT, 'votes are never deleted'); END;
CREATE TRIGGER shown_stays BEFORE UPDATE ON shown BEGIN SELECT RAISE(ABORT, 'what was shown is never changed'); END;
CREATE TRIGGER shown_lasts BEFORE DELETE ON shown BEGIN SELECT RAISE(ABORT, 'what was shown is never deleted'); END;
"""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Item:
    """What is judged. `answers` are texts in the order of the file, `models` whose they are (None where nobody said), `gold` the right
    verdict in that order, `columns` what of the row goes into the exported votes. `number` is the store's own, `row` the file's."""

    key: str
    row: int
    prompt: Any
    answers: tuple[str, ...]
    models: tuple[str | None, ...]
    gold: Any = None
    columns: dict[str, Any] | None = None
    number: int = 0


class Said(NamedTuple):
    """A vote that stands: `places[i]` is the answer that stood at place i when `verdict` was given."""

    vote: int
    item: int
    annotator: int
    places: tuple[int, ...]
    verdict: dict[str, Any]
    seconds: float | None
    at: float


class Store:
    """The file. Every method runs in the thread that opened it, within the transaction of the caller; none commits but `transaction`.

    Raises InputError for a file that is no store, is another version's, or holds votes of another kind (`mode`).
    """

    def __init__(self, folder: str | Path, mode: str | None = None):
        self.path = Path(folder) / NAME
        if mode is None and not self.path.is_file():
            raise InputError(f"{folder} holds no votes: there is no {NAME} in it.")
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.connection = self._open(mode)
        self.mode = self.meta("mode") or ""
        if mode is not None and self.mode != mode:
            self.close()
            raise InputError(f"{self.path} holds votes of mode={self.mode}, not {mode}; give these votes a folder of their own with out=.")

    def _open(self, mode: str | None) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, timeout=10, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA foreign_keys=ON")
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if version == 0 and tables == 0:
                started = f"INSERT INTO meta VALUES ('mode', '{mode}');"  # a name of MODES, never the user's text
                connection.executescript(f"BEGIN IMMEDIATE;{TABLES}{started}PRAGMA user_version={SCHEMA};COMMIT;")
            elif version != SCHEMA:
                raise InputError(f"{self.path} is no store of votes that this version of Manners reads (its number is {version}).")
        except sqlite3.DatabaseError as error:
            connection.close()
            if isinstance(error, sqlite3.OperationalError):
                raise MannersError(f"{self.path} cannot be opened: {error}; does another process hold it?") from None
            raise InputError(f"{self.path} is no SQLite file ({error}).") from None
        except InputError:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        """Close the file, and fold its log into it."""
        self.connection.close()

    def transaction(self, work: Callable[[], T]) -> T:
        """Run `work`, commit, and return what it gave. For a store that no Writer owns."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            found = work()
            self.connection.execute("COMMIT")
        except BaseException:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise
        return found

    # --- meta and people ---

    def meta(self, key: str) -> str | None:
        found = self.connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if found is None else found[0]

    def set_meta(self, key: str, value: str) -> None:
        self.connection.execute("INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", (key, value))

    def annotator(self, name: str) -> int:
        """The number of a person, who is added if new."""
        self.connection.execute("INSERT OR IGNORE INTO annotators (name, at) VALUES (?, ?)", (name, time.time()))
        return self.connection.execute("SELECT annotator FROM annotators WHERE name = ?", (name,)).fetchone()[0]

    def names(self) -> dict[int, str]:
        return dict(self.connection.execute("SELECT annotator, name FROM annotators ORDER BY annotator"))

    def add_session(self, digest: str, annotator: int) -> None:
        self.connection.execute("INSERT OR REPLACE INTO sessions VALUES (?, ?, ?)", (digest, annotator, time.time()))

    def sessions(self) -> dict[str, int]:
        return dict(self.connection.execute("SELECT digest, annotator FROM sessions"))

    # --- items ---

    def add_items(self, items: Iterable[Item]) -> None:
        """Add those whose key is new. An item that is there already stays as it is."""
        self.connection.executemany(
            "INSERT OR IGNORE INTO items (key, row, prompt, answers, models, gold, columns, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    *(i.key, i.row, _json(i.prompt), _json(i.answers), _json(i.models)),
                    *(None if i.gold is None else _json(i.gold), _json(i.columns or {}), time.time()),
                )
                for i in items
            ),
        )

    def items(self, keys: Sequence[str] | None = None) -> dict[int, Item]:
        """Items by number: all, or those with these keys."""
        wanted, found = None if keys is None else set(keys), {}
        select = "SELECT item, key, row, prompt, answers, models, gold, columns FROM items"
        one = " WHERE key = ?" if keys is not None and len(keys) == 1 else " ORDER BY item"
        rows = self.connection.execute(select + one, tuple(keys or ()) if one.startswith(" WHERE") else ())
        for number, key, row, prompt, answers, models, gold, columns in rows:
            if wanted is None or key in wanted:
                right = None if gold is None else json.loads(gold)
                whose = tuple(json.loads(models))
                found[number] = Item(key, row, json.loads(prompt), tuple(json.loads(answers)), whose, right, json.loads(columns), number)
        return found

    def item(self, key: str) -> Item:
        """The item with this key."""
        return next(iter(self.items([key]).values()))

    # --- showing and voting ---

    def show(self, item: int, annotator: int, places: Sequence[int]) -> int:
        """Record which answers stand where before somebody; returns the number of the showing."""
        row = (item, annotator, _json(places), time.time())
        return self.connection.execute("INSERT INTO shown (item, annotator, places, at) VALUES (?, ?, ?, ?)", row).lastrowid or 0

    def shown(self) -> Iterator[tuple[int, int, int, tuple[int, ...]]]:
        """(showing, item, annotator, places), in order."""
        for number, item, annotator, places in self.connection.execute("SELECT shown, item, annotator, places FROM shown ORDER BY shown"):
            yield number, item, annotator, tuple(json.loads(places))

    def vote(self, annotator: int, key: str, shown: int, verdict: dict[str, Any], seconds: float | None) -> int:
        """Record a verdict as it was given; returns the vote's number."""
        row = (annotator, key, shown, _json(verdict), seconds, time.time())
        insert = "INSERT INTO votes (annotator, key, shown, verdict, seconds, at) VALUES (?, ?, ?, ?, ?, ?)"
        return self.connection.execute(insert, row).lastrowid or 0

    def undo(self, annotator: int, key: str, vote: int) -> int:
        """Record that a vote is taken back; returns the record's own number."""
        row = (annotator, key, vote, "{}", time.time())
        insert = "INSERT INTO votes (annotator, key, undoes, verdict, at) VALUES (?, ?, ?, ?, ?)"
        return self.connection.execute(insert, row).lastrowid or 0

    def keys(self) -> dict[tuple[int, str], int]:
        """The number of every record by annotator and key: who sends the same again is told the same."""
        return {(who, key): number for number, who, key in self.connection.execute("SELECT vote, annotator, key FROM votes")}

    def standing(self) -> list[Said]:
        """Votes that were not taken back, in the order they were given."""
        rows = self.connection.execute(
            "SELECT v.vote, s.item, v.annotator, s.places, v.verdict, v.seconds, v.at FROM votes v JOIN shown s ON s.shown = v.shown "
            "WHERE v.vote NOT IN (SELECT undoes FROM votes WHERE undoes IS NOT NULL) ORDER BY v.vote"
        )
        return [
            Said(vote, item, who, tuple(json.loads(places)), json.loads(verdict), seconds, at)
            for vote, item, who, places, verdict, seconds, at in rows
        ]

    def records(self) -> int:
        """Votes and undos together."""
        return self.connection.execute("SELECT count(*) FROM votes").fetchone()[0]


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


class Refused(Exception):
    """A request that cannot be granted and has changed nothing. `status` is HTTP's number for why."""

    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status = status


class Writer:
    """The one thread that works on a store. What waits is done in one transaction; each caller hears of it after the commit.

    A piece of work that raises is rolled back by itself. If the commit fails (a full disk), everybody of it hears so. After either (but
    not after `Refused`) `after_failure` runs, which should read anew what was held in memory.
    """

    def __init__(self, store: Store, after_failure: Callable[[], None] = lambda: None, most: int = 256):
        self.store, self.after_failure, self.most = store, after_failure, most
        self.commits = 0
        self._queue: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="votes", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], T]) -> "Future[T]":
        """Have `work` done in the writer's thread. The result is there once it is on the disk."""
        done: Future[T] = Future()
        self._queue.put((work, done))
        return done

    def close(self) -> None:
        """Do what waits, then stop; again does nothing. The store stays open."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _run(self) -> None:
        going = True
        while going:
            jobs = [self._queue.get()]
            while len(jobs) < self.most and jobs[-1] is not None:
                try:
                    jobs.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            going = jobs[-1] is not None
            if waiting := [job for job in jobs if job is not None]:
                self._together(waiting)

    def _together(self, jobs: Sequence[tuple[Callable[[], Any], Future[Any]]]) -> None:
        connection = self.store.connection
        done: list[tuple[Future[Any], Any, Exception | None]] = []
        try:
            connection.execute("BEGIN IMMEDIATE")
            for work, future in jobs:
                if not future.set_running_or_notify_cancel():  # who asked has left before it was begun
                    continue
                connection.execute("SAVEPOINT job")
                try:
                    done.append((future, work(), None))
                except Exception as error:
                    if not connection.in_transaction:  # SQLite gave up all of it, as it does when the disk is full
                        raise
                    connection.execute("ROLLBACK TO job")
                    if not isinstance(error, Refused):
                        self.after_failure()
                    done.append((future, None, error))
                connection.execute("RELEASE job")
            connection.execute("COMMIT")
            self.commits += 1
        except Exception as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            self.after_failure()
            refused = MannersError(f"{self.store.path} could not be written ({error}); the vote is not kept.")
            done = [(future, None, refused) for _, future in jobs if not future.cancelled()]
        for future, result, error in done:
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
