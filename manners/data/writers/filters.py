"""Rules on what a model wrote. Each is a function from texts to the reason why they are dropped, or None. docs/writers.md#filters.

They judge form: length, repetition, leaks of the prompt. None knows whether an instruction makes sense or an answer is right.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_TOKEN = re.compile(r"[^\W_]+")
FEWEST, MOST = 3, 150
"""An instruction of so many words or fewer, or of more, is dropped (Wang 2022)."""
_BEYOND = re.compile(r"\b(?:images?|graphs?|pictures?|files?|maps?|draw|plot|go to)\b", re.I)
"""What a text model cannot be given or do."""
ALIKE = 0.7
SHORT, MANY, BEYOND, PROGRAM, PUNCTUATION, FOREIGN = (
    "3 words or fewer",
    "more than 150 words",
    "wants what a text model cannot do",
    "begins with 'write a program'",
    "begins with punctuation",
    "begins with a character beyond ASCII",
)
TOO_ALIKE = "too like another (ROUGE-L)"
INSTRUCTION_RULES = (SHORT, MANY, BEYOND, PROGRAM, PUNCTUATION, FOREIGN, TOO_ALIKE)

# ------------------------------------------------------------------------------------------------------------ ROUGE-L


def tokens(text: str) -> list[str]:
    """Lower-case runs of letters and digits, which is what ROUGE compares; no stemming."""
    return _TOKEN.findall(text.lower())


def common_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, by bits: one machine word operation for 64 cells of the usual table (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for i, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for token in b:
        match = row & places.get(token, 0)
        row = ((row + match) | (row - match)) & full
    return len(a) - row.bit_count()


def rouge_l(a: Sequence[str], b: Sequence[str]) -> float:
    """ROUGE-L as F1: twice the longest common subsequence over both lengths; 0 if either is empty.

    >>> round(rouge_l(tokens("write a short poem about the sea"), tokens("write a poem about the sea")), 10)
    0.9230769231
    """
    return 2 * common_length(a, b) / (len(a) + len(b)) if a and b else 0.0


class Pool:
    """Texts, and whether a new one is too like any of them."""

    def __init__(self, texts: Iterable[str] = (), limit: float = ALIKE):
        self.limit = limit
        self.texts: list[str] = []
        self._tokens: list[tuple[list[str], Counter[str]]] = []
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        found = tokens(text)
        self.texts.append(text)
        self._tokens.append((found, Counter(found)))

    def nearest(self, text: str) -> tuple[float, str]:
        """ROUGE-L with the first text of the pool that is too like it, and that text; else (0, "")."""
        own = tokens(text)
        bag = Counter(own)
        for (other, other_bag), other_text in zip(self._tokens, self.texts, strict=True):
            together = len(own) + len(other)
            # what both hold bounds the common subsequence, and is cheaper to count
            if together and 2 * min(len(own), len(other)) > self.limit * together and 2 * (bag & other_bag).total() > self.limit * together:
                score = rouge_l(own, other)
                if score > self.limit:
                    return score, other_text
        return 0.0, ""


# ------------------------------------------------------------------------------------------------------- instructions


def instruction_fault(text: str, pool: Pool) -> str | None:
    """What is wrong with a new instruction, in the order of INSTRUCTION_RULES."""
    count = len(text.split())
    if count <= FEWEST:
        return SHORT
    if count > MOST:
        return MANY
    if _BEYOND.search(text):
        return BEYOND
    if text.lower().startswith("write a program"):
        return PROGRAM
    if not text[0].isascii():
        return FOREIGN
    if not text[0].isalnum():
        return PUNCTUATION
    return TOO_ALIKE if pool.nearest(text)[0] > 0 else None


_NUMBER = re.compile(r"(?:^|\n)[ \t]*(?:\*\*)?(?:task[ \t]*)?#?\d{1,2}[ \t]*[.):][ \t]*(?:\*\*)?[ \t]*", re.I)


def listed(text: str) -> list[str]:
    """The items of a numbered list, each in one line; what stands before the first number is no item.

    >>> listed("Sure!\\n9. Name a river.\\n10) Say why\\nit rains.")
    ['Name a river.', 'Say why it rains.']
    """
    return [" ".join(item.split()) for item in _NUMBER.split(text)[1:]]


# ---------------------------------------------------------------------------------------------------------- instances


class Instance(NamedTuple):
    """An input, which may be empty, and its output."""

    input: str
    output: str


SAME, NO_OUTPUT, UNFINISHED, CONTRADICTED, AGAIN = (
    "output is the input",
    "no output",
    "output ends with a colon",
    "same input with another output",
    "duplicate",
)
INSTANCE_RULES = (NO_OUTPUT, UNFINISHED, SAME, CONTRADICTED, AGAIN)
INSTANCES = 5
"""Most instances of an instruction."""
NOTHING = frozenset(("", "none", "n/a", "<noinput>", "no input", "not needed", "(none)"))
"""How a model says that an instruction needs no input."""
_EXAMPLE = re.compile(r"(?:^|\n)[ \t]*(?:\*\*)?example[ \t]*\d*[ \t]*[.:)]?(?:\*\*)?[ \t]*", re.I)
_OUTPUT = re.compile(r"(?:^|\n)[ \t]*(?:\*\*)?output[ \t]*\d*[ \t]*:(?:\*\*)?[ \t]*", re.I)
_INPUT = re.compile(r"(?:^|\n)[ \t]*(?:\*\*)?input[ \t]*\d*[ \t]*:(?:\*\*)?[ \t]*", re.I)
_LABEL = re.compile(r"(?:^|\n)[ \t]*(?:\*\*)?(?:class[ \t]*)?label[ \t]*\d*[ \t]*:(?:\*\*)?[ \t]*", re.I)


def input_first(text: str) -> list[Instance]:
    """Instances in a reply of `Example 1 / Input: ... / Output: ...`; without an `Output:` all of a part is the output."""
    found = []
    for part in [p for p in _EXAMPLE.split(text) if p.strip()]:
        halves = _OUTPUT.split("\n" + part.strip(), maxsplit=1)
        if len(halves) == 1:
            found.append(Instance("", part.strip()))
            continue
        given = _INPUT.split("\n" + halves[0].strip())[-1].strip()
        found.append(Instance(_given(given), _INPUT.split("\n" + halves[1])[0].strip()))
    return found


def output_first(text: str) -> list[Instance]:
    """Instances in a reply of `Label: ...` and an input below each."""
    found = []
    for part in _LABEL.split(text)[1:]:
        label, _, rest = part.strip().partition("\n")
        found.append(Instance(_given(_INPUT.split("\n" + rest.strip())[-1].strip()), label.strip()))
    return found


def _given(text: str) -> str:
    return "" if text.lower().strip(".") in NOTHING else text


def instance_faults(instances: Sequence[Instance]) -> list[str | None]:
    """What is wrong with each instance of one instruction. Of equal inputs with different outputs all go: one of them is wrong."""
    outputs: dict[str, set[str]] = {}
    for instance in instances:
        if instance.output:
            outputs.setdefault(instance.input, set()).add(instance.output)
    seen: set[Instance] = set()
    faults: list[str | None] = []
    for instance in instances:
        if not instance.output:
            faults.append(NO_OUTPUT)
        elif instance.output.endswith(":"):
            faults.append(UNFINISHED)
        elif instance.input == instance.output:
            faults.append(SAME)
        elif len(outputs[instance.input]) > 1:
            faults.append(CONTRADICTED)
        else:
            faults.append(AGAIN if instance in seen else None)
            seen.add(instance)
    return faults


# ---------------------------------------------------------------------------------------------------------- evolution

UNCHANGED, LEAK, NOTHING_GAINED, UNJUDGED = (
    "the instruction it came from, or another's",
    "speaks of the prompt it was made by",
    "asks for nothing more, says the model",
    "no verdict whether it asks for more",
)
SORRY, WORDLESS = "short and sorry", "nothing but punctuation and stop words"
EVOLVED_RULES = (UNCHANGED, LEAK, UNJUDGED, NOTHING_GAINED)
ANSWER_RULES = (SORRY, WORDLESS)
_LEAK = re.compile(r"\b(?:given|rewritten|created|original|new) (?:prompt|request|instruction|task)\b|#\s*\w+ prompt\s*#", re.I)
SORRY_WORDS = 80
_STOP_WORDS = """a about after all also am an and any are as at be been before being but by can could did do does for from had has have he
her here him his how i if in into is it its just me more most my no nor not of on only or other our out over own same she should so some
such than that the their them then there these they this those through to too under until up very was we were what when where which while
who whom why will with would you your"""
STOP_WORDS = frozenset(_STOP_WORDS.split())


def leaks(text: str) -> bool:
    """Whether an instruction speaks of the prompt that it was made by."""
    return bool(_LEAK.search(text))


def answer_fault(answer: str) -> str | None:
    """SORRY for an answer of under 80 words that says so, WORDLESS for one without a word of its own; the elimination of Xu 2023."""
    said = tokens(answer)
    if not set(said) - STOP_WORDS:
        return WORDLESS
    return SORRY if len(said) < SORRY_WORDS and "sorry" in said else None


# --------------------------------------------------------------------------------------------------------------- text

_SLOT = re.compile(r"\{\{.*?\}\}|\{[A-Za-z_][\w.]*\}|<[A-Z][A-Z_]+>")
_FENCE = re.compile(r"^```[a-z]*\n(.*?)\n?```$", re.S)
_HEADING = re.compile(
    r"^(?:#+\s*)?(?:\*\*)?(?:sure|certainly|of course|here(?: is|'s)|rewritten|new|paraphrase|request|instruction|revision|revised|answer)"
    r"[^\n:]{0,60}:(?:\*\*)?\s*",
    re.I,
)


def slots(text: str) -> Counter[str]:
    """What stands for something to be filled in: `{name}`, `{{ name }}`, `<NAME>`; blanks inside braces do not count."""
    return Counter(re.sub(r"\s+", "", slot) for slot in _SLOT.findall(text))


def bare(text: str) -> str:
    """A reply without what models put around it: a fence, a line that announces it, quotation marks about the whole.

    >>> bare('Here is the rewritten request: "Name a river."')
    'Name a river.'
    """
    text = text.strip()
    fenced = _FENCE.match(text)
    text = _HEADING.sub("", fenced[1].strip() if fenced else text).strip()
    if (
        len(text) > 1
        and (text[0], text[-1]) in (('"', '"'), ("“", "”"), ("'", "'"))
        and text.count(text[0]) + text.count(text[-1]) in (2, 4)
    ):
        text = text[1:-1].strip()
    return text
