"""`manners eval clusters`: leave-one-cluster-out over a set of instructions, as one recipe.

The split is made first, as it says which folds there are. Then `<out>/clusters.yaml` is written, an ordinary recipe with the training
stages once a fold, and run: what is done is skipped, what was begun goes on. It may as well be edited and run by `manners run`.

    split           a fold a cluster, copies of held-out rows removed from training, some rows of each cluster kept to be asked
    TRAINED-FOLD    the stages of `recipe`, or a single SFT, on all clusters but one; TRAINED-all on all of them
    ask-...         manners eval references of the start, of each fold's model on its own cluster, and of the model of all clusters
    clusters        manners eval held-out
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import yaml
from pydantic import BeforeValidator, Field

from manners.core import files
from manners.core.config import Settings
from manners.core.errors import InputError
from manners.data.splits import EVERY, listed
from manners.pipeline import RunSettings, run
from manners.recipe.read import as_seeds, find, read_recipe
from manners.recipe.stages import OWN_KEYS, REFERENCE

SINGLE: dict[str, dict[str, Any]] = {
    "sft": {"do": "sft", "model": "{model}", "data": "{data}", "format": "{format}", "batch_size": 8, "epochs": 2}
}
"""What a fold trains where no recipe says it."""
SPLIT = ("data", "clusters", "column", "groups", "hold", "asked", "near", "same_source", "map")
ALL, START = "all", "start"


class ClustersSettings(Settings):
    """Settings of `manners eval clusters`."""

    positional: ClassVar[str] = "data"
    plural: ClassVar[bool] = True
    rest: ClassVar[str] = "changes"

    data: Annotated[list[str] | None, BeforeValidator(listed)] = None
    """Files of demonstrations. Not needed where clusters= names them."""
    out: str
    """Folder of the run."""
    clusters: str | None = None
    """JSON or YAML file: cluster -> files, as for manners data split. None takes the rows' own (of Natural Instructions: Categories)."""
    column: str = "cluster"
    """Column that holds a row's cluster, where no file names it."""
    groups: Annotated[int, Field(ge=2)] | None = None
    """Make so many clusters of the prompts' words instead."""
    hold: Annotated[list[str] | None, BeforeValidator(listed)] = None
    """Clusters to leave out, each in turn. None: every one."""
    asked: Annotated[int, Field(ge=1)] = 50
    """Rows of each cluster that are asked, at most half of it; the model of all clusters trains on the others."""
    near: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Jaccard index of runs of five words from which a training row is taken for a copy of a held-out one."""
    same_source: str = "keep"
    """Training rows of a source that is held out too: keep and count them, or drop them."""
    map: str | None = None
    """Column map for rows of an unknown shape."""
    recipe: str | None = None
    """Recipe whose stages are trained a fold: they read {data}, and the last one is the model. None is a single SFT."""
    model: str = "smollm2-135m-instruct"
    """The start: folder, run, adapter, hub id or alias."""
    format: str = "plain"
    """plain, chatml, template (the tokenizer's own), auto."""
    seeds: Annotated[list[int], BeforeValidator(as_seeds), Field(min_length=1)] = Field([0])
    """Every fold is trained once for each seed."""
    trained: bool = True
    """Train a model on all clusters as well, to see what the held-out cluster's own rows would add."""
    metric: str = "rouge_l"
    """The measure that is printed and tested: exact_match, squad_exact, token_f1, rouge_l."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 64
    """Longest answer in tokens."""
    redo: bool = False
    """As for manners run: make stages anew whose settings or input changed."""
    changes: list[str] | None = None
    """Words over every fold's stages, such as sft.epochs=1 or ask.slots=16."""


def clusters(settings: ClustersSettings) -> dict[str, Any]:
    """Split, write the recipe, run it; returns what `results.json` of `eval held-out` holds. The same call goes on with what was begun."""
    place = Path(settings.out) / "clusters.yaml"
    stages, variables = template(settings.recipe)
    written = {"split": split_stage(settings)}
    _write(place, settings, variables, written)
    run(RunSettings(recipe=str(place), only="split", redo=settings.redo))
    report = files.read_json(Path(settings.out) / "split" / "split" / "split.json")
    folders = {name: fold["folder"] for name, fold in report["folds"].items()}
    tags = tags_of(folders)
    written |= fold_stages(settings, stages, folders, tags)
    _write(place, settings, variables, written)
    run(RunSettings(recipe=str(place), redo=settings.redo, changes=spread(settings.changes or [], stages, [*tags.values(), ALL], written)))
    return files.read_json(Path(settings.out) / "clusters" / "results.json")


def template(recipe: str | None) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The training stages of a fold, and the recipe's vars. Raises InputError for a recipe that reads no {data}."""
    if recipe is None:
        return SINGLE, {}
    found = read_recipe(find(recipe))
    if not any("{data}" in str(spec) for spec in found.stages.values()):
        raise InputError(f'{recipe} has no stage that reads {{data}}; write data: "{{data}}" where a fold\'s training rows belong.')
    return found.stages, {name: value for name, value in found.vars.items() if name not in ("data", "format")}


def split_stage(settings: ClustersSettings) -> dict[str, Any]:
    """The stage `split`."""
    given = {key: value for key in SPLIT if (value := getattr(settings, key)) is not None}
    return {"do": "data split", "once": True, "by": "folds", **given}


def tags_of(folders: Mapping[str, str]) -> dict[str, str]:
    """What a fold's stages are called by: its folder's name in letters, digits and dashes, told apart by a number where need be.

    >>> tags_of({"Q A": "q-a", "q/a": "q-a", "все": "все"})
    {'Q A': 'q-a', 'q/a': 'q-a-2', 'все': '3'}
    """
    found: dict[str, str] = {}
    for number, (name, folder) in enumerate(folders.items(), 1):
        tag = re.sub(r"[^a-z0-9_]+", "-", folder.lower()).strip("-_") or str(number)
        found[name] = f"{tag}-{number}" if tag in (*found.values(), ALL, START) else tag
    return found


def fold_stages(
    settings: ClustersSettings, stages: Mapping[str, dict[str, Any]], folders: Mapping[str, str], tags: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Every stage after the split, given each cluster's folder in it and what its stages are called by."""
    ask = {"do": "eval references", "format": "{format}", "max_new_tokens": settings.max_new_tokens}
    homes = {name: f"{{split}}/{folder}" for name, folder in folders.items()}
    *_, last = stages
    found: dict[str, dict[str, Any]] = {}
    for name, tag in tags.items():
        found |= copied(stages, tag, f"{homes[name]}/train.jsonl")
        found[f"ask-{tag}"] = {**ask, "model": f"{{{last}-{tag}}}", "data": [f"{homes[name]}/test.jsonl"]}
    asked = [f"{home}/test.jsonl" for home in homes.values()]
    found[f"ask-{START}"] = {**ask, "once": True, "model": "{model}", "data": asked}
    together: dict[str, Any] = {}
    if settings.trained:
        found |= copied(stages, ALL, f"{{split}}/{EVERY}/train.jsonl")
        found[f"ask-{ALL}"] = {**ask, "model": f"{{{last}-{ALL}}}", "data": asked}
        together = {"trained": [f"{{ask-{ALL}}}"]}
    held = {name: [f"{{ask-{tag}}}"] for name, tag in tags.items()}
    found["clusters"] = {
        "do": "eval held-out",
        "once": True,
        "folds": "{split}",
        "start": [f"{{ask-{START}}}"],
        "held": held,
        **together,
        "metric": settings.metric,
    }
    return found


def copied(stages: Mapping[str, dict[str, Any]], tag: str, data: str) -> dict[str, dict[str, Any]]:
    """A fold's training stages: each called NAME-TAG, referring to each other so, and {data} being the fold's training rows."""

    def put(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: put(held) for key, held in value.items()}
        if isinstance(value, list):
            return [put(held) for held in value]
        if not isinstance(value, str):
            return value
        return REFERENCE.sub(lambda m: data if m[2] == "data" else f"{{{m[2]}-{tag}}}" if m[2] in stages else m[0], value)

    found = {}
    for name, spec in stages.items():
        after = spec.get("after", [])
        waits = {"after": [f"{other}-{tag}" for other in (after if isinstance(after, list) else [after])]} if after else {}
        body = {key: value if key in OWN_KEYS else put(value) for key, value in spec.items()}
        found[f"{name}-{tag}"] = {**body, **waits}
    return found


def spread(words: list[str], stages: Mapping[str, Any], tags: list[str], written: Mapping[str, Any]) -> list[str]:
    """Words for a stage of the template, or for `ask`, as words for all of its copies; others as they are."""
    found = []
    for word in words:
        head, dot, rest = word.partition(".")
        copies = [f"{head}-{tag}" for tag in (*tags, START)] if dot and (head in stages or head == "ask") else []
        found += [f"{copy}.{rest}" for copy in copies if copy in written] or [word]
    return found


def _write(place: Path, settings: ClustersSettings, variables: Mapping[str, Any], stages: Mapping[str, Any]) -> None:
    content = {
        "name": "clusters",
        "about": "Each cluster left out of training in turn, and asked.",
        "out": settings.out,
        "seeds": settings.seeds,
        "model": settings.model,
        "vars": {**variables, "format": settings.format},
        "stages": dict(stages),
    }
    files.write_text(
        place, "# Written by manners eval clusters.\n" + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=140)
    )
