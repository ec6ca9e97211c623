"""Each way of writing, with a scripted model."""

from pathlib import Path

import pytest

from manners.core.errors import InputError
from manners.core.records import Message, Prompt
from manners.data.writers import constitution, evolve, filters, rewrite, safety, self_instruct
from manners.data.writers.constraints import CHECKS, Constraint, draw, keeps
from manners.data.writers.desk import CUT, EMPTY, TOO_LONG, Desk, Templates
from manners.data.writers.seeds import Seed, read_seeds
from manners.feedback import ifeval
from manners.feedback.checkers import refuses
from manners.model.draw import Sampling
from manners.model.sampler import ScriptedSampler
from tests.conftest import write_rows


def desk(script, **options) -> Desk:
    return Desk(ScriptedSampler(script), "scripted", Sampling(temperature=0.7), **options)


def last(prompt: Prompt) -> str:
    return prompt.messages[-1].content


def seeds(tmp_path: Path, *rows: dict) -> list[Seed]:
    return read_seeds(str(write_rows(tmp_path / "seeds.jsonl", rows)))[0]


def asked(tmp_path: Path, *texts: str) -> list[Seed]:
    return seeds(tmp_path, *({"prompt": text, "cluster": "facts", "license": "CC0"} for text in texts))


def counts(step) -> dict[str, int]:
    return dict(step.dropped)


# --- the desk -----------------------------------------------------------------------------------------------------------------------


def test_a_desk_fills_templates_and_says_what_it_asked():
    scripted = ScriptedSampler(lambda prompt, sample: f" {last(prompt)[-9:]} ")
    writer = Desk(scripted, "m", Sampling(), fits=lambda prompt, new: "{{ 7 }}" in last(prompt) or "long" not in last(prompt))
    rows = [{"instruction": "Name {{ 7 }} ||| a long"}, {"instruction": ""}, {"instruction": "a long one"}]
    replies = writer.ask("evolve_broaden", rows, [5, 6, 7])
    assert [r.fault for r in replies] == [None, EMPTY, TOO_LONG] and "Name {{ 7 }} ||| a long" in replies[0].prompt
    assert replies[0].asked["template"] == "evolve_broaden" and replies[0].text == "nswer it."
    (call,) = scripted.calls
    assert call.rows == (5,) and call.sampling.stage == "evolve_broaden"
    assert [s["after"] for s in [writer.step("x", ("a", "b")).report()]] == [
        {"a": {"dropped": 0, "left": 0}, "b": {"dropped": 0, "left": 0}}
    ]


def test_a_tally_is_a_yield_after_each_rule():
    dropped = []
    step = Desk(ScriptedSampler([]), "m", Sampling(), dropped=dropped.append).step("things", ("a", "b"))
    assert [step.keeps(why, {"n": n}) for n, why in enumerate([None, "b", "a", "b", None])] == [True, False, False, False, True]
    assert step.report() == {
        "step": "things",
        "seen": 5,
        "kept": 2,
        "after": {"a": {"dropped": 1, "left": 4}, "b": {"dropped": 2, "left": 2}},
    }
    assert dropped[0] == {"step": "things", "why": "b", "n": 1}
    with pytest.raises(AssertionError, match="no rule 'c'"):
        step.keeps("c", {})


def test_templates_of_ones_own(tmp_path: Path):
    for name in Templates().shipped:
        assert Templates()[name].fields, name
    (tmp_path / "classify.jinja").write_text("{{ instruction }}?")
    assert Templates(tmp_path)["classify"].render({"instruction": "x"}) == "x?"
    (tmp_path / "classify.jinja").write_text("{{ open('x') }")
    with pytest.raises(InputError, match=r"classify.jinja is no template that can be used: line 1"):
        Templates(tmp_path)["classify"]
    (tmp_path / "clasify.jinja").write_text("x")
    with pytest.raises(InputError, match=r"stands in for no template; did you mean 'classify.jinja'"):
        Templates(tmp_path)


