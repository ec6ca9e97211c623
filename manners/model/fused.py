"""The same layers in fewer passes over memory: LoRA on a linear layer, SwiGLU, root-mean-square norm.

On a CPU a training step is products of matrices and, between them, passes over activations that cost as much memory traffic as they
do little arithmetic. Three kinds of module are given a forward of our own with a hand-written backward: the adapter's product is
added into the linear layer's output in place, SwiGLU keeps two tensors instead of four, the norm makes two passes instead of six.

Nothing is assumed of a family: `install` compares each module's own forward with ours on random numbers and leaves it alone where
they differ. Half precision, other devices and adapters of another kind keep the library's forward.
"""

import copy
import threading
import types
from typing import Any, NamedTuple

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable
from torch.nn.functional import silu

from manners.ops.products import engine, product

_RECIPE = "_manners_recipe"
"""Where a norm's output carries how it is made again."""
FULL = (torch.float32, torch.float64)
SMALL = 8
AGREES = {torch.float32: 1e-5, torch.float64: 1e-6}
"""Relative difference from a module's own forward that is rounding (norms drop to float32 inside float64 models)."""


class _Rooms(threading.local):
    """Memory that norms write to, used again as soon as nobody holds it.

    A norm's output goes soon and stands between tensors that stay. glibc asks for more room for an aligned block than the block's own
    hole has, so the next output would not fit into it: a hole a norm and layer, until backward.
    """

    def __init__(self) -> None:
        self._rooms: list[tuple[Tensor, int]] = []

    def like(self, x: Tensor) -> Tensor:
        """Room for a contiguous tensor of the shape of `x`, as a tensor of its own (no view)."""
        for room, free in self._rooms:
            if room.dtype is x.dtype and room.numel() >= x.numel() and _holders(room) == free:
                break
        else:
            room = torch.empty(x.numel(), dtype=x.dtype)
            self._rooms = [(room, _holders(room)), *self._rooms[:1]]
        return torch.empty(0, dtype=x.dtype).set_(room.untyped_storage(), 0, x.shape)  # pyright: ignore[reportCallIssue]


def _holders(room: Tensor) -> int:
    return torch._C._storage_Use_Count(room.untyped_storage()._cdata)


_rooms = _Rooms()


class _Again:
    """A norm's output, made again in backward by the layers that were given it, instead of being kept: the first of them to ask makes
    it, the last drops it. What it is made of is kept for the norm's own backward already."""

    __slots__ = ("_left", "_users", "_value")

    def __init__(self) -> None:
        self._users = self._left = 0
        self._value: Tensor | None = None

    def expect(self) -> None:
        """One layer more will ask."""
        self._users += 1

    def make(self, x: Tensor, weight: Tensor, inverse: Tensor) -> Tensor:
        value = _normed(x, weight, inverse) if self._value is None else self._value
        self._left = (self._left or self._users) - 1
        self._value = value if self._left else None
        return value


class _Recipe(NamedTuple):
    """What a norm's output carries. `version` is the output's: one that was changed in place is not what the norm gave."""

    again: _Again
    parts: tuple[Tensor, Tensor, Tensor]
    version: int


def _recipe(x: Tensor) -> _Recipe | None:
    """How `x` is made, if it is a norm's output and as the norm gave it."""
    found = getattr(x, _RECIPE, None)
    return found if found is not None and found.version == x._version and torch.is_grad_enabled() else None


def _keep(ctx: Any, x: Tensor, recipe: _Recipe | None, *others: Tensor | None) -> None:
    """Keep `others` for backward, and `x` or what it is made of."""
    ctx.again = None if recipe is None else recipe.again
    if recipe is None:
        ctx.save_for_backward(*others, x)
    else:
        recipe.again.expect()
        ctx.save_for_backward(*others, *recipe.parts)


def _kept(ctx: Any, others: int) -> list[Any]:
    """The `others` (so many) and x, as `_keep` was given them."""
    tensors = ctx.saved_tensors
    return [*tensors[:others], tensors[others] if ctx.again is None else ctx.again.make(*tensors[others:])]


