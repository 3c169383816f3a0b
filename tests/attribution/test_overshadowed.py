"""Where words point, for maps whose peaks are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from longclip_lab import views, world
from longclip_lab.attribution import PATCH_METHODS, PatchMap, word_maps, word_pointing
from longclip_lab.attribution.grounding import ASKED
from longclip_lab.attribution.maps import Method
from longclip_lab.errors import LabError
from longclip_lab.models import new_tiny

ORACLE = ("phrase alone", "whole text", "word alone", "word in the text", "nothing there")


@pytest.fixture(scope="module")
def clip():
    return new_tiny(seed=0)


@pytest.fixture(scope="module")
def swaps():
    return world.swaps(8)


@pytest.fixture
def first_named(swaps, monkeypatch):
    """A method whose map peaks in the middle of the thing named first, and is flat for no thing."""
    scenes = {
        image.tobytes(): scene
        for images, both in zip(swaps.images, swaps.scenes, strict=True)
        for image, scene in zip(images, both, strict=True)
    }

    def run(pairs):
        maps = []
        for image, text in zip(pairs.shown_BSS3, pairs.texts, strict=True):
            things = {thing.kind: thing for thing in scenes[image.tobytes()].things}
            named = [things[w] for w in text.rstrip(".").split() if w in things]
            scores = np.zeros((72, 72))
            if named:
                scores[int(72 * named[0].y), int(72 * named[0].x)] = 1
            maps.append(PatchMap("first named", "oracle", image, scores, text))
        return maps

    monkeypatch.setitem(PATCH_METHODS, "first named", Method("first named", "", "", run))


def test_an_oracle_points_at_what_is_named_first(clip, swaps, first_named):
    found = word_pointing(clip, swaps, "first named", asked=ORACLE)
    for size in ("large", "lesser"):
        assert found.score("phrase alone", size).value == 1
        assert found.score("word alone", size).value == 1
    assert found.score("whole text", "large", order=0).value == 1
    assert found.score("whole text", "lesser", order=0).value == 0
    assert found.score("whole text", "lesser", order=1).value == 1
    assert found.score("whole text", "lesser", "other", order=0).value == 1
    # the word changed is the one named first: the map has its peak there, and nothing below it
    assert found.score("word in the text", "lesser", order=1).value == 1


def test_a_flat_map_is_right_by_chance(clip, swaps, first_named):
    found = word_pointing(clip, swaps, "first named", asked=["nothing there"])
    for z, size in enumerate(("large", "lesser")):
        for p, place in enumerate(("own", "other", "elsewhere")):
            chance = found.chance[:, z, p].mean()
            assert found.score("nothing there", size, place).value == pytest.approx(chance)
    assert found.chance.sum(-1) == pytest.approx(1)
    assert found.chance[:, 0, 0] == pytest.approx(found.chance[:, 1, 1])


def test_every_way_of_asking_runs_on_the_model_and_is_repeatable(clip, swaps):
    found = word_pointing(clip, swaps, asked=list(ASKED))
    again = word_pointing(clip, swaps, asked=list(ASKED), batch_size=5)
    for name, hits in found.hits.items():
        assert hits.shape == (8, 2, 2 if "text" in name else 1, 2, 3)
        assert hits.sum(-1) == pytest.approx(1)
        assert np.mean(hits != again.hits[name]) < 0.02  # rounding may move a peak
    assert len(found.table()) == len(ASKED) * 6
    assert found.against(found, "phrase alone", "lesser").value == 0
    assert len(found.to_dict()["rows"]) == len(ASKED) * 6


def test_what_a_word_adds_is_the_difference_of_two_maps(clip, swaps):
    keys = [(0, 0, 0, 1)]
    (added,) = word_maps(clip, swaps, keys, "word in the text")
    (whole,) = word_maps(clip, swaps, keys, "whole text")
    assert added.scores.shape == whole.scores.shape
    assert not np.allclose(added.scores, whole.scores)
    assert added.method.endswith("by difference")


def test_patches_that_look_beside_an_even_grid_are_where_they_look(clip, swaps, first_named):
    method = PATCH_METHODS["first named"]
    boxes = [swaps.boxes(n)[0] for n in range(len(swaps))]

    def shifted(pairs):
        return [
            replace(one, scores=np.roll(one.scores, -6, axis=(0, 1)), shift=(6.0, 6.0))
            for one in method.run(pairs)
        ]

    PATCH_METHODS["first named"] = replace(method, run=shifted)
    found = word_pointing(clip, swaps, "first named", asked=["phrase alone"])
    inner = [min(box[:2]) > 6 for box in boxes]  # others may be rolled over the edge
    assert found.hits["phrase alone"][inner, :, 0, 0, 0] == pytest.approx(1)


def test_bad_input(clip, swaps):
    with pytest.raises(LabError, match="way of asking"):
        word_pointing(clip, swaps, asked=["alone"])
    with pytest.raises(LabError, match="no method"):
        word_pointing(clip, swaps, method="similarty")
    found = word_pointing(clip, swaps, asked=["phrase alone"])
    with pytest.raises(LabError, match="phrase alone"):
        found.score("whole text", "large")
    other = word_pointing(clip, world.swaps(8, lesser="medium"), asked=["phrase alone"])
    with pytest.raises(LabError, match="the same questions"):
        found.against(other, "phrase alone", "large")
    with pytest.raises(LabError, match="models and scenes"):
        views.overshadowing_gallery({}, swaps)


def test_figure_and_gallery(clip, swaps):
    found = word_pointing(clip, swaps, asked=["word alone", "word in the text"])
    assert "Beside the large thing's words" in found.plot().layout.title.text.replace("<br>", " ")
    named = word_pointing(clip, swaps, asked=["phrase alone", "phrase in the text"])
    for chart, lanes in ((named.plot(), 6), (views.pointing_figure({"a": named, "b": named}), 12)):
        assert chart.layout.title.text.startswith("Named first in a text")
        assert len(chart.data) == lanes
    gallery = views.overshadowing_gallery({"a": clip, "b": clip}, swaps, scenes=[0, 1], orders=[0])
    assert gallery.count("<img") == 2 * 2 * 5
    assert swaps.told(1, 0, 0).text in gallery
    assert len(gallery) < 200_000
