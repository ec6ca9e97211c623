"""A reward model as one folder that says all about itself, and its scores of token groups.

    reward.json           the card: outputs, how they become one score, the normaliser of each member, the chat format, the base
    head.safetensors      weight and bias of each member's head, float32
    adapter_*             the first member's adapter (or the base's own weights, if all were trained)
    member-1/ ...         further members' adapters
    tokenizer*, ...       the tokenizer with the chat template that the model was trained under

A score is read at a response's last trained token: its stop token, or the last one drawn if it was cut. Each member's outputs become
one number (a weighted sum, or the log-odds of a label), that number becomes gain * x + bias, and the members are combined.

Sequence-classification folders of the field are read, too: their `score` layer is the head, without a normaliser, and they read at the
end of the whole rendering. What text becomes tokens is not decided here: `feedback/reward_model.py` does.

Axes: `M` members, `R` responses, `K` outputs of a head.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils.other import ModulesToSaveWrapper
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

import manners
from manners.core import files
from manners.core.errors import InputError, nearest
from manners.core.records import TokenGroup
from manners.model.fetch import quiet
from manners.model.load import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG, REWARD_CARD, ModelSource, load_model, prepared_config, resolve, told
from manners.model.probe import probe_trunk
from manners.model.roles import BASE, Backbone
from manners.model.score import head_outputs, trunk
from manners.model.tree import pack, partition
from manners.ops.ensemble import WAYS, combine

CARD, HEAD = REWARD_CARD, "head.safetensors"
CLASSIFIER = "ForSequenceClassification"
"""How transformers' classes for such folders end."""
REWARD = "reward"
"""Role of a reward model's first member; the others are called reward-1, reward-2, ..."""


@dataclass(frozen=True, slots=True)
class Member:
    """One head with its normaliser: score = gain * x + bias."""

    seed: int = 0
    gain: float = 1.0
    bias: float = 0.0


@dataclass(frozen=True, slots=True)
class Card:
    """What reward.json says."""

    kind: str
    """What it learned from: pairs, rankings, picks, ratings, labels, or classifier (a folder of the field)."""
    outputs: tuple[str, ...] = ("reward",)
    """Names of the head's outputs."""
    weights: tuple[float, ...] | None = (1.0,)
    """Of the outputs in the score; None if the score is the log-odds of `good`."""
    good: str | None = None
    """The label whose log-odds are the score."""
    members: tuple[Member, ...] = (Member(),)
    combine: str = "mean"
    coefficient: float = 0.5
    """How members become one score (ops/ensemble.py)."""
    normalised_on: str | None = None
    """On what mean 0 and standard deviation 1 were fixed."""
    body: str = "lora"
    """lora, full, frozen, or classifier."""
    base: str = ""
    """What the base model is called, where the folder does not hold its weights."""
    template: str | None = None
    """The chat template; None for the tokenizer's own."""
    max_length: int | None = None
    """Longest prompt plus response in tokens that it was trained on."""
    read_at: str = "stop"
    """Where the score is read: at the stop token (stop), or at the end of the whole rendering (end)."""
    manners: str = field(default=manners.__version__)

    @property
    def logit(self) -> float:
        """A difference of scores times this is the log-odds that a pair's first response is preferred."""
        return len(self.members) / sum(member.gain for member in self.members)


def one_score(card: Card, outputs_MRK: Tensor) -> Tensor:
    """The score (R,) of each response: outputs to a number, normaliser, members combined. In float64.

    Raises InputError for a classifier of several labels of which none was named.
    """
    outputs_MRK = outputs_MRK.double()
    if card.weights is not None:
        raw_MR = outputs_MRK @ outputs_MRK.new_tensor(card.weights)
    elif card.good is None:
        raise InputError(
            f"this reward model has the labels {', '.join(card.outputs)} and none of them is said to be the good one: "
            "write its name after the folder, as in FOLDER#LABEL."
        )
    else:
        good = card.outputs.index(card.good)
        others = [k for k in range(len(card.outputs)) if k != good]
        raw_MR = outputs_MRK[..., good] - torch.logsumexp(outputs_MRK[..., others], -1)
    gain_M, bias_M = (outputs_MRK.new_tensor([getattr(m, name) for m in card.members]) for name in ("gain", "bias"))
    return combine(gain_M[:, None] * raw_MR + bias_M[:, None], card.combine, card.coefficient)


