"""A multiple-choice task of the evaluation harness, described in a local YAML file, as questions.

    task: my_arc
    dataset_path: json
    dataset_kwargs: {data_files: {test: rows.jsonl}}
    output_type: multiple_choice
    doc_to_text: "Question: {{question}}\\nAnswer:"
    doc_to_choice: "{{choices.text}}"
    doc_to_target: "{{choices.label.index(answerKey)}}"
    num_fewshot: 5
    test_split: test
    fewshot_split: test
    fewshot_config: {sampler: first_n}

The prompts are the harness's to the character: description, examples, delimiters, a row that is never its own example, and with the
default sampler the same examples drawn for the same rows. What a file may do is bounded: templates run in the sandbox of
`data/sandbox`, in which a slot has to hold something, and Python functions (`!function`, `process_docs`) are refused by name.
"""

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import yaml

from manners.core.errors import InputError, ended, nearest
from manners.core.files import read_mapping
from manners.data.files import read_rows
from manners.data.sandbox import PIPES, STANDIN, Jinja, TemplateFault

END = "\ue0fc"
"""Stands at the end of a template while it is rendered: Jinja drops a line break there, the harness keeps it."""
_WRITTEN = repr(STANDIN)[1:-1]
"""The stand-in for a separator as it is written within a list."""
SEED = 1234
"""With which the harness draws examples."""
_KNOWN = (
    "task task_alias tag group dataset_path dataset_name dataset_kwargs training_split validation_split test_split fewshot_split "
    "doc_to_text doc_to_target doc_to_choice description target_delimiter fewshot_delimiter fewshot_config num_fewshot metric_list "
    "output_type repeats should_decontaminate doc_to_decontamination_query metadata unsafe_code filter_list"
)
KNOWN = frozenset(_KNOWN.split())
"""Keys that are used here, or that cannot change a log-probability."""
SPLITS = ("test_split", "validation_split")
Row = dict[str, Any]


class _Function(str):
    """A `!function` that was not loaded."""


class _Loader(yaml.SafeLoader):
    pass


_Loader.add_constructor("!function", lambda loader, node: _Function(node.value))


class Asked(NamedTuple):
    """A row of a task: what is scored, (context, continuation) an option; the choices' texts; which of them are right; the question
    without examples."""

    pairs: list[tuple[str, str]]
    choices: list[str]
    right: tuple[int, ...]
    question: str


