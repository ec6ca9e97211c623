"""What all trainers on a file of rows share: settings, loading, the loop over steps with checkpoints, the result.

A trainer file (sft.py, preference.py) says what its loss is and calls these in order; nothing here knows an algorithm.
"""

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import AfterValidator, Field
from transformers import PreTrainedModel

import manners
from manners.core import files
from manners.core.console import console, progress
from manners.core.errors import InputError
from manners.core.plugins import source_hash
from manners.core.records import Group, TokenGroup
from manners.core.run import RunFolder, file_hash
from manners.data.chat import ChatFormat
from manners.data.checks import trust
from manners.data.formats import DataFile, parse_map, read
from manners.model.agreement import sampler_gap
from manners.model.export import merged_model, save_tokenizer
from manners.model.fetch import quiet
from manners.model.load import ModelSource, load_model, load_tokenizer, resolve
from manners.model.probe import check_length, probe
from manners.model.roles import BASE, Backbone, Lora
from manners.train import trackers
from manners.train.learner import Learner, Loss, OptimizerSettings, batches
from manners.train.memory import MemoryPlan, measured

POLICY = "policy"
"""The role that is trained when fine-tuning by LoRA; full fine-tuning trains BASE."""
COMMANDS = {"pairs": "manners dpo", "labelled": "manners kto", "demonstrations": "manners sft", "text": "manners sft"}
"""Which command trains on a kind of rows."""


class TrainSettings(OptimizerSettings):
    """Keys of every trainer that learns from a file of rows."""

    silent: ClassVar[frozenset[str]] = OptimizerSettings.silent | {"track"}

    model: str = "smollm2-135m-instruct"
    """Folder, run, adapter, hub id or alias."""
    data: str
    """File of rows (JSONL, JSON, CSV, Parquet) or hub data set."""
    out: str
    """Run folder to write."""
    format: str = "auto"
    """How messages become text: plain, chatml, template (the tokenizer's own), auto (template if there is one, else plain)."""
    map: str | None = None
    """Column map for rows of an unknown shape, such as prompt=query,completion=reply."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """Use the first so many rows only."""
    max_length: Annotated[int, Field(ge=2)] = 1024
    """Longest prompt plus response in tokens."""
    finetune: Literal["lora", "full"] = "lora"
    """Train an adapter, or all weights."""
    lora_rank: Annotated[int, Field(ge=1)] = 16
    """Rank of a fresh adapter."""
    lora_alpha: Annotated[int, Field(ge=1)] = 32
    """A fresh adapter's product is scaled by alpha / rank."""
    lora_targets: str = "all-linear"
    """Comma-separated names of the layers to adapt, or all-linear."""
    use_dora: bool = False
    """DoRA: a fresh adapter also trains the length of each row of the weights that it adapts."""
    use_rslora: bool = False
    """rsLoRA: the product of a fresh adapter is scaled by alpha / sqrt(rank) instead of alpha / rank."""
    quantize: Literal["4bit"] | None = None
    """4bit keeps the frozen weights in four bits (QLoRA); needs the extra qlora."""
    loss: str | None = None
    """A loss of your own, module:function, instead of the trainer's; the trainer's page says what it is given."""
    track: Annotated[str | None, AfterValidator(trackers.checked)] = None
    """Give each step to tensorboard, trackio or wandb as well, by commas; none gives it to nobody."""


@dataclass(slots=True)
class Stage:
    """A model ready to train and the rows it learns from."""

    source: ModelSource
    backbone: Backbone
    role: str
    format: ChatFormat
    data: DataFile
    groups: list[TokenGroup]
    probe_gap: float
    """Largest difference in nats between tree and plain log-probabilities."""
    sampler_gap: float | None
    """Largest difference in nats between sampler and scorer; None for plain text, which has no prompt to sample from."""
    counts: dict[str, Any]
    """The four counts of data.checks."""
    memory: MemoryPlan | None = None
    """What the run is expected to take, once `plan.describe` has counted it."""


def identifying(settings: TrainSettings, stage: str) -> dict[str, Any]:
    """What can change a stage's output: its settings but for those that only say where and how often to write, and its data."""
    content = settings.model_dump(exclude={"out", "save_every", "track"})
    path = Path(settings.data)
    content["data_sha256"] = file_hash(path) if path.is_file() else None
    if settings.loss is not None and ":" in settings.loss:
        content["loss_source"] = source_hash(settings.loss, "loss")
    return {"stage": stage, **content}


