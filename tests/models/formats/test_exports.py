"""What is written for other libraries, read back by them."""

from __future__ import annotations

import html
import json
import math
import os
from typing import get_args

import diffusers
import ftfy
import numpy as np
import open_clip
import pytest
import torch
import transformers
from PIL import Image

from longclip_lab.cli import main
from longclip_lab.commands import FormatName
from longclip_lab.errors import LabError, NotFiniteError
from longclip_lab.models import (
    FORMATS,
    add_corner_tokens,
    export,
    load,
    load_text_tower,
    new_tiny,
    parity,
    pixels,
    save,
    stretch,
)
from longclip_lab.models.formats.parity import TEXTS, Parity

FOLDERS = ("transformers", "diffusers", "open_clip")
VOCABULARY = 49408


def place(folder, format):
    return folder / (format if FORMATS[format].is_folder else f"{format}.pt")


@pytest.mark.parametrize(
    ("format", "quick", "length", "dtype"),
    [
        *[(f, True, 77, "float32") for f in FORMATS if f != "longclip"],
        *[(f, True, 248, "float16") for f in FORMATS],
        *[(f, False, 248, "float32") for f in FOLDERS],
        ("longclip", True, 248, "float32"),
        ("transformers", False, 77, "bfloat16"),
    ],
)
def test_read_back_by_its_own_library(format, quick, length, dtype, made, tmp_path, compatibility):
    clip = made(quick=quick, length=length, vocab=VOCABULARY)
    path = export(clip, place(tmp_path, format), format, dtype)
    result = parity(clip, path, format, dtype)
    assert result.difference <= 1e-5
    assert result.ok
    assert (result.image is None) == (format == "diffusers")
    assert max(result.lengths) == length
    # OpenAI's code rounds to half precision by itself, and half precision cannot go unnoticed.
    assert (result.rounding > 0) == (dtype != "float32" or format == "openai")
    activation = "QuickGELU" if quick else "GELU"
    on = f"tiny ViT, {activation}, {length} positions, {dtype}"
    compatibility(format, "out", on, result.reader, result.difference)


@pytest.mark.parametrize("format", ["openai", "longclip", "open_clip", "diffusers"])
def test_a_resnet(format, made, tmp_path, compatibility):
    clip = made("ResNet", length=248, vocab=VOCABULARY)
    path = export(clip, place(tmp_path, format), format)
    result = parity(clip, path, format)
    assert result.ok
    on = "tiny ResNet, QuickGELU, 248 positions, float32"
    compatibility(format, "out", on, result.reader, result.difference)


def test_a_difference_is_noticed(made, tmp_path):
    clip = made(vocab=VOCABULARY)
    path = export(clip, tmp_path / "out")
    other = made(length=77, quick=False, vocab=VOCABULARY)
    assert not parity(other, path).ok
    assert "NOT the same model" in str(parity(other, path))


@pytest.mark.parametrize("format", ["transformers", "openai", "longclip", "open_clip"])
def test_there_and_back_again(format, made, tmp_path):
    """Weights to the last bit; and, where the format can tell it, how the positions came about."""
    clip = stretch(made(vocab=VOCABULARY))
    back = load(export(clip, place(tmp_path, format), format))
    expected = clip.model.state_dict()
    assert all(torch.equal(t, expected[name]) for name, t in back.model.state_dict().items())
    known = clip.card["positions"]["method"] if format != "openai" else "unknown"
    assert back.card["positions"]["method"] == known
    assert back.card["preprocess"] == clip.card["preprocess"]
    assert back.context_length == 248


def test_what_is_no_number_is_no_parity(made, tmp_path):
    """Finite weights, infinite features."""
    clip = made(vocab=VOCABULARY)
    path = export(clip, tmp_path / "out")
    broken = stretch(clip, method="none")
    broken.model.ln_final.weight.data *= 1e38
    broken.model.text_projection.data *= 1e10
    for ours, theirs in ((broken, path), (clip, export(broken, tmp_path / "broken"))):
        with pytest.raises(NotFiniteError, match="nothing can be compared"):
            parity(ours, theirs)
    verdict = Parity("openai", "x", 0.0, float("nan"), 0.0, 0.0, (3,))
    assert not verdict.ok
    assert math.isnan(verdict.difference)


