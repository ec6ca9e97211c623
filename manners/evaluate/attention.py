"""`manners eval attention`: does alignment change how far a model looks back?

The same token ids go through both models, text and random tokens, and each layer's attention weights are summed up as they pass
(`ops/attention_profile.py` says into what). A difference stands beside two controls, without which it says nothing: how much gamma moves
between two halves of the same sequences under one model, and how much fine-tuning on plain text moves it.

    rows.jsonl      a row a sequence: set, id, tokens, the measures of each model, and their differences under `values`
    results.json    figures with intervals; under `details` for each set the models' profiles, the differences by layer, the controls
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from manners.core.config import as_list
from manners.core.console import progress
from manners.core.errors import InputError
from manners.core.records import TEXT_ROLE, Group, Message, Prompt, Response
from manners.data.formats import read
from manners.evaluate.beside import beside, own, speaker
from manners.evaluate.measurement import Measured, MeasureSettings, measure
from manners.evaluate.profiles import MARGIN, MEASURES, Profiles, difference, equivalence, halves
from manners.evaluate.results import Metric, Result, result, result_of
from manners.evaluate.subject import LocalSubject, Subject
from manners.evaluate.tafagent import DISTANCES, last_rows, length_of, random_prompts
from manners.model.probe import check_length
from manners.model.shift import Speaker

VERSION = 1
METRICS = [Metric(f"{prefix}{name}", "none", share=False) for prefix in ("", "base_", "delta_") for name in MEASURES]
FEW = 30
"""Sequences below which gamma is said to be of few."""


class AttentionSettings(MeasureSettings):
    """Settings of `manners eval attention`."""

    base: str | None = None
    """The model before alignment, as model is named; none describes model alone."""
    control: str | None = None
    """A model fine-tuned from base on plain text, as model is named: what any fine-tuning does."""
    data: Annotated[list[str] | None, BeforeValidator(as_list)] = None
    """Files of plain text, by commas; none takes random tokens only."""
    random: bool = True
    """Measure on random tokens, too."""
    chat: bool = False
    """Measure on the texts inside the model's chat template, too."""
    rows: Annotated[int, Field(ge=2)] | None = 30
    """Sequences of each set."""
    length: Annotated[int, Field(ge=32)] = 512
    """Tokens of a sequence."""
    d_min: Annotated[int, Field(ge=1)] | None = None
    """Shortest distance of the fit; none is 30, or 5 if sequences are shorter than 120."""
    sink: Annotated[int, Field(ge=0)] = 1
    """First keys that the fit leaves out."""
    protocol: Literal["profile", "tafagent"] = "profile"
    """tafagent: the last row alone, by that tool's rules; length, d_min and sink are not used."""
    distances: Annotated[list[int], BeforeValidator(as_list)] = Field(default=list(DISTANCES), min_length=3)
    """Of the protocol tafagent; sequences are 50 tokens longer than the largest."""


def attention(settings: AttentionSettings) -> dict[str, Any]:
    """Measure and write; returns what `results.json` holds."""
    if settings.chat and not settings.data:
        raise InputError("chat=true puts texts into the chat template, and there are none; add data=FILE.")
    if not settings.random and not settings.data:
        raise InputError("random=false leaves nothing to measure on; add data=FILE.")
    if (first := settings.d_min) is not None and first > settings.length // 4:
        raise InputError(f"d_min={first} leaves no room for a fit, which ends at half of {settings.length} tokens; take at most a quarter.")
    read_too = [*(settings.data or ()), *filter(None, (settings.base, settings.control))]
    return measure(settings, "attention", VERSION, (), _asked, read_too)


