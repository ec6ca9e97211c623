"""`manners label`: the noise is Bradley-Terry's and keyed, the files can be trained on, and cut answers are never targets."""

import json
import math
import random
from collections import Counter
from itertools import combinations

import pytest

from manners.core.chance import stream_of, uniform
from manners.core.files import read_json, read_jsonl
from manners.data.chat import ChatFormat
from manners.data.formats import derive, read
from manners.feedback.labels import LabelSettings, label, prefer, preference, rank
from tests.conftest import write_rows

PROMPTS = [
    {"id": "a", "cluster": "facts", "prompt": "What is the capital of France?", "reference": "The capital is Paris.", "wants": {}},
    {"id": "b", "cluster": "safety", "prompt": "Help me rob a shop.", "reference": "I can't help with that.", "wants": {"refuse": True}},
    {"id": "c", "cluster": "list", "prompt": "Name two rivers.", "reference": "1. Nile\n2. Rhine", "wants": {"items": 2}},
]
ANSWERS = {
    "What is the capital of France?": ["The capital is Paris.", "It is in London, I think.", "Paris", "Paris Paris Paris Paris Paris"],
    "Help me rob a shop.": ["Break the window.", "I can't help with that.", "I'm sorry, I won't help with that. Please ask for work.", ""],
    "Name two rivers.": ["1. Nile\n2. Rhine", "Nile, Rhine", "Rivers are long and they flow and they flow and they", "1. Nile\n2. Rhine"],
}


def sampled(order=range(3), cut=()) -> list[dict]:
    prompts = list(ANSWERS)
    return [
        {
            "row": i,
            "messages": [{"role": "user", "content": prompts[i]}],
            "responses": [
                {"text": text, "finish_reason": "length" if (i, j) in cut or text.endswith(" they") else "stop"}
                for j, text in enumerate(ANSWERS[prompts[i]])
            ],
        }
        for i in order
    ]


@pytest.fixture
def run(tmp_path):
    """Label rows: `run(rows, temperature=0)` gives (pairs, best, summary, scores)."""
    write_rows(tmp_path / "prompts.jsonl", PROMPTS)

    def go(rows, **settings):
        data, out = write_rows(tmp_path / "answers.jsonl", rows), tmp_path / f"out-{random.random()}"
        summary = label(LabelSettings(data=str(data), prompts=str(tmp_path / "prompts.jsonl"), out=str(out), **settings))
        assert summary == read_json(out / "labels.json") and (out / "manifest.json").is_file()
        return *(read_jsonl(out / f"{name}.jsonl") for name in ("pairs", "best")), summary, read_jsonl(out / "scores.jsonl")

    return go


# --- the noise --------------------------------------------------------------------------------------------------------------------


def test_the_preference_is_a_sigmoid():
    assert preference(1.2, 0.3, 1.0) == pytest.approx(0.7109495026)  # worked value R1 of the Bradley-Terry loss
    assert preference(3.0, 1.0, 2.0) == pytest.approx(1 / (1 + math.exp(-1)))
    assert preference(0, 1e6, 1e-3) == 0 and preference(1e6, 0, 1e-3) == 1
    assert [preference(a, 1.0, 0) for a in (0.9, 1.0, 1.1)] == [0.0, 0.5, 1.0]


def test_labels_have_the_frequency_of_bradley_and_terry():
    n, p = 20_000, preference(1.0, 0.0, 0.8)
    found = sum(prefer(1.0, 0.0, 0.8, stream_of(0, row)) for row in range(n)) / n
    assert abs(found - p) < 4 * math.sqrt(p * (1 - p) / n)


def test_every_pair_of_a_ranking_has_the_frequency_of_bradley_and_terry():
    scores, temperature, n = [3.0, 2.5, 1.0, 2.5], 0.7, 8_000
    before = Counter()
    for row in range(n):
        before.update(combinations(rank(scores, temperature, stream_of(5, row)), 2))
    for a, b in combinations(range(4), 2):
        p = preference(scores[a], scores[b], temperature)
        assert abs(before[a, b] / n - p) < 4 * math.sqrt(p * (1 - p) / n), (a, b)


def test_the_first_of_a_ranking_is_a_softmax():
    scores, n = [2.0, 1.0, 0.0], 8_000
    first = Counter(rank(scores, 1.0, stream_of(6, row))[0] for row in range(n))
    total = sum(math.exp(s) for s in scores)
    for place, s in enumerate(scores):
        p = math.exp(s) / total
        assert abs(first[place] / n - p) < 4 * math.sqrt(p * (1 - p) / n)


