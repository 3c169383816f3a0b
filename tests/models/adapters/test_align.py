"""ALIGN from a folder of transformers, against transformers itself."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers
from PIL import Image

from longclip_lab import world
from longclip_lab.attribution import relevance
from longclip_lab.errors import LabError
from longclip_lab.evaluation import evaluate
from longclip_lab.models import (
    adapters,
    encode_images,
    encode_text_tokens,
    encode_texts,
    load,
    save,
    stretch,
    text_tower_size,
)

SIZE = 64


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    vision = {
        **{"image_size": SIZE, "width_coefficient": 0.25, "depth_coefficient": 0.5},
        **{"hidden_dim": 32, "depthwise_padding": []},
    }
    text = {
        **{"vocab_size": 30522, "hidden_size": 64, "intermediate_size": 96},
        **{"num_hidden_layers": 2, "num_attention_heads": 1, "max_position_embeddings": 40},
    }
    config = transformers.AlignConfig(
        text_config=text, vision_config=vision, projection_dim=80, initializer_range=0.2
    )
    return transformers.AlignModel(config).eval()


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    """As kakaobrain/align-base: pictures are rescaled to -1 .. 1 and not normalised further."""
    folder = tmp_path_factory.mktemp("hub") / "align-tiny"
    theirs.save_pretrained(folder)
    size = {"height": SIZE, "width": SIZE}
    transformers.EfficientNetImageProcessor(
        size=size, rescale_factor=1 / 127.5, rescale_offset=True, do_normalize=False,
        include_top=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@torch.no_grad()
def test_features_are_those_of_transformers(folder, theirs, pictures, texts, compatibility):
    clip = load(folder)
    processor = transformers.EfficientNetImageProcessor.from_pretrained(folder)
    images = [Image.fromarray(values) for values in pictures(90)]
    pixels_B3HW = processor(images=images, return_tensors="pt")["pixel_values"]
    tokens = clip.tokenize(texts)
    mask_BT = (tokens.ids_BT != 0).long()
    expected_images = theirs.get_image_features(pixels_B3HW).pooler_output
    expected_texts = theirs.get_text_features(tokens.ids_BT, attention_mask=mask_BT).pooler_output
    differences = [
        float((ours - wanted).abs().max() / wanted.abs().max())
        for ours, wanted in (
            (encode_images(clip, images), expected_images),
            (encode_texts(clip, texts).features_ND, expected_texts),
        )
    ]
    assert max(differences) < 1e-5
    against = f"transformers {transformers.__version__}"
    compatibility("align", "in", "tiny ALIGN, transformers folder", against, max(differences))
    assert clip.card["preprocess"]["mean"] == pytest.approx([0.5] * 3, abs=1e-5)
    assert clip.card["preprocess"]["std"] == pytest.approx([0.5] * 3, abs=1e-5)
    assert (clip.image_size, clip.context_length, clip.embed_dim) == (SIZE, 40, 80)


@torch.no_grad()
def test_pictures_of_its_own_size_go_through_its_processor(folder, pictures, tmp_path):
    """Some processors resize to more and crop: then no picture is taken as it is."""
    crops = tmp_path / "crops"
    shutil.copytree(folder, crops)
    transformers.EfficientNetImageProcessor(
        size={"height": 80, "width": 80}, crop_size={"height": SIZE, "width": SIZE},
        do_center_crop=True, rescale_factor=1 / 127.5, rescale_offset=True, do_normalize=False,
        include_top=False,
    ).save_pretrained(crops)  # fmt: skip
    values = pictures(SIZE)
    images = [Image.fromarray(picture) for picture in values]
    for place, cropped in ((folder, False), (crops, True)):
        clip = load(place)
        assert clip.image_size == SIZE
        assert clip.card["preprocess"]["crops_own_size"] is cropped
        expected = encode_images(clip, images)
        torch.testing.assert_close(encode_images(clip, values), expected, atol=1e-4, rtol=1e-4)


def test_it_is_evaluated(folder):
    clip = adapters.load_align(folder, context_length=30)
    record = evaluate(clip, world.pairs(5, seed=5)).records[0]
    assert record.model == "align-tiny"
    assert record.settings["context_length"] == 30
    assert record.num_truncated > 0


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (stretch, "ALIGN is not an open_clip model and has no 'positional_embedding'"),
        (text_tower_size, "The operations of a Align are not known here"),
        (
            lambda clip: encode_text_tokens(clip, torch.tensor([[101, 102]])),
            "no text tower whose tokens are known",
        ),
        (lambda clip: relevance(clip, Image.new("RGB", (SIZE, SIZE)), "a boat"), "no attention"),
    ],
)
def test_what_needs_open_clips_insides_is_refused(folder, what, message):
    with pytest.raises(LabError, match=message):
        what(load(folder))


def test_it_is_not_saved_as_a_clip(folder, tmp_path):
    with pytest.raises(LabError, match="cannot be saved"):
        save(load(folder), tmp_path / "saved")


def test_folders_that_do_not_fit(folder, theirs, tmp_path):
    def copy(name, leave_out=()):
        (tmp_path / name).mkdir()
        for path in folder.iterdir():
            if path.name not in leave_out:
                (tmp_path / name / path.name).write_bytes(path.read_bytes())
        return tmp_path / name

    with pytest.raises(LabError, match="no preprocessor_config"):
        load(copy("no-processor", {"preprocessor_config.json"}))
    with pytest.raises(LabError, match="could not be read as transformers' AlignModel"):
        load(copy("no-weights", {"model.safetensors"}))
    german = copy("german")
    (german / "vocab.txt").write_text("[PAD]\nund\noder\n")
    with pytest.raises(LabError, match="not the words of bert-base-uncased"):
        load(german)
    text_only = copy("text-only")
    theirs.text_model.save_pretrained(text_only)
    config = json.loads((folder / "config.json").read_text())
    (text_only / "config.json").write_text(json.dumps(config))
    with pytest.raises(LabError, match="no weights for"):
        load(text_only)
