"""COCO's things with their boxes: ROOT/{split}/*.jpg, ROOT/annotations/instances_{split}.json."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longclip_lab.data.coco import locate
from longclip_lab.errors import LabError

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
class BoxedPictures:
    """N pictures on disk and the things in each; what was left out, by reason and name."""

    name: str
    images: list[Path]
    things: list[list[BoxedThing]]
    skipped: dict[str, list[str]] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)


def coco_boxes(root: str | Path, split: str = "val2017") -> BoxedPictures:
    """Open a split of COCO's instances, or of anything kept in the same layout.

    Categories that a picture has as a crowd (`iscrowd`) are left out for that picture: no box of
    theirs says where a single one is. So are pictures that are not on disk. Both are counted and
    named in `skipped`. Pictures in which nothing is boxed do not appear.

    Raises LabError if the folder or file is missing, for a file of another form, and if nothing
    is left.
    """
    folder, path = locate(Path(root), split, "instances")
    raw = path.read_bytes()
    try:
        content = json.loads(raw)
        names = {image["id"]: image["file_name"] for image in content["images"]}
        categories = {category["id"]: category["name"] for category in content["categories"]}
        found = _by_picture(content["annotations"], names, categories)
    except (ValueError, KeyError, TypeError) as error:
        raise LabError(
            f"{path} is not a file of COCO's instances: {error!r}. Expected images, annotations "
            "with bbox, area and category_id, and categories."
        ) from error
    skipped: dict[str, list[str]] = {}
    images, things = [], []
    for name, by_category in sorted(found.items()):
        if not (folder / name).is_file():
            skipped.setdefault(MISSING, []).append(name)
            continue
        boxed = _things(name, by_category, skipped)
        if boxed:
            images.append(folder / name)
            things.append(boxed)
    if not images:
        raise LabError(f"{path} leaves no picture with a boxed thing in {folder}.")
    source = {"dataset": "coco/instances", "split": split, "pictures": len(images)}
    source["hash"] = hashlib.sha256(raw).hexdigest()[:16]
    return BoxedPictures(f"coco/{split}", images, things, skipped, source)


def _by_picture(
    annotations: list[dict[str, Any]], names: dict[int, str], categories: dict[int, str]
) -> dict[str, dict[str, list[tuple]]]:
    """For each picture and category: (is it a crowd?, area, box)."""
    found: dict[str, dict[str, list[tuple]]] = {}
    for annotation in annotations:
        x, y, width, height = map(float, annotation["bbox"])
        category = categories[annotation["category_id"]]
        one = (
            bool(annotation.get("iscrowd", 0)),
            float(annotation["area"]),
            (x, y, x + width, y + height),
        )
        found.setdefault(names[annotation["image_id"]], {}).setdefault(category, []).append(one)
    return found


def _things(
    name: str, categories: dict[str, list[tuple]], skipped: dict[str, list[str]]
) -> list[BoxedThing]:
    things = []
    for category, found in categories.items():
        if any(crowd for crowd, _, _ in found):
            skipped.setdefault(CROWD, []).append(f"{name}: {category}")
            continue
        largest = max(area for _, area, _ in found)
        size = "small" if largest < SMALL else "medium" if largest < MEDIUM else "large"
        things.append(BoxedThing(category, tuple(box for _, _, box in found), size))
    return things
