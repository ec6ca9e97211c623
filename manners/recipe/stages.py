"""`Recipe` -> its stages with all their settings, in the order in which they run, all of them checked before the first one starts.

Text in a stage may hold `{sft}`, what the stage `sft` writes; `{model}`, `{out}`, `{name}`, `{seed}` or a name of `vars`; and begin with
`starter:`, the data that ships. Whatever is wrong is an InputError that names the file, the stage and the key.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from manners.core.config import Settings, is_text, make_settings
from manners.core.errors import InputError, nearest
from manners.recipe.read import NAME, Recipe, stage_commands, stage_settings

STARTER = "starter:"
OWN_KEYS = ("do", "once", "after")
"""Keys of a stage that are the recipe's and not its command's."""
BUILT_IN = ("model", "out", "name", "seed")
"""What text may refer to beside stages and vars."""
REFERENCE = re.compile(r"\{\{([^{}]*)\}\}|\{([A-Za-z][A-Za-z0-9_-]*)\}")
"""`{{text}}`, which stands for `{text}`, or `{name}`."""
REFERENCE_PATTERN = r"\{[A-Za-z][A-Za-z0-9_-]*\}"
"""The same for JSON schema."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A command with all its settings. A stage of the recipe is one of these for each seed, unless it is a `once` stage."""

    name: str
    seed: int | None
    """None for a once-stage."""
    id: str
    """Name of its folder below the recipe's `out`: `sft`, or `seed-1/sft`."""
    do: str
    folder: Path
    output: Path
    """What a reference to the stage stands for: the folder, or the one file in it that the command writes."""
    settings: Settings
    given: frozenset[str]
    """Keys that the recipe gave; the others are defaults."""
    reads: tuple[str, ...]
    """Ids of the stages that it refers to."""


def starter() -> Path:
    """The folder of the data that ships."""
    with as_file(files("manners.data") / "starter") as folder:  # a plain folder unless Manners is run from a zip file
        return folder


def resolve(recipe: Recipe, path: Path) -> list[Stage]:
    """All stages with their settings, each after those that it reads, seed by seed; `path` is for messages.

    Raises InputError for a misspelt command, key or reference, a value of the wrong kind, and stages that read each other in a circle.
    """
    if len(set(recipe.seeds)) < len(recipe.seeds):
        raise InputError(f"the setting 'seeds' of {path} names a seed twice: {', '.join(map(str, recipe.seeds))}.")
    for name in recipe.vars:
        if name in recipe.stages:
            raise InputError(f"{path}: '{name}' is a stage and one of vars; a reference could mean either, so rename one.")
        if name in BUILT_IN or not NAME.fullmatch(name):
            raise InputError(f"{path}: vars cannot have the name '{name}'; choose letters, digits, - and _, and none of {_list(BUILT_IN)}.")
    for name, spec in recipe.stages.items():
        _check_stage(recipe, path, name, spec)
    _check_circles(recipe, path)
    made: dict[str, Stage] = {}
    once = {name for name, spec in recipe.stages.items() if spec.get("once")}

    def visit(name: str, seed: int | None) -> None:
        """Make a stage, after those that it reads."""
        if _id(recipe, name, seed) in made:
            return
        for other in _references(recipe.stages[name]):
            if other in recipe.stages:
                for s in [None] if other in once else recipe.seeds if seed is None else [seed]:
                    visit(other, s)
        stage = _stage(recipe, path, name, seed, made)
        made[stage.id] = stage

    for seed in recipe.seeds:
        for name in recipe.stages:
            if name not in once:
                visit(name, seed)
    for name in recipe.stages:
        if name in once:
            visit(name, None)
    return list(made.values())