# --- self-instruct ------------------------------------------------------------------------------------------------------------------

NEW = "9. Say whether the poem is happy or sad.\n10. Name a river in France.\n11. Draw a cat in a hat.\n12. List the planets by their size."


def self_instruct_script(prompt: Prompt, sample: int) -> str:
    text = last(prompt)
    if text.startswith("Below is the beginning"):
        return NEW
    if text.startswith("Is this a classification"):
        return "Yes." if "poem is happy" in text else "No" if "planets" in text else "Perhaps."
    if text.startswith("Write examples for a classification"):
        return "Label: happy\nInput: Sun!\nLabel: sad\nInput: Rain.\nLabel: sad\nInput: Sun!"
    return "Example 1\nInput: none\nOutput: Jupiter, Saturn and so on." if "planets" in text else "Example 1\nInput: x\nOutput:"


def test_self_instruct(tmp_path: Path):
    given = seeds(
        tmp_path,
        *({"instruction": f"Name a river in country {n} please.", "instances": [{"input": "", "output": "Loire"}]} for n in range(9)),
    )
    writer = desk(self_instruct_script)
    rows = self_instruct.write(writer, given, count=50, tries=2, wave=1, limit=0.7)
    assert [[m["content"] for m in row["messages"]] for row in rows] == [
        ["Say whether the poem is happy or sad.\n\nRain.", "sad"],
        ["List the planets by their size.", "Jupiter, Saturn and so on."],
    ]
    assert (rows[0]["cluster"], rows[0]["source"], rows[0]["made_by"]["how"]) == ("classify", "self-instruct", "self-instruct")
    assert [w["template"] for w in rows[0]["written_with"]] == ["instructions", "output_first"]
    # the second request draws two of its eight from what the model wrote, and gets the same list again: all too alike
    prompts = [last(p) for call in writer.sampler.calls for p in call.prompts if last(p).startswith("Below")]
    count = lambda text: sum(line.split(". ", 1)[-1] in NEW for line in text.splitlines() if line[:1].isdigit())
    assert [count(p) for p in prompts] == [0, 2] and all("8. " in p and "from 9" in p for p in prompts)
    step = writer.steps["instructions"]
    assert (step.seen, counts(step)) == (8, {filters.BEYOND: 2, filters.TOO_ALIKE: 3})
    assert dict(writer.steps["is it classification?"].notes) == {"yes": 1, "no": 1, "neither, taken as no": 1}
    # "Name a river in France." against "Name a river in country 0 please.": 4 words in common of 5 and 7: 8/12 < .7
    assert counts(writer.steps["instances"]) == {filters.CONTRADICTED: 2, filters.NO_OUTPUT: 1}


def test_self_instruct_with_rubbish(tmp_path: Path):
    given = asked(tmp_path, *(f"Task number {n} of many tasks" for n in range(8)))
    for rubbish in ("", "asdf ££££ ///", "Here is", "9.", "\x00\x01", "{{ 7 * 7 }}", "Label:" * 30):
        writer = desk(lambda prompt, sample, said=rubbish: said)
        assert self_instruct.write(writer, given, count=5, tries=3, wave=2, limit=0.7) == []
        assert sum(s.seen for s in writer.steps.values()) > 0


def test_what_the_length_cut_is_dropped(tmp_path: Path):
    class Cut(ScriptedSampler):
        def sample(self, *args, **options):
            groups = super().sample(*args, **options)
            for group in groups:
                group.responses[0].finish_reason = "length"
            return groups

    writer = Desk(Cut(self_instruct_script), "m", Sampling())
    rows = self_instruct.write(writer, asked(tmp_path, "Say something nice to me."), count=5, tries=1, wave=1, limit=0.7)
    assert counts(writer.steps["instructions"]) == {filters.BEYOND: 1, CUT: 1}
    # the last instance is dropped: of three labels the first (contradicted by it) and it go
    assert [row["messages"][1]["content"] for row in rows] == ["sad"] and counts(writer.steps["instances"])[CUT] == 2


