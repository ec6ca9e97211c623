"""`manners run` and `manners plan`: a recipe's stages, each skipped, resumed or run, by what the files of the run's folder say.

    plan.json            the recipe as it was asked for, with all settings, hashes and versions
    sft/                 a stage; with several seeds seed-0/sft/, seed-1/sft/ ...
      stage.json         what it is made from: command, settings, hashes of its input, its hash, its time
      manifest.json      written last: if it is there, the stage is done
    old/                 stages of other settings, moved here by redo=true

A stage's hash is over everything that can change what comes out: the command, its settings (but for where and how often to write),
the content of the files and local models that it reads, the hashes of the stages that it reads, and Manners' version. Where a run's
folder lies is not part of it. Nothing is ever deleted.
"""

import contextlib
import gc
import importlib.metadata
import json
import os
import platform
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Console
from rich.table import Table

import manners
from manners.commands import COMMANDS
from manners.core import files
from manners.core.config import Settings
from manners.core.console import console
from manners.core.errors import InputError, MannersError, nearest
from manners.core.run import STAGE, hold, identity, open_run, untouched
from manners.recipe.content import content_of, difference, label
from manners.recipe.read import Recipe, find, read_recipe
from manners.recipe.stages import Stage, resolve

PLAN = "plan.json"
OLD = "old"
VERSIONS = ("manners", "torch", "transformers", "peft", "numpy")


class RunSettings(Settings):
    """Settings of `manners run` and `manners plan`."""

    positional: ClassVar[str] = "recipe"
    rest: ClassVar[str] = "changes"

    recipe: str
    """YAML file, or the name of a recipe that ships."""
    only: str | None = None
    """Comma-separated stages, and no others; what they read must be done."""
    redo: bool = False
    """Make stages anew whose settings or input changed; the old ones are moved to old/ in the run's folder."""
    changes: list[str] | None = None
    """Words over the recipe: seeds=0,1,2, out=FOLDER, model=NAME, stage.key=value."""


@dataclass(frozen=True, slots=True)
class Step:
    """A stage and what is to be done about it."""

    stage: Stage
    content: dict[str, Any]
    """What the stage is made from."""
    hash: str
    state: str
    """new, begun, done, changed or foreign."""
    why: str = ""

    @property
    def told(self) -> str:
        """The state in words, as `manners plan` shows it."""
        if self.state == "begun":
            return "begun: resume" if (self.stage.folder / "checkpoints").is_dir() else "begun: run again"
        return {"done": "done: skip", "new": "new: run", "changed": f"changed: {self.why}", "foreign": "in the way: not of this recipe"}[
            self.state
        ]


# ----------------------------------------------------------------------------------------------------------- commands


def plan(settings: RunSettings) -> dict[str, Any]:
    """Print what `manners run` would do, a line a stage, and return the same. Writes nothing."""
    path, recipe, stages = _load(settings)
    chosen = _chosen(settings.only, recipe, path)
    steps = [step for step in steps_of(recipe, stages, path) if step.stage.name in chosen]
    table = Table("stage", "command", "hash", "what", title=f"{path} -> {recipe.out}", title_justify="left", box=None, pad_edge=False)
    for step in steps:
        table.add_row(step.stage.id, step.stage.do, step.hash, step.told.replace("[", r"\["))
    Console(highlight=False).print(table)
    return {"recipe": str(path), "out": recipe.out, "stages": [_told(step) for step in steps]}


def run(settings: RunSettings) -> dict[str, Any]:
    """Bring every stage of a recipe to its end; returns what became of each, and the seconds.

    Raises InputError, before anything is started, for a recipe that is wrong, a missing input file, a folder that another process
    is running in, and a stage made from other settings or input, unless `redo` is given.
    """
    path, recipe, stages = _load(settings)
    chosen = _chosen(settings.only, recipe, path)
    out = Path(recipe.out)
    with _locked(out):
        steps = steps_of(recipe, stages, path)
        todo = [step for step in steps if step.stage.name in chosen and step.state != "done"]
        _check(steps, todo, settings.redo, out)
        files.write_json(out / PLAN, _record(path, recipe, steps))
        by_id = {step.stage.id: step for step in steps}
        began, made = time.time(), {}
        for number, step in enumerate(todo, 1):
            console.rule(f"{number} of {len(todo)}  {step.stage.id}: {COMMANDS[step.stage.do].summary}")
            made[step.stage.id] = _carry_out(step, by_id, out)
            gc.collect()  # a model and its optimizer lie in reference cycles, and the next stage loads its own
    skipped = [step.stage.id for step in steps if step.stage.name in chosen and step.state == "done"]
    told = f"{len(todo)} stages run in {time.time() - began:.0f} s" if todo else "nothing to do"
    console.print(f"{out}: {told}" + (f", {len(skipped)} done before: {', '.join(skipped)}" if skipped else ""))
    return {"out": recipe.out, "run": made, "skipped": skipped}


