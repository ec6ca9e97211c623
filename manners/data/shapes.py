"""The shapes of rows: which columns tell each, and one function a shape from a row to its groups.

`SHAPES` is the table, most specific first. A row that cannot be used raises `RowRefused` with the reason. Which shape a file has, and
what its columns are called, is the business of `formats`.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import groupby

from manners.core.errors import InputError
from manners.core.records import ROLES, TEXT_ROLE, Group, Message, Prompt, Response
from manners.data.files import CONVERSATION_COLUMNS, Row

Notes = Counter[str]
Turns = list[Message]

ROLE_NAMES = {
    **{role: role for role in ROLES},
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "bot", "model", "chatgpt", "function_call"), "assistant"),
    **dict.fromkeys(("function", "observation", "ipython"), "tool"),
    "developer": "system",
}
YES, NO = ("true", "1", "1.0", "yes", "good"), ("false", "0", "0.0", "no", "bad")
HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
"""Aspects that HelpSteer has as columns."""
CLASS = "class/"
"""Before the label in a response's scores."""
_HH_MARK = re.compile(r"\n\n(Human|Assistant):")


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
    sure = _probability(row) if len(answers) == 2 else None
    return Group(Prompt(tuple(prompt), **_origin(row)), [Response(tuple(turns)) for turns in answers], margin=margin, probability=sure)


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
    label = label_code(row.get("label"))
    if label not in coding:
        raise RowRefused("no label" if label in ("", "none") else "unknown label", f" {row.get('label')!r}")
    return _compared(row, notes, coding[label], _margin(row))


def _compared(row: Row, notes: Notes, better: str, margin: float | None) -> list[Group]:
    if better == "tie":
        raise RowRefused("tie")
    worse = "b" if better == "a" else "a"
    answers = [_answer(row.get(name), name, notes) for name in (better, worse)]
    return [_group(row, _prompt(row, notes), answers, notes, margin)]


def ranking_row(row: Row, notes: Notes) -> list[Group]:
    """A prompt and several answers with a rank each (1 the best, equal ranks are ties) or a score each (the highest the best)."""
    answers = _several(row, notes)
    column, sign = ("ranks", 1) if row.get("ranks") is not None else ("scores", -1)
    given = _listed(row.get(column), column, len(answers))
    ranks = [sign * _number(value, column) for value in given]
    if len(set(ranks)) == 1:
        raise RowRefused("all answers have the same rank")
    group = _group(row, _prompt(row, notes), answers, notes)
    for response, rank in zip(group.responses, ranks, strict=True):
        response.scores["rank"] = rank
    return [group]


def pick_row(row: Row, notes: Notes) -> list[Group]:
    """A prompt, several answers, and which of them is best: its place, from 0, or its text."""
    answers, best = _several(row, notes), row.get("best")
    if isinstance(best, str) and not best.strip().isdecimal():
        places = [i for i, turns in enumerate(answers) if turns[-1].content.strip() == best.strip()]
    else:
        place = _number(best, "best")
        places = [int(place)] if place.is_integer() and 0 <= place < len(answers) else []
    if len(places) != 1:
        raise RowRefused("'best' is none of the answers" if not places else "'best' is the text of several answers")
    group = _group(row, _prompt(row, notes), answers, notes)
    for place, response in enumerate(group.responses):
        response.scores["best"] = float(place == places[0])
    return [group]


def _several(row: Row, notes: Notes) -> list[Turns]:
    """The turns of all answers in `responses`. Raises RowRefused if they are fewer than two."""
    value = _listed(row.get("responses"), "responses")
    if len(value) < 2:
        raise RowRefused("fewer than two answers")
    return [_answer(answer, "responses", notes) for answer in value]


def _listed(value: object, field: str, count: int | None = None) -> list[object]:
    """A list, or one written as JSON, which is how CSV holds it. Raises RowRefused for anything else and for another number of items."""
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    if not isinstance(value, list):
        raise RowRefused(f"'{field}' is not a list")
    if count is not None and len(value) != count:
        raise RowRefused(f"'{field}' and 'responses' differ in number")
    return value


