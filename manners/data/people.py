"""Demonstrations that people write: what a row of them looks like, whoever makes it. docs/data.md#people.

    {"messages": [{"role": "user", "content": "Name a river."}, {"role": "assistant", "content": "The Loire."}],
     "source": "spring 2026", "cluster": "facts", "license": "CC-BY-4.0",
     "made_by": {"kind": "person", "name": "ada", "when": "2026-03-01T12:00:00Z", "seconds": 41.5, "language": "en"}}

`kind` and `name` are needed; a name may be a pseudonym. The rest of `made_by` is optional, and more may stand there. The row is one of
shape `messages`, so that every command reads it as it is.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from manners.core.errors import InputError
from manners.core.records import Message

KIND = "person"


def demonstration(
    messages: Sequence[Message],
    name: str,
    *,
    source: str = "",
    cluster: str = "",
    license: str = "",
    when: datetime | None = None,
    seconds: float | None = None,
    language: str = "",
    **more: Any,
) -> dict[str, Any]:
    """The row of a demonstration that `name` wrote. Raises InputError for one that is none, in the words of `fault`."""
    told = {"when": when.isoformat() if when else None, "seconds": seconds, "language": language or None}
    maker = {"kind": KIND, "name": name, **{key: value for key, value in told.items() if value is not None}, **more}
    row = {
        "messages": [{"role": m.role, "content": m.content} for m in messages],
        "source": source,
        "cluster": cluster,
        "license": license,
        "made_by": maker,
    }
    if why := fault(row):
        raise InputError(f"this is no demonstration: {why}.")
    return row


def fault(row: Mapping[str, Any]) -> str | None:
    """What is wrong with a row as a person's demonstration, or None."""
    messages = row.get("messages")
    if not isinstance(messages, list) or len(messages) < 2:
        return "'messages' must list a question and an answer at least"
    for number, turn in enumerate(messages, 1):
        if not isinstance(turn, Mapping) or not all(isinstance(turn.get(key), str) for key in ("role", "content")):
            return f"turn {number} must be {{role, content}}, both text"
        if not turn["content"].strip():
            return f"turn {number} is empty"
    roles = [turn["role"] for turn in messages if turn["role"] != "system"]
    if messages[-1]["role"] != "assistant" or roles[0] != "user" or "system" in [turn["role"] for turn in messages[1:]]:
        return "turns begin with the user's (after a system turn, if there is one) and end with the assistant's"
    maker = row.get("made_by")
    if not isinstance(maker, Mapping) or maker.get("kind") != KIND:
        return f"'made_by' must be {{kind: {KIND}, name: ...}}"
    if not isinstance(maker.get("name"), str) or not maker["name"].strip():
        return "'made_by' must say a name, which may be a pseudonym"
    seconds = maker.get("seconds")
    if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds < 0):
        return "'seconds' of 'made_by' must be a number, 0 or more"
    if other := next((key for key in ("source", "cluster", "license") if not isinstance(row.get(key, ""), str)), None):
        return f"'{other}' must be text"
    return None
