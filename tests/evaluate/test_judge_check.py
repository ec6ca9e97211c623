"""`manners judge check` and `judge winrate` on planted judges whose figures follow by construction."""

import json
from typing import Any

import pytest

from manners.core.errors import InputError
from manners.core.files import read_json, read_jsonl
from manners.evaluate.judge_check import CheckSettings, check
from manners.evaluate.judge_winrate import JudgedSettings, judged
from manners.evaluate.winrate import WinrateSettings, winrate
from manners.model.sampler import ScriptedSampler
from tests.conftest import write_rows

PEOPLE = [  # what people said, and the answers: a is longer in the first six
    *[("1", f"A long answer, number {i}.", f"Short {i}.") for i in range(4)],
    *[("2", f"Another long answer, number {i}.", f"Brief {i}.") for i in range(2)],
    *[("2", f"No {i}.", f"Yes indeed, number {i}.") for i in range(2)],
]


def shown(prompt: Any) -> tuple[str, str]:
    text = prompt.messages[0].content
    first, _, rest = text.split("Answer A:\n")[1].partition("\n\nAnswer B:\n")
    return first, rest.split("\n")[0]


def checked(tmp_path, says, content=None, **settings) -> dict[str, Any]:
    content = content or [{"input": "Say it.", "output_1": a, "output_2": b, "label": int(label)} for label, a, b in PEOPLE]
    data = write_rows(tmp_path / "people.jsonl", content)
    given = CheckSettings(**{"judge": "planted", "data": str(data), "out": str(tmp_path / "check"), **settings})
    return check(given, {"planted": ScriptedSampler(lambda p, i: says(*shown(p)))})


def test_a_judge_that_always_takes_the_first(tmp_path):
    report = checked(tmp_path, lambda a, b: "A")
    assert report["consistent"]["value"] == 0 and report["first_shown_wins"]["value"] == 100
    assert report["agreement"]["value"] == 50 and report["agreement_one_order"]["value"] == 50  # 4 of 8 labels are the first
    assert any("first-shown answer wins more often" in flag for flag in report["flags"])
    assert report["kappa"]["value"] == 0 and report["longer_wins"]["judge"]["value"] == 50


def test_a_judge_that_always_takes_the_longer(tmp_path):
    report = checked(tmp_path, lambda a, b: "A" if len(a) > len(b) else "B")
    assert report["agreement"]["value"] == report["agreement_of_longer"]["value"] == 75
    assert report["consistent"]["value"] == 100 and report["first_shown_wins"]["value"] == 50
    assert report["longer_wins"] | {} and report["longer_wins"]["judge"]["value"] == 100 and report["longer_wins"]["people"]["value"] == 75
    assert report["longer_wins"]["difference"]["value"] == 25 and report["kappa"]["value"] == pytest.approx(0.5)


def test_a_perfect_judge_has_nothing_against_it(tmp_path):
    better = {a if label == "1" else b for label, a, b in PEOPLE}
    report = checked(tmp_path, lambda a, b: "A" if a in better else "B")
    assert report["agreement"]["value"] == 100 and report["kappa"]["value"] == 1 and report["flags"] == []
    assert 0 < report["agreement"]["low"] < 100 and report["scored"] == 8


def test_unreadable_verdicts_are_left_out_and_flagged(tmp_path):
    report = checked(tmp_path, lambda a, b: "Hm." if "number 0" in a + b else "A")
    assert report["scored"] == 5 and report["unscored"] == {"no verdict in its words": 3}
    assert report["agreement"]["n"] == 5 and "3 of 8 comparisons have no verdict" in report["flags"]


