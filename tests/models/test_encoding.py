"""Features of many texts and pictures: right, in order, and clear about bad input."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from longclip_lab.errors import LabError, NotFiniteError
from longclip_lab.evaluation import at_length
from longclip_lab.models import encode_images, encode_texts, pixels, stretch
from longclip_lab.models.anatomy import text_tower
from longclip_lab.models.encoding import encode_images_by_token, encode_texts_by_token
from longclip_lab.text import get_tokenizer

LENGTHS = [5, 60, 3, 100, 17, 5]


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 72, 72, 3), dtype=np.uint8)


def test_texts_come_back_in_order(tiny, world_texts):
    texts = world_texts(LENGTHS)
    result = encode_texts(tiny, texts, batch_size=2)
    with torch.no_grad():
        expected_ND = tiny.model.encode_text(tiny.tokenize(texts).ids_BT)
    torch.testing.assert_close(result.features_ND, expected_ND)
    assert result.lengths_N.tolist() == [7, 62, 5, 77, 19, 7]
    assert result.num_truncated == 1
    assert encode_texts(stretch(tiny), texts).num_truncated == 0


def test_what_follows_an_end_token_in_a_text_changes_nothing_and_counts_as_unread(tiny):
    text = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    vision = {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 1}
    torch.manual_seed(0)
    model = open_clip.CLIP(16, vision, text).eval()
    clip = replace(tiny, model=model, tokenizer=get_tokenizer("clip"))
    texts = [
        "A dog",
        "A dog <end_of_text> and a cat.",
        "A dog <|endoftext|> and a cat.",
        "dog " * 30,
    ]
    result = encode_texts(clip, texts)
    assert torch.equal(result.features_ND[0], result.features_ND[1])
    assert not torch.allclose(result.features_ND[0], result.features_ND[2])
    assert result.lengths_N.tolist() == [4, 4, 14, 20]
    assert result.num_truncated == 2
    shorter = at_length(clip, 10).tokenize(texts)
    assert shorter.lengths_B.tolist() == [4, 4, 10, 10]
    assert shorter.truncated_B.tolist() == [False, True, True, True]


def test_one_text_and_a_model_in_training(tiny):
    tiny.model.train()
    result = encode_texts(tiny, "red boat")
    assert tiny.model.training
    tiny.model.eval()
    assert result.features_ND.shape == (1, 128)
    assert not result.features_ND.requires_grad


def test_the_fast_path_equals_the_preprocessing(tiny, pictures):
    slow = pixels(tiny, [Image.fromarray(picture) for picture in pictures])
    torch.testing.assert_close(pixels(tiny, pictures), slow)
    torch.testing.assert_close(pixels(tiny, torch.from_numpy(pictures)), slow)


def test_other_sizes_are_resized(tiny, pictures):
    large = pictures.repeat(2, axis=1).repeat(2, axis=2)
    assert pixels(tiny, large).shape == (5, 3, 72, 72)


def test_pictures_from_files(tiny, pictures, tmp_path):
    paths = []
    for index, picture in enumerate(pictures):
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(picture).save(paths[-1])
    expected_ND = encode_images(tiny, pictures)
    torch.testing.assert_close(encode_images(tiny, paths, batch_size=2), expected_ND)
    with torch.no_grad():
        torch.testing.assert_close(tiny.encode_image(pixels(tiny, pictures)), expected_ND)


def test_bad_pictures(tiny, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    Image.new("RGB", (90, 90)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    for name in ("broken.jpg", "cut.png"):
        with pytest.raises(LabError, match=f"{name} is not a picture"):
            encode_images(tiny, [tmp_path / name])
    with pytest.raises(LabError, match=r"no picture .*missing\.png"):
        encode_images(tiny, [tmp_path / "missing.png"])
    with pytest.raises(LabError, match="at least one picture"):
        encode_images(tiny, [])
    with pytest.raises(LabError, match=r"uint8 values .* got torch\.float32 of \[2, 72, 72, 3\]"):
        encode_images(tiny, np.zeros((2, 72, 72, 3), dtype=np.float32))
    with pytest.raises(LabError, match="Expected a PIL picture"):
        encode_images(tiny, [3])


def test_bad_texts(tiny):
    with pytest.raises(LabError, match="at least one text"):
        encode_texts(tiny, [])
    with pytest.raises(LabError, match="Text 1 of 2 is not a string but None"):
        encode_texts(tiny, ["red boat", None])


@pytest.fixture(scope="module")
def diverged(tiny):
    """A model one weight of whose towers is not a number."""
    clip = replace(tiny, model=copy.deepcopy(tiny.model))
    with torch.no_grad():
        text_tower(clip.model).positional_embedding[3] = torch.nan
        next(clip.model.visual.parameters()).fill_(torch.inf)
    return clip


@pytest.mark.parametrize("encode", [encode_texts, encode_texts_by_token])
def test_features_of_texts_that_are_no_numbers_are_refused(encode, diverged, world_texts):
    texts = world_texts([1, 9, 9])  # the first has no fourth position, unless it is padded
    with pytest.raises(NotFiniteError, match=r"for [23] of 3 texts"):
        encode(diverged, texts)


@pytest.mark.parametrize("encode", [encode_images, encode_images_by_token])
def test_features_of_pictures_that_are_no_numbers_are_refused(encode, diverged, pictures):
    with pytest.raises(NotFiniteError, match="for 5 of 5 pictures"):
        encode(diverged, pictures)


@pytest.mark.parametrize("encode", [encode_images, encode_images_by_token])
@pytest.mark.parametrize("size", [0, -1, 2.5])
def test_senseless_batches_are_refused(encode, size, tiny, pictures):
    with pytest.raises(LabError, match="batch_size must be a whole number from 1"):
        encode(tiny, pictures, batch_size=size)
