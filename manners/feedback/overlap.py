"""How much of a reference an answer has: exact match, SQuAD's exact match and token F1, ROUGE-L. Pure functions of texts.

    exact_match    1 if answer and reference are equal in lower case, without punctuation, blanks made even (Wang 2022)
    squad_exact    the same, the articles a, an, the gone as well (SQuAD; Rajpurkar 2016)
    token_f1       2 P R / (P + R) of the bag of tokens that both hold, normalised as for squad_exact
    rouge_l        2 P R / (P + R) of the longest common subsequence of words, by stems

Each takes the best of several references. Languages differ in what a word is, so the normalisation is chosen by `language`: articles are
dropped in English alone; elsewhere punctuation is all that Unicode calls so, and of Chinese and Japanese each character is a token.
English follows SQuAD's script and the ROUGE library to the letter, so that figures are those of the literature.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer

ENGLISH = "en"
BY_CHARACTER = ("zh", "ja")
CODES = {"english": "en", "chinese": "zh", "mandarin": "zh", "japanese": "ja", "german": "de", "french": "fr", "spanish": "es"}
"""Names of languages that data sets write out, where the code matters or is common."""
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_IDEOGRAPH = re.compile(r"([\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])")
_ASCII_MARKS = frozenset(string.punctuation)


def language_code(name: str) -> str:
    """`English`, `en` and `en-GB` as en; a name that is not known in lower case.

    >>> language_code("English"), language_code("zh-CN"), language_code("Xhosa")
    ('en', 'zh', 'xhosa')
    """
    lower = name.strip().lower()
    head = re.split(r"[-_]", lower)[0]
    return CODES.get(lower, head if len(head) == 2 else lower)


def normalised(text: str, language: str = ENGLISH, *, articles: bool = False) -> str:
    """A text as it is compared: lower case, no punctuation, single blanks; without English articles unless `articles` are kept.

    >>> normalised("The  U.S. Army!"), normalised("The  U.S. Army!", articles=True), normalised("东京，日本", "zh")
    ('us army', 'the us army', '东 京 日 本')
    """
    lower = text.lower()
    if language == ENGLISH:
        bare = "".join(c for c in lower if c not in _ASCII_MARKS)
        return " ".join((bare if articles else _ARTICLES.sub(" ", bare)).split())
    bare = "".join(c for c in unicodedata.normalize("NFC", lower) if c not in _ASCII_MARKS and unicodedata.category(c)[0] != "P")
    return " ".join((_IDEOGRAPH.sub(r" \1 ", bare) if language in BY_CHARACTER else bare).split())


def exact_match(answer: str, references: Sequence[str], language: str = ENGLISH) -> float:
    """1 if the answer is one of the references, articles kept."""
    said = normalised(answer, language, articles=True)
    return float(any(said == normalised(reference, language, articles=True) for reference in references))


def squad_exact(answer: str, golds: Sequence[str], language: str = ENGLISH) -> float:
    """SQuAD's exact match; without golds the question has no answer, and saying nothing is right."""
    said = normalised(answer, language)
    return float(any(said == normalised(gold, language) for gold in golds or ("",)))


def token_f1(answer: str, golds: Sequence[str], language: str = ENGLISH) -> float:
    """SQuAD's F1, the best over golds. Where either side has no token, it is 1 if neither has, else 0 (the rule of SQuAD 2)."""
    said = normalised(answer, language).split()
    return max(_f1(said, normalised(gold, language).split()) for gold in golds or ("",))


def _f1(said: Sequence[str], gold: Sequence[str]) -> float:
    if not said or not gold:
        return float(not said and not gold)
    same = (Counter(said) & Counter(gold)).total()
    return 2 * same / (len(said) + len(gold))


class _Tokens(Tokenizer):
    """Words of a language other than English: the library's own tokenizer drops every letter that is not of the English alphabet."""

    def __init__(self, language: str):
        self.language = language

    def tokenize(self, text: str) -> list[str]:
        return normalised(text, self.language).split()


_STEMMED = RougeScorer(["rougeL"], use_stemmer=True)


def rouge_l(answer: str, references: Sequence[str], language: str = ENGLISH) -> float:
    """ROUGE-L's F-measure, the best over references; 0 of a text without words. English by Porter's stems."""
    scorer = _STEMMED if language == ENGLISH else RougeScorer(["rougeL"], tokenizer=_Tokens(language))
    return max((scorer.score(reference, answer)["rougeL"].fmeasure for reference in references), default=0.0)


def found_in(context: str, spans: Iterable[tuple[str, int | None]]) -> tuple[list[str], int, int]:
    """Gold spans, each with the place where it should begin, or None -> those that stand in the context, the number that stand elsewhere
    than said, and the number that do not stand in it at all."""
    found, moved, missing = [], 0, 0
    for text, start in spans:
        if start is not None and context[start : start + len(text)] == text:
            found.append(text)
        elif text in context:
            found.append(text)
            moved += start is not None
        else:
            missing += 1
    return found, moved, missing
