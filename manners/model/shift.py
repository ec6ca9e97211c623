"""What one model would say at each token of a text, against another: exact divergence, and the rank of the one's choice with the other.

The two may be roles of one backbone or two models of one vocabulary. Hidden states of both are held, logits a chunk at a time.
Axes: `N` trained tokens of a tree.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from manners.core.errors import InputError
from manners.model.roles import Backbone
from manners.model.score import Head, chunk_rows, trunk
from manners.model.tree import TokenTree


class Speaker(NamedTuple):
    """A model to run: a backbone and one of its roles."""

    backbone: Backbone
    role: str

    def hidden(self, tree: TokenTree) -> Tensor:
        """States (N, D) that predict the tree's trained tokens."""
        with self.backbone.role(self.role):
            return trunk(self.backbone.model, tree.to(self.backbone.device)).index_select(0, tree.predictor_N.to(self.backbone.device))

    def logits(self, hidden_nD: Tensor) -> Tensor:
        with self.backbone.role(self.role):  # the output layer may have an adapter, too
            return Head.of(self.backbone.model)(hidden_nD)


class Shift(NamedTuple):
    """At each trained token: KL(ours || theirs) of the next token in nats, our likeliest token, and its rank with them: 1 if it is
    their likeliest, too, else 1 more than the tokens that they think likelier."""

    kl_N: Tensor
    top_N: Tensor
    rank_N: Tensor


@torch.no_grad()
def shifts(ours: Speaker, theirs: Speaker, tree: TokenTree) -> Shift:
    """Both models over a tree. Raises InputError if their output layers differ in width."""
    hidden = [speaker.hidden(tree) for speaker in (ours, theirs)]
    rows = max(1, min(chunk_rows(Head.of(s.backbone.model), h) for s, h in zip((ours, theirs), hidden, strict=True)) // 3)
    found: list[tuple[Tensor, ...]] = []
    for ours_nD, theirs_nD in zip(*(h.split(rows) for h in hidden), strict=True):
        logits = ours.logits(ours_nD), theirs.logits(theirs_nD)
        if logits[0].shape[-1] != logits[1].shape[-1]:
            raise InputError(
                f"the two models have output layers for {logits[0].shape[-1]:,} and {logits[1].shape[-1]:,} tokens; "
                "a divergence needs one vocabulary."
            )
        top_n = logits[0].argmax(-1, keepdim=True)
        rank_n = 1 + (logits[1] > logits[1].gather(-1, top_n)).sum(-1)
        ours_nV, theirs_nV = (torch.log_softmax(part, -1) for part in logits)
        kl_n = (ours_nV.exp() * (ours_nV - theirs_nV)).nan_to_num_(0.0).sum(-1)  # -inf less -inf: a token that neither gives
        found.append((kl_n.clamp(min=0.0), top_n[:, 0], rank_n))
    if not found:
        none = torch.empty(0, dtype=torch.long)
        return Shift(torch.empty(0), none, none)
    return Shift(*(torch.cat(parts).cpu() for parts in zip(*found, strict=True)))
