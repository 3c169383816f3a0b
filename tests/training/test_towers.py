"""The towers in training: exact text parts, weight decay, frozen statistics, kept positions."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from longclip_lab.training import Recipe
from longclip_lab.training.data import CaptionSampler
from longclip_lab.training.loop import (
    KeptPositions,
    Towers,
    encode_in_buckets,
    parameter_groups,
    prepare,
)


@pytest.mark.parametrize("parts", [1, 3, 4, 24])
def test_parts_change_nothing_but_the_time(tiny, few, parts):
    texts, _ = CaptionSampler(tiny, Recipe()).tokenize(few.long)
    alone_BD = torch.cat([tiny.encode_text(ids_T[None]) for ids_T in texts.padded(0)])
    assert torch.allclose(encode_in_buckets(tiny.model, texts, parts), alone_BD, atol=1e-5)


def names_by_decay(model, recipe):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, recipe)
    return [{names[id(parameter)] for parameter in group["params"]} for group in groups]


def test_decay_spares_norms_biases_positions_and_scale_unless_match_official(tiny):
    decayed, spared = names_by_decay(tiny.model, Recipe())
    assert {"logit_scale", "positional_embedding", "ln_final.weight"} <= spared
    assert {"visual.trunk.pos_embed", "transformer.resblocks.0.mlp.c_fc.bias"} <= spared
    assert {"token_embedding.weight", "transformer.resblocks.0.mlp.c_fc.weight"} <= decayed
    everything, nothing = names_by_decay(tiny.model, Recipe(match_official=True))
    assert nothing == set()
    assert everything == decayed | spared


def test_locked_weights_are_not_given_to_the_optimizer(tiny):
    model = copy.deepcopy(tiny.model)
    model.visual.requires_grad_(False)
    decayed, spared = names_by_decay(model, Recipe())
    assert not any(name.startswith("visual") for name in decayed | spared)


def test_logit_scale_starts_where_the_recipe_says(tiny):
    def start(recipe):
        clip = replace(tiny, model=copy.deepcopy(tiny.model))
        return prepare(clip, recipe).model.logit_scale.item()

    assert start(Recipe()) == tiny.model.logit_scale.item()
    assert start(Recipe(match_official=True)) == pytest.approx(math.log(100))
    assert start(Recipe(match_official=True, start_logit_scale=2.0)) == 2.0


def test_running_statistics_stay_frozen():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    towers = Towers(model, Recipe()).train()
    before = model[1].running_mean.clone()
    model(torch.randn(2, 3, 8, 8))
    assert towers.training
    assert model[0].training
    assert torch.equal(model[1].running_mean, before)


@pytest.mark.parametrize(("freeze", "moved"), [(True, 0), (False, 20)])
def test_kept_positions_hold_still_even_under_weight_decay(tiny, freeze, moved):
    clip = replace(tiny, model=copy.deepcopy(tiny.model))
    positions_TW = clip.model.positional_embedding
    before_TW = positions_TW.detach().clone()
    kept = KeptPositions(clip, Recipe(freeze_kept=freeze))
    optimizer = torch.optim.AdamW([positions_TW], lr=0.1, weight_decay=0.5)
    for _ in range(3):
        positions_TW.grad = torch.ones_like(positions_TW)
        kept.clear_gradient()
        optimizer.step()
        kept.restore()
    changed_T = (positions_TW != before_TW).any(dim=1)
    assert int(changed_T[:20].sum()) == moved
    assert bool(changed_T[20:].all())


@pytest.mark.parametrize("changes", [{"length_buckets": 4}, {"grad_checkpointing": True}])
def test_texts_end_to_end_change_nothing_but_the_time(tiny, few, changes):
    recipe = replace(Recipe(), **changes)
    texts, _ = CaptionSampler(tiny, Recipe()).tokenize(few.long)
    packed, by_parts = (
        prepare(replace(tiny, model=copy.deepcopy(tiny.model)), r) for r in (Recipe(), recipe)
    )
    assert packed.packs
    assert not by_parts.packs
    one, other = (towers.text_features(texts).pooled_BD for towers in (packed, by_parts))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
