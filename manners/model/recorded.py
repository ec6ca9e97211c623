"""A sampler that remembers: every answer is kept in a file by what was asked, and given again without asking.

    sampler = RecordedSampler(ChatEndpoint.named("http://localhost:8000/v1#my-model"), "runs/write/answers", budget=200_000)

A run that is repeated asks nothing and gives the same bytes, without a network; one that was killed goes on with the first request that
has no answer yet; one that reaches its budget of tokens stops in a sentence, and goes on with a larger one. The key of an answer is the
sha256 of who was asked (the sampler's identity), the messages, how to sample, the row and the sample's number. Greedy answers hang on
neither row nor number, so equal prompts are asked once.

`answers.jsonl` is only ever added to, a line an answer: {"key", "messages", "sampling", "row", "sample", "text", "finish_reason",
"token_ids", "logprobs", "policy_logprobs", "sampler", "prompt_tokens", "completion_tokens"}. A half line at its end, which a kill
leaves, is cut off.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from manners.core import files
from manners.core.errors import InputError, MannersError
from manners.core.records import Group, Message, Prompt, Response
from manners.core.run import hold
from manners.model.draw import Sampling
from manners.model.endpoint import CHARACTERS_A_TOKEN, Answered, ChatEndpoint, Request, messages_of
from manners.model.sampler import AnySampler, OnToken, Progress

ANSWERS = "answers.jsonl"
CHUNK = 32
"""Prompts given at once to a sampler that answers all or none; so many are lost by a kill at most."""


class BudgetReached(MannersError):
    """The tokens that may be spent are spent. Exit code 1; what was answered is kept."""


@dataclass(slots=True)
class Counts:
    """Answers that were there already and that had to be asked for, and what the latter took."""

    hits: int = 0
    misses: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


class RecordedSampler:
    """Any sampler with a memory in `folder`, which this process holds until `close`.

    `identity` says who answers; without it the sampler's own `identity` is taken, and one that has none is refused, for its answers
    could be taken for another's. `budget` bounds the tokens, prompts and answers together, that all runs with this folder spend; an
    endpoint's requests under way when it is reached still count and are kept, so that it is passed by these at most. Without a sampler
    (None) what is not in the folder is an error: a replay.
    """

    def __init__(self, sampler: AnySampler | None, folder: str | Path, budget: int | None = None, *, identity: str | None = None):
        known = identity if identity is not None else getattr(sampler, "identity", None)
        if known is None:
            raise ValueError("a recorded sampler needs an identity: whose answers are these?")
        if budget is not None and budget < 1:
            raise InputError(f"a budget is 1 token or more, not {budget}.")
        self.sampler, self.identity, self.folder, self.budget = sampler, known, Path(folder), budget
        self.counts = Counts()
        with files.disk_errors(self.folder):
            self._lock = hold(self.folder, "asking a model")
            self._file = open(self.folder / ANSWERS, "a+b")  # noqa: SIM115 (held until `close`)
            self._places, self.spent = self._index()

    def __enter__(self) -> "RecordedSampler":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Leave the folder to other processes."""
        self._file.close()
        self._lock.release()

    # ------------------------------------------------------------------------------------------------------- sampling

    def sample(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        samples: int = 1,
        rows: Sequence[int] | None = None,
        on_token: OnToken | None = None,
        progress: Progress | None = None,
    ) -> list[Group]:
        """As `sampler` would answer. `on_token` is called for what is asked anew only. Raises BudgetReached with the budget spent, and
        MannersError for a miss without a sampler."""
        rows = list(range(len(prompts))) if rows is None else list(rows)
        asked = [Request(p, row, sample) for p, row in zip(prompts, rows, strict=True) for sample in range(samples)]
        keys = [self._key(request, sampling) for request in asked]
        missing = {key: request for key, request in zip(keys, asked, strict=True) if key not in self._places}
        done = sum(key in self._places for key in keys)
        self.counts.hits += len(keys) - len(missing)
        if progress is not None and done:
            progress(done)
        for _ in self._asking(list(missing.values()), list(missing), sampling, samples, on_token):
            done += 1
            if progress is not None:
                progress(min(done, len(keys)))
        if progress is not None and missing:
            progress(len(keys))
        responses = [self._response(key) for key in keys]
        return [Group(p, responses[i * samples : (i + 1) * samples], row=row) for i, (p, row) in enumerate(zip(prompts, rows, strict=True))]

    def first_token_logprobs(self, prompts: Sequence[Prompt], top: int = 20) -> list[dict[str, float] | None]:
        """As the sampler's own, recorded. Raises InputError for a sampler without it."""
        keys = [self._hash({"first": top, "messages": messages_of(prompt)}) for prompt in prompts]
        missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in self._places}
        self.counts.hits += len(keys) - len(missing)
        if missing:
            sampler = self._asker(len(missing))
            if not isinstance(sampler, ChatEndpoint):
                raise InputError("only an endpoint is asked for the log-probabilities of first tokens.")
            for start in range(0, len(missing), sampler.concurrency):
                self._check_budget()
                part = list(missing.items())[start : start + sampler.concurrency]
                before = sampler.spent.prompt_tokens, sampler.spent.completion_tokens
                tops = sampler.first_token_logprobs([prompt for _, prompt in part], top)
                tokens = sampler.spent.prompt_tokens - before[0], sampler.spent.completion_tokens - before[1]
                for i, ((key, prompt), found) in enumerate(zip(part, tops, strict=True)):
                    took = tokens if i == 0 else (0, 0)
                    self._add(key, {"messages": messages_of(prompt), "first": top, "top_logprobs": found}, *took)
        return [self._row(key)["top_logprobs"] for key in keys]

    def option_logprobs(self, prompts: Sequence[Prompt], options: Sequence[str]) -> list[dict[str, float] | None]:
        """As the sampler's own, recorded: for each prompt the log-probability of each option. Raises InputError for a sampler without."""
        keys = [self._hash({"options": list(options), "messages": messages_of(prompt)}) for prompt in prompts]
        missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in self._places}
        self.counts.hits += len(keys) - len(missing)
        if missing and not hasattr(self._asker(len(missing)), "option_logprobs"):
            raise InputError("this sampler gives no log-probabilities of options.")
        for start in range(0, len(missing), CHUNK):
            self._check_budget()
            part = list(missing.items())[start : start + CHUNK]
            found = self.sampler.option_logprobs([prompt for _, prompt in part], options)  # pyright: ignore
            for (key, prompt), logps in zip(part, found, strict=True):
                size = -(-sum(len(message.content) for message in prompt.messages) // CHARACTERS_A_TOKEN)
                self._add(key, {"messages": messages_of(prompt), "options": list(options), "logps": logps}, size, len(options))
        return [self._row(key)["logps"] for key in keys]

    def _asking(
        self, asked: Sequence[Request], keys: Sequence[str], sampling: Sampling, samples: int, on_token: OnToken | None
    ) -> Iterator[None]:
        """Ask and keep what is missing; yields once an answer."""
        if not asked:
            return
        sampler = self._asker(len(asked))
        if isinstance(sampler, ChatEndpoint):
            for place, answered in sampler.each(asked, sampling, lambda: self._over()):
                self._keep(keys[place], asked[place], sampling, answered)
                yield
            if any(key not in self._places for key in keys):
                self._check_budget()
            return
        wanted: dict[tuple[int, str], dict[int, str]] = {}
        prompts: dict[tuple[int, str], Prompt] = {}
        for key, request in zip(keys, asked, strict=True):
            place = request.row, request.prompt.id
            prompts[place] = request.prompt
            wanted.setdefault(place, {})[request.sample] = key
        places = list(wanted)
        for start in range(0, len(places), CHUNK):
            self._check_budget()
            part = places[start : start + CHUNK]
            # all samples of a prompt, for a sampler counts them from 0
            count = 1 + max(max(wanted[place]) for place in part)
            moved = _moved(on_token, start)
            groups = sampler.sample([prompts[p] for p in part], sampling, samples=count, rows=[row for row, _ in part], on_token=moved)
            for place, group in zip(part, groups, strict=True):
                for sample, key in wanted[place].items():
                    response = group.responses[sample]
                    self._keep(key, Request(group.prompt, place[0], sample), sampling, _counted(group.prompt, response))
                    yield

    def _asker(self, missing: int) -> AnySampler:
        if self.sampler is None:
            raise MannersError(f"{self.folder / ANSWERS} lacks {missing} of the answers asked for, and there is no model to ask.")
        return self.sampler

    def _over(self) -> bool:
        return self.budget is not None and self.spent >= self.budget

    def _check_budget(self) -> None:
        if self._over():
            raise BudgetReached(
                f"the budget of {self.budget:,} tokens is spent ({self.spent:,}); {len(self._places):,} answers are kept in {self.folder}: "
                "give the same command with a larger budget to go on."
            )

    # ---------------------------------------------------------------------------------------------------------- store

    def _key(self, request: Request, sampling: Sampling) -> str:
        return self._hash(
            {
                "messages": [[m.role, m.content] for m in request.prompt.messages],
                "sampling": asdict(sampling),
                "draw": None if sampling.greedy else [request.row, request.sample],
            }
        )

    def _hash(self, content: dict[str, Any]) -> str:
        return sha256(json.dumps({"who": self.identity, **content}, sort_keys=True).encode()).hexdigest()

    def _index(self) -> tuple[dict[str, int], int]:
        """Where each answer's line begins, and the tokens spent. Cuts off a half line at the end of the file."""
        places: dict[str, int] = {}
        self._file.seek(0)
        spent = place = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                os.truncate(self._file.fileno(), place)
                break
            try:
                row = json.loads(line)
                key, took = row["key"], row["prompt_tokens"] + row["completion_tokens"]
            except (ValueError, KeyError, TypeError):
                number = self.folder / ANSWERS
                raise MannersError(
                    f"{number}, byte {place}: this line is no recorded answer; remove it, or the file to ask anew."
                ) from None
            places[key], spent, place = place, spent + took, place + len(line)
        return places, spent

    def _keep(self, key: str, request: Request, sampling: Sampling, answered: Answered) -> None:
        response = answered.response
        row = {
            "messages": [{"role": m.role, "content": m.content} for m in request.prompt.messages],
            "sampling": asdict(sampling),
            "row": request.row,
            "sample": request.sample,
            "text": response.text,
            "finish_reason": response.finish_reason,
            "token_ids": response.token_ids,
            "logprobs": response.logprobs,
            "policy_logprobs": response.policy_logprobs,
            "sampler": response.sampler,
        }
        if len(response.turns) != 1 or response.turns[0].role != "assistant":
            row["turns"] = [[m.role, m.content] for m in response.turns]
        if response.scores:
            row["scores"] = response.scores
        if response.asked:
            row["asked"] = [[[m.role, m.content] for m in prompt.messages] for prompt in response.asked]
        self._add(key, row, answered.prompt_tokens, answered.completion_tokens)

    def _add(self, key: str, row: dict[str, Any], prompt_tokens: int, completion_tokens: int) -> None:
        line = json.dumps({"key": key, **row, "prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}) + "\n"
        with files.disk_errors(self.folder / ANSWERS):
            self._file.seek(0, os.SEEK_END)
            place = self._file.tell()
            self._file.write(line.encode())
            self._file.flush()
        self._places[key] = place
        self.spent += prompt_tokens + completion_tokens
        self.counts.misses += 1
        self.counts.prompt_tokens += prompt_tokens
        self.counts.completion_tokens += completion_tokens

    def _row(self, key: str) -> dict[str, Any]:
        self._file.seek(self._places[key])
        return json.loads(self._file.readline())

    def _response(self, key: str) -> Response:
        row = self._row(key)
        told = {name: row[name] for name in ("token_ids", "logprobs", "policy_logprobs", "finish_reason", "sampler")}
        turns = tuple(Message(*turn) for turn in row.get("turns", [["assistant", row["text"]]]))
        asked = tuple(Prompt(tuple(Message(*turn) for turn in prompt)) for prompt in row.get("asked", ()))
        return Response(turns, scores=row.get("scores", {}), asked=asked, **told)


def _moved(on_token: OnToken | None, start: int) -> Callable[[int, int, int], None] | None:
    """`on_token` for a part of the prompts, which begins at `start`."""
    return None if on_token is None else lambda index, sample, token: on_token(start + index, sample, token)


def _counted(prompt: Prompt, response: Response) -> Answered:
    """A local answer with its tokens; those of the prompt by length, for the sampler does not tell them."""
    asked = sum(len(message.content) for message in prompt.messages)
    given = len(response.text) // CHARACTERS_A_TOKEN + 1 if response.token_ids is None else len(response.token_ids)
    return Answered(response, -(-asked // CHARACTERS_A_TOKEN), given, True)
