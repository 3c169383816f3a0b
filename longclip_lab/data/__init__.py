"""Image-text pairs on disk: COCO's layout, published layouts of long captions, benchmarks, shards.

Whatever the source, a data set is a value with `.images`, `.short`, `.long`, `.captions`,
`.skipped` and `.source`, so that training, evaluation and probing need not know which it is. Only
shards are none: too large for that, they are streamed (`ShardSet`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longclip_lab import world
from longclip_lab.data.benchmarks import (
    PROTOCOLS,
    Benchmark,
    Protocol,
    Verification,
    get_protocol,
    open_benchmark,
    statistics,
    verify,
)
from longclip_lab.data.coco import BoxedImages, BoxedThing, coco, coco_boxes
from longclip_lab.data.layouts import LAYOUTS, Columns, recaptioned
from longclip_lab.data.pairs import (
    DrawnTexts,
    Pairs,
    choose_caption,
    draw_subcaptions,
    draw_texts,
    keep_known_words,
    sample_subcaptions,
)
from longclip_lab.data.shards import ShardSet, check_shards, open_shards, write_shards
from longclip_lab.errors import LabError, suggest

__all__ = [
    "DATA_NAMES", "LAYOUTS", "PROTOCOLS", "Benchmark", "BoxedImages", "BoxedThing", "Columns",
    "DrawnTexts", "Pairs", "Protocol", "ShardSet", "Verification", "check_shards", "choose_caption",
    "coco", "coco_boxes", "draw_subcaptions", "draw_texts", "get_protocol", "keep_known_words",
    "open_benchmark", "open_data", "open_shards", "recaptioned", "sample_subcaptions", "statistics",
    "verify", "write_shards",
]  # fmt: skip

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
    if name not in DATA_NAMES:
        raise LabError(f"There is no data set named {name!r}. {suggest(name, DATA_NAMES)}")
    if name == "world":
        if root is not None or split is not None:
            raise LabError("The world is drawn, not read: it takes no root and no split.")
        return world.pairs(n, seed=world.TEST_SEED if seed is None else seed)
    if name == "shards":
        if root is None or split is not None:
            raise LabError(
                "Shards are read from where they were written: give root (--root DIR or URL), and "
                "no split."
            )
        return open_shards(root)
    if root is None:
        called, lies = name, "the folder that holds the table and, below it, the pictures"
        if name == "coco":
            called, lies = "COCO", "the folder that holds annotations/ and val2017/"
        raise LabError(f"{called} is read from disk: say where with root (--root DIR), {lies}.")
    shared = {"skip_bad": skip_bad, "verify": verify, "progress": progress}
    if name == "coco":
        return coco(root, split or "val2017", **shared)
    return recaptioned(root, name, split=split, **shared)
