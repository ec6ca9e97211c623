"""Every shape of data that users bring -> Groups: demonstrations, preference pairs, labelled answers, plain text, prompts.

A shape is told by its columns (`SHAPES`, most specific first) and each has one function from a row to its groups. A row that cannot
be used is refused with a reason and counted; only a file of which nothing can be used is an error. `files` does the reading.
"""

import difflib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, groupby, islice
from pathlib import Path

from manners.core.errors import InputError, nearest
from manners.core.records import ROLES, TEXT_ROLE, Group, Message, Prompt, Response
from manners.data.files import CONVERSATION_COLUMNS, NumberedRows, Row, read_rows

Notes = Counter[str]
Turns = list[Message]

SAMPLE = 100
"""Rows whose columns decide the shape of a file."""
END_MARKERS = ("<|endoftext|>", "</s>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<end_of_turn>", "<|end|>", "<eos>", "[EOS]")
ROLE_NAMES = {
    **{role: role for role in ROLES},
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "bot", "model", "chatgpt", "function_call"), "assistant"),
    **dict.fromkeys(("function", "observation", "ipython"), "tool"),
    "developer": "system",
}
YES, NO = ("true", "1", "1.0", "yes", "good"), ("false", "0", "0.0", "no", "bad")
_HH_MARK = re.compile(r"\n\n(Human|Assistant):")
_ANSWER_LIKE = re.compile(r"(chosen|rejected|responses?|answers?|outputs?|completions?|predictions?|generations?)($|[\W_\d])", re.I)


@dataclass(slots=True)
class DataFile:
    """What was read from a file.

    `shape` is a name of SHAPES; `kind` is "demonstrations", "pairs", "labelled", "text" or "prompts". `rows` counts the rows read
    (all of the file unless a limit was given). `refused` lists (line or row number from 1, why). `notes` counts what was changed
    or is worth knowing.
    """

    path: str
    shape: str
    kind: str
    groups: list[Group]
    rows: int
    refused: list[tuple[int, str]]
    notes: Counter[str]


class RowRefused(Exception):
    """A row cannot be used. `why` is counted in the notes; `detail` (the value at fault) is only for the list of refused rows."""

    def __init__(self, why: str, detail: str = "") -> None:
        super().__init__(why + detail)
        self.why = why


# ---------------------------------------------------------------------------------------------------- values to turns


def _text(value: object, field: str, notes: Notes) -> str:
    """`value` as text: a string as it is, a number written out. Raises RowRefused for anything else."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        notes[f"number in '{field}' read as text"] += 1
        value = str(value)
    if value is None:
        raise RowRefused(f"no '{field}'")
    if not isinstance(value, str):
        raise RowRefused(f"'{field}' holds {type(value).__name__}, not text")
    if not value.isascii() and re.search("[\ud800-\udfff]", value):
        raise RowRefused(f"'{field}' holds half a character (a lone \\ud800-\\udfff escape)")
    return value


def _given(row: Row, field: str, notes: Notes) -> str:
    """Text of an optional field; empty if it is missing."""
    return "" if row.get(field) is None else _text(row[field], field, notes)


def _turn(item: object, field: str, notes: Notes) -> Message:
    """One turn written as {role, content} or {from, value}. Raises RowRefused."""
    if not isinstance(item, Mapping):
        raise RowRefused(f"'{field}' lists something other than messages")
    if "role" not in item and "from" not in item:
        raise RowRefused(f"'{field}' holds an object that is no message (map a part of it: {field}={field}.{next(iter(item), 'part')})")
    name = item.get("role", item.get("from"))
    role = ROLE_NAMES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        raise RowRefused("unknown role", f" {name!r} in '{field}'")
    content = item.get("content", item.get("value"))
    calls = item.get("tool_calls") or item.get("function_call")
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = "".join(_part(part, field, notes) for part in content)
    if role == "assistant" and calls:
        notes["tool calls written as JSON"] += 1
        said = "" if content is None else _text(content, "content", notes)
        content = "\n".join(filter(None, (said, json.dumps(calls, ensure_ascii=False))))
    return Message(role, "" if content is None else _text(content, "content", notes))


def _part(part: object, field: str, notes: Notes) -> str:
    """Text of one part of a content list. Raises RowRefused for parts of another type, by name."""
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type") == "text":
        return _text(part.get("text"), "text", notes)
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise RowRefused(f"a part of type {kind!r} in '{field}': only text can be trained on")


def _turns(value: object, field: str, notes: Notes) -> Turns:
    """A list of messages, one message alone, or either written as a JSON string (as CSV must)."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RowRefused(f"'{field}' holds plain text, not a list of messages") from None
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise RowRefused(f"'{field}' holds no messages")
    return [_turn(item, field, notes) for item in value]