def _asked(settings: AttentionSettings, subject: Subject) -> Measured:
    local = own(subject, "attention")
    models = {"model": speaker(local)}
    for name in ("base", "control"):
        if named := getattr(settings, name):
            models[name] = beside(local, named)
    embeddings: list[Any] = [m.backbone.model.get_input_embeddings() for m in models.values()]
    vocabulary = min(int(layer.weight.shape[0]) for layer in embeddings)
    if settings.protocol == "tafagent":
        settings = settings.model_copy(update={"length": length_of(settings.distances)})
    for model in models.values():
        check_length(model.backbone.model, settings.length)
    sets, notes = sequences(settings, local, vocabulary)
    if settings.protocol == "tafagent":
        found = last_rows(settings.distances, sets, models, VERSION)
        return found._replace(notes=notes)
    rows: list[dict[str, Any]] = []
    results: list[Result] = []
    details: dict[str, Any] = {"length": settings.length, "margin": MARGIN, "sets": {}}
    with progress() as bar:
        task = bar.add_task("sequences", total=sum(map(len, sets.values())) * len(set(models.values())), note="")
        for name, ids in sets.items():
            profiles = _profiles(settings, models, ids, lambda: bar.update(task, advance=1))
            here = [_row(name, i, settings.length, profiles) for i in range(len(ids))]
            rows += here
            results += [result_of(here, metric, version=VERSION, set=name) for metric in METRICS if metric.name in here[0]["values"]]
            found, told = summary(profiles)
            results += _results(found, len(ids), name)
            details["sets"][name] = {"sequences": len(ids), "d_min": profiles["model"].d_min, "bins": profiles["model"].bins, **found}
            notes += [f"{name}: {sentence}" for sentence in told]
            if len(ids) < FEW:
                notes.append(f"{name}: {len(ids)} sequences; take {FEW} or more.")
    return Measured(rows, results, notes, details)


def _profiles(settings: AttentionSettings, models: Mapping[str, Speaker], ids: Sequence[Sequence[int]], done: Any) -> dict[str, Profiles]:
    """Profiles by name; two names of one model share them."""
    made: dict[Speaker, Profiles] = {}
    for model in dict.fromkeys(models.values()):
        made[model] = Profiles(settings.length, settings.d_min, settings.sink)
        for sequence in ids:
            made[model].add(model, sequence)
            done()
    shapes = {p.measures_XLH.shape for p in made.values()}
    if len(shapes) > 1:
        raise InputError("the models differ in their number of layers or heads, so they cannot be compared layer by layer.")
    return {name: made[model] for name, model in models.items()}


# --- sequences ------------------------------------------------------------------------------------------------------------------


def sequences(settings: AttentionSettings, subject: LocalSubject, vocabulary: int) -> tuple[dict[str, list[list[int]]], list[str]]:
    """Token ids by set, each `length` long, and remarks. Raises InputError where fewer than two texts are long enough."""
    sets: dict[str, list[list[int]]] = {}
    notes: list[str] = []
    if settings.data:
        sets["text"], texts, short = _windows(settings, subject)
        notes.append(f"text: {len(sets['text'])} sequences from {texts} texts; {short} texts are shorter than {settings.length} tokens.")
        if max(map(max, sets["text"])) >= vocabulary:
            raise InputError("the texts hold a token that one of the models does not have.")
    if settings.chat:
        sets["chat"] = [_in_chat(subject, ids, settings.length) for ids in sets["text"]]
    if settings.random and settings.protocol == "tafagent":
        sets["random"] = random_prompts(settings.length, settings.rows or FEW, settings.seed, vocabulary)
    elif settings.random:
        assert subject.fmt is not None
        tokenizer: Any = subject.fmt.tokenizer
        begin = subject.fmt.prompt_ids(Prompt(()))
        plain = np.setdiff1d(np.arange(min(vocabulary, len(tokenizer))), tokenizer.all_special_ids)
        drawn = np.random.default_rng(settings.seed).choice(plain, (settings.rows or FEW, settings.length - len(begin)))
        sets["random"] = [[*begin, *row] for row in drawn.tolist()]
    return sets, notes


def _windows(settings: AttentionSettings, subject: LocalSubject) -> tuple[list[list[int]], int, int]:
    """Sequences cut from the texts, the number of texts they are from, and of those too short: the first stretch of every text comes
    before the second stretch of any."""
    assert subject.fmt is not None
    stretches: list[tuple[int, int, list[int]]] = []
    short = texts = 0
    for path in settings.data or ():
        data = read(path)
        if data.kind != "text":
            raise InputError(f"{path} holds {data.kind}, and the attention profile wants plain text: rows with one column `text`.")
        for group in data.groups:
            plain = Group(Prompt(()), [Response((Message(TEXT_ROLE, group.responses[0].text),))])
            encoded = subject.fmt.encode(plain)
            begin, ids = encoded.prompt_ids, encoded.responses[0].token_ids[:-1]
            room = settings.length - len(begin)
            count = len(ids) // room
            short += not count
            stretches += [(k, texts, [*begin, *ids[k * room : (k + 1) * room]]) for k in range(count)]
            texts += 1
    stretches.sort(key=lambda found: found[:2])
    used = stretches[: settings.rows]
    if len(used) < 2:
        raise InputError(
            f"{', '.join(settings.data or ())}: {texts - short} of {texts} texts have {settings.length} tokens or more, which is too few "
            "to compare; take a smaller length or longer texts."
        )
    return [ids for _, _, ids in used], len({text for _, text, _ in used}), short


