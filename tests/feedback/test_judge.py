"""Judges: what is read of them, both orders, principles, panels, memory; on scripted judges, a tiny model and a played endpoint."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from manners.core.config import load_settings
from manners.core.errors import InputError
from manners.core.files import read_json, read_jsonl
from manners.core.records import Group, Message, Prompt, Response
from manners.data.formats import read
from manners.feedback.comparisons import Answered, Comparison, read_answers, read_comparisons
from manners.feedback.judge import Criterion, Judge, Manner, Opinion, clamped, of_panel, open_judge
from manners.feedback.judge_reward import JudgeReward
from manners.feedback.judge_settings import LabelSettings, RateSettings
from manners.feedback.judging import label, rate
from manners.feedback.rewards import identifying_reward, kind_of, reward_of
from manners.feedback.verdicts import read_letter, read_mark
from manners.feedback.voices import of_options
from manners.model.sampler import ScriptedSampler
from tests.conftest import write_rows

ITEMS = [
    Comparison(i, f"Name {what}.", good, bad)
    for i, (what, good, bad) in enumerate([("a river", "The Rhine.", "Paris."), ("a sea", "Baltic.", "No.")])
]


class Scored(ScriptedSampler):
    """A scripted judge with log-probabilities: a function of a prompt's text."""

    identity = "scored"

    def __init__(self, logprobs, script=()):
        super().__init__(script)
        self.logprobs, self.asked = logprobs, []

    def option_logprobs(self, prompts, options):
        self.asked += prompts
        return [self.logprobs(p) for p in prompts]


def judge(sampler: Any, folder: Path, **manner: Any) -> Judge:
    return open_judge("planted", Manner(**manner), folder, sampler=sampler)


def answer_of(text: str, letter: str) -> str:
    """The answer that a prompt shows under a letter."""
    return text.split(f"Answer {letter}:\n")[1].split("\n")[0]


def better(text: str, good: set[str]) -> str:
    return "A" if answer_of(text, "A") in good else "B"


def rows(path: Path, content: list[dict[str, Any]]) -> str:
    return str(write_rows(path, content))


def labelled(path: Path, sampler: Any, **settings: Any) -> dict[str, Any]:
    names = settings.get("judge", "planted")
    samplers = sampler if isinstance(sampler, dict) else {names: sampler}
    return label(LabelSettings(**{"judge": names, "out": str(path), **settings}), samplers)


# --- reading --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, letter",
    [
        *[("A", "A"), (" b) ", None), ("B.", "B"), ("**A**", "A"), ("[[B]]", "B"), ("(A)", "A"), ("The better answer is B.", "B")],
        *[("Answer A is better because B is wrong.", "A"), ("Verdict: B", "B"), ("A better reply is given in answer B.", "B")],
        *[("A and B are equally good.", "tie"), ("It is a tie.", "tie"), ("", None), ("Paris.", None), ("I prefer answer B", "B")],
        *[("[[A]] or [[B]]", None), ("C", None), ("As an AI", None), ("Because", None)],
    ],
)
def test_a_letter_is_read_from_words(text, letter):
    assert read_letter(text) == letter


def test_the_third_letter_is_a_tie_where_ties_are_allowed():
    assert read_letter("C", ties=True) == "tie" and read_letter("Answer: C", ties=True) == "tie"


@pytest.mark.parametrize(
    "text, mark",
    [
        ("4", 4.0),
        ("Mark: 3", 3.0),
        ("4/5", 4.0),
        ("2.5", 2.5),
        ("6", None),
        ("0", None),
        ("-3", None),
        ("N/A", "N"),
        ("n", "N"),
        ("", None),
        ("a4b", None),
    ],
)
def test_a_mark_is_read_from_words(text, mark):
    assert read_mark(text, 1, 5) == mark