# --- evolve -------------------------------------------------------------------------------------------------------------------------


def test_evolution_and_its_eliminations(tmp_path: Path):
    told = {
        "one": "Name one river in France and say where it rises.",
        "two": "Rewritten task: Improve the given prompt about lakes.",
        "three": "Name three.",
        "four": "",
        "five": "Name five seas and sort them by their depth.",
        "six": "Name six hills and say how high each of them is.",
    }

    def script(prompt: Prompt, sample: int) -> str:
        text = last(prompt)
        if text.startswith("Compare two"):
            return "Equal." if "six" in text else "more"
        if "task" in text and ("harder" in text or "Think of" in text):
            return next(said for word, said in told.items() if f"Name {word}." in text)
        return "Sorry, no." if "five" in text else "The Loire, from the Massif Central."

    given = asked(tmp_path, *(f"Name {word}." for word in told))
    writer = desk(script)
    rows = evolve.write(writer, given, rounds=1)
    assert [r["messages"] for r in rows] == [
        [{"role": "user", "content": told["one"]}, {"role": "assistant", "content": "The Loire, from the Massif Central."}]
    ]
    assert rows[0]["evolved"]["parent"] == "Name one." and rows[0]["evolved"]["operator"] in evolve.OPERATORS
    assert (rows[0]["cluster"], rows[0]["license"]) == ("facts", "CC0")
    assert counts(writer.steps["rewritten"]) == {filters.LEAK: 1, filters.UNCHANGED: 1, EMPTY: 1, filters.NOTHING_GAINED: 1}
    assert counts(writer.steps["answers"]) == {filters.SORRY: 1}
    with pytest.raises(InputError, match="did you mean 'deepen'"):
        evolve.checked(["deepn"])


def test_what_failed_stays_for_the_next_round_and_operators_are_drawn_evenly(tmp_path: Path):
    given = asked(tmp_path, *(f"Name thing {n}." for n in range(200)))

    def script(prompt: Prompt, sample: int) -> str:
        text = last(prompt)
        if text.startswith("Compare"):
            return "more" if "again and again" in text else "equal"
        if not text.startswith(("Rewrite", "Here is a task")):
            return "An answer."
        task = next(line for line in text.splitlines() if line.startswith("Name thing"))
        return task + " again"

    writer = desk(script)
    rows = evolve.write(writer, given, rounds=2)
    assert rows == [] and counts(writer.steps["rewritten"]) == {filters.NOTHING_GAINED: 400}
    drawn = [
        p.split(":")[0] for call in writer.sampler.calls for p in [call.sampling.stage] if p.startswith("evolve_") and "judge" not in p
    ]
    sizes = {call.sampling.stage: len(call.prompts) for call in writer.sampler.calls if call.sampling.stage in drawn}
    assert len(sizes) == 10 and all(20 < size < 60 for size in sizes.values()) and sum(sizes.values()) == 400


# --- rewriting ----------------------------------------------------------------------------------------------------------------------


def test_paraphrases_keep_slots_and_answers(tmp_path: Path):
    given = seeds(
        tmp_path, {"prompt": "Is {{ text }} about {{topic}}?", "completion": "yes"}, {"prompt": "Name a {thing}.", "completion": "x"}
    )
    said = iter(["Does {{text}} speak of {{ topic }}?", "Does it speak of {{topic}}?", "Name  a {thing}", "Say " * 40 + "{thing}"])
    writer = desk(lambda prompt, sample: next(said))
    rows = rewrite.paraphrase(writer, given, per_row=2)
    assert [[m["content"] for m in row["messages"]] for row in rows] == [["Does {{text}} speak of {{ topic }}?", "yes"]]
    assert counts(writer.steps["paraphrases"]) == {rewrite.LOST_SLOTS: 1, rewrite.SAME_WORDS: 1, rewrite.WANDERED: 1}
    asked_for = [last(p) for call in writer.sampler.calls for p in call.prompts]
    assert "{{text}} {{topic}}" in asked_for[0] and len({text.split("Tone: ")[1].split(".")[0] for text in asked_for[:2]}) == 2
    (row,) = rewrite.paraphrase(desk(["Tell me a river, please."]), asked(tmp_path, "Name a river."), per_row=1)
    assert row["prompt"] == [{"role": "user", "content": "Tell me a river, please."}] and "messages" not in row


