"""Who is asked what, in which order, with which answer where; and what becomes of what they say.

An item is shared (everybody judges it: gold questions, and a share `overlap` of the others) or goes to `each` people. The order of the
items and the places of the answers are drawn by the seed, the item and the person's name, so that they do not hang on who came first; the
places are recorded with every showing, in the transaction of the vote before. All of it runs in the store's writer thread.
"""

import hashlib
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from manners.core.chance import uniform
from manners.feedback.items import BadVerdict, check_verdict, in_answers, right, turns
from manners.feedback.store import Refused, Store

LEASE = 1800.0
"""Seconds for which an item that was put before somebody is not given to another."""
LONGEST_KEY, LONGEST_NAME = 64, 60


class Showing(NamedTuple):
    """An item before somebody: the record's number, the item's, which answer stands at which place, and since when."""

    shown: int
    item: int
    places: tuple[int, ...]
    at: float


@dataclass(slots=True)
class Person:
    """Somebody who judges."""

    number: int
    name: str
    queue: list[int] = field(default_factory=list)
    """All items in this person's order; those before `begin` are settled."""
    begin: int = 0
    done: dict[int, int] = field(default_factory=dict)
    """Item -> vote that stands, a skip among them; in the order they were given."""
    skipped: set[int] = field(default_factory=set)
    now: Showing | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """How the items are shared out. `people` are the names that may enter, None for anybody."""

    seed: int = 0
    overlap: float = 0.2
    each: int = 1
    shuffled: bool = True
    aspects: tuple[str, ...] = ()
    people: tuple[str, ...] | None = None


