"""Files and hub data sets -> numbered rows. What the rows mean is the business of `formats`.

JSONL is read with the standard library, line by line; CSV, Parquet and the hub go through `datasets`, which takes two seconds to
import and is therefore imported only where it is used.
"""

import codecs
import csv
import difflib
import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from manners.core import network
from manners.core.errors import InputError, ended

Row = dict[str, Any]
NumberedRows = Iterator[tuple[int, Row]]

ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
GZIP_ENDINGS = (".jsonl.gz", ".ndjson.gz", ".json.gz")
CONVERSATION_COLUMNS = ("messages", "conversations", "conversation", "dialog", "dialogue")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[^/\s]+){0,2}")


def read_rows(name: str, *, streaming: bool = False) -> tuple[str, NumberedRows]:
    """What to call a row of `name` ("line" or "row") and its rows, numbered from 1.

    `streaming` fetches no more from the hub than is used. Raises InputError for what is missing, not a file, or of no known
    ending; the iterator raises it for what cannot be parsed.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if _ending(p.name))
        hint = f"name a file in it: {', '.join(inside[:5])}" if inside else f"it holds no {', '.join(ENDINGS)} file"
        raise InputError(f"{name} is a folder; {hint}.")
    ending = _ending(path.name)
    if not path.exists():
        if not ending and _HUB_NAME.fullmatch(name) and not path.parent.is_dir():
            return "row", _hub(name, streaming)
        raise InputError(ended(f"{name}: there is no such file{_neighbour(path)}"))
    if not ending:
        hint = '; for plain text write one {"text": "..."} a line to a .jsonl file' if path.suffix in (".txt", ".md") else ""
        raise InputError(f"{name}: the ending '{path.suffix}' is not known; known are {', '.join(ENDINGS + GZIP_ENDINGS)}{hint}.")
    if path.stat().st_size == 0:
        raise InputError(f"{name} is empty (0 bytes).")
    if ending in (".csv", ".tsv", ".parquet"):
        return "row", _table(name, path, ending)
    if _looks_like_a_list(path) or (ending.startswith(".json") and "l" not in ending and not _first_line_is_an_object(path)):
        return "row", _json(name, path)
    return "line", _jsonl(name, path)


def _ending(name: str) -> str:
    lower = name.lower()
    return next((e for e in GZIP_ENDINGS + ENDINGS if lower.endswith(e)), "")


def _neighbour(path: Path) -> str:
    """A hint that names the file of the same folder most like `path`, or the folder that is missing too."""
    if not path.parent.is_dir():
        return f" (nor a folder {path.parent})"
    close = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1, cutoff=0.75)
    return f"; did you mean '{path.parent / close[0]}'?" if close else ""


def _open(path: Path) -> Any:
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")


def _head(path: Path) -> bytes:
    """The first line that is not blank, or as much of it as 1 MB holds; empty if the file cannot be read."""
    try:
        with _open(path) as file:
            head = file.read(1 << 20)
    except (OSError, EOFError, zlib.error):
        return b""  # the reader meets the same fault and says so
    return head.removeprefix(codecs.BOM_UTF8).lstrip().split(b"\n", 1)[0]


def _looks_like_a_list(path: Path) -> bool:
    return _head(path).startswith(b"[")


def _first_line_is_an_object(path: Path) -> bool:
    """Whether a `.json` file is JSONL in fact: its first line is a whole object without a list of rows in it."""
    try:
        first = json.loads(_head(path))
    except ValueError:
        return False
    return isinstance(first, dict) and _rows_field(first) is None


def _decode(name: str, data: bytes, line: int, offset: int) -> str:
    """`data` as text. Raises InputError that names the byte, where `data` begins at `line` (1-based) and byte `offset`."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if offset == 0 and data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise InputError(f"{name} is UTF-16, not UTF-8; save it as UTF-8 (iconv -f UTF-16 -t UTF-8).") from None
        line += data.count(b"\n", 0, error.start)
        where = f"line {line}, byte {offset + error.start} of the file (0x{data[error.start]:02x})"
        raise InputError(f"{name} is not UTF-8: {where} is no UTF-8 character; save the file as UTF-8.") from None


