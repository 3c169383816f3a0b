"""Readers of the benchmarks' layouts: where a benchmark lies, and what its files list.

`locate` finds the folder, a reader fills in what is listed; the images need not be there. Each
reader raises LabError, with file and line, for a file that is not what it should be.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from longclip_lab.data.benchmarks.catalogue import Protocol
from longclip_lab.data.coco import read_captions
from longclip_lab.data.layouts import NO_ANSWER, answer_of, read_rows
from longclip_lab.data.validation import EMPTY, Defects, caption_defect, inside
from longclip_lab.errors import LabError
from longclip_lab.files import read_json_object, read_lines, read_text, readable
from longclip_lab.images import image_names

# --- Where a benchmark lies: its own folder, or one of the usual names below a common root ---

TWICE, CAPTIONLESS, NAMELESS = "listed twice", "picture without a caption", "no picture's name"
TOO_FEW = "class with too few pictures"
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".7z", ".rar")


@dataclass
class Listing:
    """A benchmark on disk: its folder, what its files list, and what is wrong with that.

    `files` and `folders` are one path for each of the protocol's `needs` and `image_folders`,
    there or not; `missing` and `missing_folders` name those that are not. `texts` and `labels` go
    by the image's path below `home`. `exact` are folders that should hold nothing but the
    benchmark. `arrays` are images that are no files [N, H, W, 3]; then `labels` go by their
    numbers. `class_names` are the classes that the folders have.
    """

    home: Path
    files: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    missing_folders: list[str] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    defects: Defects = field(default_factory=dict)
    read: list[str] = field(default_factory=list)
    """What was read, in words, for a report."""
    exact: dict[str, Callable[[str], bool]] = field(default_factory=dict)
    arrays: np.ndarray | None = None
    class_names: tuple[str, ...] = ()

    def add(
        self, image: str, captions: Iterable[Any], process: Callable[[str], str], where: str
    ) -> None:
        """Note an image with its captions, as `process` makes texts of them.

        One that is known already, and captions that are empty or no texts, are named instead.
        Raises LabError for a path that leads out of the folder.
        """
        if not image:
            self.note(NAMELESS, where)
            return
        image = inside(image, where)
        captions = list(captions)
        if image in self.texts:
            self.note(TWICE, f"{image} ({where})")
            return
        kept, reasons = [], {}
        for caption in captions:
            defect = caption_defect(caption)
            text = "" if defect else process(caption)
            if text:
                kept.append(text)
            else:
                reasons[defect or EMPTY] = f"{image} ({where})"
        for reason, name in reasons.items():
            self.note(reason, name)
        if not captions:
            self.note(CAPTIONLESS, f"{image} ({where})")
        if kept:
            self.texts[image] = kept

    def note(self, reason: str, name: str) -> None:
        self.defects.setdefault(reason, []).append(name)

    def below(self, folder: Path, name: str) -> str:
        """The path below `home` of an image that a file names below `folder`."""
        name = inside(name, str(folder))
        prefix = folder.relative_to(self.home).as_posix()
        return name if prefix == "." or not name else f"{prefix}/{name}"

    def lists(self, path: Path, count: int) -> None:
        """Say in the report how many images a file lists."""
        self.read.append(f"{path.relative_to(self.home).as_posix()}: lists {count:,} pictures")


def locate(protocol: Protocol, root: str | Path | None, whole: bool = True) -> Listing:
    """The folder with most of what the protocol needs: `root` itself or one below it.

    Raises LabError if there is no `root`, if it is no folder, and, unless `whole` is False, if a
    file is missing that lists the images or holds the texts.
    """
    if root is None:
        raise LabError(
            f"{protocol.name} is read from disk: say where with root (--root DIR), a folder that "
            f"holds {protocol.layout}, or a folder above it called {protocol.folders[0]}."
        )
    root = Path(root)
    if root.is_file() and root.suffix.lower() in ARCHIVES:
        raise LabError(f"{root} is an archive, not a folder: unpack it and give the folder.")
    if root.is_file():
        raise LabError(f"{root} is a file; expected the folder that it lies in.")
    if not root.is_dir():
        raise LabError(f"There is no folder {root}.")
    homes = [root, *(root / name for name in protocol.folders if (root / name).is_dir())]
    places = [_located(home, protocol) for home in homes]
    found = min(places, key=lambda place: (len(place.missing), len(place.missing_folders)))
    if whole and found.missing:
        raise LabError(
            f"{protocol.name}: {found.home} lacks {'; '.join(found.missing)}. Expected "
            f"{protocol.layout}. How to get it: longclip-lab data verify {protocol.name} "
            f"--root {root}"
        )
    return found


def _located(home: Path, protocol: Protocol) -> Listing:
    found = Listing(home)
    archives = [path.name for path in sorted(home.iterdir()) if _is_archive(path)]
    for wanted, paths, missing in (
        (protocol.needs, found.files, found.missing),
        (protocol.image_folders, found.folders, found.missing_folders),
    ):
        for names in wanted:
            there = [home / name for name in names if (home / name).exists()]
            paths.append(there[0] if there else home / names[0])
            if not there:
                likely = [Path(name).parts[0] for name in names] + list(protocol.folders)
                packed = [one for one in archives if any(_alike(one, name) for name in likely)]
                hint = f" ({packed[0]} is there: unpack it)" if packed else ""
                missing.append(" or ".join(names) + hint)
    return found


def _is_archive(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in ARCHIVES


def _alike(archive: str, name: str) -> bool:
    """Whether an archive's name begins as a wanted one does, hyphens and case apart."""
    archive, name = (text.lower().replace("-", "").replace("_", "") for text in (archive, name))
    return archive.split(".")[0] == name.split(".")[0]


