"""COCO's own layout: captions, and things with their boxes."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from longclip_lab.data.pairs import Pairs
from longclip_lab.data.validation import (
    Defects,
    caption_defect,
    content_hash,
    format_errors,
    inside,
    usable_images,
)
from longclip_lab.errors import LabError, suggest
from longclip_lab.files import json_kind, read_json, readable
from longclip_lab.images import image_names

# --- COCO's files of annotations: read, checked, and turned into captions by image ---

CAPTION_FORM = (
    'COCO\'s form {"images": [{"id": 1, "file_name": "a.jpg"}, ...], '
    '"annotations": [{"id": 1, "image_id": 1, "caption": "..."}, ...]}'
)
Identity = int | str


class AnnotationFile:
    """One of COCO's JSON files; every method raises LabError, with the place, for another form."""

    def __init__(self, path: Path, form: str, allow_nan: bool = False):
        self.path, self.form, self.content = path, form, read_json(path, allow_nan)
        if not isinstance(self.content, dict):
            raise LabError(f"{path} holds a JSON {json_kind(self.content)}; expected {form}.")

    def records(self, key: str) -> Iterator[tuple[str, dict]]:
        """The objects of the list `key`, each with where it stands."""
        if not isinstance(self.content.get(key), list):
            raise LabError(f'{self.path} has no list "{key}"; expected {self.form}.')
        for position, record in enumerate(self.content[key]):
            where = f"{self.path}: {key}[{position}]"
            if not isinstance(record, dict):
                raise LabError(f"{where} is not an object; expected {self.form}.")
            yield where, record

    def identity(self, record: dict, key: str, where: str) -> Identity:
        """The id of an image, a category or an annotation: a number or a text."""
        value = record.get(key)
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise LabError(f'{where} has no number under "{key}"; expected {self.form}.')
        return value

    def images(self) -> dict[Identity, str]:
        """The images' names by id, every id and every name once."""
        names: dict[Identity, str] = {}
        listed: set[str] = set()
        for where, record in self.records("images"):
            identity, name = self.identity(record, "id", where), record.get("file_name")
            name = inside(name, where) if isinstance(name, str) else ""
            if not name:
                raise LabError(
                    f'{where} has no file\'s name under "file_name"; expected {self.form}.'
                )
            if identity in names:
                raise LabError(
                    f"{where} repeats the image id {identity}; every image once, please."
                )
            if name in listed:
                raise LabError(f"{where} repeats the file {name}; every image once, please.")
            names[identity] = name
            listed.add(name)
        return names

    def annotations(self) -> Iterator[tuple[str, dict, Identity]]:
        """The annotations with the ids of their images; those that have an id have it once."""
        seen: set[Identity] = set()
        for where, record in self.records("annotations"):
            image_id = self.identity(record, "image_id", where)
            if "id" in record:
                identity = self.identity(record, "id", where)
                if identity in seen:
                    raise LabError(
                        f"{where} repeats the annotation id {identity}; ids must differ."
                    )
                seen.add(identity)
            yield where, record, image_id


class CaptionFile(NamedTuple):
    """The images of a caption file in its order, their captions, and what is wrong with them."""

    captions: dict[str, list[str]]
    defects: Defects


def read_captions(path: Path) -> CaptionFile:
    """Read a COCO caption file (UTF-8 JSON); captions keep the file's order, ends stripped.

    Collects as defects: captions that are empty, missing (null, NaN) or no text, captions of a
    picture that is not listed. Raises LabError for a file that is missing, empty, not UTF-8, not
    JSON, of another form, that lists a picture twice, or whose file names leave the folder.
    """
    file = AnnotationFile(path, CAPTION_FORM, allow_nan=True)
    names = file.images()
    captions: dict[str, list[str]] = {name: [] for name in names.values()}
    defects: Defects = {}
    for where, record, image_id in file.annotations():
        if "caption" not in record:
            raise LabError(f'{where} has no text under "caption"; expected {CAPTION_FORM}.')
        if image_id not in names:
            unlisted = defects.setdefault("caption of a picture that is not listed", [])
            unlisted.append(f"image_id {image_id}")
        elif defect := caption_defect(record["caption"]):
            defects.setdefault(defect, []).append(names[image_id])
        else:
            captions[names[image_id]].append(record["caption"].strip())
    return CaptionFile(captions, defects)


