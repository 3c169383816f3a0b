"""Image files: which files are images, and the pixels in them. Every room reads them here.

What a file is, its first bytes say, never its name. Its pixels are those of the first frame, turned
upright as its EXIF says, as 8-bit RGB: alpha is dropped, as CLIP's own preprocessing drops it, and
of 16 bits the upper 8 are kept, as Pillow does for colours. Values without a known white (32-bit
integers, floating point) are refused. Metadata that cannot be read say nothing: the pixels count.
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from longclip_lab.errors import LabError
from longclip_lab.files import readable

READING = "first frame, upright by EXIF, 8-bit RGB without alpha (1)"
"""How pixels are read, for records and for the identity of stored features: count up on change."""

FORMATS = {
    "JPEG": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tif",
    "AVIF": "avif",
    "JPEG2000": "jp2",
    "PPM": "ppm",
}
"""Pillow's names of the formats that are read, and the suffix that each is written under."""

SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib"),
    *(".tif", ".tiff", ".avif", ".jp2", ".ppm", ".pgm", ".pbm", ".pnm"),
}
"""Suffixes of these formats: a file that has one and is no image is a broken one, not another."""

RAW_SUFFIXES = {
    *(".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".pef", ".sr2"),
}
"""Of cameras' raw files, many of which are TIFF files with a thumbnail in front."""

CLOSED_SUFFIXES = RAW_SUFFIXES | {".heic", ".heif", ".jxl", ".svg", ".psd"}
"""Images that are not read: told apart from other files, as their owner will miss them."""

HIDDEN, OTHER = "hidden", "no picture"
CLOSED_FORMAT = "a format that is not read; save as JPEG or PNG"
LINKED, UNREADABLE = "linked folder, not followed", "cannot be opened"
NO_IMAGES = {HIDDEN, OTHER, LINKED}
"""Reasons under which `list_images` names what does not count as a picture."""

_HEAD = 512
_CODECS = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}
_SIGNATURES = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "WEBP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "GIF": re.compile(rb"GIF8[79]a"),
    # Two letters are few: the length of the header that follows belongs to it.
    "BMP": re.compile(rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL),
    "TIFF": re.compile(rb"II\*\0|MM\0\*|II\+\0|MM\0\+"),
    "JPEG2000": re.compile(rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"),
    "PPM": re.compile(rb"P[1-6](\s|#[^\n]*\n)+\d+(\s|#[^\n]*\n)+\d+\s"),
}
_CLOSED = {
    "JPEG XL": re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "),
    "PSD": re.compile(rb"8BPS"),
    "SVG": re.compile(
        rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!DOCTYPE svg[^>]*>\s*)?<svg\b", re.S
    ),
    "EPS": re.compile(rb"%!PS"),
    "PDF": re.compile(rb"%PDF"),
    "icon": re.compile(rb"\0\0\x01\0"),
    "camera's raw": re.compile(rb"IIRO|IIU\0|II\*\0....CR", re.DOTALL),
}
_OTHER = {
    "what macOS notes beside a file": re.compile(rb"\0\x05\x16[\0\x07]"),
    "a pointer of Git LFS: run `git lfs pull`": re.compile(rb"version https://git-lfs"),
    "a web page": re.compile(rb"\s*<(!doctype\s+html|html)", re.IGNORECASE),
}

_ORIENTATION, _SUBFILE, _PHOTOMETRIC, _BITS, _DNG = 0x0112, 254, 262, 258, 50706
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(LabError):
    """An image cannot be used: the message is what is wrong with it, without its name."""


def format_of(content: bytes) -> str:
    """What an image is by its first bytes, one of `FORMATS`; "" for anything else.

    >>> format_of(b"GIF89a"), format_of(b"GIF, the format")
    ('GIF', '')
    """
    head = content[:_HEAD]
    if _brands(head) & {b"avif", b"avis"}:
        return "AVIF"
    if _CLOSED["camera's raw"].match(head):  # otherwise a TIFF file
        return ""
    return next((name for name, sign in _SIGNATURES.items() if sign.match(head)), "")


