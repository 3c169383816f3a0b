"""Attribution methods against chance: who finds the thing, and who fails what."""

from __future__ import annotations

import plotly.graph_objects as go

from longclip_lab.attribution import Faithfulness
from longclip_lab.attribution.questions import Side
from longclip_lab.attribution.verdicts import CRITERIA, Score
from longclip_lab.errors import LabError, suggest
from longclip_lab.evaluation import Interval
from longclip_lab.views.frame import GREY
from longclip_lab.views.lanes import Lane, lanes, scaled
from longclip_lab.views.theme import COLOURS
from longclip_lab.views.wording import capital, listed, percent

PASSED, MISSED = COLOURS["blue"], COLOURS["vermillion"]
_TARGET = {"patches": "the thing", "tokens": "the right word"}
_UNITS = {
    "pointing": "maps whose peak finds {target} (%)",
    "centre": "hits more than in the middle of the picture (points)",
    "question": "hits more than with another question (points)",
    "energy": "positive mass in the right place, more than chance (points)",
    "deletion": "similarity lost sooner than in random order (% of the whole)",
    "insertion": "similarity gained sooner than in random order (% of the whole)",
    "weights": "how far below a correlation of 0.5 (points)",
}


def faithfulness_figure(
    result: Faithfulness, side: Side = "patches", criterion: str = "pointing"
) -> go.Figure:
    """Every method on one criterion, dots with 95% intervals against chance.

    Pointing shows the hits themselves, other criteria the gain over their level. Beside a method's
    name stands how many criteria it fails. Grey are maps made without the model. Raises LabError
    for a criterion or side without scores.
    """
    shown = {
        name: scores[criterion]
        for name in result.methods(side, baselines=True)
        if criterion in (scores := result.of(side, name))
    }
    if not shown:
        known = [c for c in CRITERIA if any(s.criterion == c for s in result)]
        raise LabError(f"No scores of '{criterion}' for {side}. {suggest(criterion, known)}")
    own = [name for name in shown if name not in result.baselines[side]]
    own.sort(key=lambda name: -shown[name].gain.value)
    made = [name for name in shown if name in result.baselines[side]]
    groups = {
        "Methods": [_lane(result, side, name, shown[name]) for name in own],
        "Made without the model": [
            Lane(name, _drawn(shown[name]), GREY, "circle-open") for name in made
        ],
    }
    values = [lane.score for members in groups.values() for lane in members]
    low, high = min(v.low for v in values), max(v.high for v in values)
    chart = lanes(
        faithfulness_message({name: shown[name] for name in own}, side),
        {heading: members for heading, members in groups.items() if members},
        x=_UNITS[criterion].format(target=_TARGET[side]),
        span=(min(low, 0) - 3, max(high, 0) + 3),
        subtitle=f"{result.model}, {values[0].n:,} questions; 95% intervals; crosses fail this",
    )
    levels = [100 * shown[name].level if criterion == "pointing" else 0.0 for name in (*own, *made)]
    _add_levels(chart, levels, "chance" if criterion == "pointing" else "no gain")
    return chart


def _add_levels(chart: go.Figure, levels: list[float], name: str) -> None:
    """A dash in each lane where knowing nothing would lead; it depends on the method's grid."""
    dots = list(chart.data)
    chart.add_scatter(
        x=levels,
        y=[dot.y[0] for dot in dots],
        mode="markers",
        marker={"symbol": "line-ns", "size": 17, "line": {"width": 2, "color": GREY}},
        hovertemplate=f"{name}: %{{x:.1f}}<extra></extra>",
        showlegend=False,
    )
    chart.add_annotation(
        x=levels[0], y=dots[0].y[0], xshift=5, xanchor="left", text=name, showarrow=False,
        font={"color": GREY, "size": 13},
    )  # fmt: skip


def faithfulness_message(scores: dict[str, Score], side: Side) -> str:
    """Who passes the criterion, who does not, and who is worse than no method at all."""
    by_verdict: dict[str, list[str]] = {"passes": [], "no better": [], "worse": []}
    for name, score in scores.items():
        by_verdict[score.verdict].append(name)
    if not scores:
        return "No method could be run"
    pointing = next(iter(scores.values())).criterion == "pointing"
    best = max(scores, key=lambda name: scores[name].gain.value)
    said = []
    if by_verdict["passes"]:
        if pointing:
            share = percent(scores[best].value)
            said.append(f"{capital(best)} finds {_TARGET[side]} for {share} of the questions")
        else:
            one = len(by_verdict["passes"]) == 1
            test = f"{'passes' if one else 'pass'} “{scores[best].criterion}”"
            said.append(f"{listed(by_verdict['passes'])} {test}")
    for verdict, words in (("no better", "no better than chance"), ("worse", "worse than chance")):
        if by_verdict[verdict]:
            is_or_are = "is" if len(by_verdict[verdict]) == 1 else "are"
            said.append(f"{listed(by_verdict[verdict])} {is_or_are} {words}")
    return capital("; ".join(said))


def _lane(result: Faithfulness, side: Side, name: str, score: Score) -> Lane:
    failures, tested = result.failures(side, name), len(result.of(side, name))
    told = f"fails {len(failures)} of {tested}" if failures else f"passes all {tested}"
    colour = PASSED if score.passes else MISSED
    return Lane(f"{name} ({told})", _drawn(score), colour, "circle" if score.passes else "x")


def _drawn(score: Score) -> Interval:
    """In percent: hits for pointing, which start from chance; the gain for everything else."""
    if score.criterion != "pointing":
        return scaled(score.gain)
    gain, level = score.gain, score.level
    return scaled(Interval(score.value, gain.low + level, gain.high + level, gain.n))