def _load(settings: RunSettings) -> tuple[Path, Recipe, list[Stage]]:
    path = find(settings.recipe)
    recipe = read_recipe(path, settings.changes or ())
    return path, recipe, resolve(recipe, path)


def _chosen(only: str | None, recipe: Recipe, path: Path) -> set[str]:
    """Names of the stages to run."""
    if only is None:
        return set(recipe.stages)
    names = [name.strip() for name in only.split(",") if name.strip()]
    for name in names:
        if name not in recipe.stages:
            raise InputError(f"only= names '{name}', and {path} has no such stage; {nearest(name, recipe.stages)}")
    return set(names)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the run's folder for this process alone."""
    with files.disk_errors(out):
        if out.is_file():
            raise InputError(f"{out} is a file; out= takes a folder.")
        if Path.cwd().is_relative_to(out.absolute()):
            raise InputError(f"{out} holds the folder you are in; a recipe's out= is a folder of its own, for example runs/first.")
        made = [folder for folder in (out, *out.parents) if not folder.exists()]
        lock = hold(out, "running a recipe")
    try:
        yield
    finally:
        lock.release()
        # What was refused before it began leaves nothing.
        if [entry.name for entry in out.iterdir()] == [".lock"]:
            with contextlib.suppress(OSError):
                (out / ".lock").unlink()
                for folder in made:
                    folder.rmdir()


def _check(steps: Sequence[Step], todo: Sequence[Step], redo: bool, out: Path) -> None:
    """Raise InputError if a stage cannot or must not be run."""
    by_id, running = {step.stage.id: step for step in steps}, {step.stage.id for step in todo}
    for step in todo:
        if step.state == "foreign":
            raise InputError(
                f"{step.stage.folder} holds something that this recipe did not make, where stage '{step.stage.name}' would write; "
                "move it away, or choose another out=."
            )
        for other in step.stage.reads:
            if by_id[other].state != "done" and other not in running:
                raise InputError(f"stage '{step.stage.id}' reads '{other}', which is not done ({by_id[other].told}); add it to only=.")
    changed = [step for step in todo if step.state == "changed"]
    if changed and not redo:
        first, more = changed[0], len(changed) - 1
        others = f" (and {more} more)" if more else ""
        raise InputError(
            f"stage '{first.stage.id}'{others} in {out} is not what the recipe says now: {first.why}; choose another out=, "
            f"or add redo=true, which moves the old folders to {out / OLD} and makes them anew."
        )


# --------------------------------------------------------------------------------------------------------- what is there


def steps_of(recipe: Recipe, stages: Sequence[Stage], path: Path) -> list[Step]:
    """Every stage with its hash and its state. Raises InputError for input that is missing; `path` is for messages."""
    by_id = {stage.id: stage for stage in stages}
    steps: dict[str, Step] = {}
    for stage in stages:
        content = content_of(recipe, stage, by_id, {i: steps[i].hash for i in stage.reads}, path)
        state, why = _state(stage, content, [steps[i] for i in stage.reads])
        steps[stage.id] = Step(stage, content, identity(content), state, why)
    return list(steps.values())


def _state(stage: Stage, content: dict[str, Any], read: Sequence[Step]) -> tuple[str, str]:
    """The state of a stage's folder and, where it does not fit, why. `read` are the steps of the stages that it reads."""
    folder = stage.folder
    if folder.is_file():
        raise InputError(f"{folder} is a file, and stage '{stage.name}' would be a folder there; move it away, or choose another out=.")
    if not folder.exists() or untouched(folder):
        return "new", ""
    kept = _kept(folder)
    if kept is None:
        return "foreign", ""
    if kept["hash"] != identity(content):
        return "changed", difference(kept["content"], content)
    for step in read:
        name = label(step.stage, stage)
        if step.state != "done":
            return "changed", f"'{name}', which it reads, is to be made"
        before = _kept(step.stage.folder) or {}
        if kept["read"].get(name) != before.get("made"):
            return "changed", f"'{name}', which it reads, was made again"
    return ("done" if (folder / "manifest.json").exists() else "begun"), ""