def _jsonl(name: str, path: Path) -> NumberedRows:
    """Rows of a JSONL file. Lines end at b"\\n" alone: str.splitlines also breaks at U+2028, which may stand inside strings."""
    line, offset, found = 0, 0, False
    try:
        with _open(path) as file:
            pending = next(file, b"")
            while pending:
                raw, pending = pending, next(file, b"")
                line += 1
                text = _decode(name, raw.removeprefix(codecs.BOM_UTF8) if line == 1 else raw, line, offset).strip(" \t\r\n")
                offset += len(raw)
                if text:
                    found = True
                    yield line, _object(name, line, text, pending, file)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{name} cannot be read after line {line}: {error}.") from None
    if not found:
        raise InputError(f"{name} holds no rows, only blank lines.")


def _object(name: str, line: int, text: str, following: bytes, rest: Any) -> Row:
    """The object that `text` (line `line`) holds. Raises InputError that says what is wrong with the line."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise InputError(f"{name}, line {line} is nested too deeply to be a row of data.") from None
    except ValueError as error:
        if not isinstance(error, json.JSONDecodeError):  # an integer of thousands of digits
            raise InputError(f"{name}, line {line} is not readable JSON: {error}.") from None
        where = f"{name}, line {line}"
        is_last = not following.strip() and not any(more.strip() for more in rest)
        if is_last and _is_cut_off(error, text):
            good = "the lines before it are fine" if line > 1 else "no line is whole"
            raise InputError(f"{where} (the last) is half-written; {good}: delete it or write it again.") from None
        if error.msg.startswith("Unterminated string"):
            if following.lstrip().startswith(b'{"'):
                raise InputError(f"{where} is half-written, yet more follows: delete that line or write it again.") from None
            raise InputError(f"{where} ends inside a string: it holds a raw line break; write that as \\n, one row a line.") from None
        if error.msg.startswith("Invalid control character"):
            char = text[error.pos]
            what = "a raw line break (carriage return)" if char == "\r" else f"the raw control character {char!r}"
            raise InputError(f"{where}, column {error.colno}: {what} inside a string; write it as {json.dumps(char)}.") from None
        hint = "; if the file is one JSON value over many lines, name it .json" if line == 1 and text in ("[", "{") else ""
        raise InputError(f"{where}, column {error.colno} is not JSON: {error.msg.lower()}{hint}.") from None
    if not isinstance(value, dict):
        raise InputError(f'{name}, line {line} holds {_a(value)}; each line must be an object such as {{"prompt": ...}}.')
    return value


def _is_cut_off(error: json.JSONDecodeError, text: str) -> bool:
    """Whether the fault lies in the end of `text` missing: it begins as an object and the parser ran out of characters."""
    ran_out = error.msg.startswith("Unterminated string") or error.pos >= len(text) - 5 or not text.endswith("}")
    return text.startswith("{") and ran_out and not error.msg.startswith("Extra data")


def _a(value: object) -> str:
    """What a JSON value is, with its article."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null" if value is None else f"a {type(value).__name__}")


def _rows_field(value: dict[str, Any]) -> str | None:
    """Name of the one field that lists objects, unless that list is a conversation; None if there is no such field."""
    lists = [k for k, v in value.items() if isinstance(v, list) and v and all(isinstance(i, dict) for i in v)]
    return lists[0] if len(lists) == 1 and lists[0] not in CONVERSATION_COLUMNS else None


