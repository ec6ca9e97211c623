"""`manners chat`: answers on stdout as they are drawn, the conversation kept, cut and forgotten; whole characters only."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from manners.core.errors import InputError
from manners.core.records import Group, Message, Prompt, Response
from manners.data.chat import ChatFormat
from manners.model.sampler import Sampler
from manners.reason.chat import Conversation, Stream
from tests.conftest import TEMPLATE, Outcome
from tests.tiny import byte_tokenizer

Run = Callable[..., Outcome]


@pytest.fixture
def say(manners: Run, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Pipe lines into `manners chat` with the tiny model: `say("Hi", "/exit", words=["seed=1"])`."""

    def run(*lines: str, words: tuple[str, ...] = ()) -> Outcome:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
        return manners("chat", f"model={tiny_model}", "max_new_tokens=8", *words)

    return run


class Scripted:
    """Stands in for the sampler's work: token by token it gives what `answers` say, and keeps the prompts it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: str | BaseException, finish: str = "stop"):
        self.answers = list(answers)
        self.asked: list[list[tuple[str, str]]] = []
        self.rows: list[int] = []
        scripted = self

        def sample(self: Sampler, prompts, sampling, *, rows, on_token):
            scripted.asked.append([(m.role, m.content) for m in prompts[0].messages])
            scripted.rows += rows
            ids = []
            while True:
                text = scripted.answers.pop(0)
                if isinstance(text, BaseException):
                    raise text
                for token in self.backbone.tokenizer.encode(text, add_special_tokens=False):
                    ids.append(token)
                    on_token(0, 0, token)
                if not scripted.answers or isinstance(scripted.answers[0], str):
                    break
            return [Group(prompts[0], [Response.answer(self.fmt.decode(ids), token_ids=ids, finish_reason=finish)])]

        monkeypatch.setattr(Sampler, "sample", sample)


def test_answers_of_the_model_itself(say):
    first = say("Hi", "And now?", words=("seed=3",))
    assert first.code == 0 and first.stdout and "Traceback" not in first.stderr
    assert say("Hi", "And now?", words=("seed=3",)) == first, "the same seed, the same talk"
    assert say("Hi", "And now?", words=("seed=4",)).stdout != first.stdout


def test_the_conversation_is_kept_and_reset(say, monkeypatch: pytest.MonkeyPatch):
    script = Scripted(monkeypatch, "one", "two", "three")
    outcome = say("Hi", "", "  More ", "/reset", "Again", "/exit", "never", words=("system=Be brief.", "--json"))
    assert outcome.code == 0
    system = ("system", "Be brief.")
    assert script.asked == [
        [system, ("user", "Hi")],
        [system, ("user", "Hi"), ("assistant", "one"), ("user", "More")],
        [system, ("user", "Again")],
    ]
    assert script.rows == [0, 1, 3], "no two draws of a talk are the same"
    told = json.loads("\n".join(outcome.stdout))
    assert told["answers"] == 3 and [m["content"] for m in told["messages"]] == ["Be brief.", "Again", "three"]
    assert "one two The conversation is forgotten. three" in outcome.stderr, "with --json stdout is for programs"


def test_only_answers_go_to_stdout_and_markup_is_text(say, monkeypatch: pytest.MonkeyPatch):
    Scripted(monkeypatch, "[bold]x[/bold] [/INST] :smile:\nsecond line", "end")
    outcome = say("Hi", "/reset", "Hi")
    assert outcome.stdout == ["[bold]x[/bold] [/INST] :smile:", "second line", "end"]
    assert outcome.stderr == "The conversation is forgotten."


def test_ctrl_c_stops_the_answer_and_the_talk_goes_on(say, monkeypatch: pytest.MonkeyPatch):
    script = Scripted(monkeypatch, "half an", KeyboardInterrupt(), KeyboardInterrupt(), "two")
    outcome = say("Hi", "Nothing", "More")
    assert outcome.code == 0 and outcome.stdout == ["half an", "", "two"]
    assert script.asked[2] == [("user", "Hi"), ("assistant", "half an"), ("user", "More")], "what was not answered is not kept"
    assert outcome.stderr == "Stopped. Stopped. There was no answer, so the message is not kept."


def test_an_answer_cut_by_length_is_said_to_be(say, monkeypatch: pytest.MonkeyPatch):
    Scripted(monkeypatch, "on and on", finish="length")
    assert say("Hi").stderr == "Cut at max_new_tokens=8."


def test_old_exchanges_are_forgotten_when_the_positions_are_used_up(say, monkeypatch: pytest.MonkeyPatch):
    script = Scripted(monkeypatch, "a" * 120, "b" * 120, "c" * 120, "d")  # 512 positions
    outcome = say("1" * 100, "2" * 100, "3" * 100, "4" * 600, "5")
    assert [asked[0][1][0] for asked in script.asked] == ["1", "1", "2", "2"]
    assert [len(asked) for asked in script.asked] == [1, 3, 3, 5], "a message that does not fit makes nothing forgotten"
    assert "The conversation no longer fits the model: its oldest 1 exchanges are forgotten." in outcome.stderr
    assert "This message makes a prompt of 6" in outcome.stderr and "room for 504 beside the answer" in outcome.stderr
    assert outcome.code == 0 and len(outcome.stdout) == 4


def test_bad_settings(say, manners: Run, tiny_model: Path):
    assert say("Hi", words=("max_new_tokens=600",)).error == "max_new_tokens=600 leaves a prompt none of the model's 512 positions."
    assert "temperature must be" in say("Hi", words=("temperature=-1",)).error
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + TEMPLATE
    assert "no system here" in say("Hi", words=("system=x", f"format={refusing}")).error


def test_nothing_piped_is_no_answer(say):
    assert say() == Outcome(0, [], "")


class Terminal(io.StringIO):
    """A stdin with a person before it."""

    def isatty(self) -> bool:
        return True


def test_a_person_is_asked_and_told(manners: Run, tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    from manners.core.console import console

    Scripted(monkeypatch, "one")
    said = iter(["Hi", KeyboardInterrupt(), "", EOFError()])

    def ask(prompt: str) -> str:
        assert prompt == "you> "
        line = next(said)
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(console, "input", ask)
    outcome = manners("chat", f"model={tiny_model}")
    assert outcome.code == 0 and outcome.stdout == ["one"]
    assert "/exit or Ctrl-D ends, Ctrl-C stops an answer" in outcome.stderr and outcome.stderr.endswith("/exit or Ctrl-D ends.")


def test_ctrl_c_between_answers_ends_what_is_piped(manners: Run, tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    class Interrupted(io.StringIO):
        def readline(self, *_: object) -> str:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", Interrupted())
    assert manners("chat", f"model={tiny_model}") == Outcome(130, [], "")


@pytest.mark.parametrize("text", ["Grüße, 世界! 👩‍🚀 end", "é", "  spaced  out  ", "a\ufffdb", ""])
def test_whole_characters_only(text: str):
    tokenizer = byte_tokenizer(TEMPLATE)
    fmt = ChatFormat.of(tokenizer)
    out = io.StringIO()
    stream = Stream(fmt, out)
    seen = [""]
    for token in tokenizer.encode(text, add_special_tokens=False):
        stream.take(token)
        assert text.strip().startswith(out.getvalue()) and out.getvalue().startswith(seen[-1])
        seen.append(out.getvalue())
    stream.take(next(iter(fmt.stop_ids)))
    assert stream.close() == text.strip() and out.getvalue() == text.strip() + "\n"
    if len(text) > 3:
        assert len(set(seen)) > 3, "it comes piece by piece"


def test_what_stops_within_a_character_ends_before_it():
    tokenizer = byte_tokenizer(TEMPLATE)
    out = io.StringIO()
    stream = Stream(ChatFormat.of(tokenizer), out)
    for token in tokenizer.encode("so 世", add_special_tokens=False)[:-1]:
        stream.take(token)
    assert stream.close() == "so " and out.getvalue() == "so \n"


def test_a_conversation_that_cannot_fit_is_left_as_it_is():
    talk = Conversation(ChatFormat.of(byte_tokenizer(TEMPLATE)), None, room=60)
    talk.turns = [Message("user", "a"), Message("assistant", "b"), Message("user", "c" * 90)]
    with pytest.raises(InputError, match="shorten it"):
        talk.fit()
    assert len(talk.turns) == 3 and talk.prompt() == Prompt(tuple(talk.turns))
    talk.room = None
    assert talk.fit() == 0