def test_bias_towards_its_own_answers(tmp_path):
    content = [
        {
            "prompt": f"Say {i}.",
            "a": "Mine is it.",
            "b": "Theirs it is.",
            "label": "b" if i % 2 else "a",
            "model_a": "planted",
            "model_b": "other",
        }
        for i in range(10)
    ]
    report = checked(tmp_path, lambda a, b: "A" if a.startswith("Mine") else "B", content)
    assert report["own_wins"]["judge"]["value"] == 100 and report["own_wins"]["people"]["value"] == 50
    assert "it takes its own answers more often than people do" in report["flags"]
    (tmp_path / "other").mkdir()
    assert checked(tmp_path / "other", lambda a, b: "A", content, own=["somebody"])["own_wins"] is None


def test_the_command_and_a_file_without_labels(tmp_path, tiny_model, manners):
    data = write_rows(tmp_path / "d.jsonl", [{"prompt": f"{i}", "chosen": f"yes {i}", "rejected": "no"} for i in range(4)])
    done = manners("judge", "check", data, f"judge={tiny_model}", f"out={tmp_path / 'c'}", "verdict=logprob", "--json")
    assert done.code == 0, done.stderr
    assert json.loads("\n".join(done.stdout))["scored"] == 4 and len(read_jsonl(tmp_path / "c" / "verdicts.jsonl")) == 4
    assert read_json(tmp_path / "c" / "check.json")["people"].keys() <= {"a", "b"}
    with pytest.raises(InputError, match="does not say which answer people preferred"):
        checked(tmp_path, lambda a, b: "A", [{"prompt": "x", "a": "y", "b": "z"}])


def test_win_rates_by_a_judge(tmp_path):
    files = {
        name: str(write_rows(tmp_path / f"{name}.jsonl", [{"prompt": f"Say {i}.", "answer": f"{name} {i}"} for i in range(6)]))
        for name in ("base", "good", "odd")
    }
    order = ["good", "base", "odd"]
    rank = lambda text: order.index(text.split()[0])
    sampler = ScriptedSampler(lambda p, i: "A" if rank(shown(p)[0]) < rank(shown(p)[1]) else "B")
    settings = JudgedSettings(judge="planted", models=files, out=str(tmp_path / "out"), against="base")
    report = judged(settings, {"planted": sampler})
    rates = {row["model"]: (row["win_rate"], row["n"]) for row in report["models"]}
    assert rates == {"good": (100.0, 6), "odd": (0.0, 6)} and report["reference"] == "base"
    assert report["swaps"]["consistent"]["value"] == 100 and report["swaps"]["first_shown"]["value"] == 50
    votes = read_jsonl(tmp_path / "out" / "votes.jsonl")
    assert len(votes) == 24 and {v["preference"] for v in votes} == {1.0, 2.0}
    assert winrate(WinrateSettings(votes=str(tmp_path / "out" / "votes.jsonl"), reference="base"))["models"] == report["models"]
    assert read_json(tmp_path / "out" / "winrate.json")["models"] == report["models"]


def test_a_biased_judge_gives_no_win_to_anybody(tmp_path):
    files = {n: str(write_rows(tmp_path / f"{n}.jsonl", [{"prompt": "Say.", "answer": n}])) for n in ("base", "good")}
    report = judged(
        JudgedSettings(judge="p", models=files, out=str(tmp_path / "o"), against="base"), {"p": ScriptedSampler(lambda p, i: "A")}
    )
    assert report["models"][0]["win_rate"] == 50 and report["swaps"]["first_shown"]["value"] == 100
    unread = JudgedSettings(judge="p", models=files, out=str(tmp_path / "u"), against="base")
    assert judged(unread, {"p": ScriptedSampler(lambda p, i: "?")})["models"][0]["unscored"] == 1


@pytest.mark.parametrize(
    "change, why",
    [
        ({"models": ["base"]}, "names no file; write NAME=FILE"),
        ({"models": {"a": "x"}}, "two files of answers or more"),
        ({"models": {"a": "x", "b": "y"}}, "there is no file x"),
    ],
)
def test_models_that_cannot_be_compared(tmp_path, change, why):
    with pytest.raises(InputError, match=why):
        judged(JudgedSettings(judge="p", out=str(tmp_path / "o"), **change))
