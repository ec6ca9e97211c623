"""Talking with a model on the terminal, or with two beside each other: a line in, an answer out as it is drawn, the conversation kept.

Answers go to stdout and nothing else does, so that a script may pipe questions in and read answers.
"""

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from manners.core import files
from manners.core.chance import stream_of, uniform
from manners.core.config import Settings
from manners.core.console import console
from manners.core.errors import InputError, MannersError, nearest
from manners.core.records import Message, Prompt
from manners.feedback.rewards import RewardSpec
from manners.model.draw import Sampling
from manners.reason.self_consistency import ANY, rule_of
from manners.reason.talk import Conversation, Speaker, Stream, chosen_how, open_speaker, speak

__all__ = ["ChatSettings", "Conversation", "Stream", "chat"]

COMMANDS = {
    "/reset": "forgets the conversation",
    "/best": "N: each answer is the best of N draws by the reward (1 ends that)",
    "/vote": "N: each answer is the one that most of N draws agree on (1 ends that)",
    "/again": "answers the last message anew",
    "/system": "TEXT: another system message; the conversation begins anew",
    "/save": "FILE: what was said is added to a file",
    "/left": "with two models: the left answer is better",
    "/right": "with two models: the right answer is better",
    "/tie": "with two models: neither is",
    "/help": "lists the commands",
    "/exit": "ends, as Ctrl-D does; Ctrl-C stops an answer",
}
NOT_KEPT = "There was no answer, so the message is not kept."


class ChatSettings(Settings):
    """Settings of `manners chat`."""

    model: str = "smollm2-135m-instruct"
    """Folder, run, adapter, hub id or alias, or http://HOST/v1#MODEL for an endpoint."""
    against: str | None = None
    """A second model, whose answers stand beside the first one's."""
    format: str = "auto"
    """plain, chatml, template (the tokenizer's own), auto."""
    system: str | None = None
    """System message that begins the conversation."""
    reward: RewardSpec | None = None
    """What /best chooses by (docs/best-of-n.md); none takes the mean log-probability."""
    task: str = ANY
    """How /vote reads answers: number, letter, yes-no, ... (docs/eval.md), or any."""
    save: str | None = None
    """JSONL file that each conversation is added to, as messages."""
    pairs: str | None = None
    """JSONL file that each vote between two models is added to, as a preference pair."""
    blind: bool = False
    """With two models: sides by chance, names only after the vote."""
    temperature: float = 0.7
    """0 is greedy."""
    top_p: float = 0.9
    """Draw from the smallest set of tokens with so much probability; 1 is off."""
    max_new_tokens: int = 256
    """Longest answer in tokens."""
    seed: int = 0
    """Of what is drawn."""


@dataclass(slots=True)
class Shown:
    """Two answers that wait for a vote: what was asked, and model and answer of the left and the right side."""

    prompt: Prompt
    names: list[str]
    texts: list[str]


@dataclass(slots=True)
class Talk:
    """A chat as it goes: who speaks, what was said, how answers are chosen."""

    settings: ChatSettings
    sampling: Sampling
    speakers: list[Speaker]
    turns: list[Message]
    mode: str = "plain"
    n: int = 1
    shown: Shown | None = None
    answers: int = 0
    pairs: int = 0
    models: list[str] = field(default_factory=list)

    @property
    def first(self) -> Conversation:
        return self.speakers[0].talk


def chat(settings: ChatSettings) -> dict[str, Any]:
    """Answer each line of stdin on stdout until it ends; returns the number of answers and the last conversation."""
    sampling = Sampling(**settings.model_dump(include={"temperature", "top_p", "max_new_tokens", "seed"}))
    rule_of(settings.task)
    for path in (settings.save, settings.pairs):
        if path is not None:
            files.check_target(path)
    if settings.against is None and (settings.pairs is not None or settings.blind):
        raise InputError("pairs and blind are for two models; name the second with against=MODEL.")
    turns: list[Message] = []
    names = [settings.model, *([settings.against] if settings.against is not None else [])]
    speakers = [open_speaker(name, settings.format, settings.system, settings.max_new_tokens, turns) for name in names]
    talk = Talk(settings, sampling, speakers, turns, models=names)
    if sys.stdin.isatty():
        told = " and ".join(f"{s.name}{f', {s.fmt.name} format' if s.fmt is not None else ''}" for s in speakers)
        console.print(f"{told}. /help lists the commands, /exit or Ctrl-D ends, Ctrl-C stops an answer.", style="dim")
    try:
        for index, line in enumerate(_lines()):
            word, _, rest = line.partition(" ")
            if word in COMMANDS:
                _command(talk, word, rest.strip(), index)
            elif re.fullmatch(r"/[a-z]+", line):
                _say(f"There is no command {line}; {nearest(line, COMMANDS)} /help lists them.")
            else:
                _answer(talk, line, index)
    finally:
        if settings.save is not None:
            save(talk, settings.save)
    found = {"answers": talk.answers, "messages": [{"role": m.role, "content": m.content} for m in talk.first.prompt().messages]}
    return found if settings.against is None else {**found, "pairs": talk.pairs}


