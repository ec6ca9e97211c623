"""`manners eval lm-eval`: any task of the evaluation harness, with our scorer and sampler underneath.

The harness (the package lm-eval, an extra) builds the prompts and computes the metrics; the model is asked here: log-likelihoods over a
tree of what the requests share (`model/shared`), generation by the sampler. A log-likelihood is the harness's own within rounding.

What differs from its transformers runner: generation keeps weights packed as float16 where the sampler does, so a greedy answer may turn
where two tokens are nearly as likely; stop strings are cut off after the fact, a piece of GREEDY_PIECE tokens at a time.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from manners.core.config import as_list
from manners.core.console import progress
from manners.core.errors import InputError
from manners.evaluate.continuations import Scorer
from manners.evaluate.intervals import Z
from manners.evaluate.measurement import Measured, MeasureSettings, measure
from manners.evaluate.results import Direction, Metric, Result, result, results_of
from manners.evaluate.subject import LocalSubject, Subject
from manners.model.draw import Sampling
from manners.model.sampler import Sampler

VERSION = 1
GREEDY_PIECE = 64
"""Tokens that a greedy answer grows by before its end is looked for."""
MAX_NEW_TOKENS = 256
LENGTH_KEYS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


class HarnessSettings(MeasureSettings):
    """Settings of `manners eval lm-eval`."""

    positional: ClassVar[str] = "tasks"
    plural: ClassVar[bool] = True
    silent: ClassVar[frozenset[str]] = MeasureSettings.silent | {"micro_tokens"}

    tasks: Annotated[list[str], BeforeValidator(as_list), Field(min_length=1)]
    """Names of the harness's tasks, or of task files in `include`."""
    include: str | None = None
    """Folder of further task files."""
    shots: Annotated[int, Field(ge=0)] | None = None
    """Examples before each question; none: what the task says."""
    ask: Literal["text", "chat"] = "text"
    """text, or chat: prompts in the model's chat format."""
    micro_tokens: Annotated[int, Field(ge=1)] = 2048
    """Computed tokens of a forward pass."""


def lm_eval(settings: HarnessSettings) -> dict[str, Any]:
    """Run the tasks; returns what `results.json` holds. Raises InputError where the harness is not installed or knows no such task."""
    if not installed():
        raise InputError("the evaluation harness is not installed: pip install 'manners[lm-eval]'.")
    return measure(settings, "lm-eval", VERSION, (), lambda _, subject: asked(settings, subject))


def installed() -> bool:
    """Whether the harness can be imported."""
    return importlib.util.find_spec("lm_eval") is not None


def asked(settings: HarnessSettings, subject: Subject) -> Measured:
    """Hand the tasks to the harness, and its samples on as rows."""
    import lm_eval as harness  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    manager = TaskManager(include_path=settings.include)
    unknown = [task for task in settings.tasks if task not in manager.task_index and not task.endswith((".yaml", ".yml"))]
    if unknown:
        raise InputError(f"the harness knows no task '{unknown[0]}'; `lm-eval ls tasks` lists them, and include= names a folder of others.")
    found: Any = harness.simple_evaluate(
        model=harness_model(local(subject), settings.micro_tokens),
        tasks=list(settings.tasks),
        num_fewshot=settings.shots,
        limit=settings.rows,
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=settings.ask == "chat",
        fewshot_as_multiturn=settings.ask == "chat",
        random_seed=settings.seed,
        task_manager=manager,
    )
    return measured(found)


def local(subject: Subject) -> LocalSubject:
    if not isinstance(subject, LocalSubject):
        raise InputError(
            f"{subject.name} only answers; the harness also asks for log-probabilities, so give it a model, an adapter or a run."
        )
    return subject


# --- what the harness asks of a model ----------------------------------------------------------------------------------------------


