"""COCO's own layout: ROOT/{split}/*.jpg and ROOT/annotations/captions_{split}.json."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from longclip_lab.data.captions import CaptionFile, read_captions
from longclip_lab.data.pairs import Pairs
from longclip_lab.data.pictures import (
    MISSING,
    check_picture,
    check_pictures,
    check_presence,
    picture_names,
)
from longclip_lab.errors import LabError, suggest

UNLISTED = "no caption (not in the caption file)"
CAPTIONLESS = "no caption (listed without one)"
NAMED_IN_ERROR = 5


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
    folder, caption_path = _locate(root, split)
    listing = read_captions(caption_path)
    defects = dict(listing.defects)
    kept = _with_captions(listing, defects)
    digests = _usable(folder, kept, verify, defects, progress)
    if defects and not skip_bad:
        raise LabError(_complaint(caption_path, defects))
    skipped = dict(defects)
    unlisted = sorted(set(picture_names(folder)) - set(listing.captions))
    if unlisted:
        skipped[UNLISTED] = unlisted
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
            "hash": _hash(digests, captions),
            "hash_of": "captions and pictures" if verify else "captions and file names",
        },
    )


def _locate(root: Path, split: str) -> tuple[Path, Path]:
    if not re.fullmatch(r"[\w-]+", split):
        raise LabError(f"A split is a plain name such as val2017; came {split!r}.")
    if not root.is_dir():
        raise LabError(f"There is no folder {root}; expected COCO's layout below it.")
    caption_path = root / "annotations" / f"captions_{split}.json"
    if not caption_path.is_file():
        found = sorted(
            path.stem.removeprefix("captions_")
            for path in (root / "annotations").glob("captions_*.json")
        )
        hint = suggest(split, found) if found else "No captions_*.json is there at all."
        raise LabError(f"There is no file {caption_path}. {hint}")
    folder = root / split
    if not folder.is_dir():
        raise LabError(f"There is no folder {folder}, which should hold the pictures of {split}.")
    return folder, caption_path


def _with_captions(listing: CaptionFile, defects: dict[str, list[str]]) -> list[str]:
    bare = [name for name, texts in listing.captions.items() if not texts]
    if bare:
        defects[CAPTIONLESS] = bare
    return [name for name, texts in listing.captions.items() if texts]


def _usable(
    folder: Path, names: list[str], verify: bool, defects: dict[str, list[str]], progress: bool
) -> dict[str, str]:
    digests: dict[str, str] = {}
    paths = [folder / name for name in names]
    check = check_picture if verify else check_presence
    for name, found in zip(names, check_pictures(paths, check, progress), strict=True):
        if not found.defect:
            digests[name] = found.digest
        elif found.defect == MISSING:
            defects.setdefault("missing picture", []).append(name)
        else:
            defects.setdefault("broken picture", []).append(f"{name} ({found.defect})")
    return digests


def _complaint(caption_path: Path, defects: dict[str, list[str]]) -> str:
    parts = []
    for reason, names in defects.items():
        more = f" and {len(names) - NAMED_IN_ERROR} more" if len(names) > NAMED_IN_ERROR else ""
        parts.append(f"{len(names)} x {reason}: {', '.join(names[:NAMED_IN_ERROR])}{more}")
    return (
        f"{caption_path} and its pictures do not fit together. {'; '.join(parts)}. Repair them, "
        "or leave them out, counted and named, with skip_bad=True (--skip-bad)."
    )


def _hash(digests: dict[str, str], captions: list[list[str]]) -> str:
    whole = hashlib.sha256()
    for (name, digest), texts in zip(digests.items(), captions, strict=True):
        whole.update("\0".join([name, digest, *texts, "\n"]).encode())
    return f"sha256:{whole.hexdigest()}"
