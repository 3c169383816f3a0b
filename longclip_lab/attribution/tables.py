"""The faithfulness table in Markdown, for the terminal and for the book."""

from __future__ import annotations

from collections.abc import Sequence

from longclip_lab.attribution.questions import Side
from longclip_lab.attribution.verdicts import ALL, CRITERIA, Faithfulness, Score

HEADINGS: dict[str, str] = {
    "pointing": "pointing %",
    "centre": "over the centre",
    "question": "over another question",
    "energy": "energy %",
    "deletion": "deletion",
    "insertion": "insertion",
    "weights": "shuffled weights",
}
_SIDES = {
    "patches": "Maps on patches: where in the picture?",
    "tokens": "Maps on tokens: which word?",
}


def markdown(result: Faithfulness) -> str:
    """Everything that was found, as Markdown: a table a side, sizes, and who fails what."""
    parts = []
    for side in result.baselines:
        parts += [f"**{_SIDES[side]}** ({_asked(result, side)})", table(result, side)]
        sizes = sizes_table(result, side)
        parts += [sizes] if sizes else []
        parts.append(verdicts(result, side))
    return "\n\n".join(parts)


def table(result: Faithfulness, side: Side) -> str:
    """A row a method: each criterion with its 95% interval, bold where the method passes."""
    names = result.methods(side, baselines=True)
    criteria = [c for c in CRITERIA if any(c in result.of(side, name) for name in names)]
    lines = [
        "| method | " + " | ".join(HEADINGS[c] for c in criteria) + " | fails | ms a map |",
        "|---" * (len(criteria) + 3) + "|",
    ]
    for name in names:
        scores = result.of(side, name)
        own = name not in result.baselines[side]
        cells = [_cell(scores.get(criterion)) for criterion in criteria]
        failures = [score for score in scores.values() if not score.passes]
        fails = f"{len(failures)} of {len(scores)}" if own else ""
        time = f"{1000 * result.seconds[side][name]:.1f}" if own else ""
        lines.append(f"| {name if own else f'*{name}*'} | {' | '.join(cells)} | {fails} | {time} |")
    levels = [_levels([result.of(side, name).get(c) for name in names]) for c in criteria]
    lines.append(f"| *to be beaten* | {' | '.join(levels)} | | |")
    return "\n".join(lines)


def sizes_table(result: Faithfulness, side: Side) -> str:
    """Pointing by the size of the thing: hits in percent with intervals; empty for one size."""
    sizes = list(dict.fromkeys(s.size for s in result if s.side == side and s.size != ALL))
    sizes = [
        size
        for size in sizes
        if any((s.side, s.size, s.criterion) == (side, size, "pointing") for s in result)
    ]
    if len(sizes) < 2:
        return ""
    lines = [f"| pointing %, by size | {' | '.join(sizes)} |", "|---" * (len(sizes) + 1) + "|"]
    for name in result.methods(side, baselines=True):
        cells = [_cell(result.of(side, name, size).get("pointing")) for size in sizes]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    names = result.methods(side, baselines=True)
    levels = [_levels([result.of(side, n, size).get("pointing") for n in names]) for size in sizes]
    lines.append(f"| *to be beaten* | {' | '.join(levels)} |")
    return "\n".join(lines)


def verdicts(result: Faithfulness, side: Side) -> str:
    """A line for each method: that it passes, or what it fails and why."""
    lines = []
    for name in [*result.methods(side), *result.failed[side]]:
        failures = [score for score in result.of(side, name).values() if not score.passes]
        if name in result.failed[side]:
            lines.append(f"- **{name}** could not be run: {result.failed[side][name]}")
        elif failures:
            told = "; ".join(
                f"*{score.criterion}*{' (worse)' if score.verdict == 'worse' else ''}: "
                f"{CRITERIA[score.criterion].failing}"
                for score in failures
            )
            lines.append(f"- **{name}** fails {told}.")
        else:
            lines.append(f"- **{name}** passes every criterion.")
    return "\n".join(lines)


def _cell(score: Score | None) -> str:
    """The number and the interval that decides."""
    if score is None:
        return ""
    gain = score.gain
    if score.criterion in ("pointing", "energy"):
        ends = (100 * min(max(score.level + end, 0), 1) for end in (gain.low, gain.high))
        text = _told(100 * score.value, *ends, form=".1f")
    elif score.criterion in ("centre", "question"):
        text = _told(*(100 * end for end in (gain.value, gain.low, gain.high)), form="+.1f")
    elif score.criterion == "weights":
        text = f"{score.value:+.2f} (within ±{0.5 - gain.low:.2f})"
    else:
        text = _told(gain.value, gain.low, gain.high, form="+.2f")
    return f"**{text}**" if score.passes else text


def _told(value: float, low: float, high: float, form: str) -> str:
    """
    >>> _told(12.34, -0.001, 20, form=".1f")
    '12.3 (0.0 to 20.0)'
    """
    # Adding 0 after rounding turns a negative zero into zero.
    texts = [f"{round(number, int(form[-2])) + 0.0:{form}}" for number in (value, low, high)]
    return f"{texts[0]} ({texts[1]} to {texts[2]})"


def _levels(scores: Sequence[Score | None]) -> str:
    """What one criterion compares with, in the units of `_cell`: a range where grids differ."""
    known = [score for score in scores if score is not None]
    criterion = known[0].criterion
    if criterion in ("pointing", "energy"):
        low, high = (f"{100 * end(score.level for score in known):.1f}" for end in (min, max))
        return low if low == high else f"{low} to {high}"
    return "±0.50" if criterion == "weights" else "0"


def _asked(result: Faithfulness, side: Side) -> str:
    counts = result.facts["questions"][side]
    by_size = ", ".join(f"{number} {size}" for size, number in counts["by_size"].items())
    left_out = "".join(
        f"; left out, {reason}: {len(names)}" for reason, names in counts["skipped"].items()
    )
    return (
        f"{result.model}, {counts['questions']} questions about {counts['pictures']} pictures: "
        f"{by_size}{left_out}"
    )
