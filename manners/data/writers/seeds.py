"""The rows that writing starts from, of any shape that `formats` knows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manners.core.console import console
from manners.core.errors import InputError, nearest
from manners.core.records import Group, Message
from manners.data.formats import parse_map
from manners.data.stream import Faults, Reader

LONGEST = 20_000
"""Characters of a seed; a longer one is left out and counted."""
STARTER = "starter:"


@dataclass(frozen=True, slots=True)
class Seed:
    """A row to start from. `key` is its place among the usable rows, by which everything that is drawn for it is keyed."""

    key: int
    group: Group
    row: Mapping[str, Any]

    @property
    def asked(self) -> str:
        """What is asked: the last turn of the prompt."""
        return self.group.prompt.messages[-1].content if self.group.prompt.messages else ""

    @property
    def instruction(self) -> str:
        """What is asked, without the input where the row has that apart."""
        own = self.row.get("instruction")
        return own if isinstance(own, str) and own.strip() else self.asked

    @property
    def answer(self) -> str:
        return self.group.responses[0].text if self.group.responses else ""

    @property
    def cluster(self) -> str:
        return self.group.prompt.cluster

    @property
    def license(self) -> str:
        said = self.row.get("license")
        return said if isinstance(said, str) else ""

    @property
    def told(self) -> dict[str, Any]:
        """How a row that was written from it names it."""
        return {"place": self.key, "text": self.asked, "source": self.group.prompt.source}

    def messages(self, asked: str | None = None) -> list[Message]:
        """The prompt's turns, the last one in other words where these are given."""
        turns = list(self.group.prompt.messages)
        return turns if asked is None else [*turns[:-1], Message(turns[-1].role, asked)]


def read_seeds(
    name: str, *, column_map: str | None = None, limit: int | None = None, kinds: Sequence[str] = ()
) -> tuple[list[Seed], Faults]:
    """Seeds of a file, one a row, and what of it could not be used. `starter:NAME` is a file of the data that ships.

    Raises InputError for a file that cannot be used, one whose kind is not among `kinds` (if any are named), and one without a usable row.
    """
    path = starter_file(name) if name.startswith(STARTER) else name
    faults = Faults()
    reader = Reader(str(path), faults, parse_map(column_map) if column_map else None)
    if kinds and reader.kind not in kinds:
        raise InputError(
            f"{name} holds {reader.kind} (read as '{reader.converter.shape}'); this way of writing starts from {' or '.join(kinds)}."
        )
    seeds: list[Seed] = []
    for number, row, groups in reader:
        if limit is not None and len(seeds) >= limit:
            break
        if not groups:
            continue
        size = sum(len(m.content) for m in (*groups[0].prompt.messages, *(t for r in groups[0].responses for t in r.turns)))
        if size > LONGEST:
            faults.add(name, number, f"longer than {LONGEST:,} characters")
        else:
            seeds.append(Seed(len(seeds), groups[0], row))
    if faults.counts:
        said = "; ".join(f"{why} ({n})" for why, n in faults.counts.most_common(3))
        console.print(f"{name}: {faults.counts.total()} rows left out: {said}")
    if not seeds:
        raise InputError(f"{name} has no row to start from.")
    return seeds, faults


def starter_file(name: str) -> Path:
    """The path of `starter:NAME`. Raises InputError for a name that does not ship."""
    folder = Path(__file__).parents[1] / "starter"
    known = [p.name for p in folder.iterdir() if p.suffix in (".jsonl", ".yaml")]
    if name.removeprefix(STARTER) not in known:
        raise InputError(f"'{name}' does not ship; {nearest(name.removeprefix(STARTER), known)}")
    return folder / name.removeprefix(STARTER)
