"""Pictures with a short caption and long ones by multi-modal language models, as published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

from longclip_lab.data.layouts import LAYOUTS, Columns, Entry, read_columns, read_conversations
from longclip_lab.data.pairs import Pairs
from longclip_lab.data.tables import SUFFIXES
from longclip_lab.data.usable import (
    Defects,
    complaint,
    content_hash,
    inside,
    usable_pictures,
)
from longclip_lab.errors import COUNT, LabError, suggest

LONGCLIP_VALIDATION = 1000
"""Long-CLIP's code validates on the first so many entries of ShareGPT4V and trains on the rest."""


def recaptioned(
    root: str | Path,
    layout: str,
    table: str | Path | None = None,
    split: str | None = None,
    paths: Mapping[str, str] | None = None,
    columns: Columns | None = None,
    limit: int | None = None,
    skip_bad: bool = False,
    verify: bool = False,
    progress: bool = False,
) -> Pairs:
    """Open a published set of long captions (`data.layouts` describes each layout) as `Pairs`.

    `short` is the raw caption, or the first sentence of the long one where there is none (stated
    in `source["short"]`); `captioners` holds every captioner's long caption, `long` the first of
    them; `captions` the raw caption and the captioners' short ones. For one training epoch draw
    from `captioners` with `draw_texts`.

    `table` defaults to the only table in `root`, or to the one whose name begins with `split`
    ("cc3m"); for sharegpt4v, `split` is "train" or "val", Long-CLIP's own. `paths` maps what the
    table calls a picture, such as its address, to its path below `root`. `limit` reads the first
    entries only. A missing picture, an empty raw caption, a caption that is no text, a picture
    without any long caption or listed twice raises a LabError that counts and names them; with
    `skip_bad=True` they are left out, counted and named in `skipped`. `verify=True` decodes every
    picture (about 2 ms each).
    """
    root = Path(root)
    if layout not in LAYOUTS:
        raise LabError(f"There is no layout {layout!r}. {suggest(layout, LAYOUTS)}")
    if not root.is_dir():
        raise LabError(f"There is no folder {root}.")
    if limit is not None:
        COUNT.check("limit, the number of entries to read,", limit)
    of_conversations = layout == "sharegpt4v"
    path = _find_table(root, table, None if of_conversations else split)
    if of_conversations:
        rows = islice(read_conversations(path), *_longclip_split(split, limit))
    else:
        rows = islice(read_columns(path, columns or Columns()), limit)
    defects: Defects = {}
    entries = _collect(path, rows, paths, defects)
    digests = usable_pictures(root, list(entries), verify, defects, progress)
    if defects and not skip_bad:
        raise LabError(complaint(path, defects))
    if not digests:
        raise LabError(f"{path} leaves no picture with a long caption to work with.")
    kept = [entries[name] for name in digests]
    return _pairs(layout, split, root, digests, kept, defects, path)


def _pairs(
    layout: str,
    split: str | None,
    root: Path,
    digests: dict[str, str],
    kept: list[Entry],
    defects: Defects,
    path: Path,
) -> Pairs:
    is_raw = all(entry.raw for entry in kept)
    firsts = [next(iter(entry.long.values())) for entry in kept]
    short = [
        entry.raw if is_raw else first.split(". ")[0]
        for entry, first in zip(kept, firsts, strict=True)
    ]
    captions = [[text, *entry.short] for text, entry in zip(short, kept, strict=True)]
    every = [
        [*texts, *entry.long, *entry.long.values()]
        for texts, entry in zip(captions, kept, strict=True)
    ]
    return Pairs(
        name=f"{layout}/{split or path.stem}",
        images=[root / picture for picture in digests],
        short=short,
        long=firsts,
        captions=captions,
        skipped=defects,
        source={
            "dataset": layout,
            "table": path.name,
            "split": split or "all",
            "pairs": len(kept),
            "captioners": dict(Counter(who for entry in kept for who in entry.long)),
            "short": "raw caption" if is_raw else "the long caption before the first '. '",
            "long": "the first captioner's caption, whole",
            "hash": content_hash(digests, every),
            "hash_of": "captions and pictures" if any(digests.values()) else "captions and names",
        },
        captioners=[entry.long for entry in kept],
    )


def _find_table(root: Path, table: str | Path | None, split: str | None) -> Path:
    if table is not None:
        return root / table
    found = sorted(path for path in root.glob("[!.]*") if path.suffix.lower() in SUFFIXES)
    fitting = [path for path in found if split is None or path.name.startswith(split)]
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(path.name for path in found) or "none"
    wanted = "table" if split is None else f"table whose name begins with {split!r}"
    raise LabError(
        f"{root} should hold one {wanted} ({', '.join(SUFFIXES)}); it holds {names}. "
        "Say which with table or split."
    )


def _longclip_split(split: str | None, limit: int | None) -> tuple[int, int | None]:
    bounds = {
        None: (0, None),
        "val": (0, LONGCLIP_VALIDATION),
        "train": (LONGCLIP_VALIDATION, None),
    }
    if split not in bounds:
        raise LabError(f"ShareGPT4V has the splits train and val; came {split!r}.")
    start, stop = bounds[split]
    ends = [end for end in (stop, None if limit is None else start + limit) if end is not None]
    return start, min(ends, default=None)


def _collect(
    path: Path,
    rows: Iterator[Entry],
    paths: Mapping[str, str] | None,
    defects: Defects,
) -> dict[str, Entry]:
    """Usable entries by the picture's path; the others go to `defects`."""
    entries: dict[str, Entry] = {}
    lacks_raw: list[str] = []
    for entry in rows:
        where, called = entry.where, entry.picture
        name = called if paths is None else paths.get(called, "")
        if paths is None and called.startswith(("http://", "https://")):
            raise LabError(
                f"{path}, {where} names its picture by address: {called}. Download the pictures "
                "and give paths={address: path below the root, ...}."
            )
        name = inside(name, f"{path}, {where}")
        for reason, column in entry.defects:
            told = f"{name or where} ({column})" if column else name or where
            defects.setdefault(reason, []).append(told)
        if not called:
            defects.setdefault("row without a picture's name", []).append(where)
        elif not name:
            defects.setdefault("picture without a path", []).append(called)
        elif name in entries:
            defects.setdefault("picture listed twice", []).append(name)
        elif not entry.long:
            if not entry.defects:
                defects.setdefault("no long caption", []).append(name)
        else:
            entries[name] = entry
            lacks_raw += [] if entry.raw else [name]
    # A table without raw captions at all is a layout; one with holes is damaged.
    if len(lacks_raw) < len(entries):
        without = {name: entries.pop(name) for name in lacks_raw}
        if empty := [name for name, entry in without.items() if not entry.defects]:
            defects["no raw caption"] = empty
    return entries
