"""What can be seen of an answer without understanding it: a refusal, an echo, a loop, the language, a natural end.

Each checker is a rule that can be read in a minute and is wrong at times. They look for words and repeated runs of words; none knows
whether an answer is true.
"""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from manners.core.text import repeated_share, words


def _set(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


FUNCTION_WORDS: dict[str, frozenset[str]] = {
    "en": _set(
        "a about after all also am an and any are aren't as at be because been before being but by can can't cannot could did didn't do "
        "does doesn't don't down for from had has have he he's her here his how i i'll i'm i've if in into is isn't it it's its just may "
        "me might more most must my no not of off on one's only or our out over she should so some such than that that's the their them "
        "then there there's these they they're this those to too up upon us very was wasn't we we're were what when where which while who "
        "whom whose why will with won't would you you'll you're your yours"
    ),
    "fr": _set(
        "à au aux avec bien c ce ces cet cette ceux chez comme d dans de des du elle elles en es est et étaient était être eux fait il ils "
        "j je l la le les leur leurs lui m ma mais me mes moi mon n ne nos notre nous on ont ou où par pas pour plus qu quand que quel "
        "quelle qui s sa sans se ses si son sont sous suis sur t ta te tes très tu un une va vais vos votre vous y"
    ),
    "es": _set(
        "a al algo como con cómo cuando cuándo de del desde donde dónde e el él ella ellas ellos en era eres es esa ese eso esta está "
        "están estas este esto estos estoy fue ha hace han hasta hay la las les lo los más me mi mis muy nada ni no nos nuestra nuestro o "
        "para pero por porque que qué quien quién se ser si sí sin sobre son soy su sus también te tengo tiene tu tú tus un una uno "
        "usted y ya yo"
    ),
    "de": _set(
        "aber alle als am an auch auf aus bei bin bis bist da dann das dass dem den der des dich die dies diese dieser dir doch du durch "
        "ein eine einem einen einer eines er es für gibt habe haben hat hatte ich ihm ihn ihr ihre im in ins ist ja kann kein keine können "
        "man mein meine mich mir mit muss nach nicht noch nur ob oder sehr sein seine sich sie sind so über um und uns unser unter vom von "
        "vor war waren was wenn wer werden wie wir wird wo zu zum zur"
    ),
}
"""The commonest words of each language that carry grammar, not matter."""
GREETINGS: dict[str, frozenset[str]] = {
    "en": _set("good hello morning night please thank thanks welcome yes"),
    "fr": _set("bonjour bonne bonsoir bon merci oui non salut s'il plaît revoir"),
    "es": _set("buenas bueno buenos buena días gracias hola noches favor señor señora tardes"),
    "de": _set("bitte danke gute guten guter hallo morgen nein tag abend"),
}
"""Words that short sentences of a phrase book often consist of."""
ALL_FUNCTION_WORDS = frozenset().union(*FUNCTION_WORDS.values())
_LETTERS = {"en": "", "fr": "éèêëàâîïôùûçœ", "es": "áéíóúñ¿¡", "de": "äöüß"}
_ENDINGS = {
    "en": ("ing", "ed", "ly", "ness"),
    "fr": ("eur", "eux", "aux", "ien", "ée", "ette", "oir", "aune", "eau", "ait"),
    "es": ("o", "os", "ción", "dad", "ada", "illo", "illa"),
    "de": ("ung", "lich", "keit", "sch", "cht", "chen"),
}
"""Typical of the language's other words; weak evidence, a quarter of a function word's."""


class Language(NamedTuple):
    """A reading of a text's language: "en", "fr", "es", "de" or "other", and how sure, from 0 (a guess) to 1."""

    name: str
    sure: float


def language_of(text: str) -> Language:
    """The language of a text by its function words, phrase-book words and letters.

    Evidence that several languages share counts for each of them in equal parts; endings of words are weak evidence. `sure` is
    (first - second) / (first + 1): one word of evidence and none against gives 0.5, four words 0.8. Without
    evidence, or at a tie, the answer is "other".
    A text mostly in other than Latin letters is "other" for sure. Names and bare nouns cannot be told apart by this.
    """
    letters = [c for c in text.lower() if c.isalpha()]
    if letters and sum(ord(c) > 0x24F for c in letters) > len(letters) / 2:
        return Language("other", 1.0)
    points = dict.fromkeys(FUNCTION_WORDS, 0.0)
    said = words(text)
    for table, found in ((FUNCTION_WORDS, said), (GREETINGS, said), (_LETTERS, set(text.lower()))):
        for sign in found:
            speakers = [name for name in points if sign in table[name]]
            for name in speakers:
                points[name] += 1 / len(speakers)
    for word in said:
        for name in points:
            points[name] += 0.25 * (word not in ALL_FUNCTION_WORDS and word.endswith(_ENDINGS[name]))
    (first, most), (_, next_most) = sorted(points.items(), key=lambda item: -item[1])[:2]
    if most == next_most:
        return Language("other", 0.0)
    return Language(first, (most - next_most) / (most + 1))


# --- refusals ---------------------------------------------------------------------------------------------------------------------

_DEED = (
    "help|assist|do|provide|give|write|tell|support|advise|explain|share|discuss|show|teach|offer|recommend|create|make|fulfil|comply|"
    "describe|take part|be part|suggest|go along|participate|encourage|answer|supply|guide|plan|draft|join|say|walk you|work on|get into"
)
_NOT = r"(?:can't|cannot|can not|won't|will not|could not|couldn't|mustn't|must not|shouldn't|don't want to|do not want to|would not)"
_REFUSALS = [
    re.compile(pattern)
    for pattern in (
        rf"\bi(?:'m| am)? (?:really |simply |just )?{_NOT} (?:really |simply |ever |in good conscience )?(?:{_DEED})\b(?! but)",
        rf"\bi(?:'m| am) (?:unable|not able|not willing|unwilling|not going|not allowed) to (?:{_DEED})\b",
        r"\bi(?:'m| am) not (?:comfortable|prepared)\b",
        rf"\bi(?:'d| would) (?:rather|prefer) not(?: to)? (?:{_DEED})\b",
        r"\bi(?:'ll| will)? (?:must|have to|need to)? ?(?:respectfully |politely )?(?:decline|refuse)\b",
        r"\bthat(?:'s| is)? not something (?:that )?i (?:can|will|could|would)\b|\bnot something (?:that )?i (?:can|will|could|would)\b",
        rf"\bsomething (?:that )?i {_NOT}",
        rf"\bsorry,? (?:but )?(?:no\b|{_NOT} (?:{_DEED})|that(?:'s| is) not something)",
        r"\bagainst my (?:rules|guidelines|principles|policy|programming)\b",
        rf"\bi(?:'m| am) (?:sorry|afraid),? (?:but )?(?:that )?i(?:'m| am)? (?:{_NOT}|unable to|not able to) (?:{_DEED})\b",
        rf"\bwe {_NOT} (?:help|assist|provide|support|give)\b",
    )
]


def refuses(answer: str) -> bool:
    """Whether an answer declines the request: one of its first three sentences says so in the first person ("I can't help with")."""
    text = " ".join(sentences(answer)[:3]).lower().replace("’", "'")
    return any(pattern.search(text) for pattern in _REFUSALS)


# --- echoes and loops -------------------------------------------------------------------------------------------------------------


def _grams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def echo_share(prompt: str, answer: str) -> float:
    """Share of the answer's words that stand in runs of four that the prompt holds too (a shorter answer: all of it, in one run)."""
    asked, told = words(prompt), words(answer)
    if not told:
        return 0.0
    n = min(4, len(told))
    known = set(_grams(asked, n))
    copied = {i + k for i, gram in enumerate(_grams(told, n)) if gram in known for k in range(n)}
    return len(copied) / len(told)


def asks_itself(prompt: str, answer: str) -> bool:
    """Whether a sentence of the answer begins as the prompt does and is built like it: the model writes itself the next prompt.

    The same two first words, or the same first word and at least half of the sentence's words taken from the prompt's first sentence.
    """
    asked = words((sentences(prompt) or [""])[0].split(":")[0])
    if len(asked) < 2:
        return False
    for sentence in sentences(answer):
        told = words(sentence.split(":")[0])
        if len(told) >= 3 and told[0] == asked[0]:
            shared = sum((Counter(told) & Counter(asked)).values())
            if told[:2] == asked[:2] or shared >= len(told) / 2:
                return True
    return False


def echoes(prompt: str, answer: str) -> bool:
    """Whether half of the answer or more is copied from the prompt in runs, or the answer asks itself a prompt of the same kind."""
    return echo_share(prompt, answer) >= 0.5 or asks_itself(prompt, answer)


def loop_share(answer: str) -> float:
    """How much of an answer is said again, from 0 to 1: the most of repeated 3-grams, repeated sentences and words said twice running."""
    tokens = words(answer)
    said = [" ".join(words(s)) for s in sentences(answer)]
    said = [s for s in said if s]
    running = sum(a == b for a, b in pairwise(tokens)) / max(len(tokens) - 1, 1)
    again = 1 - len(set(said)) / len(said) if said else 0.0
    return max(repeated_share(" ".join(tokens)), again, running)


def repeats(answer: str) -> bool:
    """Whether an answer loops: a quarter of it or more is said again."""
    return loop_share(answer) >= 0.25


# --- ends -------------------------------------------------------------------------------------------------------------------------

_RUN_ON = re.compile(
    r"^\s*#{2,}\s|\n\s*#{1,}\s|<\|\w+\|>|^\s*(?:prompt|response|user|human|assistant|instruction|question|answer|input|output|q|a)\s*:\s",
    re.I | re.M,
)
_NO_END = re.compile(r"\b(mr|mrs|ms|dr|st|prof|no|vs|e\.g|i\.e|etc|a\.m|p\.m)\.(?=\s)", re.I)
_MARKER = re.compile(r"^\s*(?:[-*•–]|\(?\d{1,2}[.):])\s+")
_LAST = re.compile(r"[.!?…]['\"”’»)\]*]*$")


def sentences(text: str) -> list[str]:
    """The sentences of a text, split at full stops, question and exclamation marks before white space, and at line ends."""
    lines = [_NO_END.sub(r"\1", _MARKER.sub("", line)) for line in text.strip().splitlines()]
    return [s.strip() for line in lines for s in re.split(r"(?<=[.!?…])['\"”’»)\]]*\s+", line) if words(s)]


def runs_on(answer: str) -> bool:
    """Whether an answer goes on into a section or a turn of its own making: '###', 'Prompt:', 'User:', control tokens."""
    return bool(_RUN_ON.search(answer))


def finished(answer: str) -> bool:
    """Whether the text looks complete: its last line ends a sentence, is an item of a list or too short to tell (eight words)."""
    lines = answer.strip().splitlines()
    if not lines:
        return False
    return bool(_LAST.search(lines[-1].strip())) or bool(_MARKER.match(lines[-1])) or len(words(lines[-1])) < 8


def stopped(answer: str, finish_reason: str | None = None) -> bool:
    """Whether an answer ended by itself: by its finish reason where one is known, else by its looks, and without running on."""
    ended = finish_reason == "stop" if finish_reason is not None else finished(answer)
    return ended and not runs_on(answer)


# --- manners ----------------------------------------------------------------------------------------------------------------------

_RUDE = re.compile(
    r"\b(?:stupid|idiots?|idiotic|dumb|moron|shut up|go away|get lost|leave me alone|who cares|whatever|lazy|pathetic|loser|ridiculous|"
    r"fuck\w*|shit\w*|damn|crap|bitch|bastard|asshole|not my problem|your (?:own )?problem|better things to do|how hard can it be|"
    r"do it yourself|read \w+(?: \w+)? yourself|figure it out|look it up|use a calculator|don't bother|stop asking|do not ask me|"
    r"waste of time|ask somebody who|obviously)\b"
)
STOCK = re.compile(
    r"\bas an? (?:ai|artificial intelligence|language model|large language model)(?: language)?(?: model)?(?: assistant)?\b|"
    r"\b(?:i )?hope (?:that )?(?:this|it|that) (?:helps|was helpful|answers your question)\b|"
    r"\b(?:great|good|excellent) question\b|\bcertainly\b!?|\bof course!|\babsolutely!|"
    r"\bi(?:'d| would|'m| am) (?:be )?(?:happy|glad|delighted|love|here) to (?:help|assist)(?: you)?(?: with (?:that|your questions?))?\b|"
    r"\b(?:please )?(?:let me know|feel free)(?: if| to)(?: \w+){0,8}\b|"
    r"\bit(?:'s| is) (?:important|crucial|essential)"
    r" to (?:note|remember|understand)\b|"
    r"\b(?:in conclusion|to summarize|overall|please note)\b,?|\bthank you for (?:asking|your question|reaching out)\b|"
    r"\bplease consult (?:a|an|your) \w+|\bhow (?:can|may) i (?:help|assist) you(?: today)?\b",
    re.I,
)
"""Phrases that fill an answer and say nothing about what was asked."""


def rude(answer: str) -> int:
    """How many rude words and phrases an answer holds, by a short list."""
    return len(_RUDE.findall(answer.lower().replace("’", "'")))


def stock(answer: str) -> int:
    """How many stock phrases an answer holds, by the list `STOCK`."""
    return len(STOCK.findall(answer.replace("’", "'")))


def is_function_word(word: str) -> bool:
    """Whether a word, as `words` gives it, carries grammar in any of the four languages."""
    return word in ALL_FUNCTION_WORDS
