"""`manners data inspect`: what is recognised, how long it is, and which tokens are trained, from the tokenizer alone."""

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from manners.data import inspect as module
from manners.data.inspect import InspectSettings, inspect
from tests.conftest import DEMONSTRATIONS, TEMPLATE, Outcome, write_rows
from tests.tiny import byte_tokenizer

Run = Callable[..., Outcome]


@pytest.fixture(scope="module")
def tokenizer_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer and nothing else."""
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer(TEMPLATE).save_pretrained(str(folder))
    return folder


def report_of(manners: Run, *words: object) -> dict:
    outcome = manners("data", "inspect", *words, "--json")
    assert outcome.code == 0 and len(outcome.stdout) == 1, outcome.stderr
    return json.loads(outcome.stdout[0])


def test_demonstrations(manners: Run, tokenizer_only: Path, demonstrations: Path):
    report = report_of(manners, demonstrations, "--model", tokenizer_only, "show=1")
    assert (report["shape"], report["kind"], report["rows"], report["groups"], report["refused"]) == (
        *("prompt-completion", "demonstrations", 6, 6, 0),
    )
    assert (report["format"], report["stop_tokens"], report["notes"]) == ("template", ["<|im_end|>"], {})
    assert report["trust"] == {
        **{"answers": 6, "stop_trained": 6, "stop_untrained": 0, "truncated": 0, "truncated_share": 0.0},
        **{"rows": 6, "boundary_differs": 0, "begin_doubled": 0},
    }
    (shown,) = report["shown"]
    first = DEMONSTRATIONS[0]
    assert shown["prompt"] == f"<|im_start|>user\n{first['prompt']}<|im_end|>\n<|im_start|>assistant\n"
    assert shown["answers"] == [{"name": "answer", "spans": [{"text": first["completion"] + "<|im_end|>", "trained": True}]}]
    # one token a byte, and the special tokens one each
    prompts = sorted(len(f"\nuser{d['prompt']}\nassistant\n") + 3 for d in DEMONSTRATIONS)
    answers = sorted(len(d["completion"]) + 1 for d in DEMONSTRATIONS)
    for part, lengths in (("prompt", prompts), ("answer", answers)):
        told = report["lengths"][part]
        assert (told["min"], told["max"]) == (lengths[0], lengths[-1]) and told["median"] in lengths
        assert sum(told["histogram"].values()) == 6
    assert report["tokens"] == sum(prompts) + sum(answers) and report["trained_tokens"] == sum(answers)


def test_bins_of_the_histogram():
    told = module._summary([0, 1, 16, 17, 32, 33, 65])
    assert told["histogram"] == {16: 3, 32: 2, 64: 1, 128: 1}
    assert (told["min"], told["median"], told["90%"], told["max"]) == (0, 17, 33, 65)


def test_what_a_person_sees(manners: Run, tokenizer_only: Path, tmp_path: Path):
    turns = [("user", "hi \x1b[31m [/INST]"), ("assistant", "one"), ("user", "more"), ("assistant", "two")]
    rows = [{"messages": [{"role": role, "content": text} for role, text in turns]}]
    rows += [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": ""}]}] * 7
    outcome = manners("data", "inspect", write_rows(tmp_path / "r.jsonl", rows), f"model={tokenizer_only}", "max_length=40")
    assert outcome.code == 0 and outcome.stderr == ""
    told = "\n".join(outcome.stdout)
    for line in (
        "messages rows, used as demonstrations",
        "8 rows read, 7 refused, 1 groups",
        "line or row 2 left out: empty answer",
        "row 1 of the data, answer",
        "and 2 more rows left out",
        "template format, an answer ends with <|im_end|>",
        "0 of 1 answers end in a trained stop token",
        "0 of 1 rows would be cut into other tokens",
        "0 of 1 rows begin with two begin tokens",
        "1 of 1 answers (100.0%) are truncated at max_length=40",
    ):
        assert line in told, line
    # without colours trained tokens stand in brackets; the text of a row does not steer the terminal
    assert "hi ␛[31m [/INST]<|im_end|>\n<|im_start|>assistant\n⟦one" in told and "\x1b" not in told
    assert all(part in told for part in ("prompt", "answer", "total", "min", "median", "90%", "max", "█"))
    whole = manners("data", "inspect", tmp_path / "r.jsonl", f"model={tokenizer_only}")
    assert "⟦one<|im_end|>⟧\n<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n⟦two<|im_end|>⟧" in "\n".join(whole.stdout)


def test_the_stop_token_has_the_colour_of_what_is_trained(tokenizer_only: Path, demonstrations: Path, monkeypatch):
    out = StringIO()
    console = Console(file=out, force_terminal=True, color_system="standard", width=200, highlight=False, markup=False)
    monkeypatch.setattr(module, "Console", lambda **_: console)
    inspect(InspectSettings(data=str(demonstrations), model=str(tokenizer_only), show=1))
    told = out.getvalue()
    assert "\x1b[1;32mIt is 3.<|im_end|>\x1b[0m" in told and "\x1b[36m<|im_start|>assistant\x1b[0m" in told
    assert "\x1b[1;32mtrained\x1b[0m and \x1b[36mnot trained\x1b[0m" in told and "⟦" not in told


def test_pairs_text_and_prompts(manners: Run, tokenizer_only: Path, pairs: Path, tmp_path: Path):
    report = report_of(manners, pairs, f"model={tokenizer_only}", "format=plain")
    assert [answer["name"] for answer in report["shown"][0]["answers"]] == ["chosen", "rejected"]
    assert report["trust"]["answers"] == 8 and report["stop_tokens"] == ["</s>"] and len(report["shown"]) == 2
    text = report_of(manners, write_rows(tmp_path / "text.jsonl", [{"text": "Once upon a time."}]), f"model={tokenizer_only}")
    assert text["shown"] == [{"row": 0, "prompt": "", "answers": [
        {"name": "answer", "spans": [{"text": "Once upon a time.</s>", "trained": True}]}]}]  # fmt: skip
    alone = report_of(manners, write_rows(tmp_path / "prompts.jsonl", [{"prompt": "Hi"}]), f"model={tokenizer_only}")
    assert alone["kind"] == "prompts" and alone["trust"]["answers"] == 0 and "answer" not in alone["lengths"]
    shown = "\n".join(manners("data", "inspect", tmp_path / "prompts.jsonl", f"model={tokenizer_only}").stdout)
    assert "user\nHi<|im_end|>" in shown and "answers end in" not in shown


def test_a_model_folder_and_a_run_will_do(manners: Run, tiny_model: Path, demonstrations: Path, tmp_path: Path):
    assert report_of(manners, demonstrations, f"model={tiny_model}", "show=0")["shown"] == []
    run = tmp_path / "run"
    run.mkdir()
    (run / "model").symlink_to(tiny_model)
    assert report_of(manners, demonstrations, f"model={run}")["format"] == "template"


def test_what_a_trainer_would_refuse_is_shown_first(manners: Run, tmp_path: Path, demonstrations: Path):
    byte_tokenizer("{{ bos_token }}<s>" + TEMPLATE).save_pretrained(str(tmp_path / "twice"))
    outcome = manners("data", "inspect", demonstrations, f"model={tmp_path / 'twice'}", "rows=3")
    assert outcome.code == 2 and "3 of 3 rows begin with two begin tokens" in "\n".join(outcome.stdout)
    assert outcome.stderr.startswith("error: 3 of 3 rows begin with two begin tokens (<s>), because the chat template writes it twice")
    byte_tokenizer(TEMPLATE).save_pretrained(str(tmp_path / "once"))
    rows = [{"prompt": "a" * length, "completion": "yes"} for length in (5, 50, 60)]
    outcome = manners("data", "inspect", write_rows(tmp_path / "long.jsonl", rows), f"model={tmp_path / 'once'}", "max_length=40")
    told = "\n".join(outcome.stdout)
    assert outcome.code == 2 and "⟦yes<|im_end|>⟧" in told and "65-128" in told, "rows too long are in the histogram, too"
    assert outcome.stderr.startswith("error: Row 2 of the data: the prompt has") and outcome.stderr.endswith(
        "(1 more rows cannot be encoded)."
    )


def test_inputs_that_cannot_be_used(manners: Run, tokenizer_only: Path, demonstrations: Path, tmp_path: Path):
    assert "no.jsonl" in manners("data", "inspect", tmp_path / "no.jsonl", f"model={tokenizer_only}").error
    assert "nowhere" in manners("data", "inspect", demonstrations, f"model={tmp_path / 'nowhere'}").error
    assert "Unknown chat format" in manners("data", "inspect", demonstrations, f"model={tokenizer_only}", "format=chatmll").error
