"""What is wrong with a benchmark on disk is said by name; half of one is never scored unsaid."""

from __future__ import annotations

import json
import os
import pickle
import zipfile

import numpy as np
import pytest
from PIL import Image

from longclip_lab.data import get_protocol, open_benchmark, verify
from longclip_lab.errors import LabError

DESCRIBED = ("sharegpt4v-1k", "dci-full", "long-dci", "iiw", "docci")
KARPATHY = ("coco-karpathy-5k", "flickr30k-1k")
LISTED = (*DESCRIBED, "coco-val2017-first5", *KARPATHY, "flickr30k-31k")
ONE_FILE = tuple(name for name in LISTED if name not in ("dci-full", "iiw"))


def left_with(layout, root, count: int, reason: str, texts: int | None = None):
    """Refused by default; with allow_partial the rest is opened, said to be partial and named."""
    with pytest.raises(LabError, match=rf"is not whole.*{reason}.*allow_partial"):
        open_benchmark(layout.protocol, root)
    rest = open_benchmark(layout.protocol, root, allow_partial=True)
    assert len(rest) == count
    assert rest.partial
    assert rest.source["partial"]
    if texts is not None:
        assert len(rest.texts) == texts
    assert not verify(layout.protocol, root).ok
    return rest


def test_nothing_there(layout, tmp_path):
    with pytest.raises(LabError, match=r"lacks .*How to get it: longclip-lab data verify"):
        open_benchmark(layout.protocol, tmp_path, allow_partial=True)
    result = verify(layout.protocol, tmp_path)
    assert not result.ok
    assert result.missing
    told = str(result)
    assert all(step in told for step in layout.protocol.get)


@pytest.mark.layouts(*LISTED)
def test_a_missing_list_is_named(layout, root):
    (root / layout.listing).unlink()
    with pytest.raises(LabError, match=f"lacks .*{layout.listing.split('/')[-1]}"):
        open_benchmark(layout.protocol, root, allow_partial=True)
    assert layout.listing in " ".join(verify(layout.protocol, root).missing)


def test_a_missing_picture_is_named(layout, root):
    layout.picture(root).unlink()
    left_with(layout, root, 2, r"2 of 3 pictures.*1 x missing picture: \S*1\.jpg")
    assert any(name.endswith("1.jpg") for name in verify(layout.protocol, root).missing)


def test_a_truncated_picture_is_named(layout, root):
    path = layout.picture(root)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    rest = left_with(layout, root, 2, r"1 x broken picture: \S*1\.jpg")
    assert len(rest.skipped["broken picture"]) == 1
    assert any("1.jpg (damaged" in name for name in verify(layout.protocol, root).broken)


@pytest.mark.layouts(*DESCRIBED, *KARPATHY)
def test_a_picture_listed_twice_is_named(layout, tmp_path):
    # Of ShareGPT4V's list only as many entries are read as the benchmark has.
    before = layout.entries[:2] if layout.name == "sharegpt4v-1k" else layout.entries
    layout.write(tmp_path, [*before, layout.entries[0]])
    with pytest.raises(LabError, match=r"is not whole.*1 x listed twice: \S*1\.jpg"):
        open_benchmark(layout.protocol, tmp_path)
    rest = open_benchmark(layout.protocol, tmp_path, allow_partial=True)
    assert len(rest) == len(before)
    assert rest.partial
    assert "listed twice" in verify(layout.protocol, tmp_path).broken[0]


@pytest.mark.layouts("coco-val2017-first5")
def test_cocos_file_may_not_repeat_itself(layout, root):
    path = root / layout.listing
    content = json.loads(path.read_text())
    content["images"].append(content["images"][0])
    path.write_text(json.dumps(content))
    with pytest.raises(LabError, match="repeats the image id 1"):
        open_benchmark(layout.protocol, root, allow_partial=True)
    assert "repeats the image id 1" in verify(layout.protocol, root).broken[0]


@pytest.mark.layouts("flickr30k-31k")
def test_a_caption_of_flickr_listed_twice_is_named_with_its_line(layout, root):
    path = root / layout.listing
    path.write_text(path.read_text() + "1.jpg#0\tAgain.\n")
    with pytest.raises(LabError, match=r"caption listed twice: 1\.jpg#0 \(line 16\)"):
        open_benchmark(layout.protocol, root)


def test_an_empty_caption_is_named(layout, tmp_path):
    name, texts = layout.entries[1]
    spoilt = [layout.entries[0], (name, ["", *texts[1:]]), layout.entries[2]]
    layout.write(tmp_path, spoilt)
    several = len(texts) > 1
    left = (3, 14) if several else (2, 2)
    if layout.name == "dci-full":
        left = (2, 2)
    left_with(layout, tmp_path, left[0], r"1 x empty caption: \S*2\.", left[1])


