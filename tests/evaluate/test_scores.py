"""How good scores are: rows reckoned by hand, and `manners score` end to end."""

import json
import math

import numpy as np
import pytest

from manners.core.files import read_json, read_jsonl
from manners.core.records import Group, Prompt, Response
from manners.evaluate.scores import Judged, judged, label_report, ordered, preference_report, rating_report
from manners.ops.calibration import ece
from tests.conftest import write_rows


def pair(prompt: str, gap: float, words: int = 0, margin: float | None = None, source: str = "") -> Judged:
    return Judged(prompt, source, gap, words, margin)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_a_prompt_counts_once_and_a_tie_is_half_right():
    """Prompt a has three pairs, two right; b one tie; c one wrong: (2/3 + 1/2 + 0) / 3."""
    pairs = [pair("a", 1.0), pair("a", 2.0), pair("a", -1.0), pair("b", 0.0), pair("c", -0.5)]
    found = preference_report(pairs)
    assert found["accuracy"]["value"] == pytest.approx((2 / 3 + 0.5) / 3) and found["accuracy"]["n"] == 3
    loss = [np.logaddexp(0, -g) for g in (1.0, 2.0, -1.0)]
    assert found["log_loss"]["value"] == pytest.approx((np.mean(loss) + math.log(2) + np.logaddexp(0, 0.5)) / 3)
    assert (found["prompts"], found["pairs"], found["ties"]) == (3, 5, 1)


def test_probabilities_are_of_raw_scores():
    """A normaliser that doubles all scores comes with a factor of one half."""
    gaps = [0.7, -0.2, 1.5, 0.1]
    plain = preference_report([pair(str(i), g) for i, g in enumerate(gaps)])
    doubled = preference_report([pair(str(i), 2 * g) for i, g in enumerate(gaps)], logit=0.5)
    assert doubled == plain
    p, right = [sigmoid(abs(g)) for g in gaps], [1, 0, 1, 1]
    assert plain["ece"] == pytest.approx(ece(p, right))
    assert sum(b["n"] for b in plain["reliability"]) == 4 and min(b["low"] for b in plain["reliability"]) >= 0.5


def test_the_longer_one_as_a_rule():
    pairs = [pair("a", 1, words=3), pair("b", 1, words=-2), pair("c", 1, words=0), pair("d", -1, words=40)]
    found = preference_report(pairs)
    assert found["longer_wins"]["value"] == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert found["above_longer_wins"]["value"] == pytest.approx(0.75 - 2.5 / 4)
    assert {name: (e["value"], e["n"]) for name, e in found["by_length"].items()} == {
        "within 25": (1.0, 3),
        "longer by more than 25": (0.0, 1),
    }


def test_buckets_of_margins_and_sources():
    few = preference_report([pair(str(i), i - 1.5, margin=float(i % 2), source="ab"[i % 2]) for i in range(4)])
    assert {name: e["value"] for name, e in few["by_margin"].items()} == {"0": 0.5, "1": 0.5}
    assert few["by_source"].keys() == {"others"}  # fewer than ten prompts each
    many = preference_report([pair(str(i), i - 20.0, margin=float(i), source="x" if i < 30 else "y") for i in range(40)])
    assert [e["n"] for e in many["by_margin"].values()] == [10, 10, 10, 10]
    assert list(many["by_margin"])[:1] == ["up to 9.75"] and list(many["by_margin"])[3:] == ["over 29.2"]
    assert many["by_margin"]["over 29.2"]["value"] == 1.0 and many["by_source"]["y"]["value"] == 1.0
    bare = preference_report([pair("a", 1.0)])
    assert not bare["by_margin"] and not bare["by_source"]


def answers(*scores: dict[str, float]) -> Group:
    return Group(Prompt.user("q"), [Response.answer("a b c"[: 1 + 2 * i], scores=s) for i, s in enumerate(scores)])


