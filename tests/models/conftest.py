"""Models and tokens for this room's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from longclip_lab.models import Clip, new_tiny


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of numbers that were computed with the papers' own code."""
    return Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def tiny() -> Clip:
    """A tiny CLIP with random weights; tests must not change it."""
    return new_tiny(seed=3)


@pytest.fixture(scope="session")
def random_tokens() -> Callable[[list[int], int, int], torch.Tensor]:
    """A function that makes token ids of given lengths."""
    return _random_tokens


@pytest.fixture(scope="session")
def world_texts() -> Callable[[list[int]], list[str]]:
    """A function that makes texts of given numbers of words."""
    return _world_texts


def _random_tokens(lengths: list[int], vocab_size: int, context_length: int) -> torch.Tensor:
    """Token ids [B, context_length], each text ended by the largest id and padded by 0."""
    generator = torch.Generator().manual_seed(0)
    tokens_BT = torch.zeros(len(lengths), context_length, dtype=torch.long)
    for row_T, length in zip(tokens_BT, lengths, strict=True):
        row_T[:length] = torch.randint(3, vocab_size - 1, (length,), generator=generator)
        row_T[length - 1] = vocab_size - 1
    return tokens_BT


def _world_texts(lengths: list[int]) -> list[str]:
    """Texts of words that are all known to the world's tokenizer."""
    words = ["red", "boat", "left", "of", "the", "house"]
    return [" ".join(words[i % len(words)] for i in range(length)) for length in lengths]