def prepare(settings: TrainSettings, kinds: Sequence[str]) -> Stage:
    """Load the rows, the model and the adapter to train, encode the rows and probe the model.

    `kinds` are the kinds of rows that the trainer can use. Raises InputError for rows of another kind, rows that do not fit, and
    models that cannot be trained.
    """
    data = read(settings.data, column_map=parse_map(settings.map) if settings.map else None, limit=settings.rows)
    if data.kind not in kinds:
        command = COMMANDS.get(data.kind)
        advice = f"Use {command} for this file, give another" if command else "Give another file"
        raise InputError(
            f"{settings.data} holds {data.kind} ({data.shape} rows); this trainer needs {' or '.join(kinds)}. "
            f"{advice}, or name the columns with map=."
        )
    source = resolve(settings.model)
    tokenizer = load_tokenizer(source)
    chat_format = ChatFormat.of(tokenizer, settings.format)
    groups = [chat_format.encode(group, max_length=settings.max_length) for group in data.groups]
    counts = trust(groups, chat_format, data.groups, settings.max_length)
    for index, group in enumerate(groups):
        group.row = index  # a row of the file may hold several groups
    backbone, role = load_backbone(source, settings, tokenizer)
    longest = max(len(g.prompt_ids) + max(len(r.token_ids) for r in g.responses) for g in groups)
    check_length(backbone.model, longest)
    gap = probe(backbone)
    prompted = next((g for g in groups if g.prompt_ids), None)
    agreement = sampler_gap(backbone, role, chat_format, prompted.prompt_ids) if prompted else None
    return Stage(source, backbone, role, chat_format, data, groups, gap, agreement, counts)


def load_backbone(source: ModelSource, settings: TrainSettings, tokenizer: Any) -> tuple[Backbone, str]:
    """The model with the weights to train: a fresh adapter, the adapter that the source names, or all weights."""
    backbone = Backbone(base_model(source, settings), tokenizer, source.base)
    if settings.finetune == "full":
        backbone.train_base()
        return backbone, BASE
    if source.adapter is not None:
        backbone.load_adapter(POLICY, source.adapter)
    else:
        backbone.add_adapter(POLICY, lora_of(settings), seed=settings.seed)
    return backbone, POLICY


def base_model(source: ModelSource, settings: TrainSettings) -> PreTrainedModel:
    """The model to train, its adapter merged into it, or the frozen one below an adapter, quantised if the settings say so.

    Raises InputError for settings that contradict each other, and where quantising does not work.
    """
    if settings.finetune != "full":
        return load_model(source, quantize=settings.quantize)
    if settings.quantize is not None:
        raise InputError(f"quantize={settings.quantize} keeps weights frozen, and finetune=full trains them; leave out one of the two.")
    return merged_model(source)


def leave_room(groups: Sequence[Group], name: str | None, chat_format: ChatFormat, max_new_tokens: int, max_length: int) -> None:
    """Raises InputError, naming the row of the file `name`, for a prompt that leaves no room for an answer."""
    for group in groups:
        length = len(chat_format.prompt_ids(group.prompt))
        if length + max_new_tokens > max_length:
            raise InputError(
                f"row {group.row + 1} of {name}: the prompt has {length} tokens, with max_new_tokens={max_new_tokens} "
                f"more than max_length={max_length}; leave it out, or change one of the two."
            )


def lora_of(settings: TrainSettings) -> Lora:
    """The fresh adapter that the settings ask for."""
    names = [name.strip() for name in settings.lora_targets.split(",") if name.strip()]
    targets = "all-linear" if names == ["all-linear"] else names
    return Lora(settings.lora_rank, settings.lora_alpha, targets, settings.use_dora, settings.use_rslora)


Watch = Callable[[dict[str, Any]], dict[str, float]]
"""Is shown the record of every step, those before an interruption again, and returns metrics to add; may print, and raise."""


