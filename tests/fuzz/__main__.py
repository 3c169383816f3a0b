"""Fuzz the product: `python tests/fuzz --seconds 600`; exits with 1 if anything fails."""

from __future__ import annotations

import argparse
import faulthandler
import sys
import tempfile
from pathlib import Path

from running import fuzz
from targets import TARGETS


def main() -> int:
    faulthandler.enable()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--inputs", type=int, help="so many of each target, if there is time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="default: all")
    parser.add_argument("--only", metavar="TARGET:NUMBER", help="one input again")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="a folder for inputs that fail")
    chosen = parser.parse_args()
    name, _, number = (chosen.only or "").partition(":")
    named = [name] if chosen.only else chosen.target or TARGETS
    with tempfile.TemporaryDirectory() as home:
        report = fuzz(
            Path(home).resolve(),
            chosen.seed,
            chosen.seconds,
            chosen.inputs,
            {name: TARGETS[name] for name in named},
            [int(number)] if chosen.only else (),
            chosen.keep and chosen.keep.resolve(),
        )
    print(str(report).encode("utf-8", "backslashreplace").decode())
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
