"""`manners eval tax`: the battery's parts, their values by hand, and what is said of bad files."""

import math
from pathlib import Path

import pytest

from manners.core.errors import InputError
from manners.core.files import read_json, read_jsonl
from manners.evaluate.subject import LocalSubject, open_subject
from manners.evaluate.tax import Part, TaxSettings, answered, losses, of_corpus, parts_of, problem
from tests.conftest import write_rows
from tests.evaluate.test_multiple_choice import ARC, MMLU, plain

GSM8K = [{"question": f"{a} and {a}?", "answer": f"{a}+{a}=<<{a}+{a}={2 * a}>>{2 * a}\n#### {2 * a}"} for a in range(1, 5)]
SVAMP = [{"ID": "1", "Body": "There were 5", "Question": "How many are left?", "Answer": 2.0}]
TEXTS = [{"text": "A first document, short."}, {"text": ""}, {"text": "A second one."}]


def settings(**given) -> TaxSettings:
    return TaxSettings(out="unused", **given)


def test_problems_of_every_shape() -> None:
    asks, solved, target = problem(SVAMP[0], "row", "svamp")
    assert asks.startswith("There were 5. How many are left?\nEnd with") and (solved, target) == ("The answer is 2.", "2")
    asks, solved, target = problem(GSM8K[0], "row", "gsm8k")
    assert asks.startswith("1 and 1?\nWork it out") and solved == target == GSM8K[0]["answer"]
    assert problem({"question": "One?", "answer": 1}, "row", "gsm8k")[1] == "#### 1"
    assert problem({"input": "not True is", "target": "False"}, "row", "bbh")[1:] == ("The answer is False.", "False")
    with pytest.raises(InputError, match="row: a problem needs question and answer"):
        problem({"ask": "x"}, "row", "bbh")


def test_recorded_answers_right_wrong_without_answer_and_unscored(tmp_path: Path) -> None:
    path = str(write_rows(tmp_path / "gsm8k.jsonl", GSM8K))
    asks = [problem(row, "row", "gsm8k")[0] for row in GSM8K]
    said = write_rows(
        tmp_path / "said.jsonl",
        [{"prompt": asks[0], "answer": "#### 2"}, {"prompt": asks[1], "answer": "#### 5"}, {"prompt": asks[2], "answer": "I do not know"}],
    )
    rows = answered(settings(), open_subject(str(said)), "maths", Part(kind="answers", files=[path], task="gsm8k"), None)
    assert [row["values"]["accuracy"] for row in rows] == [1.0, 0.0, 0.0, None]
    assert [row["values"]["without_answer"] for row in rows] == [0.0, 0.0, 1.0, None]
    assert [row["read"] for row in rows] == ["2", "5", None, None] and {row["set"] for row in rows} == {"maths"}
    assert len({row["id"] for row in rows}) == 4
    shown = answered(settings(), open_subject(str(said)), "maths", Part(kind="answers", files=[path], task="gsm8k", shots=2), None)
    assert [row["prompt"] for row in shown] == asks[2:], "the examples are not asked"
    with pytest.raises(InputError, match="has 4 problems, of which 4 would be examples"):
        answered(settings(), open_subject(str(said)), "maths", Part(kind="answers", files=[path], task="gsm8k", shots=4), None)


def test_the_loss_of_text_is_the_plain_one(tiny_model: Path, tmp_path: Path, one_thread: None) -> None:
    subject = open_subject(str(tiny_model), "plain")
    assert isinstance(subject, LocalSubject)
    path = str(write_rows(tmp_path / "text.jsonl", TEXTS))
    rows = losses(settings(characters=20), subject, "text", Part(kind="loss", files=[path]), None)
    assert len(rows) == 2, "a blank document is none"
    for row, text in zip(rows, ("A first document, sh", "A second one."), strict=True):
        nats = -plain(subject, "<s>", text)  # a token a byte, after the begin token
        assert row["values"]["nats_token"] == pytest.approx(nats / len(text), abs=1e-4)
        assert row["values"]["bits_byte"] == pytest.approx(nats / len(text) / math.log(2), abs=1e-4)
    [token, byte] = of_corpus(rows, "text")
    assert token["value"] == pytest.approx(sum(row["nats"] for row in rows) / 33) and byte["direction"] == "lower"


def battery(tmp_path: Path) -> list[str]:
    files = {"arc": ARC, "mmlu": [MMLU[0], MMLU[2]], "gsm8k": GSM8K, "text": TEXTS}
    return [f"{name}={write_rows(tmp_path / f'{name}.jsonl', rows)}" for name, rows in files.items()]


