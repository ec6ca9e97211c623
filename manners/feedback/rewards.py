"""Rewards: what scores answers, whatever it is, behind one call.

    reward = reward_of("0.7*runs/rm + 0.3*annotator:prompts.jsonl")
    reward(groups)      # for every group a list with the score of each of its responses, in order

A reward is a reward model's folder, the annotator, a judge (`judge:MODEL`), a verifier (`verify/`), a function of the user's own, an
endpoint, the number of words, or a weighted sum of such. Whatever it is, what it returns is checked: a wrong number of scores, or one
that is not a finite number, is refused in a sentence that names the reward and the row, before anything learns from it.
"""

import inspect
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import requests

from manners.core.config import Settings
from manners.core.errors import InputError, MannersError, nearest
from manners.core.http import host_of, in_words, patient_session
from manners.core.plugins import load_function, source_hash
from manners.core.records import Group
from manners.core.run import content_hash, file_hash, identity
from manners.core.text import words
from manners.feedback.annotator import annotate, fingerprint
from manners.feedback.labels import read_known
from manners.feedback.verify import KINDS, Verified, is_verifier, schema_file, verifier
from manners.feedback.verify import fingerprint as verifier_fingerprint
from manners.feedback.verify.base import asked, failure, row_number
from manners.feedback.verify.function import OneAnswer

BUILT_IN = ("annotator", "judge", "length", *KINDS)
FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
WEIGHTED = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*\*\s*(\S.*)", re.S)
"""`0.7*runs/rm`."""


class Reward(Protocol):
    """Scores answers: a list for each group, a number for each of its responses, in order. Higher is better."""

    def __call__(self, groups: Sequence[Group]) -> list[list[float]]: ...


class RewardPart(Settings):
    """One part of a weighted sum of rewards, as a settings file writes it."""

    reward: str
    """A reward that is no sum itself."""
    weight: float = 1.0
    """Its factor."""


RewardSpec = str | list[RewardPart]
"""What names a reward in settings: `annotator`, `0.7*runs/rm + 0.3*annotator`, or a list of parts."""


def reward_of(spec: RewardSpec | Sequence[Mapping[str, Any]], *, backbone: Any = None, source: Any = None) -> "CheckedReward":
    """The reward that a text or list names. `backbone` and `source` are handed to `load_reward` (see there): a reward model on the same
    base then needs no second model in memory.

    Raises InputError for a name that is no reward (naming the nearest), a folder that is no reward model, a function that cannot be had
    or takes other arguments, and a weight that is not a finite number.
    """
    parts = parts_of(spec)
    if len(parts) == 1 and parts[0].weight == 1.0:
        return _leaf(parts[0].name, backbone, source)
    return CheckedReward(_written(parts), Mixture([(weight, _leaf(name, backbone, source)) for weight, name in parts]))


class Part(NamedTuple):
    """A reward that is no sum, and its factor."""

    weight: float
    name: str


def parts_of(spec: RewardSpec | Sequence[Mapping[str, Any]]) -> list[Part]:
    """The parts of a spec; a spec that is no sum is one part of weight 1. Loads nothing.

    In text, parts are parted by a plus sign between blanks; a part without a weight has 1, and a weight may be negative. A text that is
    the name of a folder is that folder.
    """
    if isinstance(spec, str):
        if not spec.strip():
            raise InputError(f"the reward is empty; {_kinds()}")
        if Path(spec).expanduser().exists():
            return [Part(1.0, spec)]
        matches = [(WEIGHTED.fullmatch(text), text.strip()) for text in re.split(r"\s\+\s", spec)]
        found = [Part(float(match[1]), match[2].strip()) if match else Part(1.0, text) for match, text in matches]
    else:
        if not spec:
            raise InputError(f"the list of rewards is empty; {_kinds()}")
        found = [_listed(part) for part in spec]
    for weight, name in found:
        if not name:
            raise InputError(f"a part of the reward '{spec}' is empty; write it as in 0.7*runs/rm + 0.3*annotator.")
        if not math.isfinite(weight):
            raise InputError(f"the reward '{name}' has the weight {weight}, which is not a finite number.")
    return found


def _listed(part: Any) -> Part:
    if isinstance(part, RewardPart):
        return Part(part.weight, part.reward)
    if not isinstance(part, Mapping) or not isinstance(part.get("reward"), str):
        raise InputError(f"{part!r} is no part of a reward; write {{reward: runs/rm, weight: 0.7}}.")
    if unknown := [key for key in part if key not in ("reward", "weight")]:
        raise InputError(f"unknown key '{unknown[0]}' in a part of a reward; {nearest(str(unknown[0]), ('reward', 'weight'))}")
    weight = part.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise InputError(f"the weight of the reward '{part['reward']}' must be a number, not {weight!r}.")
    return Part(float(weight), part["reward"].strip())


