"""`manners data write` as a whole: files, replays, kills, budgets, rubbish, and what comes of the rows."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from manners.core.errors import InputError, MannersError
from manners.core.files import read_json, read_jsonl
from manners.data.formats import read
from manners.data.writers import command
from manners.data.writers.command import WriteSettings, write
from manners.model.recorded import BudgetReached
from manners.model.sampler import ScriptedSampler
from tests.conftest import write_rows
from tests.endpoint import completion, last
from tests.markdown import DOCS, table

MADE = ("rows.jsonl", "dropped.jsonl", "report.json")
WORDS = "river sea hill poem lake bread cat rain key moon road door tree bird song stone".split()  # noqa: SIM905


def invented(text: str, key: int) -> str:
    """An answer to whatever the templates ask, as good and bad as a small model's; the same for the same request."""
    chance = random.Random(f"{text} {key}")
    some = lambda n: " ".join(chance.choices(WORDS, k=n))
    if text.startswith("Below is the beginning"):
        return "\n".join(f"{9 + i}. Say {some(chance.randint(1, 6))}." for i in range(4))
    if text.startswith("Is this a classification"):
        return chance.choice(["yes", "no", "what?"])
    if text.startswith("Write examples"):
        return (
            f"Example 1\nInput: {some(2)}\nOutput: {some(3)}\nExample 2\nOutput: {chance.choice(['', some(1)])}\nLabel: {some(1)}\nInput: x"
        )
    if text.startswith("Compare two"):
        return chance.choice(["more", "equal", "?"])
    if "Give one mark" in text:
        return chance.choice("12345")
    if "declines in plain words" in text:
        return chance.choice(["I can't help with that, for it hurts people.", "First take a " + some(2)])
    if "collecting requests" in text:
        return some(6) + ("?" if "question mark" in text else ".")
    if "double angle" in text or "comma" in text:
        return f"<<{some(2)}>> {some(5)}"
    if "small letters" in text or "without any capital" in text:
        return some(6)
    return chance.choice([*[f"Write about {some(5)}."] * 5, f"{some(4)} {{slot}}", "", "Sorry, no."])


def by_seed(body: dict) -> dict:
    return completion(body, invented(last(body), body.get("seed", 0)))


@pytest.fixture
def start(tmp_path: Path) -> Path:
    rows = [{"prompt": f"Name {i} things about a {word}.", "completion": f"A {word} is a thing."} for i, word in enumerate(WORDS[:8])]
    return write_rows(tmp_path / "seeds.jsonl", rows)


def settings(start: Path, out: Path, how: str, **given) -> WriteSettings:
    return WriteSettings(how=how, seeds=str(start), out=str(out), **{"tries": 4, "per_row": 2, "rounds": 2, "show": 3, **given})


WAYS = ("self-instruct", "evolve", "paraphrase", "persona", "constraints", "backtranslate", "safety", "constitutional")


@pytest.mark.parametrize("how", WAYS)
def test_a_replay_without_the_endpoint_is_the_same_bytes(how, start, tmp_path, played, capsys):
    server = played(by_seed)
    report = write(settings(start, tmp_path / "a", how, model=server.name, license="CC0"))
    printed = capsys.readouterr().out
    server.close()
    (tmp_path / "b").mkdir()
    os.rename(tmp_path / "a" / "answers", tmp_path / "kept")
    made = {name: (tmp_path / "a" / name).read_bytes() for name in MADE}
    asked = len(server.asked)
    replay = tmp_path / "b"
    (replay / "answers").mkdir(parents=True)
    os.rename(tmp_path / "kept" / "answers.jsonl", replay / "answers" / "answers.jsonl")
    # a folder of answers alone is not a run folder; give it the settings of the first
    (replay / "settings.json").write_bytes((tmp_path / "a" / "settings.json").read_bytes())
    assert write(settings(start, replay, how, model=server.name, license="CC0")) == report
    assert {name: (replay / name).read_bytes() for name in MADE} == made
    manifest = read_json(replay / "manifest.json")
    assert manifest["answers"]["misses"] == 0 and read_json(tmp_path / "a" / "manifest.json")["answers"]["misses"] == asked
    rows = read_jsonl(replay / "rows.jsonl")
    assert len(rows) == report["rows"] > 0 and printed.count("user: ") == min(3, len(rows))
    for row in rows:
        assert row["made_by"] == {"kind": "model", "name": server.name, "how": how}
        assert row["source"] and row["license"] == "CC0" and isinstance(row["cluster"], str)
        assert how == "constraints" or (all(w["template"] and w["prompt"] for w in row["written_with"]) and row["written_with"])
    dropped = read_jsonl(replay / "dropped.jsonl")
    assert len(dropped) == sum(step["seen"] - step["kept"] for step in report["steps"])
    assert read(str(replay / "rows.jsonl")).kind == "demonstrations"
    if how == "constitutional":
        assert read(str(replay / "pairs.jsonl")).kind == "pairs" and report["pairs"] > 0