def decode_image(content: bytes, draft: bool = False) -> Image.Image:
    """The image in a file's bytes: the first frame, upright, 8-bit RGB (see `longclip_lab.images`).

    With `draft` a JPEG comes at about an eighth of its size: every byte is read all the same, in a
    few milliseconds, so that damage shows. (Pillow's `verify` does not look at JPEG data.)

    Raises ImageError, and nothing else, for content that is no image or cannot be decoded.
    """
    name = format_of(content)
    if not name:
        raise ImageError(_what_it_is(content))
    if name in _CODECS and not features.check(_CODECS[name]):
        raise ImageError(f"{name}, which this installation of Pillow does not read; update Pillow")
    try:
        return _decoded(content, name, draft)
    except ImageError as error:
        first = error
    for leaner in _leaner(content, name):
        try:
            return _decoded(leaner, name, draft)
        except ImageError:
            continue
    raise first


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """The image in a file, as `decode_image` has it. Raises LabError, with the file's name."""
    try:
        return decode_image(Path(path).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise LabError(f"There is no picture {readable(path)}.") from None
    except (OSError, ValueError) as error:  # ImageError is a ValueError
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise LabError(f"{readable(path)} is not a picture that can be read: {reason}.") from None


def as_rgb(image: Image.Image) -> Image.Image:
    """An opened image by the same rules: upright by the EXIF that it still has, 8-bit RGB.

    One that is so already is returned itself. Raises ImageError as `decode_image` does.
    """
    try:
        image.load()
        return _upright(_rgb(image), _orientation(image))
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"damaged: {_said(error)}") from None


def is_turned(path: str | os.PathLike[str]) -> bool:
    """Whether the image in a file is stored otherwise than it is read (EXIF's orientation)."""
    try:
        with Image.open(path, formats=tuple(FORMATS)) as image:
            return _orientation(image) in _TURNS
    except Exception:
        return False


def is_image_file(path: Path) -> bool:
    """Whether a file is an image by its content, or at least by its name, and then a broken one.

    Only files of other names are opened: the others will be, when they are used.
    """
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            found = format_of(file.read(_HEAD))
    except OSError:
        return False
    return bool(found) and not (found == "TIFF" and path.suffix.lower() in RAW_SUFFIXES)


def image_names(folder: Path) -> list[str]:
    """The names of the image files in `folder` itself, sorted, without hidden ones (".name").

    macOS writes a hidden file ._NAME beside NAME on disks that are not its own.
    """
    return sorted(
        entry.name
        for entry in os.scandir(folder)
        if not entry.name.startswith(".") and entry.is_file() and is_image_file(Path(entry.path))
    )


@dataclass(frozen=True)
class ImageFile:
    """A picture's name relative to the folder (with "/"), its path, size in bytes and time of the
    last change in nanoseconds."""

    name: str
    path: Path
    size: int
    changed: int


@dataclass(frozen=True)
class Listing:
    """The picture files of a folder by name, and what was left out: {reason: names}."""

    root: Path
    files: tuple[ImageFile, ...]
    left_out: dict[str, list[str]]


