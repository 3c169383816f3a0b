"""COCO's layout: what is read, what is refused, what is counted and named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from longclip_lab.data import coco, open_data
from longclip_lab.data.validation import check_image
from longclip_lab.errors import LabError

CAPTIONS = {
    "a.jpg": ["A red boat. ", "A boat on a lake"],
    "b.jpg": ["Two cats."],
    "c.jpg": ["A kite.", "A kite in the sky.", "Sky."],
}


def write_coco(root: Path, captions: dict[str, list[str]] = CAPTIONS, split: str = "val2017"):
    """A COCO folder of drawn JPEGs; returns the caption file's content for tests that spoil it."""
    (root / split).mkdir(parents=True)
    (root / "annotations").mkdir()
    content: dict = {"images": [], "annotations": []}
    for number, (name, texts) in enumerate(captions.items(), 1):
        noise = np.random.default_rng(number).integers(0, 255, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / split / name)
        content["images"].append({"id": number, "file_name": name})
        content["annotations"] += [
            {"id": 100 * number + i, "image_id": number, "caption": text}
            for i, text in enumerate(texts)
        ]
    rewrite(root, content, split)
    return content


def rewrite(root: Path, content: object, split: str = "val2017") -> None:
    path = root / "annotations" / f"captions_{split}.json"
    path.write_text(json.dumps(content), encoding="utf-8")


def test_reads_captions_in_the_order_of_the_file(tmp_path):
    write_coco(tmp_path)
    pairs = coco(tmp_path)
    assert [path.name for path in pairs.images] == ["a.jpg", "b.jpg", "c.jpg"]
    assert pairs.short == ["A red boat.", "Two cats.", "A kite."]
    assert pairs.long[0] == "A red boat. A boat on a lake"
    assert pairs.captions[2] == ["A kite.", "A kite in the sky.", "Sky."]
    assert pairs.skipped == {}
    assert pairs.source["pairs"] == 3
    assert pairs.source["captions"] == 6
    json.dumps(pairs.source)


def test_pictures_that_the_file_does_not_list_are_counted_and_named(tmp_path):
    write_coco(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "val2017" / "extra.jpg")
    (tmp_path / "val2017" / "notes.txt").write_text("not a picture")
    pairs = coco(tmp_path)
    assert len(pairs) == 3
    assert pairs.skipped == {"no caption (not in the caption file)": ["extra.jpg"]}


def test_hash_is_of_the_content_and_not_of_the_place(tmp_path):
    write_coco(tmp_path / "one")
    write_coco(tmp_path / "two")
    first = coco(tmp_path / "one").source["hash"]
    assert coco(tmp_path / "two").source["hash"] == first
    Image.new("RGB", (9, 9)).save(tmp_path / "two" / "val2017" / "b.jpg")
    assert coco(tmp_path / "two").source["hash"] != first
    assert coco(tmp_path / "two", verify=False).source["hash_of"] == "captions and file names"


def spoiled(content: object = None, caption: object = None, keep: float | None = None):
    """Puts other bytes in the place of picture b.jpg, or another value in that of its caption."""

    def spoil(root: Path, listed: dict) -> None:
        path = root / "val2017" / "b.jpg"
        if keep is not None:
            path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
        elif content is not None:
            path.write_bytes(content)
        else:
            listed["annotations"][2]["caption"] = caption
            rewrite(root, listed)

    return spoil


def spoil_missing(root: Path, listed: dict | None) -> None:
    (root / "val2017" / "b.jpg").unlink()


def spoil_no_caption(root: Path, listed: dict) -> None:
    rewrite(root, listed | {"annotations": [listed["annotations"][i] for i in (0, 1, 3, 4, 5)]})


spoil_truncated = spoiled(keep=0.5)
DEFECTS = [
    (spoil_missing, "missing picture"),
    (spoiled(b""), "broken picture"),
    (spoil_truncated, "broken picture"),
    (spoiled(b"hello"), "broken picture"),
    (spoil_no_caption, "no caption (listed without one)"),
    (spoiled(caption=" \n"), "empty caption"),
    (spoiled(caption=float("nan")), "empty caption"),  # as pandas exports a missing one
    (spoiled(caption=7), "caption that is no text"),
    (spoiled(caption=["Two cats."]), "caption that is no text"),
    (spoiled(caption="\ud83d"), "caption with half a surrogate pair, which is no text"),
]


@pytest.mark.parametrize(("spoil", "reason"), DEFECTS)
def test_a_defect_is_an_error_or_is_counted_and_named(tmp_path, spoil, reason):
    spoil(tmp_path, write_coco(tmp_path))
    with pytest.raises(LabError, match=r"1 x .*b\.jpg.*--skip-bad"):
        coco(tmp_path)
    pairs = coco(tmp_path, skip_bad=True)
    assert [path.name for path in pairs.images] == ["a.jpg", "c.jpg"]
    assert "b.jpg" in pairs.skipped[reason][0]


