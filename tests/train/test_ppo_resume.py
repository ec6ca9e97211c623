"""PPO interrupted equals PPO uninterrupted, bit for bit, rollouts included: by SIGKILL at random times."""

import json
from pathlib import Path

import pytest

from manners.core.files import read_json, read_jsonl
from tests.tiny import tiny_folder
from tests.train.test_resume import kill, starter


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("tiny") / "model")


def logged(folder: Path) -> list[dict]:
    """The records of a run without what is time."""
    kept = lambda key: not key.startswith("seconds") and key != "tokens_per_second"
    return [{k: v for k, v in r.items() if kept(k)} for r in read_jsonl(folder / "metrics.jsonl")]


@pytest.mark.parametrize(("value", "seed", "kills"), [("own", 5, 5), ("shared", 6, 2)])
def test_ppo_killed_at_random_times(value, seed, kills, tiny, tmp_path):
    command = ["ppo", f"model={tiny}", f"data={starter('prompts_align.jsonl')}", "out={out}", "format=plain", "reward=length", "rows=12"]
    command += ["rollout_size=8", "batch_size=4", "samples=2", "episodes=48", "max_new_tokens=8", "missing_end=keep", "epochs=2"]
    command += ["learning_rate=1e-3", "save_every=2", "micro_tokens=600", "kl_target=1", "kl_horizon=50", f"value={value}"]
    command += [f"ptx_data={starter('demonstrations.jsonl')}", "ptx_rows=1", "ptx_coef=0.1"]
    report = kill(kills, seed, tmp_path, command)
    calm = Path(report["undisturbed"])
    assert report["finished"] and len(logged(calm)) == 6
    rollouts = {p.name: p.read_bytes() for p in (calm / "rollouts").iterdir()}
    assert len(rollouts) == 7 and len({json.dumps(read_jsonl(calm / "rollouts" / name)) for name in rollouts}) == 7
    for folder in map(Path, report["finished"]):
        assert {p.name: p.read_bytes() for p in (folder / "rollouts").iterdir()} == rollouts
        assert logged(folder) == logged(calm)
        weights = "model/adapter_model.safetensors"
        assert (folder / weights).read_bytes() == (calm / weights).read_bytes()
        ours, theirs = read_json(folder / "manifest.json"), read_json(calm / "manifest.json")
        assert all(ours[key] == theirs[key] for key in ("closing", "beta", "rounds", "policy_of_round", "alarms"))
        assert not list(folder.rglob("*.partial"))
