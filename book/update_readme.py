"""Write measured numbers into README.md, from what the commands beside them wrote.

    longclip-lab quickstart                 # writes runs/quickstart/results.json
    python book/update_readme.py

Only the block between the marks `<!-- quickstart ... -->` changes.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from longclip_lab.errors import LabError
from longclip_lab.files import atomic_write

ROOT = Path(__file__).parent.parent
COLUMNS = {
    "long_i2t": "long, picture→text",
    "long_t2i": "long, text→picture",
    "short_i2t": "short, picture→text",
    "short_t2i": "short, text→picture",
    "kind": "kind",
    "colour": "colour",
}


def percent(score: dict) -> str:
    """A score and half the width of its interval, in percent."""
    half = 50 * (score["high"] - score["low"])
    return f"{100 * score['value']:.1f} ±{half:.1f}"


def quickstart_block(results: dict) -> str:
    """The quickstart's table in Markdown, and what it was made of."""
    facts, rows = results["facts"], results["rows"]
    lines = ["| model | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for row in rows:
        cells = [percent(row[name]) for name in COLUMNS]
        lines.append(f"| {row['label']} | " + " | ".join(cells) + " |")
    kept = next(row["variance_kept"] for row in rows if row["variance_kept"] is not None)
    lines += [
        "",
        f"R@1 in pools of {rows[0]['long_i2t']['n']:,} pictures and zero-shot accuracy, percent, "
        "with 95% bootstrap intervals. In the pool of long captions four pictures share each "
        "summary, so that only the details tell them apart; fine-tuning, too, sees siblings side "
        "by side, which teaches details and costs short captions. Rates, siblings and pools were "
        "chosen on other pictures (`world.SELECTION_SEED`); the intervals are over pictures, of "
        "one training seed. Stretched models are not trained; the "
        f"last four are fine-tuned after KPS for {facts['sizes']['steps']} steps of "
        f"{facts['sizes']['batch_size']} pairs. PCM's components kept {100 * kept:.1f}% of the "
        f"variance. Made by `{facts['command']}` (seed {facts['seed']}, {facts['seconds']:.0f} "
        f"seconds on {facts['threads']} threads), written here by `python book/update_readme.py`.",
    ]
    return "\n".join(lines)


def replace_block(text: str, name: str, content: str) -> str:
    """Put `content` between the marks of a block. Raises LabError if the marks are missing."""
    pattern = re.compile(rf"(<!-- {name}[^>]*-->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise LabError(f"README.md has no block '{name}': put its two marks back.")
    return pattern.sub(lambda match: f"{match[1]}{content}\n{match[2]}", text)


def main() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    results = ROOT / "runs" / "quickstart" / "results.json"
    if results.exists():
        block = quickstart_block(json.loads(results.read_text(encoding="utf-8")))
        text = replace_block(text, "quickstart", block)
    atomic_write(ROOT / "README.md", text)


if __name__ == "__main__":
    main()
