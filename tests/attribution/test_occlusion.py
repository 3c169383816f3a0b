"""Occlusion against texts and pictures that were changed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from longclip_lab.attribution import patch_maps, token_maps
from longclip_lab.attribution.similarity import squares
from longclip_lab.errors import LabError
from longclip_lab.models import encode_images, encode_texts, pixels
from longclip_lab.text import split_sentences

TEXT = "a red boat on the left of a blue house"

TEXTS = ["causal", "both ways", "bert", "causal registers", "bert registers"]


def similarity(clip, images, texts) -> np.ndarray:
    texts_ND = encode_texts(clip, texts).features_ND
    return F.cosine_similarity(encode_images(clip, images), texts_ND, dim=-1).numpy()


def test_a_word_less(trained, drawn):
    (found,) = token_maps(trained, drawn.images[0], TEXT, method="occlusion")
    words = TEXT.split()
    without = [" ".join(words[:i] + words[i + 1 :]) for i in range(len(words))]
    full, *rest = similarity(trained, drawn.images[:1], [TEXT, *without])
    np.testing.assert_allclose(found.scores, full - np.array(rest), atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_any_batch_of_texts_less_a_word(batch_size, trained, drawn):
    images, texts = drawn.images[:3], [drawn.short[0], "boat", drawn.short[1]]
    found = token_maps(trained, images, texts, method="occlusion", batch_size=batch_size)
    expected = token_maps(trained, images, texts, method="occlusion")
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-6)


@pytest.mark.parametrize("name", TEXTS)
def test_padding_in_place_of_a_word(name, towers, drawn):
    clip = towers.text_clip(name)
    (found,) = token_maps(clip, drawn.images[0], TEXT, method="occlusion", by="pad")
    ids_BT = clip.tokenize(TEXT).ids_BT.repeat(11, 1)
    for row in range(10):
        ids_BT[row + 1, row + 1] = clip.tokenizer.pad_id
    with torch.no_grad():
        texts_BD = clip.encode_text(ids_BT)
    full, *rest = F.cosine_similarity(encode_images(clip, drawn.images[:1]), texts_BD).numpy()
    np.testing.assert_allclose(found.scores, full - np.array(rest), atol=1e-6)


def test_a_sentence_less(trained, drawn):
    text = drawn.long[0][: split_sentences(drawn.long[0])[2].end]
    (found,) = token_maps(trained, drawn.images[0], text, method="occlusion", unit="sentence")
    spans = split_sentences(text)
    assert len(spans) == 3
    for start, end in spans:
        left = (text[:start] + text[end:]).strip()
        full, less = similarity(trained, drawn.images[:1], [text, left])
        assert found.total(start, end) == pytest.approx(full - less, abs=1e-5)


def test_texts_of_all_lengths_at_once(trained, drawn):
    texts = [drawn.long[0], drawn.short[1], "", "boat"]
    images = drawn.images[:4]
    together = token_maps(trained, images, texts, method="occlusion", batch_size=7)
    for one, image, text in zip(together, images, texts, strict=True):
        (alone,) = token_maps(trained, image, text, method="occlusion")
        np.testing.assert_allclose(one.scores, alone.scores, atol=1e-5)
    assert together[0].unread == len(trained.tokenizer.tokenize(texts[0]).ids) - 75


def test_a_word_of_many_tokens_shares_its_drop(towers, drawn):
    clip = towers.bpe_clip()
    text = "A seagreen rotunda"
    (found,) = token_maps(clip, drawn.images[0], text, method="occlusion")
    word = found.within(2, 10)
    assert word.sum() > 1
    full, less = similarity(clip, drawn.images[:1], [text, "A rotunda"])
    np.testing.assert_allclose(found.scores[word], (full - less) / word.sum(), atol=1e-6)


@pytest.mark.parametrize(("fill", "window"), [("grey", 2), ("average", 3)])
def test_a_square_over_the_picture(fill, window, trained, drawn):
    image, text = drawn.images[0], drawn.short[0]
    (found,) = patch_maps(
        trained, image, text, method="occlusion", window=window, stride=1, fill=fill
    )
    pixels_13HW = pixels(trained, image[None])
    text_BD = encode_texts(trained, [text]).features_ND
    drops, counts = np.zeros((6, 6)), np.zeros((6, 6))
    colour = pixels_13HW.mean((2, 3), keepdim=True) if fill == "average" else 0.0
    with torch.no_grad():
        full = F.cosine_similarity(trained.encode_image(pixels_13HW), text_BD).item()
        for row in range(7 - window):
            for column in range(7 - window):
                where = np.s_[12 * row : 12 * (row + window), 12 * column : 12 * (column + window)]
                hidden = pixels_13HW.clone()
                hidden[(..., *where)] = colour
                less = F.cosine_similarity(trained.encode_image(hidden), text_BD).item()
                cells = np.s_[row : row + window, column : column + window]
                drops[cells] += full - less
                counts[cells] += 1
    np.testing.assert_allclose(found.scores, drops / counts, atol=1e-5)


def test_one_picture_with_many_texts(trained, drawn, monkeypatch):
    """Its squares are run once, and each text has the scores that it has alone."""
    runs = []
    encode = trained.model.encode_image
    monkeypatch.setattr(
        trained.model, "encode_image", lambda x, **k: runs.append(len(x)) or encode(x, **k)
    )
    images = drawn.images[[0, 1, 0]]
    maps = patch_maps(trained, images, drawn.short[:3], method="occlusion")
    assert sum(runs) == 2 * (1 + 25)
    (alone,) = patch_maps(trained, images[2], drawn.short[2], method="occlusion")
    np.testing.assert_allclose(maps[2].scores, alone.scores, atol=1e-6)


@pytest.mark.parametrize("name", ["class token", "resnet", "timm maximum"])
def test_every_image_tower(name, towers, drawn):
    clip = towers.image_clip(name)
    (found,) = patch_maps(clip, drawn.images[0], "a boat", method="occlusion")
    assert found.grid == ((7, 7) if name == "resnet" else (3, 3))
    assert found.scores.any()


@pytest.mark.parametrize(
    ("grid", "window", "stride", "count"),
    [
        ((6, 6), None, None, 25),
        ((14, 14), None, None, 36),
        ((14, 14), 4, 3, 25),
        ((1, 1), None, None, 1),
    ],
)
def test_squares_cover_all(grid, window, stride, count):
    found_Khw = squares(grid, window, stride)
    assert len(found_Khw) == count
    assert found_Khw.any(axis=0).all()
    assert len(np.unique(found_Khw.sum((1, 2)))) == 1


@pytest.mark.parametrize("options", [{"window": 7}, {"window": 2, "stride": 3}, {"window": 0}])
def test_bad_squares(options, trained, drawn):
    with pytest.raises(LabError, match="expected squares of 1 to 6 patches"):
        patch_maps(trained, drawn.images[0], "a boat", method="occlusion", **options)


def test_bad_names(trained, drawn):
    with pytest.raises(LabError, match="no by='mask'"):
        token_maps(trained, drawn.images[0], "a boat", method="occlusion", by="mask")
    with pytest.raises(LabError, match=r"no fill='gray'\. Did you mean grey"):
        patch_maps(trained, drawn.images[0], "a boat", method="occlusion", fill="gray")
