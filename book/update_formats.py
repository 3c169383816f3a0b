"""Write the table of systems into book/formats.md, from what their tests record.

    python book/update_formats.py

runs those tests of models that record something, keeps their rows in book/records/formats.json and
writes the page's block between the marks. A test that fails stops it, and so does a system that no
test recorded anything about.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from longclip_lab.errors import LabError
from longclip_lab.files import atomic_write
from longclip_lab.models.inspect import systems

BOOK = Path(__file__).parent
PAGE, RECORD = BOOK / "formats.md", BOOK / "records" / "formats.json"
TESTS = BOOK.parent / "tests" / "models"
MARKS = re.compile(r"(<!-- formats[^>]*-->\n).*?(<!-- /formats -->)", re.DOTALL)


def recorded() -> list[dict[str, Any]]:
    """Run the tests that record anything; every row of those that pass."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "rows.jsonl"
        command = [sys.executable, "-m", "pytest", "--quiet", str(TESTS)]
        environment = os.environ | {
            "LONGCLIP_LAB_COMPATIBILITY": str(place),
            "HF_HUB_OFFLINE": "1",
        }
        if subprocess.run(command, cwd=BOOK.parent, env=environment).returncode:
            raise LabError("The tests of formats failed: the table stays as it was.")
        return [json.loads(line) for line in place.read_text(encoding="utf-8").splitlines()]


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry a system and direction, in the order of `systems`.

    Raises LabError for a door that no test went through.
    """
    entries = []
    for name, system in systems().items():
        for direction in system.directions:
            those = [r for r in rows if (r["system"], r["direction"]) == (name, direction)]
            if not those:
                raise LabError(f"No test recorded anything about '{name}', {direction}.")
            entries.append(
                {
                    "system": name,
                    "direction": direction,
                    "on": sorted({row["on"] for row in those}),
                    "against": sorted({row["against"] for row in those}),
                    "difference": float(f"{max(row['difference'] for row in those):.1e}"),
                }
            )
    return entries


def table(entries: list[dict[str, Any]]) -> str:
    """The entries as Markdown, a system's name and what it waits for in its first row only."""
    heads = ("system", "way", "verified on", "largest difference", "waits for")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    before = None
    for entry in entries:
        system, first = systems()[entry["system"]], entry["system"] != before
        call = system.load if entry["direction"] == "in" else system.export
        difference = f"{entry['difference']:.0e}" if entry["difference"] else "0"
        cells = (
            f"**{system.title}**" if first else "",
            f"{entry['direction']}: `{call}`",
            "; ".join(entry["on"]),
            f"{difference}, against {'; '.join(entry['against'])}",
            system.waits_for if first else "",
        )
        lines.append(f"| {' | '.join(cells)} |")
        before = entry["system"]
    return "\n".join(lines)


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    if not MARKS.search(page):
        raise LabError(f"{PAGE.name} has no block 'formats': put its two marks back.")
    entries = summary(recorded())
    atomic_write(RECORD, json.dumps(entries, indent=1) + "\n")
    atomic_write(PAGE, MARKS.sub(lambda match: f"{match[1]}\n{table(entries)}\n\n{match[2]}", page))


if __name__ == "__main__":
    try:
        main()
    except LabError as error:
        sys.exit(f"error: {error}")
