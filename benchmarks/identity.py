"""Does a sample depend on its company? The same samples with other slot counts and in another order, token by token.

    python -m benchmarks.identity --model DIR [--samples 200] [--tokens 64] [--slots 32 4] [--alone 20]

Prompts are those of the starter set, temperature 1. The first of `--slots` is the reference; the others draw all samples again, in
reverse order, and `--alone` samples are drawn with one slot. Prints one JSON line for packed and one for plain weights: for each kind
of other company how many samples differ anywhere (in a token or in a bit of a log-probability) and which share that is, whether
another number of rows had to be done without, and the largest difference of a log-probability from the scorer's.
"""

import argparse
import json
import time
from importlib.resources import files
from typing import Any

import torch

from manners.core.files import read_jsonl
from manners.core.records import Prompt, TokenGroup, TokenResponse
from manners.data.chat import ChatFormat
from manners.model import cache
from manners.model.decoder import can_pack
from manners.model.draw import Sampling
from manners.model.load import load_tokenizer, resolve
from manners.model.logprob import load_frozen
from manners.model.sampler import Drawn, Sampler
from manners.model.tree import pack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--weights", choices=["both", "packed", "plain"], default="both")
    parser.add_argument("--slots", type=int, nargs="+", default=[32, 4])
    for name, default in {"samples": 200, "tokens": 64, "alone": 20}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    source = resolve(given.model)
    tokenizer = load_tokenizer(source)
    fmt = ChatFormat.of(tokenizer, "plain")
    backbone, role = load_frozen(source, tokenizer)
    texts = [row["prompt"] for row in read_jsonl(files("manners.data.starter") / "prompts_align.jsonl")]
    ids = [fmt.prompt_ids(Prompt.user(texts[i % len(texts)])) for i in range(given.samples)]
    sampling = Sampling(max_new_tokens=given.tokens)

    def draw(rows: list[int], slots: int, packed: bool) -> dict[int, Drawn]:
        sampler = Sampler(backbone, fmt, role=role, slots=slots, packed=packed)
        drawn = sampler.sample_ids([ids[i] for i in rows], sampling, rows=rows, stop_ids=fmt.stop_ids)
        return {row: sample for row, [sample] in zip(rows, drawn, strict=True)}

    kinds = {"both": (True, False), "packed": (True,), "plain": (False,)}[given.weights]
    for packed in (kind for kind in kinds if not kind or can_pack(backbone.model)):
        began, every = time.perf_counter(), list(range(given.samples))
        reference = draw(every, given.slots[0], packed)
        said = {"weights": "packed float16" if packed else "plain float32", "samples": given.samples, "tokens": given.tokens}
        for slots in given.slots[1:]:
            again = draw(every[::-1], slots, packed)
            said |= _divergence(f"with {slots} slots, in reverse", reference, again)
        said |= _divergence("alone", reference, draw(every[: given.alone], 1, packed))
        said["row or key numbers without a stable one near"] = sorted(cache._said)
        said["largest gap to the scorer, nats a token"] = _gap(backbone, role, ids, reference)
        print(json.dumps({**said, "seconds": round(time.perf_counter() - began, 1)}), flush=True)


def _divergence(company: str, reference: dict[int, Drawn], again: dict[int, Drawn]) -> dict[str, Any]:
    """How many of the samples drawn again differ, and their share."""
    count = sum(reference[row].token_ids != drawn.token_ids or reference[row].logprobs != drawn.logprobs for row, drawn in again.items())
    return {company: {"drawn": len(again), "differ": count, "share": round(count / len(again), 4)}}


def _gap(backbone, role: str, ids: list[list[int]], drawn: dict[int, Drawn]) -> float:
    gap = 0.0
    for row, sample in drawn.items():
        tree = pack([TokenGroup(ids[row], [TokenResponse(sample.token_ids, [True] * len(sample.token_ids))])])
        with torch.no_grad(), backbone.role(role):
            scored = backbone.score(tree).logp_N
        gap = max(gap, float((scored.double() - torch.tensor(sample.policy_logprobs, dtype=torch.float64)).abs().max()))
    return round(gap, 6)


if __name__ == "__main__":
    main()
