"""The records that every stage, file and batch is made of: a prompt and its responses.

A `Group` is one prompt with the responses given to it. A demonstration has one response, a preference pair two (chosen first),
a ranking K, a rollout G. Before a model sees a group it becomes a `TokenGroup`: the same, as token ids with a mask that says
which tokens are trained.
"""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

ROLES = ("system", "user", "assistant", "tool")
TEXT_ROLE = "text"
"""Role of the one turn of a plain-text response: no template is applied and every token of it is trained."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. `role` is one of ROLES, or TEXT_ROLE for plain text."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is asked: messages that end with a user or tool turn (or none, for plain text)."""

    messages: tuple[Message, ...]
    source: str = ""
    cluster: str = ""

    @property
    def id(self) -> str:
        """Sixteen hex digits that depend on the messages alone."""
        content = json.dumps([[m.role, m.content] for m in self.messages], ensure_ascii=False)
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    @classmethod
    def user(cls, text: str, **fields: str) -> "Prompt":
        """A prompt of a single user turn."""
        return cls((Message("user", text),), **fields)


@dataclass(slots=True)
class Response:
    """What follows a prompt. Assistant turns are trained; user and tool turns between them are context only.

    `token_ids`, `logprobs` (of the distribution drawn from) and `policy_logprobs` (of the untruncated policy at temperature 1) are
    kept for sampled responses, so that text is never tokenised twice; they include the stop token where one was drawn.
    `finish_reason` is "stop" or "length". `asked` is what the model was really given, where a wrapper of the sampler asked in other
    words than the group's prompt, one prompt for each time that it asked.
    """

    turns: tuple[Message, ...]
    token_ids: list[int] | None = None
    logprobs: list[float] | None = None
    policy_logprobs: list[float] | None = None
    finish_reason: str | None = None
    sampler: str | None = None
    scores: dict[str, float] = field(default_factory=dict)
    asked: tuple[Prompt, ...] = ()

    @classmethod
    def answer(cls, text: str, **fields) -> "Response":
        """A response of a single assistant turn."""
        return cls((Message("assistant", text),), **fields)

    @property
    def text(self) -> str:
        """Content of the last turn: the answer."""
        return self.turns[-1].content if self.turns else ""


@dataclass(slots=True)
class Group:
    """A prompt and its responses. In a preference pair the chosen response comes first.

    `row` is the 0-based index of the row in the file it was read from. `margin` says by how much the first response is better,
    `probability` how sure that is, where votes or a judge say.
    `columns` are the fields of that row which are not part of a prompt or response, such as the answer that a verifier looks for.
    """

    prompt: Prompt
    responses: list[Response]
    row: int = -1
    margin: float | None = None
    probability: float | None = None
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class TokenResponse:
    """A response as token ids below its prompt; `trained[i]` says whether token i is a target."""

    token_ids: list[int]
    trained: list[bool]

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.trained):
            raise ValueError(f"{len(self.token_ids)} tokens but {len(self.trained)} marks")

    @property
    def targets(self) -> int:
        """Number of trained tokens."""
        return sum(self.trained)


@dataclass(slots=True)
class TokenGroup:
    """A group as token ids. `prompt_ids` are never trained; plain text has none and its first token cannot be a target."""

    prompt_ids: list[int]
    responses: list[TokenResponse]
    row: int = -1
    margin: float | None = None
    probability: float | None = None

    @property
    def tokens(self) -> int:
        """Number of tokens computed: the prompt once, each response once."""
        return len(self.prompt_ids) + sum(len(r.token_ids) for r in self.responses)

    @property
    def targets(self) -> int:
        """Number of trained tokens over all responses."""
        return sum(r.targets for r in self.responses)
