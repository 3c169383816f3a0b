"""The weights that are recorded are those that make the output, on every make of tower."""

from __future__ import annotations

from dataclasses import replace

import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, Transformer
from timm.layers.attention import Attention as TimmAttention
from torch import nn

from longclip_lab.attribution import record
from longclip_lab.attribution.attention import attention_modules
from longclip_lab.errors import LabError
from longclip_lab.models import Clip, load

IMAGES = ("class token", "average, norm before", "timm class token", "timm attention pool")
TEXTS = ("causal", "both ways", "bert")
LONG, SHORT = "a red boat on a lake under a clear sky.", "a red boat."


def hooks_of(clip: Clip) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in clip.model.modules())


def with_text(clip: Clip, tower: nn.Module) -> Clip:
    """`clip` with another text tower, as a CustomTextCLIP."""
    model = open_clip.CustomTextCLIP.__new__(open_clip.CustomTextCLIP)
    nn.Module.__init__(model)
    model.visual, model.text = clip.model.visual, tower.eval()
    model.logit_scale, model.logit_bias = clip.model.logit_scale, None
    return replace(clip, model=model.eval())


def with_image(clip: Clip, **options) -> Clip:
    """`clip` with a timm image tower of these options."""
    torch.manual_seed(1)
    tower = open_clip.timm_model.TimmModel.__new__(open_clip.timm_model.TimmModel)
    nn.Module.__init__(tower)
    tower.trunk = timm.models.vision_transformer.VisionTransformer(
        img_size=72, patch_size=24, embed_dim=32, depth=2, num_heads=2, num_classes=0, **options
    )
    tower.head = nn.Identity()
    other = replace(clip, model=nn.Module())
    other.model.visual = tower.eval()
    other.model.encode_image = lambda pixels, normalize: tower(pixels)
    return other


def bert(clip: Clip, pooler: str, implementation: str) -> Clip:
    torch.manual_seed(2)
    config = transformers.BertConfig(
        vocab_size=clip.vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=77,
        attn_implementation=implementation,
    )
    tower = open_clip.hf_model.HFTextEncoder("", 32, config, pooler, "linear")
    tower.transformer.set_attn_implementation(implementation)
    return with_text(clip, tower)


def ids_of(clip: Clip, *texts: str) -> torch.Tensor:
    tokens = clip.tokenize(texts)
    return tokens.ids_BT[:, : int(tokens.lengths_B.max())]


def is_same_with_recording(clip: Clip, tower: str) -> list[torch.Tensor]:
    """Check output, rows and traces; give back the weights."""
    torch.manual_seed(3)
    if tower == "text":
        encode, inputs = clip.encode_text, ids_of(clip, LONG, SHORT)
    else:
        encode, inputs = clip.encode_image, torch.randn(2, 3, clip.image_size, clip.image_size)
    before = hooks_of(clip)
    with torch.no_grad():
        plain = encode(inputs)
        with record(clip, tower) as recording:
            recorded = encode(inputs)
    torch.testing.assert_close(recorded, plain, rtol=1e-5, atol=1e-6)
    for weights in recording.weights:
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
        assert weights.min() >= 0
    assert hooks_of(clip) == before
    return recording.weights


@pytest.mark.parametrize("name", IMAGES)
def test_image_towers(towers, name):
    clip = towers.image_clip(name)
    weights = is_same_with_recording(clip, "image")
    assert len(weights) == 2
    assert weights[0].shape[:2] == (2, 2)


@pytest.mark.parametrize("name", TEXTS)
def test_text_towers(towers, name):
    assert len(is_same_with_recording(towers.text_clip(name), "text")) == 2


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("pooler", ["cls_pooler", "mean_pooler"])
def test_bert_agrees_with_its_own_attentions(trained, pooler, implementation):
    clip = bert(trained, pooler, implementation)
    weights = is_same_with_recording(clip, "text")
    ids = ids_of(clip, LONG, SHORT)
    clip.model.text.transformer.set_attn_implementation("eager")
    own = clip.model.text.transformer(ids, (ids != 0).long(), output_attentions=True).attentions
    for ours, theirs in zip(weights, own, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-7)
    assert (weights[0][1, :, :, ids[1] == 0] == 0).all()  # nobody reads padding