def harness_model(subject: LocalSubject, micro_tokens: int = 2048) -> Any:
    """The subject as the harness's `LM`. Imports the harness."""
    from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]

    class Subjected(LM):
        """The three requests of the harness, answered by `Requests`."""

        def __init__(self) -> None:
            super().__init__()
            self.requests = Requests(subject, micro_tokens)

        @property
        def tokenizer_name(self) -> str:
            return subject.source.base.replace("/", "__")

        def chat_template(self, chat_template: bool | str = False) -> str:
            return subject.fmt.template if chat_template and subject.fmt else ""

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            return self.requests.chat(chat_history, add_generation_prompt)

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            return self.requests.loglikelihood([request.args for request in requests])

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            return self.requests.rolling([request.args[0] for request in requests])

        def generate_until(self, requests: list[Any]) -> list[str]:
            return self.requests.generate([request.args for request in requests])

    return Subjected()


class Requests:
    """The harness's three kinds of request, as plain functions of text."""

    def __init__(self, subject: LocalSubject, micro_tokens: int = 2048):
        self.subject, self.scorer = subject, Scorer(subject, micro_tokens)

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Of each continuation; a row that is longer than the model reads loses its beginning, as the harness has it."""
        room = self.scorer.max_length + 1
        rows = [_shortened(context, continuation, room) for context, continuation in self.scorer.pairs(pairs)]
        return [(found.logp, found.greedy) for found in self.scorer.of_ids(rows, what="log-likelihoods")]

    def rolling(self, texts: Sequence[str]) -> list[float]:
        """Of whole texts."""
        return [found.logp for found in self.scorer.rolling(texts)]

    def generate(self, requests: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """Text after each context, up to the first stop string."""
        found = [""] * len(requests)
        by_way: dict[str, list[int]] = {}
        for place, (_, way) in enumerate(requests):
            by_way.setdefault(repr(sorted(way.items(), key=str)), []).append(place)
        for places in by_way.values():
            way = requests[places[0]][1]
            for place, text in zip(places, self._generated([requests[place][0] for place in places], way), strict=True):
                found[place] = text
        return found

    def _generated(self, contexts: Sequence[str], way: Mapping[str, Any]) -> list[str]:
        stops = way.get("until") or []
        stops = [stop for stop in ([stops] if isinstance(stops, str) else stops) if stop]
        longest = int(next((way[key] for key in LENGTH_KEYS if way.get(key) is not None), MAX_NEW_TOKENS))
        temperature = float(way.get("temperature") or 0.0) if way.get("do_sample", True) else 0.0
        truncated = {key: way[key] for key in ("top_p", "top_k", "min_p") if way.get(key) is not None and temperature}
        piece = longest if temperature else GREEDY_PIECE
        tokenizer = self.scorer.tokenizer
        ends = frozenset({tokenizer.eos_token_id} - {None}) | (self.subject.fmt.stop_ids if self.subject.fmt else frozenset())
        sampler = self.subject.sampler
        assert isinstance(sampler, Sampler)
        room = self.scorer.max_length - longest
        if room < 1:
            raise InputError(f"a task asks for {longest} new tokens, and the model reads {self.scorer.max_length} in all.")
        ids = [list(self.scorer.encoded([text])[text])[-room:] for text in contexts]
        said: list[list[int]] = [[] for _ in contexts]
        texts, left = [""] * len(contexts), list(range(len(contexts)))
        with progress() as bar:
            task = bar.add_task("generated", total=len(contexts), note="")
            while left:
                size = min(piece, longest - len(said[left[0]]))
                sampling = Sampling(temperature=temperature, max_new_tokens=size, stage="lm-eval", **truncated)
                drawn = sampler.sample_ids([[*ids[i], *said[i]] for i in left], sampling, rows=left, stop_ids=ends)
                going = []
                for place, [one] in zip(left, drawn, strict=True):
                    said[place] += one.token_ids
                    text = tokenizer.decode([token for token in said[place] if token not in ends], clean_up_tokenization_spaces=False)
                    ended = one.finish_reason == "stop" or len(said[place]) >= longest or any(stop in text for stop in stops)
                    texts[place] = before_any(text, stops)
                    going += [] if ended else [place]
                left = going
                bar.update(task, completed=len(contexts) - len(left))
        return texts

    def chat(self, history: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
        """Messages in the subject's chat format, as text."""
        assert self.subject.fmt is not None
        return self.scorer.tokenizer.apply_chat_template(
            [dict(message) for message in history],
            chat_template=self.subject.fmt.template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )


