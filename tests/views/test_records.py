"""The figure of a ledger record: ours with intervals, the paper's beside them."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from longclip_lab.evaluation import Interval
from longclip_lab.views import record_figure


def line(label: str, published: float | None, *ours: float):
    return SimpleNamespace(
        label=label,
        published={"long": published, "short": None},
        ours={name: Interval(*ours, 3) for name in ("long", "short")},
        is_baseline=published is None,
    )


@pytest.fixture
def record():
    verdicts = (("reproduces", False), ("does not", False), ("reproduces", True))
    return SimpleNamespace(
        source="a paper, Table 1",
        columns={"long": "long captions", "short": "short captions"},
        lines=[line("LiT", 27.1, 40, 38, 42), line("ours alone", None, 45, 44, 47)],
        claims=[SimpleNamespace(verdict=v, is_control=c) for v, c in verdicts],
        seeds=[0, 1, 2],
    )


def marks(figure, symbol):
    return [trace for trace in figure.data if trace.marker.symbol == symbol]


def test_every_score_is_drawn_with_its_interval(record):
    figure = record_figure(record)
    ours = marks(figure, "circle")
    assert [trace.x[0] for trace in ours] == [40, 45, 40, 45]
    assert (ours[1].error_x.array[0], ours[1].error_x.arrayminus[0]) == (2, 1)
    assert [title.text for title in figure.layout.annotations] == ["long (%)", "short (%)"]


def test_the_papers_numbers_stand_beside_them(record):
    papers = marks(record_figure(record), "diamond-open")
    assert [(trace.x[0], trace.y[0]) for trace in papers] == [(27.1, 0)]


def test_the_title_counts_the_papers_claims_alone(record):
    assert (
        record_figure(record).layout.title.text == "a paper, Table 1: 1 of 2 claims reproduces here"
    )
    assert record_figure(record, "Mine").layout.title.text == "Mine"


def test_one_seed_has_no_whiskers(record):
    record.lines[0] = line("LiT", 27.1, 40, math.nan, math.nan)
    first = marks(record_figure(record), "circle")[0]
    assert first.error_x.array[0] == 0
