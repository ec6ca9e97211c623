"""A rollout: prompts, what the policy answered, and all that PPO or GRPO needs to know of every token of it.

It is filled in order: `sample` draws the answers, `judge` asks the reward, `look` scores the tokens under policy, reference and critic,
`credit` spreads score and KL over the tokens and estimates advantages. (GRPO samples and judges by the same functions and does without a
critic, see `grpo.py`.) Per-token columns are flat (`N`), answer after answer, group
after group, without padding; a loss takes the part that belongs to its micro-batch with `Rollout.at`.

State: a prompt and the tokens so far. Action: the next token. Reward: what `credit` writes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from manners.core.chance import stream_of
from manners.core.config import Settings
from manners.core.errors import InputError, MannersError
from manners.core.memory import give_back_freed_memory
from manners.core.records import Group, TokenGroup, TokenResponse
from manners.feedback.rewards import Mixture, Reward, checked
from manners.model.decoder import forget
from manners.model.divergence import exact_kl
from manners.model.draw import Sampling
from manners.model.roles import Backbone
from manners.model.sampler import AnySampler, Progress
from manners.model.score import Scores
from manners.model.tree import TokenTree, pack, partition
from manners.ops.advantages import explained_variance, gae, token_rewards, whiten
from manners.ops.kl import k1
from manners.ops.segments import segment_count, segment_sum
from manners.train.learner import Micro

LARGE = 10**7
"""Weights of a model whose decoding copy is worth a quarter of a second to be rid of."""


class SamplingSettings(Settings):
    """How answers are sampled and judged."""

    samples: Annotated[int, Field(ge=1)] = 4
    """Answers to each prompt of a rollout; they share the prompt's tokens."""
    rollout_size: Annotated[int, Field(ge=1)] = 64
    """Answers sampled between updates."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    """Longest answer in tokens, stop token included."""
    temperature: Annotated[float, Field(gt=0)] = 0.7
    """Logits are divided by it wherever tokens are drawn, scored or learned from."""
    slots: Annotated[int, Field(ge=1)] = 32
    """Answers decoded together."""
    max_sampler_gap: Annotated[float, Field(gt=0)] = 0.05
    """Largest mean difference between sampler and scorer, in nats a token; beyond it the run stops."""
    kl_probe: Annotated[int, Field(ge=0)] = 4
    """Answers of each rollout, one a prompt, on which the KL is also computed exactly; 0 for none."""
    missing_end: Literal["replace", "subtract", "keep"] = "replace"
    """What becomes of the score of an answer that did not end within max_new_tokens."""
    missing_end_score: float = -1.0
    """The score that replaces it; with subtract, what is added to it."""
    reward_scale: float = 1.0
    """Factor of every score."""
    reward_clip: Annotated[float, Field(gt=0)] | None = None
    """Scores are cut to between minus this and this, once scaled."""


class RolloutSettings(SamplingSettings):
    """The same, and how PPO credits tokens."""

    old_logps: Literal["scorer", "sampler"] = "scorer"
    """Where the old policy's log-probabilities come from: a pass of the training model, or the sampler itself (one pass less)."""
    beta: Annotated[float, Field(ge=0)] = 0.05
    """Price of a nat of KL to the reference: the leash. The first one, if kl_target lets it move."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """Estimate of the KL of a token that is taken off its reward."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Discount a token."""
    lam: Annotated[float, Field(ge=0, le=1)] = 0.95
    """Lambda of generalised advantage estimation."""
    whiten_advantages: bool = True
    """Advantages of a rollout are brought to mean 0 and variance 1."""
    whiten_rewards: bool = False
    """Token rewards are brought to variance 1, keeping their mean, before advantages are estimated."""


@dataclass
class Actors:
    """The roles of one backbone that take part, and what asks and judges them."""

    backbone: Backbone
    policy: str
    reference: str
    """"" where none is kept."""
    critic: str
    """The role whose head is the value; the policy's own where the two share a trunk; "" where there is none (GRPO)."""
    sampler: AnySampler
    reward: Reward
    prompts: list[Group]
    prompt_ids: list[list[int]]


