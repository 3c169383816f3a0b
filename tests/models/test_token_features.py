"""Towers taken apart: the parts make the whole, and tokens end where pooled features do."""

from __future__ import annotations

import open_clip
import pytest
import torch

from longclip_lab import models
from longclip_lab.errors import LabError
from longclip_lab.models import build_lotlip, encode_image_tokens, encode_text_tokens
from longclip_lab.models.towers import finish_image, frozen_part, image_states

TEXT = {"context_length": 12, "vocab_size": 50, "width": 16, "heads": 2, "layers": 2}
VISION = {"image_size": 32, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16}


@pytest.fixture(scope="module")
def own():
    torch.manual_seed(0)
    return open_clip.CLIP(embed_dim=8, vision_cfg=VISION, text_cfg=TEXT).eval()


@pytest.fixture(scope="module")
def lotlip():
    return build_lotlip("tiny-tower", "world", 0, embed_dim=24)


@torch.no_grad()
def test_both_parts_make_the_whole(own, lotlip):
    pixels_B3HW = torch.randn(3, 3, 32, 32)
    whole = own.encode_image(pixels_B3HW)
    parts = finish_image(own.visual, image_states(own.visual, pixels_B3HW))
    assert torch.allclose(parts, whole, atol=1e-5)
    assert frozen_part(own.visual) is own.visual
    visual = lotlip.model.visual
    pixels_B3HW = torch.randn(3, 3, 72, 72)
    parts = finish_image(visual, image_states(visual, pixels_B3HW))
    assert torch.allclose(parts, lotlip.encode_image(pixels_B3HW), atol=1e-5)
    assert {id(p) for p in frozen_part(visual).parameters()} == {
        id(p) for p in visual.parameters() if not p.requires_grad
    }


@torch.no_grad()
def test_patches(own, lotlip):
    assert encode_image_tokens(own, torch.randn(3, 3, 32, 32)).shape == (3, 4, 8)
    assert not own.visual.transformer._forward_hooks
    assert encode_image_tokens(lotlip.model, torch.randn(2, 3, 72, 72)).shape == (2, 36, 24)


@torch.no_grad()
def test_the_end_tokens_row_is_the_texts_feature(own):
    ids_BT = torch.tensor([[48, 3, 49, 0, 0], [48, 3, 4, 5, 49]])
    tokens_BTD, mask_BT = encode_text_tokens(own, ids_BT)
    assert mask_BT.tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    features_BD = models.towers.encode_tokens(own, ids_BT)
    ends_BD = torch.stack([tokens_BTD[0, 2], tokens_BTD[1, 4]])
    assert torch.allclose(ends_BD, features_BD, atol=1e-5)


@torch.no_grad()
def test_padding_changes_no_token(lotlip):
    texts = ["a red boat", "a red boat on a lake under a clear sky"]
    ids_BT = lotlip.tokenize(texts).ids_BT
    tokens_BTD, mask_BT = encode_text_tokens(lotlip.model, ids_BT)
    alone_BTD, _ = encode_text_tokens(lotlip.model, ids_BT[:1])
    assert mask_BT.sum(dim=1).tolist() == [5, 12]
    assert torch.allclose(tokens_BTD[:1, :5], alone_BTD, atol=1e-5)


def test_towers_without_tokens_are_refused(lotlip):
    corners = build_lotlip("tiny-tower", "world", 2)
    with pytest.raises(LabError, match="without corner tokens"):
        encode_text_tokens(corners.model, corners.tokenize("a boat").ids_BT)
    resnet = open_clip.CLIP(
        embed_dim=8,
        text_cfg=TEXT,
        vision_cfg={"image_size": 32, "layers": [1, 1, 1, 1], "width": 8},
    )
    with pytest.raises(LabError, match="ModifiedResNet has none"):
        encode_image_tokens(resnet, torch.randn(1, 3, 32, 32))
