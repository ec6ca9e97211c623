"""The same layers in fewer passes over memory: LoRA on a linear layer, SwiGLU, root-mean-square norm.

On a CPU a training step is products of matrices and, between them, passes over activations that cost as much memory traffic as they
do little arithmetic. Three kinds of module are given a forward of our own with a hand-written backward: the adapter's product is
added into the linear layer's output in place, SwiGLU keeps two tensors instead of four, the norm makes two passes instead of six.

Nothing is assumed of a family: `install` compares each module's own forward with ours on random numbers and leaves it alone where
they differ. Half precision, other devices and adapters of another kind keep the library's forward.
"""

import types
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable
from torch.nn.functional import linear, silu

FULL = (torch.float32, torch.float64)
AGREES = {torch.float32: 1e-5, torch.float64: 1e-6}
"""Relative difference from a module's own forward that is rounding (norms drop to float32 inside float64 models)."""


class _LoraProduct(Function):
    """y = x W^T + b + s (x A^T) B^T for a frozen W, (n, in) to (n, out). Hu 2021, eq. 3."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        y = linear(x, weight, bias)
        low = x @ a.t()
        y.addmm_(low, b.t(), alpha=scaling)
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.scaling = scaling
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, a, b, low = ctx.saved_tensors
        grad, needs = grad_outputs[0], ctx.needs_input_grad
        grad_low = grad @ b
        grad_x = (grad @ weight).addmm_(grad_low, a, alpha=ctx.scaling) if needs[0] else None
        grad_a = grad_low.t() @ x * ctx.scaling if needs[3] else None
        grad_b = grad.t() @ low * ctx.scaling if needs[4] else None
        return grad_x, None, None, grad_a, grad_b, None


class _SiluProduct(Function):
    """silu(g) * u, keeping g and u alone."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        gate, up = ctx.saved_tensors
        grad = grad_outputs[0]
        return torch.ops.aten.silu_backward(grad * up, gate), silu(gate).mul_(grad)


class _RmsNorm(Function):
    """w x / sqrt(mean(x^2) + eps) over the last axis of (n, D). Zhang and Sennrich 2019, eq. 4."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

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


def _lora_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`peft.tuners.lora.Linear.forward` for one plain adapter without dropout on a frozen layer; else the original."""
    base = self.base_layer
    if self._disable_adapters or self.merged_adapters or args or kwargs:
        return type(self).forward(self, x, *args, **kwargs)
    [name] = self.active_adapters if len(self.active_adapters) == 1 else [None]
    if name not in self.lora_A or name in self.lora_variant or x.dtype not in FULL or base.weight.requires_grad:
        return type(self).forward(self, x)
    a, b = self.lora_A[name], self.lora_B[name]
    if type(self.lora_dropout[name]) is not nn.Identity or a.weight.dtype != x.dtype or b.bias is not None:
        return type(self).forward(self, x)
    flat = x.reshape(-1, x.shape[-1])
    y = _LoraProduct.apply(flat, base.weight, base.bias, a.weight, b.weight, self.scaling[name])
    return y.view(*x.shape[:-1], -1)


def _swiglu_forward(self: Any, x: Tensor) -> Tensor:
    if x.dtype not in FULL:
        return type(self).forward(self, x)
    return self.down_proj(_SiluProduct.apply(self.gate_proj(x), self.up_proj(x)))


def _norm_forward(self: Any, x: Tensor) -> Tensor:
    if x.dtype not in FULL or self.weight.dtype != x.dtype:
        return type(self).forward(self, x)
    return _RmsNorm.apply(x.reshape(-1, x.shape[-1]), self.weight, self.variance_epsilon).view(x.shape)


def install(model: nn.Module) -> dict[str, int]:
    """Give every module of `model` that computes one of the three its faster forward; counts by kind. Safe to call again."""
    found = {"lora": 0, "swiglu": 0, "norm": 0}
    if any(p.device.type != "cpu" for p in model.parameters()):
        return found
    for module in model.modules():
        if type(module) is LoraLinear and type(module.base_layer) is nn.Linear:
            _use(module, _lora_forward)
            found["lora"] += 1
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


def _agrees(module: Any, forward: Any, shaped: Any) -> bool:
    """Install `forward` if on a few random rows it gives what the module's own gives; say whether it was installed."""
    if "forward" in vars(module):
        return True
    weight = getattr(shaped, "weight", None)
    if not isinstance(weight, Tensor) or weight.dtype not in FULL or not 1 <= weight.dim() <= 2:
        return False
    rows = torch.randn(1, 3, weight.shape[-1], dtype=weight.dtype, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            own, ours = type(module).forward(module, rows), forward(module, rows)
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return False
    same = own.shape == ours.shape and float((own - ours).abs().max()) <= AGREES[weight.dtype] * max(1.0, float(own.abs().max()))
    if same:
        _use(module, forward)
    return same
