"""What can be counted on sampled answers without a judge: whether they stop, how long they are, how much they repeat themselves."""

from collections.abc import Sequence

from manners.core.records import Group


def repeated_share(text: str, n: int = 3) -> float:
    """Share of a text's word n-grams that occurred before in it: 0 for prose, near 1 for a loop; 0 for fewer than n words."""
    words = text.lower().split()
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def describe_samples(groups: Sequence[Group]) -> dict[str, float]:
    """Means over all sampled responses: `stopped` (share that ended by itself), `tokens`, `repeated` (share of repeated 3-grams)."""
    responses = [r for group in groups for r in group.responses]
    count = len(responses) or 1
    return {
        "stopped": sum(r.finish_reason == "stop" for r in responses) / count,
        "tokens": sum(len(r.token_ids or []) for r in responses) / count,
        "repeated": sum(repeated_share(r.text) for r in responses) / count,
    }