def rated_row(row: Row, notes: Notes) -> list[Group]:
    """A prompt and an answer with a number for each of several aspects; an aspect that is null, missing or "N/A" was not rated."""
    aspects = row.get("aspects", {name: row[name] for name in HELPSTEER if name in row})
    if isinstance(aspects, str):
        with suppress(ValueError, RecursionError):
            aspects = json.loads(aspects)
    if not isinstance(aspects, Mapping):
        raise RowRefused("'aspects' is not an object of numbers")
    rated = {str(name): _number(value, str(name)) for name, value in aspects.items() if value not in (None, "", "N/A")}
    if not rated:
        raise RowRefused("no aspect is rated")
    group = completion_row(row, notes)[0]
    group.responses[0].scores |= rated
    return [group]


def class_row(row: Row, notes: Notes) -> list[Group]:
    """A text, an answer or a conversation with the label of its class, as `class/NAME`."""
    label = label_code(row.get("label"))
    if label in ("", "none"):
        raise RowRefused("no label")
    kind = messages_row if row.get("messages") is not None else completion_row if row.get("completion") is not None else text_row
    group = kind(row, notes)[0]
    group.responses[0].scores[f"{CLASS}{label}"] = 1.0
    return [group]


def _margin(row: Row) -> float | None:
    """The margin, or None where there is none. Raises RowRefused unless it is a finite number."""
    return None if row.get("margin") in (None, "") else _number(row["margin"], "margin")


def _probability(row: Row) -> float | None:
    """That the first answer is the better one, or None where it is not said. Raises RowRefused unless it lies between 0 and 1."""
    if row.get("probability") in (None, ""):
        return None
    number = _number(row["probability"], "probability")
    if not 0 <= number <= 1:
        raise RowRefused("'probability' is not between 0 and 1", f": {number:g}")
    return number


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
PROMPT_COLUMNS = ("prompt", "question", "query")
ANSWER_COLUMNS = ("completion", "response", "answer", "output")


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
_MARGIN, _SURE = ("margin",), ("probability",)
_A, _B, _SCORES = ("a",), ("b",), (("score_a",), ("score_b",))
_LABEL = ("label", "kto_tag")
_SEVERAL = ("responses", "answers", "completions")

SHAPES = (
    Shape("scored", "pairs", (PROMPT_COLUMNS, _A, _B, *_SCORES), scored_row),
    Shape("scored", "pairs", (_INSTRUCTION, _A, _B, *_SCORES), scored_row, (_INPUT,)),
    Shape("compared", "pairs", (PROMPT_COLUMNS, _A, _B, ("label",)), partial(compared_row, coding={}), (_MARGIN, _SURE)),
    Shape("compared", "pairs", (_INSTRUCTION, _A, _B, ("label",)), partial(compared_row, coding={}), (_INPUT, _MARGIN, _SURE)),
    Shape("pair", "pairs", (PROMPT_COLUMNS, ("chosen",), ("rejected",)), pair_row, (_MARGIN, _SURE)),
    Shape("sharegpt-pair", "pairs", (("prompt", *CONVERSATION_COLUMNS), ("chosen",), ("rejected",)), pair_row, (_MARGIN, _SURE)),
    Shape("alpaca-pair", "pairs", (_INSTRUCTION, ("chosen",), ("rejected",)), pair_row, (_INPUT, _MARGIN, _SURE)),
    Shape("hh-pair", "pairs", (("chosen",), ("rejected",)), conversation_pair_row, (_MARGIN, _SURE), _is_hh_pair),
    Shape("conversation-pair", "pairs", (("chosen",), ("rejected",)), conversation_pair_row, (_MARGIN, _SURE), _is_turns_pair),
    Shape("ranking", "rankings", (PROMPT_COLUMNS, _SEVERAL, ("ranks", "rank", "ranking")), ranking_row),
    Shape("ranking", "rankings", (_INSTRUCTION, _SEVERAL, ("ranks", "rank", "ranking")), ranking_row, (_INPUT,)),
    Shape("ranking", "rankings", (PROMPT_COLUMNS, _SEVERAL, ("scores",)), ranking_row),
    Shape("pick", "picks", (PROMPT_COLUMNS, _SEVERAL, ("best",)), pick_row),
    Shape("pick", "picks", (_INSTRUCTION, _SEVERAL, ("best",)), pick_row, (_INPUT,)),
    Shape("labelled", "labelled", (CONVERSATION_COLUMNS, _LABEL), labelled_row),
    Shape("labelled", "labelled", (PROMPT_COLUMNS, ANSWER_COLUMNS, _LABEL), labelled_row),
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
    Shape("prompt-completion", "demonstrations", (PROMPT_COLUMNS, ANSWER_COLUMNS), completion_row),
    Shape("prompt-completion", "demonstrations", (("prompt", "input"), ("completion", "output")), completion_row, without=_INSTRUCTION),
    Shape("text", "text", (("text",),), text_row, weak=True),
    Shape("prompts", "prompts", (PROMPT_COLUMNS,), prompts_row, weak=True),
    Shape("prompts", "prompts", (_INSTRUCTION,), prompts_row, (_INPUT,), weak=True),
    Shape("prompts", "prompts", (("turns",),), prompts_row, weak=True),
)