def _is_listed(text: str) -> bool:
    """Whether text is a list of messages written as JSON, which is how CSV holds them."""
    try:
        value = json.loads(text) if text.startswith("[{") else None
    except (ValueError, RecursionError):
        return False
    return bool(value) and all(isinstance(item, dict) and ("role" in item or "from" in item) for item in value)


def is_hh(text: str) -> bool:
    """Whether text is a conversation in the manner of Anthropic's HH data.

    >>> is_hh("\\n\\nHuman: Hi\\n\\nAssistant: Hello"), is_hh("Human: Hi")
    (True, False)
    """
    return text.startswith(("\n\nHuman:", "Human:")) and "\n\nAssistant:" in text


def _is_hh_prompt(text: str) -> bool:
    """The same for a prompt, which may lack the answer, or the first "Human:" if the user spoke again later."""
    marks = _HH_MARK.findall(text)
    return text.startswith("\n\nHuman:") or is_hh(text) or ("Assistant" in marks and marks[-1] == "Human")


def hh_turns(text: str, notes: Notes) -> Turns:
    """Turns of an HH text, contents stripped; turns of one speaker that follow each other are merged and counted."""
    if text.startswith(("Human:", "Assistant:")):
        text = "\n\n" + text
    lead, *parts = _HH_MARK.split(text)
    found = [Message("user" if who == "Human" else "assistant", said.strip()) for who, said in zip(parts[::2], parts[1::2], strict=True)]
    if lead.strip():
        found.insert(0, Message("user", lead.strip()))
    merged: Turns = []
    for role, run in groupby(found, key=lambda m: m.role):
        same = list(run)
        if len(same) > 1:
            notes[f"neighbouring {role} turns merged"] += 1
        merged.append(Message(role, "\n\n".join(m.content for m in same if m.content)))
    return merged


def _prompt(row: Row, notes: Notes) -> Turns:
    """The turns of `prompt`, or of `instruction` with `input`: a string, HH text or messages. Raises RowRefused."""
    value = row.get("prompt")
    if value is None:
        parts = [_text(row.get("instruction"), "instruction", notes), _given(row, "input", notes)]
        return [Message("user", "\n\n".join(p for p in parts if p.strip()))]
    if not isinstance(value, (str, int, float)):
        return _turns(value, "prompt", notes)
    text = _text(value, "prompt", notes)
    if _is_listed(text):
        return _turns(text, "prompt", notes)
    if not _is_hh_prompt(text):
        return [Message("user", text)]
    notes["Human/Assistant text split into turns"] += 1
    turns = hh_turns(text, notes)
    return turns[:-1] if turns[-1] == Message("assistant", "") else turns


def _answer(value: object, field: str, notes: Notes) -> Turns:
    """The turns of an answer: a string is one assistant turn (or a whole HH conversation), else messages. Raises RowRefused."""
    if value is None or isinstance(value, (str, int, float)):
        text = _text(value, field, notes)
        if _is_listed(text):
            return _turns(text, field, notes)
        return hh_turns(text, notes) if is_hh(text) else [Message("assistant", text)]
    return _turns(value, field, notes)


def _group(row: Row, prompt: Turns, answers: Sequence[Turns], notes: Notes, margin: float | None = None) -> Group:
    """The group of a prompt and its answers. Raises RowRefused where it could not be trained on."""
    system = _given(row, "system", notes)
    if system.strip() and prompt and prompt[0].role != "system":
        prompt = [Message("system", system), *prompt]
    if not any(m.content.strip() for m in prompt if m.role != "system"):
        raise RowRefused("empty prompt")
    if prompt[-1].role not in ("user", "tool"):
        raise RowRefused(f"the prompt ends with a turn of the {prompt[-1].role}, not of the user")
    for turns in answers:
        _check_answer(turns)
        if any(a.role == b.role for a, b in zip(prompt + turns, (prompt + turns)[1:], strict=False)):
            notes["same-role neighbours"] += 1
    if len(answers) == 2 and answers[0] == answers[1]:
        raise RowRefused("chosen and rejected are the same")
    return Group(Prompt(tuple(prompt), **_origin(row)), [Response(tuple(turns)) for turns in answers], margin=margin)


def _origin(row: Row) -> dict[str, str]:
    """Source and cluster of a row where it names them."""
    return {name: value for name in ("source", "cluster") if isinstance(value := row.get(name), str)}


def _check_answer(turns: Turns) -> None:
    """Raises RowRefused unless the turns begin and end with an assistant turn and none of these is empty."""
    if not turns or turns[-1].role != "assistant":
        raise RowRefused("does not end in an assistant turn")
    if turns[0].role != "assistant":
        raise RowRefused(f"the answer begins with a turn of the {turns[0].role}, not of the assistant")
    if not turns[-1].content.strip():
        raise RowRefused("empty answer")
    if not all(m.content.strip() for m in turns if m.role == "assistant"):
        raise RowRefused("empty assistant turn")


