"""`manners chat`: answers on stdout as they are drawn, the conversation kept, cut and forgotten; whole characters only."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from manners.core.errors import InputError
from manners.core.files import read_jsonl
from manners.core.records import Group, Message, Prompt, Response
from manners.data.chat import ChatFormat
from manners.data.formats import read
from manners.model.sampler import Sampler, ScriptedSampler
from manners.reason import chat as command
from manners.reason.chat import Conversation, Stream, side_by_side
from manners.reason.talk import Speaker
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


# --- commands, two models, what is saved ----------------------------------------------------------------------------------------


@pytest.fixture
def talk(manners: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Pipe lines into a chat whose models are scripted: `talk("Hi", scripts=(["one"], ["two"]), words=["save=x"])`."""

    def run(*lines: str, scripts: tuple[list[str], ...], words: tuple[str, ...] = ()) -> Outcome:
        samplers = iter(ScriptedSampler(script) for script in scripts)

        def opened(name, fmt, system, longest, turns):
            return Speaker(name, next(samplers), Conversation(None, system, turns=turns))

        monkeypatch.setattr(command, "open_speaker", opened)
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
        return manners("chat", "model=first", *(["against=second"] if len(scripts) == 2 else []), *words)

    return run


def test_a_model_that_answers_in_whole_texts(talk):
    outcome = talk("Hi", "More", scripts=(["one", "two [bold]"],))
    assert outcome == Outcome(0, ["one", "two [bold]"], "")


def test_a_vote_and_the_best(talk):
    script = ["Blue.", "It is 7.", "so 5", "7!", "a", "a b c", "a b", "plain"]
    lines = ("/vote 4", "How many?", "/best 3", "Say much.", "/best 1", "Once more.")
    outcome = talk(*lines, scripts=(script,), words=("task=number", "reward=length"))
    assert outcome.stdout == ["It is 7.", "a b c", "plain"]
    assert "Each answer is the one that most of 4 draws agree on. 2 of 4 draws agree; 1 gave no answer." in outcome.stderr
    assert "Each answer is the best of 3 draws by the reward length. The best of 3: 3." in outcome.stderr
    assert "Each answer is a single draw." in outcome.stderr


def test_a_model_chooses_its_likeliest_draw(say):
    outcome = say("/best 3", "Hi", "/vote 2", "Hi")
    assert outcome.code == 0 and "best of 3 draws by the mean log-probability." in outcome.stderr
    assert "The best of 3: -" in outcome.stderr and "of 2 draws agree" in outcome.stderr
    cold = say("/best 3", "Hi", "/best 1", "Hi", words=("temperature=0",))
    assert cold.code == 0 and "set temperature above 0" in cold.stderr, "the talk goes on"


def test_commands_that_need_more_and_that_there_are_not(talk):
    outcome = talk("/best", "/vote many", "/again", "/left", "/save", "/rest", "/usr/bin is what?", "/help", scripts=(["a folder"],))
    assert outcome.stdout == ["a folder"], "what only begins like a command is a message"
    for text in ("/best 8", "/vote 8", "Nothing was asked yet.", "no two answers", "Name the file", "did you mean '/reset'?"):
        assert text in outcome.stderr
    assert all(name in outcome.stderr for name in command.COMMANDS)


def test_again_and_another_system_message(talk):
    outcome = talk("Hi", "/again", "/system Be curt.", "Yes?", scripts=(["one", "two", "no"],), words=("--json",))
    told = json.loads("\n".join(outcome.stdout))
    assert told["answers"] == 3 and [m["content"] for m in told["messages"]] == ["Be curt.", "Yes?", "no"]


