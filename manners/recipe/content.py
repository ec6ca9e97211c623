"""What a stage is made from: everything that can change what comes out of it, and the hash over that.

The command, its settings (but for those that only say where and how often to write), the content of the files and local models that it
reads, the hashes of the stages that it reads, and Manners' version. Of paths only what they stand for is kept, so a run's folder may
move. Input that is missing is found here, before anything runs.
"""

import os
import re
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import manners
from manners.core.errors import InputError, nearest
from manners.core.plugins import source_hash
from manners.core.run import content_hash, file_hash
from manners.feedback.annotator import fingerprint
from manners.feedback.rewards import FUNCTION, parts_of, prompt_files
from manners.feedback.verify import fingerprint as verifier_fingerprint
from manners.feedback.verify import is_verifier, schema_file, verifier
from manners.model.fetch import ALIASES
from manners.recipe.read import Recipe
from manners.recipe.stages import STARTER, Stage, starter

PATH_KEYS = ("model", "data", "prompts")
"""Settings whose text names a file, folder, alias or hub id whatever it looks like."""
REWARD_KEYS = ("reward", "gold", "proxy", "members", "held_out", "checks")
"""Settings that may name a reward (`feedback/rewards`), or several in a list or by name; what is no reward is told as elsewhere."""
DATA_ENDINGS = (".jsonl", ".ndjson", ".json", ".gz", ".csv", ".tsv", ".parquet", ".yaml", ".yml", ".txt", ".md", ".safetensors")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[^/\s]+){0,2}")


def label(stage: Stage, reader: Stage) -> str:
    """How a stage calls one that it reads, the same whether the recipe has one seed or several."""
    return stage.name if stage.seed is None or stage.seed == reader.seed else f"{stage.name} of seed {stage.seed}"


def content_of(recipe: Recipe, stage: Stage, stages: Mapping[str, Stage], hashes: Mapping[str, str], path: Path) -> dict[str, Any]:
    """Everything that can change what comes out of a stage. Of paths only what they stand for is kept."""
    roots = {str(other.output): f"{{{label(other, stage)}}}" for other in (stages[i] for i in stage.reads)}
    roots |= {recipe.out.rstrip("/"): "{out}", str(starter()): STARTER}
    inputs: dict[str, str] = {}

    def note(key: str, digest: str) -> None:
        inputs[f"{key} {len(inputs)}" if key in inputs else key] = digest

    def told(key: str, text: str) -> str:
        """What a text setting stands for."""
        for root in sorted(roots, key=len, reverse=True):
            if text == root or text.startswith(root + "/"):
                symbol = roots[root] + text.removeprefix(root)
                if symbol.startswith("{out}/"):
                    _check_own(stage, stages, text, path)
                if symbol.startswith(STARTER):
                    note(key, file_hash(text))
                return symbol
        if not _is_path(key, text):
            return text
        place = Path(text).expanduser()
        if os.path.exists(place):
            note(key, content_hash(place))
            return "a folder" if place.is_dir() else "a file"
        if key.partition(".")[0] in stage.given:
            _check_missing(stage, key, text, path)
        return text

    def told_reward(key: str, spec: Any) -> Any:
        """What the parts of a reward stand for, each with its weight."""
        if isinstance(spec, dict):
            return {name: told_reward(f"{key}.{name}", one) for name, one in spec.items()}
        if isinstance(spec, list) and all(isinstance(one, str) for one in spec):
            return [told_reward(key, one) for one in spec]
        try:
            parts = parts_of(spec)
        except InputError as error:
            raise InputError(f"{path}, stage '{stage.name}': {error}") from None
        return [[weight, _told_part(stage, key, name, told, path)] for weight, name in parts]

    def told_rewards(key: str, value: Any) -> Any:
        """The same of a setting that takes one reward or several."""
        if isinstance(value, dict):
            return {name: told_reward(f"{key}.{name}", spec) for name, spec in value.items()}
        if isinstance(value, list) and all(isinstance(spec, str) for spec in value):
            return [told_reward(key, spec) for spec in value]
        return told_reward(key, value)

    dumped = stage.settings.model_dump(mode="json", exclude=set(stage.settings.silent))
    kept = {
        key: told_rewards(key, value) if key in REWARD_KEYS and value and not isinstance(value, int) else _mapped(value, key, told)
        for key, value in dumped.items()
    }
    loss = dumped.get("loss")
    if isinstance(loss, str) and ":" in loss:
        kept["loss_source"] = source_hash(loss, f"{path}, stage '{stage.name}': loss")
    reads = {label(stages[i], stage): hashes[i] for i in stage.reads}
    return {"do": stage.do, "manners": manners.__version__, "settings": kept, "inputs": inputs, "reads": reads}


