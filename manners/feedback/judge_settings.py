"""Settings of the commands that let models judge."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from manners.core.config import Settings

ULTRAFEEDBACK = ["instruction_following", "honesty", "truthfulness", "helpfulness"]


def one_as_list(value: Any) -> Any:
    """One text as a list of it."""
    return [value] if isinstance(value, str) else value


class JudgeSettings(Settings):
    """Who judges, and how it is asked."""

    silent: ClassVar[frozenset[str]] = frozenset({"out", "budget", "concurrency", "timeout", "tries", "per_minute", "key_env", "slots"})

    judge: Annotated[list[str], BeforeValidator(one_as_list), Field(min_length=1)]
    """The judge: folder, run, adapter, hub id or alias; http://HOST/v1#MODEL for an endpoint. A list is a panel."""
    format: str = "auto"
    """plain, chatml, template (the tokenizer's own), auto. Of a model, not an endpoint."""
    verdict: Literal["auto", "logprob", "text"] = "auto"
    """Read the log-probabilities of the options, the judge's words, or (auto) the first where there are any."""
    thoughts: bool = False
    """Let the judge write its reasons before it decides."""
    rubric: str | None = None
    """What a good answer is, in words, or a text file of them. It stands in every question."""
    references: bool = False
    """Show the judge each row's reference answer."""
    prompts: str | None = None
    """Folder of templates that stand in for those that ship, by file name."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 256
    """Longest reasons."""
    extra: dict[str, Any] | None = None
    """Endpoint: further fields of every request."""
    budget: Annotated[int, Field(ge=1)] | None = None
    """Most tokens, prompts and answers together, that all runs in this folder spend on one judge."""
    concurrency: Annotated[int, Field(ge=1)] = 8
    """Endpoint: requests at once."""
    per_minute: Annotated[float, Field(gt=0)] | None = None
    """Endpoint: most requests a minute."""
    timeout: Annotated[float, Field(gt=0)] = 60.0
    """Endpoint: seconds to wait for an answer."""
    tries: Annotated[int, Field(ge=1)] = 6
    """Endpoint: how often a request is made before it is given up."""
    key_env: str = "OPENAI_API_KEY"
    """Endpoint: the environment variable that holds the key."""
    slots: Annotated[int, Field(ge=1)] = 32
    """Model: answers decoded together."""


class CompareKeys(JudgeSettings):
    """How a judge compares two answers."""

    orders: Literal["both", "given"] = "both"
    """Ask in both orders and average, or in the order of the file alone."""
    ties: bool = False
    """Let the judge say that neither answer is better."""
    panel: Literal["mean", "majority"] = "mean"
    """What several judges make together: the mean of their probabilities, or the share that names an answer."""


class LabelSettings(CompareKeys):
    """Settings of `manners judge label`."""

    data: str
    """File of comparisons, or of sampled answers."""
    out: str
    """Folder to write."""
    map: str | None = None
    """Names of columns, as in prompt=query,a=reply_1,b=reply_2."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """Use the first so many comparisons only."""
    pairs: Literal["one", "all"] = "one"
    """Of several answers to a prompt: one pair drawn at random, or every two."""
    principles: str | None = None
    """YAML file of principles: each comparison is judged by one of them, drawn at random."""
    clamp: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    """Bounds of the probabilities, as in [0.4,0.6] for verdicts with thoughts (Bai 2022)."""
    seed: int = 0
    """Of the pairs and principles that are drawn."""


class RateSettings(JudgeSettings):
    """Settings of `manners judge rate`."""

    data: str | dict[str, str]
    """File of answers, or a file for each model: {sft: FILE, dpo: FILE}. All answer the same prompts."""
    out: str
    """Folder to write."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """Use the first so many prompts only."""
    aspects: Annotated[list[str], Field(min_length=1)] | dict[str, str] = ULTRAFEEDBACK
    """Names of aspects that ship, or a mapping of names to what they mean."""
    scale: Annotated[list[int], Field(min_length=2, max_length=2)] = [1, 5]  # noqa: RUF012
    """Lowest and highest mark."""
