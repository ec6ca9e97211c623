"""Memory on paper: what a training run of a model would take, from its shapes alone, and how large its micro-batches may be.

Nothing is loaded and nothing computed. Weights, adapter and moments follow from the config; activations are counted as for a run
(`train/memory.py`), on a model without data. Of a Llama two and three layers are counted and stand for all: each layer more adds the
same again, and so does each row of a micro-batch. QLoRA is what trainers do with quantize=4bit.
"""

import json
from dataclasses import asdict
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PretrainedConfig

from manners.core.config import Settings
from manners.core.errors import InputError
from manners.core.records import TokenGroup, TokenResponse
from manners.model.fetch import quiet
from manners.model.load import resolve
from manners.model.roles import BASE, Backbone, Lora
from manners.model.trace import trace
from manners.model.tree import pack
from manners.train.memory import MOMENTS, MemoryPlan

ROLE = "policy"
NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
"""Bits a weight in QLoRA (Dettmers 2023, section 3): four, an 8-bit scale for 64 weights, a 32-bit one for 256 of those."""
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class Shape(NamedTuple):
    """The sizes of a Llama. `tied`: whether the output layer is the embedding."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    tied: bool


PRESETS = {
    "llama-1b": Shape(2048, 16, 32, 8, 8192, 128256, True),
    "llama-3b": Shape(3072, 28, 24, 8, 8192, 128256, True),
    "llama-8b": Shape(4096, 32, 32, 8, 14336, 128256, False),
}
"""The shapes of Llama 3.2 1B and 3B and of Llama 3.1 8B."""
FIELDS = {
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "intermediate": "intermediate_size",
    "vocabulary": "vocab_size",
    "tied": "tie_word_embeddings",
}
"""A shape's sizes as transformers' config calls them."""


class MemorySettings(Settings):
    """Settings of `manners memory`."""

    positional: ClassVar[str] = "model"

    model: str = "llama-8b"
    """llama-1b, llama-3b, llama-8b, or any model name; its config alone is read."""
    hidden: Annotated[int, Field(ge=1)] | None = None
    """Width, instead of the preset's."""
    layers: Annotated[int, Field(ge=1)] | None = None
    """Number of layers, instead of the preset's."""
    heads: Annotated[int, Field(ge=1)] | None = None
    """Attention heads, instead of the preset's."""
    kv_heads: Annotated[int, Field(ge=1)] | None = None
    """Heads of keys and values, instead of the preset's."""
    intermediate: Annotated[int, Field(ge=1)] | None = None
    """Inner width of the feed-forward layer, instead of the preset's."""
    vocabulary: Annotated[int, Field(ge=2)] | None = None
    """Size of the vocabulary, instead of the preset's."""
    trainer: Literal["sft", "dpo"] = "sft"
    """What is trained: demonstrations or pairs."""
    finetune: Literal["lora", "qlora", "full"] = "lora"
    """What is trained. qlora is finetune=lora with quantize=4bit."""
    rank: Annotated[int, Field(ge=1)] = 16
    """Rank of the adapter, on every linear layer but the output layer."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of weights (qlora: of those not quantised), adapter and activations."""
    micro_tokens: Annotated[int, Field(ge=1)] = 2048
    """Token budget of a micro-batch."""
    prompt: Annotated[int, Field(ge=1)] = 256
    """Tokens of a row's prompt."""
    response: Annotated[int, Field(ge=1)] = 256
    """Tokens of a response; a row has one for sft, two for dpo."""
    checkpointing: bool = False
    """Recompute activations in backward."""
    gigabytes: Annotated[float, Field(gt=0)] = 24.0
    """Memory of the card, in units of 10^9 bytes."""
    reserve: Annotated[float, Field(ge=0)] = 1.5
    """What driver, kernels and the allocator take of it: assumed, not measured."""
    table: bool = False
    """Print the table of docs/memory.md instead: the presets with lora and qlora, sft and dpo."""


class Counted(NamedTuple):
    """Numbers of weights and bytes of activations for so many layers and rows. `largest` is the largest linear layer's."""

    weights: int
    linear: int
    adapter: int
    largest: int
    kept: int
    passing: int

    def beyond(self, less: "Counted", steps: int) -> "Counted":
        """This one, and `steps` times more of what it has over `less`."""
        return Counted(*(more + (more - few) * steps for few, more in zip(less, self, strict=True)))