def _check_stage(recipe: Recipe, path: Path, name: str, spec: dict[str, Any]) -> None:
    where = f"{path}, stage '{name}'"
    if not NAME.fullmatch(name) or name in (*BUILT_IN, "old", "vars") or re.fullmatch(r"seed-\d+", name):
        raise InputError(f"{where}: a stage cannot be called so; choose letters, digits, - and _, and none of {_list((*BUILT_IN, 'old'))}.")
    if "do" not in spec:
        raise InputError(f"{where} lacks the key 'do', its command; known are: {', '.join(sorted(stage_commands()))}.")
    if spec["do"] not in stage_commands():
        raise InputError(f"{where}: '{spec['do']}' is no command that a stage can be; {nearest(str(spec['do']), stage_commands())}")
    if not isinstance(spec.get("once", False), bool):
        raise InputError(f"{where}: 'once' must be true or false (given: {spec['once']!r}).")
    fields = stage_settings(spec["do"]).model_fields
    for key in spec:
        if key == "out":
            raise InputError(f"{where}: a recipe's stages write where the recipe says; remove 'out'.")
        if key not in fields and key not in OWN_KEYS:
            known = [k for k in (*fields, *OWN_KEYS) if k != "out"]
            raise InputError(f"{where}: unknown setting '{key}'; {nearest(str(key), known)}")
        if isinstance(spec[key], dict) and list(spec[key].values()) == [None]:
            name = next(iter(spec[key]))
            raise InputError(f'{where}: YAML takes {{{name}}} for a mapping; put it in quotes: {key}: "{{{name}}}".')
    for key, field in fields.items():
        if field.is_required() and key not in spec and key != "out":
            raise InputError(f"{where}: {spec['do']} needs the setting '{key}', which is not given.")
    known = [*recipe.stages, *recipe.vars, *BUILT_IN]
    for other in _after(spec):
        if other not in recipe.stages:
            raise InputError(f"{where}: 'after' names '{other}', which is no stage; {nearest(other, recipe.stages)}")
    for other in _references(spec):
        if other not in known:
            hint = nearest(other, known)
            raise InputError(
                f"{where} refers to {{{other}}}, which is no stage and none of vars; {hint.rstrip('.')}{_literally(other, hint)}"
            )
    if spec.get("once") and "seed" in _references(spec):
        raise InputError(f"{where} runs once over all seeds, so there is no {{seed}} for it.")


def _literally(name: str, hint: str) -> str:
    return "" if hint.endswith("?") else f"; for the text itself write {{{{{name}}}}}."


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)


def _after(spec: dict[str, Any]) -> list[str]:
    """The stages that `after` names: one, or a list."""
    after = spec.get("after", [])
    return [str(name) for name in (after if isinstance(after, list) else [after])]


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a value with the dotted key that it stands under."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for k, v in value.items():
            yield from leaves(v, f"{key}.{k}".lstrip("."))
    elif isinstance(value, list | tuple):
        for v in value:
            yield from leaves(v, key)


def _references(spec: dict[str, Any]) -> list[str]:
    """Names that a stage refers to, those of `after` included, in order and once each."""
    found = [m[2] for key, text in leaves(spec) if key not in OWN_KEYS for m in REFERENCE.finditer(text) if m[2]]
    return list(dict.fromkeys([*found, *_after(spec)]))


def _check_circles(recipe: Recipe, path: Path) -> None:
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            circle = [*trail[trail.index(name) :], name]
            raise InputError(
                f"{path}: these stages read each other in a circle: {' <- '.join(circle)}; let one of them read something else."
            )
        if name not in done:
            for other in _references(recipe.stages[name]):
                if other in recipe.stages:
                    visit(other, (*trail, name))
            done.add(name)

    for name in recipe.stages:
        visit(name, ())


def _id(recipe: Recipe, name: str, seed: int | None) -> str:
    return name if seed is None or len(recipe.seeds) == 1 else f"seed-{seed}/{name}"


