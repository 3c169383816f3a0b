"""Captions on their way back into training."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from longclip_lab import data, models, training, world
from longclip_lab.errors import LabError
from longclip_lab.recaptioning import (
    Asking,
    load_captioner,
    open_folder,
    read_lines,
    recaption,
    to_sharegpt4v,
    with_captions,
)
from longclip_lab.training import recipes

BRIEF = Asking(max_new_tokens=16)


@pytest.fixture(scope="module")
def pairs():
    return world.pairs(16)


@pytest.fixture(scope="module")
def described(folders, llava, pairs, tmp_path_factory):
    """The folders of captions by two captioners."""
    home = tmp_path_factory.mktemp("described")
    asked = {"llava": llava, "instructblip": load_captioner(folders["instructblip"])}
    for name, captioner in asked.items():
        recaption(captioner, pairs, home / name, BRIEF)
    return home / "llava", home / "instructblip"


@pytest.fixture(scope="module")
def on_disk(pairs, tmp_path_factory):
    """The same pictures in COCO's manner: a folder in a folder."""
    root = tmp_path_factory.mktemp("on-disk")
    (root / "train").mkdir()
    for i, image in enumerate(pairs.images):
        Image.fromarray(image).save(root / "train" / f"{i}.png")
    paths = [root / "train" / f"{i}.png" for i in range(16)]
    texts = [[text] for text in pairs.short]
    return root, data.Pairs("photos", paths, pairs.short, pairs.long, texts)


def test_each_folder_becomes_a_captioner(described, pairs):
    joined = with_captions(pairs, *described)
    assert len(joined) == 16
    assert joined.skipped == {}
    assert set(joined.captioners[0]) == {"LLaVA", "InstructBLIP"}
    for index, line in enumerate(read_lines(described[0])):
        assert joined.captioners[index]["LLaVA"] == joined.long[index] == line.caption
    np.testing.assert_array_equal(joined.images, pairs.images)
    assert joined.short == pairs.short
    assert [facts["captioner"] for facts in joined.source["recaptioned"]] == [
        "LLaVA",
        "InstructBLIP",
    ]


def test_a_step_trains_on_them(described, pairs):
    clip = models.new_tiny(seed=1)
    joined = data.keep_known_words(with_captions(pairs, *described), clip.tokenizer)
    recipe = replace(
        recipes.longclip("tiny"), objective="mixed", batch_size=8, steps=1, warmup_steps=0,
        log_every=1, subcaptions=1, captioners=("LLaVA", "InstructBLIP"), hard_negative_group=1,
    )  # fmt: skip
    run = training.train(clip, recipe, joined, progress=False)
    assert [np.isfinite(row["loss"]) for row in run.history] == [True]
    assert set(run.drawn.by_captioner) == {"LLaVA", "InstructBLIP"}


def test_pictures_are_found_wherever_the_data_lie_now(llava, on_disk, tmp_path):
    root, photos = on_disk
    recaption(llava, photos, tmp_path / "shallow", BRIEF)
    recaption(llava, open_folder(root), tmp_path / "deep", BRIEF, root=root)
    assert read_lines(tmp_path / "shallow")[0].key == "0.png"
    assert {line.key for line in read_lines(tmp_path / "deep")} == {
        f"train/{i}.png" for i in range(16)
    }
    shallow, deep = (with_captions(photos, tmp_path / name) for name in ("shallow", "deep"))
    assert shallow.long == deep.long
    assert with_captions(photos.subset([3, 1]), tmp_path / "deep").long == [
        deep.long[3],
        deep.long[1],
    ]


def test_pictures_without_a_caption_are_named(llava, on_disk, tmp_path):
    photos = on_disk[1]
    folder = tmp_path / "captions"
    recaption(llava, photos.subset(range(14)), folder, BRIEF)
    path = folder / "000000.jsonl"
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    lines[2]["caption"] = ""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    joined = with_captions(photos, folder)
    assert joined.skipped == {"no new caption": ["2.png", "14.png", "15.png"]}
    assert len(joined) == 13
    assert joined.source["recaptioned"][0]["pictures"] == 13
    # Another captioner that has described them keeps those pictures in.
    other = replace(llava, name="other")
    recaption(other, photos, tmp_path / "other", BRIEF)
    both = with_captions(photos, folder, tmp_path / "other")
    assert (len(both), both.skipped) == (16, {})
    assert [set(both.captioners[index]) for index in (0, 2)] == [{"LLaVA", "other"}, {"other"}]
    assert [facts["pictures"] for facts in both.source["recaptioned"]] == [13, 16]


def test_captions_of_other_pictures_are_refused(llava, described, on_disk, tmp_path):
    with pytest.raises(LabError, match="describes other pictures than world"):
        with_captions(world.pairs(16, seed=8), described[0])
    with pytest.raises(LabError, match="no caption of photos's pictures"):
        with_captions(on_disk[1], described[0])
    with pytest.raises(LabError, match="two sets of captions by LLaVA"):
        with_captions(world.pairs(16), described[0], described[0])
    with pytest.raises(LabError, match="which folders"):
        with_captions(world.pairs(16))
    root, photos = on_disk
    recaption(llava, photos.subset([0]), tmp_path / "one", BRIEF)
    (root / "other").mkdir(exist_ok=True)
    twins = data.Pairs(
        "twins", [root / "train" / "0.png", root / "other" / "0.png"], ["a"] * 2, ["a"] * 2,
        [["a"]] * 2,
    )  # fmt: skip
    with pytest.raises(LabError, match=r"0\.png would go to two pictures"):
        with_captions(twins, tmp_path / "one")


def test_they_become_sharegpt4vs_json(llava, on_disk, tmp_path):
    root, photos = on_disk
    recaption(llava, photos, tmp_path / "captions", BRIEF, root=root)
    table = tmp_path / "captions.json"
    assert to_sharegpt4v(tmp_path / "captions", table) == 16
    first = json.loads(table.read_text())[0]
    assert first["image"] == "train/0.png"
    assert first["conversations"][0]["value"] == "<image>\nDescribe the image in detail."
    recaption(llava, world.pairs(2), tmp_path / "world", BRIEF)
    with pytest.raises(LabError, match="those of world are none"):
        to_sharegpt4v(tmp_path / "world", table)
    read = data.recaptioned(root, "sharegpt4v", table=table, verify=True)
    assert read.long == with_captions(photos, tmp_path / "captions").long
