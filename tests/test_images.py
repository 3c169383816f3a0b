"""One opener of images: every odd file gives the right pixels, or the right reason, everywhere."""

from __future__ import annotations

import io
import json
import os
import struct
import tarfile
import warnings
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, features

from longclip_lab import images, models, search, world
from longclip_lab.data import Pairs, check_shards, coco, open_shards, write_shards
from longclip_lab.data.validation import check_image
from longclip_lab.errors import LabError
from longclip_lab.evaluation import comparable, evaluate
from longclip_lab.images import FORMATS, ImageError, decode_image, format_of, open_image
from longclip_lab.models.encoding import images_hash
from longclip_lab.recaptioning import open_folder
from longclip_lab.recaptioning.run import decoded_content, image_runs
from longclip_lab.training import Recipe
from longclip_lab.training.data import stored_features
from longclip_lab.training.streaming import StreamedPairs
from longclip_lab.views.html import picture

VALUES = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3
"""Of a picture that looks another from every side."""

# What EXIF's orientation says of the stored rows and columns, as the standard words it.
UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored[::-1].swapaxes(0, 1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: stored[:, ::-1].swapaxes(0, 1),
}


GREY = {256: 4, 257: 1, 259: 1, 262: 1, 277: 1, 278: 1}
"""TIFF's tags of a grey picture of 4 x 1: width, height, plain, black is 0, 1 channel, 1 strip."""


def saved(image, kind, **options):
    file = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(file, kind, **options)
    return file.getvalue()


def exif(orientation):
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def pixels_of(content):
    image = decode_image(content)
    assert image.mode == "RGB"
    return np.asarray(image)


def raw_exif(kind, count, value):
    """EXIF with an orientation of another type than it should have."""
    return b"Exif\0\0MM\0*" + struct.pack(">IHHHI4sI", 8, 1, 0x0112, kind, count, value, 0)


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_every_orientation_is_turned_upright(kind, orientation):
    options = {"lossless": True} if kind == "WEBP" else {}
    content = saved(VALUES, kind, exif=exif(orientation), **options)
    np.testing.assert_array_equal(pixels_of(content), UPRIGHT[orientation](VALUES))


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_an_opened_picture_is_turned_as_its_file_is(orientation, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(saved(VALUES, "PNG", exif=exif(orientation)))
    with Image.open(path) as opened:
        np.testing.assert_array_equal(
            np.asarray(images.as_rgb(opened)), np.asarray(open_image(path))
        )
    assert images.is_turned(path) == (orientation > 1)


def test_sixteen_bits_keep_the_upper_eight():
    grey = np.linspace(0, 65535, 24).astype(np.uint16).reshape(4, 6)
    expected = np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=2)
    for image in (
        Image.fromarray(grey),
        Image.frombytes("I;16B", (6, 4), grey.astype(">u2").tobytes()),
    ):
        for kind in ("PNG", "TIFF"):
            np.testing.assert_array_equal(pixels_of(saved(image, kind)), expected)
    pgm = b"P5 6 4 65535\n" + grey.astype(">u2").tobytes()
    np.testing.assert_array_equal(pixels_of(pgm), expected)
    np.testing.assert_array_equal(np.asarray(images.as_rgb(Image.fromarray(grey))), expected)
    # Eight bits that were written as sixteen are the eight again.
    np.testing.assert_array_equal(
        pixels_of(saved(VALUES[..., 0].astype(np.uint16) * 257, "PNG")),
        np.repeat(VALUES[..., :1], 3, 2),
    )


def test_sixteen_bits_are_turned_too():
    grey = (VALUES[..., 0].astype(np.uint16) << 8) + 7
    content = saved(grey, "PNG", exif=exif(6))
    np.testing.assert_array_equal(pixels_of(content)[..., 1], UPRIGHT[6](VALUES[..., 0]))


def test_twelve_bits_and_white_as_zero_in_tiff():
    grey = np.array([[0, 16, 4080, 4095]], np.uint16)
    packed = bytes([0, 0, 16, 0xFF, 0x0F, 0xFF])
    assert (
        pixels_of(tiff(GREY | {258: 12, 279: 6}, packed))[..., 0].tolist() == (grey >> 4).tolist()
    )
    data = np.array([0, 256, 65280, 65535], "<u2").tobytes()
    assert pixels_of(tiff(GREY | {258: 16, 262: 0, 279: 8}, data))[0, :, 0].tolist() == [
        255,
        254,
        0,
        0,
    ]


