"""Benchmarks by name: opened, verified, counted, and refused where they are not whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from longclip_lab import world
from longclip_lab.constants import CONTEXTS
from longclip_lab.data.benchmarks.catalogue import (
    AS_WRITTEN,
    PROTOCOLS,
    Benchmark,
    Protocol,
    get_protocol,
)
from longclip_lab.data.benchmarks.readers import (
    CAPTIONLESS,
    TOO_FEW,
    Listing,
    locate,
    read_listing,
)
from longclip_lab.data.layouts import SUFFIXES, Columns, Entry, read_columns, read_conversations
from longclip_lab.data.validation import Defects, content_hash, summarize, usable_images
from longclip_lab.errors import LabError, suggest
from longclip_lab.files import readable
from longclip_lab.text import get_tokenizer, split_subcaptions

if TYPE_CHECKING:
    import pandas as pd


# --- Opened, and refused where they are not whole ---


def open_benchmark(
    name: str | Protocol,
    root: str | Path | None = None,
    allow_partial: bool = False,
    progress: bool = False,
    decode: bool = True,
) -> Benchmark:
    """Open a benchmark by its name, or by a protocol of your own (`dataclasses.replace`).

    The drawn world's need no `root`; the others are read below it: `root` is the benchmark's
    folder, or a folder that holds it under one of its usual names.

    What is opened is what the protocol promises, or a LabError says what is missing, broken, empty
    or there twice. With `allow_partial=True` the usable rest is opened: `partial` is True then and
    `skipped` names what was left out. `decode=True` reads every image once (about 2 ms each), so
    that damage shows now and not in the middle of a run, and `source["hash"]` covers the images'
    bytes; with `decode=False` it covers their names.

    Raises LabError also for an unknown name, files of another form and paths that lead out of the
    folder.

    >>> open_benchmark("urban1k")
    Traceback (most recent call last):
    longclip_lab.errors.LabError: urban1k is read from disk: say where with root (--root DIR)...
    """
    protocol = get_protocol(name) if isinstance(name, str) else name
    if protocol.reader == "drawn":
        return _open_drawn(protocol)
    found = read_listing(locate(protocol, root), protocol)
    defects: Defects = dict(found.defects)
    digests = _usable(found, decode, defects, progress)
    wrong = _shortfall(protocol, found, digests, defects)
    if wrong and not allow_partial:
        lacking, named = "", f" {summarize(defects)}." if defects else ""
        if found.missing_folders:
            lacking = f" It lacks the folder {'; '.join(found.missing_folders)}."
        raise LabError(
            f"{protocol.name} is not whole: {', '.join(wrong)}.{lacking}{named} `longclip-lab data "
            f"verify {protocol.name} --root DIR` names everything and says how to get it. To go on "
            "with the rest, say allow_partial=True (--allow-partial): the record will say partial."
        )
    if not digests:
        raise LabError(f"{protocol.name}: {found.home} holds no picture of it that can be used.")
    source: dict[str, Any] = {
        "dataset": protocol.name,
        "pictures": len(digests),
        "partial": bool(wrong),
        "hash_of": "pictures and texts" if any(digests.values()) else "pictures' names and texts",
    }
    shared = {"protocol": protocol, "source": source, "skipped": defects, "partial": bool(wrong)}
    images = [found.home / one for one in digests] if found.arrays is None else found.arrays
    if protocol.task == "classification":
        labels = np.array([found.labels[name] for name in digests])
        if found.arrays is not None:
            source["hash_of"] = "the published file, known by its MD5"
        source["hash"] = content_hash(digests, [[str(label)] for label in labels])
        source["classes"] = len(found.class_names)
        prompts = {"class_names": found.class_names, "templates": protocol.templates}
        return Benchmark(protocol.name, images, labels=labels, **prompts, **shared)
    captions = [found.texts[name] for name in digests]
    texts = [text for of_image in captions for text in of_image]
    source |= {"texts": len(texts), "hash": content_hash(digests, captions)}
    image_of_text = [row for row, of_image in enumerate(captions) for _ in of_image]
    return Benchmark(protocol.name, images, texts, image_of_text, **shared)


def _usable(found: Listing, decode: bool, defects: Defects, progress: bool) -> dict[str, str]:
    names = list(found.texts or found.labels)
    if found.arrays is not None:
        return dict.fromkeys(names, "")
    return usable_images(found.home, names, decode, defects, progress)


def _shortfall(
    protocol: Protocol, found: Listing, usable: Iterable[str], defects: Defects
) -> list[str]:
    """What keeps the usable images from being the benchmark, in words; [] if nothing does."""
    usable = list(usable)
    images = len(usable) if len(usable) in protocol.also_counted else protocol.num_images
    counts = [("pictures", len(usable), images)]
    if protocol.task == "retrieval":
        texts = sum(len(found.texts[name]) for name in usable)
        whole = images == protocol.num_images
        counts.append(("texts", texts, protocol.num_texts if whole else images))
    else:
        classes = protocol.options.get("classes", len(protocol.class_names))
        counts.append(("classes", len(found.class_names), classes))
    wrong = [
        f"{there:,} {what} where there should be {wanted:,}"
        if there > wanted
        else f"{there:,} of {wanted:,} {what}"
        for what, there, wanted in counts
        if there != wanted
    ]
    if defects and not wrong:
        wrong.append("as many pictures and texts as it should have, but not as they should be")
    return wrong


# --- The drawn world's own: nothing to download, the same images everywhere ---

POOL = 1000
"""Images in a pool of the world. R@1 at 1,000 has a standard error of up to 1.6 points."""


def _open_drawn(protocol: Protocol) -> Benchmark:
    if protocol.task == "classification":
        single = drawn_objects()
        return Benchmark(
            protocol.name,
            single.images,
            labels=single.labels[protocol.options["attribute"]],
            class_names=protocol.class_names,
            templates=protocol.templates,
            source=dict(single.source),
            protocol=protocol,
        )
    siblings = protocol.options["siblings"]
    pairs = drawn_pairs(siblings)
    texts = list(pairs.long if siblings > 1 else pairs.short)
    of_text, source = list(range(len(pairs))), dict(pairs.source)
    return Benchmark(protocol.name, pairs.images, texts, of_text, source=source, protocol=protocol)


@lru_cache(maxsize=2)
def drawn_pairs(siblings: int) -> world.WorldPairs:
    """The pool for retrieval; so many images share each summary and differ only in details."""
    return world.pairs(POOL, seed=world.TEST_SEED, siblings=siblings)


@lru_cache(maxsize=1)
def drawn_objects() -> world.SingleObjects:
    """The pool for classification."""
    return world.single_objects(POOL, seed=world.TEST_SEED)


# --- Verified: what of a benchmark is there, missing, extra, broken, and how to get it ---

_NAMED = 10
_MISSING = (
    *("missing picture", "missing annotation", "class without a folder", TOO_FEW, CAPTIONLESS),
)


@dataclass(frozen=True)
class Verification:
    """What of a benchmark is on disk; `str` tells it.

    `there`, `missing`, `extra` and `broken` are names or sentences, one for each file or finding.
    """

    protocol: Protocol
    ok: bool
    """All of it is there and can be read. Extra files do no harm."""
    home: str = ""
    """The folder that was looked at."""
    there: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def table(self) -> pd.DataFrame:
        """One row a name: what ("there", "missing", "extra", "broken") and name."""
        import pandas as pd

        rows = [(what, name) for what, names in self._lists().items() for name in names]
        return pd.DataFrame(rows, columns=["what", "name"])

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        facts = {"benchmark": self.protocol.name, "ok": self.ok, "home": self.home}
        return facts | self._lists() | {"steps": list(self.protocol.get)}

    def __str__(self) -> str:
        verdict = "whole" if self.ok else "not whole"
        lines = [f"{self.protocol.name}: {verdict}" + (f" ({self.home})" if self.home else "")]
        for what, names in self._lists().items():
            if names:
                lines.append(f"{what}:" if what == "there" else f"{what} ({len(names):,}):")
                lines += [f"  {name}" for name in names[:_NAMED]]
                if len(names) > _NAMED:
                    lines.append(f"  and {len(names) - _NAMED:,} more")
        if not self.ok:
            lines.append("how to get it:")
            lines += [f"  {number}. {step}" for number, step in enumerate(self.protocol.get, 1)]
            lines.append(f"  It should hold {self.protocol.layout}.")
        return "\n".join(lines)

    def _lists(self) -> dict[str, list[str]]:
        return {what: getattr(self, what) for what in ("there", "missing", "extra", "broken")}


def verify(
    name: str | Protocol,
    root: str | Path | None = None,
    decode: bool = True,
    progress: bool = False,
) -> Verification:
    """Look a benchmark over without opening it: every file, every image, every text.

    `decode=False` only looks whether images are there. Raises LabError for an unknown name and
    for a `root` that is no folder; all else is told in the result.

    >>> verify("world/kind").ok
    True
    """
    protocol = get_protocol(name) if isinstance(name, str) else name
    if protocol.reader == "drawn":
        return Verification(protocol, True, there=[protocol.images, protocol.texts])
    found = locate(protocol, root, whole=False)
    home = str(found.home)
    missing = [*found.missing, *(f"folder {name}" for name in found.missing_folders)]
    if found.missing:
        there = [str(path.relative_to(found.home)) for path in found.files if path.exists()]
        return Verification(protocol, False, home, there, missing)
    try:
        read_listing(found, protocol)
    except LabError as error:
        return Verification(protocol, False, home, missing=missing, broken=[str(error)])
    defects: Defects = dict(found.defects)
    usable = _usable(found, decode, defects, progress)
    there = [*found.read, f"{len(usable):,} of {protocol.num_images:,} pictures can be used"]
    if protocol.task == "retrieval":
        texts = sum(map(len, found.texts.values()))
        there.append(f"{texts:,} of {protocol.num_texts:,} texts")
        # Images that the lists themselves lack can be counted, not named.
        unlisted = protocol.num_images - len(found.texts) - sum(map(len, found.defects.values()))
        if len(found.texts) in protocol.also_counted:
            unlisted = 0
    else:
        there.append(f"{len(found.class_names):,} classes")
        unlisted = 0
    broken = []
    for reason, names in defects.items():
        bare = reason in ("missing picture", "broken picture")
        told = [name if bare else f"{name}: {reason}" for name in names]
        (missing if reason in _MISSING else broken).extend(told)
    if unlisted > 0:
        missing.append(f"{unlisted:,} pictures that no file lists")
    extra = [
        readable(f"{folder}/{path.name}")
        for folder, belongs in found.exact.items()
        if (found.home / folder).is_dir()
        for path in sorted((found.home / folder).iterdir())
        if not path.name.startswith(".") and not belongs(path.name)
    ]
    ok = not _shortfall(protocol, found, usable, defects)
    return Verification(protocol, ok, home, there, missing, extra, broken)


# --- Counted: LoTLIP's Tables 1 and 6 for what is on disk ---

TRAINING = ("sharegpt4v", "dreamlip", "lotlip")
"""Training sets by their layout, as `data.layouts` has them."""


@dataclass(frozen=True)
class TextCounts:
    """One line of LoTLIP's tables, and what CLIP's contexts would cut.

    Tokens a text are BERT's, without [CLS] and [SEP]. `cut` has, for each context, the share of
    texts with more of CLIP's tokens than that, start and end included. Texts are counted as they
    are published, before a protocol's `text_processing`.
    """

    name: str
    images: int
    texts: int
    subcaptions_per_text: float
    tokens_per_text: float
    cut: dict[int, float]
    partial: bool = False
    """Some of what the protocol promises is not there."""
    skipped: Defects = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; shares are between 0 and 1."""
        names = ("name", "images", "texts", "subcaptions_per_text", "tokens_per_text")
        cuts = {f"share_longer_than_{context}": share for context, share in self.cut.items()}
        told = {name: getattr(self, name) for name in names} | cuts
        return told | {"partial": self.partial, "skipped": self.skipped}


