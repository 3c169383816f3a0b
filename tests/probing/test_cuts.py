"""All prefixes in one pass are what each prefix gives alone."""

from __future__ import annotations

import pytest
import torch

from longclip_lab import world
from longclip_lab.models import new_tiny, stretch
from longclip_lab.probing.truncation import _encode_one_by_one, encode_cuts


@pytest.mark.parametrize("length", [77, 248])
def test_one_pass_equals_cut_by_cut(length):
    clip = new_tiny(seed=1)
    if length == 248:
        clip = stretch(clip, keep=20, ratio=4)
    texts = [*world.pairs(4).long, *world.pairs(3).short, "A red boat.", "Boat"]
    tokens = clip.tokenize(texts)
    cuts = [1, 2, 5, 16, 40, length - 2]
    together = encode_cuts(clip, tokens, cuts, batch_size=4)
    with torch.inference_mode():
        alone = _encode_one_by_one(clip, tokens.ids_BT, tokens.lengths_B, cuts)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    whole = clip.encode_text(tokens.ids_BT)
    torch.testing.assert_close(together[-1], whole, rtol=1e-4, atol=1e-5)