@pytest.mark.parametrize("format", ["transformers", "diffusers", "openai", "open_clip"])
def test_texts_that_the_other_tokenizer_reads_otherwise_are_named(format, made, tmp_path, capsys):
    clip = made(vocab=VOCABULARY)
    path = export(clip, place(tmp_path, format), format)
    told = parity(clip, path, format)
    assert told.ok
    if format in ("openai", "open_clip"):  # their codes bring OpenAI's own tokenizer
        assert (told.tokenizer, told.read_otherwise) == (None, ())
        return
    assert {"a typographic apostrophe", "HTML's entities (&amp;)"} <= {*told.read_otherwise}
    assert not {"a plain sentence", "accents", "emoji"} & {*told.read_otherwise}
    assert "a typographic apostrophe" in str(told)
    folder = path if format == "transformers" else path / "tokenizer"
    theirs = transformers.CLIPTokenizer.from_pretrained(folder)
    for kind, text in TEXTS.items():
        ours = clip.tokenizer.encode(text)
        assert (theirs(text).input_ids[1:-1] != ours) == (kind in told.read_otherwise)
        repaired = html.unescape(ftfy.fix_text(text))  # the advice that is given
        assert theirs(repaired).input_ids[1:-1] == ours
    save(clip, tmp_path / "own")
    command = ["convert", str(tmp_path / "own"), str(tmp_path / "again"), "--format", format]
    assert main([*command, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert "a typographic apostrophe" in facts["parity"]["read_otherwise"]


LONG_TEXT = "A red boat lies to the left of the old house, and it's 1999. Naïve café; 漢字! " * 8


def test_everything_of_a_folder_for_transformers_works(made, apart, tmp_path):
    clip = made(length=248, vocab=VOCABULARY)
    export(clip, tmp_path / "out")
    processor = transformers.CLIPProcessor.from_pretrained(tmp_path / "out")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path / "out")
    model = transformers.CLIPModel.from_pretrained(tmp_path / "out")
    texts = [LONG_TEXT, "A boat.", LONG_TEXT[:300]]
    ours = clip.tokenize(texts)
    theirs = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    assert tokenizer.model_max_length == 248
    assert ours.lengths_B[0] == 248
    assert ours.lengths_B[2] > 77
    for row, length in enumerate(ours.lengths_B):
        assert torch.equal(theirs.input_ids[row, :length], ours.ids_BT[row, :length])
    values = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    picture = Image.fromarray(values)
    inputs = processor(
        text=texts, images=picture, padding=True, truncation=True, return_tensors="pt"
    )
    assert apart(inputs["pixel_values"], pixels(clip, [picture])) < 1e-5
    with torch.no_grad():
        logits, _ = clip.model.get_logits(pixels(clip, [picture]), ours.ids_BT)
        assert apart(model(**inputs).logits_per_image, logits) < 1e-5
        text_model = transformers.CLIPTextModel.from_pretrained(tmp_path / "out")
        states = text_model(theirs.input_ids).last_hidden_state
        expected = load_text_tower(tmp_path / "out")
        ours = expected.model.ln_final(expected.hidden_states(theirs.input_ids)[-1])
    assert apart(states, ours) < 1e-5


def test_a_text_encoder_for_diffusers(made, apart, tmp_path, compatibility):
    """The classes that pipelines of diffusers open their folders with."""
    clip = made(length=248, vocab=VOCABULARY)
    export(clip, tmp_path, "diffusers")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path, subfolder="tokenizer")
    encoder = transformers.CLIPTextModel.from_pretrained(tmp_path, subfolder="text_encoder")
    whole = diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(block_out_channels=(32,), norm_num_groups=8),
        unet=diffusers.UNet2DConditionModel(
            block_out_channels=(32,),
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            attention_head_dim=2,
            cross_attention_dim=64,
            layers_per_block=1,
            norm_num_groups=8,
        ),
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        text_encoder=encoder,
        tokenizer=tokenizer,
        safety_checker=None,
        feature_extractor=None,
    )
    conditioning_BTW, _ = whole.encode_prompt(LONG_TEXT, "cpu", 1, False)
    tower = load_text_tower(tmp_path)
    with torch.no_grad():
        states = tower.hidden_states(tower.tokenize(LONG_TEXT).ids_BT)
        difference = apart(tower.model.ln_final(states[-1]), conditioning_BTW)
    assert conditioning_BTW.shape == (1, 248, 64)
    assert difference < 1e-5
    on = "what a tiny Stable Diffusion is conditioned on, 248 positions"
    against = f"diffusers {diffusers.__version__}"
    compatibility("diffusers", "out", on, against, difference)


@pytest.mark.parametrize("format", ["transformers", "diffusers"])
def test_a_text_tower_alone(format, made, tmp_path, compatibility):
    export(made(vocab=VOCABULARY), tmp_path / "in", "diffusers")
    tower = stretch(load_text_tower(tmp_path / "in"))
    path = export(tower, tmp_path / "out", format)
    result = parity(tower, path, format)
    assert result.ok
    assert result.image is None
    assert load_text_tower(path).card["positions"]["method"] == "kps"
    on = "tiny text tower, stretched to 248 positions"
    if format == "transformers":
        compatibility("transformers-text", "out", on, result.reader, result.difference)
    for other in ("openai", "longclip", "open_clip"):
        with pytest.raises(LabError, match="text tower alone, without an image tower"):
            export(tower, tmp_path / other, other)


