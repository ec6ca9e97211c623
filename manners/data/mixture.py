"""`manners data mix`: one file out of many, in stated shares. docs/mixtures.md.

Two passes. The first reads every source, brings its rows to one form and lays them on disk; then all sizes are known, and with them the
number of rows each source gives. The second writes the mixture: place i of it is looked up in a permutation that is computed, not stored,
so that memory does not grow with rows, any seed gives one order, and a run that was killed goes on at the place where it stopped.
"""

import json
import math
import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field
from rich.console import Console
from rich.table import Table

from manners.core import files
from manners.core.chance import stream_of
from manners.core.config import Settings
from manners.core.console import console
from manners.core.errors import InputError, nearest
from manners.data.formats import parse_map
from manners.data.stream import LONGEST, ORIGIN, Faults, Reader, Spool, counted_as, record

EVERY = 20_000
"""Rows of the mixture between two notes of how far it has come."""
ROUNDS = 8
FLAN_V2 = {"flan2021": 0.40, "t0": 0.32, "niv2": 0.20, "cot": 0.05, "dialog": 0.03}
"""Shares of the submixtures in the published Flan 2022 collection (Longpre 2023)."""
FLAN_V2_CAPS = {"flan2021": 30_000, "t0": 20_000, "niv2": 5_000, "cot": 100_000, "dialog": 200_000}
"""Most rows that a task counts for within its submixture there."""
PUBLISHED = {"flan-v2": (FLAN_V2, FLAN_V2_CAPS)}
SOURCE_KEYS = ("file", "map", "cap", *ORIGIN)


class MixSettings(Settings):
    """Settings of `manners data mix`."""

    rest: ClassVar[str] = "sources"
    writes: ClassVar[str] = "mixture.jsonl"
    silent: ClassVar[frozenset[str]] = frozenset({"out"})

    sources: list[str] | dict[str, str | dict[str, Any]]
    """Files by name: words NAME=FILE, or in a YAML file a mapping of NAME to FILE or to {file, map, cap, source, cluster, license,
    made_by}. A name may be GROUP/TASK."""
    out: str
    """JSONL file to write."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """Rows of the mixture. None takes as many as there can be without giving a row twice."""
    weights: str | dict[str, float] | None = None
    """Share of each group: flan-v2, or GROUP=SHARE with commas. None shares by size."""
    cap: Annotated[int, Field(ge=1)] | None = None
    """Most rows that a source counts for when shares follow from sizes."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Capped sizes are raised to one over this: 1 is proportional, large is equal."""
    seed: int = 0
    """Which rows and which order."""
    max_line: Annotated[int, Field(ge=1)] = LONGEST
    """Bytes of the longest line that is read."""


# -------------------------------------------------------------------------------------------------------------- shares


def shares(
    sizes: Mapping[str, int],
    *,
    weights: Mapping[str, float] | None = None,
    caps: Mapping[str, int | None] | None = None,
    temperature: float = 1.0,
) -> dict[str, float]:
    """Share of each source: min(size, cap)^(1/temperature), made to sum to 1, within each group that has a weight (Raffel 2020).

    `weights` are of groups, the part of a name before "/". Raises InputError where they do not fit the sources.
    """
    caps = caps or {}
    mass = {name: min(size, caps.get(name) or size) ** (1 / temperature) for name, size in sizes.items()}
    if weights is None:
        total = sum(mass.values())
        return {name: m / total for name, m in mass.items()}
    groups: Counter[str] = Counter()
    for name, m in mass.items():
        groups[group_of(name)] += m  # type: ignore[assignment]
    for group in groups:
        if group not in weights:
            raise InputError(f"weights: the source '{group}' has no share; {nearest(group, weights)}")
    for group, weight in weights.items():
        if weight > 0 and group not in groups:
            raise InputError(f"weights: no source is called '{group}' (or '{group}/...'), which is to have a share of {weight:g}.")
    total = sum(weights.values())
    return {name: weights[group_of(name)] / total * m / groups[group_of(name)] for name, m in mass.items()}


def group_of(name: str) -> str:
    """The part of a source's name that weights are given to.

    >>> group_of("flan2021/anli"), group_of("t0")
    ('flan2021', 't0')
    """
    return name.partition("/")[0]


def quotas(share: Mapping[str, float], rows: int) -> dict[str, int]:
    """Whole rows of each source, `rows` together: shares rounded by largest remainder, so that each is off by less than one row."""
    exact = {name: s * rows for name, s in share.items()}
    found = {name: math.floor(e) for name, e in exact.items()}
    by_remainder = sorted(exact, key=lambda name: found[name] - exact[name])
    for name in by_remainder[: rows - sum(found.values())]:
        found[name] += 1
    return found