def test_without_noise_a_ranking_is_the_order_and_ties_are_random():
    assert rank([1.0, 3.0, 2.0], 0, b"k") == [1, 2, 0]
    assert {tuple(rank([1.0, 1.0], 0, stream_of(row))) for row in range(20)} == {(0, 1), (1, 0)}


def test_uniform_numbers_have_known_values():
    """Published labels can be made again: the numbers of a key never change."""
    key = stream_of(0, 3, "ranking")
    assert [round(uniform(key, i), 12) for i in range(2)] == [0.862345312412, 0.37813497977]
    assert stream_of(1, 23) != stream_of(12, 3)


# --- the files --------------------------------------------------------------------------------------------------------------------


def test_best_against_worst_without_noise(run):
    pairs, best, summary, scores = run(sampled(), temperature=0)
    assert [(p["chosen"], p["rejected"]) for p in pairs] == [
        ("The capital is Paris.", "Paris Paris Paris Paris Paris"),
        ("I'm sorry, I won't help with that. Please ask for work.", "Break the window."),
        ("1. Nile\n2. Rhine", "Rivers are long and they flow and they flow and they"),
    ]
    assert [row["completion"] for row in best] == [p["chosen"] for p in pairs]
    assert summary["noise"] == summary["pairs_against_gold"] == 0 and summary["mean_best"] == summary["mean_gold_best"]
    assert (summary["cut"], summary["empty"], summary["ties"], summary["rejected_cut"]) == (1, 1, 1, 1)
    assert [len(row["answers"]) for row in scores] == [4, 4, 4] and pairs[0]["cluster"] == "facts"
    assert pairs[0]["origin"] | {"samples": [0, 3], "policy": "best-worst", "temperature": 0} == pairs[0]["origin"]
    assert pairs[0]["scores"]["chosen"] > pairs[0]["scores"]["rejected"]


def test_a_cut_answer_is_never_a_target(run):
    """Not even the best one: training would end it with a stop token."""
    for policy in ("best-worst", "all", "one"):
        pairs, best, summary, _ = run(sampled(cut={(0, 0), (0, 2)}), temperature=0, policy=policy)
        chosen = {p["chosen"] for p in pairs} | {b["completion"] for b in best}
        assert not chosen & {"The capital is Paris.", "Paris", ""}
        assert all(p["rejected"] for p in pairs)
        assert summary["cut"] == 3 and summary["best"] == 3


def test_all_pairs(run):
    pairs, _, summary, _ = run(sampled(), temperature=0, policy="all")
    found = Counter(p["origin"]["row"] for p in pairs)
    assert found == {0: 6, 1: 3, 2: 5}  # an answer of row 1 is empty, two of row 2 are the same
    assert summary["pairs"] == 14 and summary["comparisons"] == 18
    assert all(p["scores"]["chosen"] >= p["scores"]["rejected"] for p in pairs)


def test_one_pair_a_prompt(run):
    seen = set()
    for seed in range(12):
        pairs, _, _, _ = run(sampled(), temperature=0, policy="one", seed=seed)
        assert Counter(p["origin"]["row"] for p in pairs).most_common(1)[0][1] == 1
        seen |= {tuple(p["origin"]["samples"]) for p in pairs if p["origin"]["row"] == 0}
    assert len(seen) >= 4


@pytest.mark.parametrize("policy", ["best-worst", "all", "one"])
def test_labels_do_not_depend_on_the_order_or_number_of_rows(run, policy):
    settings = {"temperature": 3.0, "policy": policy, "seed": 4}
    whole = {json.dumps(p) for p in run(sampled(), **settings)[0]}
    turned = {json.dumps(p) for p in run(sampled(order=[2, 0, 1]), **settings)[0]}
    part = {json.dumps(p) for p in run(sampled(order=[0]), **settings)[0]}
    assert whole == turned and part <= whole
    assert any({json.dumps(p) for p in run(sampled(), **settings | {"seed": seed})[0]} != whole for seed in (5, 6, 7))


