"""Pipelines of `tests.generation.pipelines`."""

from __future__ import annotations

import pytest
import transformers

from longclip_lab import text
from longclip_lab.models.formats.export import write_tokenizer
from tests.generation.pipelines import (
    LAYERS,
    WIDTH,
    fine_tuned,
    quiet,
    stable_diffusion,
    stable_diffusion_xl,
)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, text.get_tokenizer("clip"), 77)
    return transformers.CLIPTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def sd(tokenizer):
    return quiet(stable_diffusion(tokenizer))


@pytest.fixture(scope="session")
def xl(tokenizer):
    return quiet(stable_diffusion_xl(tokenizer))


@pytest.fixture(scope="session")
def long_clip(sd, tmp_path_factory):
    """A text tower of CLIP-L's size here, with 248 positions and weights of its own."""
    return fine_tuned(tmp_path_factory, WIDTH, LAYERS)