@dataclass(frozen=True)
class TextTable:
    """A line for each set of texts."""

    rows: list[TextCounts]

    def table(self) -> pd.DataFrame:
        """One row a set; shares in percent."""
        import pandas as pd

        return pd.DataFrame(
            {
                "set": f"{row.name} (partial)" if row.partial else row.name,
                "images": row.images,
                "texts": row.texts,
                "sub-captions": round(row.subcaptions_per_text, 2),
                "tokens": round(row.tokens_per_text, 2),
                **{f">{context} %": round(100 * share, 1) for context, share in row.cut.items()},
            }
            for row in self.rows
        )


def statistics(
    root: str | Path | None, names: Sequence[str | Protocol] = (), progress: bool = False
) -> TextTable:
    """Count the texts below `root`; images are not needed.

    `names` are benchmarks for retrieval (or protocols of your own), or training sets by layout:
    "sharegpt4v" (all entries of its file), "dreamlip" and "lotlip" (every table in `root`, raw and
    long captions apart).
    Without names, every benchmark whose texts are found below `root`.

    Raises LabError for an unknown name, for nothing found, and for files that are not as they
    should be. What is missing of a benchmark is counted: the line says partial.
    """
    if not names:
        names = [
            protocol
            for protocol in PROTOCOLS.values()
            if protocol.task == "retrieval" and protocol.reader != "drawn"
            if not locate(protocol, root, whole=False).missing
        ]
    if not names:
        raise LabError(
            f"{root} holds no texts of a benchmark; `longclip-lab data list` names those there "
            "are, and `longclip-lab data verify NAME --root DIR` says what each needs."
        )
    rows: list[TextCounts] = []
    for name in names:
        if isinstance(name, Protocol):
            rows.append(_count_benchmark(name, root, progress))
        elif name in TRAINING:
            rows += _count_training(name, root, progress)
        elif name in PROTOCOLS:
            rows.append(_count_benchmark(PROTOCOLS[name], root, progress))
        else:
            known = [*PROTOCOLS, *TRAINING]
            raise LabError(f"There is no set of texts {name!r}. {suggest(name, known)}")
    return TextTable(rows)