class Task:
    """A task file, read and checked."""

    def __init__(self, path: str):
        self.path = path
        self.config: dict[str, Any] = read_mapping(Path(path), "a task file holds keys such as doc_to_text", _Loader)
        self._check()
        self.name = str(self.config.get("task") or Path(path).stem)
        self.shots: int = self.config.get("num_fewshot") or 0
        self._shots_of: dict[str, Any] = self.config.get("fewshot_config") or {}
        self._split = next((self.config[key] for key in SPLITS if self.config.get(key)), None)
        self._templates: dict[str, Jinja] = {}

    def _check(self) -> None:
        config, path = self.config, self.path
        for key, value in config.items():
            inner = value.items() if key == "fewshot_config" and isinstance(value, dict) else ((key, value),)
            for name, held in inner:
                if isinstance(held, _Function):
                    raise InputError(f"{path}: '{name}' is a Python function ({held}), which is not run; write a template.")
        for key in config:
            if key not in KNOWN:
                raise InputError(ended(f"{path}: the key '{key}' is not supported here; {nearest(key, KNOWN)}"))
        odd = set(config.get("fewshot_config") or {}) - {"sampler", "samples", "split"}
        if odd:
            raise InputError(f"{path}: fewshot_config may hold sampler, samples and split, not '{sorted(odd)[0]}'.")
        if config.get("output_type") != "multiple_choice":
            raise InputError(f"{path}: output_type must be multiple_choice, not {config.get('output_type')!r}.")
        for key in ("doc_to_text", "doc_to_choice", "doc_to_target", "dataset_path"):
            if config.get(key) is None:
                raise InputError(f"{path} has no '{key}'.")
        if config["dataset_path"] not in ("json", "csv", "parquet"):
            raise InputError(f"{path}: dataset_path must be json, csv or parquet, with data_files beside it: only local tasks are read.")
        if not any(config.get(key) for key in SPLITS):
            raise InputError(f"{path} names neither test_split nor validation_split.")

    # --- rows ----------------------------------------------------------------------------------------------------------------

    @property
    def files(self) -> list[str]:
        """The files that hold the rows and the examples."""
        splits = [self._split, *([self._shot_split] if self.shots and self._shot_split else [])]
        return list(dict.fromkeys(file for split in splits for file in self._files(str(split))))

    @property
    def _shot_split(self) -> str | None:
        return self._shots_of.get("split", self.config.get("fewshot_split"))

    def _files(self, split: str) -> list[str]:
        given = (self.config.get("dataset_kwargs") or {}).get("data_files")
        if given is None:
            raise InputError(f"{self.path}: dataset_kwargs needs data_files, the files of each split.")
        by_split = given if isinstance(given, dict) else {"train": given}
        if split not in by_split:
            raise InputError(f"{self.path}: data_files has no split '{split}'; {nearest(split, by_split)}")
        named = by_split[split]
        return [self._place(str(name)) for name in (named if isinstance(named, list) else [named])]

    def _place(self, name: str) -> str:
        """A file as named from here, or from the task file's folder."""
        beside = Path(self.path).parent / name
        return str(beside) if beside.is_file() and not Path(name).is_file() else name

    def rows(self, split: str | None = None) -> list[Row]:
        """All rows of a split, by default of the one that is asked."""
        return [row for file in self._files(str(split or self._split)) for _, row in read_rows(file)[1]]

    def asked(self, rows: Sequence[Row], shots: int | None = None) -> list[Asked]:
        """What is scored for these rows, in order, after `shots` examples (none: as many as the file says)."""
        shots = self.shots if shots is None else shots
        draw = self._sampler(shots) if shots else (lambda row: [])
        return [self._asked(row, draw(row), f"{self.path}, row {number}") for number, row in enumerate(rows, 1)]

    def _sampler(self, shots: int) -> Any:
        """Which examples a row is given, row by row in order."""
        samples, split, kind = self._shots_of.get("samples"), self._shot_split, self._shots_of.get("sampler", "default")
        if split is None and not isinstance(samples, list):
            raise InputError(f"{self.path} asks for {shots} examples and says not where they are: fewshot_split, or samples.")
        pool: list[Row] = self.rows(split) if split is not None else list(samples or ())
        own = split is not None and split == self.config.get("test_split")
        if kind not in ("default", "first_n"):
            raise InputError(f"{self.path}: the sampler of examples must be default or first_n, not '{kind}'.")
        if len(pool) < shots + own:
            raise InputError(f"{self.path} asks for {shots} examples, and there are {len(pool) - own} to take them from.")
        random = Random(SEED)

        def draw(row: Row) -> list[Row]:
            if kind == "first_n":
                return [other for other in pool if not own or other != row][:shots]
            if not own:
                return random.sample(pool, shots)
            drawn = [other for other in random.sample(pool, shots + 1) if other != row][:shots]
            return drawn if len(drawn) == shots else random.sample([other for other in pool if other != row], shots)

        return draw

    # --- one row -------------------------------------------------------------------------------------------------------------

    def _asked(self, row: Row, examples: Sequence[Row], where: str) -> Asked:
        delimiter, between = self.config.get("target_delimiter", " "), self.config.get("fewshot_delimiter", "\n\n")
        before = self._rendered(self.config.get("description") or "", row, where)  # as it is: the harness adds no delimiter
        before += "".join(self._example(example, delimiter, where) + between for example in examples)
        choices, text = self._choices(row, where), self._text(row, where)
        target = self._field("doc_to_target", row, where)
        if isinstance(text, int):  # a context an option, and what follows is the same
            continuation = f"{delimiter}{target}"
            right: Any = text
            pairs = [(before + choice, continuation) for choice in choices]
        else:
            right, pairs = target, [(before + text, f"{delimiter}{choice}") for choice in choices]
        question = text if isinstance(text, str) else " / ".join(choices)
        return Asked(pairs, choices, self._right(right, choices, where), question)

    def _example(self, row: Row, delimiter: str, where: str) -> str:
        choices, text = self._choices(row, where), self._text(row, where)
        target = self._field("doc_to_target", row, where)
        if isinstance(text, int):
            [place] = self._right(text, choices, where)
            return choices[place] + delimiter + str(target)
        answer = target[0] if isinstance(target, list) and target else target
        return text + delimiter + (choices[self._right(answer, choices, where)[0]] if isinstance(answer, int) else str(answer))

    def _text(self, row: Row, where: str) -> str | int:
        text = self._field("doc_to_text", row, where)
        if not isinstance(text, str | int):
            raise InputError(f"{where}: doc_to_text must give text, or the number of a choice, and gives {_shown(text)}.")
        return text

    def _choices(self, row: Row, where: str) -> list[str]:
        given = self.config["doc_to_choice"]
        if isinstance(given, dict):
            given = list(given.values())
        elif isinstance(given, str):
            given = row[given] if given in row else self._literal("doc_to_choice", self._rendered(given, row, where), where)
        if not isinstance(given, list) or not given or not all(isinstance(choice, str) and choice for choice in given):
            raise InputError(f"{where}: doc_to_choice must give a list of texts, none of them empty, and gives {_shown(given)}.")
        return given

    def _field(self, name: str, row: Row, where: str) -> Any:
        """A field of the row if it is called so, else the template filled; digits are a number, brackets a list, as the harness has it."""
        given = self.config[name]
        if not isinstance(given, str):
            return given
        if given in row:
            return row[given]
        text = self._rendered(given, row, where)
        if text.isdigit():
            return int(text)
        if name == "doc_to_target" and len(text) >= 2 and text[0] + text[-1] == "[]":
            return self._literal(name, text, where)
        return text

    def _literal(self, name: str, text: str, where: str) -> Any:
        try:
            return ast.literal_eval(text)
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            if name == "doc_to_target":
                return text
            raise InputError(f"{where}: {name} must give a list such as ['a', 'b'], and gives {_shown(text)}.") from None

    def _right(self, given: Any, choices: Sequence[str], where: str) -> tuple[int, ...]:
        found = []
        for one in given if isinstance(given, list) else [given]:
            place = choices.index(one) if isinstance(one, str) and one in choices else one
            if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < len(choices):
                raise InputError(f"{where}: the right answer is {_shown(one)}, which is none of its {len(choices)} choices.")
            found.append(place)
        return tuple(found)

    def _rendered(self, template: str, row: Mapping[str, Any], where: str) -> str:
        try:
            if template not in self._templates:
                self._templates[template] = Jinja(template + END)
            text = self._templates[template].render(row).removesuffix(END)
            return text.replace(STANDIN, PIPES).replace(_WRITTEN, PIPES)
        except TemplateFault as fault:
            why = ended(str(fault))
            hint = " Where a slot may be empty write {{ name or '' }}." if "slot" in why else ""
            raise InputError(f"{where}: a template of {self.path} cannot be filled: {why}{hint}") from None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