def outputs(backbone: Backbone, roles: Sequence[str], groups: Sequence[TokenGroup], micro_tokens: int) -> Tensor:
    """What the heads of `roles` say of every response, (M, R, K) in float64 on the CPU, responses numbered group after group. No graph.

    Groups are packed longest first into micro-batches of at most `micro_tokens`. Roles that share a trunk share its pass.
    Raises InputError if a score is not a finite number.
    """
    widths = [len(group.responses) for group in groups]
    starts = [sum(widths[:i]) for i in range(len(groups))]
    numbered = [replace(group, row=i) for i, group in enumerate(groups)]
    found = torch.zeros(len(roles), sum(widths), backbone.heads[roles[0]].out_features, dtype=torch.float64)
    with torch.no_grad():
        for part in partition(numbered, micro_tokens):
            places = [starts[group.row] + i for group in part for i in range(len(group.responses))]
            for m, outputs_RK in enumerate(_heads(backbone, roles, part)):
                found[m, places] = outputs_RK.double().cpu()
    bad = (~found.isfinite()).any(-1).any(0).nonzero()
    if len(bad):
        group = next(g for g in range(len(groups)) if starts[g] + widths[g] > int(bad[0]))
        raise InputError(
            f"the reward model says of {len(bad):,} of {found.shape[1]:,} responses something that is no finite number (first in row "
            f"{groups[group].row + 1}): its weights or its head are broken; train it anew at a lower learning_rate."
        )
    return found


def _heads(backbone: Backbone, roles: Sequence[str], groups: Sequence[TokenGroup]) -> list[Tensor]:
    """Outputs (R, K) of each role's head on one tree; a trunk that several roles share runs once."""
    tree = pack(groups).to(backbone.device)
    hidden: dict[str | None, Tensor] = {}
    found = []
    for role in roles:
        adapter = backbone.adapter_of(role)
        if adapter not in hidden:
            with backbone.role(role):
                hidden[adapter] = trunk(backbone.model, tree).index_select(0, tree.last_R)
        found.append(head_outputs(backbone.heads[role], hidden[adapter]))
    return found


# --- folders ------------------------------------------------------------------------------------------------------------------


def save_reward(folder: Path, backbone: Backbone, roles: Sequence[str], card: Card) -> None:
    """Write heads, adapters (or the whole base) and the card into an existing folder; the tokenizer is the caller's to add."""
    heads = {
        f"{m}.{name}": p.detach().cpu().contiguous() for m, role in enumerate(roles) for name, p in backbone.heads[role].named_parameters()
    }
    save_file(heads, str(folder / HEAD))
    if card.body == "full":
        backbone.model.save_pretrained(str(folder))
    else:
        for m, role in enumerate(roles):
            if backbone.adapter_of(role) is not None and (m == 0 or backbone.adapter_of(role) != backbone.adapter_of(roles[0])):
                backbone.save_adapter(role, folder / f"member-{m}" if m else folder, base_name=card.base)
    files.write_json(folder / CARD, asdict(card))


def is_reward(name: str) -> bool:
    """Whether a name is a folder of a reward model: ours, or a sequence classifier of the field."""
    folder = _folder(name)
    return (folder / CARD).is_file() or _is_classifier(folder)


def read_card(name: str) -> tuple[Path, Card]:
    """The folder and the card of a reward model; for a folder of the field, a card made from its config.

    `name` is a run, its `model/`, or a folder; `#LABEL` behind it names the label of a classifier whose log-odds are the score.
    Raises InputError if it is none of these.
    """
    bare, _, label = name.partition("#")
    folder = _folder(bare)
    if (folder / CARD).is_file():
        card = _read(folder / CARD)
    elif _is_classifier(folder):
        card = _classifier_card(folder)
    else:
        raise InputError(f"'{bare}' is no reward model (no {CARD}, and no sequence classifier): {_what_else(bare)}")
    if label:
        if label not in card.outputs:
            raise InputError(f"'{bare}' has no output '{label}'; {nearest(label, card.outputs)}")
        if card.weights is None:
            card = replace(card, good=label)
        else:
            card = replace(card, weights=tuple(float(name == label) for name in card.outputs))
    return folder, card