class Work(NamedTuple):
    """What is counted: everything that activations hang on, but for the numbers of layers and rows."""

    model_type: str
    config: str
    full: bool
    rank: int
    dtype: str
    row: tuple[int, ...]
    """Tokens of the prompt and of each response."""
    checkpointing: bool


def config_of(settings: MemorySettings) -> PretrainedConfig:
    """The config that is meant. Raises InputError for a model that is not found and for sizes that do not go together."""
    given = {key: value for key in FIELDS if (value := getattr(settings, key, None)) is not None}
    if settings.model in PRESETS:
        shape = PRESETS[settings.model]._replace(**given)
        if shape.hidden % shape.heads or shape.heads % shape.kv_heads:
            raise InputError(f"hidden={shape.hidden} must be a multiple of heads={shape.heads}, and that of kv_heads={shape.kv_heads}.")
        return LlamaConfig(**{FIELDS[key]: value for key, value in shape._asdict().items()})
    if given:
        raise InputError(f"{', '.join(given)} can be set for {', '.join(PRESETS)} only, and '{settings.model}' is none of them.")
    source = resolve(settings.model)
    with quiet():
        return AutoConfig.from_pretrained(source.base, local_files_only=source.folder is not None, trust_remote_code=False)


def plan_on_paper(settings: MemorySettings, rows: int) -> MemoryPlan:
    """Memory of a step whose micro-batches hold so many rows, on a card. From the second row on each adds the same."""
    config = config_of(settings)
    work = Work(
        config.model_type,
        config.to_json_string(),
        settings.finetune == "full",
        settings.rank,
        settings.dtype,
        (settings.prompt, *[settings.response] * (2 if settings.trainer == "dpo" else 1)),
        settings.checkpointing,
    )
    counted = _in_all_layers(work, config, min(rows, 3))
    if rows > 3:
        counted = counted.beyond(_in_all_layers(work, config, 2), rows - 3)
    size = DTYPES[settings.dtype].itemsize
    trained = counted.weights if work.full else counted.adapter
    quantised = settings.finetune == "qlora"
    return MemoryPlan(
        libraries=int(settings.reserve * 1e9),
        weights=int((counted.weights - counted.linear) * size + counted.linear * NF4_BITS / 8) if quantised else counted.weights * size,
        adapter=counted.adapter * size,
        moments=MOMENTS * trained * size,
        gradients=trained * size,
        # A quantised layer is unpacked whole while it computes.
        activations=counted.kept + counted.passing + (counted.largest * size if quantised else 0),
        kept=counted.kept,
        holes=0,
        tokens=rows * row_tokens(settings),
        loading=0,
        exact=True,
    )


def most_rows(settings: MemorySettings) -> int:
    """The most rows of a micro-batch that fit into `gigabytes`; 0 if not even one does."""
    room = int(settings.gigabytes * 1e9)
    two, three = (plan_on_paper(settings, rows).peak for rows in (2, 3))
    if two > room:
        return int(plan_on_paper(settings, 1).peak <= room)
    return 2 + (room - two) // (three - two)


def _in_all_layers(work: Work, config: PretrainedConfig, rows: int) -> Counted:
    layers = config.num_hidden_layers
    if type(config) is not LlamaConfig or layers <= 3:
        return _count(work, layers, rows)
    return _count(work, 3, rows).beyond(_count(work, 2, rows), layers - 3)


@cache
def _count(work: Work, layers: int, rows: int) -> Counted:
    """Count a micro-batch of `rows` rows, not the first of its step, through a model of so many layers."""
    backbone, role, weights, linear = _model(work, layers)
    prompt, *responses = work.row
    group = TokenGroup([0] * prompt, [TokenResponse([0] * n, [True] * n) for n in responses])
    try:
        traced = trace(backbone, role, pack([group] * rows), gradients=True)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise InputError(
            f"{type(backbone.model).__name__} decides by its data what to compute (experts, as a rule), so it cannot be counted on paper."
        ) from error
    adapter = sum(p.numel() for n, p in backbone.model.named_parameters() if ".lora_" in n)
    return Counted(weights, sum(linear), adapter, max(linear), traced.kept, traced.peak - traced.gradients - traced.kept)