def read_listing(found: Listing, protocol: Protocol) -> Listing:
    """Fill in what the files of a located benchmark list."""
    READERS[protocol.reader](found, protocol)
    return found


# --- What every reader asks of a file ---


def check_kind(path: Path, is_folder: bool) -> None:
    """Raise LabError if a file stands where a folder should be, or the other way round."""
    if is_folder and not path.is_dir():
        raise LabError(f"{path} is a file, not a folder: is it an archive? Unpack it.")
    if not is_folder and not path.is_file():
        raise LabError(f"{path} is a folder; expected a file of that name.")


def value_under(row: dict[str, Any], key: str, where: str) -> Any:
    """What an object has under a key, whatever it is. Raises LabError if it has no such key."""
    if key not in row:
        has = ", ".join(map(repr, list(row)[:8]))
        raise LabError(f"{where}: expected a text under {key!r}. It has {has}.")
    return row[key]


def text_under(row: dict[str, Any], key: str, where: str) -> str:
    """The text that an object has under a key; "" for null and NaN. Raises LabError otherwise."""
    value = value_under(row, key, where)
    if caption_defect(value) == EMPTY:
        return ""
    if not isinstance(value, str):
        raise LabError(f"{where}: expected a text under {key!r}, got {value!r:.60}.")
    return value


# --- Short captions: COCO's file, Karpathy's splits, Flickr30k's tokens; and Urban-1k's folders ---

SAME_STEM = "files that only the suffix tells apart"
_TOKEN_LINE = re.compile(r"(?P<picture>[^\t#]+)#(?P<number>\d+)\t(?P<text>.*)")


def read_urban(found: Listing, protocol: Protocol) -> None:
    """image/N.jpg and caption/N.txt: a picture belongs to the caption file of its name."""
    (captions,), (images,) = found.files, found.folders
    check_kind(captions, is_folder=True)
    names = image_names(images) if images.is_dir() else []
    pictures = _by_stem(found, images, names)
    files = [path.name for path in captions.iterdir() if path.suffix.lower() == ".txt"]
    # macOS writes a hidden ._1.txt beside 1.txt on disks that are not its own.
    by_stem = _by_stem(found, captions, [name for name in files if not name.startswith(".")])
    texts = [captions / name for name in by_stem.values()]
    for path in sorted(texts, key=lambda path: (len(path.stem), path.stem)):
        picture = pictures.get(path.stem, f"{path.stem}.jpg")
        where = f"{captions.name}/{path.name}"
        found.add(f"{images.name}/{picture}", [read_text(path)], protocol.process, where)
    for stem in sorted(pictures.keys() - {path.stem for path in texts}):
        found.note(CAPTIONLESS, readable(f"{images.name}/{pictures[stem]}"))
    found.read.append(f"{captions.name}/: {len(texts)} caption files")
    found.exact[captions.name] = lambda name: name.lower().endswith(".txt")
    found.exact[images.name] = set(names).__contains__


