"""Benchmarks by name, each with the protocol that its score is to be read with."""

from __future__ import annotations

from longclip_lab.data.benchmarks.catalogue import (
    PROTOCOLS,
    Benchmark,
    Protocol,
    differing_facts,
    get_protocol,
)
from longclip_lab.data.benchmarks.load import Verification, open_benchmark, statistics, verify

__all__ = [
    "PROTOCOLS", "Benchmark", "Protocol", "Verification", "differing_facts", "get_protocol",
    "open_benchmark", "statistics", "verify",
]  # fmt: skip
