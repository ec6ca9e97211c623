"""Who is asked what: shares, orders, undo, resume."""

from collections import Counter
from pathlib import Path

import pytest

from manners.feedback.asking import LEASE, Desk, Plan, gold_scores
from manners.feedback.store import Item, Refused, Store


def desk_of(folder: Path, items: int = 20, gold: int = 0, clock=lambda: 1000.0, **plan) -> Desk:
    store = Store(folder, "choose")
    listed = [Item(f"k{i}", i, f"p{i}", (f"x{i}", f"y{i}"), ("m", "n")) for i in range(items)]
    listed += [Item(f"g{i}", i, f"q{i}", ("right", "wrong"), (None, None), {"choice": 0}) for i in range(gold)]
    store.transaction(lambda: store.add_items(listed))
    return Desk(store, Plan(**plan), None, clock)


class Judge:
    """Somebody who chooses by a rule."""

    def __init__(self, desk: Desk, name: str):
        self.desk, self.sent = desk, 0
        self.person, self.secret = desk.store.transaction(lambda: desk.enter(name))

    def next(self):
        return self.desk.store.transaction(lambda: self.desk.next(self.person))["item"]

    def say(self, verdict, item=None, key=None):
        self.sent += 1
        key = key or f"{self.person.name}-key-{self.sent}"
        item = self.person.now.item if item is None else item
        return self.desk.store.transaction(lambda: self.desk.vote(self.person, item, key, verdict, 1.0))

    def undo(self):
        self.sent += 1
        return self.desk.store.transaction(lambda: self.desk.undo(self.person, f"{self.person.name}-key-{self.sent}"))

    def all(self, rule=lambda item: {"choice": 0}):
        seen = []
        while (item := self.next()) is not None:
            seen.append(item["item"])
            self.say(rule(item))
        return seen


def test_one_person_judges_everything_once_in_an_order_of_their_own(tmp_path):
    desk = desk_of(tmp_path)
    anna = Judge(desk, "anna")
    seen = anna.all()
    assert sorted(seen) == list(range(1, 21)) and seen != sorted(seen)
    assert desk.progress(anna.person) == {"done": 20, "left": 0, "can_undo": 1}
    assert Judge(desk_of(tmp_path / "b", shuffled=False), "anna").all() == list(range(1, 21))


def test_shared_items_go_to_all_and_others_to_each(tmp_path):
    desk = desk_of(tmp_path, items=40, gold=4, overlap=0.25, each=2)
    people = [Judge(desk, name) for name in ("anna", "ben", "cleo")]
    going = True
    while going:
        going = False
        for judge in people:
            if judge.next() is not None:
                judge.say({"choice": 1})
                going = True
    votes = Counter(said.item for said in desk.store.standing())
    assert len(desk.shared) == 10 + 4 and all(votes[item] == 3 for item in desk.shared)
    assert all(count == 2 for item, count in votes.items() if item not in desk.shared) and len(votes) == 44


def test_what_lies_before_somebody_is_not_given_to_another_until_it_has_lain_long(tmp_path):
    now = [0.0]
    desk = desk_of(tmp_path, items=1, overlap=0.0, clock=lambda: now[0])
    anna, ben = Judge(desk, "anna"), Judge(desk, "ben")
    assert anna.next()["item"] == 1 and ben.next() is None
    now[0] = LEASE + 1
    assert ben.next()["item"] == 1
    anna.say({"choice": 0})
    ben.say({"choice": 1})  # came late, and is kept
    assert len(desk.store.standing()) == 2


def test_a_skip_frees_the_item_for_others(tmp_path):
    desk = desk_of(tmp_path, items=1, overlap=0.0)
    anna, ben = Judge(desk, "anna"), Judge(desk, "ben")
    anna.next()
    anna.say({"skip": True})
    assert anna.next() is None and ben.next()["item"] == 1


def test_places_are_drawn_by_item_and_person_and_recorded(tmp_path):
    desk = desk_of(tmp_path, items=300, overlap=1.0)
    anna, ben = Judge(desk, "anna"), Judge(desk, "ben")
    anna.all()
    ben.all()
    shown = {(who, item): places for _, item, who, places in desk.store.shown()}
    swapped = [sum(shown[p.person.number, i] == (1, 0) for i in range(1, 301)) for p in (anna, ben)]
    assert all(110 < count < 190 for count in swapped)
    both = sum(shown[anna.person.number, i] == shown[ben.person.number, i] for i in range(1, 301))
    assert 110 < both < 190
    assert shown == {(p.person.number, i): desk.places(i, p.person) for p in (anna, ben) for i in range(1, 301)}
    other = desk_of(tmp_path / "b", items=300, overlap=1.0, seed=1)
    assert any(other.places(i, anna.person) != shown[anna.person.number, i] for i in range(1, 301))


