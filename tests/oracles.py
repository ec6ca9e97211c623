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


def ppo_chain(
    old: list[list[float]],
    reference: list[list[float]],
    values: list[list[float]],
    scores: list[float],
    beta: float,
    gamma: float,
    lam: float,
) -> dict[str, list[float]]:
    """Token rewards, advantages, returns and whitened advantages of PPO (Schulman 2016, 2017; Ziegler 2019), response by response, flat."""
    rewards, advantages, returns = [], [], []
    for old_T, reference_T, value_T, score in zip(old, reference, values, scores, strict=True):
        reward_T = [-beta * (o - r) for o, r in zip(old_T, reference_T, strict=True)]
        reward_T[-1] += score
        for t in range(len(reward_T)):
            after = [*value_T[1:], 0.0]
            deltas = [reward_T[u] + gamma * after[u] - value_T[u] for u in range(len(reward_T))]
            advantage = sum((gamma * lam) ** (u - t) * deltas[u] for u in range(t, len(deltas)))
            advantages.append(advantage)
            returns.append(advantage + value_T[t])
        rewards += reward_T
    mean = sum(advantages) / len(advantages)
    spread = sum((a - mean) ** 2 for a in advantages) / len(advantages)
    white = [(a - mean) / (spread + 1e-8) ** 0.5 for a in advantages]
    return {"rewards": rewards, "advantages": advantages, "returns": returns, "whitened": white}


def ppo_losses(
    logp: list[float],
    old: list[float],
    advantages: list[float],
    value: list[float],
    old_value: list[float],
    returns: list[float],
    clip: float,
    value_clip: float,
) -> tuple[float, float]:
    """Mean clipped policy loss and mean clipped value loss (with its half) over tokens, each case of the formula written out."""
    policy = critic = 0.0
    for new, before, a in zip(logp, old, advantages, strict=True):
        rho = 2.718281828459045 ** (new - before)
        near = min(max(rho, 1 - clip), 1 + clip)
        policy += max(-a * rho, -a * near)
    for v, before, g in zip(value, old_value, returns, strict=True):
        near = before + min(max(v - before, -value_clip), value_clip)
        critic += 0.5 * max((v - g) ** 2, (near - g) ** 2)
    return policy / len(logp), critic / len(value)


def leashed_optimum(reference: list[float], rewards: list[float], beta: float) -> list[float]:
    """The policy that maximises E[r] - beta KL(pi || ref): pi(y) = ref(y) e^{r(y)/beta} / Z (Rafailov 2023, eq. 4)."""
    weights = [p * 2.718281828459045 ** (r / beta) for p, r in zip(reference, rewards, strict=True)]
    return [w / sum(weights) for w in weights]
