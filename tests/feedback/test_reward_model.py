"""Reward models asked in text: folders of the field, other tokenizers, answers that were cut or empty, folders that are not whole."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForSequenceClassification

from manners.core.errors import InputError
from manners.core.files import read_json, write_json
from manners.core.records import Group, Message, Prompt, Response
from manners.feedback.reward_model import RewardModel, load_reward
from manners.feedback.rewards import reward_of
from manners.model.load import load_model, load_tokenizer, resolve
from manners.model.reward import Card, Member, one_score, save_reward
from manners.model.roles import Backbone, Lora
from tests.conftest import TEMPLATE
from tests.tiny import byte_tokenizer, tiny_folder, tiny_llama

GROUPS = [
    Group(Prompt.user("Hello there"), [Response.answer("Good day."), Response.answer("Good day to you, my friend.")]),
    Group(Prompt((Message("system", "Be brief."), Message("user", "Why?"))), [Response.answer("Because.")]),
]


@pytest.fixture(autouse=True)
def alone(one_thread):
    """One thread."""


def classifier(folder: Path, labels: int, bias: bool = False) -> LlamaForSequenceClassification:
    """A folder as transformers saves it, with a random head."""
    config = tiny_llama(width=32).config
    config.num_labels = labels
    torch.manual_seed(1)
    model = LlamaForSequenceClassification(config).eval()
    model.save_pretrained(str(folder))
    byte_tokenizer(TEMPLATE).save_pretrained(str(folder))
    return model


def own_logits(model: LlamaForSequenceClassification, group: Group, response: Response) -> torch.Tensor:
    """What the classifier itself says of a rendered conversation, alone and without padding."""
    tokenizer = byte_tokenizer(TEMPLATE)
    turns = [{"role": m.role, "content": m.content} for m in [*group.prompt.messages, *response.turns]]
    ids = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0]


def test_a_classifier_s_score_is_its_own_logit(tmp_path):
    model = classifier(tmp_path / "model", 1)
    judge = load_reward(str(tmp_path / "model"))
    said = judge(GROUPS)
    assert [len(s) for s in said] == [2, 1]
    for group, scores in zip(GROUPS, said, strict=True):
        for response, score in zip(group.responses, scores, strict=True):
            assert score == pytest.approx(float(own_logits(model, group, response)), abs=1e-5)


def test_a_classifier_of_three_labels(tmp_path):
    model = classifier(tmp_path / "model", 3)
    judge = load_reward(str(tmp_path / "model"))
    with pytest.raises(InputError, match=r"LABEL_0, LABEL_1, LABEL_2 .* FOLDER#LABEL"):
        judge(GROUPS)
    logits = own_logits(model, GROUPS[0], GROUPS[0].responses[0])
    said = judge.outputs([judge.encode(GROUPS[0])])[0, 0]
    assert torch.allclose(said.float(), logits, rtol=0, atol=1e-5)
    chosen = load_reward(f"{tmp_path / 'model'}#LABEL_1")(GROUPS)[0][0]
    assert chosen == pytest.approx(float(logits[1] - torch.logsumexp(logits[[0, 2]], 0)), abs=1e-5)
    assert reward_of(f"{tmp_path / 'model'}#LABEL_1")(GROUPS)[0][0] == chosen
    with pytest.raises(InputError, match="no output 'LABEL_4'; did you mean"):
        load_reward(f"{tmp_path / 'model'}#LABEL_4")


@pytest.mark.parametrize("labels", [1, 2])
def test_an_adapter_of_a_classifier(tmp_path, labels):
    """What peft saves of a LoRA run with task type SEQ_CLS."""
    tiny_folder(tmp_path / "base", width=32)
    config = tiny_llama(width=32).config
    config.num_labels = labels
    model = LlamaForSequenceClassification.from_pretrained(str(tmp_path / "base"), config=config).eval()
    torch.manual_seed(2)
    adapted = get_peft_model(
        model,
        LoraConfig(r=4, task_type="SEQ_CLS", target_modules=["q_proj", "up_proj"], modules_to_save=["score"], init_lora_weights=False),
    )
    adapted.save_pretrained(str(tmp_path / "adapter"))
    byte_tokenizer(TEMPLATE).save_pretrained(str(tmp_path / "adapter"))
    judge = load_reward(str(tmp_path / "adapter"))
    logits = own_logits(adapted, GROUPS[0], GROUPS[0].responses[1])
    assert torch.allclose(judge.outputs([judge.encode(GROUPS[0])])[0, 1].float(), logits, rtol=0, atol=1e-5)
    weights = load_file(str(tmp_path / "adapter" / "adapter_model.safetensors"))
    save_file({k: v for k, v in weights.items() if "score" not in k}, str(tmp_path / "adapter" / "adapter_model.safetensors"))
    with pytest.raises(InputError, match="saved without its head"):
        load_reward(str(tmp_path / "adapter"))


def test_a_bidirectional_classifier_is_refused_by_name(tmp_path):
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=261, num_labels=1)
    BertForSequenceClassification(config).save_pretrained(str(tmp_path / "bert"))
    byte_tokenizer(TEMPLATE).save_pretrained(str(tmp_path / "bert"))
    with pytest.raises(InputError, match=r"BertForSequenceClassification .* has no linear layer 'score'"):
        load_reward(str(tmp_path / "bert"))


# --- our own folders ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> Path:
    """A reward model's folder, untrained but for a random adapter and head."""
    base = tiny_folder(tmp_path / "base", width=32)
    source = resolve(str(base))
    backbone = Backbone(load_model(source), load_tokenizer(source), source.base)
    backbone.add_adapter("reward", Lora(rank=2), seed=1)
    with torch.no_grad():
        for name, p in backbone.trainable("reward").items():
            if "lora_B" in name:
                p.normal_(std=0.1)
    backbone.add_head("reward", seed=3)
    target = tmp_path / "rm"
    target.mkdir()
    save_reward(target, backbone, ["reward"], Card("pairs", members=(Member(0, 2.0, 0.5),), base=str(base)))
    byte_tokenizer().save_pretrained(str(target))
    return target


