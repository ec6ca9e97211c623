"""Rules on what a model wrote, with worked values."""

import random

import pytest
from rouge_score.rouge_scorer import RougeScorer

from manners.data.writers import filters
from manners.data.writers.filters import Instance, Pool, instance_faults, instruction_fault, rouge_l, tokens


def test_rouge_l_by_hand_and_against_the_library():
    a, b = "write a short poem about the sea", "write a poem about the sea"
    assert rouge_l(tokens(a), tokens(b)) == pytest.approx(12 / 13) == pytest.approx(0.9230769231, abs=1e-10)
    assert rouge_l([], tokens(a)) == 0 and rouge_l(tokens(a), tokens(a)) == 1
    scorer, chance = RougeScorer(["rougeL"], use_stemmer=False), random.Random(0)
    words = ["the", "a", "sea", "poem", "write", "short", "about", "7", "it's", "x-ray", "river", "of", "stones"]
    for _ in range(200):
        one, two = (" ".join(chance.choices(words, k=chance.randint(1, 90))) for _ in range(2))
        assert rouge_l(tokens(one), tokens(two)) == pytest.approx(scorer.score(one, two)["rougeL"].fmeasure, abs=1e-12)


def test_the_pool_finds_what_a_plain_loop_finds():
    chance = random.Random(1)
    words = [f"w{i}" for i in range(12)]
    texts = [" ".join(chance.choices(words, k=chance.randint(3, 12))) for _ in range(150)]
    pool = Pool(texts[:100], 0.5)
    found = 0
    for text in texts[100:]:
        scores = [rouge_l(tokens(text), tokens(other)) for other in texts[:100]]
        first = next(((s, t) for s, t in zip(scores, texts, strict=False) if s > 0.5), (0.0, ""))
        assert pool.nearest(text) == first
        found += first[0] > 0
    assert 5 < found < 50
    assert Pool(["write a poem about the sea"]).nearest("write a short poem about the sea")[0] == pytest.approx(12 / 13)
    assert Pool(["a b c"]).nearest("a b c d e") == (0.75, "a b c") and Pool(["a b c"], 0.75).nearest("a b c d e") == (0, "")


@pytest.mark.parametrize(
    "text, why",
    [
        ("Name a river in France.", None),
        ("Name a river.", filters.SHORT),
        ("word " * 150, None),
        ("word " * 151, filters.MANY),
        ("Describe the picture above in detail.", filters.BEYOND),
        ("Go to the shop and buy milk.", filters.BEYOND),
        ("Draw up a list of rivers.", filters.BEYOND),
        ("Describe how bitmaps are stored.", None),
        ("Write a program that sorts numbers.", filters.PROGRAM),
        ("Écris un poème sur la mer.", filters.FOREIGN),
        ("- name a river in France", filters.PUNCTUATION),
        ("write a short poem about the sea", filters.TOO_ALIKE),
    ],
)
def test_instructions(text, why):
    assert instruction_fault(text.strip(), Pool(["Write a poem about the sea."])) == why


def test_lists():
    assert filters.listed("Of course! Here are some:\n\n9. Name a river.\n10) Say why\nit rains.\n**11.** Task three") == [
        "Name a river.",
        "Say why it rains.",
        "Task three",
    ]
    assert filters.listed("Task 9: Name a river.\nTask 10: Name a lake.") == ["Name a river.", "Name a lake."]
    assert filters.listed("no list at all") == [] and filters.listed("In 1999. it rained") == []
    assert filters.listed("1.\n2. x")[0] == ""


def test_instances_input_first():
    text = "Example 1\nInput: 1, 2\nOutput: 3\nExample 2\nInput: none\nOutput: nothing\nto add\n\nInput: stray\nExample 3\njust text"
    assert filters.input_first(text) == [Instance("1, 2", "3"), Instance("", "nothing\nto add"), Instance("", "just text")]
    assert filters.input_first("Output: all") == [Instance("", "all")] and filters.input_first(" ") == []
    assert filters.input_first("**Example 1**\n**Input:** a\n**Output:** b") == [Instance("a", "b")]


def test_instances_output_first():
    text = "Sure.\nLabel: positive\nInput: Good film.\nClass label: negative\nA bad\nfilm.\nLabel: empty"
    assert filters.output_first(text) == [Instance("Good film.", "positive"), Instance("A bad\nfilm.", "negative"), Instance("", "empty")]
    assert filters.output_first("no label") == []


def test_instance_rules():
    given = [
        Instance("a", "1"),
        Instance("a", "1"),
        Instance("b", "1"),
        Instance("b", "2"),
        Instance("c", "c"),
        Instance("d", ""),
        Instance("e", "as follows:"),
        Instance("", "free"),
    ]
    assert instance_faults(given) == [
        None,
        filters.AGAIN,
        filters.CONTRADICTED,
        filters.CONTRADICTED,
        filters.SAME,
        filters.NO_OUTPUT,
        filters.UNFINISHED,
        None,
    ]


def test_evolution_rules():
    assert filters.leaks("Improve the given prompt by a rule.") and filters.leaks("#Rewritten Prompt#: name a river")
    assert not filters.leaks("Write a prompt reply to the letter.")
    assert filters.answer_fault("Sorry, I do not know.") == filters.SORRY
    assert filters.answer_fault("sorry " + "word " * 78 + "x") is None  # 80 words
    assert filters.answer_fault("sorry " + "word " * 78) == filters.SORRY
    assert filters.answer_fault("... the of it!") == filters.WORDLESS == filters.answer_fault("?")
    assert filters.answer_fault("The Loire.") is None


def test_slots_and_what_models_put_around_a_text():
    assert filters.slots("Is {{ text }} about {name} or <PLACE>, {{text}}? {not a slot} <br>") == {"{{text}}": 2, "{name}": 1, "<PLACE>": 1}
    bare = filters.bare
    assert bare("```\nName a river.\n```") == bare('Sure, here it is:\n"Name a river."') == bare("“Name a river.”") == "Name a river."
    assert bare('"A" and "B"') == '"A" and "B"' and bare("Name two rivers: why?") == "Name two rivers: why?"
    assert bare("New wording: Name it") == "Name it" and bare('"') == '"' and bare("") == ""
