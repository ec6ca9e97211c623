"""Supervised fine-tuning learns: a tiny model over-fits eight dialogues, reproduces them greedily and stops by itself."""

import json
from pathlib import Path

import pytest

from manners.core.records import Group, Message, Prompt, Response, TokenGroup, TokenResponse
from manners.data.chat import ChatFormat
from manners.model.draw import Sampling
from manners.model.load import load_model, load_tokenizer, resolve
from manners.model.logprob import load_frozen
from manners.model.roles import Backbone, Lora
from manners.model.sampler import Sampler
from manners.model.tree import pack
from manners.train.learner import Learner, Micro, OptimizerSettings
from manners.train.sft import SFTLoss, SFTSettings, sft
from tests.families import tiny
from tests.tiny import tiny_folder

DIALOGUES = [
    ("Name a colour.", "Blue."),
    ("Name a fruit.", "An apple."),
    ("Two plus two?", "Four."),
    ("Say hello.", "Hello, how are you?"),
    ("Capital of Peru?", "Lima."),
    ("Opposite of hot?", "Cold."),
    ("A polite no.", "I am sorry, I cannot do that."),
    ("Count to three.", "One, two, three."),
]


def answers(model: str, prompts: list[Prompt]) -> list[Response]:
    source = resolve(model)
    tokenizer = load_tokenizer(source)
    backbone, role = load_frozen(source, tokenizer)
    sampler = Sampler(backbone, ChatFormat.of(tokenizer), role=role, slots=8)
    return [g.responses[0] for g in sampler.sample(prompts, Sampling(temperature=0.0, max_new_tokens=60))]


def test_eight_dialogues_are_learned_by_heart(tmp_path):
    folder = tiny_folder(tmp_path / "model")
    data = tmp_path / "data.jsonl"
    rows = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in DIALOGUES]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"format": "plain", "finetune": "full", "epochs": 100, "batch_size": 8, "learning_rate": 1e-2, "save_every": 1000}
    manifest = sft(SFTSettings(model=str(folder), data=str(data), out=str(tmp_path / "run"), **settings))
    assert manifest["first_loss"] > 5 and manifest["last_loss"] < 0.05
    found = answers(str(tmp_path / "run"), [Prompt.user(q) for q, _ in DIALOGUES])
    assert [r.text for r in found] == [a for _, a in DIALOGUES]
    assert all(r.finish_reason == "stop" for r in found)
    assert sft(SFTSettings(**manifest["settings"])) == manifest, "a finished run is returned, not run again"


def test_every_assistant_turn_of_a_dialogue_is_learned(tmp_path):
    """Two turns: both answers train, the user's second question between them does not."""
    folder = tiny_folder(tmp_path / "model")
    turns = ["Hi.", "Hello!", "Bye.", "See you."]
    roles = ["user", "assistant"] * 2
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"messages": [{"role": r, "content": t} for r, t in zip(roles, turns, strict=True)]}) + "\n")
    out = tmp_path / "run"
    settings = {"format": "plain", "finetune": "full", "epochs": 60, "batch_size": 1, "learning_rate": 5e-3, "save_every": 1000}
    sft(SFTSettings(model=str(folder), data=str(data), out=str(out), **settings))
    second = Prompt(tuple(Message(r, t) for r, t in zip(roles[:3], turns[:3], strict=True)))
    assert [r.text for r in answers(str(out), [Prompt.user("Hi."), second])] == ["Hello!", "See you."]


def test_plain_text_is_learned_whole(tmp_path):
    folder = tiny_folder(tmp_path / "model")
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"text": "the quick brown fox"}) + "\n")
    settings = {"finetune": "full", "epochs": 60, "batch_size": 1, "learning_rate": 5e-3, "save_every": 1000}
    manifest = sft(SFTSettings(model=str(folder), data=str(data), out=str(tmp_path / "run"), **settings))
    assert manifest["last_loss"] < 0.05


def test_prompt_tokens_are_never_targets():
    """The gradient with respect to an output bias is sum over targets of (p - onehot): its positive part per target sums to below 1,
    and the only entries pushed up are the targets'."""
    group = TokenGroup([5, 6, 7], [TokenResponse([8, 9], [True, True])])
    backbone = Backbone(tiny("phi"))  # Phi's output layer has a bias
    bias = backbone.model.get_output_embeddings().bias.requires_grad_(True)
    tree = pack([group])
    SFTLoss()(backbone.score(tree), Micro([group], tree)).terms["nll"].total.backward()
    assert (bias.grad < 0).nonzero()[:, 0].tolist() == [8, 9]
    assert bias.grad.sum().item() == pytest.approx(0, abs=1e-6)


def test_the_exported_tokenizer_carries_the_format(tmp_path):
    folder = tiny_folder(tmp_path / "model")
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    sft(SFTSettings(model=str(folder), data=str(data), out=str(tmp_path / "run"), format="plain", epochs=1, finetune="full"))
    tokenizer = load_tokenizer(resolve(str(tmp_path / "run")))
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False, add_generation_prompt=True)
    assert rendered.endswith("### Prompt\na\n\n### Response\n")
    config = Path(tmp_path / "run" / "model" / "config.json").read_text()
    assert "manners" not in config


def test_the_real_model_in_float32_cuts_into_micro_batches_alike():
    """1x8 against 8x1 on SmolLM2-135M: gradients agree to 1e-4 of the largest, in float32."""
    tokenizer = load_tokenizer("smollm2-135m-instruct")
    chat = ChatFormat.of(tokenizer, "plain")
    groups = [chat.encode(Group(Prompt.user(q), [Response.answer(a * (1 + i))], row=i)) for i, (q, a) in enumerate(DIALOGUES)]
    backbone = Backbone(load_model("smollm2-135m-instruct"), tokenizer)
    backbone.add_adapter("policy", Lora(16))
    found = []
    for budget in (100_000, 1):
        learner = Learner(backbone, "policy", OptimizerSettings(micro_tokens=budget), 1e-4, 1)
        metrics = learner.accumulate(groups, SFTLoss())
        found.append(({n: p.grad.clone() for n, p in learner.parameters.items()}, metrics))
        backbone.model.zero_grad()
    (whole, first), (cut, second) = found
    assert (first["micro_batches"], second["micro_batches"]) == (1, 8)
    largest = max(float(g.abs().max()) for g in whole.values())
    assert largest > 0 and max(float((whole[n] - cut[n]).abs().max()) for n in whole) / largest < 1e-4
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-5)
