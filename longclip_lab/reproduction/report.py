"""The quickstart's report: one HTML file to open, to show and to print; see `views.page`.

Every sentence that states a finding is computed from the results, so that it cannot say what the
numbers do not.
"""

from __future__ import annotations

import html
from dataclasses import replace
from pathlib import Path

from longclip_lab.evaluation import Interval
from longclip_lab.files import atomic_write
from longclip_lab.reproduction import report_texts as texts
from longclip_lab.reproduction.claims import best, claims, start
from longclip_lab.reproduction.report_pictures import hero, question_cards, stretching_strips
from longclip_lab.reproduction.report_tables import (
    facts_list,
    ledger,
    models_table,
    notes_list,
    score_cards,
)
from longclip_lab.reproduction.results import QuickstartResults
from longclip_lab.views.answers import (
    answers_message,
    counterfactual_figure,
    grouped,
    read_by_all,
)
from longclip_lab.views.comparisons import (
    long_message,
    long_score,
    short_score,
    stretching_figure,
    stretching_message,
)
from longclip_lab.views.page import figure_block, page, table_html
from longclip_lab.views.reading import (
    STYLES,
    definitions,
    effective_length_figure,
    effective_length_message,
    truncation_figure,
    truncation_message,
)
from longclip_lab.views.theme import PALETTE
from longclip_lab.views.tradeoff import tradeoff_figure
from longclip_lab.views.wording import CHANCE, capital, compare, listed, points

_DASHES = {"solid": "solid", "dot": "dotted", "dash": "dashed", "dashdot": "dashed"}


def write_report(results: QuickstartResults, path: str | Path) -> Path:
    """Write the report to `path` (whole or not at all) and return the path.

    One HTML file under 3 MB that asks the network for nothing.
    """
    sections = (_reads, _notices, _stretches, _fine_tunes, _supports, _ran)
    body = "".join(
        f'<section id="part-{number}">{section(results, number)}</section>'
        for number, section in enumerate(sections, start=1)
    )
    whole = f"{_opening(results)}<main>{body}</main>{_footer()}"
    return atomic_write(path, page(texts.TITLE, whole))


def _context(results: QuickstartResults) -> int:
    return results.before.curve.cuts[-1] + 2


def _heading(number: int, question: str, answer: str) -> str:
    return (
        f'<h2><span class="number">{number}</span>{html.escape(question)}</h2>'
        f'<p class="answer">{html.escape(answer)}</p>'
    )


def _beside(figure: str, notes: str) -> str:
    return f'<div class="beside">{figure}{notes}</div>'


def _opening(results: QuickstartResults) -> str:
    context = _context(results)
    scene, caption, tokens = hero(context)
    unread = max(0, tokens - (context - 2))
    cut = (
        f" A CLIP with {context} positions holds the first {context - 2} and never sees the other "
        f"{unread}."
        if unread
        else ""
    )
    message = truncation_message(results.before.curve)
    finding = f"This caption has {tokens} tokens.{cut} {message}."
    before, after = start(results), best(results)
    return (
        '<header class="hero"><div class="bar"><span><b>longclip_lab</b> · the first lesson, '
        'measured</span><button id="theme" type="button" aria-label="Light or dark page">Dark'
        f'</button></div><h1>{texts.TITLE}</h1><p class="finding">{html.escape(finding)}</p>'
        f'<div class="stage">{scene}{caption}</div>'
        f'<p class="lead">From “{html.escape(before.label)}” to “{html.escape(after.label)}”, the '
        f"fine-tuned model with the best sum of scores:</p>{score_cards(_changes(results))}"
        "</header>"
    )


def _changes(results: QuickstartResults) -> list[tuple[str, Interval, Interval]]:
    before, after = start(results), best(results)
    probe, tuned = next(iter(results.probes.values())), results.probes[results.best]
    small = ~probe.unread & (probe.size == "small")
    changes = [
        ("Long captions, R@1, mean of both directions", long_score(before), long_score(after)),
        ("Short captions, R@1, mean of both directions", short_score(before), short_score(after)),
        ("Small things, right answers (chance 50%)",
         probe.accuracy(small), tuned.accuracy(small)),
    ]  # fmt: skip
    if probe.unread.any():
        words = f"Words behind {_context(results)} positions, right answers (chance 50%)"
        behind = tuned.accuracy(probe.unread)
        changes.append((words, Interval(CHANCE, CHANCE, CHANCE, behind.n), behind))
    return changes


