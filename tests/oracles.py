"""Slow float64 versions written from the formulas, and the patch that makes the library's own code an oracle in float64."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import PreTrainedModel

from manners.core.records import TokenGroup


@contextmanager
def float64_everywhere() -> Iterator[None]:
    """Norms and some softmaxes drop to float32 inside model code; here float64 tensors stay float64, so that two ways of computing
    the same thing agree to 1e-13 instead of 1e-7."""
    to, as_float = Tensor.to, Tensor.float
    softmax, functional_softmax, tensor_softmax = torch.softmax, torch.nn.functional.softmax, Tensor.softmax

    def stay(self: Tensor, *args, **kwargs):
        if self.dtype == torch.float64:
            args = tuple(torch.float64 if a is torch.float32 else a for a in args)
            kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in kwargs.items()}
        return to(self, *args, **kwargs)

    def keep(function):
        def wrapped(x, *args, **kwargs):
            if x.dtype == torch.float64:
                kwargs["dtype"] = torch.float64 if kwargs.get("dtype") is torch.float32 else kwargs.get("dtype")
            return function(x, *args, **kwargs)

        return wrapped

    with (
        patch.object(Tensor, "to", stay),
        patch.object(Tensor, "float", lambda self: self if self.dtype == torch.float64 else as_float(self)),
        patch.object(torch, "softmax", keep(softmax)),
        patch.object(torch.nn.functional, "softmax", keep(functional_softmax)),
        patch.object(Tensor, "softmax", keep(tensor_softmax)),
    ):
        yield


def plain_logps(model: PreTrainedModel, groups: list[TokenGroup]) -> Tensor:
    """Log-probability of every trained token, each response run alone with its prompt through the model's own eager forward."""
    found = []
    for group in groups:
        for response in group.responses:
            ids = group.prompt_ids + response.token_ids
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
            for i, trained in enumerate(response.trained):
                place = len(group.prompt_ids) + i
                if trained and place > 0:
                    found.append(logits[place - 1, ids[place]] - torch.logsumexp(logits[place - 1], 0))
    return torch.stack(found)
