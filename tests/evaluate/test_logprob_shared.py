"""`manners logprob` on Anthropic's HH pairs against transformers alone: template, tokenizer and plain forward, one answer at a time."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from manners.evaluate.logprob import LogprobSettings, logprob
from manners.model.load import resolve

pytestmark = pytest.mark.shared
SHARED = Path(os.environ.get("MANNERS_SHARED", Path(__file__).parents[3] / "shared"))
ROWS = 12


def turns(text: str) -> list[dict[str, str]]:
    parts = re.split(r"\n\n(Human|Assistant): ?", text)[1:]
    names = {"Human": "user", "Assistant": "assistant"}
    return [{"role": names[r], "content": c.strip()} for r, c in zip(parts[::2], parts[1::2], strict=True)]


def test_hh_pairs_in_chatml(tmp_path):
    data = SHARED / "data" / "preferences" / "hh_rlhf_harmless_pairs.jsonl"
    out = tmp_path / "logprobs.jsonl"
    logprob(LogprobSettings(data=str(data), out=str(out), rows=ROWS))
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(r["row"], r["response"]) for r in found] == [(i, name) for i in range(ROWS) for name in ("chosen", "rejected")]
    folder = resolve("smollm2-135m-instruct").base
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    lines = data.read_text(encoding="utf-8").split("\n")[:ROWS]
    for row in found:
        messages = turns(json.loads(lines[row["row"]])[row["response"]])
        prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        assert whole.startswith(prompt) and whole.endswith("<|im_end|>\n")
        ids = tokenizer(whole.removesuffix("\n"), add_special_tokens=False)["input_ids"]
        first = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            logps = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = sum(logps[i - 1, ids[i]].item() for i in range(first, len(ids)))
        assert row["tokens"] == len(ids) - first
        assert row["logprob"] == pytest.approx(expected, abs=2e-3)
