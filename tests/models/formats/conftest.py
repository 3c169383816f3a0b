"""Tiny random models of the architectures that are released, and how far two answers are apart."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from longclip_lab.models import Clip
from longclip_lab.models.build import assemble, build_model, preprocess_card
from longclip_lab.text import get_tokenizer

IMAGE_TOWERS = {
    "ViT": {"image_size": 32, "layers": 2, "width": 128, "patch_size": 8},
    "B/32": {"image_size": 64, "layers": 1, "width": 64, "patch_size": 32},
    "336px": {"image_size": 336, "layers": 1, "width": 64, "patch_size": 14},
    "ResNet": {"image_size": 64, "layers": [1, 2, 1, 1], "width": 16},
}


@pytest.fixture(scope="session")
def made() -> Callable[..., Clip]:
    """A function that makes a CLIP; the same one for the same arguments, tests must not change it.

    Heads of 64, weights away from what modules start with; `vocab` is small where nobody asks for
    a tokenizer.
    """
    return cache(_made)


@pytest.fixture(scope="session")
def apart() -> Callable[[torch.Tensor, torch.Tensor], float]:
    """The largest difference, relative to the largest value."""
    return _apart


@pytest.fixture(scope="session")
def inputs() -> Callable[[Clip], tuple[torch.Tensor, torch.Tensor]]:
    """Random pictures [2, 3, H, W] and texts [B, T] of 2 to T tokens for a model."""
    return _inputs


def _made(
    tower: str = "ViT", quick: bool = True, length: int = 77, vocab: int = 512, **text: Any
) -> Clip:
    model_cfg = {
        "embed_dim": 32,
        "quick_gelu": quick,
        "vision_cfg": IMAGE_TOWERS[tower],
        "text_cfg": {
            "context_length": length,
            "vocab_size": vocab,
            "width": 64,
            "heads": 1,
            "layers": 2,
            **text,
        },
    }
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(length + quick)
        model = build_model(model_cfg)
        for parameter in model.parameters():
            parameter += 0.03 * torch.randn_like(parameter)
    name = f"made {tower}"
    card = preprocess_card(model)
    return assemble(model, model_cfg, get_tokenizer("clip"), card, name, provenance="random")


def _apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def _inputs(clip: Clip) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    length, end = clip.context_length, min(clip.vocab_size, 49408) - 1
    lengths = [2, 21, length // 2, length]
    texts_BT = torch.zeros(len(lengths), length, dtype=torch.long)
    for row_T, count in zip(texts_BT, lengths, strict=True):
        row_T[:count] = torch.randint(1, end - 1, (count,), generator=generator)
        row_T[0], row_T[count - 1] = end - 1, end
    pixels = torch.randn(2, 3, clip.image_size, clip.image_size, generator=generator)
    return pixels, texts_BT
