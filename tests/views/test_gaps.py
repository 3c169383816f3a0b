"""Differences by change and score: what is decided is coloured, what is not is hollow."""

from __future__ import annotations

import pytest

from longclip_lab.errors import LabError
from longclip_lab.evaluation import Interval
from longclip_lab.views import gaps_figure

GAPS = {
    "long captions": {"long": Interval(0.2, 0.1, 0.3, 3), "short": Interval(-0.1, -0.2, -0.05, 3)},
    "corners": {"long": Interval(0.01, -0.1, 0.1, 3), "short": Interval(0.0, -0.1, 0.1, 3)},
}


def test_every_difference_is_drawn_in_points_with_its_interval():
    chart = gaps_figure(GAPS, {"corners": {"long": 2.0}})
    dots = [trace for trace in chart.data if trace.error_x.array is not None]
    assert [trace.x[0] for trace in dots] == [20, 1, -10, 0]
    assert [trace.marker.symbol for trace in dots] == ["circle", "circle-open"] * 2
    assert dots[0].error_x.array[0] == pytest.approx(10)
    (paper,) = [trace for trace in chart.data if trace.marker.symbol == "diamond-open"]
    assert (paper.x[0], paper.y[0]) == (2.0, 1)
    assert "1 moves" in chart.layout.title.text
    assert [(line.xref, line.x0) for line in chart.layout.shapes] == [("x", 0), ("x2", 0)]


def test_rows_of_different_scores_are_refused():
    with pytest.raises(LabError):
        gaps_figure({})
    with pytest.raises(LabError):
        gaps_figure({"a": GAPS["corners"], "b": {"long": Interval(0, 0, 0, 1)}})
