"""All protocols by name."""

from __future__ import annotations

from longclip_lab.data.benchmarks.drawn import DRAWN
from longclip_lab.data.benchmarks.protocol import Protocol
from longclip_lab.errors import LabError, suggest

PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in DRAWN}


def get_protocol(name: str) -> Protocol:
    """The protocol of a benchmark. Raises LabError for an unknown name, with near ones.

    >>> get_protocol("world/kind").task
    'classification'
    """
    if name not in PROTOCOLS:
        raise LabError(f"There is no benchmark {name!r}. {suggest(name, PROTOCOLS)}")
    return PROTOCOLS[name]
