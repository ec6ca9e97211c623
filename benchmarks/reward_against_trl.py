"""A reward model trained here and by TRL's RewardTrainer: same rows, order, first weights and rate. Do they learn the same?

    python -m benchmarks.reward_against_trl --peer PYTHON --model DIR --pairs hh.jsonl [--n 320] [--held 360] --out result.json

PYTHON is the interpreter of an environment that has TRL. Both sides get the same token ids, read the reward at the stop token, and begin
with the same adapter and the same head. Printed and written: the largest difference of the first ten steps' losses, and accuracy and
log-loss on the held-out pairs, with intervals of the paired differences. Besides: how much our scores change alone and loaded anew.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.run import choose
from manners.core import files
from manners.core.records import TokenGroup
from manners.data.chat import ChatFormat
from manners.evaluate.intervals import mean_interval
from manners.model.load import load_model, load_tokenizer, resolve
from manners.model.reward import REWARD, Card, load_weights, outputs, read_card, save_reward
from manners.model.roles import Backbone, Lora
from manners.train.judgements import PairLoss, reward_scores
from manners.train.learner import Learner, OptimizerSettings, batches, count_steps

FIRST = 10
PEER = Path(__file__).with_name("peer_reward.py")


def ids(group: TokenGroup) -> dict[str, list[int]]:
    """Both conversations of a pair, whole."""
    return {name: [*group.prompt_ids, *r.token_ids] for name, r in zip(("chosen_ids", "rejected_ids"), group.responses, strict=True)}


def ours(backbone: Backbone, train: list[TokenGroup], held: list[TokenGroup], rate: float, batch_size: int) -> dict[str, Any]:
    """One epoch over the rows in the order given; the loss of each step and each held-out pair's difference of rewards."""
    settings = OptimizerSettings(batch_size=batch_size, schedule="linear", warmup=0)
    learner = Learner(backbone, REWARD, settings, rate, count_steps(len(train), batch_size, 1), forward=reward_scores)
    steps = [learner.step(train[i : i + batch_size], PairLoss()) for i in range(0, len(train), batch_size)]
    said = outputs(backbone, [REWARD], held, 2048)[0, :, 0].view(-1, 2)
    losses = [step["loss"] for step in steps]
    return {"losses": losses, "gaps": (said[:, 0] - said[:, 1]).tolist(), "std": float(said.std()), **apart(backbone, held[:40], said[:40])}


def apart(backbone: Backbone, held: list[TokenGroup], said: torch.Tensor) -> dict[str, float]:
    """By how much the scores of some pairs change if each is scored alone, and if the folder is saved and loaded anew."""
    alone = torch.cat([outputs(backbone, [REWARD], [pair], 2048)[0, :, 0].view(1, 2) for pair in held])
    with tempfile.TemporaryDirectory() as place:
        save_reward(Path(place), backbone, [REWARD], Card("pairs", base=backbone.source))
        loaded, roles = load_weights(*read_card(place))
        anew = outputs(loaded, roles, held, 2048)[0, :, 0].view(-1, 2)
        before = outputs(backbone, [REWARD], held, 2048)[0, :, 0].view(-1, 2)
    return {"alone_apart": float((alone - said).abs().max()), "reloaded_apart": float((anew - before).abs().max())}


def compared(a: list[float], b: list[float]) -> dict[str, Any]:
    """Accuracy and log-loss of two sets of differences on the same pairs, and a less b with intervals."""
    found = {}
    for name, of in {"accuracy": lambda g: (g > 0) + 0.5 * (g == 0), "log_loss": lambda g: np.logaddexp(0, -g)}.items():
        mine, theirs = of(np.array(a)), of(np.array(b))
        share = name == "accuracy"
        found[name] = {
            "ours": mean_interval([mine], share=share),
            "theirs": mean_interval([theirs], share=share),
            "difference": mean_interval([mine - theirs]),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("peer", "model", "pairs", "out"):
        parser.add_argument(f"--{name}", required=True)
    for name, default in {"n": 320, "held": 360, "bs": 8, "max-len": 512, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rate", type=float, default=1e-4)
    given = parser.parse_args()
    source = resolve(given.model)
    tokenizer = load_tokenizer(source)
    fmt = ChatFormat.of(tokenizer, "template")
    rows = [fmt.encode(g) for g in choose(given.pairs, fmt, given.n + given.held, given.max_len)]
    assert len(rows) == given.n + given.held, f"only {len(rows)} pairs fit"
    train, held = rows[: given.n], rows[given.n :]
    train = [train[i] for batch in batches(len(train), given.bs, 1, given.seed) for i in batch]
    backbone = Backbone(load_model(source), tokenizer, source.base)
    backbone.add_adapter(REWARD, Lora(16, 32), seed=given.seed)
    backbone.add_head(REWARD, seed=given.seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "start").mkdir()
        save_reward(folder / "start", backbone, [REWARD], Card("pairs"))
        files.write_jsonl(folder / "train.jsonl", [ids(g) for g in train])
        files.write_jsonl(folder / "held.jsonl", [ids(g) for g in held])
        # A row that ends in the pad token would be read one token too early, so it must not be the end token.
        pad = tokenizer.pad_token if tokenizer.pad_token != tokenizer.eos_token else tokenizer.unk_token
        job = {"model": source.base, "learning_rate": given.rate, "batch_size": given.bs, "threads": torch.get_num_threads(), "pad": pad}
        files.write_json(folder / "job.json", job)
        began = time.perf_counter()
        mine = ours(backbone, train, held, given.rate, given.bs)
        seconds = {"ours": round(time.perf_counter() - began, 1)}
        subprocess.run([given.peer, str(PEER), str(folder)], check=True)
        seconds["theirs"] = round(time.perf_counter() - began - seconds["ours"], 1)
        theirs = files.read_json(folder / "peer.json")
    steps = [abs(a - b) for a, b in zip(mine["losses"], theirs["losses"], strict=True)]
    result = {
        "pairs": given.n,
        "held": given.held,
        "rate": given.rate,
        "first_steps_apart": max(steps[:FIRST]),
        "all_steps_apart": max(steps),
        "first_losses": {"ours": mine["losses"][:FIRST], "theirs": theirs["losses"][:FIRST]},
        "largest_gap_apart": max(abs(a - b) for a, b in zip(mine["gaps"], theirs["gaps"], strict=True)),
        "seconds": seconds,
        **{key: mine[key] for key in ("std", "alone_apart", "reloaded_apart")},
        **compared(mine["gaps"], theirs["gaps"]),
    }
    files.write_json(given.out, result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