def _kept(folder: Path) -> dict[str, Any] | None:
    """What stage.json says, or None if there is none."""
    path = folder / STAGE
    if not path.exists():
        return None
    try:
        kept = files.read_json(path)
        return {"hash": kept["hash"], "content": kept["content"], "read": kept["read"], **kept}
    except (ValueError, KeyError, TypeError) as error:
        raise MannersError(f"{path} cannot be read ({error}); move {folder} away to make the stage anew.") from error


# ------------------------------------------------------------------------------------------------------------ doing it


def _carry_out(step: Step, steps: dict[str, Step], out: Path) -> dict[str, Any]:
    """Run one stage to its end; returns its hash and seconds. What is written on the way says how to go on."""
    stage, folder = step.stage, step.stage.folder
    if step.state == "changed":
        _move_aside(step, out)
    kept = _kept(folder) if step.state == "begun" else None
    if kept is None:
        read = {label(steps[i].stage, stage): (_kept(steps[i].stage.folder) or {}).get("made") for i in stage.reads}
        kept = {"stage": stage.name, "seed": stage.seed, "hash": step.hash, "content": step.content, "read": read}
        kept |= {"made": uuid.uuid4().hex, "began": time.time(), "seconds": 0.0}
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / STAGE, kept)
    started = time.monotonic()
    try:
        _call(step)
    except KeyboardInterrupt:
        console.print(f"stopped in stage '{stage.id}'; the same command goes on from there.")
        raise
    except MannersError as error:
        error.args = (f"stage '{stage.id}': {error}",)
        raise
    finally:
        kept["seconds"] = round(kept["seconds"] + time.monotonic() - started, 3)
        if untouched(folder):
            # It failed before it began: leave nothing that the corrected recipe would stumble over.
            for name in (STAGE, "settings.json", ".lock"):
                (folder / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                folder.rmdir()
        else:
            files.write_json(folder / STAGE, kept)
    return {"hash": step.hash, "seconds": kept["seconds"]}


def _call(step: Step) -> None:
    """Call the command's function. One that keeps a run folder itself does; for others the folder and the manifest are made here."""
    stage = step.stage
    _, function = COMMANDS[stage.do].load()
    settings = stage.settings.model_dump(mode="json")
    if not stage.settings.writes:
        started = time.monotonic()
        result = function(stage.settings)
        if not (stage.folder / "manifest.json").exists():
            files.write_json(stage.folder / "manifest.json", _manifest(step, settings, result, started))
        return
    with open_run(stage.folder, settings, step.content) as folder:
        files.remove(stage.output)  # whole, but of a start that was killed before its manifest
        started = time.monotonic()
        result = function(stage.settings)
        folder.finish(_manifest(step, settings, result, started))


def _manifest(step: Step, settings: dict[str, Any], result: Any, started: float) -> dict[str, Any]:
    return {
        "stage": step.stage.do,
        "manners": manners.__version__,
        "settings": settings,
        "hash": step.hash,
        "inputs": step.content["inputs"],
        "reads": step.content["reads"],
        "result": json.loads(json.dumps(result, default=str)),
        "seconds": round(time.monotonic() - started, 3),
    }


def _move_aside(step: Step, out: Path) -> None:
    kept = _kept(step.stage.folder)
    assert kept is not None, "a stage that has changed has a record"
    base = out / OLD / f"{step.stage.id.replace('/', '-')}-{kept['hash']}"
    target, number = base, 1
    while target.exists():
        number += 1
        target = base.with_name(f"{base.name}-{number}")
    with files.disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(step.stage.folder, target)
    console.print(f"{step.why}; what was in {step.stage.folder} is now in {target}")


def _told(step: Step) -> dict[str, Any]:
    return {"stage": step.stage.id, "do": step.stage.do, "hash": step.hash, "state": step.state, "what": step.told}


def _record(path: Path, recipe: Recipe, steps: Sequence[Step]) -> dict[str, Any]:
    """What plan.json holds."""
    versions = {"python": platform.python_version()}
    for name in VERSIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "file": str(path),
        "recipe": recipe.model_dump(mode="json"),
        "versions": versions,
        "stages": [
            {**_told(step), **step.content, "settings": step.stage.settings.model_dump(mode="json"), "out": str(step.stage.folder)}
            for step in steps
        ],
    }