@dataclass
class Rollout:
    """Groups and token groups in the same order, `TokenGroup.row` being the place in it. Columns are absent until they are filled."""

    round: int
    groups: list[Group]
    tokens: list[TokenGroup]
    sampled_logp_N: Tensor
    """Log-probabilities that the sampler drew by."""
    score_R: Tensor = field(init=False)
    """As the reward gave it."""
    shaped_R: Tensor = field(init=False)
    """Scaled, clipped, and with the rule for answers without an end."""
    old_logp_N: Tensor = field(init=False)
    reference_logp_N: Tensor = field(init=False)
    value_N: Tensor = field(init=False)
    reward_N: Tensor = field(init=False)
    advantage_N: Tensor = field(init=False)
    return_N: Tensor = field(init=False)
    measured: dict[str, float] = field(default_factory=dict)
    """Metrics, by the names that docs/ppo.md explains."""

    def __post_init__(self) -> None:
        lengths = [len(r.token_ids) for g in self.tokens for r in g.responses]
        self.response_N = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        self.starts = [0, *accumulate(g.targets for g in self.tokens)]
        self.first = [0, *accumulate(len(g.responses) for g in self.tokens)]

    @property
    def responses(self) -> int:
        return sum(len(g.responses) for g in self.groups)

    @property
    def group_R(self) -> Tensor:
        """Which prompt each response answers, by its place in the rollout."""
        return torch.repeat_interleave(torch.arange(len(self.tokens)), torch.tensor([len(g.responses) for g in self.tokens]))

    def at(self, micro: Micro, column_N: Tensor, like: Tensor) -> Tensor:
        """The part of a column that belongs to a micro-batch, on the device and in the precision of `like`."""
        parts = [column_N[self.starts[g.row] : self.starts[g.row + 1]] for g in micro.groups]
        return torch.cat(parts).to(like)

    def per_response(self, column_N: Tensor) -> Tensor:
        """Sums over each response, (R,)."""
        return segment_sum(column_N, self.response_N, self.responses)

    def table(self) -> list[dict[str, Any]]:
        """A row a prompt with its answers, as it is written to the run folder: what is known of each answer by then."""
        each: dict[str, list[float]] = {"score": self.score_R.tolist(), "shaped_score": self.shaped_R.tolist()}
        if hasattr(self, "reference_logp_N"):
            old_N = self.old_logp_N if hasattr(self, "old_logp_N") else self.sampled_logp_N
            each["kl"] = self.per_response(k1(old_N, self.reference_logp_N)).tolist()
        if hasattr(self, "advantage_N"):
            each["advantage"] = (self.per_response(self.advantage_N) / segment_count(self.response_N, self.responses)).tolist()
        return [
            {
                "round": self.round,
                "row": group.row,
                "messages": [{"role": m.role, "content": m.content} for m in group.prompt.messages],
                "responses": [
                    {
                        "text": response.text,
                        "finish_reason": response.finish_reason,
                        **{name: values[first + place] for name, values in each.items()},
                        "token_ids": tokens.token_ids,
                    }
                    for place, (response, tokens) in enumerate(zip(group.responses, token_group.responses, strict=True))
                ],
            }
            for group, token_group, first in zip(self.groups, self.tokens, self.first, strict=False)
        ]


def gathered(picked: Sequence[tuple[Rollout, int]]) -> Rollout:
    """A rollout of these groups of others, in this order, with their scores; other columns are to be filled, nothing is measured."""
    tokens = [replace(source.tokens[place], row=row) for row, (source, place) in enumerate(picked)]
    logps = [source.sampled_logp_N[source.starts[place] : source.starts[place + 1]] for source, place in picked]
    made = Rollout(picked[0][0].round, [source.groups[place] for source, place in picked], tokens, torch.cat(logps))
    made.score_R, made.shaped_R = (
        torch.cat([getattr(source, name)[source.first[place] : source.first[place + 1]] for source, place in picked])
        for name in ("score_R", "shaped_R")
    )
    return made


# --- who is asked -------------------------------------------------------------------------------------------------------------------