def _in_chat(subject: LocalSubject, ids: Sequence[int], length: int) -> list[int]:
    """A text as a user's message, cut at `length` tokens: what comes before a message is in front, what comes after it is cut off."""
    assert subject.fmt is not None
    tokenizer: Any = subject.fmt.tokenizer
    text = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    found = subject.fmt.prompt_ids(Prompt.user(text))[:length]
    if len(found) < length:  # a template that takes off white space, or another cut into tokens
        raise InputError("a text became shorter inside the chat template; leave out chat=true.")
    return found


# --- what comes out ---------------------------------------------------------------------------------------------------------------


def _row(name: str, index: int, length: int, profiles: Mapping[str, Profiles]) -> dict[str, Any]:
    """A sequence's measures; `values` holds the model's, and the base's and the difference where there is a base."""
    each = {who: p.row(index) for who, p in profiles.items()}
    values: dict[str, float | None] = dict(each["model"])
    if "base" in each:
        for measure_name, before in each["base"].items():
            after = each["model"][measure_name]
            values[f"base_{measure_name}"] = before
            values[f"delta_{measure_name}"] = None if before is None or after is None else after - before
    return {"id": f"{name}-{index}", "set": name, "tokens": length, **each, "values": values}


def summary(profiles: Mapping[str, Profiles]) -> tuple[dict[str, Any], list[str]]:
    """What is said of one set of sequences, and in sentences."""
    found: dict[str, Any] = {"models": {name: p.describe() for name, p in profiles.items()}}
    told = [
        f"gamma of {name} is unreliable: a power law explains {f['r2'] or 0:.2f} of log attention, less than 0.9."
        for name, f in found["models"].items()
        if not f["reliable"]
    ]
    told += [f"{p.lost} rows of {name} lie on the first keys alone and are not in its fit." for name, p in profiles.items() if p.lost]
    if "base" not in profiles:
        return found, told
    found["difference"] = difference(profiles["base"], profiles["model"])
    found["halves"] = halves(profiles["base"])
    found["equivalence"] = equivalence(found["difference"]["gamma"], spread=found["halves"]["spread"])
    if "control" in profiles:
        found["control"] = difference(profiles["base"], profiles["control"])
    gap, verdict = found["difference"]["gamma"], found["equivalence"]["verdict"]
    if gap["low"] is not None:
        told.append(f"gamma {verdict}: {gap['value']:+.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}], margin {MARGIN}.")
    if (spread := found["halves"]["spread"]) is not None:
        told.append(f"between two halves of the sequences gamma differs by up to {spread:.4f} (95 % of splits).")
    if "control" in found and (other := found["control"]["gamma"])["low"] is not None:
        told.append(f"fine-tuning on plain text moved gamma by {other['value']:+.4f} [{other['low']:+.4f}, {other['high']:+.4f}].")
    return found, told


def _results(found: Mapping[str, Any], sequences: int, name: str) -> list[Result]:
    each = {"model": "gamma", "base": "base_gamma", "control": "control_gamma"}
    estimates = {each[who]: {**f, "value": f["gamma"]} for who, f in found["models"].items()}
    for who, called in (("difference", "delta_gamma"), ("control", "control_delta_gamma")):
        if who in found:
            estimates |= {
                called: found[who]["gamma"],
                called.replace("gamma", "js"): {"value": found[who]["js"], "low": None, "high": None},
            }
    results = []
    for called, estimate in estimates.items():
        kept = {key: estimate[key] for key in ("value", "low", "high")} | {"n": sequences}
        if kept["value"] is None:
            kept["reason"] = "no fit"
        results.append(result(called, kept, version=VERSION, direction="none", set=name))
    return results