@pytest.mark.layouts("sharegpt4v-1k", "dci-full", "iiw", "docci", "coco-val2017-first5", *KARPATHY)
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (float("nan"), "empty caption"),
        (" \u2003", "empty caption"),
        (7, "caption that is no text"),
        (["A boat."], "caption that is no text"),
        ("\ud83d", "caption with half a surrogate pair, which is no text"),
    ],
)
def test_what_is_no_caption_is_named_in_every_layout(layout, root, value, reason):
    """Of every text of picture 2.jpg, whatever the layout calls it."""
    wanted = set(layout.entries[1][1])
    wanted |= {part for text in wanted for part in text.split("\n")}

    def spoil(found):
        if isinstance(found, dict):
            return {key: spoil(one) for key, one in found.items()}
        if isinstance(found, list):
            return [spoil(one) for one in found]
        return value if found in wanted and found != "A red boat. It is 3.5 m long." else found

    for path in root.rglob("*.json*"):
        parts = path.read_text().splitlines() if "jsonl" in path.name else [path.read_text()]
        path.write_text("\n".join(json.dumps(spoil(json.loads(part))) for part in parts))
    if layout.name == "dci-full" and reason == "empty caption":
        assert len(open_benchmark(layout.protocol, root)) == 3  # its short caption is left
        return
    left_with(layout, root, 2, rf"[15] x {reason}: \S*2\.jpg")


@pytest.mark.layouts(*DESCRIBED, *KARPATHY, "flickr30k-31k")
def test_a_picture_is_the_same_under_a_longer_name(layout, root):
    before = open_benchmark(layout.protocol, root)
    for path in [*root.rglob("*.json*"), *root.glob("*.csv"), *root.glob("*.token")]:
        text = path.read_text()
        path.write_text(text.replace("sam/images/2.jpg", "./sam//images/2.jpg"))
        if layout.name != "sharegpt4v-1k":
            path.write_text(text.replace('"2.jpg', '".//2.jpg').replace("\n2.jpg", "\n./2.jpg"))
    after = open_benchmark(layout.protocol, root)
    assert (after.images, after.source) == (before.images, before.source)


@pytest.mark.layouts("sharegpt4v-1k")
def test_the_caption_is_what_the_model_says_wherever_it_stands(layout, root):
    before = open_benchmark(layout.protocol, root)
    path = root / layout.listing
    rows = json.loads(path.read_text())
    for row in rows:
        row["conversations"].insert(0, {"from": "system", "value": "You are kind."})
    path.write_text(json.dumps(rows))
    assert open_benchmark(layout.protocol, root).texts == before.texts
    del rows[0]["conversations"][2]
    path.write_text(json.dumps(rows))
    left_with(layout, root, 2, r"1 x conversation without an answer by a model: \S*1\.jpg")


UNREADABLE = {  # how a list is spoilt, of which layouts, and what is said of it
    "cut off": (
        lambda raw: raw[: 60 if b"conversations" in raw else -12],
        (LISTED, ""),
    ),
    "latin-1": (lambda raw: raw[:-6] + b"\xe9\xe9" + raw[-6:], (LISTED, " is not UTF-8")),
    "utf-16": (
        lambda raw: raw.decode().encode("utf-16"),
        (ONE_FILE, " is UTF-16 text.*iconv -f UTF-16"),
    ),
    "long number": (
        lambda raw: raw.replace(b"{", b'{"more": ' + b"1" * 4400 + b", ", 1),
        (("sharegpt4v-1k", "docci", "coco-val2017-first5", *KARPATHY), ".* is JSON that cannot be"),
    ),
}


@pytest.mark.layouts(*LISTED)
@pytest.mark.parametrize("how", UNREADABLE)
def test_a_list_that_cannot_be_read_is_told(layout, root, how):
    spoil, (layouts, words) = UNREADABLE[how]
    path = root / layout.listing
    if layout.name in layouts:
        path.write_bytes(spoil(path.read_bytes()))
        with pytest.raises(LabError, match=f"{path.name}{words}"):
            open_benchmark(layout.protocol, root, allow_partial=True)


@pytest.mark.layouts(*ONE_FILE, "urban1k")
@pytest.mark.parametrize(("before", "after"), [("\n", "\r"), ("\n", "\r\n"), ("", "\ufeff")])
def test_line_ends_and_a_byte_order_mark_are_no_text(layout, root, before, after):
    expected = open_benchmark(layout.protocol, root)
    listed = root / layout.listing
    for path in listed.iterdir() if listed.is_dir() else [listed]:
        path.write_bytes(
            path.read_bytes().replace(before.encode(), after.encode(), -1 if before else 1)
        )
    found = open_benchmark(layout.protocol, root)
    assert (found.texts, found.source) == (expected.texts, expected.source)


