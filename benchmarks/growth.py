"""How the cost of a training step grows: with tokens, with answers a prompt, with the share of the prompt, with the model.

    python -m benchmarks.growth [--out docs/results/growth.json]

Every point is a process of its own, so that its peak of memory is its own: a random Llama (SmolLM2-135M's shape unless the model is
what grows), LoRA of rank 16, random tokens, one step to warm up and two measured, the faster one kept. At the end, for each axis, a
power is fitted to the seconds (least squares of logarithms) and a line (of seconds), over the tokens computed, or the weights where the
model grows, with the largest relative distance of a point from each.
"""

import argparse
import json
import math
import subprocess
import sys
import time

POINTS = {
    "tokens": [{"rows": n} for n in (4, 8, 16, 32)],
    "answers": [{"rows": 2, "answers": n} for n in (1, 2, 4, 8, 16)],
    "prompt": [{"rows": 8, "answers": 4, "prompt": n} for n in (16, 64, 128, 256)],
    "model": [{"rows": 4, "width": w, "layers": n} for w, n in ((192, 10), (384, 20), (576, 30), (960, 32))],
}
DEFAULTS = {"rows": 8, "answers": 2, "prompt": 96, "answer": 64, "width": 576, "layers": 30, "micro": 768}


def measure(rows: int, answers: int, prompt: int, answer: int, width: int, layers: int, micro: int) -> dict[str, float]:
    """Seconds of a step and the peak of memory in gigabytes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from manners.core.memory import peak_resident
    from manners.core.records import TokenGroup, TokenResponse
    from manners.model.roles import Backbone
    from manners.train.learner import Learner
    from manners.train.sft import SFTLoss, SFTSettings

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=width, intermediate_size=width * 8 // 3, num_hidden_layers=layers, num_attention_heads=width // 64,
        num_key_value_heads=width // 192, max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    backbone = Backbone(LlamaForCausalLM(config))
    backbone.add_adapter("policy")
    draw = lambda n: torch.randint(10, 49000, (n,)).tolist()
    groups = [TokenGroup(draw(prompt), [TokenResponse(draw(answer), [True] * answer) for _ in range(answers)], row=i) for i in range(rows)]
    learner = Learner(backbone, "policy", SFTSettings(data="-", out="-", micro_tokens=micro), 1e-5, 3)
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        learner.step(groups, SFTLoss())
        seconds.append(time.perf_counter() - began)
    weights = sum(p.numel() for n, p in backbone.model.named_parameters() if "lora_" not in n)
    return {
        "seconds": round(min(seconds[1:]), 3), "gigabytes": round(peak_resident() / 1e9, 2),
        "tokens": sum(g.tokens for g in groups), "weights": weights,
    }  # fmt: skip


def fit(points: list[dict[str, float]], over: str) -> dict[str, float]:
    """Power and line through the points, and how far the farthest point lies off them."""
    x, y = [p[over] for p in points], [p["seconds"] for p in points]
    power, at_one = _line([math.log(v) for v in x], [math.log(v) for v in y])
    slope, start = _line(x, y)
    off = lambda guess: max(abs(guess(a) / b - 1) for a, b in zip(x, y, strict=True))
    return {
        "power": round(power, 3),
        "off_the_power": round(off(lambda a: math.exp(at_one) * a**power), 3),
        "seconds_at_nothing": round(start, 3),
        "off_the_line": round(off(lambda a: start + slope * a), 3),
    }


def _line(x: list[float], y: list[float]) -> tuple[float, float]:
    """Slope and start by least squares."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)
    return slope, mean_y - slope * mean_x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.point:
        print(json.dumps(measure(**{**DEFAULTS, **json.loads(given.point)})))
        return
    found: dict[str, list[dict[str, float]]] = {}
    for axis, points in POINTS.items():
        for point in points:
            command = [sys.executable, "-m", "benchmarks.growth", "--point", json.dumps(point)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found.setdefault(axis, []).append({**point, **json.loads(done.stdout.splitlines()[-1])})
            print(axis, json.dumps(found[axis][-1]), flush=True)
    fits = {axis: fit(points, "weights" if axis == "model" else "tokens") for axis, points in found.items()}
    print("fits", json.dumps(fits), flush=True)
    if given.out:
        with open(given.out, "w", encoding="utf-8") as file:
            file.write(json.dumps({"points": found, "fits": fits}, indent=1) + "\n")


if __name__ == "__main__":
    main()