def load_weights(folder: Path, card: Card, backbone: Backbone | None = None, role: str = REWARD) -> tuple[Backbone, list[str]]:
    """The reward model's members as roles of a backbone, frozen: of the one given, if it holds the same base, else of a new one.

    Raises InputError for weights that do not fit together.
    """
    if card.body == "classifier":
        return _load_classifier(folder, role)
    source = source_of(folder, card)
    if backbone is None or not shares(backbone, source):
        backbone = Backbone(load_model(ModelSource(source.folder, source.base, None)), None, source.base)
        probe_trunk(backbone)
    heads = _read_heads(folder, len(card.members))
    roles = _free_names(backbone, role, len(card.members))
    for m, name in enumerate(roles):
        place = folder / f"member-{m}" if m else folder
        if (place / ADAPTER_CONFIG).is_file():
            backbone.load_adapter(name, place, trainable=False)
        else:
            backbone.add_role(name, roles[0] if m else BASE)
        weight = heads[f"{m}.weight"]
        width = backbone.model.config.get_text_config().hidden_size
        if weight.shape != (len(card.outputs), width):
            raise InputError(
                f"the head in '{folder}' has {tuple(weight.shape)} weights, where its card and its base need "
                f"({len(card.outputs)}, {width}): the folder is a mixture of two models; save it again."
            )
        _put_head(backbone, name, weight, heads.get(f"{m}.bias"))
    return backbone, roles


def source_of(folder: Path, card: Card) -> ModelSource:
    """The base of a reward model that is not a classifier."""
    if card.body == "full":
        return ModelSource(folder, str(folder), None)
    try:
        source = resolve(card.base)
    except InputError as error:
        raise InputError(f"The base model of the reward model '{folder}' cannot be used. {error}") from error
    return ModelSource(source.folder, source.base, None)


def shares(backbone: Backbone, source: ModelSource) -> bool:
    """Whether the backbone's base is, unchanged, the base that `source` names."""
    same = backbone.source == source.base or (
        source.folder is not None and Path(backbone.source).is_dir() and Path(backbone.source).resolve() == source.folder.resolve()
    )
    return same and not any(p.requires_grad for p in backbone.trainable(BASE).values())


def _free_names(backbone: Backbone, role: str, count: int) -> list[str]:
    """Names for `count` members that no role of the backbone has yet."""
    for n in range(1, 1000):
        first = role if n == 1 else f"{role}{n}"
        names = [first, *(f"{first}-{m}" for m in range(1, count))]
        if not set(names) & set(backbone.roles):
            return names
    raise ValueError(f"no free role name beside {backbone.roles}")


def _put_head(backbone: Backbone, role: str, weight: Tensor, bias: Tensor | None) -> None:
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype, device=backbone.device)
    with torch.no_grad():
        head.weight.copy_(weight)
        if bias is not None:
            head.bias.copy_(bias)
    backbone.heads[role] = head.requires_grad_(False)


def _folder(name: str) -> Path:
    """The folder that holds the model: the one named, or a run's `model/`."""
    folder = Path(name.partition("#")[0]).expanduser()
    inner = folder / "model"
    return inner if any((inner / file).is_file() for file in (CARD, CONFIG, ADAPTER_CONFIG)) else folder


def _read(path: Path) -> Card:
    try:
        said: dict[str, Any] = files.read_json(path)
        members = tuple(Member(**member) for member in said.pop("members"))
        weights = said.pop("weights")
        card = Card(**said | {"outputs": tuple(said["outputs"]), "weights": weights and tuple(weights), "members": members})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        known = ", ".join(f.name for f in fields(Card))
        raise InputError(f"'{path}' is no card of a reward model ({error}); it holds {known}.") from error
    wrong = (
        (card.combine not in WAYS and f"combine is '{card.combine}'")
        or (card.weights is not None and len(card.weights) != len(card.outputs) and "weights and outputs differ in number")
        or (card.good is not None and card.good not in card.outputs and f"'{card.good}' is no output")
        or (not card.members and "it has no member")
    )
    if wrong:
        raise InputError(f"'{path}' is no card of a reward model: {wrong}.")
    return card


