"""`manners compare`: the summary's form, its numbers on rows that can be reckoned by hand, and what does not go together."""

from pathlib import Path

import numpy as np
import pytest

from manners.core import files
from manners.core.errors import InputError
from manners.core.files import read_json, write_json, write_jsonl
from manners.evaluate.compare import CompareSettings, as_models, compare


def evaluation(folder, scores, held_out=(), kl=None, stopped=True):
    """An evaluation folder with these gold scores."""
    rows = [
        {
            **{"set": part, "id": f"{part}-{i}", "cluster": "ab"[i % 2], "prompt": f"p{i}", "reference": "", "wants": {}},
            **{"answer": "a b c", "tokens": 4, "finish_reason": "stop" if stopped else "length", "refused": False, "score": s, "parts": {}},
        }
        for part, values in (("test", scores), ("held_out", held_out))
        for i, s in enumerate(values)
    ]
    write_jsonl(folder / "answers.jsonl", rows)
    write_jsonl(folder / "kl.jsonl", [{"id": str(i), "answer": "", "tokens": 1, "kl": v} for i, v in enumerate(kl or [])])
    write_json(
        folder / "metrics.json",
        {"kl": {"value": None, "low": None, "high": None, "n": 0, "reason": "none"} if kl is None else {"value": 1}},
    )
    write_json(folder / "manifest.json", {"seconds": 2.0})
    return str(folder)


@pytest.fixture
def run(tmp_path):
    """A run of three models, the trained one with two seeds; also the folders by model."""
    return tmp_path, {
        "dpo": [
            evaluation(tmp_path / f"seed-{s}" / "evaluate-dpo", [0.6 + s / 10, 0.4, 0.5], [1.0], kl=[1.0 + s, 3.0 + s]) for s in (0, 1)
        ],
        "start": [evaluation(tmp_path / "evaluate-start", [0.1, 0.4, 0.7], [0.5], stopped=False)],
        "as-shipped": [evaluation(tmp_path / "evaluate-shipped", [0.6, 0.5, 0.5], [0.5])],
    }


def test_the_summary_has_its_form_and_its_numbers(run):
    folder, models = run
    said = compare(CompareSettings(models=models, out=str(folder / "compare"), summary=str(folder / "summary.json")))
    summary = read_json(folder / "summary.json")
    assert summary == read_json(folder / "compare" / "summary.json") == said
    assert summary["models"].keys() == {"start", "as-shipped", "dpo"}
    for metrics in summary["models"].values():
        assert all(estimate.keys() >= {"value", "low", "high", "n"} for estimate in metrics.values())
    gold = summary["models"]["dpo"]["gold"]
    assert gold["value"] == pytest.approx((1.5 + 1.6) / 6) and gold["n"] == 3 and gold["by_seed"] == pytest.approx([0.5, 1.6 / 3])
    assert summary["models"]["start"]["held_out/gold"]["value"] == 0.5
    assert summary["models"]["start"]["stopped"]["value"] == 0 and summary["models"]["dpo"]["stopped"]["value"] == 1
    assert summary["models"]["dpo"]["kl"]["value"] == pytest.approx(2.5) and summary["models"]["start"]["kl"]["reason"] == "none"
    assert summary["clusters"]["start"]["test"]["b"]["value"] == pytest.approx(0.4)
    timed = {"evaluate-start": 2.0, "evaluate-shipped": 2.0, "seed-0/evaluate-dpo": 2.0, "seed-1/evaluate-dpo": 2.0}
    assert {name: seconds for name, seconds in summary["seconds"].items() if name != "compare"} == timed


def pick(rows, **wanted):
    (found,) = [row for row in rows if wanted.items() <= row.items()]
    return found


def test_differences_are_paired_and_win_rates_count_ties(run):
    folder, models = run
    summary = compare(CompareSettings(models=models, out=str(folder / "compare")))
    pairs = {(row["a"], row["b"]) for row in summary["comparisons"]}
    assert pairs == {("dpo", "start"), ("dpo", "as-shipped"), ("as-shipped", "start")}
    found = pick(summary["comparisons"], a="dpo", b="start", set="test", metric="gold")
    assert found["difference"] == pytest.approx(np.mean([[0.5, 0, -0.2], [0.6, 0, -0.2]]))
    assert found["by_seed"] == pytest.approx([0.1, 0.4 / 3]) and found["n"] == 3 and found["low"] < 0 < found["high"]
    won = pick(summary["win_rates"], a="dpo", b="start", set="test")
    assert won["value"] == pytest.approx(0.5) and won["ties"] == pytest.approx(1 / 3) and won["n"] == 3
    assert pick(summary["win_rates"], a="dpo", b="start", set="held_out")["value"] == 1
    assert pick(summary["win_rates"], a="dpo", b="as-shipped", set="test")["value"] == pytest.approx((0.5 + 0 + 0.5 + 1 + 0 + 0.5) / 6)
    assert pick(summary["win_rates"], a="start", b="as-shipped", set="test")["ties"] == 0


def test_pairing_narrows_the_interval(tmp_path):
    """Scores that differ by prompt but hardly between models: the paired difference is known far better than either mean."""
    base = np.random.default_rng(0).random(100)
    models = {name: [evaluation(tmp_path / name, list(base + shift))] for name, shift in (("start", 0.0), ("sft", 0.05))}
    summary = compare(CompareSettings(models=models, out=str(tmp_path / "compare")))
    found = pick(summary["comparisons"], a="sft", b="start", metric="gold", set="test")
    gold = summary["models"]["sft"]["gold"]
    assert found["high"] - found["low"] < 1e-9 < 0.05 < gold["high"] - gold["low"]


def test_words_of_the_command_line(manners, run):
    folder, models = run
    words = " ".join(f"{name}={','.join(folders)}" for name, folders in models.items())
    assert as_models(words) == models and as_models({"start": "a, b"}) == {"start": ["a", "b"]}
    done = manners("compare", f"models={words}", f"out={folder / 'compare'}")
    assert done.code == 0 and "dpo 0.52 1.00 100%" in done.stderr, done.stderr
    wrong = manners("compare", "models=start", f"out={folder / 'compare'}")
    assert wrong.code == 2 and "start=FOLDER" in wrong.error


def test_the_manifest_comes_last(run, monkeypatch):
    folder, models = run
    written = []
    monkeypatch.setattr(files, "write_json", lambda path, content: written.append(Path(path).name))
    compare(CompareSettings(models=models, out=str(folder / "compare"), summary=str(folder / "summary.json")))
    assert written == ["settings.json", "summary.json", "summary.json", "manifest.json"]


def test_what_does_not_go_together_is_refused(run):
    folder, models = run
    missing = {"start": [str(folder / "nowhere")]}
    with pytest.raises(InputError, match=r"nowhere.*no such folder"):
        compare(CompareSettings(models=missing, out=str(folder / "c")))
    other = evaluation(folder / "other", [0.1])
    with pytest.raises(InputError, match="different prompts"):
        compare(CompareSettings(models={**models, "sft": [other]}, out=str(folder / "c")))
    with pytest.raises(InputError, match="equally many"):
        compare(CompareSettings(models={**models, "sft": models["start"] * 3}, out=str(folder / "c")))