def test_before_and_after(manners, tiny_model: Path, tmp_path: Path) -> None:
    words = [*battery(tmp_path), "shots=1", "answer_shots=1", "max_new_tokens=4", "format=plain"]
    for out, fmt in (("before", "format=plain"), ("after", "format=template")):
        done = manners("eval", "tax", *words[:-1], fmt, f"model={tiny_model}", f"out={tmp_path / out}")
        assert done.code == 0, done.stderr
        assert "svamp: left out, no file was named." in done.stderr
    rows, report = read_jsonl(tmp_path / "before" / "rows.jsonl"), read_json(tmp_path / "before" / "results.json")
    assert [row["set"] for row in rows] == ["arc"] * 3 + ["mmlu"] * 2 + ["gsm8k"] * 3 + ["text"] * 2
    assert {(found["name"], found.get("set")) for found in report["results"]} >= {
        ("accuracy_sum", "arc"),
        ("accuracy_sum", "mmlu"),
        ("accuracy", "gsm8k"),
        ("bits_byte", "text"),
        ("bits_byte_corpus", "text"),
    }
    done = manners("eval", "against", tmp_path / "before", tmp_path / "after", f"out={tmp_path / 'tax'}")
    assert done.code == 0, done.stderr
    found = read_json(tmp_path / "tax" / "results.json")
    text = next(row for row in found["results"] if row["name"] == "bits_byte")
    assert (text["value"], text["verdict"]) == (0.0, "no difference"), "the same weights; a format does not touch plain text"
    assert found["of"] == "tax" and {row["name"] for row in found["unpaired"]} == {"nats_token_corpus", "bits_byte_corpus"}


def test_a_file_of_answers_is_asked_what_it_can_answer(manners, tmp_path: Path) -> None:
    asks = [problem(row, "row", "gsm8k")[0] for row in GSM8K]
    said = write_rows(tmp_path / "said.jsonl", [{"prompt": text, "answer": "#### 6"} for text in asks])
    done = manners("eval", "tax", *battery(tmp_path), "answer_shots=0", f"model={said}", f"out={tmp_path / 'run'}")
    assert done.code == 0, done.stderr
    assert "arc: left out, it needs log-probabilities" in done.stderr
    assert [row["values"]["accuracy"] for row in read_jsonl(tmp_path / "run" / "rows.jsonl")] == [0, 0, 1, 0]


def test_a_battery_file(tmp_path: Path) -> None:
    path = tmp_path / "battery.yaml"
    path.write_text("arc: {files: a.jsonl, shots: 2}\nmine: {kind: answers, files: [b.jsonl], task: number}\ntext: c.jsonl\n")
    found = parts_of(settings(battery=str(path)))
    assert found["arc"] == Part(kind="choices", files=["a.jsonl"], task="arc", shots=2)
    assert found["mine"].task == "number" and found["text"].kind == "loss"
    for text, says in [
        ("arc: {files: a.jsonl, shot: 2}", "'shot' of the part 'arc' is wrong: extra inputs are not permitted. did you mean 'shots'"),
        ("mine: {files: a.jsonl}", "'kind' of the part 'mine' is wrong"),
        ("{}", "holds no part"),
    ]:
        path.write_text(text)
        with pytest.raises(InputError, match=says):
            parts_of(settings(battery=str(path)))
    with pytest.raises(InputError, match="a battery and 'arc' are both given"):
        parts_of(settings(battery=str(path), arc=["a.jsonl"]))
    with pytest.raises(InputError, match="nothing is asked"):
        parts_of(settings())


def test_bad_files_are_named(manners, tiny_model: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    other = write_rows(tmp_path / "other.jsonl", [{"ask": "x"}])
    blank = write_rows(tmp_path / "blank.jsonl", [{"text": " "}])
    wordy = write_rows(tmp_path / "wordy.jsonl", [{"question": "x", "answer": "many"}])
    for words, says in [
        ((f"text={empty}",), "is empty (0 bytes)"),
        ((f"text={other}",), "line 1: plain text needs a column 'text'"),
        ((f"text={blank}",), "no document holds any text"),
        ((f"arc={other}",), "arc wants question, choices"),
        ((f"svamp={wordy}", "answer_shots=0"), "a target is 'many', but a target of the task svamp is a number"),
    ]:
        assert says in manners("eval", "tax", *words, f"model={tiny_model}", f"out={tmp_path / 'run'}").error