RATING_SHAPES = (
    Shape("rated", "ratings", (PROMPT_COLUMNS, ANSWER_COLUMNS, ("aspects",)), rated_row),
    Shape("helpsteer", "ratings", (PROMPT_COLUMNS, ANSWER_COLUMNS, *((name,) for name in HELPSTEER)), rated_row),
)
"""Read as such only by who asks for ratings: to others these rows are demonstrations."""
CLASS_SHAPES = (
    Shape("class", "classes", (CONVERSATION_COLUMNS, _LABEL), class_row),
    Shape("class", "classes", (PROMPT_COLUMNS, ANSWER_COLUMNS, _LABEL), class_row),
    Shape("class", "classes", (("text", "sentence"), _LABEL), class_row),
)
"""Read as such only by who asks for classes: to others a label is true or false, and text is text."""

KINDS = {
    "demonstrations": "prompt and completion, or messages",
    "pairs": "prompt, chosen and rejected",
    "rankings": "prompt, responses and ranks",
    "picks": "prompt, responses and best",
    "ratings": "prompt, completion and aspects",
    "classes": "text, or prompt and completion, and label",
    "labelled": "prompt, completion and label (true or false)",
    "text": "text",
    "prompts": "prompt",
}
KNOWN = (
    "messages; prompt + completion; prompt + chosen + rejected; chosen + rejected (whole conversations); "
    "prompt + completion + label; prompt + responses + ranks (or scores, or best); instruction (+ input) + output; conversations; "
    "instruction + instances; text; prompt alone"
)
COLUMN_NAMES = sorted({name for shape in (*SHAPES, *RATING_SHAPES, *CLASS_SHAPES) for names in shape.all for name in names})
OPTIONAL_COLUMNS = {name for shape in SHAPES for names in shape.all if names not in shape.needs for name in names}
_TIES = ("tie", "tie (bothbad)", "both", "equal", "draw")


# ------------------------------------------------------------------------------------------------- labels of two answers


def label_code(label: object) -> str:
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
        codes = [label_code(c) for c in mapping["coding"].split("/")]
        if len(codes) not in (2, 3) or len(set(codes)) != len(codes) or not all(codes):
            raise InputError(f"--map coding={mapping['coding']}: give the labels that mean a, b and (if any) tie, as in coding=0/1/2.")
        return ties | dict(zip(codes, ("a", "b", "tie"), strict=False))
    zero_one, one_two = {"0": "a", "1": "b"}, {"1": "a", "2": "b", "0": "tie"}
    words = [{"a": "a", "b": "b"}, {"model_a": "a", "model_b": "b"}, {label_code(mapping.get(x, x)): x for x in "ab"}]
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