def test_bert_with_a_mask_that_says_yes_or_no(trained):
    """LoTLIP's masks differ by query; transformers takes them with four dimensions."""
    clip = bert(trained, "cls_pooler", "sdpa")
    ids = ids_of(clip, LONG, LONG)
    allowed = torch.rand(2, 1, ids.shape[1], ids.shape[1]) < 0.5
    allowed |= torch.eye(ids.shape[1], dtype=torch.bool)
    with record(clip, "text") as recording:
        clip.model.text.transformer(ids, attention_mask=allowed)
    for weights in recording.weights:
        assert (weights.masked_select(~allowed) == 0).all()
        assert (weights.masked_select(allowed) > 0).all()


def test_tokens_of_a_causal_tower_see_no_later_token(trained):
    for weights in is_same_with_recording(trained, "text"):
        assert (weights.triu(1) == 0).all()
        assert (weights.diagonal(dim1=-2, dim2=-1) > 0).all()


def test_weights_are_those_of_multihead_attention(trained):
    """Against torch's own `need_weights`, and each block's output made of the weights by hand."""
    seen = {}
    blocks = trained.model.transformer.resblocks
    handles = [
        block.register_forward_hook(lambda m, args, out, i=i: seen.update({i: (args[0], out)}))
        for i, block in enumerate(blocks)
    ]
    ids = ids_of(trained, LONG)
    with torch.no_grad(), record(trained, "text") as recording:
        trained.encode_text(ids)
    for handle in handles:
        handle.remove()
    mask = trained.model.attn_mask[: ids.shape[1], : ids.shape[1]]
    for i, (block, weights) in enumerate(zip(blocks, recording.weights, strict=True)):
        x, out = seen[i]
        normed = block.ln_1(x)
        _, theirs = block.attn(
            normed, normed, normed, attn_mask=mask, average_attn_weights=False, need_weights=True
        )
        torch.testing.assert_close(weights, theirs, rtol=1e-5, atol=1e-7)
        value_weight, value_bias = block.attn.in_proj_weight[256:], block.attn.in_proj_bias[256:]
        values = F.linear(normed, value_weight, value_bias).unflatten(-1, (4, -1))
        read = torch.einsum("bhqk,bkhx->bqhx", weights, values).flatten(-2)
        by_hand = x + block.attn.out_proj(read)
        by_hand = by_hand + block.mlp(block.ln_2(by_hand))
        torch.testing.assert_close(out, by_hand, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("qk_norm", [True, False])
def test_weights_make_the_output_of_timm_attention(trained, fused, qk_norm):
    clip = with_image(trained, qk_norm=qk_norm, qkv_bias=True)
    modules = [m for m in clip.model.modules() if isinstance(m, TimmAttention)]
    seen = []
    for module in modules:
        module.fused_attn = fused
        module.register_forward_hook(lambda m, args, out: seen.append((args[0], out)))
    with torch.no_grad(), record(clip, "image") as recording:
        clip.model.visual(torch.randn(2, 3, 72, 72))
    for module, weights, (x, out) in zip(modules, recording.weights, seen, strict=True):
        values = module.qkv(x)[..., 64:].unflatten(-1, (2, 16))
        read = torch.einsum("bhqk,bkhx->bqhx", weights, values).flatten(-2)
        torch.testing.assert_close(out, module.proj(read), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{"batch_first": False}, {"batch_first": True}])
def test_batch_first_or_not(trained, options):
    tower = TextTransformer(77, trained.vocab_size, 32, 2, 2, output_dim=32)
    tower.transformer = Transformer(32, 2, 2, **options)
    assert is_same_with_recording(with_text(trained, tower), "text")[0].shape[:2] == (2, 2)


@pytest.mark.parametrize("option", ["qk_norm", "scale_heads", "scale_attn_inner", "scale_attn"])
def test_open_clips_own_attention(trained, option):
    torch.manual_seed(4)
    tower = TextTransformer(77, trained.vocab_size, 32, 2, 2, output_dim=32, **{option: True})
    for weights in is_same_with_recording(with_text(trained, tower), "text"):
        assert (weights.triu(1) == 0).all()


