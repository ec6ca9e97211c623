"""Agreement with people: votes, ties, intervals over prompts."""

import pytest

from manners.evaluate.agreement import Compared, Judged, agreement, llmbar, panda, share, wins
from tests.conftest import write_rows


def test_ties_count_half():
    assert wins([(2, 1), (1, 2), (1, 1)]) == [1.0, 0.0, 0.5]


def test_the_interval_draws_the_pairs_of_a_prompt_together():
    values = [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    alone = share(values, [str(i) for i in range(8)])
    together = share(values, ["a"] * 4 + ["b"] * 4)
    assert alone["value"] == together["value"] == 0.5
    assert (together["low"], together["high"]) == (0.0, 1.0) and 0.1 < alone["low"] < alone["high"] < 0.9


def test_votes_of_three(tmp_path):
    texts = {"instruction": "Name it.", "input": "", "response1": "one", "response2": "two"}
    votes = [(1, 1, 2), (2, 2, 0), (0, 0, 1), (0, 1, 2)]
    judged = panda(write_rows(tmp_path / "a.jsonl", [texts | {f"annotator{i}": v for i, v in enumerate(row, 1)} for row in votes]))
    assert judged.pairs == [Compared("Name it.", "one", "two"), Compared("Name it.", "two", "one")]
    assert judged.dropped == 2
    assert judged.among_people == pytest.approx(2 / 5)  # alike: 1-1 and 2-2; not: 1-2, 1-2, 1-2


def test_the_natural_subset(tmp_path):
    rows = [
        {"subset": "Natural", "input": "a", "output_1": "x", "output_2": "y", "label": 2},
        {"subset": "Adversarial/Manual", "input": "a", "output_1": "x", "output_2": "y", "label": 1},
    ]
    assert llmbar(write_rows(tmp_path / "a.jsonl", rows)).pairs == [Compared("a", "y", "x")]


def test_agreement_on_plain_cases():
    good, loop = "Freeze the gum until it is hard and scrape it off.", "Gum is gum. " * 12
    found = agreement(Judged([Compared("How do I remove gum?", good, loop), Compared("Is gum sticky?", good, good)], 1, None))
    assert (found["n"], found["prompts"], found["ties"], found["dropped"]) == (2, 2, 1, 1)
    assert found["agreement"]["value"] == 0.75 and found["longer_wins"]["value"] == 0.25