def _json(name: str, path: Path) -> NumberedRows:
    """Rows of a JSON file: a list of objects, or an object with one field that is a list of objects."""
    try:
        with _open(path) as file:
            data = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{name} cannot be read: {error}.") from None
    if not data.strip():
        raise InputError(f"{name} is empty (blank).")
    try:
        value = json.loads(_decode(name, data, 1, 0).removeprefix("\ufeff"))
    except json.JSONDecodeError as error:
        where = f"{name}, line {error.lineno}, column {error.colno}"
        hint = "; if each line is an object of its own, name the file .jsonl" if error.msg == "Extra data" else ""
        raise InputError(f"{where} is not JSON: {error.msg.lower()}{hint}.") from None
    except (RecursionError, ValueError) as error:
        raise InputError(f"{name} is not readable JSON: {error}.") from None
    if isinstance(value, dict):
        field = _rows_field(value)
        if field is None and not any(isinstance(value.get(c), list) for c in CONVERSATION_COLUMNS):
            raise InputError(f"{name} is one object without a single field that lists the rows (fields: {', '.join(value)}).")
        value = [value] if field is None else value[field]
    if not isinstance(value, list):
        raise InputError(f"{name} holds {_a(value)}; a list of objects is needed.")
    if not value:
        raise InputError(f"{name} holds an empty list: no rows.")
    for number, row in enumerate(value, 1):
        if not isinstance(row, dict):
            raise InputError(f'{name}, row {number} holds {_a(row)}; each row must be an object such as {{"prompt": ...}}.')
        yield number, row


def _table(name: str, path: Path, ending: str) -> NumberedRows:
    """Rows of a CSV, TSV or Parquet file, streamed by `datasets` without its cache."""
    if ending == ".parquet":
        from datasets import IterableDataset

        return _named_rows(name, lambda: IterableDataset.from_parquet(str(path)))
    separator = "\t" if ending == ".tsv" else ","
    header = _header(name, path, separator)
    from datasets import Features, IterableDataset, Value

    # All cells are text: a type guessed from the column would turn the answer "007" into 7 and "NA" into nothing.
    options: dict[str, Any] = {"sep": separator, "keep_default_na": False, "encoding": "utf-8-sig"}
    features = Features({column: Value("string") for column in header})
    return _named_rows(name, lambda: IterableDataset.from_csv(str(path), features=features, **options))


def _header(name: str, path: Path, separator: str) -> list[str]:
    """Column names of a CSV file. Reads the whole file once, so that a wrong encoding is found with its line."""
    line = offset = 0
    with path.open("rb") as file:
        for line, raw in enumerate(file, 1):
            _decode(name, raw, line, offset)
            offset += len(raw)
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = next(csv.reader(file, delimiter=separator), [])
    twice = sorted({c for c in header if header.count(c) > 1})
    if twice:
        raise InputError(f"{name}, line 1 names these columns twice: {', '.join(twice)}; rename one of each.")
    if not all(header):
        raise InputError(f"{name}, line 1: column {header.index('') + 1} has no name; the first line must name every column.")
    if line < 2:
        raise InputError(f"{name} has a header and no rows.")
    return header


def _named_rows(name: str, load: Callable[[], Any]) -> NumberedRows:
    """Rows of a `datasets` data set, whose many kinds of error become one sentence."""
    import datasets

    level = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # the library logs what we are about to say
    number = 0
    try:
        for number, row in enumerate(load(), 1):
            yield number, dict(row)
    except InputError:
        raise
    except Exception as error:
        cause = error.__cause__ or error
        first = (str(cause).strip() or type(cause).__name__).splitlines()[0].rstrip(".")
        raise InputError(ended(f"{name} cannot be read after row {number}: {first}")) from None
    finally:
        datasets.logging.set_verbosity(level)
    if number == 0:
        raise InputError(f"{name} has no rows.")


def _hub(name: str, streaming: bool) -> NumberedRows:
    """Rows of a hub data set `owner/name`, `owner/name:split` or `owner/name:config:split`; the split is "train" if not named."""
    repo, *parts = name.split(":")
    split = parts[-1] if parts else "train"
    config = parts[0] if len(parts) > 1 else None
    offline = any(os.environ.get(f"HF_{of}_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE") for of in ("HUB", "DATASETS"))
    if not offline:
        silent = network.silent_hub()
        if silent:
            raise InputError(
                f"{name} is no file here, and as a hub data set it cannot be fetched: {silent} does not answer; "
                "check the name of the file, or the network (HF_HUB_OFFLINE=1 uses the hub's local cache)."
            )

    def load() -> Any:
        import datasets

        return datasets.load_dataset(repo, config, split=split, streaming=streaming)

    return _named_rows(name, load)