# -------------------------------------------------------------------------------------------------- one function a shape


def messages_row(row: Row, notes: Notes) -> list[Group]:
    """A conversation: all before the first assistant turn is the prompt, all from there on the response."""
    turns = _turns(row.get("messages"), "messages", notes)
    if turns[-1].role != "assistant":
        raise RowRefused("does not end in an assistant turn")
    first = next(i for i, m in enumerate(turns) if m.role == "assistant")
    if not first:
        raise RowRefused("begins with an assistant turn")
    return [_group(row, turns[:first], [turns[first:]], notes)]


def completion_row(row: Row, notes: Notes) -> list[Group]:
    """A prompt and its completion."""
    return [_group(row, _prompt(row, notes), [_answer(row.get("completion"), "completion", notes)], notes)]


def pair_row(row: Row, notes: Notes) -> list[Group]:
    """A prompt with a chosen and a rejected answer; either may also repeat the whole conversation."""
    prompt = _prompt(row, notes)
    answers = [_answer(row.get(name), name, notes) for name in ("chosen", "rejected")]
    if all(turns[0].role != "assistant" for turns in answers):
        shared, answers = _part_ways(*answers)
        if prompt[-len(shared) :] != shared:
            if prompt[-1].content.strip() not in [m.content.strip() for m in shared]:
                raise RowRefused("the conversation in chosen and rejected does not hold the prompt")
            prompt = shared
        notes["prompt repeated in chosen and rejected"] += 1
    return [_group(row, prompt, answers, notes, _margin(row))]


def conversation_pair_row(row: Row, notes: Notes) -> list[Group]:
    """Two whole conversations: what they share is the prompt, what follows are the answers."""
    both = []
    for name in ("chosen", "rejected"):
        value = row.get(name)
        if isinstance(value, str) and not _is_listed(value) and not is_hh(value):
            raise RowRefused(f"'{name}' holds no conversation, and there is no prompt")
        both.append(_answer(value, name, notes))
    for turns in both:
        if turns[-1].role != "assistant":
            raise RowRefused("does not end in an assistant turn")
        if not turns[-1].content.strip():
            raise RowRefused("empty answer")
    prompt, answers = _part_ways(*both)
    if answers[0] != answers[1] and any(len(turns) > 1 for turns in answers):
        notes["pair parts before the last turn"] += 1
    return [_group(row, prompt, answers, notes, _margin(row))]


def _part_ways(chosen: Turns, rejected: Turns) -> tuple[Turns, list[Turns]]:
    """The longest common prefix that ends before an assistant turn of both, and what follows it. Raises RowRefused."""
    shared = 0
    for a, b in zip(chosen, rejected, strict=False):
        if a != b:
            break
        shared += 1
    for cut in range(min(shared, len(chosen) - 1, len(rejected) - 1), 0, -1):
        if chosen[cut].role == rejected[cut].role == "assistant" != chosen[cut - 1].role:
            return chosen[:cut], [chosen[cut:], rejected[cut:]]
    raise RowRefused("chosen and rejected answer different prompts")


def labelled_row(row: Row, notes: Notes) -> list[Group]:
    """A prompt and an answer said to be good or bad."""
    group = (messages_row if row.get("messages") is not None else completion_row)(row, notes)[0]
    label = str(row.get("label")).strip().lower()
    if label not in YES + NO:
        raise RowRefused("label is neither true nor false", f": {row.get('label')!r}")
    group.responses[0].scores["label"] = float(label in YES)
    return [group]


def alpaca_row(row: Row, notes: Notes) -> list[Group]:
    """Instruction, input (may be empty) and output; `history` lists earlier [question, answer] turns."""
    earlier: Turns = []
    history = row.get("history") or []
    for said in history if isinstance(history, list) else [history]:
        if not isinstance(said, Sequence) or isinstance(said, str) or len(said) != 2:
            raise RowRefused("'history' is not a list of [question, answer]")
        earlier += [Message(role, _text(t, "history", notes)) for role, t in zip(("user", "assistant"), said, strict=True)]
    answer = _answer(row.get("output"), "output", notes)
    return [_group(row, earlier + _prompt(row, notes), [answer], notes)]


def instances_row(row: Row, notes: Notes) -> list[Group]:
    """Self-Instruct: an instruction with instances of {input, output}, each a group of its own."""
    instances = row.get("instances")
    if not isinstance(instances, Sequence) or isinstance(instances, str) or not all(isinstance(i, Mapping) for i in instances):
        raise RowRefused("'instances' is not a list of {input, output}")
    groups: list[Group] = []
    for instance in instances:
        merged = {**row, "input": instance.get("input"), "output": instance.get("output")}
        try:
            groups += alpaca_row(merged, notes)
        except RowRefused as refusal:
            if len(instances) == 1:
                raise
            notes[f"instance left out: {refusal.why}"] += 1
    if not groups:
        raise RowRefused("no usable instance")
    return groups