def _by_stem(found: Listing, folder: Path, names: list[str]) -> dict[str, str]:
    """Names of files by what stands before the suffix; a second one of the same is named."""
    by_stem: dict[str, str] = {}
    for name in sorted(names):
        first = by_stem.setdefault(Path(name).stem, name)
        if first != name:
            found.note(SAME_STEM, readable(f"{folder.name}/{first} and {name}"))
    return by_stem


def read_coco(found: Listing, protocol: Protocol) -> None:
    """COCO's own caption file; of each picture the first `options["first"]` captions."""
    (path,), (images,) = found.files, found.folders
    listing = read_captions(path)
    found.defects = dict(listing.defects)
    found.lists(path, len(listing.captions))
    for name, texts in listing.captions.items():
        picture = f"{images.name}/{name}"
        if texts:
            found.add(picture, texts[: protocol.options["first"]], protocol.process, path.name)
        else:
            found.note(CAPTIONLESS, picture)
    found.exact[images.name] = listing.captions.__contains__


def read_karpathy(found: Listing, protocol: Protocol) -> None:
    """Karpathy's dataset_coco.json or dataset_flickr30k.json: the pictures of one split."""
    (path,), (folder,) = found.files, found.folders
    images = read_json_object(path, allow_nan=True).get("images")
    if not isinstance(images, list):
        raise LabError(f'{path} has no list "images": is it one of Karpathy\'s split files?')
    split = protocol.split
    named = [row.get("split") for row in images if isinstance(row, dict)]
    splits = {name for name in named if isinstance(name, str)}
    if split not in splits:
        raise LabError(f"{path} has no picture of the split {split!r}; it has {splits or 'none'}.")
    for number, row in enumerate(images):
        where = f"{path}: images[{number}]"
        if not isinstance(row, dict):
            raise LabError(f"{where} is not an object.")
        if row.get("split") == split:
            name = text_under(row, "filename", where)
            below = text_under({"filepath": None, **row}, "filepath", where) or folder.name
            picture = f"{below}/{name}" if name else ""
            found.add(picture, _sentences(row, where), protocol.process, where)
    found.lists(path, len(found.texts))


def _sentences(row: dict[str, Any], where: str) -> list[Any]:
    sentences = row.get("sentences")
    if not isinstance(sentences, list) or not all(isinstance(one, dict) for one in sentences):
        raise LabError(f'{where} has no list "sentences" of objects with "raw".')
    return [value_under(one, "raw", f"{where}.sentences[{i}]") for i, one in enumerate(sentences)]


def read_flickr(found: Listing, protocol: Protocol) -> None:
    """results_20130124.token: lines of picture#number, a tab and a caption."""
    (path,), (images,) = found.files, found.folders
    check_kind(path, is_folder=False)
    captions: dict[str, list[str]] = {}
    places: dict[str, int] = {}
    seen: set[str] = set()
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        match = _TOKEN_LINE.fullmatch(line.removesuffix("\n"))
        if match is None:
            hint = "; this looks like a table with |" if "|" in line else ""
            raise LabError(
                f"{path}, line {number}: expected a picture, #, a number, a tab and a caption, "
                f"such as 1000092795.jpg#0<tab>Two young guys; got {line[:60]!r}{hint}."
            )
        key = f"{match['picture']}#{match['number']}"
        if key in seen:
            found.note("caption listed twice", f"{key} (line {number})")
            continue
        seen.add(key)
        places.setdefault(match["picture"], number)
        captions.setdefault(match["picture"], []).append(match["text"])
    for picture, texts in captions.items():
        where = f"{path.name}, line {places[picture]}"
        found.add(f"{images.name}/{picture}", texts, protocol.process, where)
    found.lists(path, len(captions))
    found.exact[images.name] = captions.__contains__


# --- Readers of long texts: ShareGPT4V, DCI and Long-DCI, ImageInWords, DOCCI ---


def read_sharegpt4v(found: Listing, protocol: Protocol) -> None:
    """The first `num_images` entries of a JSON list; no more of a file of a gigabyte is read."""
    (path,) = found.files
    check_kind(path, is_folder=False)
    count = 0
    for place_of, row in islice(read_rows(path), protocol.num_images):
        count += 1
        where = f"{path}, {place_of}"
        answer, picture = answer_of(row, where), text_under(row, "image", where)
        if answer is None:
            found.note(NO_ANSWER, f"{picture} ({where})")
        else:
            found.add(picture, [answer["value"]], protocol.process, where)
    found.read.append(f"{path.name}: its first {count:,} entries")


