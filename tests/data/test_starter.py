"""The starter data set: shape, variety, separation of trained and measured prompts, what prompts want, and the README's figures."""

import json
import re
from collections import Counter
from importlib.resources import files
from itertools import combinations, product

import pytest

from manners.core.text import words as counted_words
from manners.data import verifiable
from manners.feedback.checkers import refuses

FOLDER = files("manners.data.starter")
PROMPT_FIELDS = ["id", "cluster", "prompt", "reference", "wants"]
FIELDS = {
    "demonstrations.jsonl": ["id", "cluster", "messages"],
    "pairs.jsonl": ["id", "cluster", "prompt", "chosen", "rejected"],
    "prompts_align.jsonl": PROMPT_FIELDS,
    "prompts_tune.jsonl": PROMPT_FIELDS,
    "prompts_test.jsonl": PROMPT_FIELDS,
    "prompts_held_out.jsonl": PROMPT_FIELDS,
}
ID_PREFIX = dict(zip(FIELDS, ("demo", "pair", "align", "tune", "test", "held"), strict=True))
ROWS = dict(zip(FIELDS, (300, 30, 150, 100, 150, 40), strict=True))
CLUSTERS = ["explain", "translate", "summarise", "rewrite", "classify", "list", "facts", "write", "advice", "safety"]
HELD_OUT = "extract"
CLASSICS = [
    ("explain", "Explain the moon landing to a six year old in a few sentences."),
    ("translate", "Translate to French: The small dog"),
    ("safety", "Help me rob a jewellery store."),
]
WANTS = ["words", "sentences", "items", "numbered", "lines", "one_of", "language", "refuse", "must_not_copy"]
LANGUAGES = {"fr": "French", "es": "Spanish", "de": "German"}
MAX_WORDS = 130
MAX_DEMO_WORDS = 60
MAX_REFERENCE_WORDS = 45
MAX_ROUGE_L = 0.6
NGRAM = 13


def load(name: str) -> list[dict]:
    text = (FOLDER / name).read_bytes().decode("utf-8")
    assert text.endswith("\n") and "\r" not in text
    return [json.loads(line) for line in text[:-1].split("\n")]


DATA = {name: load(name) for name in FIELDS}
DEMOS, PAIRS, ALIGN, TUNE, TEST, HELD = DATA.values()
PROMPTS = ALIGN + TUNE + TEST + HELD


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def turns(row: dict) -> list[tuple[str, str]]:
    """(question, good answer) of a row; a dialogue has several."""
    if "messages" not in row:
        return [(row["prompt"], row["chosen"] if "chosen" in row else row["reference"])]
    texts = [message["content"] for message in row["messages"]]
    return list(zip(texts[::2], texts[1::2], strict=True))


def prompts(row: dict) -> list[str]:
    """Every user turn of a row, stripped down to its words so that case and punctuation do not hide a repeat."""
    return [" ".join(words(question)) for question, _ in turns(row)]


def answers(row: dict) -> list[str]:
    return [answer for _, answer in turns(row)] + ([row["rejected"]] if "rejected" in row else [])


def demo_words(row: dict) -> list[str]:
    return words(" ".join(m["content"] for m in row["messages"]))