def list_images(folder: str | os.PathLike[str], ignore: Path | None = None) -> Listing:
    """Every picture in `folder` and the folders below it, as `is_image_file` knows it.

    Hidden files and folders (".name") and links to folders are left out; so is, without a word,
    `ignore`, the cache's own folder. Whether a picture is whole is seen when it is read.

    Raises LabError if there is no such folder.
    """
    root = Path(folder).expanduser()
    if not root.exists():
        raise LabError(f"There is no folder {root}. Give the folder that holds your pictures.")
    if not root.is_dir():
        raise LabError(
            f"Expected a folder of pictures, {root} is a file. If it is an archive, unpack it."
        )
    ignored = None if ignore is None else ignore.resolve()
    files: list[ImageFile] = []
    left_out: dict[str, list[str]] = {}
    for path, reason in _walk(root, left_out, root, ignored):
        name = path.relative_to(root).as_posix()
        if not reason:
            try:
                facts = path.stat()
            except OSError:  # a link to nothing, or gone since the folder was read
                facts = None
            if facts is None or not stat.S_ISREG(facts.st_mode):  # a pipe would be waited for
                reason = UNREADABLE
            elif is_image_file(path):
                files.append(ImageFile(name, path, facts.st_size, facts.st_mtime_ns))
            else:
                reason = CLOSED_FORMAT if _is_closed(path) else OTHER
        if reason:
            left_out.setdefault(reason, []).append(readable(name))
    files.sort(key=lambda file: file.name)
    return Listing(root, tuple(files), {why: sorted(left_out[why]) for why in sorted(left_out)})


def _decoded(content: bytes, name: str, draft: bool) -> Image.Image:
    try:
        with Image.open(io.BytesIO(content), formats=[name]) as image:
            if draft:
                image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
            if name == "TIFF":
                _check_tiff(image)
            image.load()
            found = _upright(_rgb(image), _orientation(image))
            found.info = {}
            return found
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"damaged, or {name} of a kind that Pillow does not read") from None
    except Image.DecompressionBombError:
        raise ImageError("too many pixels") from None
    except Exception as error:  # Pillow's decoders report damage under a dozen types
        raise ImageError(f"damaged: {_said(error)}") from None


def _check_tiff(image: Image.Image) -> None:
    """Refuse a camera's raw file, and make what Pillow does after decoding harmless."""
    facts = image.tag_v2
    if _DNG in facts or facts.get(_SUBFILE) == 1:
        raise ImageError("a thumbnail only: is it a camera's raw file? Save it as JPEG or PNG")
    finish = image.load_end

    def load_end() -> None:
        # It reads EXIF, whose damage would be taken for the pixels'.
        try:
            finish()
        except Exception:
            return

    image.load_end = load_end


def _rgb(image: Image.Image) -> Image.Image:
    """The loaded pixels as 8-bit RGB, as they are stored."""
    if image.mode == "RGB":
        return image if type(image) is Image.Image else image.copy()
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return _eight_bits(image).convert("RGB")
    if "transparency" in image.info:  # alpha is dropped, and what is said of it may be broken
        image = image.copy()
        del image.info["transparency"]
    if image.mode in ("La", "RGBa"):  # premultiplied, which only this way is undone
        image = image.convert(image.mode.upper())
    try:
        return image.convert("RGB")
    except ValueError:
        raise ImageError(f"colours as {image.mode}, which are not read; save as RGB") from None


def _eight_bits(image: Image.Image) -> Image.Image:
    """The upper 8 of a grey image's 16 bits (or 12, in TIFF)."""
    # Pillow before 11 opens 16-bit PNG and PNM as 32-bit integers.
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        what = "floating-point" if image.mode == "F" else "32-bit"
        raise ImageError(f"{what} values, of which no white is known; save with 8 or 16 bits")
    bits, facts = 16, getattr(image, "tag_v2", {})
    if isinstance(found := facts.get(_BITS), tuple) and found and 8 < found[0] < 16:
        bits = found[0]
    values_HW = np.asarray(image).astype(np.int32).clip(0, 2**bits - 1) >> (bits - 8)
    if facts.get(_PHOTOMETRIC) == 0:  # white is zero
        values_HW = 255 - values_HW
    return Image.fromarray(values_HW.astype(np.uint8))


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(_ORIENTATION)
        return found if isinstance(found, int) else 1
    except Exception:  # EXIF that cannot be read says nothing
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _TURNS.get(orientation)
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info = {}  # or what it says of its orientation would be believed again
    return turned