# --- COCO's own layout: ROOT/{split}/*.jpg and ROOT/annotations/captions_{split}.json ---

UNLISTED = "no caption (not in the caption file)"
CAPTIONLESS = "no caption (listed without one)"


def coco(
    root: str | Path,
    split: str = "val2017",
    skip_bad: bool = False,
    verify: bool = True,
    progress: bool = False,
) -> Pairs:
    """Open a split of COCO captions, or of anything kept in the same layout.

    `short` is a picture's first caption, `long` all its captions in the file's order joined by
    spaces (COCO has no long captions; stated in `source["long"]`), `captions` all of them.
    Pictures of the folder that the caption file does not list are counted and named in
    `skipped`. What the file does list must be usable: a picture that is missing or broken, a
    picture without any caption and an empty caption raise a LabError that names them, because
    scores over a smaller pool are not comparable; with `skip_bad=True` they are left out
    instead, counted and named in `skipped`.

    `verify=True` reads and decodes every picture once at the opening (about 2 ms each), so that
    damage shows here and not in the middle of a training run; `source["hash"]` then covers the
    pictures' bytes. `verify=False` only looks whether the files are there, and the hash covers
    their names. Either covers every caption that is used.
    """
    root = Path(root)
    folder, caption_path = locate(root, split)
    listing = read_captions(caption_path)
    defects = listing.defects
    bare = [name for name, texts in listing.captions.items() if not texts]
    if bare:
        defects[CAPTIONLESS] = bare
    kept = [name for name, texts in listing.captions.items() if texts]
    digests = usable_images(folder, kept, verify, defects, progress)
    if defects and not skip_bad:
        raise LabError(format_errors(caption_path, defects))
    skipped = dict(defects)
    unlisted = sorted(set(image_names(folder)) - set(listing.captions))
    if unlisted:
        skipped[UNLISTED] = [readable(name) for name in unlisted]
    if not digests:
        raise LabError(f"{caption_path} leaves no picture with a caption to work with.")
    captions = [listing.captions[name] for name in digests]
    return Pairs(
        name=f"coco/{split}",
        images=[folder / name for name in digests],
        short=[texts[0] for texts in captions],
        long=[" ".join(texts) for texts in captions],
        captions=captions,
        skipped=skipped,
        source={
            "dataset": "coco",
            "split": split,
            "pairs": len(captions),
            "captions": sum(map(len, captions)),
            "long": "all captions of the picture joined by spaces",
            "short": "first caption",
            "hash": content_hash(digests, captions),
            "hash_of": "captions and pictures" if verify else "captions and file names",
        },
    )


def locate(root: Path, split: str, kind: str = "captions") -> tuple[Path, Path]:
    """The folder of a split's pictures and its annotation file; LabError if either is missing."""
    if not re.fullmatch(r"[\w-]+", split):
        raise LabError(f"A split is a plain name such as val2017; came {split!r}.")
    if not root.is_dir():
        raise LabError(f"There is no folder {root}; expected COCO's layout below it.")
    path = root / "annotations" / f"{kind}_{split}.json"
    if not path.is_file():
        found = sorted(
            other.stem.removeprefix(f"{kind}_")
            for other in (root / "annotations").glob(f"{kind}_*.json")
        )
        hint = suggest(split, found) if found else f"No {kind}_*.json is there at all."
        raise LabError(f"There is no file {path}. {hint}")
    folder = root / split
    if not folder.is_dir():
        raise LabError(f"There is no folder {folder}, which should hold the pictures of {split}.")
    return folder, path


# --- COCO's things with their boxes: ROOT/{split}/*.jpg, ---

INSTANCES_FORM = (
    'COCO\'s form {"images": [{"id": 1, "file_name": "a.jpg"}, ...], "categories": [{"id": 1, '
    '"name": "cat"}, ...], "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": '
    '[x, y, width, height], "area": 9.0}, ...]}'
)
CROWD = "category marked as a crowd"
MISSING = "missing picture"
SMALL, MEDIUM = 32**2, 96**2  # COCO's own limits, in square pixels of the original picture


