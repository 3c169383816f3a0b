"""Towers run on what is read of them give open_clip's own features and gradients."""

from __future__ import annotations

import open_clip
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from longclip_lab import models
from longclip_lab.errors import LabError
from longclip_lab.models import build_lotlip, encode_image_tokens, encode_text_tokens, load
from longclip_lab.models.anatomy import frozen_part
from longclip_lab.models.build import build_model
from longclip_lab.models.towers import (
    can_end_at_class,
    can_pack,
    can_trim,
    encode_at_class,
    encode_packed,
    encode_tokens,
    encode_variants,
    encode_whole,
    finish_image,
    image_states,
)
from longclip_lab.training import recipe_for
from longclip_lab.training.data import Batch
from longclip_lab.training.loop import Towers

# --- Trimmed texts ---

VISION = {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8}
TEXT = {"context_length": 40, "vocab_size": 50, "width": 64, "heads": 2, "layers": 2}
LENGTHS = [3, 17, 9]

# Name, whether it can be trimmed, and how the model is configured.
TOWERS = [
    ("clip", True, {}),
    ("custom", True, {"custom_text": True}),
    ("eos", True, {"text": {"pool_type": "eos", "eos_id": 49}}),
    ("custom eos", True, {"custom_text": True, "text": {"pool_type": "eos", "eos_id": 49}}),
    ("projection with bias", True, {"custom_text": True, "text": {"proj_bias": True}}),
    ("no projection", True, {"custom_text": True, "text": {"proj_type": "none"}}),
    ("looks both ways", False, {"custom_text": True, "text": {"no_causal_mask": True}}),
    ("last token", False, {"custom_text": True, "text": {"pool_type": "last"}}),
    ("first token", False, {"text": {"pool_type": "first", "no_causal_mask": True}}),
    ("class token", False, {"custom_text": True, "text": {"embed_cls": True}}),
]


def build(options: dict) -> torch.nn.Module:
    torch.manual_seed(0)
    text_cfg = {**TEXT, **options.get("text", {})}
    embed_dim = 64 if text_cfg.get("proj_type") == "none" else 32
    return build_model(
        {
            "embed_dim": embed_dim,
            "vision_cfg": VISION,
            "text_cfg": text_cfg,
            "custom_text": options.get("custom_text", False),
        }
    ).eval()


@pytest.mark.parametrize(("name", "trimmed", "options"), TOWERS)
def test_equals_open_clip(name, trimmed, options, random_tokens):
    model = build(options)
    tokens_BT = random_tokens(LENGTHS, 50, 40)
    with torch.no_grad():
        expected_BD = model.encode_text(tokens_BT)
        assert can_trim(model) is trimmed
        torch.testing.assert_close(encode_tokens(model, tokens_BT), expected_BD)
        torch.testing.assert_close(encode_tokens(model, tokens_BT[:, :17]), expected_BD)


def test_runs_only_on_the_longest_text(monkeypatch, random_tokens):
    model = build({})
    seen = []
    forward = model.transformer.forward
    monkeypatch.setattr(
        model.transformer, "forward", lambda x, **kw: (seen.append(x.shape[1]), forward(x, **kw))[1]
    )
    encode_tokens(model, random_tokens(LENGTHS, 50, 40))
    assert seen == [17]


def test_gradients_equal_open_clips(random_tokens):
    model = build({}).double()
    tokens_BT = random_tokens(LENGTHS, 50, 40)
    model.encode_text(tokens_BT).square().sum().backward()
    expected = {
        name: weight.grad.clone()
        for name, weight in model.named_parameters()
        if weight.grad is not None
    }
    model.zero_grad()
    encode_tokens(model, tokens_BT).square().sum().backward()
    for name, gradient in expected.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient)


def test_transformers_tower_without_its_padding(tmp_path, random_tokens):
    """BERT masks its padding, so trimming to the last real token is exact."""
    transformers.BertConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=40,
    ).save_pretrained(tmp_path)
    text_cfg = {
        "hf_model_name": str(tmp_path),
        "hf_proj_type": "linear",
        "hf_pooler_type": "mean_pooler",
    }
    model = build_model({"embed_dim": 32, "vision_cfg": VISION, "text_cfg": text_cfg}).eval()
    assert isinstance(model, open_clip.CustomTextCLIP)
    tokens_BT = random_tokens(LENGTHS, 60, 40)
    with torch.no_grad():
        expected_BD = model.encode_text(tokens_BT)
        torch.testing.assert_close(encode_tokens(model, tokens_BT), expected_BD)
        torch.testing.assert_close(encode_tokens(model, tokens_BT[:, :17]), expected_BD)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 41), "41 tokens, but the model reads at most 40"),
        ((5,), "Expected token ids"),
        ((0, 7), "at least one"),
    ],
)
def test_bad_tokens(shape, message):
    with pytest.raises(LabError, match=message):
        encode_tokens(build({}), torch.zeros(shape, dtype=torch.long))


# --- Texts laid end to end ---

SHORT = {"context_length": 24, "vocab_size": 50, "width": 64, "heads": 2, "layers": 2}


