"""How far apart two roles of one backbone are, exactly: the KL divergence over the whole vocabulary, token by token.

What training reports from sampled tokens is an estimate of this; on a few responses the sum itself can be had for two passes of the
trunk and the output layer in chunks, so that no more than two chunks of logits are there at once.
"""

import torch
from torch import Tensor

from manners.model.roles import Backbone
from manners.model.score import Head, chunk_rows, trunk
from manners.model.tree import TokenTree


@torch.no_grad()
def exact_kl(backbone: Backbone, role: str, reference: str, tree: TokenTree, temperature: float = 1.0) -> Tensor:
    """KL(role || reference) of the next token, in nats, at the state before each of the tree's response tokens, (N,).

    Both roles' logits are divided by `temperature`. Summed over a response and averaged over responses that `role` has sampled, it is
    an unbiased estimate of the KL of whole responses, of less variance than the log-ratios of the sampled tokens.
    """
    tree = tree.to(backbone.device)
    hidden = []
    for name in (role, reference):
        with backbone.role(name):
            hidden.append(trunk(backbone.model, tree).index_select(0, tree.predictor_N))
    head = Head.of(backbone.model)
    rows = max(1, chunk_rows(head, hidden[0]) // 2)
    found = []
    for ours_nD, theirs_nD in zip(*(h.split(rows) for h in hidden), strict=True):
        ours_nV, theirs_nV = (torch.log_softmax(head(part) / temperature, -1) for part in (ours_nD, theirs_nD))
        found.append((ours_nV.exp() * (ours_nV - theirs_nV)).nan_to_num_(0.0).sum(-1))  # -inf less -inf: a token that neither gives
    return torch.cat(found) if found else hidden[0].new_empty(0)
