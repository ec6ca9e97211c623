"""What is wrong with a text: one function a rule, from texts to what it found, or nothing. `clean` applies them to rows.

None of these understands a text. Each is right often enough to be worth its count, and wrong often enough that what it drops is kept.
"""

import ipaddress
import re
import unicodedata
from collections.abc import Iterable, Sequence

from ftfy import fix_encoding
from ftfy.badness import is_bad

from manners.core.text import repeated_share, words

BOILERPLATE = re.compile(
    r"\bas an? (?:ai|artificial intelligence|large language model|language model)\b"
    r"|\bi(?:'m| am) (?:just |only )?an? (?:ai|artificial intelligence|large language model|language model)\b"
    r"|\bi(?:'m| am) sorry,? (?:but )?(?:as an? |i (?:can't|cannot|can not|am unable|am not able|won't))"
    r"|\bi (?:cannot|can't|can not|am unable to|am not able to|won't) (?:fulfil|fulfill|comply with|assist with|help with|provide|answer) "
    r"|\bmy (?:knowledge cut-?off|training data (?:only )?(?:goes|ends))\b",
    re.I,
)
"""Phrases with which a model speaks of itself, or declines."""
FIRST = 300
"""Characters of an answer in which these count: later they may be a quotation."""

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[a-zA-Z0-9-]{1,63}\.)+[a-zA-Z]{2,24}\b")
_NO_MAIL = re.compile(r"@(?:[\w-]+\.)*(?:example\.(?:com|org|net)|(?:test|example|invalid|localhost))$", re.I)
_PHONE = re.compile(
    r"(?<![\w.+-])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){2,4}"
    r"|(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[.-])\d{3}[ .-]\d{4})(?![\w-]|\.\d)"
)
"""International form, or ten digits in the American groups."""
_DIGIT = re.compile(r"\d")
_CARD = re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-]|\.\d)")
_IP4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w]|\.\d)")
_IP6 = re.compile(r"(?<![\w:])(?:[0-9a-fA-F]{1,4}:){2,7}(?::?[0-9a-fA-F]{1,4}){1,6}(?![\w:])")
_FICTION = re.compile(r"555\D?01\d\d$")
"""Numbers that are set aside for films and books."""
_CONTROL = {code for code in range(32) if chr(code) not in "\t\n\r\f"} | {0x7F, 0xFFFD}


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others, as on payment cards.

    >>> luhn("4539578763621486"), luhn("4539578763621487")
    (True, False)
    """
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def personal(text: str) -> list[tuple[str, str]]:
    """(kind, text found) of each e-mail address, phone number, payment card and public IP address.

    Not counted: addresses at domains kept for examples, numbers 555-01xx, cards whose check digit is wrong, private and reserved IP
    addresses. A version number of four parts may pass for an address.
    """
    found = []
    if "@" in text:
        found += [("email", m[0]) for m in _EMAIL.finditer(text) if not _NO_MAIL.search(m[0])]
    if not _DIGIT.search(text):
        return found
    cards = [m[0] for m in _CARD.finditer(text) if _is_card(re.sub(r"\D", "", m[0]))]
    found += [("card", card) for card in cards]
    phones = [m[0] for m in _PHONE.finditer(text) if not any(m[0] in card for card in cards)]
    found += [("phone", phone) for phone in phones if not _FICTION.search(phone) and len(re.sub(r"\D", "", phone)) <= 15]
    addresses = [m[0] for pattern in (_IP4, _IP6) for m in pattern.finditer(text)]
    return found + [("ip", address) for address in addresses if _is_public(address)]


def _is_card(digits: str) -> bool:
    return digits[0] in "23456" and len(set(digits)) > 1 and luhn(digits)


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def masked(text: str) -> str:
    """The text with what `personal` finds replaced by its kind in brackets: [EMAIL]."""
    for kind, found in sorted(personal(text), key=lambda item: -len(item[1])):
        text = text.replace(found, f"[{kind.upper()}]")
    return text


def broken(text: str) -> str | None:
    """What shows that a text was decoded wrongly: a replacement or control character, or the marks of a wrong code page; else None."""
    if text.isascii():
        return next((f"control character U+{ord(c):04X}" for c in text if ord(c) in _CONTROL), None) if not text.isprintable() else None
    bad = next((c for c in text if ord(c) in _CONTROL), None)
    if bad:
        return "replacement character U+FFFD" if bad == "\ufffd" else f"control character U+{ord(bad):04X}"
    if is_bad(text):
        at = next((m.start() for m in re.finditer(r"[^\x00-\x7f]+", text) if is_bad(m[0])), 0)
        return f"wrong code page: {text[max(at - 10, 0) : at + 10]!r}"
    return None


def repaired(text: str) -> str:
    """The text as it was before it went through a wrong code page, if that can be told; else as it is. `ftfy` does the telling."""
    return text if text.isascii() else fix_encoding(text)


def boilerplate(answer: str) -> str | None:
    """The phrase near the beginning of an answer with which a model speaks of itself or declines; else None."""
    found = BOILERPLATE.search(answer[:FIRST].replace("’", "'"))
    return found[0] if found else None


def loops(text: str, limit: float) -> str | None:
    """Says so if more than `limit` of an answer's runs of three words occurred before in it; None for fewer than 30 words."""
    if len(text.split()) < 30:
        return None
    share = repeated_share(text)
    return f"{share:.0%} of it repeats" if share > limit else None


def normal(texts: Iterable[str]) -> str:
    """Texts made alike where only case, white space or the form of a character differs; one string."""
    return "\x1f".join(" ".join(unicodedata.normalize("NFC", text).lower().split()) for text in texts)


class TestGrams:
    """All runs of `size` words of the test sets, as 8-byte hashes, and which file each came from; shorter texts as a whole."""

    __test__ = False  # pytest takes the name for a test

    def __init__(self, size: int) -> None:
        self.size = size
        self.files: list[str] = []
        self.grams: dict[int, int] = {}
        self.whole: dict[int, int] = {}

    def add(self, file: str, text: str) -> None:
        """Add a text of a test file."""
        if not self.files or self.files[-1] != file:
            self.files.append(file)
        said = words(text)
        if not said:
            return
        if len(said) < self.size:
            self.whole.setdefault(hash(tuple(said)), len(self.files) - 1)
        for i in range(len(said) - self.size + 1):
            self.grams.setdefault(hash(tuple(said[i : i + self.size])), len(self.files) - 1)

    def found(self, texts: Sequence[str]) -> tuple[str, str] | None:
        """(test file, words in common) of the first run that a text shares, or that it is as a whole; else None."""
        for text in texts:
            said = words(text)
            if not said:
                continue
            if len(said) < self.size:
                file = self.whole.get(hash(tuple(said)))
                if file is not None:
                    return self.files[file], " ".join(said)
            for i in range(len(said) - self.size + 1):
                file = self.grams.get(hash(tuple(said[i : i + self.size])))
                if file is not None:
                    return self.files[file], " ".join(said[i : i + self.size])
        return None
