"""Any model, loaded to be measured rather than trained, and the summed log-probabilities that it gives to answers."""

from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedTokenizerBase

from manners.core.records import TokenGroup
from manners.model.load import ModelSource, load_model
from manners.model.roles import BASE, Backbone
from manners.model.tree import pack

ADAPTED = "adapted"
"""Role of a loaded adapter that is only measured."""


def load_frozen(source: ModelSource, tokenizer: PreTrainedTokenizerBase | None = None) -> tuple[Backbone, str]:
    """A backbone without trainable weights and the role to use: the adapter of the source if it has one, else the base."""
    backbone = Backbone(load_model(source), tokenizer, source.base)
    if source.adapter is None:
        return backbone, BASE
    backbone.load_adapter(ADAPTED, source.adapter, trainable=False)
    return backbone, ADAPTED


def response_logps(backbone: Backbone, role: str, groups: Sequence[TokenGroup], micro_tokens: int) -> Iterator[list[tuple[float, int]]]:
    """For each group in order: (summed log-probability in nats, number of trained tokens) of each of its responses. No graph.

    Groups are taken in order, as many at a time as fit `micro_tokens`.
    """
    start = 0
    while start < len(groups):
        end, tokens = start + 1, groups[start].tokens
        while end < len(groups) and tokens + groups[end].tokens <= micro_tokens:
            tokens += groups[end].tokens
            end += 1
        tree = pack(groups[start:end])
        with torch.no_grad(), backbone.role(role):
            scores = backbone.score(tree)
        sums = scores.logp_R.tolist()
        counts = torch.bincount(scores.response_N, minlength=scores.responses).tolist()
        first = 0
        for group in groups[start:end]:
            last = first + len(group.responses)
            yield list(zip(sums[first:last], counts[first:last], strict=True))
            first = last
        start = end
