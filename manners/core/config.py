"""Settings: pydantic models filled from a YAML file and `key=value` words, with errors that a newcomer can act on."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from manners.core.errors import InputError, nearest


class Settings(BaseModel):
    """Base of every stage's settings: immutable, and a misspelt key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    positional: ClassVar[str] = ""
    """The key that the command also takes as a bare word: `manners data inspect FILE`."""
    plural: ClassVar[bool] = False
    """Whether `positional` takes every bare word, as a list: `manners compare RUN RUN`."""
    rest: ClassVar[str] = ""
    """The key that takes every key=value word of another key, as a list of words: `manners run RECIPE sft.epochs=3`."""
    writes: ClassVar[str] = ""
    """Name for the one file or folder that the command writes as `out`, in a recipe's stage; "" if `out` is its run folder."""
    silent: ClassVar[frozenset[str]] = frozenset({"out", "save_every"})
    """Keys that cannot change what comes out: where it is written, and how often."""


S = TypeVar("S", bound=Settings)


def as_list(value: Any) -> Any:
    """Words that commas part as a list; a list as it is."""
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


def load_settings(kind: type[S], config: str | Path | None = None, overrides: Sequence[str] = ()) -> S:
    """Settings of a stage from an optional YAML file and overriding `key=value` words (values are read as YAML,
    but where the setting is text, as they stand).

    Raises InputError for a missing or malformed file, a word without '=', an unknown key (naming the nearest known one), a missing
    required key and a value of the wrong kind.
    """
    values = _read_yaml(Path(config)) if config is not None else {}
    origin = dict.fromkeys(values, f"in {config}")
    for word in overrides:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise InputError(f"'{word}' is not a setting; write key=value, for example epochs=3.")
        if kind.rest and key not in kind.model_fields:
            values[kind.rest] = [*values.get(kind.rest, []), word]
            continue
        values[key] = read_value(kind, key, text)
        origin[key] = "on the command line"
    return make_settings(kind, values, origin)


def with_bare_words(kind: type[Settings], words: Sequence[str]) -> list[str]:
    """Words of a command line with its bare ones as `key=value`: the first, or all where the setting takes several."""
    if not kind.positional or not words:
        return list(words)
    if kind.plural:
        bare = [word for word in words if "=" not in word]
        return [*([f"{kind.positional}={json.dumps(bare, ensure_ascii=False)}"] if bare else []), *(word for word in words if "=" in word)]
    return [f"{kind.positional}={words[0]}" if "=" not in words[0] else words[0], *words[1:]]


def make_settings(kind: type[S], values: dict[str, Any], origin: dict[str, str] | None = None) -> S:
    """Settings from a dictionary, with the same errors as `load_settings`."""
    origin = origin or {}
    for key in values:
        if key not in kind.model_fields:
            where = f" {origin[key]}" if key in origin else ""
            raise InputError(f"unknown setting '{key}'{where}; {nearest(key, kind.model_fields)}")
    # YAML reads 1e-5 as text (it wants 1.0e-5); numbers written so are meant as numbers
    values = {k: v if is_text(kind, k) else _number(v) for k, v in values.items()}
    try:
        return kind(**values)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"]) or "settings"
        if problem["type"] == "missing":
            raise InputError(f"the setting '{key}' is needed and was not given; add {key}=... or put it into the config file.") from None
        top = key.partition(".")[0]
        where = f" {origin[top]}" if top in origin else ""
        said = problem["msg"].removeprefix("Value error, ").rstrip(".")
        said = said.replace("Input should be", "it must be", 1)
        given = f" (given: {'nothing' if problem['input'] is None else repr(problem['input'])})"
        raise InputError(f"the setting '{key}'{where} is wrong: {said[0].lower()}{said[1:]}{given}.") from None


def read_value(kind: type[Settings], key: str, text: str) -> Any:
    """What a word on the command line means: itself where the setting is text (prompts hold ': ', folders are called 2024), else YAML."""
    if not text or (is_text(kind, key) and text not in ("null", "~")):
        return text or None
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # ValueError: what looks like a date and is none
        return text


def is_text(kind: type[Settings], key: str) -> bool:
    """Whether a setting takes text and nothing else but None."""
    if key not in kind.model_fields:
        return False
    annotation = kind.model_fields[key].annotation
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return all(k in (str, type(None)) or (get_origin(k) is Literal and all(isinstance(v, str) for v in get_args(k))) for k in kinds)


def _number(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in "0123456789+-." and "e" in value.lower():
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"the config file {path} does not exist.") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; --config takes a YAML file.") from None
    except UnicodeDecodeError:
        raise InputError(f"the config file {path} is not UTF-8 text.") from None
    except OSError as error:
        raise InputError(f"the config file {path} cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise InputError(f"the config file {path} holds a value that cannot be read: {error}.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"the config file {path}{line} is not valid YAML: {getattr(error, 'problem', 'cannot be read')}.") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"the config file {path} must hold 'key: value' lines, not a {type(content).__name__}.")
    return {str(k): v for k, v in content.items()}
