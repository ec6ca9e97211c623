"""The start-up check that the sampler says of its tokens what the scorer says."""

from unittest.mock import patch

import pytest
import torch

from manners.core.errors import MannersError
from manners.model.agreement import sampler_gap
from manners.model.cache import SlotCache
from manners.model.roles import BASE, Backbone
from tests.families import tiny


class Format:
    stop_ids = frozenset({2})

    def prompt_ids(self, prompt):
        return [5, 6]

    def decode(self, token_ids):
        return ""


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt-oss"])
def test_they_agree(family):
    assert sampler_gap(Backbone(tiny(family, dtype=torch.float32)), BASE, Format(), [5, 6, 7, 8]) < 2e-3


def test_a_cache_that_forgets_is_refused():
    honest = SlotCache.fill

    def forgetful(self, slot, prompt):
        honest(self, slot, prompt)
        for keys, _ in self._layers:
            keys[slot, :, 0] = 0

    backbone = Backbone(tiny("llama", dtype=torch.float32))
    with patch.object(SlotCache, "fill", forgetful), pytest.raises(MannersError, match="LlamaForCausalLM"):
        sampler_gap(backbone, BASE, Format(), [5, 6, 7, 8])