def test_what_a_browser_is_told_holds_no_model_no_gold_no_row(tmp_path):
    desk = desk_of(tmp_path, items=1, gold=1)
    anna = Judge(desk, "anna")
    for _ in range(2):
        seen = anna.next()
        assert seen.keys() == {"item", "prompt", "answers"}
        assert sorted(seen["answers"]) in (["x0", "y0"], ["right", "wrong"])
        anna.say({"choice": 0})


def test_undo_is_a_new_record_and_shows_the_item_again_as_it_stood(tmp_path):
    desk = desk_of(tmp_path, items=3, overlap=0.0)
    anna = Judge(desk, "anna")
    first = anna.next()
    anna.say({"choice": 0})
    second = anna.next()
    told = anna.undo()
    assert told["item"] == first and told["progress"]["done"] == 0 and desk.store.standing() == []
    anna.say({"choice": 1})
    assert anna.next() == second  # what lay before comes again
    assert [said.verdict for said in desk.store.standing()] == [{"choice": 1}] and desk.store.records() == 3
    anna.undo()
    with pytest.raises(Refused, match="no vote to take back"):
        anna.undo()


def test_the_same_key_is_the_same_vote(tmp_path):
    desk = desk_of(tmp_path, items=3)
    anna = Judge(desk, "anna")
    item = anna.next()["item"]
    first = anna.say({"choice": 0}, key="the-same-key")
    again = anna.say({"choice": 0}, item=item, key="the-same-key")
    assert again["vote"] == first["vote"] and again["item"] == first["item"] and desk.store.records() == 1
    with pytest.raises(Refused) as refused:
        anna.say({"choice": 1}, item=item)
    assert refused.value.status == 409 and "judged before" in str(refused.value)
    with pytest.raises(Refused, match="'choice'"):
        anna.say({"choice": 9})
    with pytest.raises(Refused, match="'key'"):
        anna.say({"choice": 0}, key="short")
    assert desk.store.records() == 1


def test_resume_from_the_store_alone(tmp_path):
    desk = desk_of(tmp_path, items=30, gold=2, overlap=0.3)
    anna, ben = Judge(desk, "anna"), Judge(desk, "ben")
    for _ in range(7):
        anna.next()
        anna.say({"choice": 0})
        ben.next()
        ben.say({"choice": 1})
    ben.undo()
    before = (anna.next(), ben.next(), desk.progress(anna.person), desk.progress(ben.person))
    desk.store.close()
    again = desk_of(tmp_path, items=30, gold=2, overlap=0.3)
    anna_now, ben_now = again.person(anna.secret), again.person(ben.secret)
    told = again.store.transaction(lambda: (again.next(anna_now)["item"], again.next(ben_now)["item"]))
    assert (*told, again.progress(anna_now), again.progress(ben_now)) == before
    with pytest.raises(Refused, match="not known"):
        again.person("another secret")


def test_names(tmp_path):
    desk = desk_of(tmp_path, people=("anna",))
    with pytest.raises(Refused, match="not among"):
        desk.enter("ben")
    open_desk = desk_of(tmp_path / "b")
    for name in ("", " ", "x" * 61, "a\x00b", "\ud800"):
        with pytest.raises(Refused):
            open_desk.enter(name)
    assert open_desk.store.transaction(lambda: open_desk.enter("  Anna   Maria "))[0].name == "Anna Maria"


def test_gold_scores(tmp_path):
    desk = desk_of(tmp_path, items=2, gold=5)
    good, bad = Judge(desk, "good"), Judge(desk, "bad")
    good.all(lambda item: {"choice": item["answers"].index("right") if "right" in item["answers"] else 0})
    bad.all(lambda item: {"choice": 1 - item["answers"].index("right") if "right" in item["answers"] else 0})
    assert gold_scores(desk.store) == {"bad": {"accuracy": 0.0, "n": 5}, "good": {"accuracy": 1.0, "n": 5}}