def text_row(row: Row, notes: Notes) -> list[Group]:
    """Plain text: no prompt, every token is trained."""
    text = _text(row.get("text"), "text", notes)
    if not text.strip():
        raise RowRefused("empty text")
    return [Group(Prompt((), **_origin(row)), [Response((Message(TEXT_ROLE, text),))])]


def prompts_row(row: Row, notes: Notes) -> list[Group]:
    """A prompt alone; of a list of user `turns` the first."""
    turns = row.get("turns")
    if row.get("prompt") is None and isinstance(turns, Sequence) and not isinstance(turns, str) and turns:
        if len(turns) > 1:
            notes["later turns not used"] += 1
        row = {**row, "prompt": turns[0]}
    return [_group(row, _prompt(row, notes), [], notes)]


def scored_row(row: Row, notes: Notes) -> list[Group]:
    """Two answers with a score each: the higher is chosen, the margin is the difference."""
    a, b = (_number(row.get(name), name) for name in ("score_a", "score_b"))
    return _compared(row, notes, "tie" if a == b else "a" if a > b else "b", abs(a - b))


def compared_row(row: Row, notes: Notes, *, coding: Mapping[str, str]) -> list[Group]:
    """Two answers and a label that says which is better."""
    label = _code(row.get("label"))
    if label not in coding:
        raise RowRefused("no label" if label in ("", "none") else "unknown label", f" {row.get('label')!r}")
    return _compared(row, notes, coding[label], _margin(row))


def _compared(row: Row, notes: Notes, better: str, margin: float | None) -> list[Group]:
    if better == "tie":
        raise RowRefused("tie")
    worse = "b" if better == "a" else "a"
    answers = [_answer(row.get(name), name, notes) for name in (better, worse)]
    return [_group(row, _prompt(row, notes), answers, notes, margin)]


def _margin(row: Row) -> float | None:
    """The margin, or None where there is none. Raises RowRefused unless it is a finite number."""
    return None if row.get("margin") in (None, "") else _number(row["margin"], "margin")


def _number(value: object, field: str) -> float:
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise RowRefused(f"'{field}' is not a finite number", f": {value!r}")
    return number


# ------------------------------------------------------------------------------------------------------ the table

Convert = Callable[[Row, Notes], list[Group]]
_PROMPT = ("prompt", "question", "query")
_ANSWER = ("completion", "response", "answer", "output")


@dataclass(frozen=True, slots=True)
class Shape:
    """A shape: the columns it needs and may use (each with its other names, which count if only one of them is there)."""

    name: str
    kind: str
    needs: tuple[tuple[str, ...], ...]
    convert: Convert
    may: tuple[tuple[str, ...], ...] = ()
    fits: Callable[[Row], bool] = lambda row: True
    without: tuple[str, ...] = ()
    weak: bool = False  # so few columns that one misspelt name of another shape would end up here

    @property
    def all(self) -> tuple[tuple[str, ...], ...]:
        """All columns with their other names."""
        return self.needs + self.may + (("system", "system_prompt"), ("cluster",), ("source",))

    def bound(self, columns: Sequence[str]) -> dict[str, str] | None:
        """The shape's columns -> those of the file, or None if a needed one is missing or could be one of several."""
        if any(name in columns for name in self.without):
            return None
        found: dict[str, str] = {}
        for names in self.all:
            here = [n for n in names if n in columns]
            if here and (here[0] == names[0] or len(here) == 1):
                found[names[0]] = here[0]
            elif names in self.needs:
                return None
        return found


def _is_hh_pair(row: Row) -> bool:
    return all(isinstance(row.get(n), str) and is_hh(row[n]) for n in ("chosen", "rejected"))


def _is_turns_pair(row: Row) -> bool:
    return all(isinstance(row.get(n), (list, dict)) or _is_listed(str(row.get(n))) for n in ("chosen", "rejected"))


def _is_sharegpt(row: Row) -> bool:
    value = row["messages"]
    if isinstance(value, str):
        return value.startswith("[{") and '"from"' in value
    return isinstance(value, list) and any(isinstance(turn, Mapping) and "from" in turn for turn in value[:1])


_INSTRUCTION, _INPUT = ("instruction",), ("input", "context")
_MARGIN = ("margin",)
_A, _B, _SCORES = ("a",), ("b",), (("score_a",), ("score_b",))
_LABEL = ("label", "kto_tag")

