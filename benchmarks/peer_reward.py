"""The other library's side of `reward_against_trl.py`; runs in an environment of its own that has TRL, and imports nothing of ours.

    python peer_reward.py FOLDER

FOLDER holds `job.json` (model, rate, batch size, pad token), `start/` (a LoRA adapter and `head.safetensors`), and `train.jsonl` and
`held.jsonl` (token ids of both answers of each pair, in order). Writes `peer.json`: the loss of each step, and the difference of the two
rewards of each held-out pair.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset
from peft import LoraConfig, set_peft_model_state_dict
from safetensors.torch import load_file
from torch.utils.data import SequentialSampler
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer


class InOrder(RewardTrainer):
    """The trainer, with the rows in the order of the file."""

    def _get_train_sampler(self, dataset=None):
        return SequentialSampler(self.train_dataset if dataset is None else dataset)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def main() -> None:
    folder = Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text())
    torch.set_num_threads(job["threads"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    model = AutoModelForSequenceClassification.from_pretrained(job["model"], num_labels=1, dtype=torch.float32)
    lora = json.loads((folder / "start" / "adapter_config.json").read_text())
    config = LoraConfig(
        r=lora["r"], lora_alpha=lora["lora_alpha"], target_modules="all-linear", task_type="SEQ_CLS", modules_to_save=["score"]
    )
    arguments = RewardConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=job["batch_size"],
        num_train_epochs=1,
        learning_rate=job["learning_rate"],
        lr_scheduler_type="linear",
        max_length=None,
        pad_token=job["pad"],
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
    )
    trainer = InOrder(
        model, args=arguments, train_dataset=Dataset.from_list(rows(folder / "train.jsonl")), processing_class=tokenizer, peft_config=config
    )
    peft = trainer.model
    stored = load_file(str(folder / "start" / "adapter_model.safetensors"))
    expected = {n for n, p in peft.named_parameters() if ".lora_" in n}
    head = load_file(str(folder / "start" / "head.safetensors"))["0.weight"]
    loaded = set_peft_model_state_dict(peft, {**stored, "base_model.model.score.weight": head})
    assert len(expected) == len(stored) and not loaded.unexpected_keys, "the adapters do not fit each other"
    assert torch.equal(peft.base_model.model.score.modules_to_save["default"].weight, head), "the head was not taken over"
    trainer.train()
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    model = trainer.model.eval()
    gaps = []
    with torch.no_grad():
        for row in rows(folder / "held.jsonl"):
            said = [float(model(input_ids=torch.tensor([row[key]])).logits[0, 0]) for key in ("chosen_ids", "rejected_ids")]
            gaps.append(said[0] - said[1])
    (folder / "peer.json").write_text(json.dumps({"losses": losses, "gaps": gaps}))


main()
