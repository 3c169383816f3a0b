"""Tiny random models of the adapters' architectures, and how their releases name the weights."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
import transformers

WIDTH, WORDS, TOKENS = 64, 30522, 40


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """A short text and a longer one."""
    return ["A red boat.", "two children fly a very long kite on the beach, far from the dog"]


@pytest.fixture(scope="session")
def ids_BT() -> torch.Tensor:
    """Token ids of BERT's form for two texts, the first padded."""
    ids_BT = torch.randint(1000, 30000, (2, 9), generator=torch.Generator().manual_seed(0))
    ids_BT[:, 0], ids_BT[0, 5], ids_BT[1, 8] = 101, 102, 102
    ids_BT[0, 6:] = 0
    return ids_BT


@pytest.fixture(scope="session")
def pictures() -> Callable[[int], np.ndarray]:
    """A function that makes three random pictures of a size, uint8 [3, H, W, 3]."""
    rng = np.random.default_rng(0)
    return lambda size: rng.integers(0, 256, (3, size, size, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def text_tower() -> Callable[..., transformers.BlipTextModel]:
    """A function that makes a random text encoder: BERT with a second attention for pictures.

    transformers' own copy of BLIP's med.py, which is not the class that the lab rebuilds with.
    """

    def make(layers: int, words: int = WORDS, seed: int = 0) -> transformers.BlipTextModel:
        config = transformers.BlipTextConfig(
            vocab_size=words,
            hidden_size=WIDTH,
            encoder_hidden_size=WIDTH,
            intermediate_size=96,
            num_hidden_layers=layers,
            num_attention_heads=1,
            max_position_embeddings=TOKENS,
            initializer_range=0.2,
        )
        torch.manual_seed(seed)
        return transformers.BlipTextModel(config, add_pooling_layer=False).eval()

    return make


@pytest.fixture(scope="session")
def shaken() -> Callable[[torch.nn.Module], torch.nn.Module]:
    """A function that gives a model's weights random values, so that none is 0, 1 or its twin."""

    def shake(model: torch.nn.Module) -> torch.nn.Module:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        return model.eval()

    return shake


@pytest.fixture(scope="session")
def renamed() -> Callable[..., dict[str, torch.Tensor]]:
    """A function that renames weights by pairs of pattern and replacement, in their order."""

    def rename(model: torch.nn.Module, *pairs: tuple[str, str]) -> dict[str, torch.Tensor]:
        weights = {}
        for name, tensor in model.state_dict().items():
            for pattern, replacement in pairs:
                name = re.sub(pattern, replacement, name)
            weights[name] = tensor.clone()
        return weights

    return rename