def test_options_among_the_likeliest_tokens():
    assert of_options({" A": -0.5, "A": -2.0, "B": -1.0, "x": -3.0}, ("A", "B")) == {"A": -0.5, "B": -1.0}
    assert of_options({"A": -0.1, "x": -5.0}, ("A", "B")) == {"A": -0.1, "B": -5.0}
    assert of_options({"x": -0.1}, ("A", "B")) == {} and of_options(None, ("A", "B")) is None


# --- both orders ----------------------------------------------------------------------------------------------------------------


def test_the_worked_value_of_averaged_orders(tmp_path):
    """algorithms 9.7: log-probabilities (-0.2, -1.8), and (-0.3, -1.5) for the other answer where that is shown first."""
    says = lambda p: {"A": -0.2, "B": -1.8} if answer_of(p.messages[0].content, "A") == "The Rhine." else {"A": -0.3, "B": -1.5}
    with judge(Scored(says), tmp_path) as one:
        [opinion] = one.compare(ITEMS[:1])
    assert opinion.verdicts[0].share == pytest.approx(0.8320183851, abs=1e-10)
    assert opinion.verdicts[1].first == pytest.approx(0.7685247835, abs=1e-10)
    assert opinion.share == pytest.approx(0.5317468008, abs=1e-10)
    assert opinion.verdicts[0].heard.mass == pytest.approx(math.exp(-0.2) + math.exp(-1.8))
    assert opinion.consistent is False and opinion.first_shown == 1.0


def test_both_orders_cancel_a_judge_that_always_takes_the_first(tmp_path):
    with judge(ScriptedSampler(lambda p, i: "A"), tmp_path) as one:
        opinions = one.compare(ITEMS)
    assert [o.share for o in opinions] == [0.5, 0.5] and not any(o.consistent for o in opinions)
    assert {o.first_shown for o in opinions} == {1.0}
    with judge(ScriptedSampler(lambda p, i: "A"), tmp_path / "one", orders="given") as one:
        assert [o.share for o in one.compare(ITEMS)] == [1.0, 1.0]


def test_a_good_judge_is_consistent(tmp_path):
    good = {item.a for item in ITEMS}
    with judge(ScriptedSampler(lambda p, i: better(p.messages[0].content, good)), tmp_path) as one:
        opinions = one.compare(ITEMS)
    assert [o.share for o in opinions] == [1.0, 1.0] and all(o.consistent for o in opinions)


def test_ties_share_the_third_option(tmp_path):
    logps = {"A": math.log(0.5), "B": math.log(0.2), "C": math.log(0.2)}
    with judge(Scored(lambda p: logps), tmp_path, ties=True, orders="given") as one:
        [opinion] = one.compare(ITEMS[:1])
    assert opinion.share == pytest.approx((0.5 + 0.1) / 0.9)


def test_reasons_come_first_and_the_verdict_is_asked_in_their_light(tmp_path):
    sampler = Scored(lambda p: {"A": -1.0, "B": -2.0}, lambda p, i: "Both name something.")
    with judge(sampler, tmp_path, thoughts=True) as one:
        [opinion] = one.compare(ITEMS[:1])
    assert opinion.verdicts[0].reasons == "Both name something."
    assert [m.role for m in sampler.asked[0].messages] == ["user", "assistant", "user"]
    assert "Do not decide yet" in sampler.asked[0].messages[0].content and "Decide now" in sampler.asked[0].messages[2].content


def test_what_cannot_be_read_is_unscored_with_its_reason(tmp_path):
    with judge(ScriptedSampler(lambda p, i: "Hm." if "river" in p.messages[0].content else "A"), tmp_path) as one:
        opinions = one.compare(ITEMS)
    assert opinions[0].share is None and opinions[0].why == "no verdict in its words" and opinions[1].share == 0.5
    with judge(Scored(lambda p: {}), tmp_path / "absent") as one:
        assert one.compare(ITEMS)[0].why == "no option among its likeliest tokens"