def most(sizes: Mapping[str, int], share: Mapping[str, float]) -> int:
    """Rows of the largest mixture that gives no row twice."""
    rows = min(math.floor(sizes[name] / s * (1 + 1e-12)) for name, s in share.items() if s > 0)
    while rows > 1 and any(n > sizes[name] for name, n in quotas(share, rows).items()):
        rows -= 1
    return max(rows, 1)


class Permutation:
    """An order of 0..n-1 that is computed place by place: a Feistel network over a square just large enough, walked until inside."""

    def __init__(self, n: int, *key: int | str) -> None:
        self.n, self.side = n, math.isqrt(max(n - 1, 0)) + 1
        stream = b"".join(stream_of(part, *key) for part in range(ROUNDS // 4))
        self.keys = [int.from_bytes(stream[i * 8 : i * 8 + 8], "little") for i in range(ROUNDS)]

    def __getitem__(self, place: int) -> int:
        side = self.side
        while True:
            left, right = divmod(place, side)
            for key in self.keys:
                # one round of splitmix64 stands for a random function of `right`
                x = (key ^ right) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
                x = (x ^ x >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
                left, right = right, (left + (x ^ x >> 31)) % side
            place = left * side + right
            if place < self.n:
                return place


# --------------------------------------------------------------------------------------------------------- the command


def mix(settings: MixSettings) -> dict[str, Any]:
    """Write the mixture and, beside it, the table of what went in; return the table.

    Raises InputError for sources and weights that cannot be used, and for sources of different kinds.
    """
    out = Path(settings.out)
    files.check_target(out)
    sources = parse_sources(settings.sources)
    for name, spec in sources.items():
        if not Path(spec["file"]).expanduser().is_file():
            raise InputError(f"the source '{name}' is no file: {spec['file']}.")
        if out.exists() and out.samefile(Path(spec["file"]).expanduser()):
            raise InputError(f"out= is the source '{name}', {spec['file']}; give the mixture a file of its own.")
    weights, group_caps = parse_weights(settings.weights)
    caps = {name: spec.get("cap") or settings.cap or group_caps.get(group_of(name)) for name, spec in sources.items()}
    shares(dict.fromkeys(sources, 1), weights=weights)  # names first: they take no reading
    work = out.with_name(out.name + ".mixing" + files.PARTIAL)
    with files.disk_errors(out):
        state = _begun(work, _fingerprint(settings, sources))
        spool = Spool(work)
        try:
            _lay_out(sources, settings, work, spool, state)
            table = _table(sources, settings, weights, caps, state)
            _write(work, spool, settings, table, state)
        finally:
            spool.close()
        _write_beside(out, table, state)
        os.replace(work / "mixture", out)
        files.remove(work)
    _print(table)
    return table


def parse_sources(given: Sequence[str] | Mapping[str, str | Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Sources by name, each with `file` and whatever of SOURCE_KEYS was given. Raises InputError."""
    if not isinstance(given, Mapping):
        found: dict[str, str | Mapping[str, Any]] = {}
        for word in given:
            name, equals, file = word.partition("=")
            if not equals or not name or not file:
                raise InputError(f"'{word}' is no source; write NAME=FILE, for example flan=flan.jsonl.")
            if name in found:
                raise InputError(f"two sources are called '{name}'; give each a name of its own.")
            found[name] = file
        given = found
    if not given:
        raise InputError("a mixture needs sources: NAME=FILE words, or `sources:` in the file of --config.")
    sources = {}
    for name, spec in given.items():
        spec = {"file": spec} if isinstance(spec, str) else dict(spec)
        for key in spec:
            if key not in SOURCE_KEYS:
                raise InputError(f"the source '{name}' has an unknown key '{key}'; {nearest(key, SOURCE_KEYS)}")
        if not isinstance(spec.get("file"), str):
            raise InputError(f"the source '{name}' names no file; write file: ... under it.")
        cap = spec.get("cap")
        if cap is not None and (not isinstance(cap, int) or cap < 1):
            raise InputError(f"the source '{name}' has cap {cap!r}; it must be a whole number, 1 or more.")
        sources[str(name)] = spec
    return sources


def parse_weights(given: str | Mapping[str, float] | None) -> tuple[dict[str, float] | None, dict[str, int]]:
    """Shares of groups, and caps of their tasks where they are published with them. Raises InputError."""
    if given is None:
        return None, {}
    if isinstance(given, str):
        if given in PUBLISHED:
            return PUBLISHED[given]
        if "=" not in given:
            raise InputError(f"weights={given} is not known: {nearest(given, PUBLISHED)} Or write GROUP=SHARE,GROUP=SHARE.")
        parts = [part.partition("=") for part in given.split(",")]
        try:
            given = {name.strip(): float(share) for name, _, share in parts}
        except ValueError:
            raise InputError(f"weights={given} is not understood; write GROUP=SHARE,GROUP=SHARE with numbers.") from None
    weights = {str(name): float(share) for name, share in given.items()}
    if not all(math.isfinite(w) and w >= 0 for w in weights.values()) or sum(weights.values()) <= 0:
        raise InputError("weights must be numbers of 0 or more, and not all 0.")
    return weights, {}


# ------------------------------------------------------------------------------------------------- pass one: to the disk


def _fingerprint(settings: MixSettings, sources: Mapping[str, Mapping[str, Any]]) -> str:
    """What a mixture depends on. Files count by size and time of change: reading gigabytes to compare them is the work itself."""
    stats = [Path(spec["file"]).expanduser().stat() for spec in sources.values()]
    said = [settings.model_dump(exclude={"out"}), [(s.st_size, s.st_mtime_ns) for s in stats]]
    return sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()


def _begun(work: Path, fingerprint: str) -> dict[str, Any]:
    """How far an earlier run of the same mixture came, or the beginning of a new one."""
    if (work / "state.json").is_file():
        state = files.read_json(work / "state.json")
        if state.get("fingerprint") == fingerprint:
            console.print(f"going on with what was begun: {len(state['laid'])} sources read, {state['written']:,} rows written")
            return state
    files.remove(work)
    return {"fingerprint": fingerprint, "laid": [], "length": 0, "size": 0, "written": 0, "bytes": 0}


def _lay_out(sources: Mapping[str, Mapping[str, Any]], settings: MixSettings, work: Path, spool: Spool, state: dict[str, Any]) -> None:
    """Read every source that is not yet on disk; note each when it is there."""
    spool.cut(state["length"], state["size"])
    for name, spec in list(sources.items())[len(state["laid"]) :]:
        every = work / f"refused-{len(state['laid'])}.jsonl"
        with files.jsonl_writer(every) as write:
            faults = Faults(write=write)
            laid = _lay_source(name, spec, settings, spool, faults)
        spool.flush()
        state["laid"].append({**laid, "refused": faults.report()})
        state["length"], state["size"] = spool.length, spool.size
        files.write_json(work / "state.json", state)
    kinds = {laid["kind"]: laid["name"] for laid in state["laid"]}
    if len(kinds) > 1:
        said = ", ".join(f"'{name}' {kind}" for kind, name in kinds.items())
        raise InputError(f"the sources are of different kinds, which no file can hold together: {said}.")


def _lay_source(name: str, spec: Mapping[str, Any], settings: MixSettings, spool: Spool, faults: Faults) -> dict[str, Any]:
    reader = Reader(spec["file"], faults, parse_map(spec["map"]) if spec.get("map") else None, settings.max_line)
    origin = {"source": name} | {key: str(spec[key]) for key in ORIGIN if spec.get(key)}
    begin, read, size = spool.length, 0, spool.size
    said = {key: Counter() for key in ORIGIN}
    for _, _, groups in reader:
        read += 1
        for group in groups:
            row = {"part": name, **record(group, reader.kind, origin)}
            for key in ORIGIN:
                if len(said[key]) < 1000:
                    said[key][counted_as(row[key])] += 1
            spool.add(row)
    if spool.length == begin:
        why = ", ".join(f"{why} ({n})" for why, n in faults.counts.most_common(2))
        raise InputError(f"the source '{name}' ({spec['file']}) has no usable row: {why}.")
    return {
        "name": name,
        "file": spec["file"],
        "kind": reader.kind,
        "shape": reader.converter.shape,
        "begin": begin,
        "read": read + faults.counts.total(),
        "usable": spool.length - begin,
        "bytes": spool.size - size,
        "origin": {key: [value for value, _ in said[key].most_common(10) if value] for key in ORIGIN},
    }


# ---------------------------------------------------------------------------------------------- pass two: the mixture


def _table(
    sources: Mapping[str, Any],
    settings: MixSettings,
    weights: Mapping[str, float] | None,
    caps: Mapping[str, int | None],
    state: Mapping[str, Any],
) -> dict[str, Any]:
    sizes = {laid["name"]: laid["usable"] for laid in state["laid"]}
    share = shares(sizes, weights=weights, caps=caps, temperature=settings.temperature)
    rows = settings.rows or most(sizes, share)
    drawn = quotas(share, rows)
    lines = []
    for laid in state["laid"]:
        name = laid["name"]
        lines.append(
            {
                **{key: laid[key] for key in ("name", "file", "shape", "read", "usable", "origin")},
                "refused": laid["refused"],
                "cap": caps[name],
                "share": share[name],
                "rows": drawn[name],
                "realised": drawn[name] / rows,
                "times_over": drawn[name] / laid["usable"],
            }
        )
    off = [abs(line["realised"] / line["share"] - 1) for line in lines if line["share"] > 0]
    groups = {group: sum(drawn[name] for name in sources if group_of(name) == group) for group in dict.fromkeys(map(group_of, sources))}
    return {
        "out": settings.out,
        "kind": state["laid"][0]["kind"],
        "rows": rows,
        "seed": settings.seed,
        "weights": dict(weights) if weights else None,
        "temperature": settings.temperature,
        "sources": lines,
        "groups": {group: {"rows": n, "realised": n / rows} for group, n in groups.items()},
        "farthest_off": max(off),
        "refused": sum(line["refused"]["rows"] for line in lines),
    }


def _write(work: Path, spool: Spool, settings: MixSettings, table: Mapping[str, Any], state: dict[str, Any]) -> None:
    """Write the mixture to `work`/mixture, from where an earlier run stopped."""
    begins = [laid["begin"] for laid in state["laid"]]
    sizes = [laid["usable"] for laid in state["laid"]]
    ends = list(accumulate(line["rows"] for line in table["sources"]))
    order = Permutation(table["rows"], settings.seed, "order")
    inner: dict[tuple[int, int], Permutation] = {}
    target = work / "mixture"
    target.touch()
    os.truncate(target, state["bytes"])
    with open(target, "ab") as file:
        for i in range(state["written"], table["rows"]):
            place = order[i]
            source = bisect_right(ends, place)
            epoch, k = divmod(place - (ends[source - 1] if source else 0), sizes[source])
            if (source, epoch) not in inner:
                inner[source, epoch] = Permutation(sizes[source], settings.seed, epoch, table["sources"][source]["name"])
            line = spool.line(begins[source] + inner[source, epoch][k])
            file.write(line)
            state["bytes"] += len(line)
            if (i + 1) % EVERY == 0:
                file.flush()
                os.fsync(file.fileno())
                state["written"] = i + 1
                files.write_json(work / "state.json", state)
        file.flush()
        os.fsync(file.fileno())


def _write_beside(out: Path, table: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """The table, and every row that was left out, beside the mixture."""
    files.write_json(out.with_name(f"{out.stem}.table.json"), table)
    work = out.with_name(out.name + ".mixing" + files.PARTIAL)
    if not table["refused"]:
        return
    with files.jsonl_writer(out.with_name(f"{out.stem}.refused.jsonl")) as write:
        for place in range(len(state["laid"])):
            with open(work / f"refused-{place}.jsonl", encoding="utf-8") as file:
                for line in file:
                    write(json.loads(line))


def _print(table: Mapping[str, Any]) -> None:
    out = Console(highlight=False, markup=False, emoji=False)
    shown = Table("source", *(("usable", "refused", "share", "rows", "realised", "times over")), box=None, pad_edge=False)
    for column in shown.columns[1:]:
        column.justify = "right"
    for line in table["sources"]:
        shown.add_row(
            line["name"],
            f"{line['usable']:,}",
            f"{line['refused']['rows']:,}",
            f"{line['share']:.2%}",
            f"{line['rows']:,}",
            f"{line['realised']:.2%}",
            f"{line['times_over']:.2f}",
        )
    out.print(shown)
    out.print(f"{table['out']}: {table['rows']:,} rows of {table['kind']}; the share farthest off is off by {table['farthest_off']:.2%}")
    empty = [line["name"] for line in table["sources"] if line["share"] > 0 and not line["rows"]]
    if empty:
        out.print(f"too few rows for a share this small, so that none was taken: {', '.join(empty)}; give rows= a larger number")
    for line in table["sources"]:
        for fault in line["refused"]["first"][:3]:
            out.print(f"  left out: {fault['file']}, row {fault['row']}: {fault['why']}")