def test_gain_and_bias_are_applied(folder):
    judge = load_reward(str(folder))
    raw = judge.outputs([judge.encode(group) for group in GROUPS])[0, :, 0]
    assert [s for group in judge(GROUPS) for s in group] == pytest.approx((2 * raw + 0.5).tolist(), abs=1e-12)
    assert judge.card.logit == 0.5


def sampled(judge: RewardModel, text: str, *, stop: bool) -> Response:
    ids = judge.format.tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = [*ids, *([min(judge.format.stop_ids)] if stop else [])]
    return Response((Message("assistant", text),), token_ids=ids, finish_reason="stop" if stop else "length")


def test_sampled_tokens_are_scored_as_they_are_or_made_anew(folder, tmp_path):
    """With the policy's tokenizer at hand ids are used; otherwise text is encoded anew, and a cut answer has no stop token either way."""
    same = load_reward(str(folder), source=resolve(str(tmp_path / "base")))
    anew = load_reward(str(folder))
    assert same.same_tokens and not anew.same_tokens
    drawn = Group(Prompt.user("Hello"), [sampled(same, "Good day", stop=True), sampled(same, "Good day", stop=False)])
    assert same.encode(drawn) == anew.encode(drawn)
    assert [len(r.token_ids) for r in anew.encode(drawn).responses] == [9, 8]
    [[stopped, cut]] = same([drawn])
    assert stopped != cut


def test_another_tokenizer_is_noticed(folder, tmp_path):
    other = tmp_path / "other"
    tiny_folder(other, width=32)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(str(other))
    judge = load_reward(str(folder), source=resolve(str(other)))
    assert not judge.same_tokens
    drawn = Response((Message("assistant", "Hi"),), token_ids=[1, 1, 1], finish_reason="stop")
    written = Response.answer("Hi")
    [[one, two]] = judge([Group(Prompt.user("Hello"), [drawn, written])])
    assert one == pytest.approx(two, abs=1e-6)


