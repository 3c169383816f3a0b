"""`Pairs`: pictures on disk with their short and long texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from longclip_lab.errors import LabError


@dataclass(frozen=True)
class Pairs:
    """N pictures with one short text, one long text and all captions each.

    `images` are paths; a picture is decoded when it is used. `captioners` holds a picture's long
    captions by captioner, where there are several (else it is empty). `skipped` names what was left
    out, by reason; `source` says where the data come from and holds their hash, JSON-able and
    independent of where the folder lies. The drawn world's pairs have the same fields.

    >>> files = [Path("a.jpg"), Path("b.jpg")]
    >>> pairs = Pairs("two", files, ["a", "b"], ["aa", "bb"], [["a"], ["b"]])
    >>> len(pairs), pairs.subset([1]).short
    (2, ['b'])
    """

    name: str
    images: Sequence[Path]
    short: list[str]
    long: list[str]
    captions: list[list[str]]
    skipped: dict[str, list[str]] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    captioners: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        counts = {
            "images": len(self.images),
            "short": len(self.short),
            "long": len(self.long),
            "captions": len(self.captions),
        }
        if self.captioners:
            counts["captioners"] = len(self.captioners)
        if len(set(counts.values())) != 1:
            listing = ", ".join(f"{count} {what}" for what, count in counts.items())
            raise LabError(f"Pairs need one of each for every picture; {self.name} has {listing}.")

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Iterable[int]) -> Pairs:
        """The pairs at `indices`, in that order; `source["subset"]` says that it is a part.

        Raises LabError if an index lies outside the data.
        """
        chosen = [int(index) for index in indices]
        outside = [index for index in chosen if not 0 <= index < len(self)]
        if outside:
            raise LabError(
                f"{self.name} has {len(self)} pairs (0 to {len(self) - 1}); "
                f"there is no pair {outside[0]}."
            )
        return replace(
            self,
            images=[self.images[index] for index in chosen],
            short=[self.short[index] for index in chosen],
            long=[self.long[index] for index in chosen],
            captions=[self.captions[index] for index in chosen],
            captioners=[self.captioners[index] for index in chosen] if self.captioners else [],
            source={**self.source, "subset": {"of": len(self), "pairs": len(chosen)}},
        )
