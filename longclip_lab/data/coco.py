"""COCO's own layout: ROOT/{split}/*.jpg and ROOT/annotations/captions_{split}.json."""

from __future__ import annotations

import re
from pathlib import Path

from longclip_lab.data.captions import CaptionFile, read_captions
from longclip_lab.data.pairs import Pairs
from longclip_lab.data.usable import complaint, content_hash, usable_pictures
from longclip_lab.errors import LabError, suggest
from longclip_lab.files import readable
from longclip_lab.images import image_names

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
    defects = dict(listing.defects)
    kept = _with_captions(listing, defects)
    digests = usable_pictures(folder, kept, verify, defects, progress)
    if defects and not skip_bad:
        raise LabError(complaint(caption_path, defects))
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


def _with_captions(listing: CaptionFile, defects: dict[str, list[str]]) -> list[str]:
    bare = [name for name, texts in listing.captions.items() if not texts]
    if bare:
        defects[CAPTIONLESS] = bare
    return [name for name, texts in listing.captions.items() if texts]