def before_any(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of the stop strings.

    >>> before_any("7.\\n\\nQ: next", ["Q:", "\\n\\n"])
    '7.'
    """
    return text[: min([text.find(stop) for stop in stops if stop in text], default=len(text))]


def _shortened(context: list[int], continuation: list[int], room: int) -> tuple[list[int], list[int]]:
    """A row cut to `room` tokens from its beginning; the continuation keeps at least one token before it."""
    if len(continuation) >= room:
        raise InputError(f"a continuation of {len(continuation)} tokens is longer than the model reads ({room - 1}).")
    return context[-(room - len(continuation)) :], continuation


# --- what the harness hands back -----------------------------------------------------------------------------------------------------


def measured(found: Mapping[str, Any]) -> Measured:
    """The harness's report as rows and results: metrics that samples hold as numbers have intervals over rows, others (perplexities, F1
    over all rows) the harness's own standard error."""
    directions: dict[str, Direction] = {}
    for metrics in (found.get("higher_is_better") or {}).values():
        directions |= {name: "none" if better is None else "higher" if better else "lower" for name, better in metrics.items()}
    rows = [row for task, samples in (found.get("samples") or {}).items() for row in rows_of(task, samples)]
    results: list[Result] = []
    in_rows = list(dict.fromkeys(name for row in rows for name in row["values"]))
    metrics = [Metric(name, directions.get(name.partition(",")[0], "none"), share=False) for name in in_rows]
    tasks = list(found["results"])
    of_tasks = [metric for metric in results_of(rows, metrics, version=VERSION) if metric.get("set") or len(tasks) == 1]
    results += of_tasks
    for task, held in found["results"].items():
        for key, value in held.items():
            name, _, way = key.partition(",")
            if not way or name.endswith("_stderr") or not isinstance(value, int | float):
                continue
            called = name if way == "none" else f"{name},{way}"
            if any(row["set"] == task and called in row["values"] for row in rows):
                continue
            error = held.get(f"{name}_stderr,{way}")
            spread = Z * error if isinstance(error, int | float) else None
            ends = {"low": None, "high": None} if spread is None else {"low": value - spread, "high": value + spread}
            n = sum(row["set"] == task for row in rows)
            estimate = {"value": float(value), "n": n, **ends}
            results.append(result(called, estimate, version=VERSION, direction=directions.get(name, "none"), set=task))
    versions = {task: str(version) for task, version in (found.get("versions") or {}).items()}
    return Measured(rows, results, details={"versions": versions, "shots": dict(found.get("n-shot") or {})})


def rows_of(task: str, samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row a document: metrics of several filters stand side by side."""
    rows: dict[Any, dict[str, Any]] = {}
    for sample in samples:
        name = sample["doc_id"]
        if name not in rows:
            asked, answered = sample.get("arguments"), sample.get("filtered_resps")
            rows[name] = {
                "id": f"{sample.get('doc_hash', task)[:16]}-{name}",
                "set": task,
                "prompt": _first_text(asked)[-400:],
                "answer": answered[0] if answered and isinstance(answered[0], str) else None,
                "responses": answered,
                "target": sample.get("target"),
                "values": {},
            }
        way = sample.get("filter", "none")
        for metric in sample.get("metrics", ()):
            value = sample.get(metric)
            if isinstance(value, bool | int | float):
                rows[name]["values"][metric if way == "none" else f"{metric},{way}"] = float(value)
    return list(rows.values())


def _first_text(value: Any) -> str:
    """The first text in nested arguments."""
    while isinstance(value, Mapping | list | tuple) and value:
        value = next(iter(value.values() if isinstance(value, Mapping) else value))
    return value if isinstance(value, str) else ""