class Desk:
    """What lies before whom. Built from the store, and built again from it after a failure: the store is the truth."""

    def __init__(self, store: Store, plan: Plan, keys: Sequence[str] | None = None, clock: Callable[[], float] = time.time):
        self.store, self.plan, self.clock = store, plan, clock
        self.keys = None if keys is None else list(keys)
        self.load()

    def load(self) -> None:
        """Read everything from the store."""
        self.items = self.store.items(self.keys)
        plain = sorted((n for n, item in self.items.items() if item.gold is None), key=lambda n: self._draw("overlap", n))
        self.shared = set(plain[: round(self.plan.overlap * len(plain))]) | {n for n, item in self.items.items() if item.gold is not None}
        self.count: Counter[int] = Counter()
        self.open = {n for n in self.items if n not in self.shared}
        """Items of the others that need more votes."""
        self.leases: dict[int, dict[int, float]] = defaultdict(dict)
        self.people = {number: self._person(number, name) for number, name in self.store.names().items()}
        self.sessions, self.said = self.store.sessions(), self.store.keys()
        for vote in self.store.standing():
            self._count(self.people[vote.annotator], vote.item, vote.vote, bool(vote.verdict.get("skip")))
        self.last: dict[tuple[int, int], tuple[int, ...]] = {}
        """(person, item) -> the places of its last showing; it is shown so again."""
        for number, item, who, places in self.store.shown():
            person = self.people[who]
            self.last[who, item] = places
            person.now = Showing(number, item, places, self.clock()) if item in self.items and item not in person.done else None
        for person in self.people.values():
            if person.now is not None:
                self.leases[person.now.item][person.number] = person.now.at

    def _person(self, number: int, name: str) -> Person:
        size = max((item.row for item in self.items.values()), default=0) + 1

        def place(n: int) -> float:
            item = self.items[n]
            return self._draw(name, n) if self.plan.shuffled or item.gold is not None else item.row / size

        return Person(number, name, sorted(self.items, key=place))

    def _draw(self, name: str, item: int, part: int = 0) -> float:
        words = f"{self.plan.seed}\0{name}\0{self.items[item].key}".encode("utf-8", "replace")
        return uniform(hashlib.blake2b(words, digest_size=32).digest(), part)

    # --- coming in ---

    def enter(self, name: str) -> tuple[Person, str]:
        """A person by name, new or known, and the secret of a new session of theirs. Raises Refused for a name that cannot be one."""
        name = " ".join(str(name).split())
        if not name or len(name) > LONGEST_NAME or not name.isprintable():
            raise Refused(422, f"a name has 1 to {LONGEST_NAME} printable characters")
        if self.plan.people is not None and name not in self.plan.people:
            raise Refused(403, "this name is not among those who were asked to judge")
        secret = secrets.token_urlsafe(24)
        person = self.known(name)
        self.add_session(secret, person)
        return person, secret

    def known(self, name: str) -> Person:
        """The person of this name, added if new."""
        number = self.store.annotator(name)
        if number not in self.people:
            self.people[number] = self._person(number, name)
        return self.people[number]

    def add_session(self, secret: str, person: Person) -> None:
        """Let a secret stand for a person, after a restart, too: the store keeps its SHA-256."""
        self.store.add_session(digest(secret), person.number)
        self.sessions[digest(secret)] = person.number

    def person(self, secret: str) -> Person:
        """Whose session it is. Raises Refused."""
        number = self.sessions.get(digest(secret))
        if number is None or number not in self.people:
            raise Refused(401, "this session is not known; enter again")
        return self.people[number]

    # --- asking and hearing ---

    def next(self, person: Person) -> dict[str, Any]:
        """What is before a person: the item that lies there already, or the next one, whose showing is recorded."""
        if person.now is None and (item := self._free(person)) is not None:
            self.put(person, item)
        return self.view(person)

    def put(self, person: Person, item: int, places: tuple[int, ...] | None = None) -> None:
        """Put an item before somebody, and record it."""
        places = self.places(item, person) if places is None else places
        person.now = Showing(self.store.show(item, person.number, places), item, places, self.clock())
        self.last[person.number, item] = places
        self.leases[item][person.number] = person.now.at

    def places(self, item: int, person: Person) -> tuple[int, ...]:
        """Which answer stands at which place before this person, always the same."""
        answers = range(len(self.items[item].answers))
        return tuple(sorted(answers, key=lambda answer: self._draw(f"places\0{person.name}", item, answer)))

    def _free(self, person: Person) -> int | None:
        moving = True
        for place in range(person.begin, len(person.queue)):
            item = person.queue[place]
            settled = item in person.done or (item not in self.shared and item not in self.open)
            moving = moving and settled
            if moving:
                person.begin = place + 1
            if not settled and (item in self.shared or not self._taken(item, person)):
                return item
        return None

    def _taken(self, item: int, person: Person) -> bool:
        """Whether as many others as are needed have the item before them now."""
        since = self.clock() - LEASE
        others = sum(at > since for who, at in self.leases.get(item, {}).items() if who != person.number)
        return self.count[item] + others >= self.plan.each

    def vote(self, person: Person, item: int, key: str, verdict: Any, seconds: float | None) -> dict[str, Any]:
        """Record a verdict on the item before a person; returns the vote's number and what is next.

        The same key again is the same vote, and gets the same number: a browser that did not hear the answer asks again. Raises Refused.
        """
        known = self._known(person, key)
        if known is not None:
            return {"vote": known, **self.next(person)}
        if person.now is None or person.now.item != item:
            why = (
                "it was judged before; undo to judge it again"
                if item in person.done
                else "it is not what lies before you; load the page anew"
            )
            raise Refused(409, f"item {item}: {why}")
        try:
            said = check_verdict(self.store.mode, verdict, len(person.now.places), self.plan.aspects)
        except BadVerdict as error:
            raise Refused(422, str(error)) from None
        number = self.store.vote(person.number, key, person.now.shown, said, seconds)
        self.said[person.number, key] = number
        self._count(person, item, number, bool(said.get("skip")))
        person.now = None
        return {"vote": number, **self.next(person)}

    def undo(self, person: Person, key: str) -> dict[str, Any]:
        """Take back a person's last vote, by a new record, and put its item before them again. Raises Refused."""
        known = self._known(person, key)
        if known is not None:
            return {"vote": known, **self.next(person)}
        item = next((item for item in reversed(person.done) if item in self.items), None)
        if item is None:
            raise Refused(409, "there is no vote to take back")
        if person.now is not None:
            self.leases[person.now.item].pop(person.number, None)
        number = self.store.undo(person.number, key, person.done[item])
        self.said[person.number, key] = number
        del person.done[item]
        if item in person.skipped:
            person.skipped.discard(item)
        else:
            self.count[item] -= 1
            if item not in self.shared and self.count[item] < self.plan.each:
                self.open.add(item)
        for other in self.people.values():
            other.begin = 0
        self.put(person, item, self.last.get((person.number, item)))
        return {"vote": number, **self.view(person)}

    def _known(self, person: Person, key: str) -> int | None:
        if not isinstance(key, str) or not 8 <= len(key) <= LONGEST_KEY or not key.isascii():
            raise Refused(422, f"'key' names the request, in 8 to {LONGEST_KEY} characters")
        return self.said.get((person.number, key))

    def _count(self, person: Person, item: int, vote: int, skip: bool) -> None:
        person.done[item] = vote
        self.leases.get(item, {}).pop(person.number, None)
        if skip:
            person.skipped.add(item)
            return
        self.count[item] += 1
        if self.count[item] >= self.plan.each:
            self.open.discard(item)

    # --- what a browser is told ---

    def view(self, person: Person) -> dict[str, Any]:
        """The item before a person as their browser may know it (no models, no gold, no row), and how far they are."""
        return {"item": None if person.now is None else self._seen(person.now), "progress": self.progress(person)}

    def _seen(self, now: Showing) -> dict[str, Any]:
        item = self.items[now.item]
        system = (item.columns or {}).get("system")
        opening = [{"role": "system", "content": system}] if isinstance(system, str) else []
        return {"item": now.item, "prompt": opening + turns(item.prompt), "answers": [item.answers[answer] for answer in now.places]}

    def progress(self, person: Person) -> dict[str, int]:
        """`done` by this person, and `left` for them as things stand (others may take some of it)."""
        mine = sum(item in self.items for item in person.done)
        shared = sum(item in self.shared for item in person.done)
        given = sum(item in self.open for item in person.done)
        return {"done": mine, "left": len(self.shared) - shared + len(self.open) - given, "can_undo": int(mine > 0)}


def digest(secret: str) -> str:
    """What the store keeps of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def gold_scores(store: Store) -> dict[str, dict[str, float | int]]:
    """Annotator -> how right on gold questions: mean (0 to 1) and number, skips left out."""
    items, names = store.items(), store.names()
    found: dict[str, list[float]] = defaultdict(list)
    for said in store.standing():
        gold = items[said.item].gold
        if gold is not None and not said.verdict.get("skip"):
            found[names[said.annotator]].append(right(in_answers(said.verdict, said.places), gold))
    return {name: {"accuracy": sum(values) / len(values), "n": len(values)} for name, values in sorted(found.items())}
