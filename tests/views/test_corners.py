"""The picture of LoTLIP's mask, and where corners look."""

from __future__ import annotations

import json

import numpy as np
import pytest

from longclip_lab.attribution import CornerLooks
from longclip_lab.errors import LabError
from longclip_lab.views import corner_looks_figure, corner_mask_figure
from longclip_lab.views.attention import AHEAD, CLOSED, HEARD, LAYERS, PADDING, READ


def title(chart) -> str:
    return chart.layout.title.text.replace("<br>", " ")


def formula(q: str, k: str) -> bool:
    """A(q, k) of LoTLIP's section 4.3, for two tokens by name."""
    corner = [name.startswith("[Cor") for name in (q, k)]
    pooled = [name == "[CLS]" or is_corner for name, is_corner in zip((q, k), corner, strict=True)]
    return not ((corner[1] or all(pooled)) and q != k)


def button(chart, label: str):
    (found,) = (one for one in chart.layout.updatemenus[0].buttons if one.label == label)
    return found.args


def test_every_cell_follows_the_formula_for_every_number_of_corners():
    chart = corner_mask_figure(most=3)
    maps = [trace for trace in chart.data if trace.type == "heatmap"]
    assert len(maps) == 4
    for m, trace in enumerate(maps):
        assert sum(name.startswith("[Cor") for name in trace.x) == m
        for q, row in zip(trace.y, np.asarray(trace.z), strict=True):
            for k, code in zip(trace.x, row, strict=True):
                padded = "[PAD]" in q + k
                assert code == (PADDING if padded else READ if formula(q, k) else CLOSED)


def test_slider_and_list_change_the_same_traces_independently():
    chart = corner_mask_figure(start=1)
    for m, step in enumerate(chart.layout.sliders[0].steps):
        shown, traces = step.args
        assert [i for i, visible in zip(traces, shown["visible"], strict=True) if visible] == [m]
    assert [trace.visible for trace in chart.data[:5]] == [False, True, False, False, False]
    for one in chart.layout.updatemenus[0].buttons:
        values, layout, traces = one.args
        assert set(values) == {"z", "x", "y"} and set(layout) == {"title.text"}  # noqa: PT018
        assert list(traces) == [0, 1, 2, 3, 4]
        for z, x in zip(values["z"], values["x"], strict=True):
            assert np.asarray(z).shape == (len(x), len(x))
            assert len(set(x)) == len(x), "equal labels would fall together"
    assert len(json.dumps(chart.to_dict(), default=str)) < 60_000


def test_through_all_layers_corners_hear_of_cls_and_nobody_of_corners():
    values, layout, _ = button(corner_mask_figure(), LAYERS)
    codes, names = np.asarray(values["z"][2]), values["x"][2]
    assert (codes[1:3, 0] == HEARD).all()
    assert (np.delete(codes[:, 1], 1) <= CLOSED).all()
    assert names[:3] == ("[CLS]", "[Cor 1]", "[Cor 2]")
    assert "nothing of a corner reaches [CLS]; the reverse does" in layout["title.text"].replace(
        "<br>", " "
    )


def test_without_the_mask_all_is_read_and_the_title_says_so():
    values, layout, _ = button(corner_mask_figure(), "no mask")
    assert set(np.unique(values["z"][2])) == {PADDING, READ}
    assert "every token reads the corners" in layout["title.text"].replace("<br>", " ")


def test_in_a_causal_tower_the_corners_stand_before_the_end():
    values, layout, _ = button(corner_mask_figure(), "the mask in CLIP's tower")
    names, codes = values["x"][2], np.asarray(values["z"][2])
    assert names[-3:] == ("[Cor 1]", "[Cor 2]", "[end]")
    assert codes[-1].tolist()[-3:] == [CLOSED, CLOSED, READ]
    assert (codes[np.triu_indices(len(names), k=1)] == AHEAD).all()
    assert "not even [end]" in layout["title.text"]


def test_a_shorter_text_is_padded():
    values, _, _ = button(corner_mask_figure("A boat. It is tall."), "... for a shorter text")
    assert [name.rstrip("\u200b") for name in values["x"][0]].count("[PAD]") > 2


@pytest.mark.parametrize("wrong", [{"start": 3, "most": 2}, {"start": -1}, {"text": ". ."}])
def test_impossible_pictures_are_refused(wrong):
    with pytest.raises(LabError):
        corner_mask_figure(**wrong)


def test_looks_are_drawn_against_an_even_share():
    looks = CornerLooks(
        labels=("[CLS]", "[Cor 1]"),
        groups=("kind", "colour", "place"),
        shares=np.array([[0.6, 0.4, 0.0], [0.2, 0.8, 0.0]]),
        even=np.array([0.5, 0.5, 0.0]),
        overlap=np.array([[1.0, 0.6], [0.6, 1.0]]),
        num_texts=4,
    )
    chart = corner_looks_figure({"before": looks, "after": looks})
    assert title(chart) == "after: [CLS] and the corners have 60% of their weight on the same words"
    assert np.allclose(chart.data[1].x, [0.4, 1.6])
    assert list(chart.data[1].y) == ["kind", "colour"]
    assert len(chart.data) == 4