def _say(text: str) -> None:
    console.print(text, style="dim")


def _lines() -> Iterator[str]:
    """What the user says, until the end of stdin or /exit: stripped lines, empty ones left out."""
    while True:
        try:
            line = _line()
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            console.print("\n/exit or Ctrl-D ends.", style="dim")
            continue
        if line is None or line.strip() == "/exit":
            return
        if line.strip():
            yield line.strip()


def _line() -> str | None:
    """The next line of stdin, asked for if a person is there; None at its end."""
    if not sys.stdin.isatty():
        return sys.stdin.readline() or None
    try:
        return console.input("you> ")
    except EOFError:
        console.print()
        return None


# --- commands -----------------------------------------------------------------------------------------------------------------


def _command(talk: Talk, word: str, rest: str, row: int) -> None:
    """What a line that begins with one of COMMANDS does."""
    if word in ("/reset", "/system"):
        if talk.settings.save is not None:
            save(talk, talk.settings.save)
        talk.turns.clear()
        talk.shown = None
        if word == "/system":
            for speaker in talk.speakers:
                speaker.talk.system = rest or None
        _say("The conversation is forgotten." if word == "/reset" else "The conversation begins anew.")
    elif word in ("/best", "/vote"):
        _choose_mode(talk, word, rest)
    elif word == "/again":
        if len(talk.turns) < 2:
            _say("Nothing was asked yet.")
            return
        said, answered = talk.turns[-2:]
        del talk.turns[-2:]
        if not _answer(talk, said.content, row):
            talk.turns += [said, answered]
    elif word == "/save":
        if not rest:
            _say("Name the file: /save talk.jsonl")
            return
        try:
            files.check_target(rest)
            save(talk, rest)
        except MannersError as error:
            console.print(str(error))
    elif word == "/help":
        for name, does in COMMANDS.items():
            _say(f"{name:8} {does}")
    else:
        _vote(talk, word)


def _choose_mode(talk: Talk, word: str, rest: str) -> None:
    """/best N and /vote N."""
    if not re.fullmatch(r"[1-9]\d{0,3}", rest):
        _say(f"Say among how many: {word} 8")
        return
    talk.mode, talk.n = word[1:] if int(rest) > 1 else "plain", int(rest)
    by = "the mean log-probability" if talk.settings.reward is None else f"the reward {talk.settings.reward}"
    told = {
        "plain": "Each answer is a single draw.",
        "best": f"Each answer is the best of {rest} draws by {by}.",
        "vote": f"Each answer is the one that most of {rest} draws agree on.",
    }
    _say(told[talk.mode])


def _vote(talk: Talk, word: str) -> None:
    """/left, /right and /tie: writes the pair, and the talk goes on with the better answer."""
    shown = talk.shown
    if shown is None:
        _say("There are no two answers to vote on.")
        return
    talk.shown = None
    if talk.settings.blind:
        _say(f"Left was {shown.names[0]}, right {shown.names[1]}.")
    if word == "/tie" or shown.texts[0] == shown.texts[1]:
        _say("A tie makes no pair.")
        return
    better = int(word == "/right")
    talk.turns[-1] = Message("assistant", shown.texts[better])
    talk.pairs += 1
    if talk.settings.pairs is None:
        _say("The talk goes on with that answer. To keep votes as pairs, start with pairs=FILE.")
        return
    as_messages = lambda text: [{"role": "assistant", "content": text}]
    row = {
        "prompt": [{"role": m.role, "content": m.content} for m in shown.prompt.messages],
        "chosen": as_messages(shown.texts[better]),
        "rejected": as_messages(shown.texts[1 - better]),
        "chosen_model": shown.names[better],
        "rejected_model": shown.names[1 - better],
    }
    _append(talk.settings.pairs, row)
    _say(f"{talk.settings.pairs}: a pair; the talk goes on with that answer.")