def _written(parts: Sequence[Part]) -> str:
    return " + ".join(f"{weight:g}*{name}" for weight, name in parts)


def _leaf(name: str, backbone: Any, source: Any) -> "CheckedReward":
    """A reward that is no sum."""
    kind, rest = kind_of(name)
    if kind == "annotator":
        return CheckedReward(name, AnnotatorReward(rest))
    if kind == "length":
        return CheckedReward(name, length)
    if kind == "judge":
        from manners.feedback.judge_reward import JudgeReward  # the others need no torch

        return CheckedReward(name, JudgeReward(rest))
    if kind == "endpoint":
        return CheckedReward(name, Endpoint(name))
    if kind == "verifier":
        return CheckedReward(name, Verified(name, verifier(name)))
    if kind == "function":
        return CheckedReward(name, function_reward(name))
    from manners.feedback.reward_model import load_reward  # the others need no torch

    return CheckedReward(name, load_reward(name, backbone=backbone, source=source))


def kind_of(name: str) -> tuple[str, str]:
    """What a reward that is no sum is ("annotator", "judge", "length", "verifier", "endpoint", "function" or "model"), and what a built-in
    one has behind its colon: the annotator's file of prompts, the judge, a verifier's pattern.

    Raises InputError for a name that can be none of these.
    """
    path = _folder(name)
    head, colon, rest = name.partition(":")
    if is_verifier(name):
        return "verifier", rest
    if name == "judge" or (head == "judge" and colon and not rest):
        raise InputError("the reward judge names no model; write judge:MODEL, judge:http://HOST/v1#MODEL or judge:SETTINGS.yaml.")
    if name in BUILT_IN or (head in ("annotator", "judge") and colon and rest):
        return head, rest
    if name.startswith(("http://", "https://")):
        return "endpoint", ""
    if path.is_dir():
        return "model", ""
    if path.is_file():
        raise InputError(f"the reward '{name}' is a file; give the folder of a reward model, or annotator:{name} if it holds prompts.")
    if FUNCTION.fullmatch(name):
        return "function", ""
    if HUB_ID.fullmatch(name) and not path.parent.is_dir():
        return "model", ""
    beside = [str(other) for other in path.parent.iterdir() if other.is_dir()] if path.parent.is_dir() else []
    hint = nearest(name, [*BUILT_IN, *beside])
    hint = hint if hint.startswith("did") or not colon else nearest(head, BUILT_IN)
    raise InputError(f"there is no reward '{name}'; {hint if hint.startswith('did') else _kinds()}")


def _folder(name: str) -> Path:
    """The folder of a reward model, whose name may end in `#LABEL`."""
    return Path(name if Path(name).expanduser().exists() else name.partition("#")[0]).expanduser()


def _kinds() -> str:
    return (
        "give a reward model's folder, annotator, annotator:PROMPTS.jsonl, judge:MODEL, length, module:function, http://..., one of "
        f"{', '.join(KINDS)} (docs/rewards.md), or a sum of such."
    )


def identifying_reward(spec: RewardSpec | Sequence[Mapping[str, Any]], key: str = "reward") -> dict[str, str]:
    """`{"reward_sha256": ...}` for a run's identity: a hash over what can change a score. That is the content of a folder, the source of
    a function, a verifier (with the versions of its libraries) or the annotator, the file of prompts or schema; of an endpoint only its
    address. `key` is the setting that names the reward."""
    told = []
    for weight, name in parts_of(spec):
        kind, rest = kind_of(name)
        content = {
            "annotator": lambda rest=rest: [fingerprint(), *(file_hash(f) if Path(f).is_file() else f for f in prompt_files(rest))],
            "judge": lambda rest=rest: content_hash(Path(rest)) if Path(rest).exists() else rest,
            "function": lambda name=name: source_hash(name, "reward"),
            "verifier": lambda name=name: [name.partition(":")[0] if schema_file(name) else name, *verifier_fingerprint(name)],
            "model": lambda name=name: [name.partition("#")[2], content_hash(_folder(name)) if _folder(name).is_dir() else name],
        }.get(kind, lambda name=name: name)
        told.append([weight, kind, content()])
    return {f"{key}_sha256": identity({"parts": told})}


