"""The quickstart's report: one HTML file.

No finding stands here; findings are computed.

Every sentence that states a finding is computed from the results, so that it cannot say what the
numbers do not.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from longclip_lab import world
from longclip_lab.evaluation import Interval
from longclip_lab.files import atomic_write
from longclip_lab.reproduction.results import COLUMNS, Claim, QuickstartResults, best, claims, start
from longclip_lab.text import split_sentences
from longclip_lab.views.counterfactual import (
    answers_message,
    counterfactual_figure,
    grouped,
    read_by_all,
)
from longclip_lab.views.html import caption_html, picture_uri
from longclip_lab.views.models import tradeoff_figure
from longclip_lab.views.reading import (
    STYLES,
    definitions,
    effective_length_figure,
    effective_length_message,
    truncation_figure,
    truncation_message,
)
from longclip_lab.views.static import figure_block, standalone_page, table_html
from longclip_lab.views.stretching import (
    long_message,
    long_score,
    short_score,
    stretching_figure,
    stretching_message,
)
from longclip_lab.views.theme import CHANCE, PALETTE, capital, compare, listed, points

# --- What the report explains whatever the results are: methods, definitions, cautions ---

TITLE = "How much of a caption does CLIP read?"

CONTROLS = {
    "as written": "The caption as it is: a summary, then one sentence for every thing.",
    "positions re-randomised": "The same captions, read by a copy of the model whose positions "
    "from 20 on are random. Where it scores as well, those positions told it nothing.",
    "details only": "Without the summary. To score here, a model must read the details.",
    "summary last": "The summary moved to the end. If the place of the summary bends the curve, "
    "the bend moves with it.",
}

LENGTHS = {
    "half": "The first cut with half of the score that all tokens bring.",
    "plateau": "The first cut with 95% of it: what one reads off a curve by eye.",
    "marginal gain": "The last cut before a step first brings {gain:g} points a token or less.",
    "last gain": "The last cut whose step up is above 0 with 97.5% certainty.",
}

METHODS = {
    "not stretched": "77 positions; a longer text is cut.",
    "linear": "All 77 interpolated to 248. Every position changes but the first.",
    "KPS": "Knowledge-preserved stretching: the first 20 stay, the other 57 are interpolated to "
    "228.",
    "keep + random": "All 77 stay; the 171 new ones are random with the same spread. The control "
    "for interpolation.",
}

TRADEOFF = (
    ("Up and to the right is better", "Up: finds pictures by long captions. Right: by short ones."),
    ("The dotted curve", "Long and short loss with the full image feature, by the weight of the "
     "short loss. Any such mixture can be had by choosing a weight."),
    ("PCM", "The short loss against the picture's primary components instead. It brings "
     "something of its own only if it lies above the curve."),
    ("Variance kept", "What share of the image features' variance the components hold. At 100% "
     "PCM is mixing, by definition."),
)  # fmt: skip

READS = (
    "<p>Each long caption is cut after its first <i>n</i> tokens, and its picture is looked for "
    "among all pictures. The curve alone misleads: it is flat wherever the rest of the caption "
    "adds little, read or not. Three controls tell why it is flat.</p>"
)
NOTICES = (
    "<p>A sharper question: two captions differ in one word; which of them fits the picture? "
    "Chance is 50%, the answer does not depend on other pictures, and it is known exactly where "
    "the word stands and how large the thing is. Guess along:</p>"
)
STRETCHES = (
    "<p>A position is a learned vector, and there are only 77. Longer texts need more of them. "
    "Four ways, all without training; a colour stands for the old position that a new one is made "
    "from.</p>"
)
FINE_TUNES = (
    "<p>All models start from KPS. Trained on long captions only, a model may forget how to match "
    "short ones. So the short captions join the loss: with a weight, or, as in Long-CLIP, against "
    "the primary components of the picture's feature (PCM).</p>"
)
CARE = (
    "<h3>Be careful</h3><ul>"
    "<li>The intervals cover the choice of test pictures and nothing else. Every model was trained "
    "once; another seed moves the scores too. A claim needs several.</li>"
    "<li>“No difference seen” means that two 95% intervals overlap, not that there is none.</li>"
    "<li>R@1 depends on the number of pictures searched. Compare within this page only.</li>"
    "<li>The world is drawn and the model is tiny. What is seen here is a hypothesis about "
    "photographs and large models; <code>longclip-lab probe</code> and <code>longclip-lab "
    "eval</code> put the same questions to them.</li></ul>"
)
RAN = "<p>The same numbers, for machines, are in <code>results.json</code> beside this file.</p>"

PAPERS = (
    ("Zhang et al., Long-CLIP: Unlocking the Long-Text Capability of CLIP, ECCV 2024",
     "https://arxiv.org/abs/2403.15378"),
    ("Wu et al., LoTLIP: Improving Language-Image Pre-training for Long Text Understanding, "
     "NeurIPS 2024", "https://arxiv.org/abs/2410.05249"),
)  # fmt: skip


# --- Pictures of the report: the opening scene, questions to guess, the ways of stretching ---

HERO_PIXELS, QUESTION_PIXELS = 560, 300
CANDIDATES, QUESTIONS = 24, 120
_KEPT, _OLD, _NEW = 20, 77, 248
_CIVIDIS = ("#00224E", "#35456C", "#666970", "#948E77", "#C8B866", "#FEE838")


def hero(context_length: int) -> tuple[str, str, int]:
    """A picture of the world, its long caption with the unread part in grey, and its tokens.

    It is the test picture with the longest caption among the first few.
    """
    pairs = world.pairs(CANDIDATES)
    index = max(range(CANDIDATES), key=lambda i: pairs.long_captions[i].num_tokens)
    caption = pairs.long_captions[index]
    uri = picture_uri(world.draw(pairs.scenes[index], HERO_PIXELS))
    scene = (
        f'<img src="{uri}" width="{HERO_PIXELS}" height="{HERO_PIXELS}" '
        f'alt="A drawn scene: {html.escape(pairs.short[index])}">'
    )
    return scene, caption_html(caption, context_length), caption.num_tokens - 2


def question_cards(context_length: int) -> str:
    """Three questions of the probe, to be guessed before the answer is unfolded.

    One about a large thing, one about a small one, one behind the model's context.
    """
    asked = world.counterfactuals(QUESTIONS)
    readable = asked.position < context_length - 1
    size, attribute = np.array(asked.size), np.array(asked.attribute)
    wanted = (
        ("a large thing", readable & (size == "large") & (attribute == "colour")),
        ("a small thing", readable & (size == "small") & (attribute == "pattern")),
        (f"behind position {context_length}", ~readable & (attribute == "kind")),
    )
    chosen = [(words, int(mask.argmax())) for words, mask in wanted if mask.any()]
    return '<div class="questions">' + "".join(_card(asked, *one) for one in chosen) + "</div>"


def _card(asked: world.Counterfactuals, words: str, index: int) -> str:
    true, false, new = asked.true[index], asked.false[index], asked.new[index]
    old = asked.old[index]
    # The texts agree before the changed words; what follows them has the same length in both.
    start = next(i for i, (a, b) in enumerate(zip(true, false, strict=False)) if a != b)
    start = true.rfind(" ", 0, start) + 1
    sentence = next(s for s in split_sentences(true) if s.start <= start < s.end)
    options = [old, new] if index % 2 else [new, old]
    before = html.escape(true[sentence.start : start])
    after = html.escape(true[start + len(old) : sentence.end])
    choice = " or ".join(f'<span class="choice">{html.escape(option)}</span>' for option in options)
    uri = picture_uri(world.draw(asked.scenes[index], QUESTION_PIXELS))
    return (
        f'<figure><img src="{uri}" alt="The picture that the question is about" '
        f'width="{QUESTION_PIXELS}" height="{QUESTION_PIXELS}"><figcaption>'
        f'<span class="asks">{words}, {asked.attribute[index]}, token {asked.position[index]}'
        f"</span>{before}{choice}{after}<details><summary>Which fits?</summary>"
        f"{html.escape(old)}</details></figcaption></figure>"
    )


def stretching_strips() -> str:
    """Four ways from 77 to 248 positions, as SVG; a colour stands for an old position."""
    unit, left, height, gap = 3.0, 132, 24, 46
    gradient = "".join(
        f'<stop offset="{i / (len(_CIVIDIS) - 1)}" stop-color="{colour}"/>'
        for i, colour in enumerate(_CIVIDIS)
    )
    kept_part = (left, left + _KEPT * unit)
    rng = np.random.default_rng(0)
    fills: list[tuple[str, str, str]] = [
        ("not stretched", "stops at 77", _bar(left, left + _OLD * unit, "old")),
        ("linear", "all 77, evenly", _bar(left, left + _NEW * unit, "all")),
        (
            "KPS",
            "the first 20 as they are, the others × 4",
            _bar(*kept_part, "old") + _bar(kept_part[1], left + _NEW * unit, "rest"),
        ),
        (
            "keep + random",
            "77 as they are, the others drawn at random",
            _bar(left, left + _OLD * unit, "old")
            + "".join(
                f'<rect x="{left + i * unit}" width="{unit}" height="{height}" '
                f'fill="{_CIVIDIS[rng.integers(len(_CIVIDIS))]}"/>'
                for i in range(_OLD, _NEW)
            ),
        ),
    ]
    rows = "".join(
        f'<g transform="translate(0 {4 + gap * row})"><text x="{left - 12}" y="17" '
        f'text-anchor="end">{name}</text>{bars}'
        f'<text class="note" x="{left}" y="{height + 14}">{note}</text></g>'
        for row, (name, note, bars) in enumerate(fills)
    )
    spans = {  # gradients in the picture's own units: where position 0 and position 76 lie
        "old": (left, left + _OLD * unit),
        "all": (left, left + _NEW * unit),
        "rest": (kept_part[1] - _KEPT * 4 * unit, left + _NEW * unit),
    }
    gradients = "".join(
        f'<linearGradient id="{name}" gradientUnits="userSpaceOnUse" x1="{a}" x2="{b}">{gradient}'
        "</linearGradient>"
        for name, (a, b) in spans.items()
    )
    width = left + _NEW * unit + 4
    return (
        f'<svg class="strips" viewBox="0 0 {width} {gap * len(fills) + 4}" role="img" '
        'shape-rendering="crispEdges" aria-label="Four ways from 77 to 248 positions">'
        f"<defs>{gradients}</defs>{rows}</svg>"
    )


def _bar(start: float, end: float, gradient: str) -> str:
    return f'<rect x="{start}" width="{end - start}" height="24" fill="url(#{gradient})"/>'


# --- Tables of the report: scores before and after, all models, the claims, the facts of the ---

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


# --- The quickstart's report: one HTML file to open, to show and to print; see `views.static` ---

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
    return atomic_write(path, standalone_page(TITLE, whole))


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
        f'</button></div><h1>{TITLE}</h1><p class="finding">{html.escape(finding)}</p>'
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
    shown = [name for name in CONTROLS if name in curve.hits]
    controls = notes_list(
        [(name, CONTROLS[name]) for name in shown],
        [(STYLES[name][0], _DASHES[STYLES[name][1]]) for name in shown],
    )
    meanings = notes_list(
        [
            (capital(words), LENGTHS[key].format(gain=100 * effective.least_gain))
            for key, words in definitions(effective).items()
        ]
    )
    table = table_html(curve.table(), "R@1 in percent after each cut", ["variant"])
    lengths = table_html(effective.table(), "Tokens", ["variant", "definition"])
    return (
        _heading(number, "How far does it read?", f"{effective_length_message(effective)}.")
        + READS
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
        + NOTICES
        + question_cards(_context(results))
        + f'<div class="pair">{figures["size"]}{figures["position"]}</div>'
    )


def _stretches(results: QuickstartResults, number: int) -> str:
    shown = [row.label for row in results.rows if row.stage != "fine-tuned"]
    keys = [(PALETTE[i], "solid") for i in range(len(shown))]
    methods = notes_list([(label, METHODS.get(label, "")) for label in shown], keys)
    return (
        _heading(
            number,
            "Can it be given more positions?",
            f"{stretching_message(results.rows)}. {long_message(results.rows)}.",
        )
        + STRETCHES
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
        + FINE_TUNES
        + _beside(figure_block(tradeoff_figure(results.rows)), notes_list(TRADEOFF))
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
    return _heading(number, "What do these numbers support?", answer) + ledger(found) + CARE


def _ran(results: QuickstartResults, number: int) -> str:
    facts = results.facts
    threads = f" on {facts['threads']} threads" if "threads" in facts else ""
    trained = sum(row.seconds for row in results.rows)
    took = f"{facts['seconds'] / 60:.1f} minutes{threads}" if "seconds" in facts else "Not timed"
    answer = f"{took}; {trained:.0f} seconds of it were fine-tuning."
    command = html.escape(facts.get("command", "longclip-lab quickstart"))
    return (
        _heading(number, "How was this run?", answer)
        + f"<pre>{command}</pre>{facts_list(facts)}{RAN}"
    )


def _footer() -> str:
    links = "".join(f'<li><a href="{url}">{html.escape(name)}</a></li>' for name, url in PAPERS)
    return f"<footer><div><p>The papers whose claims are tested:</p><ul>{links}</ul></div></footer>"