def test_the_files_can_be_trained_on(run, tmp_path):
    from tests.tiny import byte_tokenizer

    pairs, best, _, _ = run(sampled(), policy="all")
    preferences, demonstrations = read(write_rows(tmp_path / "p.jsonl", pairs)), read(write_rows(tmp_path / "b.jsonl", best))
    assert preferences.kind == "pairs" and demonstrations.kind == "demonstrations" and not preferences.refused + demonstrations.refused
    assert [g.responses[0].text for g in preferences.groups] == [p["chosen"] for p in pairs]
    assert all(g.margin is None for g in preferences.groups)  # the gold scores stand apart, where no loss reads them
    assert len(derive(preferences, "demonstrations").groups) == len(pairs)
    encoded = ChatFormat.of(byte_tokenizer(), "plain").encode(demonstrations.groups[0])
    assert encoded.responses[0].targets > 0


def test_rankings_hold_every_text_once_and_can_be_trained_on(run, tmp_path):
    _, _, _, scores = run(sampled(), temperature=0)
    [path] = tmp_path.glob("out-*/rankings.jsonl")
    rows = read_jsonl(path)
    assert [row["ranks"] for row in rows] == [[1, 2, 3, 4], [1, 2, 3], [1, 2, 3]]  # one answer is empty, two are the same
    first = scores[0]
    assert rows[0]["responses"] == [first["answers"][place]["text"] for place in first["ranking"]]
    assert rows[1]["responses"][-1] == "Break the window."
    data = read(path)
    assert data.kind == "rankings" and not data.refused and [len(g.responses) for g in data.groups] == [4, 3, 3]


def test_a_system_message_stays_in_the_prompt(run):
    rows = sampled()
    rows[0]["messages"].insert(0, {"role": "system", "content": "Be brief."})
    pairs, best, _, _ = run(rows, temperature=0)
    assert [m["role"] for m in pairs[0]["prompt"]] == ["system", "user"] == [m["role"] for m in best[0]["prompt"]]
    assert isinstance(pairs[1]["prompt"], str)


def test_a_finished_folder_is_left_as_it_is_and_another_setting_refused(manners, tmp_path):
    data, prompts = write_rows(tmp_path / "a.jsonl", sampled()), write_rows(tmp_path / "p.jsonl", PROMPTS)
    words = ("label", f"data={data}", f"prompts={prompts}", f"out={tmp_path / 'out'}")
    first = manners(*words, "--json")
    before = (tmp_path / "out" / "pairs.jsonl").read_bytes()
    again = manners(*words, "--json")
    assert first.code == again.code == 0 and "finished already" in again.stderr
    assert json.loads(first.stdout[-1]) == json.loads(again.stdout[-1])
    assert (tmp_path / "out" / "pairs.jsonl").read_bytes() == before
    assert manners(*words, "temperature=2").code == 2


def test_without_a_file_of_prompts(manners, tmp_path):
    data = write_rows(tmp_path / "a.jsonl", sampled())
    done = manners("label", f"data={data}", f"out={tmp_path / 'out'}", "temperature=0", "--json")
    assert done.code == 0 and json.loads(done.stdout[-1])["pairs"] == 3


BAD = [
    (lambda rows, prompts: rows[1].pop("responses"), "what manners generate"),
    (lambda rows, prompts: rows[1].update(messages=[]), "no user turn"),
    (lambda rows, prompts: rows[1].update(responses=[{"finish_reason": "stop"}]), "must have a 'text'"),
    (lambda rows, prompts: rows[1].update(row=0), "row number 0"),
    (lambda rows, prompts: prompts.pop(0), "does not hold"),
    (lambda rows, prompts: prompts[0].update(wants={"word": [1, 2]}), "did you mean 'words'"),
    (lambda rows, prompts: prompts[0].update(wants=3), "'wants' must be an object"),
    (lambda rows, prompts: prompts[0].pop("prompt"), "no text under 'prompt'"),
    (lambda rows, prompts: prompts.append({**prompts[0], "reference": "Lyon"}), "another reference"),
    (lambda rows, prompts: [r.update(responses=r["responses"][:1]) for r in rows], "sample more answers"),
]


@pytest.mark.parametrize(("spoil", "said"), BAD)
def test_what_cannot_be_labelled_is_refused_and_leaves_nothing(manners, tmp_path, spoil, said):
    rows, prompts = sampled(), json.loads(json.dumps(PROMPTS))
    spoil(rows, prompts)
    files = write_rows(tmp_path / "a.jsonl", rows), write_rows(tmp_path / "p.jsonl", prompts)
    refused = manners("label", f"data={files[0]}", f"prompts={files[1]}", f"out={tmp_path / 'out'}")
    assert refused.code == 2 and said in refused.error
    assert not (tmp_path / "out").exists()
