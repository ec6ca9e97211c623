"""A recipe's file (YAML) -> `Recipe`: what was written, with what the command line puts over it.

    name: small
    model: smollm2-135m-instruct
    stages:
      sft: {do: sft, model: "{model}", data: "starter:demonstrations.jsonl", format: plain}
      dpo: {do: dpo, model: "{sft}", data: "starter:pairs.jsonl"}

Whatever is wrong is an InputError that names the file and the key. What stages say is looked at in `stages`.
"""

import re
import sysconfig
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, Field

import manners
from manners.commands import COMMANDS
from manners.core.config import Settings, make_settings, read_value
from manners.core.errors import InputError, nearest

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
"""What a stage, a var and a recipe that ships may be called."""


def as_seeds(value: Any) -> Any:
    """`0,1,2` and `0` as lists."""
    if isinstance(value, int) and not isinstance(value, bool):
        return [value]
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


class Recipe(Settings):
    """What a recipe's file holds."""

    name: str
    """What the recipe is called; by default the file's name without its ending."""
    about: str = ""
    """What it is for, in a sentence."""
    out: str
    """Folder of the run: a stage writes the folder of its name in it. By default runs/ and the recipe's name."""
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], BeforeValidator(as_seeds), Field(min_length=1)] = Field([0])
    """Every stage runs once for each seed; with several, in seed-0/, seed-1/ ..."""
    model: str = "smollm2-135m-instruct"
    """The model to begin with, for stages to refer to as {model}: folder, run, adapter, hub id or alias."""
    vars: dict[str, Any] = Field({})
    """Further values for stages to refer to by name."""
    stages: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    """Stages by name: `do` is a command, and the other keys are the command's settings."""


@cache
def stage_settings(do: str) -> type[Settings]:
    """The settings class of a command."""
    return COMMANDS[do].load()[0]


def stage_commands() -> list[str]:
    """Commands that a stage can be."""
    return [name for name, row in COMMANDS.items() if row.stage]


class Loader(yaml.SafeLoader):
    """YAML without code, in which a key may stand once only and 1e-5 is a number, as in YAML 1.2."""


def _mapping(loader: Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.value != "<<":
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key '{key.value}' stands there a second time", key.start_mark)
            seen.add(key.value)
    return loader.construct_mapping(node, deep=True)


Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789"))


def shipped() -> dict[str, Path]:
    """Recipes that come with Manners by name: those of a checkout's recipes/, else those that the installation put under share/."""
    places = (Path(manners.__file__).parent.parent / "recipes", Path(sysconfig.get_path("data")) / "share" / "manners" / "recipes")
    return next((found for place in places if (found := {p.stem: p for p in sorted(place.glob("*.yaml"))})), {})


def find(name: str) -> Path:
    """The file of a recipe: the name of a file, or of a recipe that ships. Raises InputError if there is neither."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        inside = sorted(p.name for p in path.glob("*.yaml"))
        hint = f"name a file in it: {', '.join(inside)}" if inside else "give the YAML file of a recipe"
        raise InputError(f"{name} is a folder; {hint}.")
    if NAME.fullmatch(name):
        if name in shipped():
            return shipped()[name]
        raise InputError(f"there is no recipe '{name}', neither as a file here nor among those that ship; {nearest(name, shipped())}")
    beside = [str(p) for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    hint = f"; {nearest(str(path), beside)}" if beside else "."
    raise InputError(f"{name}: there is no such file{hint}")


def read_recipe(path: Path, changes: Sequence[str] = ()) -> Recipe:
    """The recipe in a file, with `key=value` and `stage.key=value` words put over it. Stages are not looked at yet."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}{line} is not valid YAML: {getattr(error, 'problem', None) or 'it cannot be read'}.") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} holds a value that cannot be read: {error}.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is no recipe: it must hold 'key: value' lines with the key 'stages'.")
    values = {str(key): value for key, value in content.items()}
    if "stages" not in values:
        hint = nearest("stages", values) if values else ""
        meant = f" (there is '{hint[14:-2]}')" if hint.startswith("did you mean") else ""
        raise InputError(f"{path} is no recipe: it lacks the key 'stages'{meant}.")
    name = values.setdefault("name", path.stem)
    values.setdefault("out", f"runs/{name}")
    origin = dict.fromkeys(values, f"in {path}")
    recipe = make_settings(Recipe, values, origin)
    return _changed(recipe, path, changes, origin) if changes else recipe


def _changed(recipe: Recipe, path: Path, changes: Sequence[str], origin: dict[str, str]) -> Recipe:
    values = recipe.model_dump()
    for word in changes:
        key, equals, text = word.partition("=")
        head, dot, rest = key.partition(".")
        if not equals or not key:
            raise InputError(f"'{word}' is not a setting; write key=value or stage.key=value, for example sft.epochs=3.")
        if dot and head == "vars":
            values["vars"][rest] = read_value(Settings, rest, text)
        elif dot and head in values["stages"]:
            do = values["stages"][head].get("do")
            kind = stage_settings(do) if do in stage_commands() else Settings
            values["stages"][head][rest] = read_value(kind, rest, text)
        elif dot:
            raise InputError(f"'{word}': {path} has no stage '{head}'; {nearest(head, values['stages'])}")
        elif key in Recipe.model_fields and key not in ("vars", "stages"):
            values[key] = read_value(Recipe, key, text)
            origin[key] = "on the command line"
        else:
            known = [k for k in Recipe.model_fields if k not in ("vars", "stages")]
            raise InputError(f"unknown setting '{key}' on the command line (a stage's is written stage.key=value); {nearest(key, known)}")
    return make_settings(Recipe, values, origin)
