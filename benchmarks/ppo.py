"""PPO as the other side does it: each prompt answered once, rounds of 2 x bs answers, one epoch of one minibatch, four roles.

The reward model is an adapter and a random head on the same backbone; on the other side it is a model of its own, and so are its critic,
all of whose weights it trains, and without adapters its reference. Answers end at their stop token here; there each has `max-new` tokens.
"""

from collections.abc import Sequence
from typing import Any

from manners.core.records import Group, TokenGroup, TokenResponse
from manners.data.chat import ChatFormat
from manners.model.reward import outputs
from manners.model.roles import BASE, Backbone
from manners.model.sampler import Sampler
from manners.train.actors import add_critic
from manners.train.ppo import PPO, PPOSettings
from manners.train.rollout import Actors, credit


class HeadReward:
    """A reward model's work without what it has learned: a pass of the trunk under an adapter of its own, and a head."""

    def __init__(self, backbone: Backbone, fmt: ChatFormat, micro_tokens: int):
        backbone.add_adapter("reward", backbone.lora("policy"), seed=7, trainable=False)
        backbone.add_head("reward", seed=7, trainable=False)
        self.backbone, self.fmt, self.micro_tokens = backbone, fmt, micro_tokens

    def __call__(self, groups: Sequence[Group]) -> list[list[float]]:
        answers = lambda g: [TokenResponse(list(r.token_ids or []), [True] * len(r.token_ids or [])) for r in g.responses]
        tokens = [TokenGroup(self.fmt.prompt_ids(g.prompt), answers(g)) for g in groups]
        scores = iter(outputs(self.backbone, ["reward"], tokens, self.micro_tokens)[0, :, 0].tolist())
        return [[next(scores) for _ in g.responses] for g in groups]


def cast(backbone: Backbone, fmt: ChatFormat, rows: Sequence[Group], given: Any) -> PPO:
    """Everything but the rounds; on the other side, too, models are made before the clock starts."""
    size = min(2 * given.bs, len(rows))
    settings = PPOSettings(
        model=given.model,
        data=given.pairs,
        out="-",
        reward="-",
        episodes=len(rows),
        rollout_size=size,
        batch_size=size,
        samples=1,
        epochs=1,
        max_new_tokens=given.max_new,
        slots=size,
        learning_rate=1e-5,
        value=given.value,
        micro_tokens=given.micro_tokens,
        missing_end="subtract",
        kl_probe=0,
    )
    reward = HeadReward(backbone, fmt, given.micro_tokens)
    critic = add_critic(backbone, "policy", reward, shared=given.value == "shared", seed=1)
    prompts = [Group(g.prompt, [], row=i) for i, g in enumerate(rows)]
    sampler = Sampler(backbone, fmt, role="policy", slots=size)
    return PPO(Actors(backbone, "policy", BASE, critic, sampler, reward, prompts, [fmt.prompt_ids(g.prompt) for g in prompts]), settings)


def rounds(ppo: PPO) -> dict[str, Any]:
    """All rounds: sample, judge, score, credit, update. Returns what to print."""
    records = []
    for _ in range(ppo.settings.rounds):
        rollout = ppo.collect()
        credit(rollout, ppo.settings, ppo.controller.beta)
        records.append({**ppo.update(rollout), "useful_tokens": len(rollout.old_logp_N)})
    parts = ("seconds_sampling", "seconds_reward", "seconds_scoring", "seconds_updating")
    return {
        "value": ppo.settings.value,
        "loss": round(sum(r["loss"] for r in records) / len(records), 4),
        "useful_tokens": sum(r["useful_tokens"] for r in records),
        **{name: round(sum(r[name] for r in records), 2) for name in parts},
    }