def _reads(results: QuickstartResults, number: int) -> str:
    effective, curve = results.before, results.before.curve
    shown = [name for name in texts.CONTROLS if name in curve.hits]
    controls = notes_list(
        [(name, texts.CONTROLS[name]) for name in shown],
        [(STYLES[name][0], _DASHES[STYLES[name][1]]) for name in shown],
    )
    meanings = notes_list(
        [
            (capital(words), texts.LENGTHS[key].format(gain=100 * effective.least_gain))
            for key, words in definitions(effective).items()
        ]
    )
    table = table_html(curve.table(), "R@1 in percent after each cut", ["variant"])
    lengths = table_html(effective.table(), "Tokens", ["variant", "definition"])
    return (
        _heading(number, "How far does it read?", f"{effective_length_message(effective)}.")
        + texts.READS
        + _beside(figure_block(truncation_figure(curve), table), controls)
        + _beside(figure_block(effective_length_figure(effective), lengths), meanings)
    )


def _notices(results: QuickstartResults, number: int) -> str:
    probe = next(iter(results.probes.values()))
    read = read_by_all({probe.model: probe})[probe.model]
    sizes = answers_message({probe.model: grouped(read, "size")}, "size")
    figures = {
        by: figure_block(
            counterfactual_figure(probe, by), table_html(part.table([by]), "Percent", [by])
        )
        for by, part in (("size", read), ("position", probe))
    }
    return (
        _heading(number, "What does it notice?", f"{sizes}.")
        + texts.NOTICES
        + question_cards(_context(results))
        + f'<div class="pair">{figures["size"]}{figures["position"]}</div>'
    )


def _stretches(results: QuickstartResults, number: int) -> str:
    shown = [row.label for row in results.rows if row.stage != "fine-tuned"]
    keys = [(PALETTE[i], "solid") for i in range(len(shown))]
    methods = notes_list([(label, texts.METHODS.get(label, "")) for label in shown], keys)
    return (
        _heading(
            number,
            "Can it be given more positions?",
            f"{stretching_message(results.rows)}. {long_message(results.rows)}.",
        )
        + texts.STRETCHES
        + f'<div class="card">{stretching_strips()}</div>'
        + _beside(figure_block(stretching_figure(results.rows)), methods)
        + f"<p>{html.escape(_truncated(results))}</p>"
    )


def _truncated(results: QuickstartResults) -> str:
    cut = [f"“{row.label}” cuts {row.truncated:,}" for row in results.rows if row.truncated]
    if not cut:
        return "No model had to cut a long test caption."
    return f"Of {results.rows[0].long_i2t.n:,} long test captions, {listed(cut)}."


def _fine_tunes(results: QuickstartResults, number: int) -> str:
    after = best(results)
    curve = replace(results.after.curve, model=after.label)
    figures = {
        by: figure_block(counterfactual_figure(results.probes, by))
        for by in ("size", "position", "attribute")
    }
    table = table_html(curve.table(), "R@1 in percent after each cut", ["variant"])
    return (
        _heading(number, "What does fine-tuning on long captions bring?", _gains(results))
        + texts.FINE_TUNES
        + _beside(figure_block(tradeoff_figure(results.rows)), notes_list(texts.TRADEOFF))
        + f'<div class="card">{models_table(results)}</div>'
        + f"<h3>What “{html.escape(after.label)}” reads now</h3>"
        + figure_block(truncation_figure(curve), table)
        + f'<div class="pair">{figures["size"]}{figures["position"]}</div>'
        + figures["attribute"]
    )


def _gains(results: QuickstartResults) -> str:
    before, after = start(results), best(results)
    told = []
    for what, score in (("long", long_score), ("short", short_score)):
        verdict = compare(score(after), score(before))
        if verdict == "no difference seen":
            told.append(f"{verdict} on {what} captions")
        else:
            told.append(f"{points(score(after), score(before))} {verdict} on {what} captions")
    return f"“{after.label}”, against “{before.label}”: {listed(told)}."


def _supports(results: QuickstartResults, number: int) -> str:
    found = claims(results)
    seen = sum(claim.verdict == "seen" for claim in found)
    answer = f"Of {len(found)} claims that these numbers can speak to, {seen} are seen here."
    return _heading(number, "What do these numbers support?", answer) + ledger(found) + texts.CARE


def _ran(results: QuickstartResults, number: int) -> str:
    facts = results.facts
    threads = f" on {facts['threads']} threads" if "threads" in facts else ""
    trained = sum(row.seconds for row in results.rows)
    took = f"{facts['seconds'] / 60:.1f} minutes{threads}" if "seconds" in facts else "Not timed"
    answer = f"{took}; {trained:.0f} seconds of it were fine-tuning."
    command = html.escape(facts.get("command", "longclip-lab quickstart"))
    return (
        _heading(number, "How was this run?", answer)
        + f"<pre>{command}</pre>{facts_list(facts)}{texts.RAN}"
    )


def _footer() -> str:
    links = "".join(
        f'<li><a href="{url}">{html.escape(name)}</a></li>' for name, url in texts.PAPERS
    )
    return f"<footer><div><p>The papers whose claims are tested:</p><ul>{links}</ul></div></footer>"
