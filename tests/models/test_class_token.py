"""A vision transformer that ends at its class token has open_clip's own features and gradients."""

from __future__ import annotations

import pytest
import torch

from longclip_lab import models
from longclip_lab.models.build import build_model
from longclip_lab.models.towers import can_end_at_class, encode_at_class
from longclip_lab.training import recipe_for
from longclip_lab.training.data import Batch
from longclip_lab.training.loop import Towers

TEXT = {"context_length": 8, "vocab_size": 20, "width": 64, "heads": 2, "layers": 1}


def build(quick_gelu: bool = False, **vision_cfg) -> torch.nn.Module:
    torch.manual_seed(0)
    vision = {"image_size": 16, "layers": 3, "width": 64, "patch_size": 4, **vision_cfg}
    config = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": TEXT, "quick_gelu": quick_gelu}
    return build_model(config).double()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layers": 1},
        {"quick_gelu": True},
        {"ls_init_value": 0.3},
        {"no_ln_pre": True},
        {"final_ln_after_pool": True},
        {"patch_dropout": 0.5},
    ],
    ids=str,
)
def test_features_and_gradients_are_those_of_the_whole_tower(options):
    model = build(**options)
    pixels_B3HW = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    weights_BD = torch.randn(4, 32, dtype=torch.float64)
    found = []
    for encode in (model.visual, lambda pixels: encode_at_class(model.visual, pixels)):
        model.zero_grad()
        torch.manual_seed(1)  # of patch dropout
        features_BD = encode(pixels_B3HW)
        (features_BD * weights_BD).sum().backward()
        gradients = {name: p.grad for name, p in model.visual.named_parameters()}
        assert None not in gradients.values()
        found.append((features_BD.detach(), gradients))
    assert can_end_at_class(model.visual)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    "options", [{"pool_type": "avg"}, {"attentional_pool": True}, {"output_tokens": True}], ids=str
)
def test_towers_of_which_more_is_read_are_left_alone(options):
    assert not can_end_at_class(build(**options).visual)


def test_timm_towers_and_checkpointed_ones_are_left_alone():
    assert not can_end_at_class(models.load("tiny").model.visual)
    model = build()
    model.set_grad_checkpointing(True)
    assert not can_end_at_class(model.visual)


def test_training_computes_no_more_than_that():
    """The last MLP sees the class token alone."""
    model = build().float()
    pixels_B3HW = torch.randn(2, 3, 16, 16)
    expected_BD = model.encode_image(pixels_B3HW)
    seen = []
    mlp = model.visual.transformer.resblocks[-1].mlp
    mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    towers = Towers(model, recipe_for("longclip"))
    found = towers.image_side(Batch(pixels_B3HW, None, None))
    assert seen == [(2, 64)]
    torch.testing.assert_close(found.features_BD, expected_BD)
