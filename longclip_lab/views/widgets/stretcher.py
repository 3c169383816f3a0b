"""Stretcher: how many positions to keep, how far to stretch the others, and what comes of it.

T old positions, L new positions, W width.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets
import numpy as np

from longclip_lab import world
from longclip_lab.models import Clip
from longclip_lab.models.anatomy import text_tower
from longclip_lab.models.kps import stretch, stretch_positions
from longclip_lab.probing.stretching import CLASSES, LONG, SHORT, Classes, Stretched, StretchingTest
from longclip_lab.views.html import Html, as_pool, render
from longclip_lab.views.models import similarity
from longclip_lab.views.static import (
    Chart,
    Control,
    Scale,
    heat_map_uri,
    round_ticks,
    states_html,
    with_images,
)
from longclip_lab.views.theme import COLOURS, change, percent, spread, text_colour
from longclip_lab.views.widgets.panel import Panel, slider

KEEPS, RATIOS = (0, 10, 20, 40, 60), (1, 2, 4, 8)
_COLOUR_OF = {LONG: COLOURS["blue"], SHORT: COLOURS["vermillion"], CLASSES: COLOURS["green"]}
_CELLS = 84  # a side of a map of similarities
_LONGEST = 512  # positions, beyond which reading takes more than patience
_SINGLE = 200  # pictures of one thing, for zero-shot classification in the drawn world


def explain(keep: int, ratio: float, old_length: int) -> list[str]:
    """What stretching `old_length` positions does: the numbers, then what may go wrong.

    >>> explain(20, 4, 77)[0]
    '20 positions stay, 57 are stretched to 228: 77 become 248.'
    """
    moved = old_length - keep
    length = keep + math.floor(moved * ratio)
    if ratio == 1:
        return [f"Ratio 1 adds no position: the model keeps its {old_length} as they are."]
    told = [f"{keep} positions stay, {moved} are stretched to {length - keep}: "
            f"{old_length} become {length}."]  # fmt: skip
    behind = length - 1 - keep - math.floor((moved - 1) * ratio)
    if behind:
        told.append(f"The last {behind} have no right neighbour and follow the last difference.")
    if keep == 0:
        told.append("Nothing stays: the first positions move too, which every caption uses.")
    elif moved <= old_length // 10:
        told.append(f"So few are left that each of the {moved} must serve {ratio:g} places.")
    if length > _LONGEST:
        told.append(f"{length} positions: attention costs {(length / old_length) ** 2:.0f} times.")
    return told


class Stretcher(Panel):
    """Keep and ratio sliders; how alike positions are, and the scores, follow.

    `pairs` (or pictures beside `texts`) are searched with their captions; `classes` adds zero-shot
    classification, for the drawn world things by kind if it is not given. Scores that are not known
    yet are measured when the button is pressed; `prepare` measures a grid beforehand, and
    `test.save(path)` with `test.load(path)` keeps it on disk. Without pairs there are no scores.

    Raises LabError for a text tower without a table of positions to stretch.
    """

    def __init__(
        self,
        clip: Clip,
        pairs: Any = None,
        texts: Sequence[str] | None = None,
        classes: Classes | None = None,
        keep: int = 20,
        ratio: float = 4,
    ):
        stretch(clip, keep=0, ratio=1)  # raises LabError if the tower has no table
        self.clip = clip
        self.positions_TW = text_tower(clip.model).positional_embedding.detach().float().cpu()
        self.old_length = len(self.positions_TW)
        self.test = None
        if pairs is not None:
            pool = as_pool(pairs, texts)
            if classes is None and clip.tokenizer.name == "world":
                classes = _kinds()
            self.test = StretchingTest(clip, pool, classes)
        self.keep = slider("positions kept", range(0, self.old_length + 1), keep)
        self.ratio = widgets.FloatSlider(
            value=ratio, min=0.5, max=8, step=0.5, description="ratio", readout_format=".1f",
            style={"description_width": "initial"}, continuous_update=True,
        )  # fmt: skip
        self.measure = widgets.Button(description="Measure the scores", icon="play")
        super().__init__([self.keep, self.ratio, *([self.measure] if self.test else [])])
        self._watch(self.refresh, self.keep, self.ratio)
        self.measure.on_click(lambda _: self._measure())

    @property
    def key(self) -> tuple[int, float]:
        """The present keep and ratio."""
        return self.keep.value, self.ratio.value

    @property
    def scores(self) -> Stretched | None:
        """The scores of the present keep and ratio, None where they were not measured."""
        return self.test[self.key] if self.test and self.key in self.test else None

    def prepare(
        self, keeps: Sequence[int] = KEEPS, ratios: Sequence[float] = RATIOS, progress: bool = False
    ) -> Stretcher:
        """Measure every keep with every ratio; returns the view."""
        if self.test:
            self.test.grid(keeps, ratios, progress)
        return self

    def _measure(self) -> None:
        with self.busy("reading all captions with these positions"):
            stretch_positions(self.positions_TW, *self.key)
            self.test[0, 1]  # the model as it is, to compare with
            self.test[self.key]
        self.refresh()

    def draw(self) -> str:
        keep, ratio = self.key
        known = self.test is None or self.key in self.test
        self.measure.disabled = known
        stretch_positions(self.positions_TW, keep, ratio)  # raises LabError for bad combinations
        return with_images(self._draw(keep, ratio), self._pictures([(keep, ratio)]))

    def _pictures(self, keys: Sequence[tuple[int, float]]) -> dict[str, str]:
        tables = {"old": self.positions_TW}
        for keep, ratio in keys:
            tables[f"{keep}-{ratio:g}"] = stretch_positions(self.positions_TW, keep, ratio)
        return {name: _map_uri(table.numpy()) for name, table in tables.items()}

    def _draw(self, keep: int, ratio: float) -> str:
        facts, *warnings = explain(keep, ratio, self.old_length)
        length = keep + math.floor((self.old_length - keep) * ratio)
        old = _map("old", "before: position", self.old_length)
        new = _map(f"{keep}-{ratio:g}", "after: position", length, keep)
        return render(
            "stretcher.html.j2",
            facts=facts,
            warnings=" ".join(warnings),
            old=old,
            new=new,
            kept=text_colour(COLOURS["vermillion"]),
            **self._scores(keep, ratio),
        )

    def _scores(self, keep: int, ratio: float) -> dict[str, Any]:
        """The table and the chart below the maps, as the template reads them."""
        nothing = {"unmeasured": False, "rows": [], "fit": "", "chart": ""}
        if self.test is None or (keep, ratio) not in self.test:
            return nothing | {"unmeasured": self.test is not None}
        now, before = self.test[keep, ratio], self.test[0, 1]
        rows = [
            {
                "test": test,
                "colour": text_colour(_COLOUR_OF[test]),
                "before": percent(before.hits[test].mean(), 1),
                "after": percent(now.hits[test].mean(), 1),
                "change": Html(_bold(html.escape(change(now.against(before, test))))),
            }
            for test in now.hits
        ]
        long = len(self.test.texts[LONG])
        fit = f"{long - now.truncated} of {long} long captions fit {now.length} positions."
        return nothing | {"rows": rows, "fit": fit, "chart": self._chart(keep, ratio)}

    def _chart(self, keep: int, ratio: float) -> Html | str:
        """The scores against keep, of all that was measured with this ratio."""
        keeps = [own for own, other in self.test.measured if other == ratio]
        if len(keeps) < 2 or ratio == 1:
            return ""
        every = [100 * hits.mean() for key in self.test.measured
                 for hits in self.test[key].hits.values()]  # fmt: skip
        low, high = 10 * math.floor(min(every) / 10 - 0.2), 10 * math.ceil(max(every) / 10 + 0.05)
        low, high = max(0, low), min(101, high)
        chart = Chart(
            Scale(0, self.old_length - 1, round_ticks(0, self.old_length - 1), "positions kept"),
            Scale(low, high, round_ticks(low, high, 4), "hits (%)"),
            label=f"scores against positions kept, ratio {ratio:g}; now {keep} kept",
            height=250, right=140,
        )  # fmt: skip
        chart.rule(keep, COLOURS["black"], dash="3 4")
        ends = {}
        for test in self.test[keep, ratio].hits:
            values = [(own, 100 * self.test[own, ratio].hits[test].mean()) for own in keeps]
            chart.line(values, _COLOUR_OF[test])
            for own, value in values:
                chart.dot(own, value, _COLOUR_OF[test], f"{test}: {value:.1f}%", hollow=own != keep)
            ends[test] = values[-1][1]
        for test, place in zip(ends, spread(list(ends.values()), (high - low) / 8), strict=True):
            colour = text_colour(_COLOUR_OF[test])
            chart.text(self.old_length - 1, place, test, colour=colour, shift=(10, 5))
        return chart.html()

    def static(self, keeps: Sequence[int] = KEEPS, ratios: Sequence[float] = RATIOS) -> Html:
        """The view with a slider for each of `keeps` and `ratios`, for pages without a kernel.

        Scores are measured where they are not known. Raises LabError for bad combinations.
        """
        self.prepare(keeps, ratios)
        if self.test:
            self.test[0, 1]
        keys = [(keep, float(ratio)) for keep in keeps for ratio in ratios]
        controls = [
            Control("positions kept", [str(keep) for keep in keeps],
                    _nearest(keeps, self.keep.value)),
            Control("ratio", [f"{ratio:g}" for ratio in ratios],
                    _nearest(ratios, self.ratio.value)),
        ]  # fmt: skip
        return states_html(
            controls, lambda a, b: self._draw(keeps[a], float(ratios[b])), self._pictures(keys)
        )


def _kinds() -> Classes:
    """Things of the drawn world by kind."""
    single = world.single_objects(_SINGLE, seed=world.PROBE_SEED)
    return Classes(single.images, single.labels["kind"], world.classes("kind"), world.TEMPLATES)


def _bold(markdown: str) -> str:
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", markdown)


def _nearest(values: Sequence[float], wanted: float) -> int:
    return int(np.argmin([abs(value - wanted) for value in values]))


def _map_uri(positions_LW: np.ndarray) -> str:
    step = -(-len(positions_LW) // _CELLS)
    return heat_map_uri(similarity(positions_LW)[::step, ::step], 0, 1)


def _map(name: str, title: str, length: int, keep: int = 0) -> Html:
    """A map of similarities with its axes; a line ends what stays."""
    ticks = round_ticks(0, length, 4)
    chart = Chart(
        Scale(0, length, ticks, title), Scale(length, 0, ticks, "position"),
        label=f"cosine similarity of {length} positions", width=350, height=322, right=14,
    )  # fmt: skip
    chart.picture(name)
    if 0 < keep < length:
        colour = COLOURS["vermillion"]
        chart.line([(keep, 0), (keep, keep), (0, keep)], colour, 2.5)
    return chart.html()
