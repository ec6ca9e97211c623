"""Log-probabilities of response tokens, with logits only where they are needed.

The output layer runs only at positions that predict a response token, a chunk of rows at a time, so that the `tokens x vocabulary`
matrix never exists. With a frozen output layer the gradient with respect to the hidden state is formed in the same pass: it is
d logp / d h = (onehot(y) - p) W up to the factor that arrives in backward, so the vocabulary product is made twice, not three
times. With a trained one the chunk is recomputed in backward.

Axes: `T` tokens of the row, `N` response tokens, `V` vocabulary, `D` width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from manners.model.attention import TreePattern, attending
from manners.model.tree import TokenTree
from manners.ops.products import product
from manners.ops.segments import segment_sum

FULL = (torch.float32, torch.float64)
SLICES = 8
"""What is as large as a chunk of logits, or as the output layer, and passes, is made in so many parts."""
CHUNK_BYTES = 32 * 2**20
"""Size of one chunk of logits. Larger gains nothing on a CPU; smaller costs matrix efficiency."""


@dataclass(slots=True)
class Scores:
    """What a model says of the responses of a tree.

    `logp_N`, and where they were asked for `entropy_N` in nats (a metric: detached), `value_N` (of the state before each token) and
    `reward_RK` (at each response's last token, one column an output of the head). A pass of the trunk alone has no `logp_N`: it is empty.
    """

    logp_N: Tensor
    response_N: Tensor
    responses: int
    entropy_N: Tensor | None = None
    value_N: Tensor | None = None
    reward_RK: Tensor | None = None

    @property
    def logp_R(self) -> Tensor:
        """Summed log-probability of each response."""
        return segment_sum(self.logp_N, self.response_N, self.responses)


@dataclass(frozen=True)
class Head:
    """A model's output layer with what its family does to the logits: divided by a scaling (Granite), multiplied by a scale (Cohere),
    soft-capped (Gemma 2). Called on hidden states (n, D), gives logits (n, V) in at least float32."""

    layer: nn.Module
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Head":
        config = model.config.get_text_config()
        scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
        layer = model.get_output_embeddings()
        if layer is None:
            raise TypeError(f"{type(model).__name__} has no output layer")
        return cls(layer, scale, getattr(config, "final_logit_softcapping", None))

    def __call__(self, hidden: Tensor) -> Tensor:
        logits = self.layer(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits

    @property
    def trained(self) -> bool:
        return any(p.requires_grad for p in self.layer.parameters())


def trunk(model: PreTrainedModel, tree: TokenTree) -> Tensor:
    """Last hidden states (T, D) of the row, by tree attention (which the model must be set to)."""
    with attending(TreePattern(tree)):
        return model.base_model(input_ids=tree.tokens_T[None], position_ids=tree.positions_T[None], use_cache=False)[0][0]


def score(
    model: PreTrainedModel,
    tree: TokenTree,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    recompute: Any = None,
    value_head: nn.Linear | None = None,
) -> Scores:
    """Log-probability of every response token of the tree under the model, differentiable.

    Logits are divided by `temperature` before the softmax (algorithms: the same at sampling, scoring and learning, or ratios are
    not 1). `recompute` is the `context_fn` for what is recomputed in backward (see roles.Backbone); entropy is a detached metric.
    With `value_head` the same hidden states give `value_N`, too.
    """
    hidden_ND = trunk(model, tree).index_select(0, tree.predictor_N)
    logp_N, entropy_N = token_logps(Head.of(model), hidden_ND, tree.target_N, temperature, entropy, recompute)
    value_N = head_outputs(value_head, hidden_ND)[:, 0] if value_head is not None else None
    return Scores(logp_N, tree.response_N, tree.responses, entropy_N if entropy else None, value_N)


def values(model: PreTrainedModel, tree: TokenTree, head: nn.Linear) -> Scores:
    """`value_N`: what a scalar head says of the state before each response token. The trunk alone; no logits are made."""
    hidden_ND = trunk(model, tree).index_select(0, tree.predictor_N)
    return Scores(hidden_ND.new_empty(0), tree.response_N, tree.responses, value_N=head_outputs(head, hidden_ND)[:, 0])


def rewards(model: PreTrainedModel, tree: TokenTree, head: nn.Linear) -> Scores:
    """`reward_RK`: what a head says at each response's last trained token. The trunk alone; no logits are made.

    Raises ValueError for a response without a trained token.
    """
    if -1 in (places := tree.last_R.tolist()):  # in Python: a trace, whose tensors have no data, comes through here, too
        raise ValueError(f"response {places.index(-1)} has no trained token, so there is no place to read its reward")
    hidden_RD = trunk(model, tree).index_select(0, tree.last_R)
    return Scores(hidden_RD.new_empty(0), tree.response_N, tree.responses, reward_RK=head_outputs(head, hidden_RD))


def head_outputs(head: nn.Linear, hidden: Tensor) -> Tensor:
    """Outputs (n, K) of a head, at least in float32: in bfloat16 different rewards would tie."""
    return head(hidden.to(head.weight.dtype))


def token_logps(
    head: Head, hidden_ND: Tensor, target_N: Tensor, temperature: float = 1.0, entropy: bool = False, recompute: Any = None
) -> tuple[Tensor, Tensor | None]:
    """Log-probability (N,) of each target given the hidden state that predicts it, and the entropy (N,) if asked for."""
    if torch.is_grad_enabled() and head.trained:
        return _trained_head(head, hidden_ND, target_N, temperature, entropy, recompute)
    logp_N, entropy_N = _FrozenHead.apply(hidden_ND, target_N, head, temperature, entropy)
    return logp_N, entropy_N if entropy else None


def chunk_rows(head: Head, hidden_ND: Tensor) -> int:
    """Rows of one chunk of logits."""
    weight = getattr(head.layer, "weight", None)
    vocabulary = weight.shape[0] if isinstance(weight, Tensor) else 2**16
    return max(1, CHUNK_BYTES // (4 * vocabulary))


def _logp(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability (n,) of the targets and log-sum-exp (n, 1) of a chunk (n, V)."""
    lse = torch.logsumexp(logits, -1, keepdim=True)
    return (logits.gather(1, target[:, None]) - lse)[:, 0], lse


def _entropy(logits: Tensor, probabilities: Tensor, lse: Tensor) -> Tensor:
    """Entropy (n,) in nats: log-sum-exp less the mean logit, as one product a row, without a matrix more."""
    return lse[:, 0] - torch.bmm(probabilities[:, None], logits[:, :, None])[:, 0, 0]


class _FrozenHead(Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, target_N: Tensor, head: Head, temperature: float, entropy: bool) -> tuple[Tensor, Tensor]:
        wanted = ctx.needs_input_grad[0]
        rows = chunk_rows(head, hidden_ND)
        logps, entropies, gradients = [], [], []
        for start in range(0, hidden_ND.shape[0], rows):
            chunk, target = hidden_ND[start : start + rows].detach(), target_N[start : start + rows]
            with torch.set_grad_enabled(wanted):
                chunk.requires_grad_(wanted)
                logits = head(chunk) / temperature if temperature != 1.0 else head(chunk)
            plain = logits.detach()
            logp, lse = _logp(plain, target)
            logps.append(logp)
            if wanted or entropy:
                # A few rows at a time, each written over its logits unless backward needs those: one chunk is in memory, not two.
                slope = torch.empty_like(plain) if head.softcap is not None else plain
                parts = [tensor.split(-(-len(target) // SLICES)) for tensor in (plain, lse, slope)]
                for some, some_lse, out in zip(*parts, strict=True):
                    probabilities = (some - some_lse).exp_()
                    if entropy:
                        entropies.append(_entropy(some, probabilities, some_lse))
                    if wanted:
                        out.copy_(probabilities.neg_())
                if wanted:
                    # onehot(y) - p, the derivative of logp with respect to the logits
                    slope.scatter_add_(1, target[:, None], torch.ones_like(lse))
                    gradients.append(torch.autograd.grad(logits, chunk, slope)[0])
                del slope, parts
            del logits, plain
        empty = hidden_ND.new_empty(0, dtype=torch.promote_types(hidden_ND.dtype, torch.float32))
        ctx.gradient_ND = torch.cat(gradients) if gradients else hidden_ND.new_zeros(hidden_ND.shape) if wanted else None
        entropy_N = torch.cat(entropies) if entropies else empty
        ctx.mark_non_differentiable(entropy_N)
        return torch.cat(logps) if logps else empty.clone(), entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient_ND, ctx.gradient_ND = ctx.gradient_ND, None
        if gradient_ND is None:
            raise RuntimeError("backward through the same log-probabilities twice: score again instead")
        return gradient_ND * grad_outputs[0][:, None].to(gradient_ND.dtype), None, None, None, None


class _TrainedHead(Function):
    """Log-probabilities and entropies under a trained linear output layer without bias: logits are made again in backward, and its
    gradient, as large as itself, is made once and added to in place."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight: Tensor, target_N: Tensor, factor: float, rows: int, entropy: bool
    ) -> tuple[Tensor, Tensor]:
        logps, sums, entropies = [], [], []
        for start in range(0, hidden_ND.shape[0], rows):
            logits = product(hidden_ND[start : start + rows], weight)
            logits = logits.mul_(factor) if factor != 1.0 else logits
            logp, lse = _logp(logits, target_N[start : start + rows])
            logps.append(logp)
            sums.append(lse)
            if entropy:
                entropies.append(_entropy(logits, (logits - lse).exp_(), lse))
            del logits
        ctx.save_for_backward(hidden_ND, weight, target_N, torch.cat(sums))
        ctx.factor, ctx.rows = factor, rows
        entropy_N = torch.cat(entropies) if entropies else hidden_ND.new_empty(0)
        ctx.mark_non_differentiable(entropy_N)
        return torch.cat(logps), entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden_ND, weight, target_N, lse_N1 = ctx.saved_tensors
        grad_N1, needs = grad_outputs[0][:, None] * ctx.factor, ctx.needs_input_grad
        grad_hidden = torch.empty_like(hidden_ND) if needs[0] else None
        grad_weight = torch.zeros_like(weight) if needs[1] else None
        words = -(-weight.shape[0] // SLICES)
        for start in range(0, hidden_ND.shape[0], ctx.rows):
            part = slice(start, start + ctx.rows)
            slope = product(hidden_ND[part], weight)
            slope = slope.mul_(ctx.factor) if ctx.factor != 1.0 else slope
            slope.sub_(lse_N1[part]).exp_().neg_()  # onehot(y) - p, the derivative of logp with respect to the logits
            slope.scatter_add_(1, target_N[part, None], torch.ones_like(grad_N1[part])).mul_(grad_N1[part])
            if grad_hidden is not None:
                grad_hidden[part] = product(slope, weight.t())
            if grad_weight is not None:
                for columns, sum_part in zip(slope.split(words, 1), grad_weight.split(words), strict=True):
                    sum_part += product(columns.t(), hidden_ND[part].t())
            del slope
        return grad_hidden, grad_weight, None, None, None, None


def _trained_head(
    head: Head, hidden_ND: Tensor, target_N: Tensor, temperature: float, entropy: bool, recompute: Any
) -> tuple[Tensor, Tensor | None]:
    if type(head.layer) is nn.Linear and head.layer.bias is None and head.softcap is None and hidden_ND.dtype in FULL and len(target_N):
        rows = chunk_rows(head, hidden_ND)
        logp_N, entropy_N = _TrainedHead.apply(hidden_ND, head.layer.weight, target_N, head.scale / temperature, rows, entropy)
        return logp_N, entropy_N if entropy else None

    def chunk_logp(hidden: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(hidden) / temperature
        logp, lse = _logp(logits, target)
        if not entropy:
            return logp, logp.new_empty(0)
        with torch.no_grad():
            return logp, _entropy(logits, (logits - lse).exp_(), lse)

    rows = chunk_rows(head, hidden_ND)
    more = {"context_fn": recompute} if recompute is not None else {}
    chunks = [
        checkpoint(chunk_logp, hidden_ND[s : s + rows], target_N[s : s + rows], use_reentrant=False, preserve_rng_state=False, **more)
        for s in range(0, hidden_ND.shape[0], rows)
    ]
    if not chunks:
        empty = hidden_ND.sum() * hidden_ND.new_zeros(0)
        return empty, empty.detach() if entropy else None
    logps, entropies = zip(*chunks, strict=True)
    return torch.cat(logps), torch.cat(entropies) if entropy else None
