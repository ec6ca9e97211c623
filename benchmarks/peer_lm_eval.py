"""The other side of `lm_eval_speed.py`: lm-eval's own transformers runner. Runs where lm-eval is installed; imports nothing of ours.

    python peer_lm_eval.py MODEL FOLDER TASK BATCH_SIZE > result.json

FOLDER holds the task files. The last line on stdout is {"seconds", "rows": [{"doc_id", "logps", "acc"}], "accuracy"}. Loading the model
and the task is not timed.
"""

import json
import sys
import time


def main() -> None:
    model, folder, task, batch_size = sys.argv[1:]
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    lm = HFLM(pretrained=model, device="cpu", dtype=torch.float32, batch_size=int(batch_size))
    timed = Timed(lm)
    lm.loglikelihood = timed.loglikelihood
    started = time.perf_counter()
    found = simple_evaluate(model=lm, tasks=[task], task_manager=TaskManager(include_path=folder), bootstrap_iters=0, log_samples=True)
    whole = time.perf_counter() - started
    samples = sorted(found["samples"][task], key=lambda sample: sample["doc_id"])
    rows = [{"doc_id": s["doc_id"], "logps": [float(r[0][0]) for r in s["resps"]], "acc": float(s["acc"])} for s in samples]
    accuracy = found["results"][task]["acc,none"]
    print(json.dumps({"seconds": timed.seconds, "whole": whole, "accuracy": accuracy, "rows": rows, "threads": torch.get_num_threads()}))


class Timed:
    """The runner's log-likelihoods with the seconds that they take: tokenizing and computing, not building prompts or metrics."""

    def __init__(self, lm):
        self.run, self.seconds = lm.loglikelihood, 0.0

    def loglikelihood(self, requests, **options):
        started = time.perf_counter()
        found = self.run(requests, **options)
        self.seconds += time.perf_counter() - started
        return found


if __name__ == "__main__":
    main()