@pytest.mark.layouts("urban1k")
def test_what_macos_writes_beside_the_files_of_urban_is_passed_over(layout, root):
    expected = open_benchmark(layout.protocol, root).texts
    for folder in ("image", "caption"):
        for path in list((root / folder).iterdir()):
            path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7" + bytes(80))
    assert open_benchmark(layout.protocol, root).texts == expected
    result = verify(layout.protocol, root)
    assert result.ok
    assert result.extra == []


@pytest.mark.layouts("urban1k")
def test_two_files_of_urban_that_only_the_suffix_tells_apart_are_named(layout, root):
    Image.new("RGB", (8, 8)).save(root / "image" / "10.webp")
    reason = "files that only the suffix tells apart: image/10.jpg and 10.webp"
    rest = left_with(layout, root, 3, reason, 3)
    assert rest.images[-1].name == "10.jpg"


@pytest.mark.layouts("urban1k")
def test_a_picture_of_urban_without_a_caption_is_missing_one(layout, root):
    (root / "caption" / "10.txt").unlink()
    left_with(layout, root, 2, "1 x picture without a caption: image/10.jpg")


@pytest.mark.layouts("urban1k", "coco-val2017-first5", "flickr30k-31k")
def test_extra_files_are_told_and_do_no_harm(layout, root):
    folder = root / layout.listing
    folder = folder if folder.is_dir() else layout.picture(root).parent
    (folder / "notes.md").write_text("mine")
    (folder / ".hidden").write_text("the system's")
    result = verify(layout.protocol, root)
    assert result.ok
    assert result.extra == [f"{folder.name}/notes.md"]
    assert not open_benchmark(layout.protocol, root).partial


@pytest.mark.layouts(*LISTED)
def test_a_path_that_leads_out_is_refused(layout, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.jpg")
    root = tmp_path / "root"
    layout.write(root, [*layout.entries[:2], ("../../secret.jpg", layout.entries[2][1])])
    with pytest.raises(LabError, match="leads out of the picture folder"):
        open_benchmark(layout.protocol, root, allow_partial=True)
    result = verify(layout.protocol, root)
    assert not result.ok
    assert "leads out of the picture folder" in result.broken[0]


@pytest.mark.layouts("flickr30k-31k", "long-dci")
def test_a_wrong_delimiter_is_told_with_the_line(layout, root):
    path = root / layout.listing
    path.write_text(path.read_text().replace("\t", "|"))
    with pytest.raises(LabError, match=f"{path.name}.*(line 1|header)"):
        open_benchmark(layout.protocol, root, allow_partial=True)


def test_a_zip_in_place_of_the_folder_is_told(layout, tmp_path):
    path = tmp_path / "benchmark.zip"
    zipfile.ZipFile(path, "w").close()
    with pytest.raises(LabError, match=r"benchmark\.zip is an archive, not a folder: unpack it"):
        open_benchmark(layout.protocol, path)


@pytest.mark.parametrize(
    ("name", "path"), [("urban1k", "caption"), ("imagenet", "val"), ("imagenet-o", "imagenet-o")]
)
def test_a_file_in_place_of_a_folder_of_it_is_told(name, path, tmp_path):
    zipfile.ZipFile(tmp_path / path, "w").close()
    with pytest.raises(LabError, match=f"{path} is a file, not a folder: is it an archive"):
        open_benchmark(name, tmp_path)
    assert not verify(name, tmp_path).ok


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("sharegpt4v-10k", "share4v_sam_10k.json"),
        ("cifar10", "cifar-10-batches-py/test_batch"),
        ("flickr30k-31k", "results_20130124.token"),
        ("docci", "docci_descriptions.jsonlines"),
    ],
)
def test_a_folder_in_place_of_a_file_is_told(name, path, tmp_path):
    (tmp_path / path).mkdir(parents=True)
    with pytest.raises(LabError, match=r"expected a file|There is no file"):
        open_benchmark(name, tmp_path)


@pytest.mark.layouts("urban1k")
def test_a_zip_that_was_not_unpacked_is_told(layout, tmp_path):
    zipfile.ZipFile(tmp_path / "Urban-1k.zip", "w").close()
    with pytest.raises(LabError, match=r"Urban-1k\.zip is there: unpack it"):
        open_benchmark("urban1k", tmp_path)
    assert "Urban-1k.zip is there" in verify("urban1k", tmp_path).missing[0]


