"""Benchmarks by name: opened, and looked over before they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from longclip_lab.data.benchmarks.catalogue import get_protocol
from longclip_lab.data.benchmarks.drawn import open_drawn
from longclip_lab.data.benchmarks.protocol import Benchmark, Protocol
from longclip_lab.errors import LabError


@dataclass(frozen=True)
class Verification:
    """What of a benchmark is on disk."""

    protocol: Protocol
    ok: bool
    """Everything is there and can be read."""
    there: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    steps: tuple[str, ...] = ()
    """How to get it."""


def open_benchmark(
    name: str | Protocol,
    root: str | Path | None = None,
    allow_partial: bool = False,
    progress: bool = False,
) -> Benchmark:
    """Open a benchmark by name: the drawn world's needs no `root`, the others are read below it."""
    protocol = get_protocol(name) if isinstance(name, str) else name
    if protocol.reader == "drawn":
        return open_drawn(protocol)
    raise LabError(f"{protocol.name} cannot be opened yet.")


def verify(name: str | Protocol, root: str | Path | None = None) -> Verification:
    """Say what of a benchmark is there, missing, extra and broken."""
    protocol = get_protocol(name) if isinstance(name, str) else name
    if protocol.reader == "drawn":
        return Verification(protocol, True, [protocol.images, protocol.texts], steps=protocol.get)
    raise LabError(f"{protocol.name} cannot be verified yet.")
