"""Four counts that say whether a set of encoded rows can be trusted, before anything is trained on it.

Two are about faults: an answer whose stop token is not trained never learns to end, and a doubled begin token is a start that the
model has not seen. Two are only shown: rows where the tokenizer, given prompt and answer as one text, would cut them otherwise than
training and sampling do, and answers that `max_length` cuts.
"""

from collections.abc import Sequence
from typing import Any

from manners.core.errors import InputError
from manners.core.records import TEXT_ROLE, Group, TokenGroup, TokenResponse
from manners.data.chat import ChatFormat


def trust(groups: Sequence[TokenGroup], fmt: ChatFormat, sources: Sequence[Group], max_length: int | None = None) -> dict[str, Any]:
    """The counts of `count`. Raises InputError if they are a fault: an untrained stop token or a doubled begin token."""
    counts = count(groups, fmt, sources, max_length)
    if wrong := fault(counts, fmt):
        raise InputError(wrong)
    return counts


def count(groups: Sequence[TokenGroup], fmt: ChatFormat, sources: Sequence[Group], max_length: int | None = None) -> dict[str, Any]:
    """The four counts, over `groups` and the rows that they were encoded from, in the same order.

    `answers`: responses; `stop_trained`: those that end in a trained stop token; `stop_untrained`: those with a stop token that is
    not trained, or with none though nothing cut them; `truncated`: those cut, or to be cut, at `max_length`. `rows`: groups;
    `boundary_differs`: those where the tokenizer, given prompt and answer as one text, cuts otherwise before the answer; rows that
    spell out a control token are not compared. `begin_doubled`: those that begin with two begin tokens.
    """
    names = ("answers", "stop_trained", "stop_untrained", "truncated", "rows", "boundary_differs", "begin_doubled")
    counts: dict[str, Any] = dict.fromkeys(names, 0)
    for group, source in zip(groups, sources, strict=True):
        counts["rows"] += 1
        counts["boundary_differs"] += _differs(group, source, fmt)
        counts["begin_doubled"] += _begins_twice(group, fmt)
        stops = _stops(source, fmt)
        for tokens, response in zip(group.responses, source.responses, strict=True):
            ended = tokens.trained[-1] and tokens.token_ids[-1] in stops
            length = len(group.prompt_ids) + len(tokens.token_ids)
            cut = max_length is not None and (length > max_length or (length == max_length and not ended))
            counts["answers"] += 1
            counts["stop_trained"] += ended
            counts["truncated"] += cut
            open_ended = not ended and not cut and response.finish_reason != "length"
            counts["stop_untrained"] += open_ended or _leaves_a_stop(tokens, stops)
    counts["truncated_share"] = counts["truncated"] / counts["answers"] if counts["answers"] else 0.0
    return counts


def fault(counts: dict[str, Any], fmt: ChatFormat) -> str | None:
    """What is wrong by these counts, as a sentence; None if nothing is."""
    if counts["stop_untrained"]:
        stop = "".join(fmt.tokenizer.convert_ids_to_tokens(sorted(fmt.stop_ids)))
        return (
            f"{counts['stop_untrained']:,} of {counts['answers']:,} answers do not train their stop token ({stop}), so the model would "
            "not learn to end an answer: use format=plain or another template."
        )
    if counts["begin_doubled"]:
        return (
            f"{counts['begin_doubled']:,} of {counts['rows']:,} rows begin with two begin tokens ({fmt.tokenizer.bos_token}), because "
            "the chat template writes it twice: take one out of the template, or use format=plain."
        )
    return None


def _stops(source: Group, fmt: ChatFormat) -> frozenset[int]:
    """The tokens that may end an answer of this group: plain text ends in the tokenizer's end token, whatever the template says."""
    text = any(turn.role == TEXT_ROLE for response in source.responses for turn in response.turns)
    end: Any = fmt.tokenizer.eos_token_id
    return frozenset({end}) if text else fmt.stop_ids


def _leaves_a_stop(tokens: TokenResponse, stops: frozenset[int]) -> bool:
    """Whether a stop token follows directly on a trained token that is none, and is not trained itself."""
    ids, trained = tokens.token_ids, tokens.trained
    return any(trained[i - 1] and ids[i - 1] not in stops and not trained[i] and ids[i] in stops for i in range(1, len(ids)))


def _begins_twice(group: TokenGroup, fmt: ChatFormat) -> bool:
    begin: Any = fmt.tokenizer.bos_token_id
    starts = [[*group.prompt_ids, *response.token_ids[:2]] for response in group.responses] or [group.prompt_ids]
    return begin is not None and any(start[:2] == [begin, begin] for start in starts)


def _differs(group: TokenGroup, source: Group, fmt: ChatFormat) -> bool:
    """Whether the tokenizer, given the whole rendering, makes other tokens of it up to the first token of any answer.

    Sampled answers have tokens only, and plain text has no boundary.
    """
    end = len(group.prompt_ids) + 1
    for tokens, response in zip(group.responses, source.responses, strict=True):
        if response.token_ids is None and source.prompt.messages:
            natural = fmt.natural_ids([*source.prompt.messages, *response.turns])
            if natural is not None and natural[:end] != [*group.prompt_ids, *tokens.token_ids[:1]]:
                return True
    return False
