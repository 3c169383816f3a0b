"""Stored features: those of the tower, made once, refused for another, mended when cut short."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from longclip_lab import models, world
from longclip_lab.cache import DONE, FEATURES, PART
from longclip_lab.errors import LabError
from longclip_lab.models.encoding import pictures_hash
from longclip_lab.training import data as feature_store
from longclip_lab.training import stored_features


@pytest.fixture(scope="module")
def clip():
    return models.build_lotlip("tiny-tower", "world", 0)


@pytest.fixture(scope="module")
def images():
    return world.pairs(20, seed=5).images


@pytest.fixture(autouse=True)
def short_runs(monkeypatch):
    monkeypatch.setattr(feature_store, "RUN", 8)


@pytest.fixture
def passes(monkeypatch):
    """How many pictures go through the tower."""
    counted, original = [], feature_store.image_states

    def counting(visual, pixels_B3HW, tokens=False):
        if pixels_B3HW.any():  # not the blank one that only asks for the shape
            counted.append(len(pixels_B3HW))
        return original(visual, pixels_B3HW, tokens)

    monkeypatch.setattr(feature_store, "image_states", counting)
    return counted


def test_they_are_the_towers_features(clip, images, tmp_path):
    expected = models.encode_images(clip, images).numpy()
    stored = stored_features(clip, images, tmp_path / "store")
    assert isinstance(stored, np.memmap)
    assert stored.shape == (20, 128)
    assert np.allclose(stored, expected, atol=1e-5)
    assert np.array_equal(stored_features(clip, images), stored)
    half = stored_features(clip, images, half=True)
    assert half.dtype == np.float16
    assert np.allclose(half, expected, atol=1e-2)


def test_patch_tokens_too(clip, images):
    stored = torch.from_numpy(stored_features(clip, images, tokens=True))
    expected = models.encode_image_tokens(clip.model, models.pixels(clip, images))
    assert stored.shape == (20, 36, 128)
    assert torch.allclose(stored, expected, atol=1e-4)


def test_a_trained_head_stays_outside(images):
    clip = models.build_lotlip("tiny-tower", "world", 0, embed_dim=16)
    stored = torch.from_numpy(stored_features(clip, images))
    assert stored.shape == (20, 128)
    finished = models.towers.finish_image(clip.model.visual, stored)
    assert torch.allclose(finished, models.encode_images(clip, images), atol=1e-4)


def test_made_once(clip, images, passes, tmp_path):
    first = stored_features(clip, images, tmp_path / "store")
    assert passes == [8, 8, 4]
    second = stored_features(clip, images, tmp_path / "store")
    assert passes == [8, 8, 4]
    assert np.array_equal(first, second)
    with pytest.raises(ValueError, match="read-only"):
        second[0] = 0


def test_an_interrupted_store_is_finished_to_the_same_bits(clip, images, passes, tmp_path):
    whole = np.array(stored_features(clip, images, tmp_path / "whole"))
    broken = tmp_path / "broken"

    def interrupted(*_, **__):
        if len(passes) == 4:
            raise KeyboardInterrupt
        return original(*_, **__)

    original = feature_store.image_states
    feature_store.image_states = interrupted
    try:
        with pytest.raises(KeyboardInterrupt):
            stored_features(clip, images, broken)
    finally:
        feature_store.image_states = original
    assert sorted(path.name for path in broken.iterdir()) == [DONE, "features.json", PART]
    assert np.load(broken / DONE).tolist() == [True, False, False]
    passes.clear()
    assert np.array_equal(stored_features(clip, images, broken), whole)
    assert passes == [8, 4]
    assert sorted(path.name for path in broken.iterdir()) == ["features.json", FEATURES]


@pytest.mark.parametrize("damaged", [PART, DONE])
def test_a_half_written_store_is_rebuilt(damaged, clip, images, passes, tmp_path):
    whole = np.array(stored_features(clip, images, tmp_path))
    (tmp_path / FEATURES).rename(tmp_path / PART)
    np.save(tmp_path / DONE, np.ones(3, bool))
    content = (tmp_path / damaged).read_bytes()
    (tmp_path / damaged).write_bytes(content[:-2])
    passes.clear()
    assert np.array_equal(stored_features(clip, images, tmp_path), whole)
    assert passes == [8, 8, 4]


def test_a_kill_before_the_record_is_written_is_no_obstacle(clip, images, tmp_path):
    (tmp_path / ".features.json.x7.part").write_text('{"format"')
    assert len(stored_features(clip, images, tmp_path)) == 20


HEADS = [b"{'descr': '<f4", b"{'descr': 3, 'fortran_order': False, 'shape': ()}", b"\0" * 20]


@pytest.mark.parametrize("head", [*HEADS, None, b"PK\3\4"])
def test_a_finished_store_that_was_damaged_is_rebuilt(head, clip, images, tmp_path):
    whole = np.array(stored_features(clip, images, tmp_path))
    content = (tmp_path / FEATURES).read_bytes()
    if head is None:
        content = content[: len(content) // 2]
    elif head in HEADS:
        content = (
            content[:10] + head.ljust(content.index(b"\n") - 10) + content[content.index(b"\n") :]
        )
    else:
        content = head + content[len(head) :]
    (tmp_path / FEATURES).write_bytes(content)
    assert np.array_equal(stored_features(clip, images, tmp_path), whole)


def test_features_of_anything_else_are_refused(clip, images, tmp_path):
    stored_features(clip, images, tmp_path)
    other = models.build_lotlip("tiny-tower", "world", 0, pretrained_image=False, seed=1)
    with pytest.raises(LabError, match=r"another image tower \(sha256:.* there, sha256:.* now\)"):
        stored_features(other, images, tmp_path)
    with pytest.raises(LabError, match="other pictures"):
        stored_features(clip, images[::-1].copy(), tmp_path)
    with pytest.raises(LabError, match=r"another kind .*False there, True now"):
        stored_features(clip, images, tmp_path, tokens=True)
    with pytest.raises(LabError, match="another precision"):
        stored_features(clip, images, tmp_path, half=True)
    card = {**clip.card, "preprocess": {**clip.card["preprocess"], "mean": [0.4] * 3}}
    with pytest.raises(LabError, match="other preprocessing"):
        stored_features(replace(clip, card=card), images, tmp_path)


def test_another_text_tower_is_no_reason(clip, images, tmp_path):
    first = stored_features(clip, images, tmp_path)
    corners = models.build_lotlip("tiny-tower", "world", 2, seed=3)
    assert np.array_equal(stored_features(corners, images, tmp_path), first)


def test_a_folder_of_something_else_is_left_alone(clip, images, tmp_path):
    (tmp_path / "thesis.tex").write_text("important")
    with pytest.raises(LabError, match="holds no stored features"):
        stored_features(clip, images, tmp_path)
    with pytest.raises(LabError, match="is a file"):
        stored_features(clip, images, tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    record = tmp_path / "store" / "features.json"
    record.parent.mkdir()
    for content in ("{", "[]", '{"a": 1, "a": 2}', '{"shape": NaN}'):
        record.write_text(content)
        with pytest.raises(LabError, match=r"features\.json.*Delete the folder, or give another"):
            stored_features(clip, images, record.parent)
        assert record.read_text() == content


@pytest.mark.parametrize("workers", [0, 1])
def test_pictures_on_disk(workers, clip, images, tmp_path):
    paths = [tmp_path / f"{i:02d}.png" for i in range(len(images))]
    for path, values in zip(paths, images, strict=True):
        Image.fromarray(values).save(path)
    stored = stored_features(clip, paths, tmp_path / "store", workers=workers)
    assert np.allclose(stored, stored_features(clip, images), atol=1e-4)
    before = pictures_hash(paths)
    paths[3].unlink()
    with pytest.raises(LabError, match=r"no picture .*03\.png"):
        stored_features(clip, paths, tmp_path / "other", workers=workers)
    Image.fromarray(images[0][:8]).save(paths[3])
    assert pictures_hash(paths) != before


def test_pictures_that_are_mapped_read_only(clip, images, tmp_path, recwarn):
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert np.array_equal(stored_features(clip, mapped), stored_features(clip, images))
    assert pictures_hash(mapped) == pictures_hash(images)
    assert not recwarn


def test_the_record_can_be_read(clip, images, tmp_path):
    stored_features(clip, images, tmp_path)
    record = json.loads((tmp_path / "features.json").read_text())
    assert (record["shape"], record["dtype"], record["tokens"]) == ([20, 128], "float32", False)
