"""open_clip's own files and folders, SigLIP's among them, with the tokenizer beside the weights."""

from __future__ import annotations

import json

import open_clip
import pytest
import tokenizers
import torch
import transformers
from open_clip.push_to_hf_hub import save_for_hf

from longclip_lab.errors import LabError
from longclip_lab.models import encode_texts, export, load, parity

VERSION = f"open_clip {open_clip.__version__}"
NAME = "lab-formats-vit"


@pytest.fixture(scope="module")
def architecture(made, tmp_path_factory):
    """A small architecture among open_clip's names, without QuickGELU."""
    folder = tmp_path_factory.mktemp("configs")
    model_cfg = made(quick=False).card["model_cfg"]
    (folder / f"{NAME}.json").write_text(json.dumps(model_cfg))
    open_clip.add_model_config(folder)
    return NAME


@pytest.mark.parametrize("wrapping", [None, "state_dict"])
def test_a_state_dict_with_its_name(
    wrapping, architecture, made, inputs, apart, tmp_path, compatibility
):
    path = tmp_path / "epoch_32.pt"
    weights = made(quick=False).model.state_dict()
    torch.save({wrapping: weights} if wrapping else weights, path)
    theirs = open_clip.create_model(architecture, pretrained=str(path)).eval()
    clip = load(architecture, pretrained=path)
    pixels, texts = inputs(clip)
    with torch.no_grad():
        difference = max(
            apart(clip.encode_image(pixels), theirs.encode_image(pixels)),
            apart(clip.encode_text(texts), theirs.encode_text(texts)),
        )
    assert difference < 1e-5
    compatibility("open_clip", "in", "tiny ViT, GELU, a name with a file", VERSION, difference)


def test_more_positions_than_the_name_has(architecture, made, tmp_path):
    """It is not known how they came about, but they must not be stretched as if they were 77."""
    torch.save(made(quick=False, length=248).model.state_dict(), tmp_path / "long.pt")
    clip = load(architecture, pretrained=tmp_path / "long.pt")
    assert clip.card["positions"] == {
        "method": "unknown",
        "keep": 0,
        "ratio": 248 / 77,
        "length": 248,
    }


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    """A folder as SigLIP's on the hub: timm's ViT, texts read off at the last token, a bias."""
    folder = tmp_path_factory.mktemp("siglip")
    model_cfg = {
        "embed_dim": 192,  # without a projection, as in SigLIP's towers, it is the width
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 224,
            "timm_model_name": "vit_tiny_patch16_224",
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            "context_length": 64,
            "vocab_size": 300,
            "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "width": 64,
            "heads": 1,
            "layers": 2,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
        },
    }
    preprocess_cfg = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    config = {"model_cfg": model_cfg, "preprocess_cfg": {**preprocess_cfg, "resize_mode": "squash"}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    letters = {"<pad>": 1, "</s>": 2, "<unk>": 0, **{chr(i): i for i in range(97, 123)}}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(letters, [], unk_token="<unk>"))
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 2)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CustomTextCLIP(
            **{k: v for k, v in model_cfg.items() if k != "custom_text"}
        )
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return folder


def test_siglip_from_a_folder(siglip, apart, compatibility):
    theirs = open_clip.create_model(f"local-dir:{siglip}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{siglip}")
    clip = load(siglip)
    texts = ["a red boat", "a house, and to its left a tree"]
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs.eval().encode_text(tokenize(texts))
        logits, _ = clip.model.get_logits(pixels, tokenize(texts))
        difference = max(
            apart(encode_texts(clip, texts).features_ND, expected),
            apart(clip.encode_image(pixels), theirs.encode_image(pixels)),
            apart(logits, theirs.get_logits(pixels, tokenize(texts))[0]),
        )
    assert difference < 1e-5
    assert (clip.context_length, clip.image_mean) == (64, (0.5, 0.5, 0.5))
    compatibility("siglip", "in", "a tiny SigLIP's folder", VERSION, difference)


def test_siglip_goes_back_to_open_clip_only(siglip, tmp_path, compatibility):
    clip = load(siglip)
    path = export(clip, tmp_path / "out", "open_clip")
    result = parity(clip, path, "open_clip")
    assert result.ok
    compatibility("siglip", "out", "a tiny SigLIP", result.reader, result.difference)
    tokenize = open_clip.get_tokenizer(f"local-dir:{path}")
    text = "a red boat"
    assert torch.equal(tokenize([text]), clip.tokenize(text).ids_BT)
    for format, message in (("transformers", "logits have a bias"), ("openai", "not causal")):
        with pytest.raises(LabError, match=message):
            export(clip, tmp_path / format, format)


def test_a_folder_of_open_clips_layout(made, inputs, apart, tmp_path, compatibility):
    """As open_clip itself writes it for the hub."""
    clip = made(length=248)

    class NoTokenizer:
        def save_pretrained(self, folder):
            """CLIP's own needs no files."""

    clip.model.visual.image_mean, clip.model.visual.image_std = clip.image_mean, clip.image_std
    save_for_hf(clip.model, NoTokenizer(), clip.card["model_cfg"], tmp_path, True)
    found = load(tmp_path)
    pixels, texts = inputs(clip)
    with torch.no_grad():
        difference = max(
            apart(found.encode_image(pixels), clip.encode_image(pixels)),
            apart(found.encode_text(texts), clip.model.encode_text(texts)),
        )
    assert difference < 1e-5
    compatibility("open_clip", "in", "tiny ViT, 248 positions, a folder", VERSION, difference)
