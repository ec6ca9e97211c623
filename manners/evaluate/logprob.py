"""Log-probability of given answers: the most basic measurement, and the easiest to check against another tool."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from manners.core import files
from manners.core.config import Settings
from manners.core.console import console, progress
from manners.core.errors import InputError
from manners.data.chat import ChatFormat
from manners.data.formats import parse_map, read
from manners.model.load import load_tokenizer, resolve
from manners.model.logprob import load_frozen, response_logps
from manners.model.probe import check_length, probe

NAMES = {"pairs": ("chosen", "rejected")}
"""What the responses of a row are called; a single one is called `completion`."""


class LogprobSettings(Settings):
    """Settings of `manners logprob`."""

    writes: ClassVar[str] = "rows.jsonl"

    model: str = "smollm2-135m-instruct"
    """Folder, run, adapter, hub id or alias."""
    data: str
    """File of rows with answers: demonstrations, pairs or text."""
    out: str
    """JSONL file to write: a line a response, in file order, chosen before rejected."""
    format: str = "auto"
    """plain, chatml, template (the tokenizer's own), auto."""
    map: str | None = None
    """Column map for rows of an unknown shape."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """Use the first so many rows only."""
    max_length: Annotated[int, Field(ge=2)] = 8192
    """Longest prompt plus response in tokens."""
    micro_tokens: Annotated[int, Field(ge=1)] = 2048
    """Tokens scored at a time."""


def logprob(settings: LogprobSettings) -> dict[str, Any]:
    """Write `{"row", "response", "logprob", "tokens"}` for every response of a file and return a summary.

    `logprob` is the sum over the answer's tokens up to and including the stop token, in nats, under the model at temperature 1;
    `tokens` is their number; `row` counts the rows of the file from 0.
    """
    files.check_target(settings.out)
    data = read(settings.data, column_map=parse_map(settings.map) if settings.map else None, limit=settings.rows)
    if not any(group.responses for group in data.groups):
        raise InputError(f"{settings.data} holds prompts without answers; logprob needs answers to score.")
    source = resolve(settings.model)
    chat_format = ChatFormat.of(load_tokenizer(source), settings.format)
    groups = [chat_format.encode(group, max_length=settings.max_length) for group in data.groups]
    backbone, role = load_frozen(source)
    check_length(backbone.model, max(len(g.prompt_ids) + max(len(r.token_ids) for r in g.responses) for g in groups))
    probe(backbone)
    rows: list[dict[str, Any]] = []
    with progress() as bar:
        scored = bar.track(response_logps(backbone, role, groups, settings.micro_tokens), total=len(groups), description="logprob")
        for group, responses in zip(groups, scored, strict=True):
            names = response_names(data.kind, len(responses))
            rows += [
                {"row": group.row, "response": name, "logprob": logp, "tokens": tokens}
                for name, (logp, tokens) in zip(names, responses, strict=True)
            ]
    files.write_jsonl(Path(settings.out), rows)
    total, tokens = sum(r["logprob"] for r in rows), sum(r["tokens"] for r in rows)
    console.print(f"{settings.out}: {len(rows):,} responses, {tokens:,} tokens, mean {total / tokens:.4f} nats a token")
    return {"out": settings.out, "responses": len(rows), "tokens": tokens, "logprob": total, "refused": len(data.refused)}


def response_names(kind: str, count: int) -> Sequence[str]:
    """What the responses of a row are called in the output."""
    if count == 1:
        return ("completion",)
    return NAMES.get(kind, tuple(str(i) for i in range(count)))
