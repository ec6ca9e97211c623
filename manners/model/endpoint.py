"""A model behind an OpenAI-compatible chat endpoint, as a sampler.

    writer = ChatEndpoint.named("http://localhost:8000/v1#my-model")
    groups = writer.sample(prompts, Sampling(temperature=0.7, max_new_tokens=200), samples=4)
    writer.spent          # tokens and requests so far

Nothing is asked before the first prompt. Each sample is a request of its own, with a seed of its own (endpoints that draw by it repeat
themselves, the others ignore it), unless `together` asks for all samples of a prompt at once. `recorded.RecordedSampler` keeps what was
answered. What goes wrong ends in one sentence: an InputError for what the user can mend (the address, the key, the model's name), a
MannersError for an endpoint that stays away. docs/endpoints.md.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import requests
from requests.auth import AuthBase

from manners.core.chance import stream_of
from manners.core.errors import InputError, MannersError
from manners.core.http import AGAIN, host_of, in_words, patient_session
from manners.core.records import Group, Message, Prompt, Response
from manners.model.draw import Sampling
from manners.model.sampler import OnToken, Progress

SHOWN = 160
"""Characters of an endpoint's answer that an error shows."""
CHARACTERS_A_TOKEN = 4
"""What a token is taken to be where an endpoint does not report usage."""


class Request(NamedTuple):
    """One sample to draw: its prompt, the prompt's row, and the sample's number."""

    prompt: Prompt
    row: int
    sample: int