def shuffled(count: int, *key: int | str) -> list[int]:
    """A permutation of so many, keyed: the same in any process, whatever was drawn before."""
    seed = int.from_bytes(stream_of(*key)[:8], "little") >> 1
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()


def stream(rows: int, start: int, count: int, *key: int | str) -> Iterator[int]:
    """Places `start` to `start + count` of an endless stream of rows, in which every pass over all rows is a new permutation."""
    order: dict[int, list[int]] = {}
    for place in range(start, start + count):
        epoch, index = divmod(place, rows)
        if epoch not in order:
            order = {epoch: shuffled(rows, epoch, *key)}
        yield order[epoch][index]


# --- sample, judge, look, credit ----------------------------------------------------------------------------------------------------


def sample(
    actors: Actors,
    settings: SamplingSettings,
    seed: int,
    round: int,
    progress: Progress | None = None,
    *,
    stage: str = "ppo",
    start: int | None = None,
    count: int | None = None,
    seen: dict[int, int] | None = None,
) -> Rollout:
    """Answers of the policy as it is now to the next prompts. A sample depends on seed, stage, round, prompt and weights alone.

    The prompts are `count` (by default those of a whole rollout) of the stream of prompts from place `start` on, by default that of the
    round. `seen` counts how often each prompt was drawn in this round and is added to: a second call for the same round draws anew.
    Raises MannersError when the policy's logits are not finite.
    """
    count = settings.rollout_size // settings.samples if count is None else count
    picked = list(stream(len(actors.prompts), round * count if start is None else start, count, seed, f"{stage} prompts"))
    # A prompt that comes twice in a round must draw anew: then its row number goes on behind the last row of the file.
    seen = {} if seen is None else seen
    keys = []
    for index in picked:
        keys.append(actors.prompts[index].row + seen.get(index, 0) * (1 + max(g.row for g in actors.prompts)))
        seen[index] = seen.get(index, 0) + 1
    sampling = Sampling(temperature=settings.temperature, max_new_tokens=settings.max_new_tokens, seed=seed, stage=stage, round=round)
    ours = [actors.prompts[index] for index in picked]
    large = actors.backbone.model.num_parameters() > LARGE
    if large:
        give_back_freed_memory()  # the decoding copy does not fit into the holes that training has left
    drawn = actors.sampler.sample([prompt.prompt for prompt in ours], sampling, samples=settings.samples, rows=keys, progress=progress)
    forget(actors.backbone)  # the copy that decodes is of no use once the policy has moved, and training needs the room
    if large:
        give_back_freed_memory()  # else what sampling has freed lies in pieces that training's tensors do not fit into
    groups = [replace(group, row=prompt.row, columns=prompt.columns) for group, prompt in zip(drawn, ours, strict=True)]
    tokens = []
    for place, (group, index) in enumerate(zip(groups, picked, strict=True)):
        ids = [list(r.token_ids or []) for r in group.responses]
        tokens.append(TokenGroup(actors.prompt_ids[index], [TokenResponse(i, [True] * len(i)) for i in ids], row=place))
    sampled = [logp for group in groups for response in group.responses for logp in response.logprobs or []]
    rollout = Rollout(round, groups, tokens, torch.tensor(sampled, dtype=torch.promote_types(actors.backbone.model.dtype, torch.float32)))
    count_R = segment_count(rollout.response_N, rollout.responses)
    rollout.measured |= {"response_length": _mean(count_R), "eos_rate": _mean(ended(rollout))}
    return rollout


