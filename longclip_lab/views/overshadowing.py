"""Figures of overshadowing and of the faithfulness of maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from PIL import Image, ImageDraw

from longclip_lab.attribution import Faithfulness
from longclip_lab.attribution.grounding import SWAPPED_SIZES, Side, WordPointing, word_maps
from longclip_lab.attribution.maps import PatchMap
from longclip_lab.attribution.verdicts import CRITERIA, Score
from longclip_lab.errors import LabError, suggest
from longclip_lab.evaluation import Interval
from longclip_lab.probing.overshadowing import Overshadowing
from longclip_lab.views.html import Html, image_uri, render
from longclip_lab.views.theme import (
    CHANCE,
    COLOURS,
    GREY,
    PALETTE,
    SYMBOLS,
    Lane,
    capital,
    compare,
    lanes,
    listed,
    percent,
    scaled,
    text_colour,
)
from longclip_lab.world.drawing import draw
from longclip_lab.world.probes import Swaps

if TYPE_CHECKING:
    from longclip_lab.models import Clip


# --- Figures of overshadowing: who is heard beside whom, where words point, and the maps ---

_ANSWERS = {
    "named alone": "right: {which}, alone",
    "named beside the other": "right: {which}",
}
_CELL = 168  # pixels of a picture in the gallery
_DIM = 0.15  # brightness of a map's lowest patch


def overshadowing_figure(result: Overshadowing | Mapping[str, Overshadowing]) -> go.Figure:
    """Right answers about the large and the lesser thing, named alone and beside each other.

    With several results (label: result) the title says where the last differs from the first.
    Raises LabError for none.
    """
    results = dict(result) if isinstance(result, Mapping) else {result.model: result}
    if not results:
        raise LabError("expected at least one result on overshadowing, got none.")
    first = next(iter(results.values()))
    groups: dict[str, list[Lane]] = {}
    several = len(results) > 1
    for z, (which, size) in enumerate((("large", "Large"), ("lesser", first.lesser.capitalize()))):
        for way, name in _ANSWERS.items():
            group = groups.setdefault(f"{size} thing" + f", {way}" * several, [])
            for i, (label, one) in enumerate(results.items()):
                score = scaled(one.score(name.format(which=which)))
                colour = PALETTE[i if several else z]
                group.append(Lane(label if several else way, score, colour, SYMBOLS[i]))
    low = min(lane.score.low for members in groups.values() for lane in members)
    chart = lanes(
        answers_message(results),
        groups,
        x="right answers (%)",
        span=(min(45, low - 2), 102),
        subtitle=f"{len(first.shifts):,} scenes, each thing once the large and once the "
        f"{first.lesser} one; {first.form}; whiskers: 95%",
    )
    chart.add_vline(x=50, line={"color": GREY, "width": 1.5, "dash": "dot"}, layer="below")
    chart.update_xaxes(tickvals=[50, 60, 70, 80, 90, 100],
                       ticktext=["50<br>chance", "60", "70", "80", "90", "100"])  # fmt: skip
    return chart


def answers_message(results: Mapping[str, Overshadowing]) -> str:
    """Whether the large thing's words cost the lesser one anything, or what the last changes."""
    (begin, first), *others = results.items()
    size = first.lesser
    if others:
        label, last = others[-1]
        changes = {
            name: (last.against(first, f"right: {which}"), first.score(f"right: {which}"))
            for name, which in (("large", "large"), (size, "lesser"))
        }
        told = [
            f"{'better' if gap.low > 0 else 'worse'} on {name} things "
            f"({percent(before.value)}\u00a0→\u00a0{percent(before.value + gap.value)})"
            for name, (gap, before) in changes.items()
            if gap.low > 0 or gap.high < 0
        ]
        if told:
            return f"“{label}” is {listed(told)}"
        return f"No difference seen between “{begin}” and “{label}”"
    alone, beside = first.score("right: lesser, alone"), first.score("right: lesser")
    cost = first.score("company: lesser")
    scores = f"{percent(alone.value, 1)} right alone, {percent(beside.value, 1)} beside it"
    if alone.low <= CHANCE:
        return (
            f"What a {size} thing is, the model hardly knows even where it is named alone: {scores}"
        )
    if cost.high < 0:
        lost = f"{-100 * cost.value:.1f} points"
        return f"A large thing's word costs the {size} one's {lost}: {scores}"
    return f"A large thing's word costs the {size} one's nothing that is seen: {scores}"