def save(talk: Talk, path: str) -> None:
    """Add the conversation to a file of dialogues, if anything was said."""
    if talk.turns:
        messages = [{"role": m.role, "content": m.content} for m in talk.first.prompt().messages]
        _append(path, {"messages": messages, "models": talk.models})
        _say(f"{path}: a conversation of {len(talk.turns) // 2} exchanges")


def _append(path: str, row: dict[str, Any]) -> None:
    with files.disk_errors(Path(path)):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    files.append_json(path, row)


# --- answers ------------------------------------------------------------------------------------------------------------------


def _answer(talk: Talk, line: str, row: int) -> bool:
    """Answer a message, and keep both in the conversation. Whether there was an answer; without one the message is not kept."""
    before = list(talk.turns)
    talk.turns.append(Message("user", line))
    try:
        if forgotten := sum(speaker.talk.fit() for speaker in talk.speakers):
            _say(f"The conversation no longer fits the model: its oldest {forgotten} exchanges are forgotten.")
        text = _one(talk, row) if len(talk.speakers) == 1 else _two(talk, row)
    except InputError as error:
        talk.turns[:] = before
        console.print(str(error))
        return False
    if not text:
        talk.turns.pop()
        _say(NOT_KEPT)
        return False
    talk.turns.append(Message("assistant", text))
    talk.answers += 1
    return True


def _sampler(talk: Talk, speaker: Speaker):
    return speaker.answers(talk.mode, talk.n, talk.settings.task, talk.settings.reward)


def _ended(talk: Talk, end: str) -> None:
    if end == "stopped":
        _say("Stopped.")
    elif end == "length":
        _say(f"Cut at max_new_tokens={talk.sampling.max_new_tokens}.")


def _one(talk: Talk, row: int) -> str:
    speaker = talk.speakers[0]
    text, end, response = speak(speaker, _sampler(talk, speaker), talk.sampling, row, sys.stdout)
    _ended(talk, end)
    if how := chosen_how(talk.mode, talk.n, response):
        _say(how)
    return text


def _two(talk: Talk, row: int) -> str:
    """Both models' answers, side by side on a terminal, else one after the other; the talk goes on with the left one's."""
    order = [0, 1]
    if talk.settings.blind and uniform(stream_of(talk.settings.seed, row, "sides"), 0) < 0.5:
        order = [1, 0]
    speakers = [talk.speakers[i] for i in order]
    titles = ["left", "right"] if talk.settings.blind else [f"left: {speakers[0].name}", f"right: {speakers[1].name}"]
    prompt = talk.first.prompt()
    if sys.stdout.isatty():
        found = side_by_side(Console(markup=False, highlight=False, emoji=False), titles, [_asker(talk, s, row) for s in speakers])
    else:
        found = []
        for title, speaker in zip(titles, speakers, strict=True):
            _say(title)
            found.append(_asker(talk, speaker, row)(sys.stdout, None))
    texts = [text for text, _ in found]
    for title, (_, end) in zip(titles, found, strict=True):
        if end != "stop":
            _say(f"{title}:")
            _ended(talk, end)
    talk.shown = Shown(prompt, [s.name for s in speakers], texts) if all(texts) else None
    if talk.shown is not None and sys.stdin.isatty():
        _say("/left, /right or /tie votes.")
    return texts[0] or texts[1]


def _asker(talk: Talk, speaker: Speaker, row: int) -> Callable[..., tuple[str, str]]:
    def ask(out: Any, on_text: Callable[[], None] | None) -> tuple[str, str]:
        text, end, _ = speak(speaker, _sampler(talk, speaker), talk.sampling, row, out, on_text)
        return text, end

    return ask


class Pane:
    """One side of the screen: what is written to it so far. Text of a model is no markup."""

    def __init__(self, title: str):
        self.title, self.text = title, ""

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass

    def drawn(self, width: int) -> Panel:
        return Panel(Text(self.text.rstrip("\n")), title=Text(self.title), title_align="left", width=width)


def side_by_side(screen: Console, titles: list[str], askers: list[Callable[..., tuple[str, str]]]) -> list[tuple[str, str]]:
    """Let the askers answer one after the other, each into its half of the screen."""
    panes = [Pane(title) for title in titles]
    width = max(20, screen.width // len(panes) - 1)
    drawn = lambda: Columns([pane.drawn(width) for pane in panes], padding=(0, 1))
    with Live(drawn(), console=screen, refresh_per_second=12, vertical_overflow="visible") as live:
        found = []
        for pane, ask in zip(panes, askers, strict=True):
            found.append(ask(pane, lambda: live.update(drawn())))
            live.update(drawn(), refresh=True)
    return found