# --- what every reward goes through -----------------------------------------------------------------------------------------------


class CheckedReward:
    """A reward whose every answer is looked at. `name` is what it was called, `inner` the reward itself."""

    def __init__(self, name: str, inner: Reward):
        self.name, self.inner = name, inner

    def __call__(self, groups: Sequence[Group]) -> list[list[float]]:
        """The scores as Python floats. Raises InputError if their number is wrong or one is not a finite number."""
        if not any(group.responses for group in groups):
            return [[] for _ in groups]
        return checked(self.name, self.inner(groups), groups)


def judgeable(spec: RewardSpec | Sequence[Mapping[str, Any]], groups: Sequence[Group], name: str, notes: Counter[str]) -> list[Group]:
    """The groups whose answers a reward can judge. A verifier cannot judge those to a row whose right answer it cannot read: such rows are
    left out and counted in `notes`. Loads no model, and is called before anything is sampled.

    `name` is the file that the groups are from. Raises InputError where a row lacks a column, or no row is left.
    """
    verifiers = [made for _, part in parts_of(spec) if (made := _verified(part)) is not None]
    kept, first = [], ""
    for place, group in enumerate(groups):
        why = next((why for made in verifiers if (why := made.refusal(group, place)) is not None), None)
        if why is None:
            kept.append(group)
            continue
        notes["prompts left out whose right answer the reward cannot read"] += 1
        first = first or f"row {row_number(group, place)}: {why}"
    if groups and not kept:
        raise InputError(f"{name}: the reward can judge no answer to any of the {len(groups)} prompts ({first}).")
    return kept


def _verified(name: str) -> Verified | None:
    """The verifier that a reward's name means; None for rewards of other kinds."""
    kind, _ = kind_of(name)
    if kind == "verifier":
        return Verified(name, verifier(name))
    made = function_reward(name) if kind == "function" else None
    return made if isinstance(made, Verified) else None


def with_columns(reward: Reward, asked: Sequence[Group]) -> Reward:
    """The reward, of groups that were just sampled for these prompts and lack the columns of their rows."""
    known = {(group.row, group.prompt.id): group.columns for group in asked}
    return lambda groups: reward([replace(group, columns=known[group.row, group.prompt.id]) for group in groups])


def checked(name: str, scores: Any, groups: Sequence[Group]) -> list[list[float]]:
    """`scores` as lists of floats, one for each response of each group. Raises InputError, naming reward and row, if they are not."""
    if not _is_list(scores) or len(scores) != len(groups):
        found = f"{len(scores)} lists of scores" if _is_list(scores) else f"{type(scores).__name__} instead of a list"
        raise InputError(f"the reward '{name}' returned {found} for {len(groups)} prompts; it must return one list a prompt.")
    return [_checked_group(name, given, group, place) for place, (given, group) in enumerate(zip(scores, groups, strict=True))]


def _checked_group(name: str, given: Any, group: Group, place: int) -> list[float]:
    row = row_number(group, place)
    if not _is_list(given) or len(given) != len(group.responses):
        found = f"{len(given)} scores" if _is_list(given) else f"{type(given).__name__} instead of a list"
        raise InputError(f"the reward '{name}' returned {found} for the {len(group.responses)} answers to row {row}.")
    numbers = [_number(value) for value in given]
    for sample, (number, value) in enumerate(zip(numbers, given, strict=True), 1):
        if not math.isfinite(number):
            raise InputError(
                f"the reward '{name}' returned {value!r} for answer {sample} to row {row}; every score must be a finite number."
            )
    return numbers


def _is_list(value: Any) -> bool:
    return hasattr(value, "__len__") and hasattr(value, "__iter__") and not isinstance(value, str | bytes | Mapping)


def _number(value: Any) -> float:
    """A score as a float; NaN for what is no number (text and None are none)."""
    if value is None or isinstance(value, str | bytes):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return math.nan


def regrouped(flat: Sequence[Any], groups: Sequence[Group]) -> list[list[Any]]:
    """Values of all responses in order, group after group, as a list for each group."""
    values = iter(flat)
    return [[next(values) for _ in group.responses] for group in groups]


# --- the kinds --------------------------------------------------------------------------------------------------------------------


def length(groups: Sequence[Group]) -> list[list[float]]:
    """Number of words: a reward that is easy to exploit, planted where over-optimisation is to be seen."""
    return [[float(len(words(response.text))) for response in group.responses] for group in groups]