def tiff(tags, data):
    """The smallest TIFF file: a header, one directory of long numbers, the pixels."""
    at = 8 + 2 + 12 * (len(tags) + 1) + 4
    tags = dict(sorted((tags | {273: at}).items()))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + data


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.ones((4, 6), np.float32), "floating-point values"),
        (np.ones((4, 6), np.int32), "32-bit values"),
    ],
)
def test_values_without_a_white_are_refused(image, reason, tmp_path):
    path = tmp_path / "depth.tif"
    path.write_bytes(saved(image, "TIFF"))
    assert reason in check_image(path).defect
    with pytest.raises(LabError, match=rf"depth\.tif is not a picture that can be read: {reason}"):
        open_image(path)
    with pytest.raises(LabError, match=reason):
        models.pixels(models.load("tiny"), [Image.fromarray(image)])


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "HSV", "La", "RGBa"]
)
def test_every_other_mode_becomes_rgb(mode):
    plain = Image.new("RGB", (6, 4), (255, 255, 255))
    if mode in ("La", "RGBa"):
        plain = plain.convert(mode[:-1] + "A")
    np.testing.assert_array_equal(np.asarray(images.as_rgb(plain.convert(mode))), 255)


def test_alpha_is_dropped_in_whatever_form():
    clear = np.dstack([VALUES, np.zeros((4, 6), np.uint8)])
    np.testing.assert_array_equal(pixels_of(saved(clear, "PNG")), VALUES)
    indexed = Image.new("P", (2, 1))
    indexed.putpalette([10, 20, 30, 40, 50, 60])
    indexed.putpixel((1, 0), 1)
    for transparency in (0, b"\0\x80"):
        content = saved(indexed, "PNG", transparency=transparency)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert pixels_of(content)[0].tolist() == [[10, 20, 30], [40, 50, 60]]


