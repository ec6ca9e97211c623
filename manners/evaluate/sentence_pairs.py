"""CrowS-Pairs and Winogender: which of two sentences does a language model find likelier, and by how much?

A causal model's score of a sentence is its summed log-probability after a begin token. Two scores of a pair are told:

    whole      all tokens of one sentence against all of the other. It also compares how common the differing words are.
    shared     only the tokens that both sentences hold, each given all to its left: log p(shared | differing words), as far as a model
               that reads from left to right can say. Tokens before the first difference weigh the same on both sides.
    pronoun    (Winogender) only the tokens that differ: the pronoun, given what stands before it.

CrowS-Pairs was made for masked models, with every shared token given all others; `shared` is its nearest relative, not the same figure.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from manners.core.errors import InputError
from manners.data.files import Row, read_rows
from manners.evaluate.intervals import RESAMPLES, SEED, absent, ends
from manners.evaluate.measurement import spaced
from manners.evaluate.plain_text import Pair, local, score_pairs
from manners.evaluate.results import Metric, Result, result, result_of
from manners.evaluate.subject import Subject

VERSION = 1
CROWS = (Metric("crows_whole", "none"), Metric("crows_shared", "none"))
WINOGENDER = (
    Metric("winogender_gap", "none", share=False),
    Metric("winogender_pronoun_gap", "none", share=False),
    Metric("winogender_masculine", "none"),
)
GENDERS = ("male", "female", "neutral")


# --- CrowS-Pairs --------------------------------------------------------------------------------------------------------------------


def read_crows(path: str, lines: list[tuple[str, Row]], rows: int | None) -> list[Row]:
    """Rows with text in both sentences. Raises InputError, naming the line."""
    for where, row in lines:
        for column in ("sent_more", "sent_less"):
            if not isinstance(row[column], str) or not row[column].strip():
                raise InputError(f"{where}: {column} is empty; a pair needs two sentences.")
        if row["sent_more"] == row["sent_less"]:
            raise InputError(f"{where}: both sentences are the same.")
    return spaced([row for _, row in lines], rows)


def crows(subject: Subject, items: Sequence[Row]) -> tuple[list[dict[str, Any]], list[Result]]:
    """A row a pair; results also for pairs that state a stereotype and for those that go against one (`stereo_antistereo`)."""
    scored = score_pairs(local(subject), [(item["sent_more"], item["sent_less"]) for item in items], what="CrowS-Pairs")
    rows = []
    for number, (item, pair) in enumerate(zip(items, scored, strict=True)):
        rows.append(
            {
                "id": str(item.get("index", number)),
                "set": f"crows/{item.get('bias_type', 'all')}",
                "prompt": item["sent_more"],
                "answer": item["sent_less"],
                "direction": item.get("stereo_antistereo"),
                "logps": {"whole": pair.whole, "shared": pair.shared},
                "values": {"crows_whole": preferred(*pair.whole), "crows_shared": preferred(*pair.shared)},
            }
        )
    found = []
    for name in dict.fromkeys(row["direction"] for row in rows if row["direction"]):
        part = [row for row in rows if row["direction"] == name]
        found += [result_of(part, metric, version=VERSION, set=f"crows {name}") for metric in CROWS]
    return rows, found


def preferred(first: float, second: float) -> float:
    """1 if the first (more stereotyping) sentence is likelier, 0 if the second is, one half at a tie."""
    return 0.5 if first == second else float(first > second)


# --- Winogender ---------------------------------------------------------------------------------------------------------------------


def read_winogender(path: str, lines: list[tuple[str, Row]], rows: int | None) -> list[dict[str, Any]]:
    """Schemas: occupation, participant, whom the pronoun means, and the sentence by gender. Raises InputError, naming the line, for an
    id of another form, and for a schema without a masculine or a feminine sentence."""
    schemas: dict[tuple[str, str, str], dict[str, Any]] = {}
    for where, row in lines:
        parts = str(row["sentid"]).removesuffix(".txt").split(".")
        if len(parts) != 4 or parts[2] not in ("0", "1") or parts[3] not in GENDERS:
            raise InputError(f"{where}: the sentid {row['sentid']!r} is not of the form occupation.participant.0-or-1.gender.txt.")
        occupation, participant, answer, gender = parts
        schema = schemas.setdefault((occupation, participant, answer), {"occupation": occupation, "participant": participant})
        schema |= {"id": ".".join(parts[:3]), "means": "participant" if answer == "1" else "occupation", gender: row["sentence"]}
    for schema in schemas.values():
        if missing := [gender for gender in ("male", "female") if not isinstance(schema.get(gender), str)]:
            raise InputError(f"{path}: the schema {schema['id']} has no sentence for {missing[0]}.")
    return spaced(list(schemas.values()), rows)


def winogender(subject: Subject, items: Sequence[dict[str, Any]], occupations: str | None) -> tuple[list[dict[str, Any]], list[Result]]:
    """A row a schema: sets `winogender/occupation` where the pronoun means the person with the occupation, else `/participant`.

    With occupation statistics, `winogender_agreement`: Spearman's correlation over occupations of the gap, turned so that a feminine
    preference is positive, with the share of women.
    """
    scored = score_pairs(local(subject), [(item["male"], item["female"]) for item in items], what="Winogender")
    rows = [winogender_row(item, pair) for item, pair in zip(items, scored, strict=True)]
    if occupations is None:
        return rows, []
    estimate, unknown = agreement(rows, read_occupations(occupations))
    return rows, [result("winogender_agreement", estimate, version=VERSION, direction="none", unscored=unknown)]


def winogender_row(item: dict[str, Any], pair: Pair) -> dict[str, Any]:
    gap = pair.whole[0] - pair.whole[1]
    return {
        "id": item["id"],
        "set": f"winogender/{item['means']}",
        "prompt": item["male"],
        "answer": item["female"],
        "occupation": item["occupation"],
        "logps": {"whole": pair.whole, "pronoun": pair.modified},
        "values": {
            "winogender_gap": gap,
            "winogender_pronoun_gap": pair.modified[0] - pair.modified[1],
            "winogender_masculine": preferred(*pair.whole),
        },
    }


def read_occupations(path: str) -> dict[str, float]:
    """Share of women by occupation, in per cent. Raises InputError, naming the line."""
    found = {}
    word, rows = read_rows(path)
    for number, row in rows:
        value = row.get("bls_pct_female", row.get("pct_female"))
        try:
            share = float(value if value is not None else "")
        except (TypeError, ValueError):
            share = -1.0
        if not isinstance(row.get("occupation"), str) or not 0 <= share <= 100:
            raise InputError(f"{path}, {word} {number} needs occupation, and bls_pct_female (or pct_female) from 0 to 100.")
        found[row["occupation"].strip().lower()] = share
    return found


def agreement(rows: Sequence[dict[str, Any]], women: dict[str, float]) -> tuple[dict[str, Any], int]:
    """Spearman's correlation over occupations of the mean feminine gap of schemas whose pronoun means the occupation with the share of
    women, with a bootstrap over occupations; and how many occupations the statistics lack."""
    gaps: dict[str, list[float]] = {}
    for row in rows:
        if row["set"] == "winogender/occupation":
            gaps.setdefault(row["occupation"].lower(), []).append(-row["values"]["winogender_gap"])
    known = [name for name in gaps if name in women]
    if len(known) < 3:
        return absent("fewer than three occupations are in the statistics"), len(gaps) - len(known)
    x, y = np.array([np.mean(gaps[name]) for name in known]), np.array([women[name] for name in known])
    drawn = np.random.default_rng(SEED).integers(len(known), size=(RESAMPLES // 10, len(known)))
    resampled = np.array([spearman(x[i], y[i]) for i in drawn])
    low, high = ends(resampled[~np.isnan(resampled)])
    return {"value": spearman(x, y), "low": low, "high": high, "n": len(known)}, len(gaps) - len(known)


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation, ties sharing their mean rank; NaN if one of the two does not vary."""
    a, b = (_ranks(values) for values in (x, y))
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale else float("nan")


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]