def prompt_files(text: str) -> list[str]:
    """The annotator's files of prompts, which commas part; a file whose name holds a comma is one."""
    return [text] if Path(text).is_file() else [file for file in text.split(",") if file]


class AnnotatorReward:
    """The annotator's score from 0 to 10 (`docs/annotator.md`). With files of prompts it knows each one's reference and wants; a prompt
    that none of them holds is refused. Without a file it knows neither, and is far weaker."""

    def __init__(self, prompts: str = ""):
        self.prompts = prompts
        self.known = {text: row for file in prompt_files(prompts) for text, row in read_known(file).items()} if prompts else None

    def __call__(self, groups: Sequence[Group]) -> list[list[float]]:
        return [self._scores(group, place) for place, group in enumerate(groups)]

    def _scores(self, group: Group, place: int) -> list[float]:
        text = asked(group).strip()
        about: Mapping[str, Any] = {"reference": "", "wants": {}}
        if self.known is not None:
            if text not in self.known:
                row = row_number(group, place)
                hint = nearest(text, self.known) if len(text) < 200 else ""
                hint = hint if hint.startswith("did") else "give the annotator the file that the prompts are from, or no file."
                raise InputError(f"row {row} asks {text[:60]!r}, which {self.prompts} does not hold; {hint}")
            about = self.known[text]
        verdict = lambda r: annotate(text, r.text, reference=about["reference"], wants=about["wants"], finish_reason=r.finish_reason)
        return [verdict(response).score for response in group.responses]


def function_reward(name: str) -> Reward:
    """A function of the user's own, `module:function`: of one answer if it takes `response`, of all at once if not.

    Raises InputError for a function that cannot be had or takes other arguments.
    """
    function = load_function(name, "reward")
    if "response" in inspect.signature(function).parameters:
        return Verified(name, OneAnswer(name, function))
    return FunctionReward(name, function)


class FunctionReward:
    """A function of the user's own that scores all answers in one call. It gets, by name, those of these that it takes, each a list with
    one entry a response, all prompts in one call:

    `prompts` (text of the last user turn), `responses` or `completions` (text), `conversations` (the prompt's messages as objects with
    role and content), `finish_reasons` ("stop", "length" or None), `rows` (of the file of prompts, from 0), and any column of the prompts.

    It returns as many numbers. A function that takes `**anything` gets them all.
    """

    GIVEN = ("prompts", "responses", "completions", "conversations", "finish_reasons", "rows")

    def __init__(self, name: str, function: Callable[..., Any]):
        self.name, self.function = name, function
        self.takes, self.columns, self.all = self._arguments()

    def _arguments(self) -> tuple[list[str], list[str], bool]:
        """The names of GIVEN and the columns that the function takes, and whether it takes all."""
        parameters = inspect.signature(self.function).parameters.values()
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            return list(self.GIVEN), [p.name for p in named if p.name not in self.GIVEN and p.default is p.empty], True
        taken = [p.name for p in named if p.name in self.GIVEN]
        columns = [p.name for p in named if p.name not in self.GIVEN and p.default is p.empty]
        for parameter in parameters:
            if parameter.kind is parameter.POSITIONAL_ONLY:
                hint = nearest(parameter.name, self.GIVEN)
                raise InputError(f"the reward '{self.name}' takes '{parameter.name}', which a reward is not given by name; {hint}")
        if not {"responses", "completions"} & set(taken):
            near = [hint for name in columns if (hint := nearest(name, ["response", *self.GIVEN])).startswith("did")]
            hint = f"; {near[0]}" if near else " (or 'completions', or 'response' for one at a time), so it cannot tell answers apart."
            raise InputError(f"the reward '{self.name}' does not take 'responses'{hint}")
        return taken, columns, False

    def __call__(self, groups: Sequence[Group]) -> list[list[float]]:
        each = [(group, response) for group in groups for response in group.responses]
        texts = [response.text for _, response in each]
        given = {
            "prompts": [asked(group) for group, _ in each],
            "responses": texts,
            "completions": list(texts),
            "conversations": [[{"role": m.role, "content": m.content} for m in group.prompt.messages] for group, _ in each],
            "finish_reasons": [response.finish_reason for _, response in each],
            "rows": [group.row for group, _ in each],
        }
        columns = self.columns
        if self.all:
            columns = [*columns, *dict.fromkeys(name for group in groups for name in group.columns if name not in (*columns, *self.GIVEN))]
        for name in self.columns:
            self._check_column(name, groups)
        given |= {name: [group.columns.get(name) for group, _ in each] for name in columns}
        try:
            scores = self.function(**{name: given[name] for name in (*self.takes, *columns)})
        except MannersError:
            raise
        except Exception as error:
            raise InputError(f"the reward '{self.name}' failed ({failure(error)}).") from error
        if not _is_list(scores) or len(scores) != len(each):
            found = f"{len(scores)} scores" if _is_list(scores) else f"{type(scores).__name__} instead of a list"
            raise InputError(f"the reward '{self.name}' returned {found} for {len(each)} answers; it must return a number for each.")
        return regrouped(list(scores), groups)

    def _check_column(self, name: str, groups: Sequence[Group]) -> None:
        """Raises InputError for the first row that lacks a column which the function needs."""
        for place, group in enumerate(groups):
            if name not in group.columns:
                hint = nearest(name, [*self.GIVEN, *group.columns])
                row = row_number(group, place)
                raise InputError(f"the reward '{self.name}' takes '{name}', which row {row} of the prompts does not have; {hint}")


