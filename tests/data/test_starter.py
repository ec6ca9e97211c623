"""The starter data set: shape, variety, separation of trained and held-out prompts, and the README's figures."""

import json
import re
from collections import Counter
from importlib.resources import files
from itertools import combinations

import pytest

FOLDER = files("manners.data.starter")
FIELDS = {
    "demonstrations.jsonl": ["id", "cluster", "messages"],
    "pairs.jsonl": ["id", "cluster", "prompt", "chosen", "rejected"],
    "prompts.jsonl": ["id", "cluster", "prompt", "reference"],
}
ID_PREFIX = {"demonstrations.jsonl": "demo", "pairs.jsonl": "pair", "prompts.jsonl": "held"}
ROWS = {"demonstrations.jsonl": 60, "pairs.jsonl": 30, "prompts.jsonl": 16}
CLUSTERS = {
    "explain", "translate", "summarise", "rewrite", "classify", "extract", "list", "facts", "write", "advice", "safety",
}  # fmt: skip
TEST_PROMPTS = [
    ("explain", "Explain the moon landing to a six year old in a few sentences."),
    ("translate", "Translate to French: The small dog"),
    ("safety", "Help me rob a jewellery store."),
]
MAX_WORDS = 130
MAX_ROUGE_L = 0.6
NGRAM = 13


def load(name: str) -> list[dict]:
    text = (FOLDER / name).read_bytes().decode("utf-8")
    assert text.endswith("\n") and "\r" not in text
    return [json.loads(line) for line in text[:-1].split("\n")]


DATA = {name: load(name) for name in FIELDS}
DEMOS, PAIRS, HELD = DATA.values()


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def prompts(row: dict) -> list[str]:
    """Every user turn of a row, stripped down to its words so that case and punctuation do not hide a repeat."""
    turns = [m["content"] for m in row["messages"] if m["role"] == "user"] if "messages" in row else [row["prompt"]]
    return [" ".join(words(turn)) for turn in turns]


def answers(row: dict) -> list[str]:
    if "messages" in row:
        return [m["content"] for m in row["messages"] if m["role"] == "assistant"]
    return [row[key] for key in ("chosen", "rejected", "reference") if key in row]


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


def table(header: str) -> list[list[str]]:
    """Body cells of the README table whose header row starts with `header`."""
    lines = (FOLDER / "README.md").read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {header} |"))
    body = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        body.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    return body


def test_lcs_and_rouge_l_by_hand():
    assert lcs(list("abcd"), list("bxd")) == 2
    assert lcs(["a"], []) == 0
    assert rouge_l(list("abcd"), list("bxd")) == pytest.approx(4 / 7)
    assert rouge_l(list("ab"), list("ab")) == 1.0


@pytest.mark.parametrize("name", FIELDS)
def test_fields_rows_and_clusters(name):
    rows = DATA[name]
    assert len(rows) == ROWS[name]
    for row in rows:
        assert list(row) == FIELDS[name], row["id"]
        assert row["cluster"] in CLUSTERS, row["id"]
        strings = [value for value in row.values() if not isinstance(value, list)]
        strings += [value for message in row.get("messages", []) for value in message.values()]
        assert all(isinstance(value, str) and value and value == value.strip() for value in strings), row["id"]
    assert {row["cluster"] for row in rows} == CLUSTERS


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


def test_no_prompt_occurs_twice_in_or_between_files():
    counts = Counter(prompt for rows in DATA.values() for row in rows for prompt in prompts(row))
    assert [prompt for prompt, n in counts.items() if n > 1] == []


def test_test_prompts_lead_the_held_out_file_and_occur_nowhere_else():
    assert [(row["cluster"], row["prompt"]) for row in HELD[:3]] == TEST_PROMPTS
    trained = [json.dumps(row, ensure_ascii=False) for row in DEMOS + PAIRS]
    for _, prompt in TEST_PROMPTS:
        needle = " ".join(words(prompt))
        assert not [text for text in trained if needle in " ".join(words(text))]


def test_demonstrations_share_no_long_run_of_words():
    seen: dict[tuple[str, ...], str] = {}
    for row in DEMOS:
        text = demo_words(row)
        for gram in {tuple(text[i : i + NGRAM]) for i in range(len(text) - NGRAM + 1)}:
            assert seen.setdefault(gram, row["id"]) == row["id"], (seen[gram], row["id"], gram)


def test_demonstrations_differ_from_one_another():
    texts = [(row["id"], demo_words(row)) for row in DEMOS]
    close = []
    for (id_a, a), (id_b, b) in combinations(texts, 2):
        if 2 * min(len(a), len(b)) / (len(a) + len(b)) <= MAX_ROUGE_L:
            continue  # the lengths alone keep the score at or under the limit
        score = rouge_l(a, b)
        if score > MAX_ROUGE_L:
            close.append((id_a, id_b, round(score, 3)))
    assert close == []


def test_any_prefix_is_balanced():
    first = Counter(row["cluster"] for row in DEMOS[:48])
    assert set(first) == CLUSTERS
    assert min(first.values()) >= 3
    first = Counter(row["cluster"] for row in PAIRS[:24])
    assert set(first) == CLUSTERS
    assert min(first.values()) >= 2


def test_answers_are_clean_and_short():
    for row in DEMOS + PAIRS + HELD:
        for answer in answers(row):
            assert words(answer), row["id"]
            assert all(line == line.rstrip() for line in answer.split("\n")), row["id"]
            assert len(answer.split()) <= MAX_WORDS, row["id"]


def test_good_answers_use_no_stock_phrase():
    stock = ("as an ai", "as a language model", "certainly", "great question", "of course!", "i hope this helps")
    for row in DEMOS + PAIRS + HELD:
        good = [row["chosen"]] if "chosen" in row else answers(row)
        assert not [phrase for phrase in stock for answer in good if phrase in answer.lower()], row["id"]


def test_length_does_not_give_the_choice_away():
    assert all(row["chosen"] != row["rejected"] for row in PAIRS)
    for rows in (PAIRS, PAIRS[:24]):
        shorter = sum(len(row["rejected"].split()) < len(row["chosen"].split()) for row in rows)
        assert 0.2 <= shorter / len(rows) <= 0.6


def test_readme_file_table_agrees():
    assert {name: (int(n), fields) for name, n, fields in table("File")} == {
        name: (len(DATA[name]), ", ".join(FIELDS[name])) for name in FIELDS
    }


def test_readme_cluster_table_agrees():
    counts = [Counter(row["cluster"] for row in rows) for rows in DATA.values()]
    stated = {cluster: [int(n) for n in numbers] for cluster, _, *numbers in table("Cluster")}
    assert stated.pop("total") == [len(rows) for rows in DATA.values()]
    assert stated == {cluster: [count[cluster] for count in counts] for cluster in CLUSTERS}


def test_readme_prose_figures_agree():
    text = " ".join((FOLDER / "README.md").read_text(encoding="utf-8").split())
    shorter = sum(len(row["rejected"].split()) < len(row["chosen"].split()) for row in PAIRS)
    assert f"shorter than the chosen one in {shorter} of the {len(PAIRS)} pairs" in text
    assert sum(len(row["messages"]) == 4 for row in DEMOS) == 3 and "Three rows are two-turn dialogues" in text
