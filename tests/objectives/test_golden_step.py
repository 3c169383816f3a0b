"""A whole training step of the official code: its gradients, through both towers and the PCA.

The golden file holds 40 random pictures and token pairs and the gradients that the official
implementation computed for the golden checkpoint; of its two position tables the rows that
are in use (the first 20 of one, the rest of the other).
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from longclip_lab.models import load
from longclip_lab.objectives import longclip_loss, primary_components
from longclip_lab.objectives.contrastive import symmetric_cross_entropy

GOLDEN = Path(__file__).parents[1] / "golden"


def match_official(image_BD, long_BD, short_BD, scale):
    return longclip_loss(image_BD, long_BD, short_BD, scale, match_official=True).total


def exact(image_BD, long_BD, short_BD, scale):
    """The same loss with the projector's own gradient in place of the SVD's."""
    image_BD = F.normalize(image_BD)
    coarse_BD = primary_components(image_BD, 32)
    long = symmetric_cross_entropy(image_BD, F.normalize(long_BD), scale, 0.1)
    return long + symmetric_cross_entropy(coarse_BD, F.normalize(short_BD), scale, 0.1)


@pytest.mark.parametrize("loss", [match_official, exact])
def test_gradients_of_the_official_step(loss):
    golden = load_file(GOLDEN / "longclip-tiny-gradients.safetensors")
    clip = load(GOLDEN / "longclip-tiny.pt")
    model = clip.model
    long_BD, short_BD = (
        clip.encode_text(golden[f"tokens_{length}"].long()) for length in ("long", "short")
    )
    image_BD = clip.encode_image(golden["image"])
    loss(image_BD, long_BD, short_BD, model.logit_scale.exp()).backward()
    gradients = {
        "visual.proj": model.visual.proj.grad,
        "text_projection": model.text_projection.grad,
        "positional_embedding": model.positional_embedding.grad,
    }
    for name, ours in gradients.items():
        expected = golden[f"grad_{name}"]
        assert torch.linalg.norm(ours - expected) < 1e-5 * torch.linalg.norm(expected), name