SHAPES = (
    Shape("scored", "pairs", (_PROMPT, _A, _B, *_SCORES), scored_row),
    Shape("scored", "pairs", (_INSTRUCTION, _A, _B, *_SCORES), scored_row, (_INPUT,)),
    Shape("compared", "pairs", (_PROMPT, _A, _B, ("label",)), partial(compared_row, coding={}), (_MARGIN,)),
    Shape("compared", "pairs", (_INSTRUCTION, _A, _B, ("label",)), partial(compared_row, coding={}), (_INPUT, _MARGIN)),
    Shape("pair", "pairs", (_PROMPT, ("chosen",), ("rejected",)), pair_row, (_MARGIN,)),
    Shape("sharegpt-pair", "pairs", (("prompt", *CONVERSATION_COLUMNS), ("chosen",), ("rejected",)), pair_row, (_MARGIN,)),
    Shape("alpaca-pair", "pairs", (_INSTRUCTION, ("chosen",), ("rejected",)), pair_row, (_INPUT, _MARGIN)),
    Shape("hh-pair", "pairs", (("chosen",), ("rejected",)), conversation_pair_row, (_MARGIN,), _is_hh_pair),
    Shape("conversation-pair", "pairs", (("chosen",), ("rejected",)), conversation_pair_row, (_MARGIN,), _is_turns_pair),
    Shape("labelled", "labelled", (CONVERSATION_COLUMNS, _LABEL), labelled_row),
    Shape("labelled", "labelled", (_PROMPT, _ANSWER, _LABEL), labelled_row),
    Shape("sharegpt", "demonstrations", (CONVERSATION_COLUMNS,), messages_row, fits=_is_sharegpt),
    Shape("messages", "demonstrations", (CONVERSATION_COLUMNS,), messages_row),
    Shape("instances", "demonstrations", (_INSTRUCTION, ("instances",)), instances_row),
    Shape(
        "alpaca",
        "demonstrations",
        (_INSTRUCTION, ("output", "response", "completion", "answer")),
        alpaca_row,
        (_INPUT, ("history",)),
    ),
    Shape("prompt-completion", "demonstrations", (_PROMPT, _ANSWER), completion_row),
    Shape("prompt-completion", "demonstrations", (("prompt", "input"), ("completion", "output")), completion_row, without=_INSTRUCTION),
    Shape("text", "text", (("text",),), text_row, weak=True),
    Shape("prompts", "prompts", (_PROMPT,), prompts_row, weak=True),
    Shape("prompts", "prompts", (_INSTRUCTION,), prompts_row, (_INPUT,), weak=True),
    Shape("prompts", "prompts", (("turns",),), prompts_row, weak=True),
)

KINDS = {
    "demonstrations": "prompt and completion, or messages",
    "pairs": "prompt, chosen and rejected",
    "labelled": "prompt, completion and label (true or false)",
    "text": "text",
    "prompts": "prompt",
}
KNOWN = (
    "messages; prompt + completion; prompt + chosen + rejected; chosen + rejected (whole conversations); "
    "prompt + completion + label; instruction (+ input) + output; conversations; instruction + instances; text; prompt alone"
)
_NAMES = sorted({name for shape in SHAPES for names in shape.all for name in names})
_OPTIONAL = {name for shape in SHAPES for names in shape.all if names not in shape.needs for name in names}
_TIES = ("tie", "tie (bothbad)", "both", "equal", "draw")


# -------------------------------------------------------------------------------------------------------- column maps


def parse_map(text: str) -> dict[str, str]:
    """Our column names -> those of the file, from "prompt=query,chosen=response_j,rejected=response_k".

    `coding` is no column: "coding=0/1/2" says which labels mean a, b and tie. Raises InputError for what cannot be understood.
    """
    found: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        ours, equals, theirs = (p.strip() for p in part.partition("="))
        if not equals or not ours or not theirs:
            raise InputError(f"--map: '{part}' is not of the form name=column, as in --map prompt=query,completion=reply.")
        if ours not in (*_NAMES, "coding"):
            raise InputError(f"--map: there is no '{ours}' to map '{theirs}' to; {nearest(ours, [*_NAMES, 'coding'])}")
        if ours in found:
            raise InputError(f"--map names '{ours}' twice: as '{found[ours]}' and as '{theirs}'.")
        found[ours] = theirs
    if not found:
        raise InputError("--map is empty; write it as in --map prompt=query,completion=reply.")
    return found


_ABSENT = object()


def _at(row: object, path: str) -> object:
    """Value of a column, or of a dotted path into it (`metadata.q`, `responses.0`); _ABSENT if it is not there."""
    if isinstance(row, Mapping) and path in row:
        return row[path]
    if isinstance(row, list) and path.isdecimal():
        return row[int(path)] if int(path) < len(row) else _ABSENT
    first, dot, rest = path.partition(".")
    value = _at(row, first) if dot else _ABSENT
    return value if value is _ABSENT else _at(value, rest)