def test_without_verification_missing_pictures_are_still_found(tmp_path):
    content = write_coco(tmp_path)
    spoil_truncated(tmp_path, content)
    assert len(coco(tmp_path, verify=False)) == 3
    spoil_missing(tmp_path, content)
    with pytest.raises(LabError, match=r"1 x missing picture: b\.jpg"):
        coco(tmp_path, verify=False)


def test_nothing_left_is_an_error_even_when_skipping(tmp_path):
    write_coco(tmp_path, {"b.jpg": ["Two cats."]})
    spoil_truncated(tmp_path, None)
    with pytest.raises(LabError, match="leaves no picture"):
        coco(tmp_path, skip_bad=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: [], "holds a JSON list"),
        (lambda c: {"images": c["images"]}, 'no list "annotations"'),
        (lambda c: {**c, "images": {}}, 'no list "images"'),
        (lambda c: {**c, "annotations": [3]}, r"annotations\[0\] is not an object"),
        (lambda c: {**c, "images": [{"id": 1}]}, '"file_name"'),
        (lambda c: {**c, "images": [{"file_name": "a.jpg"}]}, '"id"'),
        (lambda c: {**c, "images": c["images"] * 2}, "repeats the image id 1"),
        (lambda c: {**c, "images": [*c["images"], {"id": 9, "file_name": "a.jpg"}]}, "a.jpg"),
        (lambda c: {**c, "annotations": c["annotations"] * 2}, "repeats the annotation id 100"),
        (lambda c: {**c, "annotations": [{"image_id": 1, "text": "a"}]}, '"caption"'),
        (lambda c: {**c, "images": [*c["images"], {"id": 9, "file_name": ".//a.jpg"}]}, "a.jpg"),
        (lambda c: {**c, "images": [{"id": 1, "file_name": None}]}, '"file_name"'),
        (lambda c: {**c, "images": [{"id": 1, "file_name": "\ud800.jpg"}]}, "not valid Unicode"),
        (lambda c: {**c, "images": [{"id": 1, "file_name": "../a.jpg"}]}, "leads out"),
        (lambda c: {**c, "images": [{"id": 1, "file_name": "/etc/a.jpg"}]}, "leads out"),
        (lambda c: {**c, "images": [{"id": 1, "file_name": "..\\a.jpg"}]}, "leads out"),
        (lambda c: {**c, "images": [{"id": 1, "file_name": "C:\\a.jpg"}]}, "leads out"),
        (lambda c: {**c, "images": c["images"][:1]}, "not listed: image_id 2"),
    ],
)
def test_a_caption_file_of_the_wrong_form_is_refused(tmp_path, change, message):
    rewrite(tmp_path, change(write_coco(tmp_path)))
    with pytest.raises(LabError, match=message):
        coco(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b'{"images": [', "is not JSON: .* line 1, column 13"),
        ('{"images": "é"}'.encode("latin-1"), "not UTF-8 text: line 1 has the byte 0xe9"),
        ('{"images": []}'.encode("utf-16"), "is UTF-16 text.*iconv -f UTF-16"),
        (b'{"images": [], "images": [1]}', "'images' more than once"),
        (b'{"images": [' + b"1" * 4400 + b"]}", "cannot be read"),
        (b"[" * 100_000, "nested too deeply|is not JSON"),
    ],
)
def test_a_caption_file_that_cannot_be_read_is_refused(tmp_path, content, message):
    write_coco(tmp_path)
    (tmp_path / "annotations" / "captions_val2017.json").write_bytes(content)
    with pytest.raises(LabError, match=message):
        coco(tmp_path)


def test_missing_places_are_named(tmp_path):
    with pytest.raises(LabError, match=r"There is no folder .*nowhere"):
        coco(tmp_path / "nowhere")
    write_coco(tmp_path)
    with pytest.raises(LabError, match=r"captions_val2018\.json\. Did you mean val2017"):
        coco(tmp_path, "val2018")
    with pytest.raises(LabError, match="plain name"):
        coco(tmp_path, "../val2017")
    rewrite(tmp_path, {"images": [], "annotations": []}, "train2017")
    with pytest.raises(LabError, match="should hold the pictures"):
        coco(tmp_path, "train2017")


@given(keep=st.floats(0.02, 0.98))
def test_every_truncated_jpeg_is_found(tmp_path_factory, keep):
    path = tmp_path_factory.mktemp("cut") / "a.jpg"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    assert not check_image(path).defect
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    assert check_image(path).defect


def test_subset_keeps_the_four_fields_together(tmp_path):
    write_coco(tmp_path)
    part = coco(tmp_path).subset([2, 0])
    assert [path.name for path in part.images] == ["c.jpg", "a.jpg"]
    assert part.short == ["A kite.", "A red boat."]
    assert part.source["subset"] == {"of": 3, "pairs": 2}
    with pytest.raises(LabError, match="there is no pair 3"):
        coco(tmp_path).subset([3])


def test_open_data_by_name(tmp_path):
    write_coco(tmp_path)
    assert open_data("coco", root=tmp_path).name == "coco/val2017"
    with pytest.raises(LabError, match="--root"):
        open_data("coco")
    with pytest.raises(LabError, match="takes no root"):
        open_data("world", root=tmp_path)