def pointing_figure(result: WordPointing | Mapping[str, WordPointing]) -> go.Figure:
    """Share of maps that peak in the box of the thing they were asked for, against chance.

    Maps of texts that name both things are told apart by which was named first. Raises LabError
    for no result and for results that were asked differently.
    """
    results = dict(result) if isinstance(result, Mapping) else {result.model: result}
    if len({tuple(one.hits) for one in results.values()}) != 1:
        raise LabError("expected results on word pointing that were asked in the same ways.")
    first, several = next(iter(results.values())), len(results) > 1
    groups: dict[str, list[Lane]] = {}
    for z, size in enumerate(SWAPPED_SIZES):
        name = size if size == "large" else first.lesser
        heading = f"{name.capitalize()} thing (chance {percent(first.chance[:, z, 0].mean())})"
        for asked, order in _ways(first, z):
            way = asked if order is None else f"{asked}, named {('first', 'second')[order ^ z]}"
            group = groups.setdefault(f"{heading}: {way}" if several else heading, [])
            for i, (label, one) in enumerate(results.items()):
                score = scaled(one.score(asked, size, order=order))
                colour = PALETTE[i if several else z]
                group.append(Lane(label if several else way, score, colour, SYMBOLS[i]))
    return lanes(
        pointing_message(first),
        groups,
        x="maps that peak in the box asked for (%)",
        span=(-2, 102),
        subtitle=f"{first.method}; {len(first.chance):,} scenes; whiskers: 95%",
        value_format=".0f",
    )


def _ways(result: WordPointing, z: int) -> list[tuple[str, int | None]]:
    """Every way of asking; where the order of naming was varied, named first and then second."""
    return [
        (asked, order)
        for asked, hits in result.hits.items()
        for order in ((z, 1 - z) if hits.shape[2] > 1 else (None,))
    ]


def pointing_message(result: WordPointing) -> str:
    """What company and order do to the lesser thing's phrase, or its word, if they were asked."""
    size = result.lesser

    def found(asked: str, order: int | None = None) -> str:
        return percent(result.score(asked, "lesser", order=order).value)

    if "phrase in the text" in result.hits:
        alone = f"; alone: {found('phrase alone')}" if "phrase alone" in result.hits else ""
        return (
            f"Named first in a text, the {size} thing's phrase finds its thing in "
            f"{found('phrase in the text', 1)} of maps, named second in "
            f"{found('phrase in the text', 0)}{alone}"
        )
    if not {"word alone", "word in the text"} <= set(result.hits):
        told = listed([f"{found(asked)} for “{asked}”" for asked in result.hits])
        return f"Maps that find the {size} thing: {told}"
    alone, beside = (result.score(a, "lesser") for a in ("word alone", "word in the text"))
    seen = {"lower": "less", "higher": "more"}.get(compare(beside, alone), "no less")
    return (
        f"Beside the large thing's words the {size} one's word finds its thing {seen} often: "
        f"{percent(beside.value)}, alone {percent(alone.value)}"
    )


def overshadowing_gallery(
    clips: Mapping[str, Clip],
    swaps: Swaps,
    scenes: Sequence[int] = (0, 1),
    asked: Sequence[str] = ("phrase alone", "phrase in the text"),
    method: str = "similarity-gain",
    form: str = "one sentence",
    orders: Sequence[int] = (0, 1),
) -> Html:
    """LoTLIP's Figure 1, drawn: maps for the large and the lesser thing, one row a model.

    Dark patches score low; the frame is the box of the thing asked for, the dot the map's peak.
    Order 0 names the large thing first. Raises LabError for no models or scenes.
    """
    if not clips or not len(scenes):
        raise LabError(f"expected models and scenes to draw, got {len(clips)} and {len(scenes)}.")
    columns = [(name, size) for name in asked for size in (0, 1)]
    heads = ["", "picture"] + [
        f"{('large', swaps.lesser)[size]} thing, {name}" for name, size in columns
    ]
    blocks = []
    for n, order in product(scenes, orders):
        rows = []
        for label, clip in clips.items():
            maps = []
            for name, size in columns:
                (found,) = word_maps(clip, swaps, [(n, 0, order, size)], name, method, form)
                about = f"{label}: {name} for {swaps.phrase(n, size)}"
                maps.append((image_uri(_shaded(swaps, n, size, found), photo=True), about))
            rows.append((label, maps))
        plain = image_uri(draw(swaps.scenes[n][0], _CELL), photo=True)
        blocks.append((swaps.told(n, 0, order, form).text, plain, rows))
    return render("overshadowing.html.j2", heads=heads, blocks=blocks)


def _shaded(swaps: Swaps, n: int, size: int, found: PatchMap) -> Image.Image:
    """The first picture of a scene, as bright as a map is high, with the box and the peak."""
    picture = np.asarray(draw(swaps.scenes[n][0], _CELL), dtype=float)
    scores_HW = found.on_pixels(_CELL)
    low, high = scores_HW.min(), scores_HW.max()
    share_HW = (scores_HW - low) / (high - low) if high > low else np.ones_like(scores_HW)
    light_HW1 = (_DIM + (1 - _DIM) * share_HW)[..., None]
    image = Image.fromarray((picture * light_HW1).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    frame = COLOURS["sky"] if size == 0 else COLOURS["orange"]
    pen.rectangle(swaps.boxes(n, _CELL)[size], outline=frame, width=3)
    x, y = (at * _CELL / found.image.shape[0] for at in found.peak())
    pen.ellipse((x - 7, y - 7, x + 7, y + 7), fill="white", outline=text_colour(frame), width=4)
    return image


# --- Attribution methods against chance: who finds the thing, and who fails what ---

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
