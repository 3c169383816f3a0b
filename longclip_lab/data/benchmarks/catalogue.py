"""All protocols by name."""

from __future__ import annotations

from longclip_lab.data.benchmarks.class_protocols import CLASSIFICATION
from longclip_lab.data.benchmarks.drawn import DRAWN
from longclip_lab.data.benchmarks.long_protocols import LONG
from longclip_lab.data.benchmarks.protocol import Protocol
from longclip_lab.data.benchmarks.short_protocols import SHORT
from longclip_lab.errors import LabError, suggest

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol for protocol in (*LONG, *SHORT, *CLASSIFICATION, *DRAWN)
}


def get_protocol(name: str) -> Protocol:
    """The protocol of a benchmark. Raises LabError for an unknown name, with near ones.

    >>> get_protocol("urban-1k")
    Traceback (most recent call last):
    longclip_lab.errors.LabError: There is no benchmark 'urban-1k'. Did you mean urban1k...
    """
    if name not in PROTOCOLS:
        raise LabError(f"There is no benchmark {name!r}. {suggest(name, PROTOCOLS)}")
    return PROTOCOLS[name]
