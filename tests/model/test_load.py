"""Names to models: what `resolve` accepts, what it refuses and in which words, and how models come out of `load_model`."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MixtralConfig, PreTrainedTokenizerFast
from transformers.utils import logging

from manners.core import network
from manners.core.errors import InputError
from manners.model import load as module
from manners.model.load import ModelSource, load_model, load_tokenizer, resolve

ALIAS = "smollm2-135m-instruct"


def tiny_llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1
    )
    return LlamaForCausalLM(config)


def tiny_tokenizer(template: str) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({"<unk>": 0, "yes": 1, "no": 2}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", chat_template=template)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base`, a tiny model, and `adapter`, a LoRA adapter on it that has no tokenizer of its own."""
    made = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    model = tiny_llama()
    model.save_pretrained(made / "base")
    tiny_tokenizer("of the base").save_pretrained(made / "base")
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2))  # pyright: ignore[reportArgumentType]
    adapted.save_pretrained(str(made / "adapter"))
    name_base(made / "adapter", "../base")
    return made


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh copy of `made`, which is also the working folder; caches are empty, and the hub cannot be reached."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MANNERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(network, "silent_hub", lambda: "huggingface.co:443")
    return tmp_path


def name_base(adapter: Path, base: str | None) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": base}))


def refused(name: str) -> str:
    with pytest.raises(InputError) as caught:
        resolve(name)
    message = str(caught.value)
    assert "\n" not in message and message.endswith((".", "?"))
    return message


def test_folder(place: Path):
    source = resolve(str(place / "base"))
    assert source == ModelSource(place / "base", str(place / "base"), None)
    model = load_model(source, device="cpu")
    assert isinstance(model, LlamaForCausalLM) and not model.training and model.dtype == torch.float32
    assert load_model("base", dtype=torch.bfloat16, device="cpu").dtype == torch.bfloat16
    assert load_tokenizer("base").chat_template == "of the base"


def test_alias(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "fetch", lambda alias: place / "base")
    assert resolve(ALIAS) == ModelSource(place / "base", str(place / "base"), None)


@pytest.mark.parametrize("base", ["../base", "base", "{place}/base", ALIAS])
def test_adapter(place: Path, monkeypatch: pytest.MonkeyPatch, base: str):
    """The base of an adapter may be named relative to the adapter, relative to here, absolutely, or by alias."""
    monkeypatch.setattr(module, "fetch", lambda alias: place / "base")
    name_base(place / "adapter", base.format(place=place))
    source = resolve("adapter")
    assert source.adapter == Path("adapter")
    assert source.folder is not None and source.folder.resolve() == place / "base"
    plain, loaded = load_model("base", device="cpu"), load_model(source, device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), loaded.state_dict().values(), strict=True))


def test_tokenizer_beside_the_adapter_goes_first(place: Path):
    assert load_tokenizer("adapter").chat_template == "of the base"
    tiny_tokenizer("of the adapter").save_pretrained(place / "adapter")
    assert load_tokenizer("adapter").chat_template == "of the adapter"
    for path in (place / "base").glob("tokenizer*"):
        path.unlink()
    assert resolve("adapter").adapter == Path("adapter")


def test_run_folder(place: Path):
    (place / "runs" / "sft").mkdir(parents=True)
    (place / "adapter").rename(place / "runs" / "sft" / "model")
    name_base(place / "runs" / "sft" / "model", "../../../base")
    source = resolve("runs/sft")
    assert source.adapter == Path("runs/sft/model") and source.base == "base"

    (place / "full").mkdir()
    (place / "base").rename(place / "full" / "model")
    assert resolve("full").folder == Path("full/model")


@pytest.mark.parametrize("trace", ["model/config.json", "checkpoint-12/state.safetensors", "manifest.json"])
def test_unfinished_run(place: Path, trace: str):
    path = place / "run" / trace
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    assert "not finished" in (message := refused("run")) and "once more" in message


