"""What is found, and in what: order, scores, folders, files that are no pictures."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image
from torch.nn import functional as F

from longclip_lab import models, search
from longclip_lab.errors import LabError


def test_what_is_found_is_a_literal_dot_product(clip, pairs, folder, cache):
    index = search.index(clip, folder, cache)
    images_ND = F.normalize(models.encode_images(clip, pairs.images), dim=1)
    texts_MD = F.normalize(models.encode_texts(clip, pairs.short).features_ND, dim=1)
    scores_MN = (texts_MD @ images_ND.T).numpy()
    names = [f"{i:02}.png" for i in range(10)] + ["trips/10.png", "trips/lake/11.png"]
    for found, scores_N in zip(index.search(pairs.short, top=4), scores_MN, strict=True):
        best = np.argsort(-scores_N)[:4]
        assert list(found.names) == [names[i] for i in best]
        assert found.scores == pytest.approx(scores_N[best], abs=1e-5)
        assert [path.is_file() for path in found.paths] == [True] * 4


def test_broken_hidden_and_other_files_are_named(clip, folder, cache):
    whole = (folder / "00.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "letter.jpg").write_text("Dear reader,")
    (folder / "empty.webp").touch()
    (folder / "notes.txt").write_text("boats")
    (folder / "phone.HEIC").write_bytes(b"ftypheic")
    (folder / ".hidden.png").write_bytes(whole)
    (folder / ".thumbnails").mkdir()
    (folder / ".thumbnails" / "00.png").write_bytes(whole)
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / "itself.png").symlink_to(folder / "itself.png")
    (folder / "round").symlink_to(folder)
    os.mkfifo(folder / "pipe.png")
    for _ in range(2):  # read, and from the cache
        index = search.index(clip, folder, cache)
        assert len(index) == 12
        broken = dict(name.split(" (", 1) for name in index.left_out["broken picture"])
        assert set(broken) == {"cut.png", "letter.jpg", "empty.webp"}
        assert broken["cut.png"].startswith("damaged: ")
        assert broken["letter.jpg"] == "not a picture)"
        assert broken["empty.webp"] == "empty file)"
        assert index.left_out["no picture"] == ["notes.txt"]
        assert index.left_out["hidden"] == [".hidden.png", ".thumbnails"]
        assert index.left_out["cannot be opened"] == ["gone.png", "itself.png", "pipe.png"]
        assert index.left_out["linked folder, not followed"] == ["round"]
        assert index.left_out["a format that is not read; save as JPEG or PNG"] == ["phone.HEIC"]


def test_folders_that_hold_no_pictures(clip, tmp_path, cache):
    with pytest.raises(LabError, match=r"There is no folder .*nowhere"):
        search.index(clip, tmp_path / "nowhere", cache)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LabError, match=r"Expected pictures .*empty, it is empty"):
        search.index(clip, tmp_path / "empty", cache)
    (tmp_path / "pictures.zip").write_bytes(b"PK")
    with pytest.raises(LabError, match=r"pictures.zip is a file. If it is an archive, unpack it"):
        search.index(clip, tmp_path / "pictures.zip", cache)
    (tmp_path / "empty" / "notes.txt").touch()
    (tmp_path / "empty" / "a.jpg").touch()
    with pytest.raises(LabError, match=r"1 x no picture .*notes.txt.*; 1 x broken .*a.jpg"):
        search.index(clip, tmp_path / "empty", cache)


def test_a_picture_taken_sideways_is_turned(clip, pairs, tmp_path, cache):
    folder = tmp_path / "camera"
    folder.mkdir()
    upright = Image.fromarray(pairs.images[0])
    turned = Image.Exif()
    turned[0x0112] = 6  # "turn me a quarter to the right"
    upright.save(folder / "upright.png")
    upright.rotate(90, expand=True).save(folder / "sideways.png", exif=turned)
    index = search.index(clip, folder, cache)
    np.testing.assert_allclose(*index.features_ND, atol=1e-5)


def test_asking_for_more_than_there_is_and_for_nothing(clip, pairs, folder, cache):
    index = search.index(clip, folder, cache)
    assert len(index.search(pairs.short[0], top=100)) == 12
    for nothing in ("", "  \n", [], ["a boat", " "]):
        with pytest.raises(LabError, match="query"):
            index.search(nothing)
    with pytest.raises(LabError, match="top, the number of pictures to find, must be"):
        index.search("a boat", top=0)
    with pytest.raises(LabError, match=r"no picture '0.png' in the index; its 12 names .*00.png"):
        index.rank("a boat", "0.png")