@pytest.mark.parametrize("ids", [None, [2]])
def test_an_answer_that_says_nothing_is_scored_at_its_stop_token(folder, ids):
    judge = load_reward(str(folder))
    empty = Response((Message("assistant", ""),), token_ids=ids, finish_reason="stop")
    tokens = judge.encode(Group(Prompt.user("Hello"), [empty, Response.answer("Hi")]))
    assert tokens.responses[0].token_ids == [2] and tokens.prompt_ids
    assert all(torch.isfinite(torch.tensor(judge([Group(Prompt.user("Hello"), [empty])]))[0]))
    assert judge.encode(Group(Prompt.user("Hello"), [empty])).prompt_ids == tokens.prompt_ids


def test_folders_that_are_not_whole(folder, tmp_path, tiny_model):
    def refused(name: object, says: str) -> None:
        with pytest.raises(InputError, match=says) as caught:
            load_reward(str(name))
        assert str(caught.value).endswith((".", "?"))

    refused(tmp_path / "nowhere", "no such folder")
    refused(tiny_model, "is a language model, which has no head that scores")
    card = read_json(folder / "reward.json")
    for wrong, says in (
        ({"weights": [1.0, 2.0]}, "weights and outputs differ in number"),
        ({"combine": "median"}, "combine is 'median'"),
        ({"good": "x"}, "'x' is no output"),
        ({"strange": 1}, "is no card of a reward model"),
        ({"outputs": ["a", "b"], "weights": [1.0, 0.0]}, r"has \(1, 32\) weights, where its card and its base need \(2, 32\)"),
        ({"members": [*card["members"], *card["members"]]}, "lacks '1.weight', which its card of 2 members needs"),
        ({"base": "nowhere/at-all"}, "The base model of the reward model .* cannot be used"),
    ):
        write_json(folder / "reward.json", card | wrong)
        refused(folder, says)
    (folder / "reward.json").write_text("{")
    refused(folder, "is no card of a reward model")
    write_json(folder / "reward.json", card)
    heads = load_file(str(folder / "head.safetensors"))
    save_file({k: v * float("nan") for k, v in heads.items()}, str(folder / "head.safetensors"))
    with pytest.raises(InputError, match="3 of 3 responses something that is no finite number"):
        load_reward(str(folder))(GROUPS)
    (folder / "head.safetensors").unlink()
    refused(folder, "has a reward.json but no head.safetensors")


# --- one score ------------------------------------------------------------------------------------------------------------------


def test_outputs_become_one_score():
    outputs_MRK = torch.tensor([[[1.0, 2.0], [0.0, 1.0]], [[3.0, 0.0], [1.0, 1.0]]])
    card = Card("ratings", ("a", "b"), (0.5, -1.0), members=(Member(0, 2.0, 1.0), Member(1, 1.0, 0.0)))
    first, second = [2 * -1.5 + 1, 2 * -1.0 + 1], [1.5, -0.5]
    assert one_score(card, outputs_MRK).tolist() == pytest.approx([(a + b) / 2 for a, b in zip(first, second, strict=True)])
    worst = one_score(Card(**{**vars_of(card), "combine": "worst"}), outputs_MRK)
    assert worst.tolist() == pytest.approx([min(a, b) for a, b in zip(first, second, strict=True)])


def vars_of(card: Card) -> dict:
    return {name: getattr(card, name) for name in Card.__dataclass_fields__}


def test_the_worked_ensemble():
    """Five members who say 1, 0.5, 1.5, -0.2, 0.7: mean 0.7, least -0.2, and 0.542 at 0.5 times the variance."""
    outputs_MRK = torch.tensor([1.0, 0.5, 1.5, -0.2, 0.7]).view(5, 1, 1)
    for how, expected in (("mean", 0.7), ("worst", -0.2), ("uncertainty", 0.542)):
        card = Card("pairs", members=(Member(),) * 5, combine=how)
        assert float(one_score(card, outputs_MRK)) == pytest.approx(expected, abs=1e-6)


def test_the_card_is_plain_json(folder):
    said = json.loads((folder / "reward.json").read_text())
    assert said["members"] == [{"seed": 0, "gain": 2.0, "bias": 0.5}] and said["outputs"] == ["reward"]
