"""`manners best-of-n`: the curve against drawing anew, what is chosen, what is refused."""

import json
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest

from manners.core.errors import InputError
from manners.core.files import read_json, read_jsonl
from manners.evaluate.best_of_n import BestOfNSettings, best_of_n, curve
from manners.ops.best_of_n import kl_bound
from tests.markdown import DOCS, table
from tests.test_docs import is_default


def pool(path: Path, *prompts: list[tuple[str, str]]) -> str:
    rows = [
        {
            "row": row,
            "messages": [{"role": "user", "content": f"Ask {row}"}],
            "responses": [{"text": text, "finish_reason": reason} for text, reason in answers],
        }
        for row, answers in enumerate(prompts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_curve_is_the_mean_over_all_subsets():
    random = np.random.default_rng(0)
    proxy, gold = random.normal(size=(5, 6)), random.normal(size=(5, 6))
    points = curve(proxy, gold)
    assert [p["n"] for p in points] == [1, 2, 3, 4, 5, 6]
    for point in points:
        subsets = [list(c) for c in combinations(range(6), point["n"])]
        best = np.mean([[g[c][np.argmax(p[c])] for c in subsets] for p, g in zip(proxy, gold, strict=True)])
        assert point["gold"]["value"] == pytest.approx(best) and point["gold"]["low"] <= best <= point["gold"]["high"]
        assert point["kl"]["value"] == pytest.approx(kl_bound(point["n"]), abs=1e-9)  # no two scores are equal
    assert points[0]["proxy"]["value"] == pytest.approx(proxy.mean()) and points[-1]["proxy"]["value"] == pytest.approx(proxy.max(1).mean())


def test_the_proxy_does_not_fall_with_n():
    random = np.random.default_rng(1)
    for scores in (random.normal(size=(7, 70)), random.integers(0, 3, size=(7, 33)).astype(float)):
        values = [point["proxy"]["value"] for point in curve(scores)]
        assert all(b >= a - 1e-12 for a, b in pairwise(values)) and values[-1] > values[0]


def test_ties_lower_the_measured_kl():
    """A coin with two outcomes: 0.1308 nats for the best of 2 (algorithms.md 5.1), where the bound says 0.1931."""
    coin = np.tile([0.0, 1.0], (1, 500))
    point = curve(coin)[1]
    assert (
        point["n"] == 2
        and point["kl"]["value"] == pytest.approx(0.1308120359, abs=1e-9)
        and point["kl_bound"] == pytest.approx(0.1931471806)
    )


def test_the_command(tmp_path, manners):
    data = pool(
        tmp_path / "rows.jsonl",
        [("one", "stop"), ("one two three", "length"), ("one two", "stop"), ("one", "stop")],
        [("a b c d", "length"), ("a", "length"), ("a b", "length"), ("a b", "length")],
    )
    assert manners("best-of-n", f"data={data}", "reward=length", "gold=-1*length", f"out={tmp_path / 'out'}").code == 0
    found = read_json(tmp_path / "out" / "best_of_n.json")
    assert {key: found[key] for key in ("prompts", "samples", "distinct", "distinct_scores", "best_tied", "cut")} == {
        "prompts": 2,
        "samples": 4,
        "distinct": 3.0,
        "distinct_scores": 3.0,
        "best_tied": 0.0,
        "cut": 5 / 8,
    }
    last = found["points"][-1]
    assert last["proxy"]["value"] == 3.5 and last["gold"]["value"] == -3.5 and last["kl"]["value"] < last["kl_bound"]
    assert [[a["reward"] for a in row["answers"]] for row in read_jsonl(tmp_path / "out" / "answers.jsonl")] == [[3, 2, 1, 1], [4, 2, 2, 1]]
    best = read_jsonl(tmp_path / "out" / "best.jsonl")  # never a cut answer
    assert best == [{"prompt": "Ask 0", "completion": "one two", "score": 2.0, "origin": {"row": 0, "sample": 2, "of": 4}}]
    again = manners("best-of-n", f"data={data}", "reward=length", "gold=-1*length", f"out={tmp_path / 'out'}")
    assert again.code == 0 and "finished already" in again.stderr


def test_what_cannot_be(tmp_path):
    uneven = pool(tmp_path / "uneven.jsonl", [("a", "stop"), ("b", "stop")], [("a", "stop")])
    refused = lambda data, reward="length": best_of_n(BestOfNSettings(data=data, reward=reward, out=str(tmp_path / "out")))
    with pytest.raises(InputError, match="between 1 and 2 answers"):
        refused(uneven)
    with pytest.raises(InputError, match="holds one answer a prompt"):
        refused(pool(tmp_path / "one.jsonl", [("a", "stop")]))
    with pytest.raises(InputError, match="did you mean 'length'"):
        refused(uneven, "lenght")
    with pytest.raises(InputError, match="no such file"):
        refused(str(tmp_path / "none.jsonl"))


def test_the_page_has_every_setting_and_every_key():
    page = (DOCS / "best-of-n.md").read_text(encoding="utf-8")
    rows = table(page, "Setting")
    assert rows.keys() == BestOfNSettings.model_fields.keys()
    for key, field in BestOfNSettings.model_fields.items():
        assert rows[key][0] == "needed" if field.is_required() else is_default(rows[key][0].strip("`"), field.default), key
    scores = np.array([[0.0, 1.0]])
    assert table(page, "Key of a point").keys() == curve(scores, scores)[0].keys()