def _stage(recipe: Recipe, path: Path, name: str, seed: int | None, made: dict[str, Stage]) -> Stage:
    """One stage for one seed; the stages that it reads are in `made`."""
    spec = recipe.stages[name]
    kind = stage_settings(spec["do"])
    folder = Path(recipe.out) / _id(recipe, name, seed)
    values: dict[str, Any] = {"out": str(folder / kind.writes)} if "out" in kind.model_fields else {}
    if seed is not None and "seed" in kind.model_fields:
        values["seed"] = seed
    for key, raw in spec.items():
        if key in OWN_KEYS:
            continue
        value = _filled(recipe, path, name, seed, made, raw)
        if isinstance(value, list) and isinstance(raw, str) and is_text(kind, key):
            if len(value) > 1:
                raise InputError(
                    f"{path}, stage '{name}': '{key}' takes one text, and {raw} is {len(value)} of them, one a seed; "
                    "let the stage run for every seed (without once), or read a stage that runs once."
                )
            value = value[0]
        values[key] = value
    origin = dict.fromkeys(values, f"of stage '{name}' in {path}")
    settings = make_settings(kind, values, origin)
    named = [other for other in _references(spec) if other in recipe.stages]
    reads = [i for other in named for s in (seed, *recipe.seeds, None) if (i := _id(recipe, other, s)) in made and _fits(made[i], seed)]
    output = folder / kind.writes if kind.writes else folder
    given = frozenset(key for key in spec if key not in OWN_KEYS)
    return Stage(name, seed, _id(recipe, name, seed), spec["do"], folder, output, settings, given, tuple(dict.fromkeys(reads)))


def _fits(other: Stage, seed: int | None) -> bool:
    """Whether a stage of this seed reads that one: it has the same seed, or one of the two runs once."""
    return seed is None or other.seed is None or other.seed == seed


def _filled(recipe: Recipe, path: Path, name: str, seed: int | None, made: dict[str, Stage], raw: Any) -> Any:
    """A value with its references put in. In a once-stage, text that refers to a stage of every seed becomes a list, one a seed."""
    again = lambda value: _filled(recipe, path, name, seed, made, value)
    if isinstance(raw, dict):
        return {key: again(value) for key, value in raw.items()}
    if isinstance(raw, list):
        found = [(again(value), isinstance(value, str)) for value in raw]
        return [one for value, was_text in found for one in (value if was_text and isinstance(value, list) else [value])]
    if not isinstance(raw, str):
        return raw
    plain = {"model": recipe.model, "out": recipe.out, "name": recipe.name, "seed": seed, **recipe.vars}
    whole = REFERENCE.fullmatch(raw)
    if whole and whole[2] in plain and not isinstance(plain[whole[2]], str):
        return plain[whole[2]]  # a number stays a number
    named = {m[2] for m in REFERENCE.finditer(raw) if m[2] in recipe.stages}
    spread = seed is None and any(not recipe.stages[other].get("once") for other in named)

    def text(at: int | None) -> str:
        def put(match: re.Match[str]) -> str:
            if match[2] is None:
                return f"{{{match[1]}}}"
            if match[2] in recipe.stages:
                other = None if recipe.stages[match[2]].get("once") else at
                return str(made[_id(recipe, match[2], other)].output)
            return str(plain[match[2]])

        return _shipped_file(path, name, REFERENCE.sub(put, raw))

    return [text(at) for at in recipe.seeds] if spread else text(seed)


def _shipped_file(path: Path, name: str, text: str) -> str:
    """`starter:FILE`, or the same as the annotator's file in a reward, as the file that ships; other text as it is."""

    def found(file: str) -> str:
        place = starter() / file
        if not place.is_file():
            known = [p.name for p in starter().glob("*.jsonl")]
            raise InputError(f"{path}, stage '{name}': the starter set has no '{place.name}'; {nearest(place.name, known)}")
        return str(place)

    if text.startswith(STARTER):
        return found(text.removeprefix(STARTER))
    return re.sub(rf"(?<=[:,]){STARTER}([^\s,]+)", lambda match: found(match[1]), text) if "annotator:" in text else text