def _mapped(row: Row, mapping: Mapping[str, str]) -> Row:
    """The row under our names; the columns that these were taken from are gone."""
    taken = {theirs if theirs in row else theirs.partition(".")[0] for theirs in mapping.values()}
    found = {ours: _at(row, theirs) for ours, theirs in mapping.items()}
    return {k: v for k, v in row.items() if k not in taken} | {k: v for k, v in found.items() if v is not _ABSENT}


def _columns(rows: Sequence[Row]) -> list[str]:
    """Names of the columns that hold something in at least one row, in order."""
    return list(dict.fromkeys(k for row in rows for k, v in row.items() if v is not None))


def _check_map(name: str, rows: Sequence[Row], mapping: Mapping[str, str]) -> None:
    """Raises InputError where the map names a column that no row has."""
    paths = list(dict.fromkeys(k for row in rows for k in row))
    paths += [f"{k}.{inner}" for row in rows[:1] for k, v in row.items() if isinstance(v, Mapping) for inner in v]
    for ours, theirs in mapping.items():
        if ours not in _NAMES:
            raise InputError(f"{name}: the map gives '{ours}', which means nothing here; {nearest(ours, _NAMES)}")
        if all(_at(row, theirs) is _ABSENT for row in rows):
            raise InputError(f"{name}: the map says {ours}={theirs}, but there is no column '{theirs}'; {nearest(theirs, paths)}")


# -------------------------------------------------------------------------------------------------- which shape is it


def _recognise(name: str, rows: Sequence[Row], mapping: Mapping[str, str]) -> tuple[Shape, dict[str, str]]:
    """The shape of the (mapped) rows, and its columns -> those of the rows. Raises InputError if there is none."""
    columns = _columns(rows)
    own = [c for c in columns if c in mapping or c in _OPTIONAL]
    # What a map names may be all that is wanted, or the rest of a shape may stand in the file under its own name.
    passes = [(own, False, False), (columns, True, True), (own, True, False)] if mapping else [(columns, True, True)]
    for names, may_be_weak, be_careful in passes:
        for shape in SHAPES:
            bound = shape.bound(names)
            if bound is None or (shape.weak and not may_be_weak) or not set(mapping) <= set(bound.values()):
                continue
            unused = [c for c in columns if c not in bound.values()]
            if shape.weak and be_careful and any(_ANSWER_LIKE.match(c) or _misspelt(c, columns) for c in unused):
                continue
            if any(shape.fits(_view(row, bound)) for row in rows if all(row.get(bound[need[0]]) is not None for need in shape.needs)):
                return shape, bound
    raise InputError(_unrecognised(name, rows, columns))


def _view(row: Row, bound: Mapping[str, str]) -> Row:
    return {ours: row[theirs] for ours, theirs in bound.items() if theirs in row}


def _misspelt(column: str, columns: Sequence[str]) -> str:
    """The known name, missing from `columns`, that `column` seems to mean; empty if none."""
    if column in _NAMES or not column.isalpha() or _ANSWER_LIKE.match(column):
        return ""
    known = [n for n in _NAMES if n not in columns and n not in _OPTIONAL and len(n) > 3]
    return next(iter(difflib.get_close_matches(column.lower(), known, n=1, cutoff=0.8)), "")


def _unrecognised(name: str, rows: Sequence[Row], columns: Sequence[str]) -> str:
    """The sentence for a file of no known shape: what was found, what was perhaps meant, what is known, what to write."""
    hints = [f"Did you mean '{known}' by '{c}'?" for c in columns if (known := _misspelt(c, columns))]
    if {"chosen", "rejected"} <= set(columns):
        hints.append("'chosen' and 'rejected' are not whole conversations here, so a 'prompt' is needed.")
    several = [c for c in columns if c in _ANSWER]
    if len(several) > 1:
        hints.append(f"{' and '.join(several)} could each be the completion: say which.")
    return (
        f"{name}: the columns {', '.join(columns) or '(none)'} are of no known shape. {' '.join([*hints, ''])}"
        f"Known shapes: {KNOWN}. Other names can be mapped, as in --map '{_suggest(rows, columns)}'."
    )


