"""Fuzz the product: `python tests/fuzz --seconds 600`; exits with 1 if anything fails."""

from __future__ import annotations

import argparse
import faulthandler
import sys
import tempfile
from pathlib import Path

import running
from targets import TARGETS


def main() -> int:
    faulthandler.enable()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument(
        "--inputs", type=int, help="so many of each target, however long that takes"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="by default all")
    parser.add_argument("--only", metavar="TARGET:NUMBER", help="one input again")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="a folder for inputs that fail")
    chosen = parser.parse_args()
    named = chosen.target or list(TARGETS)
    numbers = None
    if chosen.only:
        name, _, number = chosen.only.partition(":")
        named, numbers = [name], [int(number)]
    with tempfile.TemporaryDirectory() as home:
        report = running.fuzz(
            Path(home).resolve(),
            chosen.seed,
            float("inf") if chosen.inputs else chosen.seconds,
            chosen.inputs,
            {name: TARGETS[name] for name in named},
            numbers,
            chosen.keep and chosen.keep.resolve(),
        )
    print(report)
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
