"""Stretched positions: the official code's numbers, their properties, and a stretched model."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from longclip_lab.errors import LabError
from longclip_lab.models import Clip, stretch
from longclip_lab.models.build import assemble, build_model, preprocess_card
from longclip_lab.models.kps import new_positions, stretch_positions, stretched_length
from longclip_lab.text import get_tokenizer

# --- Tables ---


def table(length: int, width: int = 6) -> torch.Tensor:
    return torch.randn(length, width, generator=torch.Generator().manual_seed(length))


def test_equals_the_official_code(golden):
    expected = load_file(golden / "kps.safetensors")
    stretched = stretch_positions(expected["positional_embedding"], keep=20, ratio=4)
    torch.testing.assert_close(stretched, expected["stretched"], rtol=1e-5, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(2, 40),
    keep_share=st.floats(0, 0.99),
    ratio=st.integers(1, 6),
)
def test_old_positions_stay_where_they_are_reached_exactly(length, keep_share, ratio):
    keep = int(keep_share * length)
    old = table(length)
    new = stretch_positions(old, keep, ratio)
    assert len(new) == keep + (length - keep) * ratio
    assert torch.equal(new[:keep], old[:keep])
    torch.testing.assert_close(new[keep::ratio], old[keep:])


@settings(max_examples=40, deadline=None)
@given(length=st.integers(2, 30), ratio=st.floats(1, 5), extra=st.integers(0, 20))
def test_a_straight_line_stays_straight(length, ratio, extra):
    """Interpolation and the extrapolated end are both linear, so a line is kept, also behind T."""
    line = torch.arange(length, dtype=torch.float64).unsqueeze(1)
    new_length = stretched_length(length, 1, ratio) + extra
    new = new_positions(line, "kps", keep=1, ratio=ratio, length=new_length).squeeze(1)
    expected = 1 + torch.arange(new_length - 1, dtype=torch.float64) / ratio
    torch.testing.assert_close(new[1:], expected)


def test_ratio_one_changes_nothing():
    assert torch.equal(stretch_positions(table(9), keep=3, ratio=1), table(9))


def test_half_precision_is_computed_in_float32():
    old = table(30).half()
    expected = stretch_positions(old.float(), keep=4, ratio=3).half()
    assert torch.equal(stretch_positions(old, keep=4, ratio=3), expected)


def test_length_cuts_or_extends():
    full = stretch_positions(table(77))
    assert torch.equal(new_positions(table(77), "kps", length=200), full[:200])
    extended = new_positions(table(77), "kps", length=260)
    assert torch.equal(extended[:248], full)
    steps = extended[245:].diff(dim=0)
    torch.testing.assert_close(steps, steps[:1].expand_as(steps), rtol=1e-4, atol=1e-5)


def test_rivals_have_the_same_length():
    old = table(77)
    tables = {name: new_positions(old, name) for name in ("kps", "linear", "random")}
    assert {len(new) for new in tables.values()} == {248}
    assert torch.equal(tables["random"][:77], old)
    torch.testing.assert_close(tables["linear"][0], old[0])
    assert not torch.allclose(tables["linear"][19], old[19])
    assert torch.equal(new_positions(old, "none"), old)


def test_random_is_seeded_and_of_the_old_scale():
    old = 3 + 2 * table(77, 512)
    one, same, other = (new_positions(old, "random", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one[77:], other[77:])
    assert one[77:].mean().item() == pytest.approx(3, abs=0.1)
    assert one[77:].std().item() == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep": 77}, "keep must be a whole number from 0 to 76"),
        ({"keep": -1}, "keep must be"),
        ({"keep": 2.5}, "keep must be"),
        ({"keep": float("nan")}, "keep must be a whole number from 0 to 76"),
        ({"keep": float("inf")}, "keep must be a whole number from 0 to 76"),
        ({"ratio": 0.5}, "ratio must be at least 1"),
        ({"ratio": 1e9}, "at most 1,024"),
        ({"ratio": 1000}, "at most 16,384 positions"),
        ({"length": float("nan")}, "a whole number and at most 16,384"),
        ({"length": 100.5}, "a whole number"),
        ({"length": 10**9}, "at most 16,384"),
        ({"ratio": float("nan")}, "ratio must be at least 1"),
        ({"length": 20}, "must be larger than keep"),
        ({"method": "kpss"}, "Did you mean kps"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(LabError, match=message):
        new_positions(table(77), **arguments)


@pytest.mark.parametrize("arguments", [{"keep": 77}, {"ratio": float("nan")}, {"length": 10**9}])
def test_a_model_is_asked_the_same(tiny, arguments):
    with pytest.raises(LabError, match=r"keep must be|ratio must be|at most 16,384"):
        stretch(tiny, **arguments)


def test_one_position_cannot_be_stretched():
    with pytest.raises(LabError, match="at least two positions"):
        stretch_positions(table(1), keep=0)


# --- Models ---


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
