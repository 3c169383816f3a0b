"""Trimmed text towers give the features of open_clip's padded ones."""

from __future__ import annotations

import open_clip
import pytest
import torch
import transformers

from longclip_lab.errors import LabError
from longclip_lab.models.build import build_model
from longclip_lab.models.towers import can_trim, encode_tokens

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
