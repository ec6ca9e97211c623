"""What people really do wrong: one sentence, the right exit code, nothing half-written."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from manners.core import files
from tests.conftest import DEMONSTRATIONS, Outcome, tree, write_rows

Run = Callable[..., Outcome]
GOOD = json.dumps(DEMONSTRATIONS[0]).encode() + b"\n"
HOLD = """
import sys
from manners.core.run import open_run
with open_run(sys.argv[1], {}, {"stage": "sft"}):
    print("open", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def sft(manners: Run, tiny_model: Path, demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run sft on the tiny model and the six demonstrations into `out`, unless told otherwise. The working folder is empty."""
    monkeypatch.chdir(tmp_path)
    usual = {"model": tiny_model, "data": demonstrations, "out": "out", "batch_size": 2, "learning_rate": "1e-2", "lora_rank": 2}

    def run(*words: str, **changed: Any) -> Outcome:
        return manners("sft", *(f"{key}={value}" for key, value in {**usual, **changed}.items()), *words)

    return run


def refused(outcome: Outcome, *, code: int = 2) -> str:
    """The sentence of a command that was refused and left nothing where it would have written."""
    assert outcome.code == code, outcome
    assert not Path("out").exists(), tree(Path("out"))
    return outcome.error


# ------------------------------------------------------------------------------------------------------------ the data file


def test_missing_file_names_the_neighbour(sft: Run, tmp_path: Path):
    write_rows(tmp_path / "train.jsonl", DEMONSTRATIONS)
    assert refused(sft(data="trian.jsonl")) == "trian.jsonl: there is no such file; did you mean 'train.jsonl'?"
    assert sft(data="train.jsonl", epochs=1).code == 0, "the corrected command does not stumble over the wrong one"


def test_misspelt_column_names_the_nearest(sft: Run, tmp_path: Path):
    write_rows(tmp_path / "x.jsonl", [{"prompt": "Hi?", "completoin": "Yes."}])
    error = refused(sft(data="x.jsonl"))
    assert "Did you mean 'completion' by 'completoin'?" in error and error.startswith("x.jsonl: the columns prompt, completoin")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "x.jsonl is empty (0 bytes)."),
        (b"\n \n", "x.jsonl holds no rows, only blank lines."),
        (
            GOOD + b'{"prompt": "Hi?", "completion": "Y',
            "x.jsonl, line 2 (the last) is half-written; the lines before it are fine: delete it or write it again.",
        ),
        (
            GOOD + b'{"prompt": "Hi?", "completion": "Yes,\nI am."}\n' + GOOD,
            "x.jsonl, line 2 ends inside a string: it holds a raw line break; write that as \\n, one row a line.",
        ),
        (
            GOOD + '{"prompt": "Café?", "completion": "Yes."}\n'.encode("latin-1"),
            f"x.jsonl is not UTF-8: line 2, byte {len(GOOD) + 15} of the file (0xe9) is no UTF-8 character; save the file as UTF-8.",
        ),
    ],
    ids=["empty", "blank", "half-written", "raw-line-break", "mixed-encodings"],
)
def test_damaged_file(sft: Run, tmp_path: Path, content: bytes, says: str):
    (tmp_path / "x.jsonl").write_bytes(content)
    assert refused(sft(data="x.jsonl")) == says
    assert (tmp_path / "x.jsonl").read_bytes() == content


def test_brackets_in_names_are_no_markup(sft: Run, tmp_path: Path):
    """rich would swallow `[a]` and raise at `[/INST]`."""
    write_rows(tmp_path / "[a].jsonl", [{**DEMONSTRATIONS[0], "note[/INST] :smile:": "x"}])
    outcome = sft(data="[a].jsonl", epochs=1)
    assert outcome.code == 0 and "[a].jsonl: prompt-completion" in outcome.stderr and "note[/INST] :smile:" in outcome.stderr


def test_pairs_given_to_sft(sft: Run, pairs: Path):
    error = refused(sft(data=pairs))
    assert error.startswith(f"{pairs} holds pairs") and "needs demonstrations or text" in error
    assert error.endswith("Use manners dpo for this file, give another, or name the columns with map=.")


def test_demonstrations_given_to_dpo(sft: Run, manners: Run, tiny_model: Path, demonstrations: Path):
    error = refused(manners("dpo", f"model={tiny_model}", f"data={demonstrations}", "out=out"))
    assert error.startswith(f"{demonstrations} holds demonstrations") and "needs pairs. Use manners sft for this file, give" in error


def test_prompts_given_to_sft(sft: Run, tmp_path: Path):
    write_rows(tmp_path / "x.jsonl", [{"prompt": "Hi?"}])
    assert refused(sft(data="x.jsonl")).endswith("or text. Give another file, or name the columns with map=.")


def test_prompts_given_to_logprob(sft: Run, manners: Run, tiny_model: Path, tmp_path: Path):
    write_rows(tmp_path / "x.jsonl", [{"prompt": "Hi?"}])
    error = refused(manners("logprob", f"model={tiny_model}", "data=x.jsonl", "out=out"))
    assert error == "x.jsonl holds prompts without answers; logprob needs answers to score."


# ---------------------------------------------------------------------------------------------------------------- the model


def test_unknown_model(sft: Run):
    error = refused(sft(model="smollm-135m"))
    assert error.startswith("There is no model 'smollm-135m'") and error.endswith("did you mean 'smollm2-135m-instruct'?")


def test_model_without_tokenizer(sft: Run, tiny_model: Path, tmp_path: Path):
    shutil.copytree(tiny_model, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*", "chat_template*"))
    error = refused(sft(model="bare"))
    assert error.startswith("'bare' has no tokenizer") and "copy the tokenizer files" in error


def test_adapter_whose_base_is_gone(sft: Run, manners: Run, tiny_model: Path, tmp_path: Path):
    shutil.copytree(tiny_model, tmp_path / "base")
    assert sft(model="base", out="first", epochs=1).code == 0
    shutil.rmtree(tmp_path / "base")
    for error in (refused(sft(model="first")), refused(manners("export", "model=first", "out=out"))):
        assert error.startswith("The base model of the adapter 'first/model' cannot be used. There is no folder")
        assert str(tmp_path / "base") in error


def test_hub_id_without_network(sft: Run):
    start = time.monotonic()
    error = refused(sft(model="somebody/some-model"))
    assert "no network" in error and "give the folder of a model" in error
    assert time.monotonic() - start < 10


def test_unfinished_run_as_model(sft: Run, tmp_path: Path):
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    assert "The run in 'begun' is not finished" in refused(sft(model="begun"))


# ------------------------------------------------------------------------------------------------------------- the settings


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"batch_size": 0}, "the setting 'batch_size' on the command line is wrong: it must be greater than or equal to 1 (given: 0)."),
        ({"finetune": "lroa"}, "the setting 'finetune' on the command line is wrong: it must be 'lora' or 'full' (given: 'lroa')."),
        ({"format": "chatlm"}, "Unknown chat format 'chatlm': did you mean 'chatml'?"),
        ({"rows": 0}, "the setting 'rows' on the command line is wrong: it must be greater than or equal to 1 (given: 0)."),
        ({"map": "prompt"}, "--map: 'prompt' is not of the form name=column"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_value(sft: Run, setting: dict[str, Any], says: str):
    assert says in refused(sft(**setting))


def test_layers_that_are_not_there(sft: Run):
    error = refused(sft(lora_targets="q_prj"))
    assert error == "lora_targets names 'q_prj', and LlamaForCausalLM has no such layer; did you mean 'q_proj'?"
    error = refused(sft(lora_targets="q_proj,typo"))
    assert error.startswith("lora_targets names 'typo', and LlamaForCausalLM has no such layer; known are: ") and "q_proj" in error


def test_layers_may_be_written_with_spaces(sft: Run, tmp_path: Path):
    assert sft(lora_targets="q_proj, v_proj", epochs=1).code == 0
    adapted = load_file(str(tmp_path / "out" / "model" / "adapter_model.safetensors"))
    assert {name.split(".")[-3] for name in adapted} == {"q_proj", "v_proj"}


# ---------------------------------------------------------------------------------------------------------------- the length


def test_answer_cut_to_nothing(sft: Run, tmp_path: Path):
    write_rows(tmp_path / "x.jsonl", [DEMONSTRATIONS[0], {"prompt": "Why? " * 30, "completion": "Yes."}])
    error = refused(sft(data="x.jsonl", max_length=100))
    assert error.startswith("Row 2 of the data: the prompt has ") and "no trained token is left within max_length=100" in error
    assert "raise max_length (to " in error and error.endswith("or drop the row.")


def test_answer_cut_to_something_is_reported(sft: Run, tmp_path: Path):
    write_rows(tmp_path / "x.jsonl", [DEMONSTRATIONS[0], {"prompt": "Why?", "completion": "Because. " * 30}])
    outcome = sft("--json", data="x.jsonl", max_length=100, epochs=1)
    assert outcome.code == 0 and "truncated: 1" in outcome.stderr
    assert json.loads(outcome.stdout[-1])["notes"] == {"truncated": 1}


# ------------------------------------------------------------------------------------------------------------ where to write


def test_out_is_a_file(sft: Run, tmp_path: Path):
    (tmp_path / "file").write_text("x")
    assert sft(out="file").error == "file is a file; out= takes a folder."
    assert sft(out="file/run").error.startswith("file/run cannot be made, because a part of that path is a file")
    assert (tmp_path / "file").read_text() == "x" and tree(tmp_path) == ["file"]


def test_out_is_a_folder_with_other_files(sft: Run, manners: Run, tiny_model: Path, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    assert sft(out="mine").error == "mine holds other files and is not a run folder; choose another out=."
    assert "mine exists and is not empty" in manners("export", f"model={tiny_model}", "out=mine").error
    assert tree(tmp_path) == ["mine", "mine/thesis.txt"]


def test_logprob_into_a_folder(sft: Run, manners: Run, tiny_model: Path, demonstrations: Path, tmp_path: Path):
    (tmp_path / "folder").mkdir()
    outcome = manners("logprob", f"model={tiny_model}", f"data={demonstrations}", "out=folder", "rows=1")
    assert (outcome.code, outcome.error) == (2, "folder is a folder, and a file is to be written; give out= the name of a file.")
    assert tree(tmp_path) == ["folder"]


def test_logprob_looks_where_it_will_write_before_it_scores(sft: Run, manners: Run, demonstrations: Path, tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    for out, says in (("folder", "is a folder"), ("file/x.jsonl", "a part of that path is a file"), ("file/a/b.jsonl", "is a file")):
        outcome = manners("logprob", "model=there-is-none", f"data={demonstrations}", f"out={out}")
        assert outcome.code == 2 and outcome.error.startswith(f"{out} ") and says in outcome.error
    assert tree(tmp_path) == ["file", "folder"]
    assert "There is no model" in manners("logprob", "model=there-is-none", f"data={demonstrations}", "out=new/x.jsonl").error
    assert not (tmp_path / "new").exists()


def test_out_is_unwritable_by_patching(sft: Run, monkeypatch: pytest.MonkeyPatch):
    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("manners.core.run.Path.mkdir", denied)
    assert refused(sft()) == "out cannot be written (permission denied); choose another place with out=."


def test_second_run_on_the_same_folder(sft: Run, tmp_path: Path):
    holder = [sys.executable, "-c", HOLD, "out"]
    with subprocess.Popen(holder, cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.getcwd()}, stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "open\n"
        outcome = sft()
        other.kill()
    assert (outcome.code, outcome.error) == (2, "another process is running in out; wait for it, or choose another out=.")
    assert tree(tmp_path / "out") == [".lock", "settings.json"]


def test_other_settings_on_the_same_folder(sft: Run, tmp_path: Path):
    assert sft(epochs=1).code == 0
    before = {name: (tmp_path / "out" / name).read_bytes() for name in tree(tmp_path / "out") if (tmp_path / "out" / name).is_file()}
    error = sft(epochs=2).error
    assert error == "out holds a run with epochs=1, now it is 2; choose another out=, or remove out to start anew."
    assert {name: (tmp_path / "out" / name).read_bytes() for name in before} == before


# ------------------------------------------------------------------------------------------------------------- a full disk


def fill_disk(patch: pytest.MonkeyPatch, where: str) -> None:
    """From the second checkpoint on no byte can be written: the system says so in `files`, or safetensors does in its own way."""
    save, fsync = "manners.train.learner.save_file", os.fsync

    def second() -> bool:
        return Path("out/checkpoints/step-00000002").exists()

    def full_fsync(handle: int) -> None:
        if second() and "step-00000004" in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    def full_save(tensors: Any, path: str) -> None:
        if second():
            Path(path).write_bytes(b"half")
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        real(tensors, path)

    from manners.train import learner

    real = learner.save_file
    if where == "files":
        patch.setattr(files.os, "fsync", full_fsync)
    else:
        patch.setattr(save, full_save)


@pytest.mark.parametrize("where", ["files", "safetensors"])
def test_full_disk_during_a_checkpoint(sft: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str):
    assert sft(out="calm", save_every=2, epochs=2).code == 0
    with monkeypatch.context() as patch:
        fill_disk(patch, where)
        outcome = sft("--json", save_every=2, epochs=2)
    assert outcome.code == 1 and not outcome.stdout
    assert outcome.stderr.count("error: ") == 1 and "Traceback" not in outcome.stderr
    assert outcome.stderr.endswith("could not be written; free some space and start again, what was saved before is kept.")
    assert "the disk is full: out/checkpoints/step-00000004" in outcome.stderr
    assert tree(tmp_path / "out" / "checkpoints") == [
        "step-00000002",
        "step-00000002/optimizer.safetensors",
        "step-00000002/state.json",
        "step-00000002/weights.safetensors",
    ]
    assert not (tmp_path / "out" / "model").exists() and not (tmp_path / "out" / "manifest.json").exists()

    again = sft(save_every=2, epochs=2)
    assert again.code == 0 and "going on from step 2 of 6" in again.stderr
    undisturbed, resumed = (load_file(str(tmp_path / run / "model" / "adapter_model.safetensors")) for run in ("calm", "out"))
    assert undisturbed.keys() == resumed.keys() and all(torch.equal(undisturbed[n], resumed[n]) for n in resumed)
    steps, expected = ([r["step"] for r in files.read_jsonl(tmp_path / run / "metrics.jsonl")] for run in ("out", "calm"))
    assert steps == expected == [1, 2, 3, 4, 5, 6]


def test_full_disk_while_the_model_is_written(sft: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr("manners.model.roles.save_file", full)
        outcome = sft(epochs=1)
    assert outcome.code == 1 and "the disk is full: out/model could not be written" in outcome.stderr
    assert tree(tmp_path / "out") == [".lock", "metrics.jsonl", "settings.json"]
    assert sft(epochs=1).code == 0
