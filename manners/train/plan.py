"""What a run is about to do, said before it does it: rows, checks, steps, memory."""

from collections.abc import Sequence

import torch

from manners.core.console import console
from manners.core.errors import InputError
from manners.model.roles import BASE
from manners.train import memory
from manners.train.learner import Forward, count_steps, policy_scores
from manners.train.stage import Stage, TrainSettings


def describe(settings: TrainSettings, stage: Stage, learning_rate: float, forward: Forward = policy_scores) -> None:
    """Print what was read, whether it can be trusted, and the plan that follows from the settings. `forward` is the learner's."""
    _rows(settings, stage)
    _checks(stage)
    trained = sum(p.numel() for p in stage.backbone.trainable(stage.role).values())
    steps = count_steps(len(stage.groups), settings.batch_size, settings.epochs)
    kinds = [name for name, asked in (("DoRA", settings.use_dora), ("rsLoRA", settings.use_rslora)) if asked]
    kinds = [] if stage.role == BASE or stage.source.adapter is not None else kinds
    frozen = [] if settings.quantize is None else [f"frozen weights in {settings.quantize}"]
    said = f" ({', '.join(kinds + frozen)})" if kinds + frozen else ""
    console.print(f"{settings.model}: {settings.finetune} fine-tuning{said}, {trained:,} trained weights")
    if stage.role != BASE and stage.source.adapter is not None:
        lora = stage.backbone.lora(stage.role)
        targets = lora.targets if isinstance(lora.targets, str) else ", ".join(sorted({t.rpartition(".")[2] for t in lora.targets}))
        kind = "".join(f"{name}, " for name, used in (("DoRA", lora.use_dora), ("rsLoRA", lora.use_rslora)) if used)
        console.print(
            f"going on from the adapter in {stage.source.adapter}: its {kind}rank {lora.rank}, alpha {lora.alpha} and targets "
            f"({targets}) are used, and lora_rank, lora_alpha, lora_targets, use_dora and use_rslora have no effect",
            markup=False,
        )
    console.print(
        f"plan: {steps:,} steps of {settings.batch_size} rows, learning rate {learning_rate:g} ({settings.schedule}), "
        f"micro-batches of {settings.micro_tokens:,} tokens, seed {settings.seed}, {torch.get_num_threads()} threads"
    )
    stage.memory = memory.plan(stage.backbone, stage.role, stage.groups, settings, forward)
    console.print(f"memory: {memory.sentence(stage.memory, stage.backbone.device)}")


def _rows(settings: TrainSettings, stage: Stage) -> None:
    tokens = sum(g.tokens for g in stage.groups)
    targets = sum(g.targets for g in stage.groups)
    console.print(
        f"{settings.data}: {stage.data.shape}, {len(stage.groups):,} rows, {tokens:,} tokens, {targets:,} trained "
        f"({stage.format.name} format)"
    )
    for row, why in stage.data.refused[:3]:
        console.print(f"  line or row {row} left out: {why}", markup=False)
    if len(stage.data.refused) > 3:
        console.print(f"  and {len(stage.data.refused) - 3:,} more rows left out")
    for note, count in {**stage.data.notes, **stage.format.counts}.items():
        console.print(f"  {note}: {count:,}", markup=False)


def _checks(stage: Stage) -> None:
    counts = stage.counts
    console.print(
        f"checks: stop token trained in {counts['stop_trained']:,} of {counts['answers']:,} answers, {counts['truncated']:,} truncated "
        f"({counts['truncated_share']:.1%}); {counts['begin_doubled']:,} doubled begin tokens; boundary of prompt and answer cut as in "
        f"one text in all but {counts['boundary_differs']:,} of {counts['rows']:,} rows"
    )
    sampler = "" if stage.sampler_gap is None else f", sampler equals scorer within {stage.sampler_gap:.1g}"
    console.print(f"checks: tree equals plain within {stage.probe_gap:.1g} nats a token{sampler}")


def tell_of_soft_labels(given: Sequence[float | None], soft: bool, path: str) -> None:
    """Print how many pairs say how sure they are, where that is not used. Raises InputError if it is to be used and none says."""
    held = sum(value is not None for value in given)
    if soft and not held:
        raise InputError(f"soft_labels, but no pair of {path} has a probability; leave it out, or make the pairs by a rule that gives one.")
    if held and not soft:
        console.print(f"  {held:,} pairs say how sure they are (probability), which soft_labels=true would learn from")
