"""The formula against torch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from longclip_lab.errors import LabError
from longclip_lab.models import (
    Clip,
    TextTowerSize,
    add_corner_tokens,
    build_lotlip,
    encode_text_corners,
    text_flops,
)

BERT_BASE = TextTowerSize(layers=12, width=768, inner=3072, embed_dim=768, pooler=True)


@pytest.fixture(scope="module")
def world() -> Clip:
    return build_lotlip("tiny-tower", "world", 0, pretrained_image=False)


def counted(run, ids_BT: torch.Tensor) -> int:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run(ids_BT)
    return counter.get_total_flops()


def ids_of_length(clip: Clip, length: int, world_texts) -> torch.Tensor:
    return clip.tokenize(world_texts([length - 2])).ids_BT[:, :length]


@pytest.mark.parametrize("length", [2, 13, 40])
def test_bert(world, world_texts, length):
    world.model.text.transformer.set_attn_implementation("eager")
    ids_BT = ids_of_length(world, length, world_texts)
    assert text_flops(world, length) == counted(world.encode_text, ids_BT)
    for corners in (1, 3):
        clip = add_corner_tokens(world, corners)
        clip.model.text.transformer.set_attn_implementation("eager")
        run = counted(lambda ids, clip=clip: encode_text_corners(clip, ids), ids_BT)
        assert text_flops(clip, length, corners) == run
        assert text_flops(clip, length) == counted(clip.encode_text, ids_BT)
        registers = add_corner_tokens(world, corners, kind="register")
        expected = counted(registers.encode_text, ids_BT)
        assert text_flops(registers, length, corners, read_off=1) == expected


@pytest.mark.parametrize("length", [2, 13, 40])
def test_clip(tiny, world_texts, length):
    ids_BT = ids_of_length(tiny, length, world_texts)
    assert text_flops(tiny, length) == counted(tiny.encode_text, ids_BT)
    clip = add_corner_tokens(tiny, 3)
    assert text_flops(clip, length, 3) == counted(lambda i: encode_text_corners(clip, i), ids_BT)
    assert text_flops(clip, length) == counted(clip.encode_text, ids_BT)


def test_the_limits_of_figure_4():
    """BERT-base, 32 to 512 tokens: nearly linear, as the layers of width 768 dominate."""
    flops = {limit: text_flops(BERT_BASE, limit - 2, 2) for limit in (32, 128, 512)}
    layer = 8 * 768**2 + 4 * 768 * 3072
    for limit, count in flops.items():
        head = 3 * 4 * 768**2
        assert count == 12 * (limit * layer + 4 * limit**2 * 768) + head
    assert 4 < flops[512] / flops[128] < 4.4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "tokens must be a whole number from 1"),
        ((10, -1), "whole number from 0"),
        ((2.5,), "tokens must be a whole number from 1"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(LabError, match=message):
        text_flops(BERT_BASE, *arguments)