def test_of_an_animation_the_first_frame():
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "PNG", "WEBP"):
        content = saved(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
        assert pixels_of(content)[0, 0].tolist() == [255, 0, 0]


BAD_EXIF = {
    "a text as orientation": raw_exif(2, 2, b"6\0\0\0"),
    "a fraction with a zero": raw_exif(5, 1, b"\0\0\0\x08"),
    "no such type": raw_exif(99, 1, b"\0\x06\0\0"),
    "cut in the directory": raw_exif(3, 1, b"\0\x06\0\0")[:20],
    "directory far away": b"Exif\0\0MM\0*\xff\xff\xff\xff",
    "no EXIF at all": b"Exif\0\0" + bytes(range(256)),
    "nothing": b"Exif\0\0",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bad", BAD_EXIF)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_that_cannot_be_read_says_nothing(kind, bad, tmp_path):
    expected = pixels_of(saved(VALUES.repeat(8, 0), kind))
    content = saved(VALUES.repeat(8, 0), kind, exif=BAD_EXIF[bad])
    np.testing.assert_array_equal(pixels_of(content), expected)
    decode_image(content, draft=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
def test_exif_of_avif_that_cannot_be_read_says_nothing():
    large = VALUES.repeat(8, 0)
    with_maker = exif(1)
    with_maker[0x010F] = "Maker"
    content = saved(large, "AVIF", exif=with_maker)
    where = content.rindex(b"II*\0" if b"II*\0" in content else b"MM\0*")
    for bad in (b"\xff" * 8, b"MM\0*\xff\xff\xff\xff"):
        odd = content[:where] + bad + content[where + 8 :]
        np.testing.assert_array_equal(pixels_of(odd), pixels_of(saved(large, "AVIF")))


def png_with(chunk, data, checksum=None):
    content = saved(VALUES, "PNG")
    checksum = zlib.crc32(chunk + data) if checksum is None else checksum
    inserted = struct.pack(">I", len(data)) + chunk + data + struct.pack(">I", checksum)
    return content[:33] + inserted + content[33:]


@pytest.mark.parametrize(
    "chunk",
    [
        (b"tEXt", b"a\0b", 1),
        (b"zTXt", b"a\0\0" + zlib.compress(bytes(2**24))),
        (b"iCCP", b"x\0\0oops"),
        (b"pHYs", b""),
        (b"iTXt", b"\xff\xfe"),
        (b"gAMA", b""),
    ],
)
def test_odd_metadata_make_no_damaged_png(chunk):
    np.testing.assert_array_equal(pixels_of(png_with(*chunk)), VALUES)


def test_a_turn_survives_other_odd_metadata():
    content = saved(VALUES, "PNG", exif=exif(6))
    bad = struct.pack(">I", 3) + b"tEXt" + b"a\0b" + b"\0\0\0\0"
    turned = pixels_of(content[:33] + bad + content[33:])
    np.testing.assert_array_equal(turned, UPRIGHT[6](VALUES))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("marker", [0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE])
def test_odd_segments_make_no_damaged_jpeg(marker):
    content = saved(VALUES.repeat(8, 0), "JPEG")
    for data in (b"", b"MPF\0II*\0", b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\x09", bytes(16)):
        segment = bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data
        odd = content[:20] + segment + content[20:]
        np.testing.assert_array_equal(pixels_of(odd), pixels_of(content))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", FORMATS)
def test_mutated_files_are_read_or_named(kind):
    """Never anything but ImageError; the check of a file and its reading agree."""
    content = saved(VALUES.repeat(8, 0), kind)
    assert format_of(content) == kind
    rng = np.random.default_rng(0)
    for _ in range(60):
        odd = bytearray(content)
        for at in rng.integers(0, len(odd), rng.integers(1, 5)):
            odd[at] = rng.integers(256)
        odd = bytes(odd[: rng.integers(1, len(odd) + 1)] if rng.random() < 0.3 else odd)
        said = []
        for draft in (False, True):
            try:
                assert decode_image(odd, draft).mode == "RGB"
                said.append("")
            except ImageError as error:
                said.append(str(error))
        assert bool(said[0]) == bool(said[1])
        assert not any(" at 0x" in text for text in said)  # the address of an object


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_what_is_cut_short_is_damaged(kind, tmp_path):
    rng = np.random.default_rng(0)
    content = saved(rng.integers(0, 256, (64, 96, 3), np.uint8), kind)
    path = tmp_path / "whatever.jpg"
    path.write_bytes(content[: len(content) // 2])
    assert check_image(path).defect.startswith("damaged")
    with pytest.raises(LabError, match=r"whatever\.jpg is not a picture that can be read: damaged"):
        open_image(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"Dear reader,", "not a picture"),
        (b"BM is short for", "not a picture"),
        (b"\0\x05\x16\x07" + bytes(80), "not a picture but what macOS notes beside a file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC, a format that is not read"),
        (b'<?xml version="1.0"?><svg>', "SVG, a format that is not read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "EPS, a format that is not read"),
        (b"II*\0\x10\0\0\0CR\2\0", "camera's raw, a format that is not read"),
        (tiff(GREY | {254: 1, 258: 8, 279: 4}, b"abcd"), "a camera's raw file"),
    ],
)
def test_what_is_no_picture_is_said(content, reason):
    with pytest.raises(ImageError, match=reason.replace("(", r"\(")):
        decode_image(content)


@pytest.fixture
def odd_folder(tmp_path):
    """Pictures that not every room used to read alike, and what is none."""
    root = tmp_path / "pictures"
    root.mkdir()
    drawn = world.pairs(8, seed=3).images
    grey = Image.fromarray(drawn[1]).convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    palette = Image.fromarray(drawn[2]).quantize(16)
    contents = {
        "turned.jpg": saved(drawn[0][:, :40], "JPEG", exif=exif(6)),
        "deep.png": saved(deep, "PNG"),
        "palette.gif": saved(palette, "GIF", transparency=3),
        "phone.jfif": saved(drawn[3], "JPEG"),
        "scan.tif": saved(drawn[4], "TIFF", exif=exif(8)),
        "really-webp.jpg": saved(drawn[5], "WEBP", lossless=True),
        "no-suffix": saved(drawn[6], "PNG"),
        "odd-exif.png": saved(drawn[7], "PNG", exif=BAD_EXIF["no EXIF at all"]),
        "print.tiff": saved(Image.fromarray(drawn[0]).convert("CMYK"), "TIFF"),
        os.fsdecode(b"caf\xe9.png"): saved(drawn[1], "PNG"),
    }
    for name, content in contents.items():
        (root / name).write_bytes(content)
    return root


@pytest.fixture(scope="module")
def clip():
    return models.load("tiny")


@pytest.mark.filterwarnings("ignore")
def test_every_room_reads_the_same_pixels(odd_folder, clip, tmp_path):
    found = open_folder(odd_folder)
    paths = found.images
    assert len(paths) == 10
    assert not found.skipped
    expected = [np.asarray(open_image(path)) for path in paths]
    seen_N3HW = models.pixels(clip, paths)
    with_pil = []
    for path in paths:
        with Image.open(path) as opened:
            opened.load()
            with_pil.append(opened.copy() if "odd" in path.name else opened)
    torch.testing.assert_close(models.pixels(clip, with_pil), seen_N3HW, rtol=0, atol=0)

    index = search.index(clip, odd_folder, tmp_path / "cache")
    encoded_ND = torch.nn.functional.normalize(models.encode_images(clip, paths), dim=-1)
    of_name = dict(zip(index.names, index.features_ND, strict=True))
    for path, feature_D in zip(paths, encoded_ND.numpy(), strict=True):
        np.testing.assert_allclose(of_name[path.name], feature_D, atol=1e-6)

    (run,) = image_runs(found).runs
    for (_, content), values in zip(run.pictures(), expected, strict=True):
        np.testing.assert_array_equal(np.asarray(decoded_content(content)), values)

    texts = ["a boat"] * 20
    pairs = Pairs("odd", [*paths, *paths], texts, texts, [[text] for text in texts])
    shards = write_shards(pairs, tmp_path / "shards")
    assert check_shards(str(tmp_path / "shards")).ok
    for sample, values in zip(shards.samples(0), expected * 2, strict=True):
        np.testing.assert_array_equal(np.asarray(decode_image(sample.image)), values)
    recipe = Recipe(
        batch_size=10, steps=2, warmup_steps=0, captions="long", num_streams=1, shuffle_buffer=20
    )
    batches = StreamedPairs(clip, shards, recipe).batches(0, 2)
    rows = {tuple(row.flatten().tolist()) for batch in batches for row in batch.pixels_B3HW}
    assert rows == {tuple(row.flatten().tolist()) for row in seen_N3HW}

    for number, values in enumerate(expected):
        shown = np.asarray(picture(pairs, number, max(values.shape)))
        np.testing.assert_array_equal(shown, values)


def test_members_of_shards_are_named_by_what_they_are(odd_folder, tmp_path):
    paths = open_folder(odd_folder).images
    texts = ["a boat"] * len(paths)
    pairs = Pairs("odd", paths, texts, texts, [[text] for text in texts])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shards = write_shards(pairs, tmp_path / "shards")
    with tarfile.open(tmp_path / "shards" / "shard-000000.tar") as tar:
        kinds = [name.split(".")[1] for name in tar.getnames() if not name.endswith("json")]
    by_name = dict(zip([path.name for path in paths], kinds, strict=True))
    assert by_name.pop(os.fsdecode(b"caf\xe9.png")) == "png"
    assert by_name == {
        "turned.jpg": "jpg",
        "deep.png": "png",
        "palette.gif": "gif",
        "phone.jfif": "jpg",
        "scan.tif": "tif",
        "really-webp.jpg": "webp",
        "no-suffix": "png",
        "odd-exif.png": "png",
        "print.tiff": "tif",
    }
    assert "caf\\xe9.png" in {sample.texts.name for sample in shards.samples(0)}
    assert len(open_shards(tmp_path / "shards")) == 10


@pytest.mark.filterwarnings("ignore")
def test_a_record_states_how_images_are_read_and_old_features_are_not_used(odd_folder, tmp_path):
    clip = models.load("tiny")
    paths = open_folder(odd_folder).images
    texts = ["a boat"] * len(paths)
    pairs = Pairs("odd", paths, texts, texts, [[text] for text in texts])
    record = evaluate(clip, pairs).records[0]
    assert record.settings["images"] == images.READING
    assert "images" not in evaluate(clip, world.pairs(4)).records[0].settings
    before = replace(record, settings={**record.settings, "images": "as stored"})
    assert comparable(before, record) == [f"image reading: as stored against {images.READING}"]
    stored_features(clip, paths, tmp_path / "features")
    facts = tmp_path / "features" / "features.json"
    facts.write_text(facts.read_text().replace(images.READING, "as stored"))
    with pytest.raises(LabError, match="features of pictures that were read by other rules"):
        stored_features(clip, paths, tmp_path / "features")


def test_names_that_are_not_utf8_are_named(odd_folder, clip, tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    odd_folder = odd_folder.rename(odd_folder.with_name(os.fsdecode(b"f\xe9te")))
    (odd_folder / os.fsdecode(b"caf\xe9.txt")).write_text("a boat")
    (odd_folder / os.fsdecode(b"broken\xff.jpg")).write_text("a boat")
    index = search.index(clip, odd_folder, tmp_path / "cache")
    assert index.left_out["no picture"] == ["caf\\xe9.txt"]
    assert index.left_out["broken picture"] == ["broken\\xff.jpg (not a picture)"]
    found = index.search("a boat", top=10)
    names = [hit["picture"] for hit in json.loads(found.to_json())["hits"]]
    assert "caf\\xe9.png" in names
    found.to_json().encode()
    found.html(tmp_path / "page.html")
    assert "f\\xe9te: a boat" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "caf\\xe9.png" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert name in index.names
    folder = open_folder(odd_folder)
    keys = [key for key, _ in image_runs(folder).runs[0].pictures()]
    assert "caf\\xe9.png" in keys
    assert images_hash(folder.images).startswith("sha256:")


def test_two_names_that_read_alike_are_not_taken_for_one(tmp_path):
    for name in (b"a\xff.png", rb"a\xff.png"):
        (tmp_path / os.fsdecode(name)).write_bytes(saved(VALUES, "PNG"))
    with pytest.raises(LabError, match=r"Two pictures .* would both be called a\\xff\.png"):
        image_runs(open_folder(tmp_path))


def test_hidden_files_of_macos_stop_nothing(tmp_path, clip):
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / "val2017").mkdir()
    (root / "val2017" / "1.png").write_bytes(saved(VALUES, "PNG"))
    (root / "val2017" / "._1.png").write_bytes(b"\0\x05\x16\x07" + bytes(80))
    listed = {
        "images": [{"id": 1, "file_name": "1.png"}],
        "annotations": [{"id": 1, "image_id": 1, "caption": "a boat"}],
    }
    (root / "annotations" / "captions_val2017.json").write_text(json.dumps(listed))
    assert coco(root).skipped == {}
    assert [path.name for path in open_folder(root / "val2017").images] == ["1.png"]
    assert open_folder(root / "val2017").skipped == {"hidden": ["._1.png"]}
    assert images.image_names(root / "val2017") == ["1.png"]


def test_a_camera_s_raw_file_is_no_thumbnail(tmp_path):
    (tmp_path / "a.nef").write_bytes(saved(VALUES, "TIFF"))
    (tmp_path / "b.heic").write_bytes(saved(VALUES, "JPEG"))  # as some telephones call it
    listing = images.list_images(tmp_path)
    assert [file.name for file in listing.files] == ["b.heic"]
    assert listing.left_out == {images.CLOSED_FORMAT: ["a.nef"]}


def test_a_file_that_may_not_be_read_is_named(tmp_path):
    missing = tmp_path / ("x" * 300 + ".png")
    assert check_image(missing).defect == "missing picture"
    with pytest.raises(LabError, match="is not a picture that can be read"):
        open_image(missing)
    with pytest.raises(LabError, match="is not a picture that can be read: Is a directory"):
        open_image(tmp_path)
    with pytest.raises(LabError, match="There is no picture"):
        open_image(tmp_path / "no.png")


def test_nothing_is_turned_twice():
    """Neither what was read here before, nor what was turned by hand as Pillow does it."""
    for orientation in UPRIGHT:
        read = decode_image(saved(VALUES, "PNG", exif=exif(orientation)))
        np.testing.assert_array_equal(np.asarray(images.as_rgb(read)), np.asarray(read))
        with Image.open(io.BytesIO(saved(VALUES, "PNG", exif=exif(orientation)))) as opened:
            by_hand = ImageOps.exif_transpose(opened)
            np.testing.assert_array_equal(np.asarray(images.as_rgb(by_hand)), np.asarray(by_hand))