def _count_benchmark(protocol: Protocol, root: str | Path | None, progress: bool) -> TextCounts:
    name = protocol.name
    if protocol.task != "retrieval":
        raise LabError(f"{name} is a classification benchmark: it has class names, not texts.")
    if protocol.reader == "drawn":
        drawn = _open_drawn(protocol)
        return _count(name, len(drawn), drawn.texts, progress)
    found = read_listing(locate(protocol, root), replace(protocol, text_processing=AS_WRITTEN))
    if not found.texts:
        raise LabError(f"{name}: there is no text in it.")
    texts = [text for of_image in found.texts.values() for text in of_image]
    counted = _count(name, len(found.texts), texts, progress)
    wanted = (protocol.num_images, protocol.num_texts)
    if len(found.texts) in protocol.also_counted:
        wanted = (len(found.texts), len(found.texts))
    partial = bool(found.defects) or wanted != (counted.images, counted.texts)
    return replace(counted, partial=partial, skipped=found.defects)


def _count_training(layout: str, root: str | Path | None, progress: bool) -> Iterator[TextCounts]:
    if root is None or not Path(root).is_dir():
        raise LabError(f"{layout} is read from disk: give the folder that holds its table.")
    sets: list[tuple[Path, str, list[Entry], list[str]]] = []
    if layout == "sharegpt4v":
        (path,) = locate(get_protocol("sharegpt4v-1k"), root, whole=False).files
        if not path.is_file():
            raise LabError(f"There is no file {path}.")
        entries = list(read_conversations(path))
        sets.append((path, layout, entries, [t for entry in entries for t in entry.long.values()]))
    else:
        paths = sorted(path for path in Path(root).glob("[!.]*") if path.suffix.lower() in SUFFIXES)
        if not paths:
            listed = ", ".join(SUFFIXES)
            raise LabError(f"{root} holds no table ({listed}) of {layout}'s captions.")
        for path in paths:
            entries = list(read_columns(path, Columns()))
            raw = [entry.raw for entry in entries if entry.raw]
            long = [text for entry in entries for text in entry.long.values()]
            sets += [
                (path, f"{path.stem}: {kind}", entries, texts)
                for kind, texts in (("raw", raw), ("long", long))
                if texts
            ]
    for path, name, entries, texts in sets:
        if not texts:
            raise LabError(f"{path} has no text that could be counted.")
        skipped: Defects = {}
        for entry in entries:
            for reason, column in entry.defects:
                skipped.setdefault(reason, []).append(f"{entry.where} {column}".strip())
        counted = _count(name, len(entries), texts, progress)
        yield replace(counted, partial=bool(skipped), skipped=skipped)


def _count(name: str, images: int, texts: Iterable[str], progress: bool) -> TextCounts:
    bert, clip = get_tokenizer("bert"), get_tokenizer("clip")
    counts = np.array(
        [
            (len(split_subcaptions(text)), len(bert.encode(text)), len(clip.encode(text)) + 2)
            for text in tqdm(texts, f"counting {name}", disable=not progress)
        ]
    )
    subcaptions, tokens, lengths_M = counts.T
    return TextCounts(
        name=name,
        images=images,
        texts=len(counts),
        subcaptions_per_text=float(subcaptions.mean()),
        tokens_per_text=float(tokens.mean()),
        cut={context: float((lengths_M > context).mean()) for context in CONTEXTS},
    )