def test_references_and_rubrics_stand_in_the_question(tmp_path):
    item = Comparison(0, "Name a river.", "Rhine.", "Paris.", reference="The Elbe.")
    sampler = ScriptedSampler(lambda p, i: "A")
    with judge(sampler, tmp_path) as one:
        one.compare([item], [Criterion("", "Rivers count. {{ 7 * 7 }}")], references=True)
    text = sampler.calls[0].prompts[0].messages[0].content
    assert "The Elbe." in text and "{{ 7 * 7 }}" in text and "49" not in text
    sampler = ScriptedSampler(lambda p, i: "A")
    with judge(sampler, tmp_path / "without") as one:
        one.compare([item])
    assert "The Elbe." not in sampler.calls[0].prompts[0].messages[0].content


def test_panels_and_clamps():
    assert of_panel([0.9, 0.6, 0.1], "mean") == pytest.approx(1.6 / 3) and of_panel([0.9, 0.6, 0.1], "majority") == pytest.approx(2 / 3)
    assert of_panel([None, 0.2], "mean") == 0.2 and of_panel([None], "majority") is None
    assert clamped(0.97, [0.4, 0.6]) == 0.6 and clamped(0.1, [0.4, 0.6]) == 0.4 and clamped(0.97, None) == 0.97


def test_an_opinion_with_one_order_missing_is_unscored():
    assert Opinion("x").share is None and Opinion("x").consistent is None


# --- ratings --------------------------------------------------------------------------------------------------------------------


def test_the_expected_mark(tmp_path):
    logps = {"1": math.log(0.1), "2": math.log(0.1), "3": math.log(0.1), "4": math.log(0.3), "5": math.log(0.2), "N": math.log(0.1)}
    with judge(Scored(lambda p: logps), tmp_path) as one:
        [marks] = one.rate([Answered(0, "Name a river.", "The Rhine.")], {"help": "Is it of use?"})
    assert marks["help"].value == pytest.approx((0.1 * (1 + 2 + 3) + 0.3 * 4 + 0.2 * 5) / 0.8)


def test_marks_that_do_not_apply_are_not_zeros(tmp_path):
    words = {"honesty": "N/A", "helpfulness": "4", "truthfulness": "very good", "instruction following": "9"}
    says = lambda p, i: next(said for name, said in words.items() if f"What counts is {name}" in p.messages[0].content)
    data = {
        "one": rows(tmp_path / "1.jsonl", [{"prompt": "Hi", "answer": "Ho"}]),
        "two": rows(tmp_path / "2.jsonl", [{"prompt": "Hi", "answer": "Hu"}]),
    }
    report = rate(RateSettings(judge=["planted"], data=data, out=str(tmp_path / "out")), {"planted": ScriptedSampler(says)})
    [row] = read_jsonl(tmp_path / "out" / "rated.jsonl")
    assert [a["model"] for a in row["responses"]] == ["one", "two"]
    assert row["responses"][0]["aspects"] == {"instruction_following": None, "honesty": "N/A", "truthfulness": None, "helpfulness": 4.0}
    assert report["unscored"] == {"no verdict in its words": 4, "does not apply": 2} and report["means"]["one"] == {"helpfulness": 4.0}


def test_a_judge_as_a_reward(tmp_path):
    says = lambda p, i: {"Good.": "5", "Bad.": "1", "Fair.": "3"}.get(
        p.messages[0].content.split("The answer:\n")[1].split("\n")[0], "what?"
    )
    reward = JudgeReward("planted-model", ScriptedSampler(says))
    groups = [Group(Prompt.user("Hi"), [Response.answer(t) for t in ("Good.", "Bad.", "Fair.", "Odd.")], row=0)]
    assert reward(groups) == [[1.0, -1.0, 0.0, 0.0]] and reward.unscored == 1
    assert reward(groups) == [[1.0, -1.0, 0.0, 0.0]] and reward.judge.recorded.counts.misses == 4


