"""LoTLIP's Tables 1 and 6 for what is on disk: pictures, texts, sub-captions, tokens, cuts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from longclip_lab.data.benchmarks.catalogue import PROTOCOLS, get_protocol, open_drawn
from longclip_lab.data.benchmarks.protocol import AS_WRITTEN, Protocol
from longclip_lab.data.benchmarks.readers import READERS, find_place, whole_place
from longclip_lab.data.captions import SUFFIXES
from longclip_lab.data.layouts import Columns, Entry, read_columns, read_conversations
from longclip_lab.data.validation import Defects
from longclip_lab.errors import LabError, suggest
from longclip_lab.text import get_tokenizer, split_subcaptions

if TYPE_CHECKING:
    import pandas as pd

CONTEXTS = (77, 128, 248)
"""CLIP's context, LoTLIP's and Long-CLIP's."""
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
    expected: tuple[int, int] | None = None
    """Pictures and texts that the protocol promises."""
    skipped: Defects = field(default_factory=dict)

    @property
    def partial(self) -> bool:
        """Some of what the protocol promises is not there."""
        return bool(self.skipped) or self.expected not in (None, (self.images, self.texts))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; shares are between 0 and 1."""
        cuts = {f"share_longer_than_{context}": share for context, share in self.cut.items()}
        return {
            "name": self.name,
            "images": self.images,
            "texts": self.texts,
            "subcaptions_per_text": self.subcaptions_per_text,
            "tokens_per_text": self.tokens_per_text,
            **cuts,
            "partial": self.partial,
            "skipped": self.skipped,
        }


@dataclass(frozen=True)
class TextTable:
    """A line for each set of texts."""

    rows: list[TextCounts]

    def table(self) -> pd.DataFrame:
        """One row a set; shares in percent."""
        import pandas as pd

        return pd.DataFrame([_line(row) for row in self.rows])


def _line(row: TextCounts) -> dict[str, Any]:
    return {
        "set": f"{row.name} (partial)" if row.partial else row.name,
        "images": row.images,
        "texts": row.texts,
        "sub-captions": round(row.subcaptions_per_text, 2),
        "tokens": round(row.tokens_per_text, 2),
        **{f">{context} %": round(100 * share, 1) for context, share in row.cut.items()},
    }


def statistics(
    root: str | Path | None, names: Sequence[str | Protocol] = (), progress: bool = False
) -> TextTable:
    """Count the texts below `root`; pictures are not needed.

    `names` are benchmarks for retrieval (or protocols of your own), or training sets by layout:
    "sharegpt4v" (all entries of its file), "dreamlip" and "lotlip" (every table in `root`, raw and
    long captions apart).
    Without names, every benchmark whose texts are found below `root`.

    Raises LabError for an unknown name, for nothing found, and for files that are not as they
    should be. What is missing of a benchmark is counted: the line says partial.
    """
    if not names:
        names = [protocol for protocol in PROTOCOLS.values() if _has_texts(protocol, root)]
    if not names:
        raise LabError(
            f"{root} holds no texts of a benchmark; `longclip-lab data list` names those there "
            "are, and `longclip-lab data verify NAME --root DIR` says what each needs."
        )
    rows: list[TextCounts] = []
    for name in names:
        if isinstance(name, Protocol):
            rows.append(_benchmark(name, root, progress))
        elif name in TRAINING:
            rows += _training(name, root, progress)
        elif name in PROTOCOLS:
            rows.append(_benchmark(PROTOCOLS[name], root, progress))
        else:
            known = [*PROTOCOLS, *TRAINING]
            raise LabError(f"There is no set of texts {name!r}. {suggest(name, known)}")
    return TextTable(rows)


def _has_texts(protocol: Protocol, root: str | Path | None) -> bool:
    if protocol.task != "retrieval" or protocol.reader == "drawn":
        return False
    return not find_place(protocol, root).missing


def _benchmark(protocol: Protocol, root: str | Path | None, progress: bool) -> TextCounts:
    name = protocol.name
    if protocol.task != "retrieval":
        raise LabError(f"{name} is a classification benchmark: it has class names, not texts.")
    if protocol.reader == "drawn":
        drawn = open_drawn(protocol)
        return _count(name, len(drawn), drawn.texts, progress)
    raw = replace(protocol, text_processing=AS_WRITTEN)
    found = READERS[protocol.reader](whole_place(protocol, root), raw)
    if not found.texts:
        raise LabError(f"{name}: there is no text in it.")
    texts = [text for of_picture in found.texts.values() for text in of_picture]
    counted = _count(name, len(found.texts), texts, progress)
    wanted = (protocol.num_images, protocol.num_texts)
    if len(found.texts) in protocol.also_counted:
        wanted = (len(found.texts), len(found.texts))
    return replace(counted, expected=wanted, skipped=found.defects)


def _training(layout: str, root: str | Path | None, progress: bool) -> Iterator[TextCounts]:
    if root is None or not Path(root).is_dir():
        raise LabError(f"{layout} is read from disk: give the folder that holds its table.")
    if layout == "sharegpt4v":
        (path,) = find_place(get_protocol("sharegpt4v-1k"), root).files
        if not path.is_file():
            raise LabError(f"There is no file {path}.")
        entries = list(read_conversations(path))
        texts = [text for entry in entries for text in entry.long.values()]
        yield _counted(path, layout, entries, texts, progress)
        return
    tables = sorted(path for path in Path(root).glob("[!.]*") if path.suffix.lower() in SUFFIXES)
    if not tables:
        raise LabError(f"{root} holds no table ({', '.join(SUFFIXES)}) of {layout}'s captions.")
    for path in tables:
        entries = list(read_columns(path, Columns()))
        raw = [entry.raw for entry in entries if entry.raw]
        long = [text for entry in entries for text in entry.long.values()]
        for kind, texts in (("raw", raw), ("long", long)):
            if texts:
                yield _counted(path, f"{path.stem}: {kind}", entries, texts, progress)


def _counted(
    path: Path, name: str, entries: Sequence[Entry], texts: Sequence[str], progress: bool
) -> TextCounts:
    """The counts of a table's texts; what of it is no text is named in `skipped`."""
    if not texts:
        raise LabError(f"{path} has no text that could be counted.")
    skipped: Defects = {}
    for entry in entries:
        for reason, column in entry.defects:
            skipped.setdefault(reason, []).append(f"{entry.where} {column}".strip())
    return replace(_count(name, len(entries), texts, progress), skipped=skipped)


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
