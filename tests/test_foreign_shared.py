"""The quickstart's models on foreign prompts: the real model on the first few, and the page that shows the figures of all."""

from pathlib import Path

import pytest

from benchmarks import foreign
from manners.core.files import read_json, read_jsonl, write_json
from manners.recipe.stages import starter
from tests.markdown import ROOT

DATA = ROOT.parent / "shared" / "data"


def test_the_page_shows_what_was_measured():
    kept = read_json(foreign.RECORD) if foreign.RECORD.exists() else None
    page = (ROOT / foreign.PAGE).read_text(encoding="utf-8")
    assert page.partition(foreign.BEGIN)[2].partition(foreign.END)[0].strip() == foreign.told(kept)


@pytest.mark.shared
def test_the_real_model_answers_prompts_of_others(tmp_path: Path):
    for name, form in (("start", "plain"), ("as-shipped", "template")):
        asked = {"settings": {"model": "smollm2-135m-instruct", "format": form}}
        write_json(tmp_path / "run" / f"evaluate-{name}" / "manifest.json", asked)
    summary = foreign.measure(tmp_path / "run", DATA, tmp_path / "out", rows=3, max_new_tokens=12)
    for name in ("start", "as-shipped"):
        for part in foreign.SETS:
            assert summary["models"][name][f"{part}/gold"]["n"] == 3
            assert 0 <= summary["models"][name][f"{part}/gold"]["value"] <= 10
            assert summary["models"][name][f"{part}/tokens"]["value"] <= 12
    answers = read_jsonl(tmp_path / "out" / "as-shipped-0" / "answers.jsonl")
    assert len(answers) == 9 and all(row["answer"] for row in answers)
    assert [bool(row["reference"]) for row in answers] == [False] * 6 + [True] * 3
    shown = foreign.told(foreign.record(summary, "COMMAND"))
    assert shown.count("| `start` |") == shown.count("| `as-shipped` |") == 3 and "COMMAND" in shown


@pytest.mark.shared
def test_no_foreign_prompt_is_in_the_starter_set(tmp_path: Path):
    """Neither as it is nor in thirteen words running."""
    grams = lambda text: {tuple(words[i : i + 13]) for words in [text.lower().split()] for i in range(max(1, len(words) - 12))}
    ours = {gram for path in starter().glob("*.jsonl") for row in read_jsonl(path) for text in texts(row) for gram in grams(text)}
    assert len(ours) > 1000
    for path in foreign.files_of(DATA, tmp_path, None):
        rows = read_jsonl(path)
        assert len(rows) >= 45
        for row in rows:
            for text in texts(row):
                assert not grams(text) & ours, (path, text[:80])


def texts(row) -> list[str]:
    return [value for key in ("prompt", "instruction") if isinstance(value := row.get(key), str)] + [
        *(row.get("turns") or []),
        *(message["content"] for message in row.get("messages") or [] if message["role"] == "user"),
    ]