@cache
def _model(work: Work, layers: int) -> tuple[Backbone, str, int, list[int]]:
    """A shadow (see `trace`) of so many layers, the role to train, the number of weights, and those of each linear layer but the
    output layer."""
    values = json.loads(work.config) | {"num_hidden_layers": layers}
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    with quiet(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[work.dtype], trust_remote_code=False)
    output = model.get_output_embeddings()
    linear = [m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear) and m is not output]
    weights = sum(p.numel() for p in model.parameters())
    backbone = Backbone(model)
    if work.full:
        backbone.train_base()
    else:
        backbone.add_adapter(ROLE, Lora(work.rank))
    role = BASE if work.full else ROLE
    trained = set(backbone.trainable(role))
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")  # tensors on "meta" would take other kernels
        model.tie_weights()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    backbone.checkpointing(work.checkpointing)
    return backbone, role, weights, linear


# --- the command ------------------------------------------------------------------------------------------------------------------


def memory(settings: MemorySettings) -> dict[str, Any]:
    """Print what a run would take, part by part, and the largest budget that fits the card; or with `table`, the presets side by side.

    Raises InputError for a model that is not found or has no causal language model.
    """
    if settings.table:
        print(table(settings))
        return {}
    row = row_tokens(settings)
    rows = max(1, settings.micro_tokens // row)
    plan, most = plan_on_paper(settings, rows), most_rows(settings)
    note = " (finetune=lora quantize=4bit)" if settings.finetune == "qlora" else ""
    checkpointing = "checkpointing" if settings.checkpointing else "no checkpointing"
    print(f"{settings.model}: {settings.finetune}{note}, {settings.trainer}, {settings.dtype}, {checkpointing}")
    print(f"micro-batch: {rows:,} rows of {row:,} tokens, {rows * row:,} tokens")
    parts = {
        "weights": plan.weights,
        "adapter": plan.adapter,
        "gradients": plan.gradients,
        "AdamW's moments": plan.moments,
        "activations kept": plan.kept,
        "passing on top": plan.activations - plan.kept,
        "reserve (assumed)": plan.libraries,
        "together": plan.peak,
    }
    for name, size in parts.items():
        print(f"  {name:<18}{size / 1e9:8.2f} GB")
    fits = f"micro_tokens={most * row} ({most:,} rows)" if most else "nothing: not even one row"
    print(f"largest that fits {settings.gigabytes:g} GB: {fits}")
    return {**asdict(plan), "peak": plan.peak, "largest_micro_tokens": most * row}


def row_tokens(settings: MemorySettings) -> int:
    """Tokens computed for one row: a DPO pair counts its prompt once."""
    return settings.prompt + settings.response * (2 if settings.trainer == "dpo" else 1)


def table(settings: MemorySettings) -> str:
    """The presets with LoRA and QLoRA, SFT and DPO, with and without checkpointing, as the Markdown table of docs/memory.md.

    Gigabytes at the budget of `settings` (in whole rows), and the largest budget that fits.
    """
    gigabytes = lambda size: f"{size / 1e9:.2f}"
    lines = [
        "| model | trains | by | weights | adapter, gradients, AdamW | activations | together | fits | checkpointed | together | fits |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for model in PRESETS:
        for finetune in ("lora", "qlora"):
            for trainer in ("sft", "dpo"):
                cells = []
                for checkpointing in (False, True):
                    update = {"model": model, "finetune": finetune, "trainer": trainer, "checkpointing": checkpointing}
                    asked = settings.model_copy(update=update)
                    row = row_tokens(asked)
                    plan = plan_on_paper(asked, max(1, asked.micro_tokens // row))
                    cells += [gigabytes(plan.activations), gigabytes(plan.peak), f"{most_rows(asked) * row:,}"]
                trained = plan.adapter + plan.gradients + plan.moments
                lines.append(f"| {' | '.join([model, finetune, trainer, gigabytes(plan.weights), gigabytes(trained), *cells])} |")
    return "\n".join(lines)