def test_what_names_a_judge_as_a_reward(tmp_path, tiny_model):
    assert kind_of("judge:smollm2-135m-instruct") == ("judge", "smollm2-135m-instruct")
    assert kind_of("judge:http://localhost:1/v1#m")[0] == "judge"
    for name in ("judge", "judge:"):
        with pytest.raises(InputError, match="names no model; write judge:MODEL"):
            reward_of(name)
    content = tmp_path / "judge.yaml"
    content.write_text(f"judge: {tiny_model}\nscale: [1, 3]\nrubric: Short answers are better than long ones.\n")
    reward = reward_of(f"0.5*judge:{content} + 0.1*length")
    [[score]] = reward([Group(Prompt.user("Hi"), [Response.answer("Good.")], row=0)])
    assert -0.5 <= score - 0.1 <= 0.5
    assert identifying_reward(f"judge:{content}") != identifying_reward(f"judge:{tiny_model}")


# --- labels ---------------------------------------------------------------------------------------------------------------------


def test_labels_become_votes_and_soft_pairs(tmp_path):
    data = rows(
        tmp_path / "d.jsonl",
        [{"prompt": i.prompt, "a": i.b, "b": i.a, "cluster": "names"} for i in ITEMS] + [{"prompt": "x", "a": "y", "b": "y"}],
    )
    good = {item.a for item in ITEMS}
    likes = lambda p: {"A": -0.1, "B": -3.0} if better(p.messages[0].content, good) == "A" else {"A": -2.5, "B": -0.2}
    report = labelled(tmp_path / "out", Scored(likes), data=data, clamp=[0.4, 0.6])
    pairs, votes = (read_jsonl(tmp_path / "out" / f"{name}.jsonl") for name in ("pairs", "votes"))
    assert [p["chosen"] for p in pairs] == [i.a for i in ITEMS] and {p["probability"] for p in pairs} == {0.6}
    assert [v["label"] for v in votes] == ["b", "b"] and votes[0]["probability_a"] == pytest.approx(
        1 - (1 / (1 + math.exp(-2.9)) + 1 / (1 + math.exp(-2.3))) / 2
    )
    assert report["pairs"] == 2 and report["dropped"] == {"both answers are the same text": 1}
    assert {g.probability for g in read(str(tmp_path / "out" / "pairs.jsonl")).groups} == {0.6}
    assert report["judges"]["planted"]["read"] == {"logprob": 4} and report["judges"]["planted"]["consistent"] == 1.0


def test_unreadable_answers_are_counted_and_make_no_pair(tmp_path):
    data = rows(tmp_path / "d.jsonl", [{"prompt": i.prompt, "a": i.a, "b": i.b} for i in ITEMS])
    says = lambda p, i: "Who knows?" if "river" in p.messages[0].content else better(p.messages[0].content, {"Baltic."})
    report = labelled(tmp_path / "out", ScriptedSampler(says), data=data)
    assert (report["pairs"], report["unscored"], report["ties"]) == (1, 1, 0)
    assert report["judges"]["planted"]["unscored"] == {"no verdict in its words": 1}
    votes = read_jsonl(tmp_path / "out" / "votes.jsonl")
    assert votes[0]["label"] is None and votes[0]["unscored"] == "no verdict in its words" and votes[0]["orders"][0]["said"] == "Who knows?"
    with pytest.raises(InputError, match="of 2 comparisons 2 have no verdict and 0 are ties, so there is no pair"):
        labelled(tmp_path / "none", ScriptedSampler(lambda p, i: "?"), data=data)


def test_a_panel_decides_by_majority(tmp_path):
    data = rows(tmp_path / "d.jsonl", [{"prompt": i.prompt, "a": i.a, "b": i.b} for i in ITEMS])
    good = {item.a for item in ITEMS}
    right = lambda p, i: better(p.messages[0].content, good)
    wrong = lambda p, i: {"A": "B", "B": "A"}[right(p, i)]
    panel = {"one": ScriptedSampler(right), "two": ScriptedSampler(wrong), "three": ScriptedSampler(right)}
    report = labelled(tmp_path / "out", panel, data=data, judge=list(panel), panel="majority")
    pairs = read_jsonl(tmp_path / "out" / "pairs.jsonl")
    assert [p["chosen"] for p in pairs] == [i.a for i in ITEMS] and pairs[0]["probability"] == pytest.approx(2 / 3)
    assert pairs[0]["origin"]["judges"] == {"one": 1.0, "two": 0.0, "three": 1.0} and report["judges"].keys() == panel.keys()
    assert Counter(v["annotator"] for v in read_jsonl(tmp_path / "out" / "votes.jsonl")) == {"one": 2, "two": 2, "three": 2}
    with pytest.raises(InputError, match="names the judge 'one' twice"):
        labelled(tmp_path / "twice", panel, data=data, judge=["one", "one"])