@dataclass(frozen=True)
class BoxedThing:
    """All things of one category in one picture.

    `boxes` (x0, y0, x1, y1) are in pixels of the picture on disk. `size` is COCO's word (small,
    medium, large) for the largest of them.
    """

    category: str
    boxes: tuple[tuple[float, float, float, float], ...]
    size: str


@dataclass(frozen=True)
class BoxedImages:
    """N pictures on disk and the things in each; what was left out, by reason and name."""

    name: str
    images: list[Path]
    things: list[list[BoxedThing]]
    skipped: dict[str, list[str]] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)


def coco_boxes(root: str | Path, split: str = "val2017") -> BoxedImages:
    """Open a split of COCO's instances, or of anything kept in the same layout.

    Categories that a picture has as a crowd (`iscrowd`) are left out for that picture: no box of
    theirs says where a single one is. So are pictures that are not on disk. Both are counted and
    named in `skipped`. Pictures in which nothing is boxed do not appear.

    Raises LabError if the folder or file is missing, for a file of another form, for an image,
    category or annotation that is listed twice, for a box of none of those listed or whose numbers
    are none, for names that lead out of the folder, and if nothing is left.
    """
    folder, path = locate(Path(root), split, "instances")
    found = _by_image(AnnotationFile(path, INSTANCES_FORM))
    skipped: dict[str, list[str]] = {}
    images, things = [], []
    for name, by_category in sorted(found.items()):
        if not (folder / name).is_file():
            skipped.setdefault(MISSING, []).append(name)
            continue
        boxed = []
        for category, boxes in by_category.items():
            if any(is_crowd for is_crowd, _, _ in boxes):
                skipped.setdefault(CROWD, []).append(f"{name}: {category}")
                continue
            largest = max(area for _, area, _ in boxes)
            size = "small" if largest < SMALL else "medium" if largest < MEDIUM else "large"
            boxed.append(BoxedThing(category, tuple(box for _, _, box in boxes), size))
        if boxed:
            images.append(folder / name)
            things.append(boxed)
    if not images:
        raise LabError(f"{path} leaves no picture with a boxed thing in {folder}.")
    source = {"dataset": "coco/instances", "split": split, "pictures": len(images)}
    source["hash"] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return BoxedImages(f"coco/{split}", images, things, skipped, source)


def _by_image(file: AnnotationFile) -> dict[str, dict[str, list[tuple]]]:
    """For each image and category: (is it a crowd?, area, box)."""
    names = file.images()
    categories: dict[Identity, str] = {}
    for where, record in file.records("categories"):
        identity, name = file.identity(record, "id", where), record.get("name")
        if not isinstance(name, str) or not name.strip():
            raise LabError(f'{where} has no text under "name"; expected {INSTANCES_FORM}.')
        if identity in categories:
            raise LabError(f"{where} repeats the category id {identity}; every one once, please.")
        categories[identity] = name
    found: dict[str, dict[str, list[tuple]]] = {}
    for where, annotation, image_id in file.annotations():
        category_id = file.identity(annotation, "category_id", where)
        if image_id not in names:
            raise LabError(f"{where} is of the image id {image_id}, which images does not list.")
        if category_id not in categories:
            raise LabError(f"{where} is of the category id {category_id}, which is not listed.")
        x, y, width, height = _numbers(annotation.get("bbox"), 4, where, "bbox")
        (area,) = _numbers([annotation.get("area")], 1, where, "area")
        if not (width >= 0 and height >= 0 and area >= 0):
            raise LabError(f"{where} has a box or an area below zero; expected {INSTANCES_FORM}.")
        one = (bool(annotation.get("iscrowd", 0)), area, (x, y, x + width, y + height))
        by_category = found.setdefault(names[image_id], {})
        by_category.setdefault(categories[category_id], []).append(one)
    return found


def _numbers(values: Any, count: int, where: str, name: str) -> list[float]:
    try:
        numbers = [math.nan if isinstance(value, bool | str) else float(value) for value in values]
    except (TypeError, OverflowError):
        numbers = []
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        what = "number" if count == 1 else f"list of {count} numbers"
        raise LabError(f'{where} has no {what} under "{name}"; expected {INSTANCES_FORM}.')
    return numbers
