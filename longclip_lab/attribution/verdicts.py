"""Scores of attribution methods against chance, and who passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from longclip_lab.attribution.grounding import Side
from longclip_lab.errors import LabError
from longclip_lab.evaluation import Interval
from longclip_lab.files import to_json
from longclip_lab.plotting import Plottable

if TYPE_CHECKING:
    import pandas as pd


# --- What the tests of attribution methods found: scores against chance, and who passes ---

ALL = "all"
ROUNDING = 1e-9  # no gain: an even map differs from chance by as little


@dataclass(frozen=True)
class Criterion:
    """One way to test a map. `level` names what it is compared to; `failing` is said of a method
    that does not get past it."""

    name: str
    about: str
    level: str
    failing: str
    source: str


CRITERIA: dict[str, Criterion] = {
    criterion.name: criterion
    for criterion in (
        Criterion(
            "pointing",
            "share of maps whose peak lies in the thing's box (tokens: on the kind that is in the "
            "picture); equal peaks count in parts",
            "a random place: the exact probability, mean over questions",
            "its peaks hit no more often than a random place would",
            "Zhang et al. 2016, Section 4.1",
        ),
        Criterion(
            "centre",
            "the same hits, against a peak that always lies in the middle of the picture",
            "the hits of the middle of the picture, paired",
            "the middle of the picture is as good a guess",
            "Zhang et al. 2016, Table 1",
        ),
        Criterion(
            "question",
            "the same hits, against the map for another question: the same picture with the text "
            "of another thing (tokens: the same text with another picture)",
            "the hits of the other question's map, paired",
            "asked something else, it points as often at the same place",
            "this library",
        ),
        Criterion(
            "energy",
            "share of the map's positive mass in the box (tokens: on the right kind)",
            "the box's share of the picture, paired",
            "its mass is not gathered where the answer is",
            "Wang et al. 2020, Section 4.3",
        ),
        Criterion(
            "deletion",
            "area under the cosine similarity while places are taken away, the highest first "
            "(patches turn grey, tokens are left out); small is good",
            "random orders, paired",
            "taking what it marks costs no more similarity than taking anything",
            "Petsiuk et al. 2018, Section 4.1",
        ),
        Criterion(
            "insertion",
            "area under the cosine similarity while places are put back, the highest first "
            "(patches into a blurred picture, tokens into the empty text); large is good",
            "random orders, paired",
            "giving what it marks brings no more similarity than giving anything",
            "Petsiuk et al. 2018, Section 4.1",
        ),
        Criterion(
            "weights",
            "rank correlation with the map of the same model after the weights of the tower were "
            "shuffled; near 0 is good",
            "a correlation of 0.5 either way",
            "its maps hardly change when what the tower has learned is shuffled away",
            "Adebayo et al. 2018, Section 4",
        ),
    )
}
"""Every criterion by name, in the order of the table."""


@dataclass(frozen=True)
class Score:
    """One method on one criterion, for all questions or those about things of one size.

    `value` is in the criterion's own unit, `level` what it is compared to, and `gain` the distance
    between the two in the good direction: the method passes if the whole interval is above 0.
    """

    method: str
    side: Side
    criterion: str
    size: str
    value: float
    level: float
    gain: Interval

    @property
    def passes(self) -> bool:
        return self.gain.low > ROUNDING

    @property
    def verdict(self) -> str:
        """ "passes"; "no better" than the level; or "worse", the whole interval below 0."""
        return "passes" if self.passes else "worse" if self.gain.high < -ROUNDING else "no better"

    def to_dict(self) -> dict[str, Any]:
        facts = ("method", "side", "criterion", "size", "value", "level")
        row = {name: getattr(self, name) for name in facts}
        return row | {"gain": self.gain.to_dict(), "verdict": self.verdict}

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Score:
        """The inverse of `to_dict`."""
        own = {name: row[name] for name in row if name not in ("gain", "verdict")}
        return cls(**own, gain=Interval.from_dict(row["gain"]))


@dataclass(frozen=True)
class Faithfulness(Plottable):
    """Scores of attribution methods of one model, and everything needed to repeat them.

    `seconds` are for one map, by side and method; processor time where the model runs on a CPU.
    `baselines` are maps made without any model;
    "true box" and "true word" know the answer: what they fail cannot be asked of this model.
    `failed` holds methods that could not be run, with the reason.
    """

    model: str
    scores: list[Score]
    seconds: dict[Side, dict[str, float]]
    baselines: dict[Side, list[str]]
    failed: dict[Side, dict[str, str]]
    facts: dict[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Score]:
        return iter(self.scores)

    def of(self, side: Side, method: str, size: str = ALL) -> dict[str, Score]:
        """A method's scores by criterion."""
        return {
            score.criterion: score
            for score in self.scores
            if (score.side, score.method, score.size) == (side, method, size)
        }

    def methods(self, side: Side, baselines: bool = False) -> list[str]:
        """Names of the methods that were run, and of the baselines if wanted, in order."""
        own = list(dict.fromkeys(score.method for score in self.scores if score.side == side))
        return own if baselines else [name for name in own if name not in self.baselines[side]]

    def sides(self) -> list[Side]:
        """The sides that were tested: patches, tokens."""
        return list(dict.fromkeys(score.side for score in self.scores))

    def failures(self, side: Side, method: str) -> dict[str, str]:
        """What a method does not pass, and why; empty for one that passes everything."""
        if method in self.failed.get(side, {}):
            return {"run": self.failed[side][method]}
        return {
            name: _reason(score)
            for name, score in self.of(side, method).items()
            if not score.passes
        }

    def table(self, side: Side = "patches", size: str = ALL) -> pd.DataFrame:
        """One row a method and criterion: value, level, gain with its interval, n, verdict.

        Raises LabError for a side or size that was not tested.
        """
        import pandas as pd

        rows = [
            (s.method, s.criterion, s.value, s.level, s.gain.value, s.gain.low, s.gain.high,
             s.gain.n, s.verdict)
            for s in self.scores
            if (s.side, s.size) == (side, size)
        ]  # fmt: skip
        if not rows:
            raise LabError(f"expected a side and size that were tested, got '{side}', '{size}'.")
        names = ["method", "criterion", "value", "level", "gain", "low", "high", "n", "verdict"]
        return pd.DataFrame(rows, columns=names)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "model": self.model,
            "facts": self.facts,
            "criteria": {
                name: {"about": c.about, "level": c.level, "source": c.source}
                for name, c in CRITERIA.items()
            },
            "scores": [score.to_dict() for score in self.scores],
            "milliseconds_a_map": {
                side: {name: round(1000 * value, 3) for name, value in seconds.items()}
                for side, seconds in self.seconds.items()
            },
            "baselines": self.baselines,
            "not_run": self.failed,
            "fails": {
                side: {name: self.failures(side, name) for name in self._everything(side)}
                for side in self.baselines
            },
        }

    def to_json(self) -> str:
        """`to_dict` with floats to five digits, a score a line."""
        return to_json(_rounded(self.to_dict())).replace('{"method"', '\n{"method"') + "\n"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Faithfulness:
        """The inverse of `to_dict`."""
        return cls(
            model=values["model"],
            scores=[Score.from_dict(row) for row in values["scores"]],
            seconds={
                side: {name: value / 1000 for name, value in times.items()}
                for side, times in values["milliseconds_a_map"].items()
            },
            baselines=values["baselines"],
            failed=values["not_run"],
            facts=values["facts"],
        )

    def _everything(self, side: Side) -> list[str]:
        return [*self.methods(side), *self.failed.get(side, {})]


def _reason(score: Score) -> str:
    """Why a method does not pass, with its numbers."""
    worse = "worse: " if score.verdict == "worse" else ""
    return (
        f"{CRITERIA[score.criterion].failing} ({worse}{score.value:.3f} against "
        f"{score.level:.3f}; gain {score.gain.value:+.3f}, "
        f"{score.gain.low:+.3f} to {score.gain.high:+.3f})"
    )


def _rounded(value: Any, digits: int = 5) -> Any:
    """Floats of a JSON-able value to a few digits."""
    if isinstance(value, float):
        return round(value, digits)
    if isinstance(value, dict):
        return {key: _rounded(one, digits) for key, one in value.items()}
    return [_rounded(one, digits) for one in value] if isinstance(value, list) else value


# --- The faithfulness table in Markdown, for the terminal and for the book ---

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
