"""Figures of attribution: they draw the value's own numbers, and stay small."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import longclip_lab as ll
from longclip_lab import views
from longclip_lab.attribution import (
    AttentionWeights,
    Explanation,
    PatchMap,
    TokenMap,
    TokenPatches,
    attention,
    contributions,
    relevance,
    rising_curve,
)
from longclip_lab.attribution.contribution import Units
from longclip_lab.errors import LabError
from longclip_lab.views.html import coloured
from longclip_lab.views.maps import word_scores

IMAGE = np.full((60, 60, 3), 200, np.uint8)
TEXT = "a red sunflower."
SPANS = ((0, 1), (2, 5), (6, 9), (9, 15), (15, 16))


def heat_map(chart):
    return next(trace for trace in chart.data if trace.type == "heatmap")


def title(chart) -> str:
    return chart.layout.title.text.replace("<br>", " ")


def patch_map(peak=(0, 0), text="a boat", method="similarity", low=0.0) -> PatchMap:
    scores = np.full((3, 3), low)
    scores[peak] = 1.0
    return PatchMap(method, "model", IMAGE, scores, text)


def token_map(scores=(0.1, 0.5, 0.2, 0.4, -0.1), unread=0) -> TokenMap:
    return TokenMap("occlusion", "model", TEXT, SPANS, np.array(scores), unread)


def weights(layers=2, heads=2, length=4, causal=True) -> AttentionWeights:
    rng = np.random.default_rng(0)
    found = rng.random((layers, heads, length, length)) + 0.1
    found = np.tril(found) if causal else found
    found /= found.sum(-1, keepdims=True)
    labels = ("[start]", *(f"word{i}" for i in range(length - 2)), "[end]")
    return AttentionWeights("model", "text", found, labels, length - 1)


def test_a_map_is_drawn_with_its_own_numbers_row_0_at_the_top():
    found = replace(patch_map(), scores=np.arange(6.0).reshape(2, 3) / 7)
    chart = found.plot()
    assert np.allclose(heat_map(chart).z, found.scores, rtol=5e-3)
    assert tuple(chart.layout.yaxis.range) == (2, 0)
    assert tuple(chart.layout.xaxis.range) == (0, 3)
    assert title(chart) == "Similarity peaks in row 2, column 3"
    (dot,) = (trace for trace in chart.data if trace.type == "scatter")
    assert (dot.x[0], dot.y[0]) == (2.5, 1.5)
    assert heat_map(found.plot(smooth=True)).zsmooth == "best"


def test_shades_are_around_0_only_if_both_signs_matter():
    both = coloured(np.array([[-0.5, 1.0]]))
    assert (both["zmin"], both["zmax"]) == (-1, 1)
    assert both["colorscale"][6][1].endswith(" 0.000)")  # clear in the middle
    one_sided = coloured(np.array([[-0.01, 1.0]]))
    assert (one_sided["zmin"], one_sided["zmax"]) == (-0.01, 1)
    even = coloured(np.zeros((2, 2)))
    assert even["zmin"] < even["zmax"]


def test_the_title_counts_the_peaks_in_the_box():
    box = (0, 0, 20, 20)
    maps = {"one": patch_map((0, 0)), "two": patch_map((2, 2)), "three": patch_map((0, 0))}
    chart = views.patch_maps_figure(maps, boxes=box)
    assert title(chart) == "2 of 3 peaks lie in the box asked for; beside it: two"
    assert {note.text for note in chart.layout.annotations} >= set(maps)
    each = views.patch_maps_figure(maps, boxes=[box, (40, 40, 60, 60), box])
    assert title(each) == "All 3 peaks lie in the box asked for"
    assert title(patch_map((2, 2)).plot(boxes=box)) == "The peak lies beside the box"
    assert title(views.patch_maps_figure(maps)) == "3 maps of this picture peak in 2 places"


def test_a_shifted_map_is_drawn_and_judged_where_its_tokens_look():
    found = replace(patch_map((1, 1)), shift=(-10.0, -10.0))  # half a patch up and left
    chart = found.plot(boxes=(10, 10, 25, 25))
    assert (heat_map(chart).x0, heat_map(chart).y0) == (0.0, 0.0)
    (dot,) = (trace for trace in chart.data if trace.type == "scatter")
    assert (dot.x[0], dot.y[0]) == (1.0, 1.0)
    assert title(chart) == "The peak lies in the box"
    assert title(patch_map((1, 1)).plot(boxes=(10, 10, 25, 25))) == "The peak lies beside the box"


def test_maps_without_labels_are_named_by_what_tells_them_apart():
    def labels(maps):
        notes = views.patch_maps_figure(maps).layout.annotations
        return [note.text for note in notes if " to " not in note.text]

    assert labels([patch_map(text="a boat"), patch_map(text="a cup")]) == ["a boat", "a cup"]
    methods = [patch_map(method="similarity"), patch_map(method="relevance")]
    assert labels(methods) == ["similarity", "relevance"]
    assert labels([patch_map(), patch_map()]) == ["a boat (1)", "a boat (2)"]


def test_one_scale_for_all_maps_is_that_of_the_extremes():
    maps = [patch_map(), replace(patch_map(text="a cup"), scores=np.full((3, 3), 4.0))]
    chart = views.patch_maps_figure(maps, same_scale=True)
    ranges = {(t.zmin, t.zmax) for t in chart.data if t.type == "heatmap"}
    assert ranges == {(0.0, 4.0)}


@pytest.mark.parametrize(
    ("maps", "boxes", "message"),
    [
        ([], None, "1 to 24 maps to draw, got 0"),
        ([patch_map()] * 25, None, "got 25"),
        ([patch_map()] * 2, [(0, 0, 1, 1)] * 3, "one for each of 2 maps; got 3"),
    ],
)
def test_what_cannot_be_drawn_is_refused(maps, boxes, message):
    with pytest.raises(LabError, match=message):
        views.patch_maps_figure(maps, boxes=boxes)


def test_bars_add_up_the_tokens_of_a_word():
    found = token_map(unread=7)
    words, scores = word_scores(found)
    assert words == ["a", "red", "sunflower", "."]
    assert np.allclose(scores, [0.1, 0.5, 0.6, -0.1])
    chart = found.plot()
    assert np.allclose(chart.data[0].y, scores)
    assert list(chart.layout.xaxis.ticktext) == words
    assert title(chart) == "Occlusion: “sunflower” counts most; 1 of 4 words count against"
    assert "7 more tokens were never read" in chart.layout.title.subtitle.text


def test_the_strip_shades_the_words_and_says_what_was_never_read():
    page = views.token_strip({"mine": token_map(unread=7)})
    assert page.count("<span style=") == 4 + 2  # words and the legend
    assert 'title="0.6">sunflower</span>' in page
    assert "7 more tokens, never read" in page
    with pytest.raises(LabError, match="at least one map"):
        views.token_strip({})


def test_a_text_without_words_has_no_bars():
    with pytest.raises(LabError, match="read no word"):
        TokenMap("occlusion", "model", "", (), np.zeros(0)).plot()


def test_an_explanation_draws_both_sides():
    found = Explanation(0.42, token_map(), patch_map())
    chart = found.plot()
    bars = next(trace for trace in chart.data if trace.type == "bar")
    assert np.allclose(bars.y, word_scores(found.tokens)[1])
    assert np.allclose(heat_map(chart).z, found.patches.scores)
    assert title(chart) == "Cosine 0.42: among the words, “sunflower” counts most"


def test_the_matrix_has_a_row_for_every_token():
    scores = np.random.default_rng(0).random((5, 3, 3)).round(3)
    scores[3, 1, 2] = 2.0
    chart = TokenPatches("similarity", "model", IMAGE, TEXT, SPANS, scores, 0.4).plot()
    assert np.allclose(heat_map(chart).z, scores.reshape(5, 9))
    assert list(chart.layout.yaxis.ticktext) == ["a", "red", "sun", "flower", "."]
    assert title(chart).endswith("entries: “flower” with the patch in row 2, column 3")


def test_every_layer_and_head_can_be_chosen_without_a_kernel():
    found = weights()
    chart = found.plot()
    (menu,) = chart.layout.updatemenus
    names = [button.label for button in menu.buttons]
    assert names[:3] == [
        "layer 1 of 2, mean of 2 heads", "layer 1 of 2, head 1", "layer 1 of 2, head 2",
    ]  # fmt: skip
    for index, button in enumerate(menu.buttons):
        assert button.args[0]["visible"] == [i == index for i in range(len(names))]
    drawn = np.nan_to_num(np.asarray(chart.data[4].z))
    assert np.allclose(drawn, 100 * found.weights[1, 0], atol=1e-4)
    assert [trace.visible for trace in chart.data] == [True] + [False] * 5


def test_a_causal_mask_is_told_from_one_that_is_not():
    chart = weights().plot()
    assert title(chart).startswith("No position looks ahead")
    assert np.isnan(np.asarray(chart.data[0].z)[0, 1:]).all()
    assert title(weights(causal=False).plot()).startswith("Positions look both ways")


def test_heads_without_room_give_way_to_their_means_and_long_texts_to_one_position():
    found = weights(layers=4, heads=4, length=60)
    chart = found.plot()
    names = [button.label for button in chart.layout.updatemenus[0].buttons]
    assert names == [f"layer {i} of 4, mean of 4 heads" for i in (1, 2, 3, 4)]
    assert np.allclose(
        np.nan_to_num(np.asarray(chart.data[3].z)), 100 * found.weights[3].mean(0), atol=1e-4
    )
    long = weights(layers=1, heads=1, length=248)
    with pytest.raises(LabError, match="attention_from_figure"):
        long.plot()
    assert len(views.attention_from_figure(long).to_json()) < 300_000


def test_what_the_end_token_looks_at_is_its_row_in_every_head():
    found = weights()
    chart = views.attention_from_figure(found)
    assert np.allclose(heat_map(chart).z, 100 * found.weights[:, :, -1].reshape(4, 4), atol=1e-4)
    assert title(chart).startswith("From [end] ")
    averaging = replace(found, pooled=None)
    chart = views.attention_from_figure(averaging)
    expected = 100 * found.weights.mean(axis=2).reshape(4, 4)
    assert np.allclose(heat_map(chart).z, expected, atol=1e-4)
    with pytest.raises(LabError, match="position from 0 to 3, got 4"):
        views.attention_from_figure(found, 4)


def test_contributions_stand_beside_the_curve():
    clip, pairs = ll.load("tiny"), ll.world.pairs(1, seed=3)
    found = contributions(clip, pairs.images[0], pairs.long[0])
    chart = found.plot()
    drawn = {trace.name: trace.x for trace in chart.data if trace.name}
    assert np.allclose(drawn["Shapley"], found.shapley, atol=1e-6)
    assert np.allclose(drawn["leave one out"], found.leave_one_out, atol=1e-6)
    assert np.allclose(drawn["add one"], found.add_one, atol=1e-6)
    assert np.allclose(chart.data[-1].x, found.curve, atol=1e-6)
    assert found.unread, "the example should not fit"
    rows = chart.layout.yaxis.ticktext
    assert sum("never read" in row for row in rows) == found.unread
    assert len(rows) == 1 + len(found.units) + found.unread
    assert title(chart).endswith(f"; {found.unread} are never read")


def test_sampled_shapley_values_have_whiskers():
    clip, pairs = ll.load("tiny"), ll.world.pairs(1, seed=3)
    found = contributions(clip, pairs.images[0], "A boat. A cup.")
    sampled = replace(found, errors=np.array([0.01, 0.02]), exact=False)
    shapley = next(t for t in sampled.plot().data if t.name == "Shapley")
    assert np.allclose(shapley.error_x.array, [0.0196, 0.0392], atol=1e-4)
    shapley = next(t for t in found.plot().data if t.name == "Shapley")
    assert not shapley.error_x.visible


def test_subcaptions_that_were_never_read_are_named_too():
    clip, pairs = ll.load("tiny"), ll.world.pairs(1, seed=3)
    found = contributions(clip, pairs.images[0], pairs.long[0], units="subcaptions")
    assert isinstance(found.units, Units)
    assert sum("never read" in row for row in found.plot().layout.yaxis.ticktext) == found.unread


def test_rising_curves_say_whether_more_steps_rise_than_a_coin_would():
    clip, pairs = ll.load("tiny"), ll.world.pairs(12, seed=3)
    found = rising_curve(clip, pairs.images, pairs.long, rounds=100)
    chart = views.rising_figure({"tiny": found})
    curve = next(trace for trace in chart.data if trace.name == "tiny")
    assert np.allclose(curve.y, [point.value for point in found.gains])
    low = replace(found, steps=replace(found.steps, value=0.2, low=0.1, high=0.3))
    assert title(low.plot()).endswith("tiny 20% (less than half)")
    with pytest.raises(LabError, match="at least one rising curve"):
        views.rising_figure({})


def test_every_figure_is_small():
    clip, pairs = ll.load("tiny"), ll.world.pairs(1, seed=3)
    image, text = pairs.images[0], pairs.long[0]
    photo = np.random.default_rng(0).integers(0, 256, (336, 336, 3), dtype=np.uint8)
    maps = [replace(patch_map(text=f"{i}"), image=photo) for i in range(12)]
    figures = [
        views.patch_maps_figure(maps),
        relevance(clip, image, text)[0].plot(),
        attention(clip, text).plot(),
        attention(clip, image).plot(),
        contributions(clip, image, text).plot(),
    ]
    assert max(len(chart.to_json()) for chart in figures) < 300_000