def read_dci(found: Listing, protocol: Protocol) -> None:
    """DCI's own folder: splits.json lists annotations; each has a picture and its texts."""
    (splits, annotations), (photos,) = found.files, found.folders
    names = _split_names(splits, protocol.options["splits"])
    for name in names:
        name = inside(name, str(splits))
        path = annotations / name
        if not path.is_file():
            found.note("missing annotation", f"{annotations.name}/{name}")
            continue
        row = read_json_object(path, allow_nan=True)
        parts = [value_under(row, key, str(path)) for key in ("short_caption", "extra_caption")]
        wrong = [part for part in parts if caption_defect(part) not in ("", EMPTY)]
        whole = "\n".join("" if caption_defect(part) else part for part in parts)
        picture = found.below(photos, text_under(row, "image", str(path)))
        where = f"{annotations.name}/{name}"
        found.add(picture, wrong or [whole], protocol.process, where)
    found.read.append(f"{splits.relative_to(found.home)}: lists {len(names):,} annotations")


def _split_names(path: Path, splits: list[str] | None) -> list[str]:
    content = read_json_object(path)
    absent = [split for split in splits or [] if split not in content]
    if absent:
        raise LabError(f"{path} has no split {absent[0]!r}; it has {', '.join(content)}.")
    chosen = [content[split] for split in (splits or content)]
    names = [name for names in chosen if isinstance(names, list) for name in names]
    if not names or not all(isinstance(name, str) for name in names):
        raise LabError(f'{path}: expected {{"train": ["0001.json", ...], ...}}.')
    return names


def read_long_dci(found: Listing, protocol: Protocol) -> None:
    """A table with the columns filepath and title, parted by tabs."""
    (path,), (photos,) = found.files, found.folders
    for where, row in read_rows(path):
        if not {"filepath", "title"} <= row.keys():
            has = ", ".join(map(repr, row))
            raise LabError(f"{path}: expected the columns 'filepath' and 'title', got {has}.")
        at = f"{path.name}, {where}"
        picture = found.below(photos, text_under(row, "filepath", at))
        found.add(picture, [row["title"]], protocol.process, at)
    found.read.append(f"{path.name}: lists {len(found.texts):,} pictures")


def read_imageinwords(found: Listing, protocol: Protocol) -> None:
    """Three files of JSON lines; their pictures lie in dci, docci and docci_aar."""
    for path, folder in zip(found.files, found.folders, strict=True):
        count = 0
        for where, row in read_rows(path):
            at = f"{path}, {where}"
            name = text_under(row, "image" if "image" in row else "image/key", at)
            name = name if name.endswith(".jpg") or not name else f"{name}.jpg"
            caption, at = value_under(row, "IIW", at), f"{path.parent.name}, {where}"
            found.add(found.below(folder, name), [caption], protocol.process, at)
            count += 1
        found.read.append(f"{path.relative_to(found.home).as_posix()}: {count:,} lines")


def read_docci(found: Listing, protocol: Protocol) -> None:
    """docci_descriptions.jsonlines: the lines of one split whose id begins with its name."""
    (path,), (images,) = found.files, found.folders
    splits = set()
    for where, row in read_rows(path):
        at = f"{path}, {where}"
        split, identity = text_under(row, "split", at), text_under(row, "example_id", at)
        splits.add(split)
        if split == protocol.split and identity.startswith(protocol.split):
            name = text_under(row, "image_file", at)
            caption, at = value_under(row, "description", at), f"{path.name}, {where}"
            found.add(found.below(images, name), [caption], protocol.process, at)
    if not found.texts and not found.defects:
        has = ", ".join(sorted(splits)) or "no line"
        raise LabError(f"{path} has no line of the split {protocol.split!r}; it has {has}.")
    found.read.append(f"{path.name}: lists {len(found.texts):,} pictures of {protocol.split}")


# --- Readers for classification: ImageNet's folders of classes, CIFAR's batches ---

_NAMED = 5
_SIDE = 32  # of a CIFAR picture