def fit(
    run: RunFolder,
    learner: Learner,
    groups: Sequence[TokenGroup],
    loss: Loss,
    settings: TrainSettings,
    name: str,
    watch: Watch = lambda _: {},
) -> None:
    """Run all steps from the newest checkpoint on, or from the first; save one every `save_every` steps and when interrupted.

    An interrupted run ends in the same weights, bit for bit, as one that was not.
    """
    if run.checkpoints:
        state = learner.restore(run.checkpoints[-1])
        console.print(f"going on from step {state['step']:,} of {learner.total_steps:,}")
    run.rewind(learner.step_index)
    for record in run.metrics:
        watch(record)
    track = settings.track if run.path == Path(settings.out) else None  # a part of a run is given on by who runs it
    with trackers.tracking(run, track, settings.model_dump()) as tracked, progress() as bar, interruptible() as interrupted:
        task = bar.add_task(name, total=learner.total_steps, completed=learner.step_index, note="")
        for step, indices in enumerate(batches(len(groups), settings.batch_size, settings.epochs, settings.seed)):
            if step < learner.step_index:
                continue
            metrics = learner.step([groups[i] for i in indices], loss)
            metrics |= watch(metrics)
            record = {**metrics, "epoch": step * settings.batch_size / len(groups)}
            run.log(record)
            tracked.send(record)
            bar.update(task, advance=1, note=f"loss {metrics['loss']:.3f}  {metrics['tokens_per_second']:,.0f} tokens/s")
            due = learner.step_index % settings.save_every == 0 and learner.step_index < learner.total_steps
            if due or interrupted.is_set():
                with run.checkpoint(learner.step_index) as folder:
                    learner.save(folder, {"data_cursor": {"step": learner.step_index, "seed": settings.seed, "rows": len(groups)}})
            if interrupted.is_set():
                console.print(f"stopped after step {learner.step_index:,} and saved; the same command goes on from there.")
                raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Within this block the first Ctrl-C sets the event instead of raising, so that a step is finished and saved; a second raises."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def note(*_: Any) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


def write_policy(folder: Path, stage: Stage, settings: TrainSettings) -> None:
    """The trained adapter or model, with its tokenizer."""
    if stage.role == BASE:
        stage.backbone.model.save_pretrained(str(folder))
    else:
        stage.backbone.save_adapter(stage.role, folder, base_name=base_name(settings.model, stage.source))
    save_tokenizer(stage.backbone.tokenizer, folder, stage.format.template)


def finish(
    run: RunFolder,
    stage: Stage,
    settings: TrainSettings,
    name: str,
    started: float,
    extra: dict[str, Any],
    write: Callable[[Path], None] | None = None,
) -> dict[str, Any]:
    """Write the trained model where the ecosystem finds it (or what `write` puts into the folder), then the manifest. Returns the
    manifest."""
    trackers.catch_up(run, settings.track, settings.model_dump())
    with files.whole_folder(run.path / "model") as folder, quiet():
        if write is None:
            write_policy(folder, stage, settings)
        else:
            write(folder)
    steps = [r for r in run.metrics if "loss" in r]
    manifest = {
        "stage": name,
        "manners": manners.__version__,
        "torch": torch.__version__,
        "settings": settings.model_dump(),
        "rows": len(stage.groups),
        "refused": len(stage.data.refused),
        "notes": dict(Counter(stage.data.notes) + stage.format.counts),
        "tokens": sum(r["tokens"] for r in steps),
        "steps": len(steps),
        "first_loss": steps[0]["loss"] if steps else None,
        "last_loss": steps[-1]["loss"] if steps else None,
        "training_seconds": round(sum(r["seconds"] for r in steps), 3),
        "wall_seconds": round(time.time() - started, 3),
        "tree_against_plain_nats": stage.probe_gap,
        "sampler_against_scorer_nats": stage.sampler_gap,
        "counts": stage.counts,
        "memory": measured(stage.memory, stage.backbone.device) if stage.memory is not None else None,
        **extra,
    }
    run.finish(manifest)
    losses = f", loss {steps[0]['loss']:.3f} at first, {steps[-1]['loss']:.3f} at last" if steps else ""
    if taken := manifest["memory"]:
        console.print(f"memory: {taken['planned'] / 1e9:.2f} GB planned, {taken['measured'] / 1e9:.2f} GB measured")
    console.print(f"{name} is finished after {len(steps):,} steps{losses}; the model is in {run.path / 'model'}")
    return manifest


def base_name(model: str, source: ModelSource) -> str:
    """What an adapter's config calls its base: the alias or hub id, or a folder's absolute path."""
    if source.adapter is None:
        return str(Path(model).resolve()) if Path(model).is_dir() else model
    config = files.read_json(source.adapter / "adapter_config.json")
    return str(config.get("base_model_name_or_path") or source.base)
