"""Out of Manners: plain folders that transformers alone loads, and tokenizers that carry the chat template."""

import json
from pathlib import Path
from typing import Any, ClassVar

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from manners.core import files
from manners.core.config import Settings
from manners.core.console import console
from manners.core.errors import InputError
from manners.model.fetch import quiet
from manners.model.load import ModelSource, load_model, load_tokenizer, resolve

PRIVATE_KEYS = ("name_or_path", "_name_or_path", "gguf_file", "local_files_only")
"""What libraries write into saved configs that tells where on this machine something was."""


def merged_model(source: ModelSource | str) -> PreTrainedModel:
    """The model of `source` with its adapter, if it has one, merged into the weights: W + alpha/rank B A."""
    source = resolve(source) if isinstance(source, str) else source
    model = load_model(source)
    if source.adapter is None:
        return model
    with quiet():
        merged = PeftModel.from_pretrained(model, str(source.adapter)).merge_and_unload()
    if hasattr(merged, "peft_config"):
        del merged.peft_config
    merged._hf_peft_config_loaded = False
    return merged


class ExportSettings(Settings):
    """Settings of `manners export`."""

    writes: ClassVar[str] = "model"

    model: str = "smollm2-135m-instruct"
    """Folder, run, adapter, hub id or alias."""
    out: str
    """Folder to write."""


def export(settings: ExportSettings) -> dict[str, Any]:
    """Write any model that Manners can name as a plain folder: safetensors, config, tokenizer, chat template.

    Raises InputError if `out` exists and is not empty.
    """
    out, model = Path(settings.out), settings.model
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not empty; export writes a new folder, choose another out.")
    source = resolve(model)
    tokenizer = load_tokenizer(source)
    merged = merged_model(source)
    if out.exists():
        out.rmdir()
    with files.whole_folder(out) as folder, quiet():
        merged.save_pretrained(str(folder))
        save_tokenizer(tokenizer, folder)
    console.print(f"{out}: a plain folder, {sum(p.numel() for p in merged.parameters()):,} weights")
    return {"out": str(out)}


def save_tokenizer(tokenizer: PreTrainedTokenizerBase | None, folder: str | Path, template: str | None = None) -> None:
    """Write a tokenizer, with the chat template that the model was trained under, and without paths of this machine."""
    if tokenizer is None:
        return
    folder = Path(folder)
    before = tokenizer.chat_template
    try:
        if template is not None:
            tokenizer.chat_template = template
        tokenizer.save_pretrained(str(folder))
    finally:
        tokenizer.chat_template = before
    config = folder / "tokenizer_config.json"
    if config.exists():
        content = json.loads(config.read_text(encoding="utf-8"))
        files.write_json(config, {k: v for k, v in content.items() if k not in PRIVATE_KEYS})
