"""Which data a run read, and what is known of it: each file's rows and tokens as the stages counted them, and its card if there is one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from manners.report.read import Row, Run, table
from manners.report.story import number

KEYS = ("data", "prompts", "ptx", "held_out", "validation", "eval_data")
LISTED = 4


def audit(runs: Sequence[Run]) -> list[Row]:
    """A row a data file: its name, the stages that read it, rows, tokens, refused and cut rows, what was noted, and what its card says."""
    found: dict[str, Row] = {}
    for run in runs:
        for stage in run.stages:
            for key in KEYS:
                named = stage.settings.get(key)
                for name in named if isinstance(named, list) else [named]:
                    if not isinstance(name, str) or not name:
                        continue
                    row = found.setdefault(name, {"name": name, "short": short(name), "stages": [], "facts": [], "card": []})
                    row["stages"].append(f"{run.name} / {stage.name}" if len(runs) > 1 else stage.name)
                    if key == "data":
                        row["facts"] = row["facts"] or facts(stage.manifest)
        for name, card in run.cards.items():
            row = found.setdefault(name, {"name": name, "short": short(name), "stages": [], "facts": [], "card": []})
            row["card"] = of_card(card)
    return list(found.values())


def short(name: str) -> str:
    """A path's last two parts: where a run was made says nothing of its data."""
    return "/".join(Path(name).parts[-2:])


def facts(manifest: Row) -> list[tuple[str, str]]:
    """What a stage counted of the rows that it trained on."""
    told: list[tuple[str, Any]] = [(key, manifest.get(key)) for key in ("rows", "tokens", "refused")]
    counts = table(manifest, "counts")
    told += [(name, counts.get(key)) for key, name in (("truncated", "cut"), ("begin_doubled", "begin doubled"))]
    shown = [(name, f"{value:,}") for name, value in told if number(value)]
    return shown + [(str(note), f"{value:,}") for note, value in table(manifest, "notes").items() if number(value)]


def of_card(card: Row) -> list[tuple[str, str]]:
    """What a card says: kind, rows, words, sources, licences, languages, duplicates. Of an inspection: rows, tokens, refused."""
    told: list[tuple[str, str]] = [("kind", str(card.get("kind")))]
    told += [(key, f"{card[key]:,}") for key in ("rows", "groups", "tokens", "trained_tokens", "refused") if number(card.get(key))]
    for unit, parts in table(card, "totals").items():
        if isinstance(parts, dict):
            told.append((str(unit), ", ".join(f"{part} {value:,}" for part, value in parts.items() if number(value))))
    for key in ("sources", "licences", "licenses", "clusters", "languages", "made_by"):
        names = table(card, key)
        if names:
            several = [f"{name} {value:,}" if number(value) else str(name) for name, value in list(names.items())[:LISTED]]
            told.append((key.replace("_", " "), ", ".join(several) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")))
    duplicates = table(card, "duplicates").get("exact")
    return told + ([("duplicates", f"{duplicates:,}")] if number(duplicates) else [])
