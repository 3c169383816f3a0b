"""Curves beside each other: the titles say what the numbers say."""

from __future__ import annotations

import numpy as np
import pytest

from longclip_lab.errors import LabError
from longclip_lab.probing import TruncationCurve
from longclip_lab.reproduction.experiment import CLIP_ON_URBAN
from longclip_lab.views.reading import published_figure, readers_figure, readers_message


def made(scores: list[float], cuts=(10, 20, 40), variant="details only") -> TruncationCurve:
    draws = np.linspace(0, 1, 1000, endpoint=False)
    hits = np.array([(draws < score).astype(float) for score in scores])
    return TruncationCurve("made", cuts, {variant: hits}, {}, {}, {})


def test_the_title_counts_only_gains_that_are_seen():
    curves = {"A": made([0.1, 0.2, 0.5]), "B": made([0.1, 0.3, 0.3])}
    message = readers_message(curves, "details only")
    assert message == "What tokens 20 to 40 bring: +30 points for “A” and no change seen for “B”"


def test_every_reader_is_drawn_with_its_band_and_its_name():
    curves = {"A": made([0.1, 0.2, 0.5]), "B": made([0.1, 0.3, 0.3])}
    chart = readers_figure(curves, "details only")
    assert [trace.name for trace in chart.data if trace.name] == ["A", "B"]
    assert list(chart.data[1].y) == pytest.approx([10, 20, 50])
    assert {note.text for note in chart.layout.annotations} == {"A", "B"}


@pytest.mark.parametrize(
    ("curves", "said"),
    [
        ({}, "at least one"),
        ({"A": made([0.1, 0.2, 0.5]), "B": made([0.1, 0.2, 0.5], (5, 20, 40))}, "same cuts"),
        ({"A": made([0.1, 0.2, 0.5], variant="as written")}, "expected 'details only' in"),
    ],
)
def test_what_cannot_be_compared_is_said(curves, said):
    with pytest.raises(LabError, match=said):
        readers_figure(curves, "details only")


def test_published_shares_are_of_the_score_with_all_tokens():
    assert CLIP_ON_URBAN.shares[75] == 1
    chart = published_figure(made([0.1, 0.2, 0.5]), CLIP_ON_URBAN)
    title = chart.layout.title.text.replace("<br>", " ")
    assert title.endswith("43% for CLIP on Urban and 40% for made details only")
    assert list(chart.data[1].y) == pytest.approx([20, 40, 100])
