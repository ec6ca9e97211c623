"""Every shape that rows can be written in: from a group to the columns of a row. `convert` tries them and writes.

A shape may have several ways, the plainest first: text where one turn answers one, messages where that would not be enough.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from manners.core.records import Group, Message
from manners.data.files import Row
from manners.data.shapes import CLASS, HELPSTEER

SHAREGPT = {"user": "human", "assistant": "gpt"}

Body = Callable[[Group], Iterator[Row]]
"""From a group to its columns, in the ways that a shape has for them: the plainest first, those that hold more after it."""


def _turns(turns: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def _sharegpt(turns: Sequence[Message]) -> list[dict[str, str]]:
    return [{"from": SHAREGPT.get(turn.role, turn.role), "value": turn.content} for turn in turns]


def _said(group: Group) -> tuple[str, list[Message]]:
    """The system turn that begins the prompt, or nothing, and the other turns."""
    turns = list(group.prompt.messages)
    return (turns[0].content, turns[1:]) if turns and turns[0].role == "system" else ("", turns)


def _text(turns: Sequence[Message]) -> str:
    return "\n\n".join(turn.content for turn in turns)


def _system(text: str) -> Row:
    return {"system": text} if text else {}


def _conversation(group: Group) -> Iterator[Row]:
    yield {"messages": _turns([*group.prompt.messages, *group.responses[0].turns])}


def _conversations(group: Group) -> Iterator[Row]:
    yield {"conversations": _sharegpt([*group.prompt.messages, *group.responses[0].turns])}


def _asked(group: Group, **answers: Callable[[Group], Any]) -> Iterator[Row]:
    """`prompt` and the answers as text, else as messages. `answers`: column -> the turns of an answer, of several, or another value."""
    system, rest = _said(group)
    found = {name: value(group) for name, value in answers.items()}
    plain = {name: _flat(value, _text) for name, value in found.items()}
    yield {**_system(system), "prompt": _text(rest), **plain}
    yield {"prompt": _turns(group.prompt.messages), **{name: _flat(value, _turns) for name, value in found.items()}}


def _flat(value: Any, of: Callable[[Sequence[Message]], Any]) -> Any:
    """Turns of an answer, or of a list of them, through `of`; any other value as it is."""
    if isinstance(value, tuple) and value and isinstance(value[0], Message):
        return of(value)
    return [_flat(item, of) for item in value] if isinstance(value, list) else value


def _first(group: Group) -> Any:
    return group.responses[0].turns


def _second(group: Group) -> Any:
    return group.responses[1].turns


def _every(group: Group) -> list[Any]:
    return [response.turns for response in group.responses]


def _alpaca(group: Group) -> Iterator[Row]:
    """Instruction, empty input, output; earlier turns as `history`. Of several trained answers the last is the output."""
    system, rest = _said(group)
    *earlier, asked, answer = [*rest, *group.responses[0].turns]
    said = {"history": [[a.content, b.content] for a, b in zip(earlier[::2], earlier[1::2], strict=False)]} if earlier else {}
    yield {**_system(system), "instruction": asked.content, "input": "", "output": answer.content, **said}


def _instances(group: Group) -> Iterator[Row]:
    system, rest = _said(group)
    yield {**_system(system), "instruction": _text(rest), "instances": [{"input": "", "output": _text(_first(group))}]}


def _pair(group: Group) -> Iterator[Row]:
    yield from _asked(group, chosen=_first, rejected=_second, **_sure(group))


def _sure(group: Group) -> dict[str, Callable[[Group], Any]]:
    said = {"margin": group.margin, "probability": group.probability}
    return {name: partial(lambda value, _: value, value) for name, value in said.items() if value is not None}


def _sharegpt_pair(group: Group) -> Iterator[Row]:
    chosen, rejected = (_sharegpt(response.turns) for response in group.responses)
    both = (chosen[0], rejected[0]) if len(chosen) == len(rejected) == 1 else (chosen, rejected)
    yield {"conversations": _sharegpt(group.prompt.messages), "chosen": both[0], "rejected": both[1], **_numbers(group)}


def _numbers(group: Group) -> Row:
    return {name: value(group) for name, value in _sure(group).items()}


def _alpaca_pair(group: Group) -> Iterator[Row]:
    system, rest = _said(group)
    yield {
        **_system(system),
        "instruction": _text(rest),
        "input": "",
        "chosen": _text(_first(group)),
        "rejected": _text(_second(group)),
        **_numbers(group),
    }


def _hh_pair(group: Group) -> Iterator[Row]:
    names = {"user": "Human", "assistant": "Assistant"}
    system, rest = _said(group)
    write = lambda turns: "".join(f"\n\n{names.get(t.role, 'Human')}: {t.content}" for t in [*rest, *turns])
    yield {**_system(system), "chosen": write(_first(group)), "rejected": write(_second(group)), **_numbers(group)}


def _conversation_pair(group: Group) -> Iterator[Row]:
    whole = lambda turns: _turns([*group.prompt.messages, *turns])
    yield {"chosen": whole(_first(group)), "rejected": whole(_second(group)), **_numbers(group)}


def _scored(group: Group) -> Iterator[Row]:
    """The margin as the score of the better answer, 0 for the other. Without a margin 1 and 0, which read back as one."""
    margin = group.margin if group.margin is not None and group.margin > 0 else 1.0
    for row in _asked(group, a=_first, b=_second):
        yield {**row, "score_a": margin, "score_b": 0.0}


def _compared(group: Group) -> Iterator[Row]:
    for row in _asked(group, a=_first, b=_second, **_sure(group)):
        yield {**row, "label": "a"}


def _labelled(group: Group) -> Iterator[Row]:
    for row in _asked(group, completion=_first):
        yield {**row, "label": bool(group.responses[0].scores["label"])}


def _ranking(group: Group) -> Iterator[Row]:
    for row in _asked(group, responses=_every):
        yield {**row, "ranks": [_whole(r.scores["rank"]) for r in group.responses]}


def _pick(group: Group) -> Iterator[Row]:
    for row in _asked(group, responses=_every):
        yield {**row, "best": [r.scores["best"] for r in group.responses].index(1.0)}


def _whole(number: float) -> float:
    return int(number) if number.is_integer() else number


def _rated(group: Group) -> Iterator[Row]:
    for row in _asked(group, completion=_first):
        yield {**row, "aspects": {name: _whole(value) for name, value in group.responses[0].scores.items()}}


def _helpsteer(group: Group) -> Iterator[Row]:
    scores = group.responses[0].scores
    for row in _asked(group, completion=_first):
        yield {**row, **{name: _whole(scores[name]) if name in scores else None for name in HELPSTEER}}


def _class(group: Group) -> Iterator[Row]:
    label = next(iter(group.responses[0].scores)).removeprefix(CLASS)
    if not group.prompt.messages:
        yield {"text": group.responses[0].text, "label": label}
        return
    for row in _asked(group, completion=_first):
        yield {**row, "label": label}


def _plain(group: Group) -> Iterator[Row]:
    yield {"text": group.responses[0].text}


class Target(NamedTuple):
    """A shape to write: what it is called when read, the kind of its groups, and its columns."""

    shape: str
    kind: str
    body: Body


TARGETS = {
    "messages": Target("messages", "demonstrations", _conversation),
    "sharegpt": Target("sharegpt", "demonstrations", _conversations),
    "prompt-completion": Target("prompt-completion", "demonstrations", partial(_asked, completion=_first)),
    "alpaca": Target("alpaca", "demonstrations", _alpaca),
    "instances": Target("instances", "demonstrations", _instances),
    "pairs": Target("pair", "pairs", _pair),
    "sharegpt-pair": Target("sharegpt-pair", "pairs", _sharegpt_pair),
    "alpaca-pair": Target("alpaca-pair", "pairs", _alpaca_pair),
    "hh-pair": Target("hh-pair", "pairs", _hh_pair),
    "conversation-pair": Target("conversation-pair", "pairs", _conversation_pair),
    "scored": Target("scored", "pairs", _scored),
    "compared": Target("compared", "pairs", _compared),
    "labelled": Target("labelled", "labelled", _labelled),
    "rankings": Target("ranking", "rankings", _ranking),
    "picks": Target("pick", "picks", _pick),
    "rated": Target("rated", "ratings", _rated),
    "helpsteer": Target("helpsteer", "ratings", _helpsteer),
    "classes": Target("class", "classes", _class),
    "text": Target("text", "text", _plain),
    "prompts": Target("prompts", "prompts", _asked),
}