def judge(rollout: Rollout, reward: Reward, settings: SamplingSettings) -> None:
    """Ask the reward, then shape what it says: scaled, clipped, and replaced (or lowered) where an answer did not end.

    Of a sum the mean of each part, unweighted, is measured as `reward/NAME`. Raises InputError for scores that are not finite or not as
    many as there are answers.
    """
    scores, parts = scored_by(reward, rollout.groups)
    rollout.measured |= {f"reward/{name}": sum(values) / len(values) for name, values in parts.items()}
    for group, given in zip(rollout.groups, scores, strict=True):
        for response, score in zip(group.responses, given, strict=True):
            response.scores["reward"] = score
    score_R = torch.tensor([score for given in scores for score in given], dtype=rollout.sampled_logp_N.dtype)
    shaped_R = settings.reward_scale * score_R
    clipped = 0.0
    if settings.reward_clip is not None:
        clipped = float((shaped_R.abs() > settings.reward_clip).double().mean())
        shaped_R = shaped_R.clamp(-settings.reward_clip, settings.reward_clip)
    ended_R = ended(rollout)
    if settings.missing_end == "replace":
        shaped_R = torch.where(ended_R, shaped_R, torch.full_like(shaped_R, settings.missing_end_score))
    elif settings.missing_end == "subtract":
        shaped_R = torch.where(ended_R, shaped_R, shaped_R + settings.missing_end_score)
    rollout.score_R, rollout.shaped_R = score_R, shaped_R
    rollout.measured |= {"score": _mean(score_R), "score_std": _std(score_R), "shaped_score": _mean(shaped_R), "score_clipped": clipped}


def scored_by(reward: Reward, groups: Sequence[Group]) -> tuple[list[list[float]], dict[str, list[float]]]:
    """The scores of all answers, checked, and of a sum those of each part, all in one list, by the part's name."""
    name, inner = getattr(reward, "name", "reward"), getattr(reward, "inner", None)
    if not isinstance(inner, Mixture):
        return checked(name, reward(groups), groups), {}
    by_part = inner.by_part(groups)
    parts = {part.name: [score for scores in given for score in scores] for (_, part), given in zip(inner.parts, by_part, strict=True)}
    return checked(name, inner.total(by_part), groups), parts


def look(rollout: Rollout, actors: Actors, settings: RolloutSettings, micro_tokens: int) -> None:
    """Log-probabilities under policy and reference, and values, in as few passes as that takes: no logits where only values are needed.

    Raises MannersError if sampler and scorer disagree on the tokens' log-probabilities by more than `max_sampler_gap`.
    """
    backbone, temperature = actors.backbone, settings.temperature
    shared, scored = actors.critic == actors.policy, settings.old_logps == "scorer"
    old_N, reference_N, value_N = (torch.zeros_like(rollout.sampled_logp_N) for _ in range(3))
    gap, gap_max, gap_tokens = 0.0, 0.0, 0
    for number, part in enumerate(partition(rollout.tokens, micro_tokens)):
        tree = pack(part)
        place_N = torch.cat([torch.arange(rollout.starts[g.row], rollout.starts[g.row + 1]) for g in part])
        with torch.no_grad():
            if scored or number == 0:
                ours = _scores(backbone, actors.policy, tree, temperature, actors.policy if shared else None)
                gap_N = (ours.logp_N.cpu() - rollout.sampled_logp_N[place_N]).abs().double()
                gap, gap_max, gap_tokens = gap + float(gap_N.sum()), max(gap_max, float(gap_N.max())), gap_tokens + gap_N.numel()
                old_N[place_N] = ours.logp_N.cpu() if scored else rollout.sampled_logp_N[place_N]
            else:
                ours = backbone.values(tree, actors.policy) if shared else None
                old_N[place_N] = rollout.sampled_logp_N[place_N]
            reference_N[place_N] = _scores(backbone, actors.reference, tree, temperature).logp_N.cpu()
            theirs = ours if shared else backbone.values(tree, actors.critic)
            assert theirs is not None and theirs.value_N is not None
            value_N[place_N] = theirs.value_N.to(value_N)
    if not gap / gap_tokens <= settings.max_sampler_gap:
        raise MannersError(
            f"the sampler's log-probabilities differ from the scorer's by {gap / gap_tokens:.2g} nats a token in round "
            f"{rollout.round + 1}, more than max_sampler_gap={settings.max_sampler_gap:g}: "
            "what is learned from such samples is not what was sampled."
        )
    rollout.old_logp_N, rollout.reference_logp_N, rollout.value_N = old_N, reference_N, value_N
    kl_R = rollout.per_response(k1(old_N, reference_N))
    rollout.measured |= {"sampler_gap": gap / gap_tokens, "sampler_gap_max": gap_max, "kl_seq": _mean(kl_R)}
    rollout.measured |= {"kl_token": float(kl_R.double().sum()) / len(old_N), **probe_kl(rollout, actors, settings)}


