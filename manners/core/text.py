"""Small things about plain text that several rooms need: its words, and how much of it repeats."""

import re
import unicodedata

_WORD = re.compile(r"[^\W_]+(?:'(?:t|s|re|ve|ll|d|m)\b)?")


def words(text: str) -> list[str]:
    """The words of a text in lower case: runs of letters and digits; English endings ("can't") stay, other apostrophes divide."""
    return _WORD.findall(unicodedata.normalize("NFC", text).replace("’", "'").lower())


def repeated_share(text: str, n: int = 3) -> float:
    """Share of a text's word n-grams that occurred before in it: 0 for prose, near 1 for a loop; 0 for fewer than n words."""
    split = text.lower().split()
    grams = [tuple(split[i : i + n]) for i in range(len(split) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