def test_a_principle_is_drawn_for_each_comparison(tmp_path):
    data = rows(tmp_path / "d.jsonl", [{"prompt": f"Name river {i}.", "a": "Rhine.", "b": "Paris."} for i in range(40)])
    sampler = ScriptedSampler(lambda p, i: better(p.messages[0].content, {"Rhine."}))
    report = labelled(tmp_path / "out", sampler, data=data, principles="starter:principles.yaml")
    assert len(report["principles"]) > 6 and sum(report["principles"].values()) == 40
    asked = {p.messages[0].content.split("\n")[2] for call in sampler.calls for p in call.prompts}
    assert all(text.startswith("The better answer is the one that") for text in asked) and len(asked) == len(report["principles"])
    drawn = [p["origin"]["principle"] for p in read_jsonl(tmp_path / "out" / "pairs.jsonl")]
    labelled(tmp_path / "again", ScriptedSampler(sampler.script), data=data, principles="starter:principles.yaml")
    assert [p["origin"]["principle"] for p in read_jsonl(tmp_path / "again" / "pairs.jsonl")] == drawn
    own = tmp_path / "own.yaml"
    own.write_text("principles:\n  - name: kind\n    critique: Is it kind?\n    revision: Make it kind.\n")
    sampler = ScriptedSampler(sampler.script)
    labelled(tmp_path / "own", sampler, data=data, principles=str(own))
    assert "Is it kind? The better answer is the one that does better in this." in sampler.calls[0].prompts[0].messages[0].content


def test_what_can_be_chosen_and_which_pairs_are_made(tmp_path):
    given = [{"text": "Rhine.", "finish_reason": "length"}, {"text": "Paris."}, {"text": "Elbe."}, {"text": ""}]
    data = rows(tmp_path / "d.jsonl", [{"row": 0, "messages": [{"role": "user", "content": "Name a river."}], "responses": given}])
    order = ["Rhine.", "Elbe.", "Paris."]
    says = lambda p, i: min("AB", key=lambda letter: order.index(answer_of(p.messages[0].content, letter)))
    report = labelled(tmp_path / "out", ScriptedSampler(says), data=data, pairs="all")
    [pair] = read_jsonl(tmp_path / "out" / "pairs.jsonl")
    assert (pair["chosen"], pair["rejected"], pair["origin"]["answers"]) == ("Elbe.", "Paris.", [1, 2])
    assert report["comparisons"] == 3 and report["dropped"] == {"the better answer was cut by the length limit": 2}
    assert len(read_comparisons(data)[0]) == 1 and len(read_comparisons(data, per_prompt="all")[0]) == 3


