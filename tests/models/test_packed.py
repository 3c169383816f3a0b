"""Texts laid end to end have the features of open_clip's padded ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from longclip_lab.models import load
from longclip_lab.models.build import build_model
from longclip_lab.models.towers import can_pack, encode_packed, encode_variants, encode_whole

TEXT = {"context_length": 24, "vocab_size": 50, "width": 64, "heads": 2, "layers": 2}


def build(custom_text: bool = False, **text_cfg) -> torch.nn.Module:
    torch.manual_seed(0)
    vision_cfg = {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8}
    return build_model(
        {
            "embed_dim": 32,
            "vision_cfg": vision_cfg,
            "text_cfg": {**TEXT, **text_cfg},
            "custom_text": custom_text,
        }
    ).eval()


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 24), min_size=1, max_size=7))
def test_any_lengths_in_any_order(random_tokens, lengths):
    model = build()
    tokens_BT = random_tokens(lengths, 50, 24)
    with torch.no_grad():
        torch.testing.assert_close(encode_packed(model, tokens_BT), model.encode_text(tokens_BT))


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 24), min_size=1, max_size=4),
    taken=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 23)), max_size=12),
)
def test_variants_share_the_states_of_what_they_begin_with(random_tokens, lengths, taken):
    """Texts without one of their tokens, in any order, and texts that are repeated."""
    model, texts_BT = build(), random_tokens(lengths, 50, 24)
    rows, origins = list(texts_BT), list(range(len(texts_BT)))
    for text, place in taken:
        origin = text % len(texts_BT)
        kept = [place != other or place == lengths[origin] - 1 for other in range(24)]
        rows.append(torch.nn.functional.pad(texts_BT[origin][kept], (0, 24 - sum(kept))))
        origins.append(origin)
    tokens_BT = torch.stack(rows)
    with torch.no_grad():
        found_BD = encode_variants(model, tokens_BT, torch.tensor(origins))
        torch.testing.assert_close(found_BD, model.encode_text(tokens_BT))


@pytest.mark.parametrize("length", [1, 5, 24])
def test_texts_of_one_length_call_the_embedding_as_the_model_does(length, random_tokens):
    model, tokens_BT = build(), random_tokens([length] * 3, 50, 24)
    shapes = []
    model.token_embedding.register_forward_hook(lambda _m, _i, out: shapes.append(out.shape[:2]))
    with torch.no_grad():
        found_BD = encode_whole(model, tokens_BT[:, :length])
        torch.testing.assert_close(found_BD, model.encode_text(tokens_BT))
    assert shapes[0] == (3, length)


def test_gradients_are_those_of_the_padded_texts(random_tokens):
    model = build().double()
    tokens_BT = random_tokens([3, 24, 3, 11, 1], 50, 24)
    weights_BD = torch.randn(5, 32, dtype=torch.float64)
    gradients = []
    for encode in (encode_packed, lambda model, tokens_BT: model.encode_text(tokens_BT)):
        model.zero_grad()
        (encode(model, tokens_BT) * weights_BD).sum().backward()
        text = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        gradients.append(text)
    assert gradients[0].keys() == gradients[1].keys()
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    "options",
    [
        {"custom_text": True},
        {"layers": 1},
        {"ls_init_value": 0.3},
        {"pool_type": "eos", "eos_id": 49},
        {"custom_text": True, "proj_bias": True},
    ],
)
def test_variants_of_the_tower(random_tokens, options):
    model = build(**options)
    tokens_BT = random_tokens([3, 24, 3, 11], 50, 24)
    with torch.no_grad():
        torch.testing.assert_close(encode_packed(model, tokens_BT), model.encode_text(tokens_BT))


def test_the_golden_model(golden):
    clip = load(golden / "longclip-tiny.pt")
    expected = load_file(golden / "longclip-tiny-features.safetensors")
    with torch.no_grad():
        features_BD = encode_packed(clip.model, expected["tokens_long"].long())
    torch.testing.assert_close(features_BD, expected["text_features_long"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"no_causal_mask": True}, {"pool_type": "last"}, {"qk_norm": True}]
)
def test_towers_that_cannot_be_packed(options):
    assert not can_pack(build(custom_text=True, **options))