def test_which_pairs_a_group_orders():
    assert ordered(answers({}, {})) == [(0, 1)] and ordered(answers({})) == [] == ordered(answers({}, {}, {}))
    assert ordered(answers({"rank": 2}, {"rank": 1}, {"rank": 2})) == [(1, 0), (1, 2)]
    assert ordered(answers({"best": 0}, {"best": 0}, {"best": 1})) == [(2, 0), (2, 1)]
    [one, _] = judged([answers({"rank": 2}, {"rank": 1}, {"rank": 2})], [[0.5, 2.0, 3.0]])
    assert (one.gap, one.words) == (1.5, 1)


def test_ratings():
    said, given = np.array([[1.0, 0.0], [2.0, 5.0], [4.0, 1.0]]), np.array([[1.0, np.nan], [3.0, np.nan], [5.0, 2.0]])
    found = rating_report(said, given, ["a", "b", "c"][:2], ["p", "q", "q"])["aspects"]
    assert found["a"]["squared_error"]["value"] == pytest.approx((0 + (1 + 1) / 2) / 2) and found["a"]["squared_error"]["n"] == 2
    assert found["a"]["of_the_mean"] == pytest.approx(np.var([1, 3, 5]))
    assert found["a"]["correlation"] == pytest.approx(np.corrcoef(said[:, 0], given[:, 0])[0, 1])
    assert found["b"]["n"] == 1 and found["b"]["correlation"] is None


def test_labels():
    logits = np.array([[2.0, 1.0, 0.1], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    found = label_report(logits, np.array([0, 2, 2]), ["x", "y", "z"], ["p", "q", "r"])
    assert found["accuracy"]["value"] == pytest.approx(2 / 3) and found["commonest"] == pytest.approx(2 / 3)
    expected = [0.4170300163, -1 + math.log(2 + math.e), math.log(2 + math.e)]
    assert found["log_loss"]["value"] == pytest.approx(np.mean(expected), abs=1e-9)
    assert {k: e["value"] for k, e in found["by_label"].items()} == {"x": 1.0, "z": 0.5}


def test_score_writes_a_line_a_response_and_a_report(manners, tiny_model, pairs, demonstrations, tmp_path):
    more = ["learning_rate=1e-3", "validation=0", "members=2"]
    assert manners("reward", f"model={tiny_model}", f"data={pairs}", f"out={tmp_path / 'rm'}", *more).code == 0
    out = tmp_path / "scores.jsonl"
    done = manners("score", pairs, f"reward={tmp_path / 'rm'}", f"out={out}", "--json")
    rows = read_jsonl(out)
    assert [(r["row"], r["response"]) for r in rows] == [(i, name) for i in range(4) for name in ("chosen", "rejected")]
    assert all(len(r["outputs"]["reward"]) == 2 and math.isfinite(r["score"]) for r in rows)
    said = json.loads(done.stdout[-1])
    right = np.mean([rows[2 * i]["score"] > rows[2 * i + 1]["score"] for i in range(4)])
    assert said["report"]["accuracy"]["value"] == right == read_json(tmp_path / "scores.report.json")["accuracy"]["value"]
    trained = read_json(tmp_path / "rm" / "report.json")["train"]
    assert said["report"]["log_loss"]["value"] == pytest.approx(trained["log_loss"]["value"], abs=1e-6)

    assert manners("score", demonstrations, f"reward={tmp_path / 'rm'}", f"out={tmp_path / 'plain.jsonl'}").code == 0
    assert len(read_jsonl(tmp_path / "plain.jsonl")) == 6 and not (tmp_path / "plain.report.json").exists()
    assert manners("score", pairs, "reward=length", f"out={tmp_path / 'length.jsonl'}").code == 0
    assert [r["score"] for r in read_jsonl(tmp_path / "length.jsonl")][:2] == [3.0, 1.0]


def test_what_cannot_be_scored(manners, tiny_model, pairs, tmp_path):
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "a"}])
    refused = manners("score", prompts, "reward=length", f"out={tmp_path / 'x.jsonl'}")
    assert refused.code == 2 and "nothing to score" in refused.error
    refused = manners("score", pairs, f"reward={tiny_model}", f"out={tmp_path / 'x.jsonl'}")
    assert refused.code == 2 and "is a language model, which has no head that scores" in refused.error