def test_unknown_names(place: Path):
    assert f"did you mean '{ALIAS}'?" in refused("smollm2-135m-instuct")
    assert "hub id has the form owner/name" in refused("gpt2")
    assert "empty" in refused("")
    assert "no folder './bse', did you mean 'base'" in refused("./bse")
    assert "no folder 'adapter/last'" in refused("adapter/last")
    assert "no folder 'some/where/deep'" in refused("some/where/deep") and ALIAS in refused("some/where/deep")


def test_files_are_refused(place: Path):
    (place / "model.gguf").write_bytes(b"GGUF")
    assert "GGUF" in refused("model.gguf")
    assert "give the folder" in refused("base/config.json")


def test_folder_without_config(place: Path):
    (place / "empty").mkdir()
    assert "'empty' has no config.json and no adapter_config.json" in refused("empty")
    (place / "empty" / "model.gguf").write_bytes(b"GGUF")
    assert "GGUF" in refused("empty")


def test_folder_without_weights(place: Path):
    weights = place / "base" / "model.safetensors"
    weights.unlink()
    assert "'base' has no weights (model.safetensors)" in refused("base")
    (place / "base" / "pytorch_model.bin").write_bytes(b"pickle")
    message = refused("base")
    assert "a pickle can run code" in message and "AutoModelForCausalLM.from_pretrained(folder).save_pretrained" in message
    (place / "base" / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})
    )
    assert "lacks 2 of 2 weight files (first 'model-1.safetensors')" in refused("base")


def test_sharded_weights(place: Path):
    tiny_llama().save_pretrained(place / "shards", max_shard_size="20KB")
    tiny_tokenizer("x").save_pretrained(place / "shards")
    assert (place / "shards" / "model.safetensors.index.json").exists()
    assert isinstance(load_model("shards", device="cpu"), LlamaForCausalLM)


def test_folder_without_tokenizer(place: Path):
    for path in (place / "base").glob("tokenizer*"):
        path.unlink()
    assert "'base' has no tokenizer" in refused("base")
    assert "'adapter' has no tokenizer" in refused("adapter")


def test_adapter_refusals(place: Path):
    name_base(place / "adapter", "../bose")
    assert "base model of the adapter 'adapter' cannot be used. There is no folder '../bose'" in refused("adapter")
    name_base(place / "adapter", "owner/bose")
    assert "no network" in refused("adapter")
    name_base(place / "adapter", None)
    assert "does not say what it was trained on" in refused("adapter")
    name_base(place / "adapter", ".")
    assert "adapters do not stack" in refused("adapter")
    (place / "adapter" / "adapter_model.safetensors").rename(place / "adapter" / "adapter_model.bin")
    assert "a pickle can run code" in refused("adapter")
    (place / "adapter" / "adapter_config.json").write_text('{"cut')
    (place / "adapter" / "adapter_model.bin").rename(place / "adapter" / "adapter_model.safetensors")
    assert "is not JSON" in refused("adapter")