def test_a_finished_run_is_not_run_again_and_another_is_refused(start, tmp_path, capsys):
    ask = lambda **given: write(
        settings(start, tmp_path / "run", "evolve", **given), ScriptedSampler(lambda p, s: invented(p.messages[-1].content, 0))
    )
    first = ask()
    assert ask(budget=5) == first and "nothing to do" in capsys.readouterr().err
    with pytest.raises(InputError, match="holds a run with rounds=2, now it is 3"):
        ask(rounds=3)
    start.write_text(start.read_text() + '{"prompt": "x", "completion": "y"}\n')
    with pytest.raises(InputError, match="was changed"):
        ask()


KILLED = "import sys; from manners.cli import main; main(sys.argv[1:])"


def test_killed_midway_and_begun_again(start, tmp_path, played):
    def slowly(body):
        time.sleep(0.02)
        return by_seed(body)

    server = played(slowly)
    words = ["data", "write", "how=evolve", f"model={server.name}", f"seeds={start}", "rounds=3", "concurrency=2", "show=0"]
    run = lambda out: subprocess.Popen(
        [sys.executable, "-c", KILLED, *words, f"out={out}"], cwd=Path(__file__).parents[3], stdout=subprocess.DEVNULL
    )
    process = run(tmp_path / "killed")
    while len(server.asked) < 9:
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "manifest.json").exists()
    asked = len(server.asked)
    given = {"model": server.name, "rounds": 3, "per_row": 1, "tries": 100, "show": 20}
    write(settings(start, tmp_path / "killed", "evolve", **given))
    again = len(server.asked) - asked
    write(settings(start, tmp_path / "whole", "evolve", **given))
    assert len(server.asked) - asked - again > again  # what was answered before the kill was not asked again
    for name in MADE:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_budget_stops_and_a_larger_one_goes_on(start, tmp_path, played):
    server = played(by_seed)
    ask = lambda out, **given: write(settings(start, tmp_path / out, "self-instruct", model=server.name, concurrency=1, **given))
    with pytest.raises(BudgetReached, match=r"the budget of 300 tokens is spent"):
        ask("small", budget=300)
    asked = len(server.asked)
    assert 0 < asked < 8 and not (tmp_path / "small" / "rows.jsonl").exists()
    ask("small", budget=10**9)
    went_on = len(server.asked)
    ask("whole")
    assert len(server.asked) - went_on == went_on
    assert all((tmp_path / "small" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in MADE)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize(
    "said", ["", "%%%%", "\ud83d\ude00" * 50, "{{ 7 * 7 }}{% for %}", "1.\n2.\n3.", '{"a": [', "\x00\x01\x02", "Label:\nOutput:\nExample"]
)
def test_rubbish_is_counted_and_nothing_breaks(how, said, start, tmp_path):
    report = write(settings(start, tmp_path / "run", how), ScriptedSampler(lambda prompt, sample: said))
    assert sum(step["seen"] for step in report["steps"]) > 0
    if not said:
        assert report["rows"] == 0


def test_an_endpoint_that_dies(start, tmp_path, played, monkeypatch):
    monkeypatch.setattr(
        command.ChatEndpoint, "named", lambda name, _made=command.ChatEndpoint.named, **o: _made(name, tries=2, wait=0.01, **o)
    )
    server = played(*[by_seed] * 5, 500)
    with pytest.raises(MannersError, match="could not be asked in 2 tries") as error:
        write(settings(start, tmp_path / "run", "evolve", model=server.name, concurrency=1))
    assert error.value.exit_code == 1 and len(read_jsonl(tmp_path / "run" / "answers" / "answers.jsonl")) == 5
    server.script = [by_seed]
    assert write(settings(start, tmp_path / "run", "evolve", model=server.name, concurrency=1))["steps"]


def test_on_the_command_line(manners, start, tmp_path, tiny_model):
    out = manners(
        "data",
        "write",
        "how=self-instruct",
        f"model={tiny_model}",
        f"seeds={start}",
        f"out={tmp_path / 'run'}",
        "tries=2",
        "max_new_tokens=8",
    )
    assert out.code == 0 and any("longer than the model reads" in line for line in out.stdout), out
    out = manners("data", "write", "how=constraints", f"model={tiny_model}", f"seeds={start}", f"out={tmp_path / 'b'}", "max_new_tokens=8")
    assert out.code == 0 and out.stdout[-1].endswith(" tokens in all)") and " 0 rows " in out.stdout[-1], out
    again = manners(
        "data", "write", "how=constraints", f"model={tiny_model}", f"seeds={start}", f"out={tmp_path / 'b'}", "max_new_tokens=8"
    )
    assert "nothing to do" in again.stderr
    for words, said in [
        (["how=safety"], "how=safety needs seeds=FILE, a file of harmful requests."),
        (["how=evolv"], "self-instruct"),
        (["how=evolve", "operators=deepn"], "did you mean 'deepen'?"),
        (["how=safety", f"seeds={start}", "refusal=nothing"], "is not of the form module:function"),
        (["how=constitutional", f"seeds={start}", "principles=none.yaml"], "none.yaml cannot be read"),
        (["how=evolve", "model=http:///v1#m"], "names no host"),
        (["how=evolve", "model=http://localhost:1/v1"], "names no model"),
        (["how=evolve", f"prompts={start}"], "no folder of templates"),
    ]:
        assert said in manners("data", "write", f"out={tmp_path / 'c'}", *words).error
        assert not (tmp_path / "c").exists(), words
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": "Once upon a time."}])
    assert "asks nothing" in manners("data", "write", f"out={tmp_path / 'c'}", "how=evolve", f"seeds={texts}").error


def test_the_share_of_safety_in_a_mixture_is_one_number(manners, start, tmp_path):
    harm = write_rows(tmp_path / "harm.jsonl", [{"prompt": f"How do I break {word} number {n}?"} for n, word in enumerate(WORDS)])
    model = ScriptedSampler(lambda p, s: "I can't help with that." if "declines" in p.messages[-1].content else "")
    assert write(settings(harm, tmp_path / "safe", "safety", per_row=1, license="CC0"), model)["rows"] == 16
    tasks = write_rows(tmp_path / "tasks.jsonl", [{"prompt": f"Say {n}.", "completion": str(n)} for n in range(194)])
    out = tmp_path / "mixed.jsonl"
    done = manners(
        "data",
        "mix",
        f"tasks={tasks}",
        f"safety={tmp_path / 'safe' / 'rows.jsonl'}",
        "weights=tasks=0.97,safety=0.03",
        "rows=200",
        f"out={out}",
    )
    assert done.code == 0, done.stderr
    mixed = read_jsonl(out)
    safe = [row for row in mixed if row["cluster"] == "safety"]
    assert (len(mixed), len(safe)) == (200, 6) and safe[0]["made_by"]["kind"] == "model" and safe[0]["written_with"]
    card = manners("data", "card", str(out))
    assert card.code == 0 and any("model: smollm2-135m-instruct" in line for line in card.stdout)


def test_as_a_stage_of_a_recipe(manners, tmp_path, start, played):
    server = played(by_seed)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"name: r\nout: {tmp_path / 'out'}\nstages:\n"
        f"  written: {{do: data write, how: constitutional, model: '{server.name}', seeds: '{start}', show: 0}}\n"
        "  mixed: {do: data mix, sources: {all: '{written}/rows.jsonl'}}\n"
    )
    done = manners("run", recipe)
    assert done.code == 0, done.stderr
    assert len(read_jsonl(tmp_path / "out" / "mixed" / "mixture.jsonl")) == len(read_jsonl(tmp_path / "out" / "written" / "rows.jsonl")) > 0
    asked = len(server.asked)
    assert manners("run", recipe).code == 0 and len(server.asked) == asked