class _LoraProduct(Function):
    """y = x W^T + b + s (x A^T) B^T for a frozen W, (n, in) to (n, out). Hu 2021, eq. 3."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float, recipe: _Recipe | None
    ) -> Tensor:
        y = _affine(x, weight, bias)
        low = product(x, a)
        y.addmm_(low, b.t(), alpha=scaling)
        _keep(ctx, x, recipe, weight, a, b, low)
        ctx.scaling = scaling
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        weight, a, b, low, x = _kept(ctx, 4)
        grad, needs = grad_outputs[0], ctx.needs_input_grad
        grad_low = product(grad, b.t())
        grad_x = product(grad, weight.t()).addmm_(grad_low, a, alpha=ctx.scaling) if needs[0] else None
        # The narrow factor comes first: oneDNN copies a transposed first factor, and this way round it is three times as fast.
        grad_a = product(grad_low.t(), x.t()) * ctx.scaling if needs[3] else None
        grad_b = product(low.t(), grad.t()).t() * ctx.scaling if needs[4] else None
        return grad_x, None, None, grad_a, grad_b, None, None


class _Affine(Function):
    """y = x W^T + b, (n, in) to (n, out)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, recipe: _Recipe | None) -> Tensor:
        kept = weight if ctx.needs_input_grad[0] else None
        if ctx.needs_input_grad[1]:
            _keep(ctx, x, recipe, kept)
        else:
            ctx.save_for_backward(kept)
        return _affine(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad, needs = grad_outputs[0], ctx.needs_input_grad
        weight, x = _kept(ctx, 1) if needs[1] else (*ctx.saved_tensors, None)
        grad_x = product(grad, weight.t()) if needs[0] else None
        grad_weight = product(grad.t(), x.t()) if x is not None else None
        return grad_x, grad_weight, grad.sum(0) if needs[2] else None, None


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = product(x, weight)
    return y if bias is None else y.add_(bias)


class _SwigluDown(Function):
    """y = p W^T + b + s (p A^T) B^T for p = silu(g) u, which is made again in backward: g and u alone are kept. Without an adapter A
    and B are None. Shazeer 2020, eq. 6."""

    @staticmethod
    def forward(
        ctx: Any, gate: Tensor, up: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor | None, b: Tensor | None, scaling: float
    ) -> Tensor:
        p = silu(gate).mul_(up)
        y, low = _affine(p, weight, bias), None
        if a is not None and b is not None:
            low = product(p, a)
            y.addmm_(low, b.t(), alpha=scaling)
        ctx.save_for_backward(gate, up, weight, a, b, low)
        ctx.scaling = scaling
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        gate, up, weight, a, b, low = ctx.saved_tensors
        grad, needs = grad_outputs[0], ctx.needs_input_grad
        grad_p = product(grad, weight.t())
        s = silu(gate)
        p = s * up
        grad_a = grad_b = None
        if low is not None:
            grad_low = product(grad, b.t())
            grad_p.addmm_(grad_low, a, alpha=ctx.scaling)
            grad_a = product(grad_low.t(), p.t()) * ctx.scaling if needs[4] else None
            grad_b = product(low.t(), grad.t()).t() * ctx.scaling if needs[5] else None
        grad_weight = product(grad.t(), p.t()) if needs[2] else None
        grad_gate = torch.ops.aten.silu_backward(grad_p * up, gate)
        return grad_gate, s.mul_(grad_p), grad_weight, grad.sum(0) if needs[3] else None, grad_a, grad_b, None


class _RmsNorm(Function):
    """w x / sqrt(mean(x^2) + eps) over the last axis of (n, D). Zhang and Sennrich 2019, eq. 4."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, inverse)
        if torch._C._len_torch_dispatch_stack():  # a trace: its tensors may be without data
            return _normed(x, weight, inverse)
        return torch.mul(x, inverse, out=_rooms.like(x)).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, inverse = ctx.saved_tensors
        grad = grad_outputs[0]
        grad_weight = (x * inverse).mul_(grad).sum(0) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, None
        grad_x = grad * weight
        along = torch.bmm(grad_x[:, None], x[:, :, None])[:, 0]
        grad_x.mul_(inverse).addcmul_(x, along * inverse**3 / x.shape[-1], value=-1)
        return grad_x, grad_weight, None


def _inverse_rms(x: Tensor, epsilon: float) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()


def _normed(x: Tensor, weight: Tensor, inverse: Tensor) -> Tensor:
    return (x * inverse).mul_(weight)


def _adapter(layer: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor, float] | None:
    """A, B and scaling of a `peft.tuners.lora.Linear` that applies one plain adapter without dropout to a frozen layer, else None."""
    if layer._disable_adapters or layer.merged_adapters or layer.base_layer.weight.requires_grad or dtype not in FULL:
        return None
    [name] = layer.active_adapters if len(layer.active_adapters) == 1 else [None]
    if name not in layer.lora_A or name in layer.lora_variant or type(layer.lora_dropout[name]) is not nn.Identity:
        return None
    a, b = layer.lora_A[name], layer.lora_B[name]
    return None if a.weight.dtype != dtype or b.bias is not None else (a.weight, b.weight, layer.scaling[name])


def _lora_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    adapter = None if args or kwargs else _adapter(self, x.dtype)
    if adapter is None:
        return type(self).forward(self, x, *args, **kwargs)
    base = self.base_layer
    return _LoraProduct.apply(x.reshape(-1, x.shape[-1]), base.weight, base.bias, *adapter, _recipe(x)).view(*x.shape[:-1], -1)


def _linear_forward(self: Any, x: Tensor) -> Tensor:
    if x.dtype not in FULL or self.weight.dtype != x.dtype:
        return type(self).forward(self, x)
    return _Affine.apply(x.reshape(-1, x.shape[-1]), self.weight, self.bias, _recipe(x)).view(*x.shape[:-1], -1)


def _swiglu_forward(self: Any, x: Tensor) -> Tensor:
    down: Any = self.down_proj
    base = getattr(down, "base_layer", down)
    if x.dtype not in FULL or type(base) is not nn.Linear or base.weight.dtype != x.dtype:
        return type(self).forward(self, x)
    if not torch.is_grad_enabled():  # nothing is kept; the layers may have another forward (decoder.py)
        return down(silu(self.gate_proj(x)).mul_(self.up_proj(x)))
    adapter = (None, None, 1.0)
    if down is not base and not down._disable_adapters:
        adapter = _adapter(down, x.dtype) if type(down) is LoraLinear else None
        if adapter is None:
            return type(self).forward(self, x)
    gate, up = self.gate_proj(x), self.up_proj(x)
    y = _SwigluDown.apply(gate.view(-1, gate.shape[-1]), up.view(-1, up.shape[-1]), base.weight, base.bias, *adapter)
    return y.view(*x.shape[:-1], -1)


def _norm_forward(self: Any, x: Tensor) -> Tensor:
    if x.dtype not in FULL or self.weight.dtype != x.dtype:
        return type(self).forward(self, x)
    if not torch.is_grad_enabled():
        return _normed(x, self.weight, _inverse_rms(x, self.variance_epsilon))
    flat = x.reshape(-1, x.shape[-1])
    inverse = _inverse_rms(flat.detach(), self.variance_epsilon)
    y = _RmsNorm.apply(flat, self.weight, inverse).view(x.shape)
    setattr(y, _RECIPE, _Recipe(_Again(), (flat.detach(), self.weight, inverse), y._version))
    return y


def install(model: nn.Module) -> dict[str, int]:
    """Give every module of `model` that computes one of the three its faster forward; counts by kind. Safe to call again."""
    found = {"lora": 0, "linear": 0, "swiglu": 0, "norm": 0}
    if any(p.device.type not in ("cpu", "meta") for p in model.parameters()):
        return found
    for module in model.modules():
        if type(module) is LoraLinear and type(module.base_layer) is nn.Linear:
            _use(module, _lora_forward)
            found["lora"] += 1
        elif type(module) is nn.Linear and engine() == "onednn":
            _use(module, _linear_forward)
            found["linear"] += 1
        elif _is_swiglu(module) and _agrees(module, _swiglu_forward, module.gate_proj):
            found["swiglu"] += 1
        elif isinstance(getattr(module, "variance_epsilon", None), float) and _agrees(module, _norm_forward, module):
            found["norm"] += 1
    return found


def _use(module: nn.Module, forward: Any) -> None:
    module.forward = types.MethodType(forward, module)


def _is_swiglu(module: nn.Module) -> bool:
    parts = all(isinstance(getattr(module, name, None), nn.Module) for name in ("gate_proj", "up_proj", "down_proj"))
    return parts and type(getattr(module, "act_fn", None)).__name__ in ("SiLU", "SiLUActivation")


def _small(module: Any) -> Any:
    """A module without data (a plan on paper) as a small one with random numbers: a copy whose weights and linear layers have a width of
    `SMALL`."""
    copied, numbers = copy.copy(module), torch.Generator().manual_seed(1)
    dtype = next(module.parameters()).dtype
    make = lambda *shape: nn.Parameter(torch.randn(*shape, dtype=dtype, generator=numbers), requires_grad=False)
    copied._parameters = {name: p if p is None else make(*[SMALL] * p.dim()) for name, p in module._parameters.items()}
    copied._modules = dict(module._modules)
    for name, layer in module._modules.items():
        if type(layer) is nn.Linear:
            copied._modules[name] = small = nn.Linear(SMALL, SMALL, bias=False, device="meta")
            small.weight = make(SMALL, SMALL)
            small.register_parameter("bias", None if layer.bias is None else make(SMALL))
    return copied


def _agrees(module: Any, forward: Any, shaped: Any) -> bool:
    """Install `forward` if on a few random rows it gives what the module's own gives; say whether it was installed."""
    if "forward" in vars(module):
        return True
    weight = getattr(shaped, "weight", None)
    if not isinstance(weight, Tensor) or weight.dtype not in FULL or not 1 <= weight.dim() <= 2:
        return False
    tried = _small(module) if weight.is_meta else module
    width = SMALL if weight.is_meta else weight.shape[-1]
    rows = torch.randn(1, 3, width, dtype=weight.dtype, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            own, ours = type(module).forward(tried, rows), forward(tried, rows)
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return False
    same = own.shape == ours.shape and float((own - ours).abs().max()) <= AGREES[weight.dtype] * max(1.0, float(own.abs().max()))
    if same:
        _use(module, forward)
    return same
