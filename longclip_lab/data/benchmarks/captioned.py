"""Readers of short captions: COCO's file, Karpathy's splits, Flickr30k's tokens; and of Urban-1k.

Every reader takes the benchmark's place and its protocol, and returns what is listed; the pictures
need not be there. Each raises LabError, with file and line, for a file that is not what it should
be.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from longclip_lab.data.benchmarks.found import (
    CAPTIONLESS,
    Found,
    check_file,
    check_folder,
    text_under,
    value_under,
)
from longclip_lab.data.benchmarks.places import Place
from longclip_lab.data.benchmarks.protocol import Protocol
from longclip_lab.data.captions import read_captions
from longclip_lab.errors import LabError
from longclip_lab.files import read_json_object, read_lines, read_text, readable
from longclip_lab.images import image_names

SAME_STEM = "files that only the suffix tells apart"
_TOKEN_LINE = re.compile(r"(?P<picture>[^\t#]+)#(?P<number>\d+)\t(?P<text>.*)")


def read_urban(place: Place, protocol: Protocol) -> Found:
    """image/N.jpg and caption/N.txt: a picture belongs to the caption file of its name."""
    (captions,), (images,) = place.files, place.folders
    check_folder(captions)
    found = Found()
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
    return found


def _by_stem(found: Found, folder: Path, names: list[str]) -> dict[str, str]:
    """Names of files by what stands before the suffix; a second one of the same is named."""
    by_stem: dict[str, str] = {}
    for name in sorted(names):
        first = by_stem.setdefault(Path(name).stem, name)
        if first != name:
            found.note(SAME_STEM, readable(f"{folder.name}/{first} and {name}"))
    return by_stem


def read_coco(place: Place, protocol: Protocol) -> Found:
    """COCO's own caption file; of each picture the first `options["first"]` captions."""
    (path,), (images,) = place.files, place.folders
    listing = read_captions(path)
    found = Found(defects=dict(listing.defects), read=[_lists(path, place, len(listing.captions))])
    folder = images.name
    for name, texts in listing.captions.items():
        if texts:
            chosen = texts[: protocol.options["first"]]
            found.add(f"{folder}/{name}", chosen, protocol.process, path.name)
        else:
            found.note(CAPTIONLESS, f"{folder}/{name}")
    known = set(listing.captions)
    found.exact[folder] = known.__contains__
    return found


def read_karpathy(place: Place, protocol: Protocol) -> Found:
    """Karpathy's dataset_coco.json or dataset_flickr30k.json: the pictures of one split."""
    (path,), (folder,) = place.files, place.folders
    images = read_json_object(path, allow_nan=True).get("images")
    if not isinstance(images, list):
        raise LabError(f'{path} has no list "images": is it one of Karpathy\'s split files?')
    split, found = protocol.split, Found()
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
    found.read.append(_lists(path, place, len(found.texts)))
    return found


def _sentences(row: dict[str, Any], where: str) -> list[Any]:
    sentences = row.get("sentences")
    if not isinstance(sentences, list) or not all(isinstance(one, dict) for one in sentences):
        raise LabError(f'{where} has no list "sentences" of objects with "raw".')
    return [value_under(one, "raw", f"{where}.sentences[{i}]") for i, one in enumerate(sentences)]


def read_flickr(place: Place, protocol: Protocol) -> Found:
    """results_20130124.token: lines of picture#number, a tab and a caption."""
    (path,), (images,) = place.files, place.folders
    check_file(path)
    found = Found()
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
    found.read.append(_lists(path, place, len(captions)))
    found.exact[images.name] = captions.__contains__
    return found


def _lists(path: Path, place: Place, count: int) -> str:
    return f"{path.relative_to(place.home).as_posix()}: lists {count:,} pictures"