def plain_tower(custom_text: bool = False, **text_cfg) -> torch.nn.Module:
    torch.manual_seed(0)
    vision_cfg = {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8}
    return build_model(
        {
            "embed_dim": 32,
            "vision_cfg": vision_cfg,
            "text_cfg": {**SHORT, **text_cfg},
            "custom_text": custom_text,
        }
    ).eval()


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 24), min_size=1, max_size=7))
def test_any_lengths_in_any_order(random_tokens, lengths):
    model = plain_tower()
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
    model, texts_BT = plain_tower(), random_tokens(lengths, 50, 24)
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
    model, tokens_BT = plain_tower(), random_tokens([length] * 3, 50, 24)
    shapes = []
    model.token_embedding.register_forward_hook(lambda _m, _i, out: shapes.append(out.shape[:2]))
    with torch.no_grad():
        found_BD = encode_whole(model, tokens_BT[:, :length])
        torch.testing.assert_close(found_BD, model.encode_text(tokens_BT))
    assert shapes[0] == (3, length)


def test_gradients_are_those_of_the_padded_texts(random_tokens):
    model = plain_tower().double()
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
    model = plain_tower(**options)
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
    assert not can_pack(plain_tower(custom_text=True, **options))


# --- Images up to the class token ---


def image_model(quick_gelu: bool = False, **vision_cfg) -> torch.nn.Module:
    torch.manual_seed(0)
    vision = {"image_size": 16, "layers": 3, "width": 64, "patch_size": 4, **vision_cfg}
    config = {
        "embed_dim": 32,
        "vision_cfg": vision,
        "text_cfg": {**SHORT, "layers": 1},
        "quick_gelu": quick_gelu,
    }
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
    model = image_model(**options)
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
    assert not can_end_at_class(image_model(**options).visual)


def test_timm_towers_and_checkpointed_ones_are_left_alone():
    assert not can_end_at_class(models.load("tiny").model.visual)
    model = image_model()
    model.set_grad_checkpointing(True)
    assert not can_end_at_class(model.visual)


def test_training_computes_no_more_than_that():
    """The last MLP sees the class token alone."""
    model = image_model().float()
    pixels_B3HW = torch.randn(2, 3, 16, 16)
    expected_BD = model.encode_image(pixels_B3HW)
    seen = []
    mlp = model.visual.transformer.resblocks[-1].mlp
    mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    towers = Towers(model, recipe_for("longclip"))
    found = towers.image_features(Batch(pixels_B3HW, None, None))
    assert seen == [(2, 64)]
    torch.testing.assert_close(found.features_BD, expected_BD)


# --- Token by token ---

NARROW = {"context_length": 12, "vocab_size": 50, "width": 16, "heads": 2, "layers": 2}
WIDE_PATCHES = {"image_size": 32, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16}


@pytest.fixture(scope="module")
def own():
    torch.manual_seed(0)
    return open_clip.CLIP(embed_dim=8, vision_cfg=WIDE_PATCHES, text_cfg=NARROW).eval()


@pytest.fixture(scope="module")
def lotlip():
    return build_lotlip("tiny-tower", "world", 0, embed_dim=24)


@torch.no_grad()
def test_both_parts_make_the_whole(own, lotlip):
    pixels_B3HW = torch.randn(3, 3, 32, 32)
    whole = own.encode_image(pixels_B3HW)
    parts = finish_image(own.visual, image_states(own.visual, pixels_B3HW))
    assert torch.allclose(parts, whole, atol=1e-5)
    assert frozen_part(own.visual) is own.visual
    visual = lotlip.model.visual
    pixels_B3HW = torch.randn(3, 3, 72, 72)
    parts = finish_image(visual, image_states(visual, pixels_B3HW))
    assert torch.allclose(parts, lotlip.encode_image(pixels_B3HW), atol=1e-5)
    assert {id(p) for p in frozen_part(visual).parameters()} == {
        id(p) for p in visual.parameters() if not p.requires_grad
    }


@torch.no_grad()
def test_patches(own, lotlip):
    assert encode_image_tokens(own, torch.randn(3, 3, 32, 32)).shape == (3, 4, 8)
    assert not own.visual.transformer._forward_hooks
    assert encode_image_tokens(lotlip.model, torch.randn(2, 3, 72, 72)).shape == (2, 36, 24)


@torch.no_grad()
def test_the_end_tokens_row_is_the_texts_feature(own):
    ids_BT = torch.tensor([[48, 3, 49, 0, 0], [48, 3, 4, 5, 49]])
    tokens_BTD, mask_BT = encode_text_tokens(own, ids_BT)
    assert mask_BT.tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    features_BD = models.towers.encode_tokens(own, ids_BT)
    ends_BD = torch.stack([tokens_BTD[0, 2], tokens_BTD[1, 4]])
    assert torch.allclose(ends_BD, features_BD, atol=1e-5)


@torch.no_grad()
def test_padding_changes_no_token(lotlip):
    texts = ["a red boat", "a red boat on a lake under a clear sky"]
    ids_BT = lotlip.tokenize(texts).ids_BT
    tokens_BTD, mask_BT = encode_text_tokens(lotlip.model, ids_BT)
    alone_BTD, _ = encode_text_tokens(lotlip.model, ids_BT[:1])
    assert mask_BT.sum(dim=1).tolist() == [5, 12]
    assert torch.allclose(tokens_BTD[:1, :5], alone_BTD, atol=1e-5)


def test_towers_without_tokens_are_refused(lotlip):
    corners = build_lotlip("tiny-tower", "world", 2)
    with pytest.raises(LabError, match="without corner tokens"):
        encode_text_tokens(corners.model, corners.tokenize("a boat").ids_BT)
    resnet = open_clip.CLIP(
        embed_dim=8,
        text_cfg=NARROW,
        vision_cfg={"image_size": 32, "layers": [1, 1, 1, 1], "width": 8},
    )
    with pytest.raises(LabError, match="ModifiedResNet has none"):
        encode_image_tokens(resnet, torch.randn(1, 3, 32, 32))
