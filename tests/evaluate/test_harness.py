"""The adapter of the evaluation harness: its three requests without it, and a task with it where it is installed."""

from pathlib import Path
from typing import Any

import pytest

from manners.core.files import read_json, read_jsonl
from manners.core.records import Message, Prompt
from manners.evaluate import harness
from manners.evaluate.harness import Requests, before_any, measured, rows_of
from manners.evaluate.subject import LocalSubject, open_subject
from manners.model.draw import Sampling
from tests.evaluate.test_multiple_choice import plain, task_file


@pytest.fixture(scope="module")
def requests(tiny_model: Path) -> Requests:
    subject = open_subject(str(tiny_model), "plain")
    assert isinstance(subject, LocalSubject)
    return Requests(subject)


def test_log_likelihoods_are_the_plain_ones(requests: Requests, one_thread: None) -> None:
    pairs = [("Say it: ", "yes"), ("Say it:", " no"), ("One\n", "two")]
    assert [logp for logp, _ in requests.loglikelihood(pairs)] == pytest.approx(
        [plain(requests.subject, *pair) for pair in pairs], abs=1e-4
    )


def test_rolling_is_the_whole_text_after_the_begin_token(requests: Requests, one_thread: None) -> None:
    texts = ["A text.", "Another, longer text. " * 30]  # the second is longer than the 512 positions
    short, long = requests.rolling(texts)
    assert short == pytest.approx(plain(requests.subject, "<s>", texts[0]), abs=1e-4)
    ids = requests.scorer.tokenizer.encode(texts[1], add_special_tokens=False)
    assert len(ids) > 512
    first = requests.scorer.of_ids([([1], ids[:512])])[0].logp
    rest = requests.scorer.of_ids([(ids[len(ids) - 513 : 512], ids[512:])])[0].logp
    assert long == pytest.approx(first + rest, abs=1e-4)


def test_a_row_too_long_loses_its_beginning(requests: Requests, one_thread: None) -> None:
    [(logp, _)] = requests.loglikelihood([("x" * 600, "yz")])
    ids = requests.scorer.tokenizer.encode("x" * 600 + "yz", add_special_tokens=False)[-513:]
    assert logp == pytest.approx(requests.scorer.of_ids([(ids[:-2], ids[-2:])])[0].logp)


def test_greedy_generation_in_pieces_is_the_samplers_and_stops(
    requests: Requests, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    subject = requests.subject
    sampler: Any = subject.sampler
    sampler.packed = False
    ids = requests.scorer.tokenizer.encode("Tell me:", add_special_tokens=False)
    [[whole]] = sampler.sample_ids([ids], Sampling(temperature=0.0, max_new_tokens=24), stop_ids=frozenset({2}))
    text = requests.scorer.tokenizer.decode([token for token in whole.token_ids if token != 2], clean_up_tokenization_spaces=False)
    monkeypatch.setattr(harness, "GREEDY_PIECE", 5)
    way = {"until": [], "max_gen_toks": 24, "do_sample": False}
    assert requests.generate([("Tell me:", way)]) == [text]
    stop = text[6:8]
    assert requests.generate([("Tell me:", {**way, "until": [stop]}), ("Tell me:", way)]) == [before_any(text, [stop]), text]


def test_chats_are_in_the_subjects_format(requests: Requests) -> None:
    history = [{"role": "user", "content": "Hello."}]
    assert requests.subject.fmt is not None
    ids = requests.subject.fmt.prompt_ids(Prompt((Message("user", "Hello."),)))
    assert requests.chat(history, True) == requests.scorer.tokenizer.decode(ids)


def test_samples_become_rows_and_figures_results() -> None:
    sample = {
        "doc_id": 3,
        "doc_hash": "a" * 64,
        "filter": "none",
        "metrics": ["acc", "ppl"],
        "acc": 1.0,
        "ppl": [1, 2],
        "filtered_resps": ["x"],
    }
    [row] = rows_of("task", [sample, {**sample, "filter": "strict", "acc": 0.0}])
    assert row["values"] == {"acc": 1.0, "acc,strict": 0.0} and row["id"] == "a" * 16 + "-3"
    found = measured(
        {
            "results": {"task": {"alias": "task", "acc,none": 1.0, "acc_stderr,none": 0.1, "ppl,none": 9.0, "ppl_stderr,none": 1.0}},
            "samples": {"task": [sample]},
            "higher_is_better": {"task": {"acc": True, "ppl": False}},
            "versions": {"task": 1.0},
        }
    )
    [acc, ppl] = found.results
    assert (acc["name"], acc["value"], acc["direction"], acc["n"]) == ("acc", 1.0, "higher", 1)
    assert (ppl["name"], ppl["value"], ppl["direction"]) == ("ppl", 9.0, "lower") and ppl["low"] == pytest.approx(9 - 1.96, abs=1e-3)


def test_without_the_harness_a_sentence_says_so(manners, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "installed", lambda: False)
    said = manners("eval", "lm-eval", "tasks=arc_easy", f"model={tiny_model}", f"out={tmp_path / 'run'}").error
    assert said == "the evaluation harness is not installed: pip install 'manners[lm-eval]'."


@pytest.mark.skipif(not harness.installed(), reason="the extra lm-eval is not installed")
def test_a_task_by_the_harness_is_the_task_by_us(manners, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = task_file(tmp_path, metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}])
    monkeypatch.chdir(tmp_path)
    words = (f"model={tiny_model}", "format=plain")
    done = manners("eval", "lm-eval", "tiny", f"include={tmp_path}", *words, f"out={tmp_path / 'theirs'}")
    assert done.code == 0, done.stderr
    assert manners("eval", "choices", f"task={path}", *words, f"out={tmp_path / 'ours'}").code == 0
    theirs, ours = (read_jsonl(tmp_path / name / "rows.jsonl") for name in ("theirs", "ours"))
    assert [row["values"]["acc"] for row in theirs] == [row["values"]["accuracy_sum"] for row in ours]
    for mine, other in zip(ours, theirs, strict=True):
        assert [option["logp"] for option in mine["options"]] == pytest.approx([r[0] for r in other["responses"]], abs=1e-6)
    [found] = [r for r in read_json(tmp_path / "theirs" / "results.json")["results"] if r["name"] == "acc"]
    assert found["n"] == 3 and found["direction"] == "higher"
