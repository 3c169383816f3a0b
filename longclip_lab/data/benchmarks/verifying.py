"""What of a benchmark is there, missing, extra, broken, and how to get it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longclip_lab.data.benchmarks.catalogue import get_protocol
from longclip_lab.data.benchmarks.found import CAPTIONLESS, TOO_FEW, Found
from longclip_lab.data.benchmarks.opening import shortfall
from longclip_lab.data.benchmarks.places import Place, find_place
from longclip_lab.data.benchmarks.protocol import Protocol
from longclip_lab.data.benchmarks.readers import READERS
from longclip_lab.data.usable import Defects, usable_pictures
from longclip_lab.errors import LabError
from longclip_lab.files import readable

if TYPE_CHECKING:
    import pandas as pd

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
    steps: tuple[str, ...] = ()
    """How to get it."""

    def table(self) -> pd.DataFrame:
        """One row a name: what ("there", "missing", "extra", "broken") and name."""
        import pandas as pd

        rows = [(what, name) for what, names in self._lists().items() for name in names]
        return pd.DataFrame(rows, columns=["what", "name"])

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        facts = {"benchmark": self.protocol.name, "ok": self.ok, "home": self.home}
        return facts | self._lists() | {"steps": list(self.steps)}

    def __str__(self) -> str:
        verdict = "whole" if self.ok else "not whole"
        lines = [f"{self.protocol.name}: {verdict}" + (f" ({self.home})" if self.home else "")]
        for what, names in self._lists().items():
            if names:
                count = "" if what == "there" else f" ({len(names):,})"
                lines.append(f"{what}{count}:")
                lines += [f"  {name}" for name in names[:_NAMED]]
                if len(names) > _NAMED:
                    lines.append(f"  and {len(names) - _NAMED:,} more")
        if not self.ok:
            lines.append("how to get it:")
            lines += [f"  {number}. {step}" for number, step in enumerate(self.steps, 1)]
            lines.append(f"  It should hold {self.protocol.layout}.")
        return "\n".join(lines)

    def _lists(self) -> dict[str, list[str]]:
        return {
            "there": self.there,
            "missing": self.missing,
            "extra": self.extra,
            "broken": self.broken,
        }


def verify(
    name: str | Protocol,
    root: str | Path | None = None,
    decode: bool = True,
    progress: bool = False,
) -> Verification:
    """Look a benchmark over without opening it: every file, every picture, every text.

    `decode=False` only looks whether pictures are there. Raises LabError for an unknown name and
    for a `root` that is no folder; all else is told in the result.

    >>> verify("world/kind").ok
    True
    """
    protocol = get_protocol(name) if isinstance(name, str) else name
    if protocol.reader == "drawn":
        return Verification(protocol, True, there=[protocol.images, protocol.texts])
    place = find_place(protocol, root)
    missing = [*place.missing, *(f"folder {name}" for name in place.missing_folders)]
    facts = {"protocol": protocol, "home": str(place.home), "steps": protocol.get}
    if place.missing:
        there = [str(path.relative_to(place.home)) for path in place.files if path.exists()]
        return Verification(ok=False, there=there, missing=missing, **facts)
    try:
        found = READERS[protocol.reader](place, protocol)
    except LabError as error:
        return Verification(ok=False, missing=missing, broken=[str(error)], **facts)
    defects: Defects = dict(found.defects)
    names = list(found.texts or found.labels)
    usable = names
    if found.arrays is None:
        usable = list(usable_pictures(place.home, names, decode, defects, progress))
    wrong = shortfall(protocol, found, usable, defects)
    for reason, which in defects.items():
        if reason in _MISSING:
            missing += [name if reason == _MISSING[0] else f"{name}: {reason}" for name in which]
    missing += _unlisted(protocol, found)
    return Verification(
        ok=not wrong,
        there=_there(protocol, found, usable),
        missing=missing,
        extra=_extra(place, found),
        broken=[
            one if reason == "broken picture" else f"{one}: {reason}"
            for reason, which in defects.items()
            if reason not in _MISSING
            for one in which
        ],
        **facts,
    )


def _unlisted(protocol: Protocol, found: Found) -> list[str]:
    """Pictures that are missing from the lists themselves can be counted, not named."""
    count = protocol.num_images - len(found.texts) - sum(map(len, found.defects.values()))
    listed_whole = len(found.texts) in protocol.also_counted
    if protocol.task == "classification" or count <= 0 or listed_whole:
        return []
    return [f"{count:,} pictures that no file lists"]


def _there(protocol: Protocol, found: Found, usable: list[str]) -> list[str]:
    there = [*found.read, f"{len(usable):,} of {protocol.num_images:,} pictures can be used"]
    if protocol.task == "retrieval":
        texts = sum(map(len, found.texts.values()))
        there.append(f"{texts:,} of {protocol.num_texts:,} texts")
    else:
        there.append(f"{len(found.class_names):,} classes")
    return there


def _extra(place: Place, found: Found) -> list[str]:
    """Files that the benchmark does not ask for, in folders that should hold nothing else."""
    extra = []
    for folder, belongs in found.exact.items():
        if (place.home / folder).is_dir():
            extra += [
                readable(f"{folder}/{path.name}")
                for path in sorted((place.home / folder).iterdir())
                if not path.name.startswith(".") and not belongs(path.name)
            ]
    return extra