def _suggest(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """An example map, of the file's own columns where their names say enough."""
    first = {c: next((row[c] for row in rows if row.get(c) is not None), None) for c in columns}
    first |= {f"{c}.{k}": inner for c, v in first.items() if isinstance(v, Mapping) for k, inner in v.items()}
    texts = [c for c in first if isinstance(first[c], str)]
    prompt = next((c for c in (*_PROMPT, "instruction", "input", "sentence", "sentence1", "context", "text") if c in texts), None)
    if prompt is None:
        return "prompt=query,chosen=better,rejected=worse"
    start = f"{'instruction' if prompt == 'instruction' else 'prompt'}={prompt}"
    for one, two in (("1", "2"), ("0", "1"), ("a", "b"), ("A", "B"), ("j", "k")):
        pairs = [(c, c[: -len(one)] + two) for c in columns if c.endswith(one) and c[: -len(one)] + two in columns]
        answers = [(a, b) for a, b in pairs if a in texts and _ANSWER_LIKE.match(a)]
        if answers:
            a, b = answers[0]
            words = ("label", "preference", "winner", "choice", "annotator")
            labels = [c for word in words for c in columns if c.startswith(word) and len(str(first[c])) < 20]
            scores = [(c, d) for c, d in pairs if isinstance(first[c], (int, float))]
            if labels:
                return f"{start},a={a},b={b},label={labels[0]}{'.0' if isinstance(first[labels[0]], list) else ''}"
            if scores:
                return f"{start},a={a},b={b},score_a={scores[0][0]},score_b={scores[0][1]}"
            return f"{start},chosen={a},rejected={b}"
    like = re.compile(_ANSWER_LIKE.pattern + r"|.*(label|target|solution|answer)", re.I)
    answer = next((c for c in texts if c != prompt and like.match(c)), "reply")
    return f"{start},completion={answer}"


# ------------------------------------------------------------------------------------------------- labels of two answers


def _code(label: object) -> str:
    """A label as text: true and 1.0 are "1", " A " is "a"."""
    if isinstance(label, (bool, float)) and label in (0, 1, 2, -1):
        label = int(label)
    return str(label).strip().lower()


def label_coding(name: str, labels: Counter[str], mapping: Mapping[str, str], notes: Notes) -> dict[str, str]:
    """Label -> "a", "b" or "tie", decided from all labels of a file, or as `coding` in the map says.

    Raises InputError where the labels could mean several things or nothing known.
    """
    ties = dict.fromkeys(_TIES, "tie")
    if "coding" in mapping:
        codes = [_code(c) for c in mapping["coding"].split("/")]
        if len(codes) not in (2, 3) or len(set(codes)) != len(codes) or not all(codes):
            raise InputError(f"--map coding={mapping['coding']}: give the labels that mean a, b and (if any) tie, as in coding=0/1/2.")
        return ties | dict(zip(codes, ("a", "b", "tie"), strict=False))
    zero_one, one_two = {"0": "a", "1": "b"}, {"1": "a", "2": "b", "0": "tie"}
    words = [{"a": "a", "b": "b"}, {"model_a": "a", "model_b": "b"}, {_code(mapping.get(x, x)): x for x in "ab"}]
    seen = set(labels) - set(ties) - {"", "none"}
    shown = ", ".join(repr(code) for code, _ in labels.most_common(6))
    if len(seen) == 1 and seen <= {"0", "1"}:
        both = "0 = a, 1 = b (coding=0/1) or 1 = a, 2 = b, 0 = tie (coding=1/2/0)"
        raise InputError(f"{name}: every label is {shown}, which may mean {both}; add the one meant to --map.")
    for coding in (zero_one, one_two, *words):
        if seen and seen <= set(coding):
            if seen == {"0", "1", "2"}:
                notes["label 0 read as tie, 1 as a, 2 as b (coding=0/1/2 would read 0 as a, 1 as b, 2 as tie)"] += labels.total()
            return ties | coding
    raise InputError(f"{name}: the labels ({shown}) do not say which answer is better; add e.g. coding=first/second/tie to --map.")


# ------------------------------------------------------------------------------------------------------------ reading


def read(path: str | Path, *, column_map: Mapping[str, str] | None = None, limit: int | None = None) -> DataFile:
    """Reads a file, or a hub data set `owner/name[:split]`, of any known shape.

    `column_map` is as parse_map returns it; `limit` reads that many rows only. Rows that cannot be used are listed in `refused`.
    Raises InputError where the file cannot be read, its shape is not known, or no row is left.
    """
    name = str(path)
    if limit is not None and limit < 1:
        raise InputError(f"{name}: a limit of {limit} rows leaves nothing to read; give 1 or more.")
    mapping = dict(column_map or {})
    columns_map = {ours: theirs for ours, theirs in mapping.items() if ours != "coding"}
    unit, numbered = read_rows(name, streaming=limit is not None)
    head = list(islice(numbered, SAMPLE if limit is None else min(limit, SAMPLE)))
    sample = [row for _, row in head]
    _check_map(name, sample, columns_map)
    shape, bound = _recognise(name, [_mapped(row, columns_map) for row in sample], columns_map)
    notes: Notes = Counter()
    every: NumberedRows | list[tuple[int, Row]] = chain(head, numbered)
    convert = shape.convert
    if shape.name == "compared":
        every = list(every)  # what a label means shows only in all of them, whatever the limit
        labels = Counter(_code(_view(_mapped(row, columns_map), bound).get("label")) for _, row in every)
        convert = partial(compared_row, coding=label_coding(name, labels, mapping, notes))
    data = DataFile(name, shape.name, shape.kind, [], 0, [], notes)
    numbers: list[int] = []
    for number, row in islice(every, limit):
        numbers.append(number)
        seen: Notes = Counter()
        try:
            groups = convert(_view(_mapped(row, columns_map), bound), seen)
        except RowRefused as refusal:
            data.refused.append((number, _in_words_of_the_file(str(refusal), bound, columns_map)))
            notes[_in_words_of_the_file(refusal.why, bound, columns_map)] += 1
            continue
        notes.update(seen.keys())  # a note counts rows
        data.groups += [replace(group, row=len(numbers) - 1) for group in groups]
    data.rows = len(numbers)
    _remove_end_markers(data, numbers)
    if not data.groups:
        raise InputError(_none_left(data, unit))
    used = {columns_map.get(theirs, theirs).partition(".")[0] for theirs in bound.values()} | set(bound.values())
    used |= set(columns_map.values())
    unused = [c for c in _columns(sample) if c not in used]
    if unused:
        notes["columns not used: " + ", ".join(unused)] = data.rows
    return data


def _in_words_of_the_file(why: str, bound: Mapping[str, str], mapping: Mapping[str, str]) -> str:
    """A reason that quotes our column names, with those of the file in their place."""
    return re.sub(r"'(\w+)'", lambda m: f"'{mapping.get(theirs := bound.get(m[1], m[1]), theirs)}'", why)


def _none_left(data: DataFile, unit: str) -> str:
    reasons = Counter(why for _, why in data.refused).most_common(2)
    said = "; ".join(f"{why} ({n} of {data.rows}, first in {unit} {_first(data, why)})" for why, n in reasons)
    return f"{data.path}: no usable row is left; read as '{data.shape}' (rows of {KINDS[data.kind]}), refused: {said}."


def _first(data: DataFile, why: str) -> int:
    return next(number for number, reason in data.refused if reason == why)


def _remove_end_markers(data: DataFile, numbers: Sequence[int]) -> None:
    """Removes an end marker that closes every answer of the file: the tokenizer's own is added when the answer is encoded."""
    while True:
        answers = [r for group in data.groups for r in group.responses]
        marker = next((m for m in END_MARKERS if answers and all(r.text.rstrip().endswith(m) for r in answers)), None)
        if marker is None:
            return
        data.notes[f"end marker '{marker}' removed"] += len(answers)
        for response in answers:
            response.turns = tuple(_without(turn, marker) for turn in response.turns)
        empty = {g.row for g in data.groups if not all(r.text.strip() for r in g.responses)}
        data.refused = sorted(data.refused + [(numbers[row], "empty answer") for row in empty])
        data.notes["empty answer"] += len(empty)
        data.groups = [group for group in data.groups if group.row not in empty]
        data.notes = +data.notes


def _without(turn: Message, marker: str) -> Message:
    content = turn.content.rstrip()
    if turn.role not in ("assistant", TEXT_ROLE) or not content.endswith(marker):
        return turn
    return Message(turn.role, content.removesuffix(marker))


def derive(data: DataFile, kind: str) -> DataFile:
    """`data` as another kind: chosen or good answers as demonstrations, pairs as labelled answers, anything's prompts.

    Raises InputError where `kind` cannot be had from what the file holds.
    """
    if kind == data.kind:
        return data
    groups: list[Group] | None = None
    if kind == "prompts" and data.kind != "text":
        groups = [replace(g, responses=[], margin=None) for g in data.groups]
    elif kind == "demonstrations" and data.kind == "pairs":
        groups = [replace(g, responses=g.responses[:1], margin=None) for g in data.groups]
    elif kind == "demonstrations" and data.kind == "labelled":
        groups = [g for g in data.groups if g.responses[0].scores["label"] == 1.0]
    elif kind == "labelled" and data.kind == "pairs":
        groups = [
            replace(g, responses=[replace(r, scores={**r.scores, "label": label})], margin=None)
            for g in data.groups
            for r, label in zip(g.responses, (1.0, 0.0), strict=True)
        ]
    if not groups:
        raise InputError(
            f"{data.path} holds {data.kind} (read as '{data.shape}'), from which {kind} cannot be had; "
            f"these need {KINDS.get(kind, kind)}. If the file has such columns under other names, say so with --map."
        )
    return replace(data, kind=kind, groups=groups, notes=data.notes + Counter({f"{data.kind} read as {kind}": len(groups)}))
