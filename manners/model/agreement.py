"""Before anything is trained on samples: does the sampler say of its tokens what the scorer says of them?"""

from collections.abc import Sequence

import torch

from manners.core.errors import MannersError
from manners.core.records import TokenGroup, TokenResponse
from manners.model.decoder import forget
from manners.model.draw import Sampling
from manners.model.roles import Backbone
from manners.model.sampler import Sampler, SamplerFormat
from manners.model.tree import pack

TOLERANCE = {torch.float64: 1e-5, torch.float32: 2e-3, torch.bfloat16: 0.3, torch.float16: 0.1}
"""Largest difference of a token's log-probability, in nats, that is rounding."""


def sampler_gap(backbone: Backbone, role: str, fmt: SamplerFormat, prompt_ids: Sequence[int], tokens: int = 6) -> float:
    """Largest difference in nats between the sampler's and the scorer's log-probabilities of a few sampled tokens.

    Raises MannersError if it is more than rounding: then cache, positions or adapters differ between the two.
    """
    sampling = Sampling(max_new_tokens=tokens, stage="agreement")
    # Not packed, so that rounding to float16 hides no fault; nothing is kept of this copy.
    [[drawn]] = Sampler(backbone, fmt, role=role, slots=1, packed=False).sample_ids([prompt_ids], sampling, stop_ids=fmt.stop_ids)
    forget(backbone)
    group = TokenGroup(list(prompt_ids), [TokenResponse(drawn.token_ids, [True] * len(drawn.token_ids))])
    with torch.no_grad(), backbone.role(role):
        scored = backbone.score(pack([group])).logp_N
    gap = float((scored.double().cpu() - torch.tensor(drawn.policy_logprobs, dtype=torch.float64)).abs().max())
    limit = TOLERANCE.get(backbone.model.dtype, 2e-3)
    if not gap <= limit:
        raise MannersError(
            f"sampling and scoring disagree on {type(backbone.model).__name__} by {gap:.2g} nats a token (rounding is below {limit:g}); "
            "nothing can be trained on its samples. Please report the model."
        )
    return gap
