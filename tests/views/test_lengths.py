"""Scores by the length of captions: what is drawn is what was given."""

from __future__ import annotations

import pytest

from longclip_lab.errors import LabError
from longclip_lab.evaluation import Interval
from longclip_lab.views import subcaptions_figure, token_limit_figure


def scores(*values: float) -> list[Interval]:
    return [Interval(v, v - 0.02, v + 0.02, 3) for v in values]


def title(chart) -> str:
    return chart.layout.title.text.replace("<br>", " ")


def test_sub_captions_are_named_on_the_axis_and_the_best_in_the_title():
    chart = subcaptions_figure(
        [0, 1, None], {"long": scores(0.2, 0.4, 0.5), "short": scores(0.3, 0.4, 0.2)}
    )
    assert list(chart.layout.xaxis.ticktext) == ["0", "1", "all"]
    assert title(chart).endswith("“long” with all and “short” with 1")
    assert list(chart.data[1].y) == pytest.approx([20, 40, 50])


def test_limits_have_their_cost_on_the_right():
    chart = token_limit_figure([32, 64], {"a": scores(0.2, 0.3)}, [2_000_000_000, 5_000_000_000])
    stars = chart.data[-1]
    assert stars.yaxis == "y2"
    assert list(stars.y) == [2, 5]
    assert "GFLOP" in chart.layout.yaxis2.title.text
    assert title(chart) == "64 tokens cost 2.5 times as much as 32; highest mean: “a” at 64"


def test_numbers_must_fit():
    with pytest.raises(LabError, match="long: expected 2 scores, got 1"):
        subcaptions_figure([0, 1], {"long": scores(0.1)})
    with pytest.raises(LabError, match="flops: expected 2 values, got 1"):
        token_limit_figure([1, 2], {"a": scores(0.1, 0.2)}, [3])