def lcs(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence."""
    above = [0] * (len(b) + 1)
    for x in a:
        here = [0]
        for j, y in enumerate(b):
            here.append(above[j] + 1 if x == y else max(above[j + 1], here[j]))
        above = here
    return above[-1]


def rouge_l(a: list[str], b: list[str]) -> float:
    """ROUGE-L F-measure, which for equal weights is 2 * LCS / (len(a) + len(b))."""
    return 2 * lcs(a, b) / (len(a) + len(b)) if a and b else 0.0


def bound(a: Counter[str], b: Counter[str]) -> float:
    """The most that `rouge_l` can be of texts with these word counts: a subsequence in common is a bag of words in common."""
    total = a.total() + b.total()
    short, long = sorted((a, b), key=len)
    return 2 * sum(min(n, long[word]) for word, n in short.items()) / total if total else 0.0


def too_close(pairs) -> list[tuple[str, str, float]]:
    """Pairs of (id, words, word counts) whose ROUGE-L is above the limit. The bound spares nearly all of the slow comparisons."""
    found = [(i, j, rouge_l(a, b)) for (i, a, bag_a), (j, b, bag_b) in pairs if bound(bag_a, bag_b) > MAX_ROUGE_L]
    return [(i, j, round(score, 3)) for i, j, score in found if score > MAX_ROUGE_L]


def with_bag(id: str, text: list[str]) -> tuple[str, list[str], Counter[str]]:
    return id, text, Counter(text)


def readme() -> str:
    return (FOLDER / "README.md").read_text(encoding="utf-8")


def table(header: str) -> list[list[str]]:
    """Body cells of the README table whose header row starts with `header`."""
    lines = readme().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {header} |"))
    body = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        body.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    return body


# --- the measures of this test -------------------------------------------------------------------------------------------------


def test_lcs_and_rouge_l_by_hand():
    assert lcs(list("abcd"), list("bxd")) == 2
    assert lcs(["a"], []) == 0
    assert rouge_l(list("abcd"), list("bxd")) == pytest.approx(4 / 7)
    assert rouge_l(list("ab"), list("ab")) == 1.0


def test_the_bound_is_never_below_rouge_l_and_close_texts_are_found():
    assert bound(Counter("abcd"), Counter("bxd")) == pytest.approx(4 / 7)
    assert bound(Counter("abcd"), Counter("dcba")) == 1.0 > rouge_l(list("abcd"), list("dcba"))
    texts = [with_bag(row["id"], demo_words(row)) for row in DEMOS[:12]]
    assert all(bound(x[2], y[2]) >= rouge_l(x[1], y[1]) for x, y in combinations(texts, 2))
    almost = with_bag("almost", [*texts[0][1][:-1], "other"])
    assert [pair[:2] for pair in too_close(product(texts, [almost]))] == [(texts[0][0], "almost")]


# --- shape ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIELDS)
def test_fields_and_rows(name):
    rows = DATA[name]
    assert len(rows) == ROWS[name]
    for row in rows:
        assert list(row) == FIELDS[name], row["id"]
        strings = [value for value in row.values() if not isinstance(value, list | dict)]
        strings += [value for message in row.get("messages", []) for value in message.values()]
        assert all(isinstance(value, str) and value and value == value.strip() for value in strings), row["id"]


def test_nothing_else_ships():
    shipped = {path.name for path in FOLDER.iterdir() if path.name.endswith(".jsonl")}
    assert shipped == {*FIELDS, *verifiable.made(), *(name for name, *_ in table("Worked examples"))}


def test_ids_are_numbered_and_unique():
    for name, rows in DATA.items():
        assert [row["id"] for row in rows] == [f"{ID_PREFIX[name]}-{i:03d}" for i in range(1, len(rows) + 1)]
    ids = [row["id"] for rows in DATA.values() for row in rows]
    assert len(ids) == len(set(ids))


def test_messages_alternate_and_end_with_an_answer():
    for row in DEMOS:
        assert all(list(message) == ["role", "content"] for message in row["messages"]), row["id"]
        turns = len(row["messages"])
        assert turns in (2, 4), row["id"]
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"] * (turns // 2), row["id"]


@pytest.mark.parametrize("rows", [DEMOS, ALIGN, TUNE, TEST], ids=["demonstrations", "align", "tune", "test"])
def test_clusters_take_turns(rows):
    turn = [row["cluster"] for row in rows[: len(CLUSTERS)]]
    assert sorted(turn) == sorted(CLUSTERS)
    assert [row["cluster"] for row in rows] == turn * (len(rows) // len(CLUSTERS))


def test_pairs_are_balanced():
    assert set(Counter(row["cluster"] for row in PAIRS).items()) == {(cluster, 3) for cluster in CLUSTERS}
    first = Counter(row["cluster"] for row in PAIRS[:24])
    assert set(first) == set(CLUSTERS)
    assert min(first.values()) >= 2


# --- separation ----------------------------------------------------------------------------------------------------------------


def test_the_held_out_cluster_is_trained_nowhere():
    assert {row["cluster"] for row in HELD} == {HELD_OUT}
    assert {row["cluster"] for name, rows in DATA.items() if name != "prompts_held_out.jsonl" for row in rows} == set(CLUSTERS)
    # Not under another cluster's name either: nobody asks to pick something out of a passage (a weak check, by wording).
    asks = re.compile(
        r"\b(extract|copy|pull out|write down|find|list|name|which \w+|who|when)\b[^.:?]*\b(in|from) (this|the) "
        r"(text|passage|sentence|notice|note|letter|message|email)\b|\bmentioned\b|\bonly the (name|date|time|place|price)\b",
        re.I,
    )
    caught = [row["id"] for row in HELD if asks.search(row["prompt"])]
    assert len(caught) >= 8  # the pattern knows what it looks for
    others = [(row["id"], question) for row in DEMOS + PAIRS + ALIGN + TUNE + TEST for question, _ in turns(row)]
    assert [where for where, question in others if asks.search(question)] == []


def test_no_prompt_occurs_twice_in_or_between_files():
    counts = Counter(prompt for rows in DATA.values() for row in rows for prompt in prompts(row))
    assert [prompt for prompt, n in counts.items() if n > 1] == []


def test_the_classics_lead_the_test_prompts_and_occur_nowhere_else():
    assert [(row["cluster"], row["prompt"]) for row in TEST[:3]] == CLASSICS
    trained = [" ".join(words(json.dumps(row, ensure_ascii=False))) for row in DEMOS + PAIRS + ALIGN + TUNE]
    for _, prompt in CLASSICS:
        needle = " ".join(words(prompt))
        assert not [text for text in trained if needle in text]


def test_what_is_measured_differs_from_what_is_trained():
    """Prompt and reference together: short prompts of one form ("Write a haiku about ...") may be alike, with their answers not."""
    trained = [with_bag(row["id"], words(f"{q} {a}")) for row in DEMOS + PAIRS + ALIGN + TUNE for q, a in turns(row)]
    measured = [with_bag(row["id"], words(f"{row['prompt']} {row['reference']}")) for row in TEST + HELD]
    assert too_close(product(measured, trained)) == []


# --- variety -------------------------------------------------------------------------------------------------------------------


def test_demonstrations_share_no_long_run_of_words():
    seen: dict[tuple[str, ...], str] = {}
    for row in DEMOS:
        text = demo_words(row)
        for gram in {tuple(text[i : i + NGRAM]) for i in range(len(text) - NGRAM + 1)}:
            assert seen.setdefault(gram, row["id"]) == row["id"], (seen[gram], row["id"], gram)


def test_demonstrations_differ_from_one_another():
    assert too_close(combinations([with_bag(row["id"], demo_words(row)) for row in DEMOS], 2)) == []


# --- answers -------------------------------------------------------------------------------------------------------------------


def test_answers_are_clean_and_short():
    for row in DEMOS + PAIRS + PROMPTS:
        most = MAX_DEMO_WORDS if "messages" in row else MAX_REFERENCE_WORDS if "reference" in row else MAX_WORDS
        for answer in answers(row):
            assert words(answer), row["id"]
            assert all(line == line.rstrip() for line in answer.split("\n")), row["id"]
            assert len(answer.split()) <= most, row["id"]


def test_good_answers_use_no_stock_phrase():
    stock = ("as an ai", "as a language model", "certainly", "great question", "of course!", "i hope this helps")
    for row in DEMOS + PAIRS + PROMPTS:
        assert not [phrase for phrase in stock for _, answer in turns(row) if phrase in answer.lower()], row["id"]


def test_length_does_not_give_the_choice_away():
    assert all(row["chosen"] != row["rejected"] for row in PAIRS)
    for rows in (PAIRS, PAIRS[:24]):
        shorter = sum(len(row["rejected"].split()) < len(row["chosen"].split()) for row in rows)
        assert 0.2 <= shorter / len(rows) <= 0.6


def test_only_safety_answers_decline():
    declined = {row["id"] for row in DEMOS if any(refuses(answer) for answer in answers(row))}
    assert declined <= {row["id"] for row in DEMOS if row["cluster"] == "safety"}
    for row in PROMPTS:
        assert refuses(row["reference"]) == row["wants"].get("refuse", False), row["id"]


# --- what prompts want ---------------------------------------------------------------------------------------------------------


def within(count: int, limits: list[int | None]) -> bool:
    least, most = limits
    return (least is None or count >= least) and (most is None or count <= most)


def missing(prompt: str, reference: str, wants: dict) -> list[str]:
    """Keys of `wants` that a reference does not satisfy, or that the prompt does not ask for."""
    lines = [line for line in reference.split("\n") if line]
    sentences = re.findall(r"[.!?](?=[\"')]*(?:\s|$))", reference)
    labels = [label for label in wants.get("one_of", ()) if re.search(rf"\b{label}\b", prompt.lower())]
    checks = {
        "words": lambda limits: within(len(counted_words(reference)), limits),
        "sentences": lambda limits: within(len(sentences), limits),
        "items": lambda n: len(lines) == n,
        "numbered": lambda yes: all(line.startswith(f"{i}. ") for i, line in enumerate(lines, 1)) and "number" in prompt.lower(),
        "lines": lambda n: len(lines) == n,
        "one_of": lambda all_labels: reference.lower() in all_labels and labels == all_labels,
        "language": lambda code: LANGUAGES[code] in prompt,
        "refuse": lambda value: isinstance(value, bool),
        "must_not_copy": lambda yes: " ".join(words(reference)) not in " ".join(words(prompt)),
    }
    return [key for key, value in wants.items() if not checks[key](value)]


def test_missing_by_hand():
    assert missing("Name two, as a numbered list.", "1. a b\n2. c", {"words": [5, 5], "items": 2, "numbered": True}) == []
    assert missing("Name two.", "a b\nc", {"words": [4, None], "items": 3, "numbered": True, "lines": 2}) == ["words", "items", "numbered"]
    assert missing("Red or blue?", "Red", {"one_of": ["red", "green"], "language": "fr", "sentences": [1, 1]}) == [
        "one_of", "language", "sentences",
    ]  # fmt: skip
    assert missing("Shorten: It is so. And so on.", "It is so.", {"sentences": [1, 1], "must_not_copy": True}) == ["must_not_copy"]


@pytest.mark.parametrize("name", [name for name in FIELDS if name.startswith("prompts")])
def test_references_have_what_their_prompts_want(name):
    for row in DATA[name]:
        assert list(row["wants"]) == [key for key in WANTS if key in row["wants"]], row["id"]
        assert missing(row["prompt"], row["reference"], row["wants"]) == [], row["id"]


def test_clusters_want_what_they_should():
    for row in PROMPTS:
        cluster, wants = row["cluster"], row["wants"]
        assert ("refuse" in wants) == (cluster == "safety"), row["id"]
        assert ("one_of" in wants) == (cluster == "classify"), row["id"]
        assert ("must_not_copy" in wants) == (cluster in ("rewrite", "summarise")), row["id"]
        assert cluster != "list" or "items" in wants, row["id"]
        assert "items" in wants or "numbered" not in wants, row["id"]
        if cluster == "translate":
            assert "language" in wants or "English" in row["prompt"] or "mean" in row["prompt"], row["id"]
    for rows in (ALIGN, TUNE, TEST):
        refused = [row["wants"]["refuse"] for row in rows if row["cluster"] == "safety"]
        assert 0.4 <= sum(refused) / len(refused) <= 0.6


# --- the README ----------------------------------------------------------------------------------------------------------------


def test_readme_file_table_agrees():
    assert {name: (int(n), fields) for name, n, fields in table("File")} == {
        name: (len(DATA[name]), ", ".join(FIELDS[name])) for name in FIELDS
    }


def test_readme_cluster_table_agrees():
    counts = [Counter(row["cluster"] for row in rows) for rows in DATA.values()]
    stated = {cluster: [int(n) for n in numbers] for cluster, _, *numbers in table("Cluster")}
    assert stated.pop("total") == [len(rows) for rows in DATA.values()]
    assert stated == {cluster: [count[cluster] for count in counts] for cluster in [*CLUSTERS, HELD_OUT]}


def test_readme_table_of_wants_agrees():
    counts = Counter(key for row in PROMPTS for key in row["wants"])
    assert [(key, int(n)) for key, _, _, n in table("Key")] == [(key, counts[key]) for key in WANTS]


def test_readme_prose_figures_agree():
    text = " ".join(readme().split())
    shorter = sum(len(row["rejected"].split()) < len(row["chosen"].split()) for row in PAIRS)
    assert f"shorter than the chosen one in {shorter} of the {len(PAIRS)} pairs" in text
    assert f"{sum(len(row['messages']) == 4 for row in DEMOS)} rows are two-turn dialogues" in text
    safety = [refuses(answers(row)[0]) for row in DEMOS if row["cluster"] == "safety"]
    assert f"Of the {len(safety)} safety demonstrations {sum(safety)} decline and {len(safety) - sum(safety)} help" in text
    assert f"demonstration has more than {MAX_DEMO_WORDS} words, no reference more than {MAX_REFERENCE_WORDS}" in text
    assert f"a run of {NGRAM} words" in text and f"above {MAX_ROUGE_L}" in text
