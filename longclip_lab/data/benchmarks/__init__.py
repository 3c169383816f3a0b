"""Benchmarks by name, each with the protocol that its score is to be read with."""

from __future__ import annotations

from longclip_lab.data.benchmarks.catalogue import PROTOCOLS, get_protocol
from longclip_lab.data.benchmarks.load import Verification, open_benchmark, verify
from longclip_lab.data.benchmarks.protocol import Benchmark, Protocol, differing_facts
from longclip_lab.data.benchmarks.statistics import TextCounts, TextTable, statistics

__all__ = [
    "PROTOCOLS",
    "Benchmark",
    "Protocol",
    "TextCounts",
    "TextTable",
    "Verification",
    "differing_facts",
    "get_protocol",
    "open_benchmark",
    "statistics",
    "verify",
]
