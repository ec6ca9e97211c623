"""Log-probability of given answers: the most basic measurement, and the easiest to check against another tool.

It is also what shows where a trained policy's probability went. A pairwise loss fixes the difference of two log-probabilities and leaves
their level free, so that both may fall and their mass go to answers that were in no pair (Xu 2024). Answers that no model was trained
on, scored under each, make that visible; `manners compare logprobs=...` sets them side by side.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from manners.core import files
from manners.core.config import Settings, as_list
from manners.core.console import console, progress
from manners.core.errors import InputError
from manners.data.chat import ChatFormat
from manners.data.formats import DataFile, parse_map, read
from manners.evaluate.prompts import set_name
from manners.model.load import load_tokenizer, resolve
from manners.model.logprob import load_frozen, response_logps
from manners.model.probe import check_length, probe

NAMES = {"pairs": ("chosen", "rejected")}
"""What the responses of a row are called; a single one is called `completion`, numbers tell several apart."""
REFERENCE = "reference"
"""The column of a file of prompts that holds a good answer, and what that is called."""


class LogprobSettings(Settings):
    """Settings of `manners logprob`."""

    writes: ClassVar[str] = "rows.jsonl"

    model: str = "smollm2-135m-instruct"
    """Folder, run, adapter, hub id or alias."""
    data: Annotated[list[str], BeforeValidator(as_list, json_schema_input_type=str | list[str]), Field(min_length=1)]
    """File of rows with answers: demonstrations, pairs, text, or prompts with a reference; several by commas."""
    out: str
    """JSONL file to write: a line a response, in file order, chosen before rejected."""
    format: str = "auto"
    """plain, chatml, template (the tokenizer's own), auto."""
    map: str | None = None
    """Column map for rows of an unknown shape."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """Use the first so many rows of each file only."""
    max_length: Annotated[int, Field(ge=2)] = 8192
    """Longest prompt plus response in tokens."""
    micro_tokens: Annotated[int, Field(ge=1)] = 2048
    """Tokens scored at a time."""


def logprob(settings: LogprobSettings) -> dict[str, Any]:
    """Write `{"set", "row", "response", "logprob", "tokens"}` for every response of each file and return a summary.

    `logprob` is the sum over the answer's tokens up to and including the stop token, in nats, under the model at temperature 1;
    `tokens` is their number; `row` counts the rows of the file from 0; `set` is the file's name without prompts_ and the ending.
    """
    files.check_target(settings.out)
    sets = {set_name(path): _with_answers(settings, path) for path in settings.data}
    if len(sets) < len(settings.data):
        raise InputError(f"two of the files {', '.join(settings.data)} have the same name, which tells their rows apart; rename one.")
    source = resolve(settings.model)
    chat_format = ChatFormat.of(load_tokenizer(source), settings.format)
    encoded = {
        name: [chat_format.encode(group, max_length=settings.max_length) for group in data.groups] for name, (data, _) in sets.items()
    }
    backbone, role = load_frozen(source)
    every = [group for groups in encoded.values() for group in groups]
    check_length(backbone.model, max(len(g.prompt_ids) + max(len(r.token_ids) for r in g.responses) for g in every))
    probe(backbone)
    rows: list[dict[str, Any]] = []
    with progress() as bar:
        task = bar.add_task("logprob", total=len(every), note="")
        for name, groups in encoded.items():
            data, single = sets[name]
            for group, responses in zip(groups, response_logps(backbone, role, groups, settings.micro_tokens), strict=True):
                names = response_names(data.kind, len(responses), single)
                rows += [
                    {"set": name, "row": group.row, "response": response, "logprob": logp, "tokens": tokens}
                    for response, (logp, tokens) in zip(names, responses, strict=True)
                ]
                bar.update(task, advance=1)
    files.write_jsonl(Path(settings.out), rows)
    total, tokens = sum(r["logprob"] for r in rows), sum(r["tokens"] for r in rows)
    console.print(f"{settings.out}: {len(rows):,} responses, {tokens:,} tokens, mean {total / tokens:.4f} nats a token")
    refused = sum(len(data.refused) for data, _ in sets.values())
    return {"out": settings.out, "responses": len(rows), "tokens": tokens, "logprob": total, "refused": refused}


def _with_answers(settings: LogprobSettings, path: str) -> tuple[DataFile, str]:
    """The rows of a file and what a single response is called. Of prompts, the references are the answers, if there are any.

    Raises InputError where there is nothing to score.
    """
    data = read(path, column_map=parse_map(settings.map) if settings.map else None, limit=settings.rows)
    single = "completion"
    if data.kind == "prompts" and settings.map is None:
        with contextlib.suppress(InputError):  # no reference either: said below
            data, single = read(path, column_map={"completion": REFERENCE}, limit=settings.rows), REFERENCE
    if not any(group.responses for group in data.groups):
        raise InputError(f"{path} holds prompts without answers; logprob needs answers to score.")
    return data, single


def response_names(kind: str, count: int, single: str = "completion") -> Sequence[str]:
    """What the responses of a row are called in the output."""
    if count == 1:
        return (single,)
    return NAMES.get(kind, tuple(str(i) for i in range(count)))