def test_hub_id_without_network(place: Path, monkeypatch: pytest.MonkeyPatch):
    message = refused("owner/name")
    assert "no folder 'owner/name' here, and no network" in message and "(huggingface.co:443 is silent)" in message and ALIAS in message
    monkeypatch.setattr(module.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set, and there is no copy of it here" in refused("owner/name")


def in_hub_cache(place: Path, folder: Path) -> Path:
    """Lay the folder where huggingface_hub keeps its download of `owner/name`."""
    repo = place / "hub" / "models--owner--name"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    return Path(shutil.copytree(folder, repo / "snapshots" / "abc"))


def test_hub_id_in_the_cache_needs_no_network(place: Path):
    snapshot = in_hub_cache(place, place / "base")
    assert resolve("owner/name") == ModelSource(snapshot, str(snapshot), None)
    (snapshot / "model.safetensors").unlink()
    assert "no network" in refused("owner/name")


def test_hub_id_with_network(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(network, "silent_hub", lambda: "")
    files = ["config.json", "model.safetensors"]
    monkeypatch.setattr(module, "list_repo_files", lambda name: files)
    assert resolve("owner/name") == ModelSource(None, "owner/name", None)
    files[1] = "pytorch_model.bin"
    assert "no weights in safetensors" in refused("owner/name")
    files[0] = "README.md"
    assert "has no config.json" in refused("owner/name")

    def download(name: str, **how: object) -> str:
        if how.get("local_files_only"):
            raise module.LocalEntryNotFoundError("not here")
        return str(place / "adapter")

    name_base(place / "adapter", str(place / "base"))
    files[0] = "adapter_config.json"
    monkeypatch.setattr(module, "snapshot_download", download)
    assert resolve("owner/name") == ModelSource(place / "base", str(place / "base"), place / "adapter")

    def lost(name: str) -> list[str]:
        raise module.HTTPError("the connection broke")

    monkeypatch.setattr(module, "list_repo_files", lost)
    with pytest.raises(InputError, match="'owner/name' cannot be loaded: the connection broke"):
        resolve("owner/name")


def test_dropout_is_zeroed(place: Path):
    config = GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0)
    assert config.attn_pdrop == config.resid_pdrop == 0.1
    GPT2LMHeadModel(config).save_pretrained(place / "gpt2")
    tiny_tokenizer("x").save_pretrained(place / "gpt2")
    model = load_model("gpt2", device="cpu")
    assert not model.training
    dropouts = [part for part in model.modules() if isinstance(part, torch.nn.Dropout)]
    assert dropouts and all(part.p == 0.0 for part in dropouts)
    model.train()
    tokens = torch.arange(8)[None]
    assert torch.equal(model(tokens).logits, model(tokens).logits)


def test_noise_in_nested_configs_is_zeroed():
    inner = MixtralConfig(attention_dropout=0.2, router_jitter_noise=0.1)
    outer = GPT2Config(summary_first_dropout=0.3, text=inner, parts={0: "x", "emb_dropout": 0.4}, token_dropout=True, layerdrop=0.5)
    module._zero_noise(outer)
    zeroed = (inner.attention_dropout, inner.router_jitter_noise, outer.summary_first_dropout, outer.layerdrop)
    assert [*zeroed, outer.parts["emb_dropout"]] == [0.0] * 5
    assert all(isinstance(rate, float) for rate in zeroed)
    assert outer.token_dropout is True


def test_weights_of_another_model_are_refused(place: Path):
    """transformers would fill in random numbers and go on."""
    path = place / "base" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 3}))
    with pytest.raises(InputError, match=r"lack 9 tensors of a LlamaForCausalLM \(first 'model\.layers\.2\."):
        load_model("base", device="cpu")


def test_weights_of_another_shape_are_refused(place: Path):
    path = place / "base" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "vocab_size": 80}))
    with pytest.raises(InputError, match=r"2 tensors differ in shape \(first 'lm_head.weight', \(64, 32\) instead of \(80, 32\)\)"):
        load_model("base", device="cpu")


def test_code_that_comes_with_a_model_is_refused(place: Path):
    path = place / "base" / "config.json"
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    (place / "base" / "own.py").write_text("raise RuntimeError('must never run')")
    with pytest.raises(InputError, match="needs program code that comes with it, which Manners does not run"):
        load_model("base", device="cpu")


def test_what_the_libraries_raise_is_one_sentence(place: Path):
    (place / "base" / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(InputError, match=r"The model in 'base' cannot be loaded: .+") as caught:
        load_model("base", device="cpu")
    assert "\n" not in str(caught.value)
    path = place / "base" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "no-such-type"}))
    with pytest.raises(InputError, match="no-such-type"):
        load_model("base", device="cpu")
    (place / "base" / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="The tokenizer in 'base' cannot be loaded"):
        load_tokenizer("base")


def test_nothing_is_printed_and_verbosity_is_restored(place: Path, capfd: pytest.CaptureFixture[str]):
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_model("base", device="cpu")
    load_tokenizer("base")
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
