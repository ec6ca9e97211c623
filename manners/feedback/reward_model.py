"""A trained reward model, asked in text: prompts and responses in, scores out.

`load_reward` is the door for everything that needs a judge: PPO, best-of-N, `manners score`. Where a backbone is given that holds the
same base, the reward model becomes one more role of it and takes no memory but its adapter and its head.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from manners.core.records import Group, Response, TokenGroup, TokenResponse
from manners.data.chat import ChatFormat
from manners.model.load import ModelSource, load_tokenizer
from manners.model.probe import check_length
from manners.model.reward import REWARD, Card, load_weights, one_score, outputs, read_card
from manners.model.roles import Backbone

MICRO_TOKENS = 2048
"""Tokens scored at a time; without a graph to keep, more than in training."""


@dataclass(slots=True)
class RewardModel:
    """A reward model ready to score: `roles` of a backbone (one a member), its card, and its own chat format."""

    name: str
    folder: Path
    backbone: Backbone
    roles: list[str]
    card: Card
    format: ChatFormat
    same_tokens: bool = False
    """Whether sampled token ids are of this model's own tokenizer; if not, responses are made into tokens anew from their text."""
    micro_tokens: int = MICRO_TOKENS

    @property
    def role(self) -> str:
        """The first member's role: whose adapter and head a critic may start from."""
        return self.roles[0]

    def __call__(self, groups: Sequence[Group]) -> list[list[float]]:
        """The score of each response of each group, in order. Raises InputError for what cannot be encoded or scored."""
        scores = iter(one_score(self.card, self.outputs([self.encode(group) for group in groups])).tolist())
        return [[next(scores) for _ in group.responses] for group in groups]

    def outputs(self, groups: Sequence[TokenGroup]) -> Tensor:
        """What the heads say, (members, responses, outputs), before weights and normalisers."""
        if groups and any(group.responses for group in groups):
            longest = max(len(g.prompt_ids) + max((len(r.token_ids) for r in g.responses), default=0) for g in groups)
            check_length(self.backbone.model, longest)
        return outputs(self.backbone, self.roles, groups, self.micro_tokens)

    def encode(self, group: Group) -> TokenGroup:
        """The group as this model reads it. A response is never cut: its end is what the score depends on."""
        if self.card.read_at == "end":
            return to_the_end(self.format, group)
        empty = [not r.text.strip() and not self._usable(r) for r in group.responses]
        given = [r if self._usable(r) else replace(r, token_ids=None) for r in group.responses]
        tokens = self.format.encode(replace(group, responses=[r for r, e in zip(given, empty, strict=True) if not e]))
        written = iter(tokens.responses)
        stop = TokenResponse([min(self.format.stop_ids)], [True])  # nothing was said
        responses = [stop if e else _open_ended(r, next(written)) for r, e in zip(given, empty, strict=True)]
        prompt_ids = tokens.prompt_ids or self.format.prompt_ids(group.prompt)
        return replace(tokens, prompt_ids=prompt_ids, responses=responses)

    def _usable(self, response: Response) -> bool:
        """Whether a sampled response's tokens can be scored as they are: same vocabulary, and an end that this format knows."""
        if not self.same_tokens or not response.token_ids:
            return False
        return response.finish_reason == "length" or response.token_ids[-1] in self.format.stop_ids


def to_the_end(form: ChatFormat, group: Group) -> TokenGroup:
    """Each conversation's whole rendering, as sequence classifiers of the field are given it; what all share is the prompt."""
    rows = []
    for response in group.responses:
        ids = form.natural_ids([*group.prompt.messages, *response.turns]) if group.prompt.messages else None
        if ids is None:
            tokens = form.encode(replace(group, responses=[replace(response, token_ids=None)]))
            ids = [*tokens.prompt_ids, *tokens.responses[0].token_ids]
        rows.append(ids)
    shared = 0
    while rows and all(len(row) > shared + 1 and row[shared] == rows[0][shared] for row in rows):
        shared += 1
    responses = [TokenResponse(row[shared:], [True] * (len(row) - shared)) for row in rows]
    return TokenGroup(rows[0][:shared] if rows else [], responses, group.row, group.margin, group.probability)


def _open_ended(response: Response, tokens: TokenResponse) -> TokenResponse:
    """A response that was cut while it was sampled has no stop token, also when its tokens are made anew."""
    if response.finish_reason != "length" or response.token_ids is not None or len(tokens.token_ids) < 2:
        return tokens
    return TokenResponse(tokens.token_ids[:-1], tokens.trained[:-1])


def load_reward(name: str, *, backbone: Backbone | None = None, source: ModelSource | None = None, role: str = REWARD) -> RewardModel:
    """The reward model in a folder (a run of `manners reward`, its `model/`, or a sequence classifier of the field).

    With a `backbone` that holds the reward model's base unchanged, it becomes `role` of it (further members role-1, ...; role2, ... if
    the name is taken); else it has a backbone of its own. `source` names the policy where no backbone is at hand: it says which
    tokenizer sampled responses come from. `FOLDER#LABEL` scores by that label's log-odds. Raises InputError for a folder that is no
    reward model or not whole.
    """
    folder, card = read_card(name)
    used, roles = load_weights(folder, card, backbone, role)
    tokenizer = load_tokenizer(ModelSource(folder, str(folder), None))
    form = ChatFormat.of(tokenizer, card.template or "auto")
    sampled_with = backbone.tokenizer if backbone is not None else load_tokenizer(source) if source is not None else None
    return RewardModel(name, folder, used, roles, card, form, sampled_with is not None and same_vocabulary(tokenizer, sampled_with))


def same_vocabulary(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase) -> bool:
    """Whether token ids mean the same to both."""
    loose: tuple[Any, Any] = (a, b)
    return loose[0].get_vocab() == loose[1].get_vocab()
