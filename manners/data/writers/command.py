"""`manners data write`: a model writes training data, and every row says by whom and how it was made. docs/writers.md.

    rows.jsonl      demonstrations (or, of paraphrased prompts, prompts)
    pairs.jsonl     preference pairs, from how=constitutional
    dropped.jsonl   what was not kept, with the step and the reason
    report.json     the yield after each rule
    answers/        every answer of the model, by what it was asked: what makes a run repeatable, and resumable
    manifest.json   written last, with tokens and seconds

`rows.jsonl`, `pairs.jsonl`, `dropped.jsonl` and `report.json` depend on the settings, the seeds and the model's answers alone: made again
from `answers/`, without a model, they are the same bytes.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from rich.console import Console
from rich.table import Table

import manners
from manners.core import files
from manners.core.config import Settings
from manners.core.console import console
from manners.core.errors import InputError
from manners.core.plugins import load_function, source_hash
from manners.core.records import Prompt
from manners.core.run import RunFolder, content_hash, file_hash, identity, open_run
from manners.data.chat import ChatFormat
from manners.data.stream import Faults, rows_of
from manners.data.writers import constitution, evolve, rewrite, safety, self_instruct
from manners.data.writers.constraints import keeps
from manners.data.writers.desk import Desk, Templates, shown
from manners.data.writers.seeds import STARTER, Seed, read_seeds, starter_file
from manners.model.draw import Sampling
from manners.model.endpoint import ChatEndpoint
from manners.model.load import load_tokenizer, resolve
from manners.model.logprob import load_frozen
from manners.model.probe import probe
from manners.model.recorded import RecordedSampler
from manners.model.sampler import AnySampler, Sampler, max_positions

How = Literal["self-instruct", "evolve", "paraphrase", "persona", "constraints", "backtranslate", "safety", "constitutional"]
DEFAULT_SEEDS = "starter:demonstrations.jsonl"
DEFAULT_PRINCIPLES = "starter:principles.yaml"
NEEDS_SEEDS = {"safety": "harmful requests", "constitutional": "prompts that bring out what the principles speak of"}
ROUNDS = {"evolve": 2, "constitutional": 4}
TOP_P = {"self-instruct": 0.5}
KINDS = {"backtranslate": ("demonstrations", "text")}
LONGEST_SHOWN = 400


class WriteSettings(Settings):
    """Settings of `manners data write`."""

    silent: ClassVar[frozenset[str]] = frozenset({"out", "budget", "concurrency", "timeout", "key_env", "slots", "show"})

    how: How
    """self-instruct, evolve, paraphrase, persona, constraints, backtranslate, safety, constitutional."""
    model: str = "smollm2-135m-instruct"
    """Folder, run, adapter, hub id or alias; http://HOST/v1#MODEL for an endpoint."""
    seeds: str | None = None
    """File to start from. None takes starter:demonstrations.jsonl without its cluster safety; safety and constitutional need one."""
    out: str
    """Folder to write."""
    format: str = "auto"
    """plain, chatml, template (the tokenizer's own), auto. Of a model, not an endpoint."""
    map: str | None = None
    """Column map for seeds of an unknown shape."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """Use the first so many seeds only."""
    count: Annotated[int, Field(ge=1)] = 100
    """self-instruct: instructions wanted."""
    tries: Annotated[int, Field(ge=1)] = 100
    """self-instruct: most requests for instructions."""
    wave: Annotated[int, Field(ge=1)] = 8
    """self-instruct: requests made with the same pool."""
    per_row: Annotated[int, Field(ge=1)] = 1
    """What is written for each seed, or each persona."""
    rounds: Annotated[int, Field(ge=1)] | None = None
    """evolve, constitutional: how often. None is 2, and 4."""
    operators: str | None = None
    """evolve: of constrain, deepen, concretise, reason, broaden, with commas. None takes all."""
    check: bool = True
    """evolve, backtranslate: let the model judge what it wrote, and keep what passes."""
    constraints: Annotated[int, Field(ge=1, le=4)] = 2
    """constraints: most of them for one prompt."""
    personas: str | None = None
    """persona: file with a column persona (or text). None takes the twelve that ship."""
    principles: str = DEFAULT_PRINCIPLES
    """constitutional: YAML file of principles."""
    keep: Literal["all", "last"] = "all"
    """constitutional: demonstrations of all revisions, or of the last one of each prompt."""
    rouge: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Drop an instruction that is more alike than this to one that is there (ROUGE-L)."""
    refusal: str = "manners.feedback.checkers:refuses"
    """safety: module:function from an answer to whether it refuses."""
    license: str = ""
    """License of rows whose seed names none."""
    prompts: str | None = None
    """Folder of templates that stand in for those that ship, by file name."""
    temperature: float = 0.7
    """Of what is written; yes-or-no questions, instances and marks are greedy."""
    top_p: float | None = None
    """None is 0.5 for self-instruct, else 1."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 512
    """Longest answer; a longer one is cut off, and dropped."""
    seed: int = 0
    """Of all that is drawn: examples, operators, principles, answers."""
    extra: dict[str, Any] | None = None
    """Endpoint: further fields of every request, as in {presence_penalty: 2}."""
    budget: Annotated[int, Field(ge=1)] | None = None
    """Most tokens, prompts and answers together, that all runs in this folder spend."""
    concurrency: Annotated[int, Field(ge=1)] = 8
    """Endpoint: requests at once."""
    timeout: Annotated[float, Field(gt=0)] = 60.0
    """Endpoint: seconds to wait for an answer."""
    key_env: str = "OPENAI_API_KEY"
    """Endpoint: the environment variable that holds the key."""
    slots: Annotated[int, Field(ge=1)] = 32
    """Model: answers decoded together."""
    show: Annotated[int, Field(ge=0)] = 20
    """Random rows printed."""


def write(settings: WriteSettings, sampler: AnySampler | None = None) -> dict[str, Any]:
    """Write the data and return the report. `sampler` takes the place of the model, which then only lends its name.

    Raises InputError for settings, files and templates that cannot be used; MannersError for an endpoint that stays away and a budget
    that is spent. What was answered by then is kept, and the same command goes on.
    """
    if settings.seeds is None and settings.how in NEEDS_SEEDS:
        raise InputError(f"how={settings.how} needs seeds=FILE, a file of {NEEDS_SEEDS[settings.how]}.")
    with open_run(settings.out, settings.model_dump(), _identifying(settings)) as run:
        if run.manifest is not None:
            console.print(f"{run.path} is finished already; nothing to do")
            return files.read_json(run.path / "report.json")
        started = time.time()
        seeds, faults = read_seeds(
            settings.seeds or DEFAULT_SEEDS, column_map=settings.map, limit=settings.rows, kinds=KINDS.get(settings.how, ())
        )
        if settings.seeds is None:
            seeds = [seed for seed in seeds if seed.cluster != "safety"]  # a model that imitates these writes harmful requests
        if settings.how != "backtranslate" and not all(seed.asked for seed in seeds):
            raise InputError(f"{settings.seeds} holds plain text, which asks nothing; how={settings.how} starts from prompts.")
        desk_of = _prepared(settings, seeds)
        asked, fits, name = (sampler, None, "scripted") if sampler is not None else _opened(settings)
        with RecordedSampler(asked, run.path / "answers", settings.budget, identity=name) as recorded:
            return _written(settings, run, recorded, desk_of, fits, seeds, faults, started)


def _written(
    settings: WriteSettings,
    run: RunFolder,
    recorded: RecordedSampler,
    work: Callable[[Desk], tuple[list[dict[str, Any]], list[dict[str, Any]]]],
    fits: Callable[[Prompt, int], bool] | None,
    seeds: Sequence[Seed],
    faults: Faults,
    started: float,
) -> dict[str, Any]:
    dropped: list[dict[str, Any]] = []
    prompts = Path(settings.prompts) if settings.prompts else None
    desk = Desk(recorded, settings.model, _sampling(settings), prompts=prompts, fits=fits, dropped=dropped.append)
    rows, pairs = work(desk)
    for row in (*rows, *pairs):
        row["license"] = row["license"] or settings.license
    report = {
        "how": settings.how,
        "model": settings.model,
        "seeds": {"file": settings.seeds or DEFAULT_SEEDS, "rows": len(seeds), "left_out": faults.report()},
        "steps": [step.report() for step in desk.steps.values()],
        "rows": len(rows),
        "pairs": len(pairs),
    }
    files.write_jsonl(run.path / "rows.jsonl", rows)
    if settings.how == "constitutional":
        files.write_jsonl(run.path / "pairs.jsonl", pairs)
    files.write_jsonl(run.path / "dropped.jsonl", dropped)
    files.write_json(run.path / "report.json", report)
    spent = {**recorded.counts.as_dict(), "tokens_in_folder": recorded.spent}
    run.finish(
        {
            "stage": "data write",
            "manners": manners.__version__,
            "settings": settings.model_dump(),
            "rows": len(rows),
            "pairs": len(pairs),
            "answers": spent,
            "tokens": recorded.spent,
            "seconds": round(time.time() - started, 3),
        }
    )
    _print(report, shown(rows, settings.show, settings.seed), spent, run.path)
    return report


def _prepared(settings: WriteSettings, seeds: Sequence[Seed]) -> Callable[[Desk], tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """What is to be done with a desk, with all that it needs read and checked before a model is loaded: (rows, pairs)."""
    per_row, limit = settings.per_row, settings.rouge
    rounds = settings.rounds or ROUNDS.get(settings.how, 1)
    match settings.how:
        case "self-instruct":
            counts = {"count": settings.count, "tries": settings.tries, "wave": settings.wave}
            return lambda desk: (self_instruct.write(desk, seeds, limit=limit, **counts), [])
        case "evolve":
            operators = evolve.checked([o.strip() for o in settings.operators.split(",")] if settings.operators else evolve.OPERATORS)
            return lambda desk: (evolve.write(desk, seeds, rounds=rounds, operators=operators, judge=settings.check), [])
        case "paraphrase":
            return lambda desk: (rewrite.paraphrase(desk, seeds, per_row=per_row), [])
        case "persona":
            people = _personas(settings.personas)
            return lambda desk: (rewrite.persona(desk, seeds, people, per_row=per_row, limit=limit), [])
        case "constraints":
            return lambda desk: (rewrite.constrained(desk, seeds, per_row=per_row, most=settings.constraints, check=keeps), [])
        case "backtranslate":
            return lambda desk: (rewrite.backtranslated(desk, seeds, per_row=per_row, limit=limit, curate=settings.check), [])
        case "safety":
            refuses = load_function(settings.refusal, "the refusal rule")
            return lambda desk: (safety.write(desk, seeds, per_row=per_row, limit=limit, refuses=refuses), [])
        case "constitutional":
            principles = constitution.read_principles(_file(settings.principles))
            return lambda desk: constitution.write(desk, seeds, principles, rounds=rounds, last_only=settings.keep == "last")


def _sampling(settings: WriteSettings) -> Sampling:
    top_p = settings.top_p if settings.top_p is not None else TOP_P.get(settings.how, 1.0)
    return Sampling(temperature=settings.temperature, top_p=top_p, max_new_tokens=settings.max_new_tokens, seed=settings.seed)


def _file(name: str) -> Path:
    return starter_file(name) if name.startswith(STARTER) else Path(name).expanduser()


def _personas(name: str | None) -> Sequence[str]:
    if name is None:
        return rewrite.PERSONAS
    found = [
        next((row[key] for key in ("persona", "text", "description") if isinstance(row.get(key), str)), "")
        for _, row in rows_of(name, Faults())
    ]
    people = list(dict.fromkeys(text.strip() for text in found if text.strip()))
    if not people:
        raise InputError(f"{name} has no row with a text under 'persona' (or 'text').")
    return people


def _opened(settings: WriteSettings) -> tuple[AnySampler, Callable[[Prompt, int], bool] | None, str]:
    """The model or endpoint, whether a prompt fits it, and whose answers it gives."""
    if settings.model.startswith(("http://", "https://")):
        options = {"key_env": settings.key_env, "concurrency": settings.concurrency, "timeout": settings.timeout}
        endpoint = ChatEndpoint.named(settings.model, extra=settings.extra, **options)
        return endpoint, None, endpoint.identity
    source = resolve(settings.model)
    tokenizer = load_tokenizer(source)
    fmt = ChatFormat.of(tokenizer, settings.format)
    backbone, role = load_frozen(source, tokenizer)
    probe(backbone)
    positions = max_positions(backbone.model)
    fits = lambda prompt, new: positions is None or len(fmt.prompt_ids(prompt)) + new <= positions
    parts = [source.base if source.folder is None else content_hash(source.folder), source.adapter and content_hash(source.adapter)]
    return Sampler(backbone, fmt, role=role, slots=settings.slots), fits, json.dumps([*parts, fmt.name])


def _identifying(settings: WriteSettings) -> dict[str, Any]:
    """What can change the rows, beside the model's answers."""
    content: dict[str, Any] = settings.model_dump(exclude=set(settings.silent)) | {"stage": "data write"}
    for key in ("seeds", "personas", "principles"):
        name = getattr(settings, key)
        if name and _file(name).is_file():
            content[f"{key}_sha256"] = file_hash(_file(name))
    if settings.how == "safety":
        content["refusal_sha256"] = source_hash(settings.refusal, "the refusal rule")
    model = Path(settings.model)
    if model.is_dir():
        content["model_sha256"] = content_hash(model)
    templates = Templates(Path(settings.prompts) if settings.prompts else None)
    content["prompts_sha256"] = identity({name: templates.source(name) for name in sorted(templates.shipped)})
    return content


# ------------------------------------------------------------------------------------------------------------- telling


def _print(report: Mapping[str, Any], rows: Iterable[Mapping[str, Any]], spent: Mapping[str, int], path: Path) -> None:
    out = Console(highlight=False, markup=False, emoji=False)
    table = Table("step", "rule", "dropped", "left", box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    for step in report["steps"]:
        table.add_row(step["step"], "", "", f"{step['seen']:,}")
        for rule, counts in step["after"].items():
            if counts["dropped"]:
                table.add_row("", rule, f"{counts['dropped']:,}", f"{counts['left']:,}")
        for note, count in step.get("notes", {}).items():
            table.add_row("", note, "", f"{count:,}")
    out.print(table)
    for row in rows:
        out.print()
        for message in row.get("messages") or row["prompt"]:
            text = message["content"]
            out.print(f"{message['role']}: {text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + ' ...'}", soft_wrap=True)
    out.print()
    pairs = f" and {report['pairs']:,} pairs" if report["pairs"] else ""
    asked = f"{spent['misses']:,} answers asked for, {spent['hits']:,} there already; {spent['tokens_in_folder']:,} tokens in all"
    out.print(f"{path}: {report['rows']:,} rows{pairs} ({asked})", soft_wrap=True)
