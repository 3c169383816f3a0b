"""Figures of primary components: their titles follow from the numbers."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from longclip_lab.errors import LabError
from longclip_lab.objectives import rank_meter
from longclip_lab.views.models import (
    batch_size_figure,
    batch_size_message,
    encoding_figure,
    encoding_message,
)

FEATURES = torch.randn(128, 64, generator=torch.Generator().manual_seed(0))
METERS = [rank_meter(FEATURES[:batch], k) for k in (8, 32) for batch in (16, 32, 128)]


def test_the_title_names_the_batches_in_which_nothing_happens():
    message = batch_size_message(METERS)
    assert message.startswith(
        "With k = 32, PCM does nothing in batches of up to 32; beyond, at most"
    )
    left = 100 * (1 - rank_meter(FEATURES, 32).variance_kept)
    assert f"{left:.2g}% of the variance" in message
    assert batch_size_message(METERS[3:5]) == (
        "With k = 32, PCM does nothing in any of these batches"
    )
    assert (
        batch_size_message(METERS[5:])
        == f"With k = 32, at most {left:.2g}% of the variance is left out"
    )


def test_batches_that_are_left_alone_have_hollow_points():
    many, few = batch_size_figure(METERS).data
    assert (many.name, few.name) == ("k = 32", "k = 8")
    assert [symbol.endswith("open") for symbol in many.marker.symbol] == [True, True, False]
    assert list(many.y[:2]) == [100, 100]
    assert list(few.x) == [16, 32, 128]
    with pytest.raises(LabError, match="got none"):
        batch_size_figure([])


TABLE = pd.DataFrame(
    {"variance": [0.6, 0.2], "ground": [0.9, 0.1], "sky": [-0.01, 0.5], "kind": [0.0, 0.02]},
    index=pd.RangeIndex(1, 3, name="direction"),
)


def test_facts_are_weighed_by_the_variance_of_their_directions():
    assert encoding_message(TABLE) == (
        "What the first 2 directions vary with most: ground (70%), sky (12%) and kind (0%)"
    )


def test_the_heat_map_has_a_row_a_direction():
    (heat,) = encoding_figure(TABLE).data
    assert list(heat.y) == ["1 (60%)", "2 (20%)"]
    assert list(heat.x) == ["ground", "sky", "kind"]
    assert heat.z.tolist() == [[90, 0, 0], [10, 50, 2]]


def test_directions_may_be_left_out_of_the_drawing_but_not_of_the_title():
    chart = encoding_figure(TABLE, shown=[2])
    assert list(chart.data[0].y) == ["2 (20%)"]
    assert chart.layout.title.text.replace("<br>", " ") == encoding_message(TABLE)