@pytest.mark.layouts("coco-val2017-first5")
def test_pictures_that_were_not_unpacked_are_told(layout, root):
    os.rename(root / "val2017", root / "elsewhere")
    zipfile.ZipFile(root / "val2017.zip", "w").close()
    with pytest.raises(LabError, match=r"folder val2017 \(val2017\.zip is there: unpack it\)"):
        open_benchmark(layout.protocol, root)
    with pytest.raises(LabError, match="no picture of it that can be used"):
        open_benchmark(layout.protocol, root, allow_partial=True)


@pytest.mark.layouts("docci", "iiw", "sharegpt4v-1k", "dci-full")
def test_a_missing_field_is_told_with_its_place(layout, root):
    field = {"docci": "description", "iiw": "IIW", "sharegpt4v-1k": "value", "dci-full": "image"}
    for path in root.rglob("*.json*"):
        path.write_text(path.read_text().replace(f'"{field[layout.name]}"', '"other"'))
    where = "0.json" if layout.name == "dci-full" else "entry 0|line [12]"
    with pytest.raises(LabError, match=f"({where}).*expected a text under '{field[layout.name]}'"):
        open_benchmark(layout.protocol, root)


@pytest.mark.layouts("dci-full")
def test_a_missing_annotation_is_named(layout, root):
    (root / "densely_captioned_images" / "annotations" / "1.json").unlink()
    left_with(layout, root, 2, r"1 x missing annotation: annotations/1\.json")


@pytest.mark.layouts(*KARPATHY)
def test_a_file_without_the_split_is_told(layout, tmp_path):
    layout.write(tmp_path, [])
    with pytest.raises(LabError, match=r"no picture of the split 'test'; it has .*train"):
        open_benchmark(layout.protocol, tmp_path)
    (tmp_path / layout.listing).write_text('{"images": [{"split": ["test"]}, {"split": {}}]}')
    with pytest.raises(LabError, match=r"no picture of the split 'test'; it has none"):
        open_benchmark(layout.protocol, tmp_path)


@pytest.mark.layouts("urban1k")
def test_more_than_the_benchmark_is_not_the_benchmark(layout, tmp_path):
    layout.write(tmp_path, [*layout.entries, ("11.jpg", ["One too many."])])
    left_with(layout, tmp_path, 4, "4 pictures where there should be 3")


def test_pictures_of_imagenet_side_by_side_have_no_classes(tmp_path, write_folders):
    write_folders(tmp_path, {"val": 3})
    with pytest.raises(LabError, match=r"3 pictures side by side.*valprep\.sh"):
        open_benchmark("imagenet", tmp_path, allow_partial=True)


def test_half_of_imagenet_is_counted_and_named(tmp_path, write_folders):
    write_folders(tmp_path / "val", {"n01440764": 50, "n01443537": 49, "mine": 1})
    with pytest.raises(LabError, match=r"99 of 50,000 pictures.*998 x class without a folder"):
        open_benchmark("imagenet", tmp_path)
    result = verify("imagenet", tmp_path, decode=False)
    assert "val/n01443537/ has 49: class with too few pictures" in result.missing
    assert result.broken == ["mine: folder that is no class"]
    rest = open_benchmark("imagenet", tmp_path, allow_partial=True)
    assert rest.partial
    assert len(rest.class_names) == 1000  # the other classes stay as wrong answers


def test_a_cifar_that_is_not_the_published_one_is_not_unpickled(tmp_path):
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.parent.mkdir()

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    path.write_bytes(pickle.dumps({"data": Bomb()}))
    with pytest.raises(LabError, match="is not the published file: its MD5 is"):
        open_benchmark("cifar10", tmp_path, allow_partial=True)
    assert not (tmp_path / "exploded").exists()


def test_code_in_a_pickle_is_refused_whatever_its_md5(tmp_path, write_cifar):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    pixels = np.zeros((1, 3072), np.uint8)
    protocol = write_cifar(tmp_path, "cifar10", pixels, [0], more=Bomb())
    with pytest.raises(LabError, match=r"it would run .*mkdir"):
        open_benchmark(protocol, tmp_path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["urban1k", "imagenet", "cifar10"])
def test_a_root_is_needed_and_must_be_there(name, tmp_path):
    with pytest.raises(LabError, match="say where with root"):
        open_benchmark(name)
    with pytest.raises(LabError, match="There is no folder"):
        open_benchmark(name, tmp_path / "nowhere")


def test_an_unknown_name_is_told_with_near_ones():
    with pytest.raises(LabError, match="Did you mean flickr30k-31k"):
        get_protocol("flickr30k-31")