def test_every_answer_is_stored_with_what_was_asked(start, tmp_path):
    write(settings(start, tmp_path / "run", "constitutional"), ScriptedSampler(lambda p, s: invented(p.messages[-1].content, 1)))
    kept = read_jsonl(tmp_path / "run" / "answers" / "answers.jsonl")
    assert kept and all(row["messages"] and row["sampling"]["stage"] and isinstance(row["text"], str) for row in kept)
    assert json.loads((tmp_path / "run" / "report.json").read_text())["seeds"]["rows"] == 8


def test_the_page_has_every_setting_with_its_default():
    page = (DOCS / "writers.md").read_text(encoding="utf-8")
    rows = table(page, "Setting")
    assert rows.keys() == WriteSettings.model_fields.keys()
    for name, field in WriteSettings.model_fields.items():
        shown = rows[name][0].strip("`")
        if field.is_required():
            assert shown == "needed", name
        elif isinstance(field.default, bool | type(None)):
            assert shown == str(field.default).lower(), name
        else:
            assert shown.strip('"') == str(field.default), name
    assert all(f"| `{how}` |" in page for how in WAYS)


def test_harmful_demonstrations_are_no_seeds_unless_somebody_says_so(tmp_path):
    given = WriteSettings(how="paraphrase", out=str(tmp_path / "run"), show=0)
    assert write(given, ScriptedSampler(lambda p, s: ""))["seeds"]["rows"] == 270
