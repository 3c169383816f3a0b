"""The quickstart's report: one HTML file.

What it explains stands in `templates/report.html.j2`. Every sentence that states a finding is
computed here from the results, so that it cannot say what the numbers do not.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from longclip_lab import world
from longclip_lab.evaluation import Interval
from longclip_lab.files import atomic_write
from longclip_lab.reproduction.results import (
    COLUMNS,
    ModelRow,
    QuickstartResults,
    best,
    claims,
    start,
)
from longclip_lab.text import split_sentences
from longclip_lab.views.counterfactual import (
    answers_message,
    counterfactual_figure,
    grouped,
    read_by_all,
)
from longclip_lab.views.html import caption_html, image_uri, render
from longclip_lab.views.models import (
    long_message,
    long_score,
    short_score,
    stretching_figure,
    stretching_message,
    tradeoff_figure,
)
from longclip_lab.views.reading import (
    STYLES,
    definitions,
    effective_length_figure,
    effective_length_message,
    truncation_figure,
    truncation_message,
)
from longclip_lab.views.static import figure_block, standalone_page, table_html
from longclip_lab.views.theme import CHANCE, PALETTE, capital, compare, listed, points

TITLE = "How much of a caption does CLIP read?"
HERO_PIXELS, QUESTION_PIXELS = 560, 300
CANDIDATES, QUESTIONS = 24, 120
_NEW_POSITIONS = 248 - 77
_CIVIDIS = ("#00224E", "#35456C", "#666970", "#948E77", "#C8B866", "#FEE838")
_DASHES = {"solid": "solid", "dot": "dotted", "dash": "dashed", "dashdot": "dashed"}


def write_report(results: QuickstartResults, path: str | Path) -> Path:
    """Write the report to `path` (whole or not at all) and return the path.

    One HTML file under 3 MB that asks the network for nothing. Raises LabError if the results have
    no row for the model as it was, or for the best one.
    """
    context = results.before.curve.cuts[-1] + 2
    before, after = start(results), best(results)
    variants = list(results.before.curve.hits)
    stretched = [row.label for row in results.rows if row.stage != "fine-tuned"]
    colours = np.random.default_rng(0).integers(len(_CIVIDIS), size=_NEW_POSITIONS)
    body = render(
        "report.html.j2",
        "longclip_lab.reproduction",
        title=TITLE,
        context=context,
        hero=_hero(context),
        before=before,
        after=after,
        changes=_changes(results, before, after),
        findings=_findings(results, before, after),
        figures=_figures(results, after),
        variants=variants,
        variant_keys=[(STYLES[name][0], _DASHES[STYLES[name][1]]) for name in variants],
        definitions=definitions(results.before),
        least_gain=f"{100 * results.before.least_gain:g}",
        questions=_questions(context),
        stretched=stretched,
        stretched_keys=[(PALETTE[i], "solid") for i in range(len(stretched))],
        cividis=_CIVIDIS,
        random_colours=[_CIVIDIS[i] for i in colours],
        rows=results.rows,
        columns=COLUMNS,
        claims=claims(results),
        command=results.facts.get("command", "longclip-lab quickstart"),
        facts={
            capital(name.replace("_", " ")): _fact(value)
            for name, value in results.facts.items()
            if name != "command"
        },
    )
    return atomic_write(path, standalone_page(TITLE, body))


def _hero(context: int) -> dict[str, Any]:
    """A picture of the world with its long caption, the unread part in grey.

    It is the test picture with the longest caption among the first few.
    """
    pairs = world.pairs(CANDIDATES)
    index = max(range(CANDIDATES), key=lambda i: pairs.long_captions[i].num_tokens)
    caption = pairs.long_captions[index]
    return {
        "uri": image_uri(world.draw(pairs.scenes[index], HERO_PIXELS)),
        "pixels": HERO_PIXELS,
        "short": pairs.short[index],
        "caption": caption_html(caption, context),
        "tokens": caption.num_tokens - 2,
    }


def _questions(context: int) -> list[dict[str, Any]]:
    """Three questions of the probe, to be guessed before the answer is unfolded.

    One about a large thing, one about a small one, one behind the model's context.
    """
    asked = world.counterfactuals(QUESTIONS)
    readable = asked.position < context - 1
    size, attribute = np.array(asked.size), np.array(asked.attribute)
    wanted = (
        ("a large thing", readable & (size == "large") & (attribute == "colour")),
        ("a small thing", readable & (size == "small") & (attribute == "pattern")),
        (f"behind position {context}", ~readable & (attribute == "kind")),
    )
    return [_question(asked, words, int(mask.argmax())) for words, mask in wanted if mask.any()]


def _question(asked: world.Counterfactuals, words: str, index: int) -> dict[str, Any]:
    true, false = asked.true[index], asked.false[index]
    old, new = asked.old[index], asked.new[index]
    # The texts agree before the changed words; what follows them has the same length in both.
    first = next(i for i, (a, b) in enumerate(zip(true, false, strict=False)) if a != b)
    first = true.rfind(" ", 0, first) + 1
    sentence = next(s for s in split_sentences(true) if s.start <= first < s.end)
    return {
        "uri": image_uri(world.draw(asked.scenes[index], QUESTION_PIXELS)),
        "pixels": QUESTION_PIXELS,
        "words": words,
        "attribute": asked.attribute[index],
        "position": asked.position[index],
        "before": true[sentence.start : first],
        "after": true[first + len(old) : sentence.end],
        "options": [old, new] if index % 2 else [new, old],
        "right": old,
    }


def _changes(
    results: QuickstartResults, before: ModelRow, after: ModelRow
) -> list[tuple[str, Interval, Interval, str]]:
    """What was measured, before and after, and whether the two differ."""
    probe, tuned = next(iter(results.probes.values())), results.probes[results.best]
    small = ~probe.unread & (probe.size == "small")
    changes = [
        ("Long captions, R@1, mean of both directions", long_score(before), long_score(after)),
        ("Short captions, R@1, mean of both directions", short_score(before), short_score(after)),
        ("Small things, right answers (chance 50%)", probe.accuracy(small), tuned.accuracy(small)),
    ]
    if probe.unread.any():
        cut = results.before.curve.cuts[-1] + 2
        behind = tuned.accuracy(probe.unread)
        chance = Interval(CHANCE, CHANCE, CHANCE, behind.n)
        words = f"Words behind {cut} positions, right answers (chance 50%)"
        changes.append((words, chance, behind))
    return [(what, old, new, compare(new, old)) for what, old, new in changes]


def _findings(results: QuickstartResults, before: ModelRow, after: ModelRow) -> dict[str, str]:
    """The sentences that state what was found."""
    probe = next(iter(results.probes.values()))
    read = read_by_all({probe.model: probe})[probe.model]
    gains = []
    for what, score in (("long", long_score), ("short", short_score)):
        verdict = compare(score(after), score(before))
        seen = verdict != "no difference seen"
        by = f"{points(score(after), score(before))} " if seen else ""
        gains.append(f"{by}{verdict} on {what} captions")
    cut = [f"“{row.label}” cuts {row.truncated:,}" for row in results.rows if row.truncated]
    facts, trained = results.facts, sum(row.seconds for row in results.rows)
    threads = f" on {facts['threads']} threads" if "threads" in facts else ""
    took = f"{facts['seconds'] / 60:.1f} minutes{threads}" if "seconds" in facts else "Not timed"
    return {
        "truncation": truncation_message(results.before.curve),
        "effective_length": effective_length_message(results.before),
        "sizes": answers_message({probe.model: grouped(read, "size")}, "size"),
        "stretching": stretching_message(results.rows),
        "long": long_message(results.rows),
        "truncated": f"Of {results.rows[0].long_i2t.n:,} long test captions, {listed(cut)}."
        if cut
        else "No model had to cut a long test caption.",
        "gains": f"“{after.label}”, against “{before.label}”: {listed(gains)}.",
        "took": f"{took}; {trained:.0f} seconds of it were fine-tuning.",
    }


def _figures(results: QuickstartResults, after: ModelRow) -> dict[str, str]:
    """The figures as blocks of the page, some with the table of their numbers."""
    effective, curve = results.before, results.before.curve
    probe = next(iter(results.probes.values()))
    read = read_by_all({probe.model: probe})[probe.model]
    tuned = replace(results.after.curve, model=after.label)
    cuts = "R@1 in percent after each cut"

    def of_start(by: str, part: Any) -> str:
        table = table_html(part.table([by]), "Percent", [by])
        return figure_block(counterfactual_figure(probe, by), table)

    return {
        "truncation": figure_block(
            truncation_figure(curve), table_html(curve.table(), cuts, ["variant"])
        ),
        "effective_length": figure_block(
            effective_length_figure(effective),
            table_html(effective.table(), "Tokens", ["variant", "definition"]),
        ),
        "start_size": of_start("size", read),
        "start_position": of_start("position", probe),
        "stretching": figure_block(stretching_figure(results.rows)),
        "tradeoff": figure_block(tradeoff_figure(results.rows)),
        "tuned_truncation": figure_block(
            truncation_figure(tuned), table_html(tuned.table(), cuts, ["variant"])
        ),
        **{
            by: figure_block(counterfactual_figure(results.probes, by))
            for by in ("size", "position", "attribute")
        },
    }


def _fact(value: Any) -> str:
    """A fact of the run as text, nested ones on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_fact(inner)}" for name, inner in value.items())
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)