class Endpoint:
    """Rewards from another process: POST `{"prompts": [...], "responses": [...]}`, of equal length, is answered by `{"rewards": [...]}`.

    A request that times out, finds nobody, or is answered by 429 or 5xx is made again, `tries` times in all, after waits that double.
    """

    def __init__(self, url: str, *, batch: int = 64, timeout: float = 60.0, tries: int = 6, wait: float = 1.0):
        if not host_of(url):
            raise InputError(f"the reward '{url}' names no host; write it as in http://localhost:8000/rewards.")
        self.url, self.batch, self.timeout, self.tries = url, batch, timeout, tries
        self._session = patient_session(url, tries=tries, wait=wait)

    def __call__(self, groups: Sequence[Group]) -> list[list[float]]:
        each = [(asked(group), response.text) for group in groups for response in group.responses]
        scores: list[Any] = []
        for start in range(0, len(each), self.batch):
            part = each[start : start + self.batch]
            scores += self._scores([prompt for prompt, _ in part], [response for _, response in part])
        return regrouped(scores, groups)

    def _scores(self, prompts: list[str], responses: list[str]) -> list[Any]:
        answer = self._post(json.dumps({"prompts": prompts, "responses": responses}).encode())
        try:
            rewards = json.loads(answer)["rewards"]
        except (ValueError, KeyError, TypeError):
            shown = answer[:80].decode("utf-8", "replace")
            raise InputError(f"the reward '{self.url}' must answer {{\"rewards\": [...]}}; it answered {shown!r}.") from None
        if not isinstance(rewards, list) or len(rewards) != len(responses):
            found = f"{len(rewards)} rewards" if isinstance(rewards, list) else f"{type(rewards).__name__} instead of a list"
            raise InputError(f"the reward '{self.url}' answered {found} for {len(responses)} responses.")
        return rewards

    def _post(self, body: bytes) -> bytes:
        try:
            reply = self._session.post(self.url, data=body, headers={"Content-Type": "application/json"}, timeout=self.timeout)
        except requests.RequestException as error:
            raise self._gone(in_words(error, self.timeout)) from error
        problem = f"it answered {reply.status_code} {reply.reason}"
        if reply.status_code == 429 or reply.status_code >= 500:
            raise self._gone(problem)
        if not reply.ok:
            raise InputError(f"the reward '{self.url}' refused the request: {problem}.")
        return reply.content

    def _gone(self, problem: str) -> MannersError:
        return MannersError(
            f"the reward '{self.url}' could not be asked in {self.tries} tries (the last: {problem}); start it again and give the same "
            "command once more, which goes on from what was saved."
        )


class Mixture:
    """A weighted sum of rewards. The parts are summed as they are: only reward models are normalised (`docs/reward.md`)."""

    def __init__(self, parts: Sequence[tuple[float, CheckedReward]]):
        self.parts = list(parts)

    def __call__(self, groups: Sequence[Group]) -> list[list[float]]:
        return self.total(self.by_part(groups))

    def by_part(self, groups: Sequence[Group]) -> list[list[list[float]]]:
        """The unweighted scores of each part, in order."""
        return [reward(groups) for _, reward in self.parts]

    def total(self, scores: Sequence[list[list[float]]]) -> list[list[float]]:
        """The weighted sum of what `by_part` returned."""
        weights = [weight for weight, _ in self.parts]
        weigh = lambda values: sum(weight * value for weight, value in zip(weights, values, strict=True))
        return [[weigh(values) for values in zip(*lists, strict=True)] for lists in zip(*scores, strict=True)]