def read_folders(found: Listing, protocol: Protocol) -> None:
    """One folder a class, called by WordNet's id or, with `options["numbers"]`, by its number.

    With `options["only_present"]` the classes are those that have a folder, in the order of the
    labels; otherwise all of the protocol's. `options["per_class"]` is how many pictures each has.
    """
    (home,) = found.files
    check_kind(home, is_folder=True)
    names = protocol.class_names
    known = {str(i): i for i in range(len(names))} if protocol.options.get("numbers") else _wnids()
    folders = sorted(path for path in home.iterdir() if path.is_dir())
    labels = {path: known[path.name] for path in folders if path.name in known}
    if not labels:
        if folders:
            has = ", ".join(path.name for path in folders[:_NAMED])
            raise LabError(f"{home} has no folder called as a class; it has {has}.")
        if pictures := image_names(home):
            raise LabError(
                f"{home} holds {len(pictures):,} pictures side by side, such as {pictures[0]}: "
                "their classes cannot be known from that. Sort them into folders of classes, "
                "n01440764/ and so on (soumith/imagenetloader.torch's valprep.sh does it)."
            )
        raise LabError(f"{home} is empty; expected a folder for each class, with its pictures.")
    for path in folders:
        if path not in labels:
            found.note("folder that is no class", path.name)
    for index in sorted(set(known.values()) - set(labels.values())):
        if not protocol.options.get("only_present"):
            found.note("class without a folder", f"{index} ({names[index]})")
    present = sorted(labels.values()) if protocol.options.get("only_present") else None
    for path, label in sorted(labels.items(), key=lambda item: item[1]):
        prefix = path.relative_to(found.home).as_posix()
        at = label if present is None else present.index(label)
        pictures = image_names(path)
        found.labels |= {f"{prefix}/{picture}": at for picture in pictures}
        if len(pictures) < protocol.options.get("per_class", 1):
            found.note(TOO_FEW, f"{prefix}/ has {len(pictures)}")
        found.exact[prefix] = set(pictures).__contains__
    found.class_names = names if present is None else tuple(names[label] for label in present)
    found.read.append(f"{home.name}/: {len(labels):,} folders of classes")


@cache
def _wnids() -> dict[str, int]:
    """ImageNet's classes by WordNet's id: sorted, as the labels are."""
    from timm.data import ImageNetInfo

    return {name: index for index, name in enumerate(ImageNetInfo("imagenet-1k").label_names())}


def read_cifar(found: Listing, protocol: Protocol) -> None:
    """The test batch of CIFAR's Python version: a pickled dictionary of NumPy's arrays.

    Only the published file is opened, known by its MD5 (`options["md5"]`), and nothing but arrays
    is unpickled.
    """
    (path,) = found.files
    check_kind(path, is_folder=False)
    content = path.read_bytes()
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if digest != protocol.options["md5"]:
        raise LabError(
            f"{path} is not the published file: its MD5 is {digest}, expected "
            f"{protocol.options['md5']}. Is it complete, and of the version for Python?"
        )
    try:
        batch = _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
        pixels = np.asarray(batch["data"], dtype=np.uint8).reshape(-1, 3, _SIDE, _SIDE)
        labels = [int(label) for label in batch[protocol.options["labels"]]]
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError) as error:
        raise LabError(f"{path} is no batch of CIFAR: {error}.") from None
    if len(labels) != len(pixels):
        raise LabError(f"{path} has {len(labels)} labels for {len(pixels)} pictures.")
    found.arrays = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
    found.labels = {f"{number:05d}": label for number, label in enumerate(labels)}
    found.class_names = protocol.class_names
    found.read.append(f"{path.relative_to(found.home).as_posix()}: {len(labels):,} pictures")


class _ArraysOnly(pickle.Unpickler):
    """Refuses every class and function but those that NumPy's arrays are made of."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
            ("_codecs", "encode"): _latin1,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it would run {module}.{name}")
        return allowed[module, name]


def _reconstruct(kind: type, shape: tuple[int, ...], code: Any) -> np.ndarray:
    """As NumPy's own: an empty array, which the pickle then fills."""
    if kind is not np.ndarray:
        raise pickle.UnpicklingError(f"it would make a {kind}")
    return np.ndarray.__new__(kind, shape, code)


def _latin1(text: str, encoding: str) -> bytes:
    """How a pickle of Python 3 spells bytes in the old protocols."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it would encode as {encoding}")
    return text.encode("latin1")


# --- Which function reads which layout ---

READERS: dict[str, Callable[[Listing, Protocol], None]] = {
    "urban": read_urban,
    "coco": read_coco,
    "karpathy": read_karpathy,
    "flickr": read_flickr,
    "sharegpt4v": read_sharegpt4v,
    "dci": read_dci,
    "long-dci": read_long_dci,
    "imageinwords": read_imageinwords,
    "docci": read_docci,
    "folders": read_folders,
    "cifar": read_cifar,
}