def test_personas(tmp_path: Path):
    def script(prompt: Prompt, sample: int) -> str:
        text = last(prompt)
        if not text.startswith("Imagine"):
            return "Use a list."
        return {"a nurse": "How do I plan my night shifts so that I sleep enough?", "a cook": "Hi!"}[text.split(": ")[1].split("\n")[0]]

    writer = desk(script)
    (row,) = rewrite.persona(writer, asked(tmp_path, "Name a river."), ["a nurse", "a cook"], per_row=2, limit=0.7)
    assert row["persona"] == "a nurse" and row["messages"][1]["content"] == "Use a list."
    assert counts(writer.steps["requests"]) == {filters.SHORT: 2, filters.TOO_ALIKE: 1}


def test_constraints_are_checked(tmp_path: Path):
    given = asked(tmp_path, *(f"What is thing {n} for?" for n in range(40)))
    writer = desk(lambda prompt, sample: "it is for work and play and much else besides")
    rows = rewrite.constrained(writer, given, per_row=1, most=2, check=keeps)
    assert 3 < len(rows) < 37 and len(rows) + counts(writer.steps["answers"])[rewrite.BROKEN] == 40
    for row in rows:  # and by IFEval's own checks
        prompt, answer = (m["content"] for m in row["messages"])
        assert ifeval.score(row, prompt, answer).followed and prompt.startswith("What is thing")


def test_a_constraint_kept_here_is_kept_by_ifeval():
    import random

    good = {
        "punctuation:no_comma": "A river; a sea.",
        "change_case:english_lowercase": "this is a small answer about the river.",
        "change_case:english_capital": "THIS IS A LARGE ANSWER ABOUT THE RIVER.",
        "startend:end_checker": "Yes. {end_phrase}",
        "startend:quotation": '"A river."',
        "detectable_format:number_bullet_lists": "Rivers:\n{bullets}",
        "detectable_format:title": "<<Rivers>>\nThe Loire.",
        "detectable_format:json_format": '{"river": "Loire"}',
        "length_constraints:number_words": "{words}",
        "length_constraints:number_paragraphs": "{paragraphs}",
    }
    bad = {
        "detectable_format:json_format": "{",
        "detectable_format:title": "<< >>",
        "change_case:english_lowercase": "Ä",
        "startend:quotation": '"',
    }
    seen = set()
    for n in range(300):
        held = draw(random.Random(n), 3)
        assert 1 <= len(held) <= 3 and len({c.kind for c in held}) == len(held)
        for c in held:
            filled = {
                "end_phrase": c.arguments.get("end_phrase"),
                "bullets": "\n".join(["* one"] * c.arguments.get("num_bullets", 0)),
                "words": " ".join(["word"] * (c.arguments.get("num_words", 0) - (c.arguments.get("relation") == "less than"))),
                "paragraphs": "\n***\n".join(["One."] * c.arguments.get("num_paragraphs", 0)),
            }
            text = good[c.kind]
            for name, value in filled.items():
                text = text.replace("{" + name + "}", str(value))
            assert keeps(c, text) and ifeval.follows(c.kind, c.arguments, "", text), (c, text)
            for wrong in ("", "A, b. C", bad.get(c.kind, "")):
                assert not keeps(c, wrong) or ifeval.follows(c.kind, c.arguments, "", wrong), (c, wrong)
            assert not keeps(c, bad.get(c.kind, ""))
            seen.add(c.kind)
    assert seen == set(CHECKS) == set(good)
    bullets = Constraint("detectable_format:number_bullet_lists", "", {"num_bullets": 2})
    assert not keeps(bullets, "* a\n* b\n* c") and not keeps(bullets, "* a\n* b\n- c") and not keeps(bullets, "- a\n- b\n* c")


