"""Hallucinated captions: what is marked is what is wrong, and titles say what the numbers say."""

from __future__ import annotations

import re

import numpy as np
import pytest

from longclip_lab import world
from longclip_lab.errors import LabError
from longclip_lab.evaluation import Interval
from longclip_lab.probing import SentenceScores, truth_margin
from longclip_lab.views import belief_figure, lie_rate_figure, lie_roc_figure, lies_html


def around(*values: float) -> list[Interval]:
    return [Interval(v, v - 0.1, v + 0.1, 3) for v in values]


def title(chart) -> str:
    return chart.layout.title.text.replace("<br>", " ")


def test_every_lie_is_struck_out_with_the_truth_behind_it():
    lying = world.pairs(2, hallucination=0.4)
    shown = lies_html(lying, 2, pixels=48)
    wrong = [fact for caption in lying.long_captions for fact in caption.facts if not fact.true]
    assert shown.count("<s>") == shown.count("<ins>") == len(wrong) > 0
    text = re.sub(r"<s>.*?</s> <ins>(.*?)</ins>", r"\1", shown.partition("</style>")[2])
    told = [fact for caption in lying.long_captions for fact in caption.facts if fact.true]
    assert all(fact.value in text.lower() for fact in told)
    assert "<s>" not in lies_html(world.pairs(1), 1, pixels=48)
    with pytest.raises(LabError, match="n=0"):
        lies_html(lying, 0)


def test_what_lies_cost_stands_in_the_title():
    chart = lie_rate_figure([0, 0.8], {"long": around(0.6, 0.3), "short": around(0.3, 0.25)})
    assert title(chart).endswith("“long” loses 30.0 points; no difference seen at “short”")
    assert list(chart.data[1].x) == [0, 80]
    paired = {"long": Interval(-0.1, -0.15, -0.05, 3), "short": Interval(-0.05, -0.2, 0.1, 3)}
    scores = {"long": around(0.6, 0.5), "short": around(0.3, 0.25)}
    assert "no difference seen at “long” and “short”" in title(lie_rate_figure([0, 0.8], scores))
    better = title(lie_rate_figure([0, 0.8], scores, changes=paired))
    assert better.endswith("“long” loses 10.0 points; no difference seen at “short”")
    with pytest.raises(LabError, match="long: expected 1 scores, got 2"):
        lie_rate_figure([0], {"long": around(0.6, 0.3)})


def test_belief_is_drawn_beside_the_margin_that_it_should_have():
    rates = [0.2, 0.9]
    chart = belief_figure(rates, {"pattern": around(1.5, -0.5)}, {"pattern": 3})
    theory, measured = chart.data
    assert theory.y[0] == pytest.approx(truth_margin(0.2, 3))
    assert theory.y[-1] == pytest.approx(truth_margin(0.9, 3))
    assert list(measured.y) == [1.5, -0.5]
    assert "2 of 2 decided" in title(chart)
    wrong = belief_figure(rates, {"pattern": around(1.5, 0.05)}, {"pattern": 3})
    assert "1 of 1 decided cases (1 is open)" in title(wrong)
    with pytest.raises(LabError, match="pattern: expected 2 margins, got 1"):
        belief_figure(rates, {"pattern": around(1.0)}, {"pattern": 3})


def test_the_roc_says_of_which_things_lies_are_seen():
    rng = np.random.default_rng(0)
    lies, size = rng.integers(0, 2, 600), np.repeat(world.SIZES, 200)
    seen = np.where(size == "large", -2.0 * lies, 0.0) + rng.normal(size=600)
    numbers = np.arange(600)
    chart = lie_roc_figure(SentenceScores(seen, lies, size, numbers // 4, numbers % 4))
    assert title(chart).startswith("The score tells lies about large things from the truth, but")
    assert [trace.name for trace in chart.data[1:]] == list(world.SIZES)
    assert "area 0.9" in chart.layout.annotations[0].text