def _told_part(stage: Stage, key: str, name: str, told: Callable[[str, str], str], path: Path) -> str:
    """What one reward stands for: of the annotator and of verifiers the program and its file, of a judge its model, of a function its
    source, of the rest what `told` says."""
    head, _, rest = name.partition(":")
    if is_verifier(name):
        if not schema_file(name):  # a file is checked below, and may be another stage's
            try:
                verifier(name)
            except InputError as error:
                raise InputError(f"{path}, stage '{stage.name}': {error}") from None
        source = verifier_fingerprint(name)[0]
        return f"{head} {told(key, schema_file(name))} {source}" if schema_file(name) else f"{name} {source}"
    if head == "annotator":
        return " ".join(["annotator", fingerprint(), *(told(key, file) for file in prompt_files(rest))])
    if head == "judge" and rest:
        return f"judge {told('model' if '://' not in rest else key, rest)}"
    if FUNCTION.fullmatch(name):
        source = source_hash(name, f"{path}, stage '{stage.name}': reward")
        return f"{name} {source}"
    return told(key, name)


def _mapped(value: Any, key: str, told: Callable[[str, str], str]) -> Any:
    """A value with every text in it replaced."""
    if isinstance(value, str):
        return told(key, value)
    if isinstance(value, dict):
        return {k: _mapped(v, f"{key}.{k}", told) for k, v in value.items()}
    return [_mapped(v, key, told) for v in value] if isinstance(value, list) else value


def _is_path(key: str, text: str) -> bool:
    """Whether a text setting names a file, a folder or a model."""
    if not text or "\n" in text or "://" in text:
        return False
    if key.split(".")[-1] in PATH_KEYS or text.lower().endswith(DATA_ENDINGS):
        return True
    return "/" in text and " " not in text and (text.startswith(("/", "./", "../", "~")) or os.path.exists(text))


def _check_missing(stage: Stage, key: str, text: str, path: Path) -> None:
    """Raise InputError unless a name that is no file or folder here can be an alias or a hub id."""
    where = f"{path}, stage '{stage.name}': {key} "
    if key.split(".")[-1] == "model":
        if text in ALIASES or (HUB_NAME.fullmatch(text) and not Path(text).parent.is_dir()):
            return
        hint = f"; {nearest(text, ALIASES)}" if "/" not in text else "."
        raise InputError(f"{where}names the model '{text}', which is neither an alias nor a folder here{hint}")
    if HUB_NAME.fullmatch(text) and not Path(text).parent.is_dir() and not text.lower().endswith(DATA_ENDINGS):
        return
    beside = [str(Path(text).parent / p.name) for p in Path(text).parent.glob("*")] if Path(text).parent.is_dir() else []
    hint = nearest(text, beside) if beside else ""
    raise InputError(f"{where}names '{text}', and there is no such file" + (f"; {hint}" if hint.startswith("did") else "."))


def _check_own(stage: Stage, stages: Mapping[str, Stage], text: str, path: Path) -> None:
    """Raise InputError where a path leads into another stage's folder without a reference, which would not be known to come first."""
    for other in stages.values():
        if other.id != stage.id and other.id not in stage.reads and Path(text).is_relative_to(other.folder):
            raise InputError(
                f"{path}, stage '{stage.name}' reads '{text}', which stage '{other.name}' writes; "
                f"refer to it as {{{other.name}}}, or name it under 'after', so that it comes first."
            )


def difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Why two contents of a stage differ, in a few words: the first thing found, and how many more."""
    found = [f"{key} was {before.get(key)}, now {now.get(key)}" for key in ("do", "manners") if before.get(key) != now.get(key)]
    for part, told in (
        ("settings", "{key} was {a}, now {b}"),
        ("inputs", "the content of {key} changed"),
        ("reads", "'{key}' changed"),
    ):
        a, b = before.get(part, {}), now.get(part, {})
        found += [told.format(key=key, a=_short(a.get(key)), b=_short(b.get(key))) for key in sorted({*a, *b}) if a.get(key) != b.get(key)]
    return found[0] + (f" (and {len(found) - 1} more)" if len(found) > 1 else "") if found else "its hash changed"


def _short(value: Any) -> str:
    return textwrap.shorten(repr(value), 60, placeholder=" ...")
