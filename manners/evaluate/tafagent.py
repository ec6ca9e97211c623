"""The attention decay by the rules of tafagent (Apache-2.0), written anew, to set a figure beside that tool's stored ones.

Random tokens (some of its stored data are of real text instead); attention from the last position alone, to the keys at a few distances;
the mean over prompts, layers and heads; least squares of log A on log d without weights, the first key included. How far the choice of
distances moves gamma stands beside it, because it moves it further than alignment does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from manners.core.console import progress
from manners.core.errors import InputError
from manners.evaluate.intervals import ends, resampled_columns
from manners.evaluate.measurement import Measured
from manners.evaluate.results import Result, result
from manners.model.probe import check_length, rope_settings
from manners.model.shift import Speaker
from manners.model.weights import watch
from manners.ops.attention_profile import d90, eta, number, pade_gamma, pdi, power_law, regime

DISTANCES = (10, 20, 30, 50, 100, 200, 500, 1000)
LOWEST, HIGHEST = 1000, 49_000
MARGIN_TOKENS = 50
LONG = 30
"""The second window: distances of this many tokens or more."""


def random_prompts(length: int, prompts: int, seed: int, vocabulary: int) -> list[list[int]]:
    """Random tokens as the protocol draws them. Raises InputError for a vocabulary too small for it."""
    if vocabulary <= LOWEST + 1:
        raise InputError(f"the protocol draws tokens from number {LOWEST:,} on, and the model has {vocabulary:,}; use protocol=profile.")
    return np.random.default_rng(seed).integers(LOWEST, min(vocabulary - 1, HIGHEST), (prompts, length)).tolist()


def length_of(distances: Sequence[int]) -> int:
    """Tokens of a prompt. Raises InputError for a distance below 1."""
    if min(distances) < 1:
        raise InputError(f"distances are of 1 token or more, not {min(distances)}.")
    return max(distances) + MARGIN_TOKENS


def last_rows(
    distances: Sequence[int], sets: Mapping[str, Sequence[Sequence[int]]], models: Mapping[str, Speaker], version: int
) -> Measured:
    """Gamma of each model and set over all distances and over those from 30 on, with intervals over prompts, and over each window in
    `details`."""
    distances, length = sorted(set(distances)), length_of(distances)
    different = dict.fromkeys(models.values())
    rows: list[dict[str, Any]] = []
    results: list[Result] = []
    details: dict[str, Any] = {"protocol": "tafagent", "length": length, "distances": distances, "sets": {}}
    for model in different:
        check_length(model.backbone.model, length)
    with progress() as bar:
        task = bar.add_task("prompts", total=sum(map(len, sets.values())) * len(different), note="")
        for name, prompts in sets.items():
            found: dict[Speaker, np.ndarray] = {}
            for model in different:
                each = []
                for ids in prompts:
                    each.append(last_row(model, ids)[distances])
                    bar.update(task, advance=1)
                found[model] = np.stack(each)
            curves = {who: found[model] for who, model in models.items()}
            for i in range(len(prompts)):
                row = {"id": f"{name}-{i}", "set": name, "tokens": length, "values": {}}
                rows.append(row | {who: curve[i].tolist() for who, curve in curves.items()})
            told, held = summarise(distances, curves, version, name)
            held["pade"] = predicted(models["model"], held["models"]["model"]["windows"][0]["gamma"], distances[-1])
            results += told
            details["sets"][name] = held
    return Measured(rows, results, [], details)


def predicted(model: Speaker, gamma: float | None, length: int) -> dict[str, Any] | None:
    """What the tool makes of the RoPE base and of gamma; None for a model without RoPE."""
    rope = next(iter(rope_settings(model.backbone.model.config.get_text_config())), {})
    theta = rope.get("rope_theta")
    if not theta:
        return None
    told = {"theta": theta, "length": length, "gamma": pade_gamma(theta, length)}
    return told if gamma is None else told | {"eta": eta(gamma, theta, length), "pdi": pdi(gamma, theta, length), "d90": d90(gamma, length)}


def last_row(model: Speaker, token_ids: Sequence[int]) -> np.ndarray:
    """Attention of the last position by distance, the mean over layers and heads, (D,)."""
    layers: list[np.ndarray] = []
    watch(*model, token_ids, lambda _, weights, __: layers.append(weights[:, -1].flip(-1).double().mean(0).cpu().numpy()), last_only=True)
    return np.mean(layers, 0)


def summarise(
    distances: Sequence[int], curves: Mapping[str, np.ndarray], version: int, name: str = "random"
) -> tuple[list[Result], dict[str, Any]]:
    """Figures from the curves (prompts, distances) of each model: `gamma`, `gamma_long`, and against a base `delta_gamma...`."""
    windows = [start for start in distances if sum(d >= start for d in distances) >= 3]
    main = {"gamma": windows[0]} | ({"gamma_long": min(w for w in windows if w >= LONG)} if windows[-1] >= LONG else {})
    again = {who: resampled_columns(curve) for who, curve in curves.items()}
    place = {start: np.array([d >= start for d in distances]) for start in windows}
    fit = lambda values, start: power_law(np.array(distances)[place[start]], values[..., place[start]])
    prefix = {"model": "", "base": "base_", "control": "control_"}
    results: list[Result] = []

    def add(called: str, value: Any, drawn_B: np.ndarray, prompts: int) -> None:
        low, high = ends(drawn_B) if np.isfinite(drawn_B).all() else (None, None)
        estimate = {"value": number(value), "low": low, "high": high, "n": prompts}
        results.append(result(called, estimate, version=version, direction="none", set=name))

    details: dict[str, Any] = {"models": {}}
    for who, curve in curves.items():
        mean = curve.mean(0)
        for called, start in main.items():
            add(prefix[who] + called, fit(mean, start).gamma, fit(again[who], start).gamma, len(curve))
        details["models"][who] = {
            "curve": [{"distance": d, "attention": float(a)} for d, a in zip(distances, mean, strict=True)],
            "windows": [{"from": start, **fit(mean, start).at(())} for start in windows],
        }
        gamma = details["models"][who]["windows"][0]["gamma"]
        if gamma is not None:
            details["models"][who]["regime"], details["models"][who]["to_threshold"] = regime(gamma)
    if "base" in curves:
        for called, start in main.items():
            value = fit(curves["model"].mean(0), start).gamma - fit(curves["base"].mean(0), start).gamma
            add(f"delta_{called}", value, fit(again["model"], start).gamma - fit(again["base"], start).gamma, len(curves["base"]))
    return results, details
