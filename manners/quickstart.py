"""The main job on one page: SmolLM2-135M through SFT and DPO on the starter set, and a table of what changed.

The weights that ship are already tuned, in ChatML. Here they are addressed in Manners' own plain format, which they never saw in
tuning, so `start` has a gap that training can close; `as-shipped`, the same weights in ChatML, stands beside as what somebody's
full post-training reaches. Nothing that is measured here was trained on.
"""

import time
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from rich.table import Table

from manners.core.config import Settings
from manners.core.console import console
from manners.core.files import read_jsonl, write_json, write_jsonl
from manners.core.records import Group, Prompt, Response
from manners.data.chat import ChatFormat
from manners.data.formats import read
from manners.evaluate.samples import describe_samples
from manners.model.draw import Sampling
from manners.model.load import load_tokenizer, resolve
from manners.model.logprob import load_frozen, response_logps
from manners.model.sampler import Sampler
from manners.train.preference import DPOSettings, dpo
from manners.train.sft import SFTSettings, sft

MODEL = "smollm2-135m-instruct"
SHOWN = 3
"""The first so many held-out prompts are the classic failures of a base model: explain, translate, refuse."""


class QuickstartSettings(Settings):
    """Settings of `manners quickstart`."""

    out: str = "runs/quickstart"
    """Folder for the two runs and the summary."""
    seed: int = 0
    demonstrations: Annotated[int, Field(ge=8, le=54)] = 48
    """First rows of the starter set to fine-tune on."""
    pairs: Annotated[int, Field(ge=4, le=24)] = 24
    """First rows of the starter set's pairs to train on; the rest are measured."""
    max_new_tokens: Annotated[int, Field(ge=8)] = 48


def quickstart(settings: QuickstartSettings) -> dict[str, Any]:
    """Train, measure, print; returns what `summary.json` holds."""
    out, started = Path(settings.out), time.time()
    with as_file(files("manners.data.starter")) as starter:
        console.rule("1  Supervised fine-tuning: learn to answer")
        common = {"format": "plain", "seed": settings.seed, "batch_size": 4}
        demonstrations = {"data": str(starter / "demonstrations.jsonl"), "rows": settings.demonstrations}
        sft(SFTSettings(**common, **demonstrations, model=MODEL, out=str(out / "sft"), epochs=3, learning_rate=5e-4))
        console.rule("2  Direct preference optimisation: learn manners")
        pairs = {"data": str(starter / "pairs.jsonl"), "rows": settings.pairs}
        dpo(DPOSettings(**common, **pairs, model=str(out / "sft"), out=str(out / "dpo"), epochs=3, learning_rate=5e-5))
        console.rule("3  What changed")
        prompts = read_jsonl(starter / "prompts.jsonl")
        held_pairs = read(starter / "pairs.jsonl").groups[settings.pairs :]
    models = {"start": (MODEL, "plain"), "sft": (str(out / "sft"), "plain"), "dpo": (str(out / "dpo"), "plain")}
    models["as-shipped"] = (MODEL, "template")
    measured, answers = {}, {}
    for name, (model, format_name) in models.items():
        measured[name], answers[name] = measure(model, format_name, prompts, held_pairs, settings.max_new_tokens)
    summary = {
        "models": measured,
        "prompts": len(prompts),
        "held_out_pairs": len(held_pairs),
        "settings": settings.model_dump(),
        "seconds": round(time.time() - started, 1),
    }
    write_jsonl(out / "samples.jsonl", [{**p, **{name: a[i] for name, a in answers.items()}} for i, p in enumerate(prompts)])
    write_json(out / "summary.json", summary)
    show(summary, prompts, answers)
    console.print(f"{summary['seconds']:.0f} s in all. Figures: {out / 'summary.json'}; every answer: {out / 'samples.jsonl'}")
    return summary


def measure(
    model: str, format_name: str, prompts: Sequence[dict[str, Any]], pairs: Sequence[Group], max_new_tokens: int
) -> tuple[dict[str, float], list[str]]:
    """Greedy answers to the held-out prompts and what can be counted on them, plus two log-probability measures."""
    source = resolve(model)
    tokenizer = load_tokenizer(source)
    chat_format = ChatFormat.of(tokenizer, format_name)
    backbone, role = load_frozen(source, tokenizer)
    sampler = Sampler(backbone, chat_format, role=role, slots=len(prompts))
    sampled = sampler.sample([Prompt.user(p["prompt"]) for p in prompts], Sampling(temperature=0.0, max_new_tokens=max_new_tokens))
    references = [chat_format.encode(Group(Prompt.user(p["prompt"]), [Response.answer(p["reference"])])) for p in prompts]
    scored = [pair[0] for pair in response_logps(backbone, role, references, 2048)]
    ranked = list(response_logps(backbone, role, [chat_format.encode(pair) for pair in pairs], 2048))
    right = [chosen[0] / chosen[1] > rejected[0] / rejected[1] for chosen, rejected in ranked]
    metrics = {
        **describe_samples(sampled),
        "reference_nll": -sum(logp for logp, _ in scored) / sum(tokens for _, tokens in scored),
        "pairs_right": sum(right) / len(right) if right else float("nan"),
    }
    return metrics, [group.responses[0].text for group in sampled]


COLUMNS = {
    "stopped": ("stops by itself", "{:.0%}"),
    "tokens": ("tokens", "{:.1f}"),
    "repeated": ("repeats itself", "{:.1%}"),
    "reference_nll": ("nats a token of the reference", "{:.3f}"),
    "pairs_right": ("prefers the better answer", "{:.0%}"),
}


def show(summary: dict[str, Any], prompts: Sequence[dict[str, Any]], answers: dict[str, list[str]]) -> None:
    """Print the table and the answers to the classic prompts."""
    title = f"greedy, {summary['prompts']} held-out prompts, {summary['held_out_pairs']} held-out pairs"
    table = Table("model", title=title)
    for heading, _ in COLUMNS.values():
        table.add_column(heading, justify="right")
    for name, metrics in summary["models"].items():
        table.add_row(name, *(form.format(metrics[key]) for key, (_, form) in COLUMNS.items()))
    console.print(table)
    for i, prompt in enumerate(prompts[:SHOWN]):
        shown = Table("model", "answer", title=prompt["prompt"], show_lines=True, expand=True)
        for name in answers:
            shown.add_row(name, answers[name][i].replace("[", r"\[") or "(empty)")
        console.print(shown)