def test_padding_masks_of_coca(trained):
    """A class token at the end and a mask of its own for each head."""
    tower = TextTransformer(77, trained.vocab_size, 32, 2, 2, output_dim=32, embed_cls=True)
    clip = with_text(trained, tower)
    weights = is_same_with_recording(clip, "text")
    assert weights[0].shape == (2, 2, 78, 78)


def test_gradients_are_those_of_a_block_by_hand():
    torch.manual_seed(5)
    block = ResidualAttentionBlock(16, 2).eval()
    tower = TextTransformer(8, 30, 16, 2, 1, output_dim=16).eval()
    tower.transformer.resblocks[0] = block
    clip = with_text(load("tiny"), tower)
    ids = torch.tensor([[27, 3, 4, 5, 29, 0, 0, 0]])
    target = torch.randn(16)
    with record(clip, "text", gradients=True) as recording:
        value = (clip.model.encode_text(ids) @ target).sum()
    (ours,) = torch.autograd.grad(value, recording.weights)

    x = tower.token_embedding(ids) + tower.positional_embedding
    projected = F.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias)
    query, key, values = projected.transpose(1, 2).unflatten(1, (3, 2, 8)).unbind(1)
    scores = torch.einsum("bhxq,bhxk->bhqk", query, key) / 8**0.5
    weights = scores.masked_fill(torch.ones(8, 8).triu(1) == 1, -torch.inf).softmax(-1).detach()
    weights.requires_grad_()
    read = torch.einsum("bhqk,bhxk->bqhx", weights, values).flatten(-2)
    x = x + block.attn.out_proj(read)
    x = x + block.mlp(block.ln_2(x))
    feature = tower.ln_final(x)[0, 4] @ tower.text_projection
    (by_hand,) = torch.autograd.grad((feature * target).sum(), weights)
    torch.testing.assert_close(recording.weights[0], weights, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(ours, by_hand, rtol=1e-4, atol=1e-6)


def test_gradients_flow_in_a_frozen_model_and_through_checkpointed_blocks():
    """And the flags are what they were afterwards."""
    clip = load("tiny")
    clip.model.requires_grad_(False)
    clip.model.transformer.grad_checkpointing = True
    with record(clip, "text", gradients=True) as recording:
        total = clip.encode_text(ids_of(clip, LONG)).sum()
    gradients = torch.autograd.grad(total, recording.weights)
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    assert clip.model.transformer.grad_checkpointing
    assert not any(parameter.requires_grad for parameter in clip.model.parameters())


def test_both_towers_at_once_and_some_layers_only(trained):
    with record(trained, "text", layers=[-1, 0]) as text, record(trained, "image") as image:
        trained.encode_text(ids_of(trained, SHORT))
        trained.encode_image(torch.zeros(1, 3, 72, 72))
    with record(trained, "text") as every:
        trained.encode_text(ids_of(trained, SHORT))
    assert text.layers == [2, 0]
    assert len(image.weights) == 3
    for layer, weights in zip(text.layers, text.weights, strict=True):
        torch.testing.assert_close(weights, every.weights[layer])
        assert not weights.requires_grad


def test_nothing_is_left_after_an_error(trained):
    before = hooks_of(trained)
    broken = attention_modules(trained, "text")[1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), record(trained, "text", gradients=True):
        trained.encode_text(ids_of(trained, LONG))
    broken.remove()
    assert hooks_of(trained) == before
    assert not torch.overrides._get_current_function_mode_stack()


def test_towers_without_attention_and_wrong_questions(trained, towers):
    with (
        pytest.raises(LabError, match=r"ModifiedResNet.* has no plain transformer layers"),
        record(towers.image_clip("resnet"), "image"),
    ):
        pass
    with pytest.raises(LabError, match="'text' or 'image', got 'words'"), record(trained, "words"):
        pass
    with pytest.raises(LabError, match="from -3 to 2, got 3"), record(trained, "text", layers=[3]):
        pass
    with record(trained, "text") as recording:
        pass
    with pytest.raises(LabError, match=r"no attention was recorded in layers \[0, 1, 2\]"):
        _ = recording.weights


def test_attention_with_two_sets_of_weights_is_refused(trained):
    clip = with_image(trained, attn_layer="diff")
    wanted = pytest.raises(LabError, match="DiffAttention is attention of a kind")
    with wanted, record(clip, "image"):
        clip.model.visual(torch.zeros(1, 3, 72, 72))
