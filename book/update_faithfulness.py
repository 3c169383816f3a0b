"""Write measured tables into book/faithfulness.md, from what the commands beside them wrote.

    longclip-lab faithfulness tiny --out runs/faithfulness
    longclip-lab faithfulness tiny --stretch --out runs/faithfulness-stretched
    python book/update_faithfulness.py runs/faithfulness runs/faithfulness-stretched

Each folder's JSON is kept in book/records/, under its model's name; the page's block between the
marks is made of all records there. Without arguments only the page is made anew.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from longclip_lab.attribution import CRITERIA, Faithfulness
from longclip_lab.attribution.verdicts import HEADINGS, markdown
from longclip_lab.errors import LabError
from longclip_lab.files import atomic_write

BOOK = Path(__file__).parent
PAGE, RECORDS = BOOK / "faithfulness.md", BOOK / "records"
MARKS = re.compile(r"(<!-- faithfulness[^>]*-->\n).*?(<!-- /faithfulness -->)", re.DOTALL)


def criteria() -> str:
    """What each column means."""
    lines = ["| column | what is measured | what has to be beaten | after |", "|---|---|---|---|"]
    lines += [
        f"| {HEADINGS[name]} | {one.about} | {one.level} | {one.source} |"
        for name, one in CRITERIA.items()
    ]
    return "\n".join(lines)


def section(result: Faithfulness) -> str:
    """One model's tables under a heading, and what they were made of."""
    facts = result.facts
    made = (
        f"Model {result.model} (weights {facts['model_hash']}), seed {facts['seed']}, "
        f"{facts['random_orders']} random orders, {facts['shuffled_towers']} shuffled towers; "
        f"{facts['seconds']:.0f} seconds on {facts['device']}."
    )
    return f"### {result.model}\n\n{made}\n\n{markdown(result)}"


def page_block(results: list[Faithfulness]) -> str:
    """Everything between the marks."""
    return "\n\n".join([criteria(), *map(section, results)])


def _read(path: Path) -> Faithfulness:
    return Faithfulness.from_dict(json.loads(path.read_text(encoding="utf-8")))


def main(folders: list[str]) -> None:
    for folder in folders:
        result = _read(Path(folder) / "faithfulness.json")
        name = re.sub(r"[^\w]+", "-", result.model).strip("-")
        atomic_write(RECORDS / f"faithfulness-{name}.json", result.to_json())
    records = sorted(RECORDS.glob("faithfulness-*.json"), key=lambda path: len(path.stem))
    results = list(map(_read, records))
    page = PAGE.read_text(encoding="utf-8")
    if not MARKS.search(page):
        raise LabError(f"{PAGE.name} has no block 'faithfulness': put its two marks back.")
    block = page_block(results)
    atomic_write(PAGE, MARKS.sub(lambda match: f"{match[1]}\n{block}\n\n{match[2]}", page))


if __name__ == "__main__":
    main(sys.argv[1:])