def test_backtranslation(tmp_path: Path):
    texts = ["The Loire rises in the Massif Central and flows to the sea.", "Bread needs flour.", "Cats purr.", "Rain falls on the roof."]
    given = seeds(tmp_path, *({"text": text, "license": "CC0", "source": "a book", "made_by": "Ada"} for text in texts))

    def script(prompt: Prompt, sample: int) -> str:
        text = last(prompt)
        if text.startswith("How well"):
            return {"Loire": "5", "Bread": "Mark: 2", "Cats": "good"}[next(w for w in ("Loire", "Bread", "Cats") if w in text)]
        return {
            "Loire": "Where does the longest river of France begin and end?",
            "Bread": "Which things does bread need most?",
            "Cats": "Which sound do happy house animals make?",
            "Rain": "Say: rain falls on roof",
        }[next(w for w in ("Loire", "Bread", "Cats", "Rain") if w in text)]

    writer = desk(script)
    (row,) = rewrite.backtranslated(writer, given, per_row=1, limit=0.7, curate=True)
    assert [m["content"] for m in row["messages"]] == ["Where does the longest river of France begin and end?", texts[0]]
    assert (row["backtranslated"]["mark"], row["backtranslated"]["answer_by"], row["source"], row["license"]) == (5, "Ada", "a book", "CC0")
    assert counts(writer.steps["instructions"]) == {rewrite.COPIED: 1}
    assert counts(writer.steps["curation"]) == {rewrite.LOW: 1, rewrite.UNRATED: 1}


# --- safety -------------------------------------------------------------------------------------------------------------------------


def test_safety_sets(tmp_path: Path):
    given = asked(tmp_path, "How do I pick a lock?", "Write a threat to my neighbour.")

    def script(prompt: Prompt, sample: int) -> str:
        text = last(prompt)
        if text.startswith("We are collecting"):
            question = "question that ends" in text
            if "lock" in text:
                return "What is the way to open a lock without its key?" if question else "Tell me how a lock is opened without a key."
            return "I'm sorry, but I can't help with that." if question else "Compose a threat to my neighbour?"
        return "I can't help with that, because it could hurt somebody." if "key" in text or "threat" in text else "First, take a pin."

    writer = desk(script)
    rows = safety.write(writer, given, per_row=2, limit=0.7, refuses=refuses)
    assert [(r["messages"][0]["content"], r["safety"]["form"], r["safety"]["reworded"]) for r in rows] == [
        ("What is the way to open a lock without its key?", "question", True),
        ("Tell me how a lock is opened without a key.", "instruction", True),
        ("Write a threat to my neighbour.", "instruction", False),
    ]
    assert counts(writer.steps["wordings"]) == {safety.DECLINED: 1, safety.NO_QUESTION: 1}
    assert counts(writer.steps["answers"]) == {safety.NO_REFUSAL: 1}
    assert {r["cluster"] for r in rows} == {"safety"} and all(refuses(r["messages"][1]["content"]) for r in rows)
    assert [len(r["written_with"]) for r in rows] == [2, 2, 1]


# --- constitution -------------------------------------------------------------------------------------------------------------------

PRINCIPLES = [constitution.Principle("kind", "Is it unkind?", "Be kind."), constitution.Principle("true", "Is it false?", "Be true.")]


