"""Write the ledger's records into book/ledger.md.

    longclip-lab reproduce lotlip/table3
    python book/update_ledger.py

The page's block between the marks is made of all records in longclip_lab/reproduction/ledger.
"""

from __future__ import annotations

import re
from pathlib import Path

from longclip_lab.errors import LabError
from longclip_lab.files import atomic_write
from longclip_lab.reproduction.bookkeeping import ClaimRecord, LedgerRecord, LineRecord, read_all
from longclip_lab.reproduction.experiments import EXPERIMENTS, experiment

PAGE = Path(__file__).parent / "ledger.md"
MARKS = re.compile(r"(<!-- ledger[^>]*-->\n).*?(<!-- /ledger -->)", re.DOTALL)


def overview(records: dict[str, LedgerRecord]) -> str:
    """One line an experiment, those that were not run included."""
    lines = [
        "| experiment | what | claims that reproduce | do not | not testable | seeds | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in EXPERIMENTS:
        if name not in records:
            lines.append(f"| `{name}` | {experiment(name).title} | not run | | | | |")
            continue
        record = records[name]
        verdicts = [claim.verdict for claim in record.claims if not claim.is_control]
        counts = [
            sum(verdict == one for verdict in verdicts)
            for one in ("reproduces", "does not", "not testable at this scale")
        ]
        link = f"[`{name}`](#{anchor(name)})"
        told = " | ".join(str(count) for count in counts)
        lines.append(
            f"| {link} | {record.title} | {told} | {len(record.seeds)} | {record.minutes:.0f} |"
        )
    return "\n".join(lines)


def anchor(name: str) -> str:
    return "ledger-" + name.replace("/", "-")


def scores(record: LedgerRecord) -> str:
    """The table: the paper's numbers and ours."""
    heads = " | ".join(f"{name}: paper | ours" for name in record.columns)
    lines = [f"| | {heads} |", "|---" * (1 + 2 * len(record.columns)) + "|"]
    lines += [_scores_of(record, line) for line in record.lines]
    return "\n".join(lines)


def _scores_of(record: LedgerRecord, line: LineRecord) -> str:
    cells = []
    for name in record.columns:
        published, ours = line.published[name], line.ours[name]
        half = (ours.high - ours.low) / 2
        cells.append("" if published is None else f"{published:.2f}")
        cells.append(f"{ours.value:.1f} ± {half:.1f}")
    about = f" ({line.about})" if line.about else ""
    label = f"*{line.label}*" if line.is_baseline else line.label
    return f"| {label}{about} | {' | '.join(cells)} |"


def findings(record: LedgerRecord) -> str:
    """Every claim with its verdict and reason."""
    lines = ["| claim | score | paper | ours, points | verdict |", "|---|---|---|---|---|"]
    lines += [_finding(claim) for claim in record.claims]
    return "\n".join(lines)


def _finding(claim: ClaimRecord) -> str:
    paper = "" if claim.published is None else f"{claim.published:+.2f}"
    ours = claim.ours
    told = f"{ours.value:+.1f} ({ours.low:+.1f} to {ours.high:+.1f})"
    text = f"*{claim.text}*" if claim.is_control else claim.text
    verdict = claim.words if claim.is_control else f"**{claim.words}**"
    return f"| {text} | {claim.column} | {paper} | {told} | {verdict} |"


def section(record: LedgerRecord) -> str:
    """One experiment: what was done, its table and its claims."""
    columns = "; ".join(f"*{name}*: {about}" for name, about in record.columns.items())
    made = (
        f"{len(record.seeds)} seeds, {record.minutes:.0f} minutes by the clock and "
        f"{record.cpu_minutes:.0f} of processor time; commit {record.commit}, torch "
        f"{record.versions['torch']}."
    )
    parts = [
        f"({anchor(record.name)})=\n## {record.title}",
        f"After {record.source}. {columns}.",
        f"```shell\n{record.command}\n```",
        scores(record),
        findings(record),
        "\n".join(f"- {note}" for note in record.notes),
        made,
    ]
    return "\n\n".join(part for part in parts if part)


def page_block(records: dict[str, LedgerRecord]) -> str:
    """Everything between the marks."""
    done = [records[name] for name in EXPERIMENTS if name in records]
    return "\n\n".join([overview(records), *map(section, done)])


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    if not MARKS.search(page):
        raise LabError(f"{PAGE.name} has no block 'ledger': put its two marks back.")
    block = page_block(read_all())
    atomic_write(PAGE, MARKS.sub(lambda match: f"{match[1]}\n{block}\n\n{match[2]}", page))


if __name__ == "__main__":
    main()
