"""Products of float32 matrices on a CPU, by the faster of the two libraries that torch carries.

torch hands float32 products to MKL, which on AMD processors runs at half their speed or less (measured: docs/performance.md); oneDNN,
which torch carries for other work, does not. The choice hangs on the vendor of the processor and not on a measurement, so that a run
gives the same bits each time. The environment variable MANNERS_PRODUCTS=torch or onednn overrides it.
"""

import os
import platform
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

ENGINES = ("torch", "onednn")


@cache
def engine() -> str:
    """Who computes float32 products on this machine: "onednn" or "torch"."""
    asked = os.environ.get("MANNERS_PRODUCTS", "")
    if asked == "torch" or (asked != "onednn" and _vendor() != "AuthenticAMD"):
        return "torch"
    try:
        x = torch.linspace(-1, 1, 5 * 24).view(5, 24)
        w = torch.linspace(1, -1, 7 * 24).view(24, 7).t()
        if torch.allclose(_onednn(x, w), x @ w.t(), atol=1e-5):
            return "onednn"
    except (AttributeError, RuntimeError):  # a build of torch without oneDNN, or one that names the operation otherwise
        pass
    return "torch"


def product(x: Tensor, w: Tensor) -> Tensor:
    """x w^T for x (n, k) and w (m, k), either of them a transposed view or not: (n, m). Not differentiable by itself."""
    if x.dtype is torch.float32 and x.device.type == "cpu" and x.numel() and w.numel() and engine() == "onednn":
        return _onednn(x, w)
    return x @ w.t()


def _onednn(x: Tensor, w: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "")


def _vendor() -> str:
    """The processor's vendor as it calls itself ("AuthenticAMD", "GenuineIntel"), or what the platform says of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "AuthenticAMD" if "AuthenticAMD" in platform.processor() else platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")
