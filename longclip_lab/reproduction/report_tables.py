"""Tables of the report: scores before and after, all models, the claims, the facts of the run."""

from __future__ import annotations

import html
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from longclip_lab.evaluation import Interval
from longclip_lab.reproduction.claims import Claim
from longclip_lab.reproduction.results import COLUMNS, QuickstartResults
from longclip_lab.views.wording import capital, compare

_STAGES = {"start": "As it was", "stretched": "Stretched to 248", "fine-tuned": "Fine-tuned"}
_CHIP = {
    "seen": ("up", "✓"), "higher": ("up", "↑"), "lower": ("down", "↓"),
    "not seen": ("down", "✗"), "the opposite": ("down", "⇄"), "no difference seen": ("", "≈"),
}  # fmt: skip


def chip(verdict: str) -> str:
    """A verdict as a small label, told by symbol and word as well as by colour."""
    kind, symbol = _CHIP[verdict]
    return f'<span class="chip {kind}">{symbol} {verdict}</span>'


def score_cards(changes: Sequence[tuple[str, Interval, Interval]]) -> str:
    """What was measured, before and after, and whether the two differ."""
    items = "".join(
        f'<li><div class="what">{what}</div><div class="value"><span class="from">'
        f"{100 * before.value:.1f} →</span> {100 * after.value:.1f}%</div>"
        f'<div class="range">{_range(before)} → {_range(after)}</div>'
        f"{chip(compare(after, before))}</li>"
        for what, before, after in changes
    )
    return f'<ul class="scores">{items}</ul>'


def _range(score: Interval) -> str:
    if score.low == score.high:
        return "by definition"
    return f"{100 * score.low:.1f}–{100 * score.high:.1f}"


def models_table(results: QuickstartResults) -> str:
    """Every model's scores in percent with 95% intervals, by stage."""
    body = ""
    for stage, rows in groupby(results.rows, key=lambda row: row.stage):
        body += (
            f'<tr class="group"><th scope="rowgroup" colspan="10">'
            f"{html.escape(_STAGES.get(stage, stage))}</th></tr>"
        )
        for row in rows:
            best = ' class="best"' if row.label == results.best else ""
            scores = "".join(
                f"<td><strong>{100 * s.value:.1f}</strong><small>{_range(s)}</small></td>"
                for s in (getattr(row, name) for name in COLUMNS)
            )
            kept = "" if row.variance_kept is None else f"{100 * row.variance_kept:.2f}"
            seconds = f"{row.seconds:.0f}" if row.seconds else ""
            body += (
                f'<tr{best}><th scope="row">{html.escape(row.label)}</th>{scores}'
                f"<td>{row.truncated:,}</td><td>{kept}</td><td>{seconds}</td></tr>"
            )
    ways = '<th scope="col">picture<br>→ text</th><th scope="col">text →<br>picture</th>'
    return (
        '<div class="scroll"><table class="models"><caption>All scores in percent, 95% bootstrap '
        "intervals below. The model with the highest sum of its four R@1 is marked.</caption>"
        '<thead><tr><th rowspan="2" scope="col">Model</th>'
        '<th colspan="2" scope="colgroup">Long, R@1</th>'
        '<th colspan="2" scope="colgroup">Short, R@1</th>'
        '<th colspan="2" scope="colgroup">Zero-shot</th>'
        '<th rowspan="2" scope="col">long texts<br>cut</th>'
        '<th rowspan="2" scope="col">variance<br>kept (%)</th>'
        '<th rowspan="2" scope="col">training<br>(s)</th></tr>'
        f'<tr>{ways}{ways}<th scope="col">kind</th><th scope="col">colour</th></tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def ledger(found: Sequence[Claim]) -> str:
    """The claims with their verdicts and numbers."""
    rows = "".join(
        f'<tr><th scope="row">{html.escape(claim.statement)}'
        f'<span class="source">{html.escape(claim.source)}</span></th>'
        f'<td class="words">{chip(claim.verdict)}</td>'
        f'<td class="words">{html.escape(claim.evidence)}</td></tr>'
        for claim in found
    )
    return (
        '<div class="card scroll"><table class="ledger"><thead><tr><th scope="col">What the papers '
        'say</th><th scope="col" class="words">here</th><th scope="col" class="words">the numbers'
        f"</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def facts_list(facts: dict[str, Any]) -> str:
    """Facts of the run as a definition list, nested ones on one line."""

    def text(value: Any) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{name} {text(inner)}" for name, inner in value.items())
        return f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)

    shown = {capital(name.replace("_", " ")): facts[name] for name in facts if name != "command"}
    items = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(text(value))}</dd>"
        for name, value in shown.items()
    )
    return f'<dl class="facts">{items}</dl>'


def notes_list(notes: Sequence[tuple[str, str]], keys: Sequence[tuple[str, str]] = ()) -> str:
    """Names and what they mean, to stand beside a figure; `keys` are their (colour, CSS dash)."""
    styles = [f' class="key" style="--key:{colour};--dash:{dash}"' for colour, dash in keys]
    styles = styles or [""] * len(notes)
    items = "".join(
        f"<dt{style}>{html.escape(name)}</dt><dd>{html.escape(words)}</dd>"
        for style, (name, words) in zip(styles, notes, strict=True)
    )
    return f'<dl class="notes">{items}</dl>'