def _leaner(content: bytes, name: str) -> Iterator[bytes]:
    """The same image with less and less metadata, for a decoder that trips over them."""
    strip = {"JPEG": _lean_jpeg, "PNG": _lean_png, "AVIF": _lean_avif}.get(name)
    for keep_exif in (True, False) if strip else ():
        leaner = strip(content, keep_exif)
        if leaner != content:
            yield leaner


def _lean_jpeg(content: bytes, keep_exif: bool) -> bytes:
    """Without segments that do not change pixels: only JFIF's and Adobe's do."""
    kept, at = [content[:2]], 2
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        size = int.from_bytes(content[at + 2 : at + 4], "big")
        if marker == 0xDA or size < 2:
            break
        segment = content[at : at + 2 + size]
        is_exif = keep_exif and segment[4:10] == b"Exif\0\0"
        if not (0xE1 <= marker <= 0xEF or marker == 0xFE) or marker == 0xEE or is_exif:
            kept.append(segment)
        at += 2 + size
    return b"".join([*kept, content[at:]])


def _lean_png(content: bytes, keep_exif: bool) -> bytes:
    """Without chunks that do not change pixels, which PNG marks by a small first letter."""
    wanted = {b"eXIf"} if keep_exif else set()
    kept, at = [content[:8]], 8
    while at + 12 <= len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        kind = content[at + 4 : at + 8]
        if kind[:1].isupper() or kind in wanted:
            kept.append(content[at : at + 12 + size])
        at += 12 + size
    return b"".join([*kept, content[at:]])


def _lean_avif(content: bytes, keep_exif: bool) -> bytes:
    """With the items of EXIF, and XMP, renamed so that the decoder passes them by."""
    names = rb"mime" if keep_exif else rb"Exif|mime"
    return re.sub(rb"(infe\x02.{7})(?:" + names + rb")", rb"\1free", content, flags=re.DOTALL)


def _brands(head: bytes) -> set[bytes]:
    """The kinds of content that a file of the MP4 family says it has."""
    if head[4:8] != b"ftyp":
        return set()
    box = head[: min(int.from_bytes(head[:4], "big"), _HEAD)]
    return {box[8:12], *(box[at : at + 4] for at in range(16, len(box) - 3, 4))}


def _closed_format(head: bytes) -> str:
    """The name of an image format that is not read; "" for anything else."""
    if _brands(head) & {b"heic", b"heix", b"heif", b"hevc", b"hevx", b"mif1", b"msf1"}:
        return "HEIC"
    if b"crx " in _brands(head):
        return "camera's raw"
    return next((name for name, sign in _CLOSED.items() if sign.match(head)), "")


def _is_closed(path: Path) -> bool:
    if path.suffix.lower() in CLOSED_SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            # A page of text is none of their pictures.
            return _closed_format(file.read(_HEAD)) not in ("", "PDF", "EPS", "icon")
    except OSError:
        return False


def _what_it_is(content: bytes) -> str:
    """What content is that is no image that is read."""
    head = content[:_HEAD]
    if not content:
        return "empty file"
    if closed := _closed_format(head):
        return f"{closed}, {CLOSED_FORMAT}"
    other = next((what for what, sign in _OTHER.items() if sign.match(head)), "")
    return f"not a picture but {other}" if other else "not a picture"


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def _walk(
    folder: Path, left_out: dict[str, list[str]], root: Path, ignored: Path | None
) -> Iterator[tuple[Path, str]]:
    """(path, why it is left out or "") of everything below `folder` that is no folder."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        name = readable(folder.relative_to(root).as_posix())
        left_out.setdefault(UNREADABLE, []).append(f"{name}/")
        return
    for entry in entries:
        path = Path(entry.path)
        is_folder = _is_folder(entry)
        if is_folder and ignored is not None and path.resolve() == ignored:
            continue
        if entry.name.startswith("."):
            yield path, HIDDEN
        elif is_folder and entry.is_symlink():
            yield path, LINKED
        elif is_folder:
            yield from _walk(path, left_out, root, ignored)
        else:
            yield path, ""


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False
