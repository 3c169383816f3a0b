"""Data sets by name, for the command line and for recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longclip_lab.data.coco import coco
from longclip_lab.data.layouts import LAYOUTS, recaptioned
from longclip_lab.data.shards import open_shards
from longclip_lab.errors import LabError, suggest

DATA_NAMES = ("world", "coco", *LAYOUTS, "shards")


def open_data(
    name: str,
    root: str | Path | None = None,
    split: str | None = None,
    n: int = 1000,
    seed: int | None = None,
    skip_bad: bool = False,
    verify: bool = True,
    progress: bool = False,
) -> Any:
    """Open a data set by name: `world` is drawn (`n`, `seed`), the others are read below `root`.

    `coco` has COCO's own layout; `dreamlip`, `lotlip` and `sharegpt4v` have long captions as
    published (see `recaptioned`); `shards` are what `write_shards` wrote, `root` their folder or
    address.

    Raises LabError for an unknown name and for a `root` that is missing or makes no sense.

    >>> open_data("cocoo", root=".")
    Traceback (most recent call last):
    longclip_lab.errors.LabError: There is no data set named 'cocoo'. Did you mean coco?
    """
    if name == "world":
        if root is not None or split is not None:
            raise LabError("The world is drawn, not read: it takes no root and no split.")
        from longclip_lab import world

        return world.pairs(n, seed=world.TEST_SEED if seed is None else seed)
    if name == "coco":
        if root is None:
            raise LabError(
                "COCO is read from disk: say where with root (--root DIR), the folder that holds "
                "annotations/ and val2017/."
            )
        return coco(root, split or "val2017", skip_bad, verify, progress)
    if name == "shards":
        if root is None or split is not None:
            raise LabError(
                "Shards are read from where they were written: give root (--root DIR or URL), and "
                "no split."
            )
        return open_shards(root)
    if name in LAYOUTS:
        if root is None:
            raise LabError(
                f"{name} is read from disk: say where with root (--root DIR), the folder that "
                "holds the table and, below it, the pictures."
            )
        return recaptioned(
            root, name, split=split, skip_bad=skip_bad, verify=verify, progress=progress
        )
    raise LabError(f"There is no data set named {name!r}. {suggest(name, DATA_NAMES)}")
