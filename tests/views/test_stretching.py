"""Figures of keep and ratio: what their titles say follows from the scores."""

from __future__ import annotations

import numpy as np
import pytest

from longclip_lab.errors import LabError
from longclip_lab.views.stretching import (
    as_good_as_the_best,
    keep_figure,
    keep_message,
    keep_ratio_figure,
    keep_ratio_message,
)

LUCK = np.random.default_rng(0).permutation((np.arange(500) + 0.5) / 500)


def score(share: float) -> np.ndarray:
    """Hits with this mean; whoever has more hits also has all those of whoever has fewer."""
    return (share > LUCK).astype(float)


SHORT = {0: 0.60, 10: 0.75, 20: 0.85, 40: 0.85}
LONG = {0: 0.80, 10: 0.906, 20: 0.908, 40: 0.91}
SWEEP = {keep: {"long": score(LONG[keep]), "short": score(SHORT[keep])} for keep in SHORT}


def test_the_range_ends_where_a_score_is_surely_lower():
    assert as_good_as_the_best(SWEEP, "short") == (20, 40)
    assert as_good_as_the_best(SWEEP, "long") == (10, 40)
    dip = {**SWEEP, 30: {"long": score(0.5), "short": score(0.85)}}
    assert as_good_as_the_best(dip, "long") == (40, 40)
    close = {**SWEEP, 30: {"long": score(0.904), "short": score(0.85)}}
    assert as_good_as_the_best(close, "long") == (10, 40)
    fall = {**SWEEP, 76: {"long": score(0.5), "short": score(0.85)}}
    assert as_good_as_the_best(fall, "long") == (10, 40)


def test_the_title_names_both_kinds_of_captions():
    message = keep_message(SWEEP)
    assert message.endswith("10 to 40 for long captions and 20 to 40 for short captions")
    assert keep_figure(SWEEP).layout.title.text.replace("<br>", " ") == message


def test_each_step_of_the_slider_shows_its_own_keep():
    chart = keep_figure(SWEEP, length=248, start=20)
    slider = chart.layout.sliders[0]
    assert [step.label for step in slider.steps] == ["0", "10", "20", "40"]
    assert slider.active == 2
    for keep, step in zip(SWEEP, slider.steps, strict=True):
        visible = step.args[0]["visible"]
        assert len(visible) == len(chart.data)
        shown = [t for t, seen in zip(chart.data, visible, strict=True) if seen]
        points = [trace for trace in shown if trace.mode == "markers+text"]
        assert [list(point.x) for point in points] == [[keep], [keep]]
        shares = [100 * LONG[keep], 100 * SHORT[keep]]
        assert [point.y[0] for point in points] == pytest.approx(shares)
    at_start = [trace.visible is not False for trace in chart.data]
    assert at_start == list(slider.steps[2].args[0]["visible"])


def test_the_map_bends_at_keep_and_ends_behind_the_last_old_position():
    chart = keep_figure(SWEEP, length=248, start=20)
    lines = [t for t in chart.data if t.xaxis == "x2" and t.visible]
    (line,) = lines
    assert list(line.x) == [0, 20, 244, 247]
    assert list(line.y) == [0, 20, 76, 76.75]


def test_a_start_that_was_not_measured_is_refused():
    with pytest.raises(LabError, match="expected start to be one of the keeps"):
        keep_figure(SWEEP, start=15)


GRID = {
    (keep, ratio): {"long": score(0.9), "short": score(SHORT[keep] - 0.02 * ratio * (keep < 20))}
    for keep in SHORT
    for ratio in (1, 4)
}


def test_the_heat_map_says_where_the_ratio_stops_to_matter():
    assert keep_ratio_message(GRID).startswith("With 0 positions kept the ratio moves short")
    assert "by 6 points; with 20 or more, not at all" in keep_ratio_message(GRID)
    assert keep_ratio_message(GRID, "long").startswith("The ratio changes nothing")


def test_the_heat_maps_hold_the_scores_in_percent():
    long, short = keep_ratio_figure(GRID).data
    assert long.z[0][0] == pytest.approx(90)
    assert list(short.z[1]) == pytest.approx([52, 67, 85, 85])
    assert list(short.x) == ["0", "10", "20", "40"]
    assert list(short.y) == ["1", "4"]
