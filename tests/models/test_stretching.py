"""A stretched model is a model that open_clip itself runs at the new length."""

from __future__ import annotations

import copy

import pytest
import torch

from longclip_lab.errors import LabError
from longclip_lab.models import Clip, stretch
from longclip_lab.models.build import assemble, build_model, preprocess_card
from longclip_lab.text import get_tokenizer


@pytest.fixture(scope="module")
def custom() -> Clip:
    """A model whose text tower is a module of its own."""
    model_cfg = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8},
        "text_cfg": {"context_length": 30, "vocab_size": 80, "width": 64, "heads": 2, "layers": 1},
        "custom_text": True,
    }
    model = build_model(model_cfg)
    return assemble(model, model_cfg, get_tokenizer("world"), preprocess_card(model), "custom")


def test_the_original_is_untouched(tiny):
    before = copy.deepcopy(tiny.model.state_dict())
    card = copy.deepcopy(tiny.card)
    stretch(tiny)
    assert tiny.context_length == 77
    assert tiny.card == card
    assert all(torch.equal(tiny.model.state_dict()[name], before[name]) for name in before)


@pytest.mark.parametrize("method", ["kps", "linear", "random"])
def test_open_clip_runs_it_at_the_full_length(tiny, method, random_tokens):
    long = stretch(tiny, method=method)
    assert long.context_length == long.model.context_length == 248
    tokens_BT = random_tokens([248, 30], tiny.vocab_size, 248)
    with torch.no_grad():
        expected_BD = long.model.encode_text(tokens_BT)
        torch.testing.assert_close(long.encode_text(tokens_BT), expected_BD)
        assert torch.isfinite(expected_BD).all()


def test_texts_within_the_kept_positions_keep_their_features(tiny, random_tokens):
    tokens_BT = random_tokens([20, 12], tiny.vocab_size, 77)
    with torch.no_grad():
        expected_BD = tiny.encode_text(tokens_BT)
        torch.testing.assert_close(stretch(tiny).encode_text(tokens_BT), expected_BD)
        assert not torch.allclose(
            stretch(tiny, method="linear").encode_text(tokens_BT), expected_BD
        )


def test_the_mask_stays_causal_and_the_card_is_right(tiny):
    long = stretch(tiny, keep=10, ratio=2)
    above = torch.ones(144, 144, dtype=torch.bool).triu(1)
    assert (long.model.attn_mask[above] == float("-inf")).all()
    assert (long.model.attn_mask[~above] == 0).all()
    assert "attn_mask" not in long.model.state_dict()
    assert long.card["positions"] == {"method": "kps", "keep": 10, "ratio": 2, "length": 144}
    assert long.card["model_cfg"]["text_cfg"]["context_length"] == 144
    assert long.name == "tiny-untrained+kps144"


def test_cards_of_the_rivals(tiny):
    cards = {
        name: stretch(tiny, method=name).card["positions"] for name in ("linear", "random", "none")
    }
    assert cards["linear"] == {"method": "linear", "keep": 0, "ratio": 248 / 77, "length": 248}
    assert cards["random"] == {"method": "random", "keep": 77, "ratio": 1, "length": 248}
    assert cards["none"] == {"method": "none", "keep": 0, "ratio": 1, "length": 77}


def test_any_length(tiny):
    assert stretch(tiny, length=300).context_length == 300
    assert stretch(tiny, length=60).context_length == 60


def test_a_text_tower_of_its_own(custom, random_tokens):
    long = stretch(custom, keep=5, ratio=3)
    assert (
        long.model.context_length == long.model.text.context_length == long.model.text.num_pos == 80
    )
    tokens_BT = random_tokens([80, 8], 80, 80)
    with torch.no_grad():
        torch.testing.assert_close(long.encode_text(tokens_BT), long.model.encode_text(tokens_BT))


def test_frozen_positions_stay_frozen(tiny):
    frozen = copy.deepcopy(tiny)
    frozen.model.positional_embedding.requires_grad_(False)
    assert not stretch(frozen).model.positional_embedding.requires_grad
    assert stretch(tiny).model.positional_embedding.requires_grad


def test_a_tower_without_plain_positions(custom):
    model_cfg = copy.deepcopy(custom.card["model_cfg"])
    model_cfg["text_cfg"]["embed_cls"] = True
    model = build_model(model_cfg)
    clip = assemble(model, model_cfg, custom.tokenizer, preprocess_card(model), "with-class-token")
    with pytest.raises(LabError, match="no plain table of learned positions"):
        stretch(clip)


def test_nothing_left_to_stretch(tiny):
    with pytest.raises(LabError, match="nothing would be left to stretch"):
        stretch(tiny, keep=77)