@dataclass(slots=True)
class Spent:
    """Tokens and requests so far. `estimated` of the tokens were not reported but counted by length."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    requests: int = 0
    estimated: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def as_dict(self) -> dict[str, int]:
        return {**asdict(self), "tokens": self.tokens}


@dataclass(slots=True)
class Answered:
    """What one request came to: a response, and the tokens it took."""

    response: Response
    prompt_tokens: int
    completion_tokens: int
    estimated: bool = False
    tops: list[dict[str, float]] | None = field(default=None)
    """Log-probabilities of the likeliest tokens at each position, where asked for and given."""


class _Rubbish(Exception):
    """The endpoint answered 200 with something else than a chat completion."""


class _Bearer(AuthBase):
    """The key as a header; as an auth object, because requests would put a password of ~/.netrc over a mere header."""

    def __init__(self, key: str):
        self.key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.key:
            request.headers["Authorization"] = f"Bearer {self.key}"
        return request


class ChatEndpoint:
    """A sampler that asks `POST {url}/chat/completions`.

    `key_env` names the environment variable with the key, if one is needed. `concurrency` requests run at once. A request is made
    `tries` times in all, each with `timeout` seconds to answer, after waits that double from `wait` seconds or as long as Retry-After
    says. `together` asks for the samples of a prompt in one request (`n`), `logprobs` for the tokens' log-probabilities (as the endpoint
    means them). `extra` goes into every request as it is: {"presence_penalty": 2}. At most `per_minute` requests go out in a
    minute, evenly spread.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_env: str = "OPENAI_API_KEY",
        concurrency: int = 8,
        tries: int = 6,
        timeout: float = 60.0,
        wait: float = 1.0,
        together: bool = False,
        logprobs: bool = False,
        extra: Mapping[str, Any] | None = None,
        per_minute: float | None = None,
    ):
        if not host_of(url) or not url.startswith(("http://", "https://")):
            raise InputError(f"the endpoint '{url}' names no host; write it as in http://localhost:8000/v1#my-model.")
        if not model:
            raise InputError(f"the endpoint '{url}' names no model; add its name after a '#', as in {url.rstrip('/')}#my-model.")
        if concurrency < 1 or tries < 1:
            raise InputError(f"an endpoint's concurrency and tries must be 1 or more, not {concurrency} and {tries}.")
        self.url, self.model, self.key_env = url.rstrip("/").removesuffix("/chat/completions"), model, key_env
        self.concurrency, self.tries, self.timeout = concurrency, tries, timeout
        self.together, self.logprobs, self.extra = together, logprobs, dict(extra or {})
        self.spent = Spent()
        self._length_key = "max_tokens"
        self._lock = threading.Lock()
        self._gap, self._next = 60.0 / per_minute if per_minute else 0.0, 0.0
        self._session = patient_session(url, tries=tries, wait=wait, connections=concurrency)

    @classmethod
    def named(cls, name: str, **options: Any) -> "ChatEndpoint":
        """The endpoint that `http://host:8000/v1#model-name` stands for."""
        url, _, model = name.partition("#")
        return cls(url, model.strip(), **options)

    @property
    def identity(self) -> str:
        """What tells its answers from another's."""
        return json.dumps([self.url, self.model, self.logprobs, self.extra], sort_keys=True)

    def __str__(self) -> str:
        return f"{self.url}#{self.model}"

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
        """A group with `samples` responses for each prompt, in order. `on_token` is not called: an endpoint answers whole texts."""
        rows = list(range(len(prompts))) if rows is None else list(rows)
        asked = [Request(p, row, sample) for p, row in zip(prompts, rows, strict=True) for sample in range(samples)]
        found: list[Response | None] = [None] * len(asked)
        for done, (place, answered) in enumerate(self.each(asked, sampling), 1):
            found[place] = answered.response
            if progress is not None:
                progress(done)
        answers = [response for response in found if response is not None]
        return [
            Group(prompt, answers[i * samples : (i + 1) * samples], row=row)
            for i, (prompt, row) in enumerate(zip(prompts, rows, strict=True))
        ]

    def each(
        self, asked: Sequence[Request], sampling: Sampling, enough: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[int, Answered]]:
        """(place in `asked`, answer) of every request as soon as it is there, so that a caller can keep it.

        When `enough` says so no further request goes out. Then, and on an error, those under way are waited for and handed over first.
        """
        jobs = self._jobs(asked)
        with ThreadPoolExecutor(self.concurrency, thread_name_prefix="endpoint") as pool:
            waiting: dict[Future[list[Answered]], list[int]] = {}
            failed: BaseException | None = None
            place = 0
            while True:
                while place < len(jobs) and len(waiting) < self.concurrency and failed is None and not enough():
                    waiting[pool.submit(self._draw, [asked[i] for i in jobs[place]], sampling)] = jobs[place]
                    place += 1
                if not waiting:
                    break
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    places = waiting.pop(future)
                    if (error := future.exception()) is not None:
                        failed = failed or error
                    else:
                        yield from zip(places, future.result(), strict=True)
            if failed is not None:
                raise failed

    def _jobs(self, asked: Sequence[Request]) -> list[list[int]]:
        """Which requests go out as one: each alone, or with `together` those of the same prompt and row."""
        if not self.together:
            return [[i] for i in range(len(asked))]
        jobs: dict[tuple[int, str], list[int]] = {}
        for i, request in enumerate(asked):
            jobs.setdefault((request.row, request.prompt.id), []).append(i)
        return list(jobs.values())

    def _draw(self, asked: Sequence[Request], sampling: Sampling) -> list[Answered]:
        """As many answers as were asked for, of one prompt. An endpoint that gives fewer at once is asked again for the rest."""
        found: list[Answered] = []
        while len(found) < len(asked):
            left = asked[len(found) :]
            body = {"model": self.model, "messages": messages_of(left[0].prompt), **self._drawing(sampling, left[0])}
            if len(left) > 1:
                body["n"] = len(left)
            found += self._completion(body | self.extra, len(left), f"{self.model} {sampling}")
        return found

    def _drawing(self, sampling: Sampling, request: Request) -> dict[str, Any]:
        """How to draw, in the words of the interface; what is off is left out, for not all endpoints know it."""
        content: dict[str, Any] = {"temperature": sampling.temperature, self._length_key: sampling.max_new_tokens}
        if not sampling.greedy:
            key = stream_of(sampling.seed, sampling.round, request.row, request.sample, sampling.stage)
            content["seed"] = int.from_bytes(key[:4], "little") >> 1
        given = {
            "top_p": (sampling.top_p, 1.0),
            "top_k": (sampling.top_k, 0),
            "min_p": (sampling.min_p, 0.0),
            "min_tokens": (sampling.min_new_tokens, 0),
        }
        content |= {name: value for name, (value, off) in given.items() if value != off}
        return content | ({"logprobs": True} if self.logprobs else {})

    def first_token_logprobs(self, prompts: Sequence[Prompt], top: int = 20) -> list[dict[str, float] | None]:
        """For each prompt the log-probabilities of the `top` likeliest first tokens of an answer, by their text; None where the endpoint
        gives none."""
        bodies = [
            {
                "model": self.model,
                "messages": messages_of(p),
                "temperature": 0.0,
                self._length_key: 1,
                "logprobs": True,
                "top_logprobs": top,
            }
            for p in prompts
        ]
        with ThreadPoolExecutor(self.concurrency) as pool:
            answers = pool.map(lambda body: self._completion(body | self.extra, 1, self.model)[0], bodies)
            return [answered.tops[0] if answered.tops else None for answered in answers]

    # ------------------------------------------------------------------------------------------------------- requests

    def _completion(self, body: dict[str, Any], wanted: int, sampler: str) -> list[Answered]:
        """The answers to one request. What is no chat completion is asked for again, up to `tries` times."""
        said = ""
        for _ in range(self.tries):
            try:
                answer = self._post(body)
                answers = _read(answer, body["messages"], wanted, sampler)
            except _Rubbish as rubbish:
                said = str(rubbish)
                continue
            with self._lock:
                self.spent.requests += 1
                for answered in answers:
                    self.spent.prompt_tokens += answered.prompt_tokens
                    self.spent.completion_tokens += answered.completion_tokens
                    self.spent.estimated += answered.estimated * (answered.prompt_tokens + answered.completion_tokens)
            return answers
        raise MannersError(
            f"the endpoint '{self}' answered {self.tries} times with what is no chat completion: {said}; is {self.url} the address of an "
            "OpenAI-compatible server, up to and with its /v1?"
        )

    def _pace(self) -> None:
        """Wait for this request's turn, where there is a limit by the minute."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._gap
        if turn > now:
            time.sleep(turn - now)

    def _post(self, body: dict[str, Any]) -> bytes:
        self._pace()
        try:
            reply = self._session.post(
                f"{self.url}/chat/completions",
                data=json.dumps(body).encode(),
                headers={"Content-Type": "application/json"},
                auth=_Bearer(os.environ.get(self.key_env, "")),
                timeout=self.timeout,
            )
        except (requests.exceptions.ChunkedEncodingError, requests.exceptions.ContentDecodingError) as error:
            raise _Rubbish("the connection broke off within the answer") from error
        except requests.RequestException as error:
            raise self._gone(in_words(error, self.timeout)) from error
        if reply.ok:
            return reply.content
        told = " ".join(reply.text.split())[:SHOWN]
        problem = f"{reply.status_code} {reply.reason}" + (f": {told}" if told else "")
        if reply.status_code in AGAIN:
            raise self._gone(f"it answered {problem}")
        if reply.status_code == 400 and "max_tokens" in body and "max_completion_tokens" in reply.text:
            self._length_key = "max_completion_tokens"  # OpenAI's later models know the limit by this name alone
            return self._post({self._length_key if key == "max_tokens" else key: value for key, value in body.items()})
        raise InputError(self._refused(reply.status_code, problem))

    def _refused(self, status: int, problem: str) -> str:
        if status in (401, 403):
            held = "holds one that is not accepted" if os.environ.get(self.key_env) else "is not set"
            return (
                f"the endpoint '{self}' asks for a key ({problem}); the environment variable {self.key_env}, which is to hold it, {held}."
            )
        if status == 404:
            return f"the endpoint '{self}' answered {problem}; it has no model '{self.model}', or its address is not {self.url}."
        return f"the endpoint '{self}' refused the request: {problem}."

    def _gone(self, problem: str) -> MannersError:
        return MannersError(
            f"the endpoint '{self}' could not be asked in {self.tries} tries (the last: {problem}); see that it runs, and give the same "
            "command once more."
        )


def messages_of(prompt: Prompt) -> list[dict[str, str]]:
    """A prompt as the interface writes it. Raises InputError for a prompt without messages."""
    if not prompt.messages:
        raise InputError("an endpoint answers conversations, not plain text: the prompt has no messages.")
    return [{"role": message.role, "content": message.content} for message in prompt.messages]


# ------------------------------------------------------------------------------------------------------------ reading


def _read(content: bytes, messages: Sequence[Mapping[str, str]], wanted: int, sampler: str) -> list[Answered]:
    """The answers, `wanted` at most, in a chat completion's JSON. Raises _Rubbish, saying what is wrong."""
    shown = content[:SHOWN].decode("utf-8", "replace")
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        raise _Rubbish(f"no JSON, but {shown!r}") from None
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not choices:
        raise _Rubbish(f"no choices in {shown!r}")
    choices = choices[:wanted]
    responses = [_response(choice, sampler, shown) for choice in choices]
    usage = answer.get("usage")
    asked, given = (usage.get("prompt_tokens"), usage.get("completion_tokens")) if isinstance(usage, dict) else (None, None)
    if isinstance(asked, int) and isinstance(given, int) and min(asked, given) >= 0:
        # what the prompt took is written to the first answer, what the answers took is shared out, so that the sums are right
        shares = [given // len(choices) + (i < given % len(choices)) for i in range(len(choices))]
        return [Answered(r, asked * (i == 0), shares[i], tops=t) for i, (r, t) in enumerate(responses)]
    length = sum(len(message["content"]) for message in messages)
    counted = lambda characters: -(-characters // CHARACTERS_A_TOKEN)
    return [Answered(r, counted(length) * (i == 0), counted(len(r.text)), True, t) for i, (r, t) in enumerate(responses)]


def _response(choice: Any, sampler: str, shown: str) -> tuple[Response, list[dict[str, float]] | None]:
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise _Rubbish(f"no message in {shown!r}")
    text = message.get("content")
    if isinstance(text, list):  # some endpoints answer in parts
        text = "".join(part["text"] for part in text if isinstance(part, dict) and isinstance(part.get("text"), str))
    if text is None:  # a refusal has a field of its own; an answer cut off while the model still reasoned has no text
        text = message.get("refusal") or ""
    if not isinstance(text, str):
        raise _Rubbish(f"no text in {shown!r}")
    logps, tops = _logprobs(choice.get("logprobs"))
    reason = choice.get("finish_reason")
    response = Response(
        (Message("assistant", text),), logprobs=logps, finish_reason=reason if isinstance(reason, str) else None, sampler=sampler
    )
    return response, tops


def _logprobs(content: Any) -> tuple[list[float] | None, list[dict[str, float]] | None]:
    """Log-probabilities of the tokens, and of the likeliest at each place; (None, None) where there are none that can be read."""
    try:
        tokens = content["content"]
        logps = [float(token["logprob"]) for token in tokens]
        tops = [{top["token"]: float(top["logprob"]) for top in token.get("top_logprobs") or ()} for token in tokens]
    except (TypeError, KeyError, ValueError, AttributeError):
        return None, None
    return (logps, tops) if tokens else (None, None)