def credit(rollout: Rollout, settings: RolloutSettings, beta: float) -> None:
    """Token rewards R_t = -beta KL_t + [t is the last token] score, advantages and returns by GAE, advantages whitened last.

    `advantage_mean` and `advantage_std` are of the advantages before they are whitened; returns are never whitened.
    """
    old_N, reference_N, response_N = rollout.old_logp_N, rollout.reference_logp_N, rollout.response_N
    reward_N = token_rewards(old_N, reference_N, rollout.shaped_R, response_N, beta, settings.kl_estimator)
    if settings.whiten_rewards:
        reward_N = whiten(reward_N, shift_mean=False)
    advantage_N, return_N = gae(reward_N, rollout.value_N, response_N, rollout.responses, settings.gamma, settings.lam)
    kl_R = rollout.per_response(k1(old_N, reference_N))
    score_R = rollout.shaped_R
    # The price paid, which for another estimator than k1 is not beta times kl_seq.
    non_score = _mean(rollout.per_response(token_rewards(old_N, reference_N, score_R * 0, response_N, beta, settings.kl_estimator)))
    rollout.measured |= {
        "beta": beta,
        "non_score_reward": non_score,
        "rlhf_reward": _mean(score_R) - beta * _mean(kl_R),
        "advantage_mean": _mean(advantage_N),
        "advantage_std": _std(advantage_N),
        "return_mean": _mean(return_N),
        "return_std": _std(return_N),
        "value_mean": _mean(rollout.value_N),
        "explained_variance": explained_variance(return_N, rollout.value_N),
    }
    rollout.reward_N, rollout.return_N = reward_N, return_N
    rollout.advantage_N = whiten(advantage_N) if settings.whiten_advantages else advantage_N


def _scores(backbone: Backbone, role: str, tree: TokenTree, temperature: float, value: str | None = None) -> Scores:
    with backbone.role(role):
        return backbone.score(tree, temperature=temperature, value=value)


def probe_kl(rollout: Rollout, actors: Actors, settings: SamplingSettings) -> dict[str, float]:
    """On the first answer to each of the first prompts: the KL by the sum over the vocabulary at each state, beside k1 on the same ones."""
    if not settings.kl_probe:
        return {}
    groups = [replace(group, responses=group.responses[:1]) for group in rollout.tokens[: settings.kl_probe]]
    kl = sum(float(exact_kl(actors.backbone, actors.policy, actors.reference, pack([g]), settings.temperature).sum()) for g in groups)
    if not hasattr(rollout, "reference_logp_N"):
        return {"kl_exact": kl / len(groups), "kl_token": kl / sum(g.targets for g in groups)}
    same_N = torch.cat([torch.arange(rollout.starts[g.row], rollout.starts[g.row] + g.targets) for g in groups])
    sampled = float(k1(rollout.old_logp_N[same_N], rollout.reference_logp_N[same_N]).double().sum())
    return {"kl_exact": kl / len(groups), "kl_exact_k1": sampled / len(groups)}


def ended(rollout: Rollout) -> Tensor:
    return torch.tensor([r.finish_reason == "stop" for g in rollout.groups for r in g.responses])


def _mean(values: Tensor) -> float:
    return float(values.double().mean())


def _std(values: Tensor) -> float:
    """The population's standard deviation."""
    return float(values.double().std(correction=0))


def check_sizes(settings: SamplingSettings, batch_size: int) -> None:
    """Raises InputError unless rollouts are made of whole prompts and cut into whole minibatches of whole prompts."""
    for name, size in (("rollout_size", settings.rollout_size), ("batch_size", batch_size)):
        if size % settings.samples:
            raise InputError(f"{name}={size} is no multiple of samples={settings.samples}; answers to one prompt stay together.")
    if settings.rollout_size % batch_size:
        raise InputError(f"rollout_size={settings.rollout_size} is no multiple of batch_size={batch_size}; choose sizes that fit.")
