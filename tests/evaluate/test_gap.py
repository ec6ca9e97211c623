"""`manners eval gap`: gaps by hand from fabricated evaluations, a paired difference of gaps, diversity beside it, charts."""

from pathlib import Path

import pytest

from manners.core.files import read_json, write_json, write_jsonl
from manners.report.generalisation import diversity_chart, gap_chart


def evaluation(folder: Path, inside: list[float], outside: list[float]) -> str:
    rows = [
        {"set": part, "id": f"{part}-{i}", "prompt": f"{part} {i}", "score": value}
        for part, values in (("test", inside), ("held_out", outside))
        for i, value in enumerate(values)
    ]
    write_jsonl(folder / "answers.jsonl", rows)
    write_json(folder / "metrics.json", {})
    return str(folder)


def diversity(folder: Path, value: float, samples: int = 16) -> str:
    found = {"version": 1, "value": value, "low": value - 0.1, "high": value + 0.1, "n": 4, "unscored": 0, "direction": "higher"}
    rows = [{"name": name, "set": "test", **found} for name in ("per_input/distinct_adjusted", "across/distinct_adjusted")]
    write_json(folder / "results.json", {"evaluation": "diversity", "results": rows, "details": {"samples": samples}})
    return str(folder)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    evaluation(tmp_path / "run" / "evaluate-sft", [5, 7, 5, 7, 6, 6, 5, 7], [3, 5, 4, 4, 3, 5])
    evaluation(tmp_path / "run" / "evaluate-ppo", [6, 8, 6, 8, 7, 7, 6, 8], [6, 8, 7, 7, 6, 8])
    diversity(tmp_path / "run" / "diversity-sft", 0.8)
    diversity(tmp_path / "run" / "diversity-ppo", 0.4)
    return tmp_path / "run"


def test_gaps_by_hand(manners, run, tmp_path):
    done = manners("eval", "gap", run, f"out={tmp_path / 'out'}")
    assert done.code == 0, done.stderr
    found = read_json(tmp_path / "out" / "gap.json")
    sft, ppo = found["models"]["sft"], found["models"]["ppo"]
    assert (sft["inside"]["value"], sft["outside"]["value"], sft["gap"]["value"], sft["gap"]["n"]) == (6, 4, 2, 14)
    assert sft["inside"]["n"] == 8 and ppo["gap"]["value"] == 0 and ppo["gap"]["low"] < 0 < ppo["gap"]["high"]
    rows = {row["figure"]: row for row in found["comparisons"]}
    # prompt by prompt ppo is 1 better inside and 3 better outside, without exception
    assert [rows[figure]["difference"] for figure in ("inside", "outside", "gap")] == pytest.approx([1, 3, -2])
    assert rows["gap"]["low"] == pytest.approx(-2) and rows["gap"]["high"] == pytest.approx(-2) and rows["gap"]["verdict"] == "lower"
    assert found["against"] == "sft" and ppo["diversity"]["per_input/distinct_adjusted"]["value"] == 0.4
    assert "gap of ppo less that of sft: -2.000" in done.stderr
    assert gap_chart(found, 400).startswith("<svg") and diversity_chart(found, 400).count("sft") >= 1


def test_several_seeds(manners, run, tmp_path):
    second = evaluation(tmp_path / "second", [7] * 8, [5] * 6)
    models = f"sft={run / 'evaluate-sft'},{second} ppo={run / 'evaluate-ppo'}"
    spread = f"sft={run / 'diversity-sft'},{diversity(tmp_path / 'd', 0.6)}"
    assert manners("eval", "gap", f"models={models}", f"diversity={spread}", f"out={tmp_path / 'out'}").code == 0
    sft = read_json(tmp_path / "out" / "gap.json")["models"]["sft"]
    assert sft["gap"]["by_seed"] == [2, 2] and sft["inside"]["value"] == 6.5
    assert sft["diversity"]["across/distinct_adjusted"]["value"] == pytest.approx(0.7)


def test_bad_input_is_named(manners, run, tmp_path):
    other = evaluation(tmp_path / "other", [1, 2], [1, 2])
    many = diversity(tmp_path / "many", 0.5, samples=4)
    for words, said in (
        ((run, "outside=elsewhere"), "asked no set 'elsewhere'"),
        ((run, f"models=dpo={other}"), "answers other prompts of 'test'"),
        ((run, "against=dpo"), "none of the models"),
        ((run, f"diversity=sft={many}"), "differ in it"),
        ((run, f"diversity=sft={other}"), "no finished evaluation of manners eval diversity"),
        ((run, "metric=silver"), "no number called 'silver'"),
        ((), "needs evaluations"),
    ):
        done = manners("eval", "gap", *words)
        assert done.code == 2 and said in done.error, (words, done.stderr)