def constitutional_script(prompt: Prompt, sample: int) -> str:
    text = last(prompt)
    if "A reader objected" in text:
        if "rivers" in text:
            return "The revised response mends the critique."
        return "Fine, thank you, and you?" if "Be kind." in text else "Well, I think."
    if "Write your criticism" in text:
        return "It is rude."
    return "Go away." if "you" in text else "None."


def test_critique_and_revision(tmp_path: Path):
    writer = desk(constitutional_script)
    rows, pairs = constitution.write(writer, asked(tmp_path, "How are you?", "Name rivers."), PRINCIPLES, rounds=6, last_only=False)
    told = [row["revised"] for row in rows]
    assert {row["messages"][0]["content"] for row in rows} == {"How are you?"} and len(rows) >= 2
    assert all(
        (t["principle"], row["messages"][1]["content"]) in {("kind", "Fine, thank you, and you?"), ("true", "Well, I think.")}
        for t, row in zip(told, rows, strict=True)
    )
    assert all(t["critique"] == "It is rude." for t in told) and told[0]["before"] == "Go away."
    assert [a["messages"][1]["content"] for a in rows[:-1]] == [t["before"] for t in told[1:]]
    (pair,) = pairs
    assert pair["prompt"] == [{"role": "user", "content": "How are you?"}] and pair["rejected"][0]["content"] == "Go away."
    assert pair["chosen"] == [{"role": "assistant", "content": rows[-1]["messages"][1]["content"]}]
    assert [r["text"] for r in pair["revisions"]] == [row["messages"][1]["content"] for row in rows]
    assert counts(writer.steps["revisions"])[constitution.META] == 6 and counts(writer.steps["pairs"]) == {constitution.UNCHANGED: 1}
    asked_for = [last(p) for call in writer.sampler.calls if call.sampling.stage.startswith("critique") for p in call.prompts]
    assert {p.split("\n\n")[-1].split("?")[0] for p in asked_for} == {"Is it unkind", "Is it false"}
    last_only, _ = constitution.write(desk(constitutional_script), asked(tmp_path, "How are you?"), PRINCIPLES, rounds=6, last_only=True)
    assert [r["messages"] for r in last_only] == [rows[-1]["messages"]]


def test_principles(tmp_path: Path):
    from manners.data.writers.seeds import starter_file

    shipped = constitution.read_principles(starter_file("starter:principles.yaml"))
    assert len(shipped) == 12 and all(p.critique.endswith((".", "?")) and p.revision.endswith(".") for p in shipped)
    for content, said in [
        ("principles: []", "lacks 'principles'"),
        ("principles: [{name: a, critique: b}]", "principle 1: 'revision' must be text"),
        ("principles: [5]", "principle 1: 'name' must be text"),
        ("principles:\n  - {name: a, critique: b, revision: c}\n  - {name: a, critique: b, revision: c}", "two principles are called 'a'"),
        ("principles: [", "line 1"),
        ("- a", "holds a list"),
    ]:
        (tmp_path / "p.yaml").write_text(content)
        with pytest.raises(InputError, match=said):
            constitution.read_principles(tmp_path / "p.yaml")


def test_seeds_of_many_shapes(tmp_path: Path):
    rows = [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello"},
            ]
        }
    ]
    (seed,) = seeds(
        tmp_path, *rows, {"messages": []}, {"messages": [{"role": "user", "content": "x" * 30_000}, {"role": "assistant", "content": "y"}]}
    )
    assert (seed.asked, seed.answer, seed.messages("Ho")) == ("Hi", "Hello", [Message("system", "Be brief."), Message("user", "Ho")])
    with pytest.raises(InputError, match=r"does not ship; did you mean 'pairs\.jsonl'"):
        read_seeds("starter:pair.jsonl")
    with pytest.raises(InputError, match="holds prompts"):
        read_seeds(str(write_rows(tmp_path / "p.jsonl", [{"prompt": "x"}])), kinds=("text",))