def test_what_was_said_is_saved_as_demonstrations(talk, tmp_path: Path):
    saved, other = tmp_path / "deep" / "talk.jsonl", tmp_path / "other.jsonl"
    lines = ("Hi", "More", f"/save {other}", "/reset", "/reset", "Again")
    talk(*lines, scripts=(["one", "two", "three"],), words=(f"save={saved}", "system=Be brief."))
    rows = read_jsonl(saved)
    assert [[m["content"] for m in row["messages"]] for row in rows] == [
        ["Be brief.", "Hi", "one", "More", "two"],
        ["Be brief.", "Again", "three"],
    ]
    assert rows[0]["models"] == ["first"] and read_jsonl(other) == rows[:1]
    assert read(str(saved)).kind == "demonstrations"


def test_two_models_and_votes_as_pairs(talk, tmp_path: Path):
    pairs = tmp_path / "pairs.jsonl"
    scripts = (["a1", "a2", "a3", "same"], ["b1", "b2", "b3", "same"])
    lines = ("One", "/right", "Two", "/left", "/left", "Three", "/tie", "Four", "/right")
    outcome = talk(*lines, scripts=scripts, words=(f"pairs={pairs}", "--json"))
    rows = read_jsonl(pairs)
    assert [(r["chosen"][0]["content"], r["rejected"][0]["content"], r["chosen_model"]) for r in rows] == [
        ("b1", "a1", "second"),
        ("a2", "b2", "first"),
    ]
    assert [m["content"] for m in rows[1]["prompt"]] == ["One", "b1", "Two"], "the talk goes on with the better answer"
    told = json.loads("\n".join(outcome.stdout))
    assert told["pairs"] == 2 and [m["content"] for m in told["messages"]][-4:] == ["Three", "a3", "Four", "same"]
    assert "left: first" in outcome.stderr and "A tie makes no pair." in outcome.stderr and "no two answers to vote on" in outcome.stderr
    data = read(str(pairs))
    assert data.kind == "pairs" and [g.responses[0].text for g in data.groups] == ["b1", "a2"]


def test_a_blind_comparison_changes_sides_and_tells_names_after_the_vote(talk, tmp_path: Path):
    pairs = tmp_path / "pairs.jsonl"
    count = 12
    lines = [line for i in range(count) for line in (f"Question {i}", "/left")]
    scripts = ([f"a{i}" for i in range(count)], [f"b{i}" for i in range(count)])
    outcome = talk(*lines, scripts=scripts, words=(f"pairs={pairs}", "blind=true"))
    rows = read_jsonl(pairs)
    sides = [row["chosen_model"] for row in rows]
    assert len(rows) == count and 2 <= sides.count("first") <= count - 2
    assert all(row["chosen"][0]["content"][0] == {"first": "a", "second": "b"}[row["chosen_model"]] for row in rows)
    assert "left: first" not in outcome.stderr and f"Left was {sides[0]}" in outcome.stderr


def test_two_models_of_the_real_kind_share_one_talk(say, tiny_model: Path):
    outcome = say("Hi", "/right", "More", words=(f"against={tiny_model}", "seed=1"))
    assert (outcome.code == 0 and "The talk goes on with that answer" in outcome.stderr) or "A tie" in outcome.stderr


def test_panes_side_by_side():
    screen = Console(file=io.StringIO(), force_terminal=True, width=60, markup=False, color_system=None)

    def asker(text: str):
        def ask(out, on_text):
            for character in text:
                out.write(character)
                on_text()
            return text, "stop"

        return ask

    assert side_by_side(screen, ["left: a", "right: b"], [asker("hello [b]you[/b]"), asker("bye")]) == [
        ("hello [b]you[/b]", "stop"),
        ("bye", "stop"),
    ]
    last = screen.file.getvalue().splitlines()[-4:]
    assert any("hello [b]you[/b]" in line and "bye" in line for line in last), "one beside the other, and markup is text"


def test_settings_of_two_models(manners: Run, tiny_model: Path):
    assert "name the second with against=MODEL." in manners("chat", f"model={tiny_model}", "pairs=x.jsonl").error
    assert "did you mean 'number'" in manners("chat", f"model={tiny_model}", "task=numbers").error