def test_a_run_is_made_again_from_its_answers_byte_by_byte(tmp_path):
    data = rows(tmp_path / "d.jsonl", [{"prompt": i.prompt, "a": i.a, "b": i.b} for i in ITEMS])
    sampler = ScriptedSampler(lambda p, i: better(p.messages[0].content, {"Rhine.", "The Rhine.", "Baltic."}))
    labelled(tmp_path / "one", sampler, data=data)
    (tmp_path / "two" / "answers").mkdir(parents=True)
    (tmp_path / "two" / "settings.json").write_text((tmp_path / "one" / "settings.json").read_text())
    (tmp_path / "two" / "answers" / "answers.jsonl").write_bytes((tmp_path / "one" / "answers" / "answers.jsonl").read_bytes())
    labelled(tmp_path / "two", ScriptedSampler([]), data=data)
    for name in ("votes.jsonl", "pairs.jsonl", "judge.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert read_json(tmp_path / "two" / "manifest.json")["cost"]["planted"]["misses"] == 0


# --- endpoints and models -------------------------------------------------------------------------------------------------------


def tops(**logps: float):
    content = [{"token": "A", "logprob": -0.2, "top_logprobs": [{"token": t, "logprob": p} for t, p in logps.items()]}]
    from tests.endpoint import completion

    return lambda body: completion(body, "A", logprobs={"content": content})


def test_an_endpoint_judges_by_log_probabilities_and_is_asked_once(tmp_path, played, manners):
    data = rows(tmp_path / "d.jsonl", [{"prompt": i.prompt, "a": i.a, "b": i.b} for i in ITEMS])
    endpoint = played(503, tops(A=-0.2, B=-1.8))
    words = ("judge", "label", f"data={data}", f"judge={endpoint.name}", f"out={tmp_path / 'out'}", "orders=given", "per_minute=60000")
    done = manners(*words)
    assert done.code == 0, done.stderr
    pairs = read_jsonl(tmp_path / "out" / "pairs.jsonl")
    assert [p["probability"] for p in pairs] == [0.832018385, 0.832018385]
    assert endpoint.asked[-1]["top_logprobs"] == 20 and endpoint.asked[-1]["max_tokens"] == 1 and len(endpoint.asked) == 3
    endpoint.close()
    (tmp_path / "out" / "manifest.json").unlink()
    assert manners(*words).code == 0 and read_jsonl(tmp_path / "out" / "pairs.jsonl") == pairs


def test_an_endpoint_without_log_probabilities_is_named(tmp_path, played, manners):
    data = rows(tmp_path / "d.jsonl", [{"prompt": i.prompt, "a": i.a, "b": i.b} for i in ITEMS])
    endpoint = played(lambda body: better(body["messages"][-1]["content"], {"The Rhine.", "Baltic."}))
    words = ("judge", "label", f"data={data}", f"judge={endpoint.name}")
    error = manners(*words, f"out={tmp_path / 'no'}", "verdict=logprob").error
    assert endpoint.name in error and "gives no log-probabilities of its first token; verdict=text (or auto) reads its words" in error
    done = manners(*words, f"out={tmp_path / 'auto'}")
    assert done.code == 0 and read_json(tmp_path / "auto" / "judge.json")["judges"][endpoint.name]["read"] == {"text": 4}


def test_an_endpoint_that_refuses_is_named(tmp_path, played, manners):
    data = rows(tmp_path / "d.jsonl", [{"prompt": i.prompt, "a": i.a, "b": i.b} for i in ITEMS])
    words = ("judge", "label", f"data={data}", f"out={tmp_path / 'out'}")
    error = manners(*words, f"judge={played(401).name}").error
    assert "asks for a key (401" in error and "OPENAI_API_KEY" in error
    assert "could not be asked in 2 tries" in manners(*words, f"judge={played(500).name}", "tries=2", f"out={tmp_path / 'o2'}").error


def test_a_model_judges_by_the_options_next_token(tmp_path, tiny_model):
    with open_judge(str(tiny_model), Manner(verdict="logprob"), tmp_path / "answers", fmt="chatml") as one:
        first = one.compare(ITEMS)
        loaded = one.recorded.sampler
    assert all(0 < o.share < 1 for o in first) and all(0 < v.heard.mass < 1 for o in first for v in o.verdicts)
    import torch
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(str(tiny_model)).eval()

    text = one.templates.filled(
        "compare",
        {
            "criterion": "",
            "conversation": ITEMS[0].prompt,
            "ties": False,
            "first": ITEMS[0].a,
            "second": ITEMS[0].b,
            "reference": "",
            "thoughts": False,
        },
    )
    ids = loaded.fmt.prompt_ids(Prompt((Message("user", text),)))
    with torch.no_grad():
        logps = torch.log_softmax(plain(torch.tensor([ids])).logits[0, -1].double(), -1)
    a, b = (logps[loaded.tokenizer.encode(letter, add_special_tokens=False)[-1]].item() for letter in "AB")
    assert first[0].verdicts[0].first == pytest.approx(1 / (1 + math.exp(b - a)), abs=1e-5)
    with open_judge(str(tiny_model), Manner(verdict="logprob"), tmp_path / "answers", fmt="chatml") as again:
        assert [o.share for o in again.compare(ITEMS)] == [o.share for o in first]
        assert "loaded" not in again.recorded.sampler.__dict__ and again.recorded.counts.misses == 0


# --- files ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row, why",
    [
        ({"prompt": "x", "a": "y"}, "line 1: there are no two answers; a judge compares a and b"),
        ({"a": "y", "b": "z"}, "line 1: there is no prompt"),
        ({"prompt": "x", "a": 3, "b": "z"}, "line 1: 'a' must be text, and is a int"),
        ({"prompt": "x", "a": "", "b": "z"}, r"holds no two answers to compare: an answer is empty \(1\)"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path, row, why):
    with pytest.raises(InputError, match=why):
        read_comparisons(rows(tmp_path / "d.jsonl", [row]))


def test_labels_of_people_in_their_shapes(tmp_path):
    def read_labels(row):
        return [c.label for c in read_comparisons(rows(tmp_path / "d.jsonl", row))[0]]

    panda = [
        {"instruction": "x", "response1": "y", "response2": "z", "annotator1": a, "annotator2": b, "annotator3": c}
        for a, b, c in [(1, 1, 2), (2, 0, 1), (0, 0, 2)]
    ]
    assert read_labels(panda) == ["a", None, "tie"]
    assert read_labels([{"prompt": "x", "response 1": "y", "response 2": "z", "label": n} for n in (0, 1, 2)]) == ["a", "b", "tie"]
    assert read_labels([{"input": "x", "output_1": "y", "output_2": "z", "label": n} for n in (1, 2)]) == ["a", "b"]
    turned = read_comparisons(rows(tmp_path / "d.jsonl", [{"prompt": "x", "chosen": f"y{i}", "rejected": "z"} for i in range(20)]))[0]
    assert {c.label for c in turned} == {"a", "b"} and all((c.a if c.label == "a" else c.b).startswith("y") for c in turned)


def test_answers_of_models_are_joined_by_prompt(tmp_path):
    one = rows(tmp_path / "1.jsonl", [{"prompt": p, "answer": f"{p}1"} for p in "ab"])
    two = rows(
        tmp_path / "2.jsonl",
        [{"messages": [{"role": "user", "content": p}], "responses": [{"text": f"{p}2", "finish_reason": "length"}]} for p in "bc"],
    )
    found = list(read_answers({"one": one, "two": two}))
    assert [[a.text for a in answers] for _, answers in found] == [["a1"], ["b1", "b2"]] and found[1][1][1].cut
    with pytest.raises(InputError, match="have no prompt in common"):
        list(read_answers({"one": one, "two": rows(tmp_path / "3.jsonl", [{"prompt": "q", "answer": "r"}])}))


def test_settings_that_do_not_go_together(tmp_path):
    data = rows(tmp_path / "d.jsonl", [{"prompt": "x", "a": "y", "b": "z"}])
    made = lambda **s: labelled(tmp_path / "out", ScriptedSampler([]), data=data, **s)
    with pytest.raises(InputError, match="must be two probabilities around one half"):
        made(clamp=[0.6, 0.9])
    with pytest.raises(InputError, match="principles= and rubric= both"):
        made(principles="starter:principles.yaml", rubric="Be brief and true.")
    with pytest.raises(InputError, match="is no file, and a rubric of one word"):
        made(rubric="rubrik.txt")
    with pytest.raises(InputError, match="no aspect 'honestly'; did you mean 'honesty'"):
        rate(load_settings(RateSettings, None, [f"data={data}", f"out={tmp_path / 'r'}", "judge=x", "aspects=[honestly]"]))
    assert not (tmp_path / "out").exists()