def _read_heads(folder: Path, members: int) -> dict[str, Tensor]:
    if not (folder / HEAD).is_file():
        raise InputError(f"'{folder}' has a {CARD} but no {HEAD}: the folder is not whole; save or copy it again.")
    heads = load_file(str(folder / HEAD))
    missing = [f"{m}.weight" for m in range(members) if f"{m}.weight" not in heads]
    if missing:
        raise InputError(f"'{folder / HEAD}' lacks '{missing[0]}', which its card of {members} members needs; save or copy it again.")
    return heads


def _what_else(name: str) -> str:
    """What the folder is instead, and what to do."""
    folder = _folder(name)
    if not folder.is_dir():
        return "there is no such folder. Give the run of `manners reward`."
    if (folder / CONFIG).is_file() or (folder / ADAPTER_CONFIG).is_file():
        return "it is a language model, which has no head that scores. Train one on pairs with `manners reward`."
    if any((Path(name) / trace).exists() for trace in ("settings.json", "metrics.jsonl", "checkpoints")):
        return "its run is not finished. Give the command that began it once more."
    return "give the run of `manners reward`, or a folder saved by a sequence classifier."


# --- sequence classifiers of the field ----------------------------------------------------------------------------------------


def _is_classifier(folder: Path) -> bool:
    """Whether the folder was saved by a sequence classifier of transformers, or holds a PEFT adapter of one."""
    try:
        if (folder / ADAPTER_CONFIG).is_file():
            return files.read_json(folder / ADAPTER_CONFIG).get("task_type") == "SEQ_CLS"
        named = files.read_json(folder / CONFIG).get("architectures") or []
        return any(str(name).endswith(CLASSIFIER) for name in named)
    except (OSError, ValueError, AttributeError):
        return False


def _adapted(folder: Path) -> tuple[str, int] | None:
    """Base and number of outputs of a classifier's adapter; None for a folder that holds a whole one. Raises InputError if its head is
    not saved with it."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return None
    with told("reward model", str(folder)):
        heads = [v for k, v in load_file(str(folder / ADAPTER_WEIGHTS)).items() if k.endswith("score.weight")]
    if len(heads) != 1:
        raise InputError(
            f"the adapter in '{folder}' was saved without its head (no 'score.weight'), so its scores are lost: train it again with "
            "modules_to_save=['score']."
        )
    return resolve(str(folder)).base, heads[0].shape[0]


def _classifier_card(folder: Path) -> Card:
    adapted = _adapted(folder)
    with told("reward model", str(folder)):
        config: Any = AutoConfig.from_pretrained(adapted[0] if adapted else str(folder), local_files_only=True, trust_remote_code=False)
    labels = adapted[1] if adapted else config.num_labels
    names = tuple(str(config.id2label.get(k, f"LABEL_{k}")) for k in range(labels))
    return Card("classifier", names, (1.0,) if labels == 1 else None, body="classifier", base=str(folder), read_at="end")


def _load_classifier(folder: Path, role: str) -> tuple[Backbone, list[str]]:
    """A sequence classifier of transformers, its `score` layer as the head; an adapter is merged into its base."""
    adapted = _adapted(folder)
    place = adapted[0] if adapted else str(folder)
    with quiet(), told("reward model", str(folder)):
        config = prepared_config(place, local=True)
        if adapted:
            config.num_labels = adapted[1]
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            place,
            config=config,
            dtype=torch.float32 if not torch.cuda.is_available() else None,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        model, report = loaded
        if adapted:
            report["missing_keys"] = {key for key in report["missing_keys"] if not key.startswith("score.")}
            model = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"The weights in '{folder}' lack {len(missing)} tensors of a {type(model).__name__} (first '{missing[0]}'): the save was cut "
            "short, or it is a language model without a trained head."
        )
    score = getattr(model, "score", None)
    if isinstance(score, ModulesToSaveWrapper):
        score = score.modules_to_save["default"]
    if not isinstance(score, nn.Linear) or not isinstance(model, PreTrainedModel):
        raise InputError(
            f"{type(model).__name__} in '{folder}' has no linear layer 'score' on a causal model's last states, which is the kind of "
            "sequence classifier that Manners reads."
        )
    model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))  # pyright: ignore[reportArgumentType]
    backbone = Backbone(model.eval(), None, str(folder))
    probe_trunk(backbone)
    backbone.add_role(role)
    _put_head(backbone, role, score.weight.detach().float(), None if score.bias is None else score.bias.detach().float())
    return backbone, [role]