def test_open_clips_folder_and_its_tokenizer(made, tmp_path):
    clip = made(length=248, vocab=VOCABULARY)
    export(clip, tmp_path / "out", "open_clip")
    _, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'out'}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'out'}")
    assert torch.equal(tokenizer([LONG_TEXT]), clip.tokenize([LONG_TEXT]).ids_BT)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))
    assert torch.equal(transform(picture), clip.preprocess(picture))


def test_what_cannot_be_written(made, tmp_path):
    cases = [
        (new_tiny(), "transformers", "image tower is a TimmModel, not CLIP's ViT"),
        (new_tiny(), "open_clip", "exists in longclip_lab only; save"),
        (new_tiny(), "diffusers", "tokenizer 'world' is not CLIP's"),
        (new_tiny(), "openai", "heads of 64, its text tower has 4"),
        (made("ResNet", vocab=VOCABULARY), "transformers", "ModifiedResNet, not CLIP's ViT"),
        (
            add_corner_tokens(made(vocab=VOCABULARY)),
            "openai",
            "corner tokens exist in longclip_lab",
        ),
        (add_corner_tokens(made(vocab=VOCABULARY)), "diffusers", "corner tokens"),
        (made(quick=False), "openai", "knows QuickGELU only"),
        (made(), "longclip", "reads 248 positions, this model 77: stretch"),
        (made(), "transformers", "knows 512 tokens, but the tokenizer makes 49408"),
        (made(pool_type="last"), "diffusers", "read off by 'last'"),
        (made(no_causal_mask=True), "diffusers", "not causal"),
        (made(proj_bias=True), "transformers", "projection has a bias"),
    ]
    for clip, format, message in cases:
        with pytest.raises(LabError, match=message) as raised:
            export(clip, tmp_path / "out", format)
        assert str(raised.value).startswith(f"'{clip.name}' cannot be written as '{format}': ")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_too_large_for_half_precision(made, tmp_path):
    clip = made(vocab=VOCABULARY)
    large = stretch(clip, method="none")
    with torch.no_grad():
        large.model.ln_final.weight[0] = 1e6
    with pytest.raises(LabError, match=r"too large for torch\.float16"):
        export(large, tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten_unasked(made, tmp_path):
    clip = made(length=248, vocab=VOCABULARY)
    folder, file = tmp_path / "folder", tmp_path / "file.pt"
    export(clip, folder)
    export(clip, file, "openai")
    before = file.read_bytes()
    for path, format in ((folder, "transformers"), (file, "longclip")):
        with pytest.raises(LabError, match=r"exists\. Name another place"):
            export(clip, path, format)
    with pytest.raises(LabError, match=r"This format is a file, but .*folder is a folder"):
        export(clip, folder, "openai", overwrite=True)
    assert file.read_bytes() == before
    (folder / "README.md").write_text("kept")
    export(clip, folder, overwrite=True)
    export(clip, file, "longclip", overwrite=True)
    assert load(file).card["positions"]["method"] == "kps"
    assert (folder / "README.md").read_text() == "kept"
    (folder / "pytorch_model.bin").write_bytes(b"other")
    with pytest.raises(LabError, match=r"other weights.*pytorch_model.bin"):
        export(clip, folder, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.pt", "folder"]


def test_unknown_formats_and_dtypes(made, tmp_path):
    with pytest.raises(LabError, match=r"no format 'transformer'\. Did you mean transformers"):
        export(made(), tmp_path / "out", "transformer")
    with pytest.raises(LabError, match="among float32, float16, bfloat16, got int8"):
        export(made(), tmp_path / "out", "openai", dtype="int8")
    with pytest.raises(LabError, match="cannot be read back"):
        parity(made(), tmp_path / "out", "openai")


def test_files_can_be_read_by_others(made, tmp_path):
    """As a file that is simply written, whatever the temporary one was allowed."""
    mask = os.umask(0)
    os.umask(mask)
    path = export(made(vocab=VOCABULARY), tmp_path / "out" / "clip.pt", "openai")
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_the_command(golden, made, tmp_path, capsys):
    source, out = str(golden / "longclip-tiny.pt"), str(tmp_path / "out.pt")
    assert main(["convert", source, out, "--format", "longclip"]) == 0
    told = capsys.readouterr().out
    assert "longclip-tiny: 248 positions, written to" in told
    assert "parity: the same model" in told
    assert main(["convert", source, out, "--format", "longclip"]) == 2
    assert "exists. Name another place" in capsys.readouterr().err
    encoder = export(made(vocab=VOCABULARY), tmp_path / "pipeline", "diffusers")
    half = ["--format", "diffusers", "--dtype", "float16", "--json"]
    assert main(["convert", str(encoder), str(tmp_path / "half"), *half]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parity"]["ok"]
    assert facts["parity"]["rounding"] > 0


def test_the_command_knows_every_format():
    assert set(get_args(FormatName)) == FORMATS.keys()
