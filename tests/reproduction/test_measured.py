"""Hits picture by picture: the same numbers as `evaluate`, and differences with intervals."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from longclip_lab import world
from longclip_lab.errors import LabError
from longclip_lab.evaluation import evaluate
from longclip_lab.models import encode_images, new_tiny, stretch
from longclip_lab.reproduction.runs import LockedImages, Measured, measure
from longclip_lab.training import longclip, recipes, train
from longclip_lab.views.models import long_score, short_score


@pytest.fixture(scope="module")
def clip():
    return stretch(new_tiny(seed=0))


@pytest.fixture(scope="module")
def pairs():
    return world.pairs(16)


@pytest.fixture(scope="module")
def tests(pairs):
    return {"long": (pairs.images, pairs.long), "short": (pairs.images, pairs.short)}


def test_its_means_are_those_of_evaluate(clip, pairs, tests):
    found = measure(clip, "x", "stretched", tests)
    for name, record in zip(("long", "short"), evaluate(clip, pairs), strict=True):
        both = (record.scores["i2t R@1"].value + record.scores["t2i R@1"].value) / 2
        assert found.score(name).value == pytest.approx(both)


def test_a_filip_model_is_asked_by_its_tokens(pairs, tests):
    recipe = replace(recipes.filip("tiny"), steps=2, warmup_steps=1, batch_size=8, pairs=16)
    tuned = train(None, recipe, world.web_pairs(16, 5), progress=False).model
    found = measure(tuned, "x", "fine-tuned", tests, world.single_objects(6))
    for name, record in zip(("long", "short"), evaluate(tuned, pairs), strict=True):
        assert record.settings["similarity"] == "late"
        both = (record.scores["i2t R@1"].value + record.scores["t2i R@1"].value) / 2
        assert found.score(name).value == pytest.approx(both)


def test_features_may_stand_for_pictures(clip, pairs, tests):
    images_ND = encode_images(clip, pairs.images)
    found = measure(clip, "x", "start", {"short": (images_ND, pairs.short)})
    again = measure(clip, "x", "start", tests)
    assert np.array_equal(found.hits["short"], again.hits["short"])


def test_locked_pictures_give_each_model_its_own_head(clip, pairs, tests):
    other = replace(clip, model=copy.deepcopy(clip.model))
    with torch.no_grad():
        other.model.visual.head.proj.weight.mul_(torch.rand(1, other.embed_dim))
    locked, things = LockedImages(clip, pairs.images), world.single_objects(12)
    seen = replace(things, images=LockedImages(clip, things.images))
    for model in (clip, other):
        found = measure(model, "x", "start", {"short": (locked, pairs.short)}, seen)
        expected = measure(model, "x", "start", tests, things)
        for name in ("short", "kind", "colour"):
            assert np.array_equal(found.hits[name], expected.hits[name])
    with torch.no_grad():
        next(other.model.visual.trunk.parameters()).add_(1)
    with pytest.raises(LabError, match="another image tower"):
        locked.features(other)


def test_single_things_are_classified(clip):
    found = measure(clip, "x", "start", {}, world.single_objects(12))
    assert found.hits["kind"].shape == found.hits["colour"].shape == (12,)


@pytest.mark.parametrize("objective", ["longclip", "mixed"])
def test_a_run_brings_its_recipe_and_its_share_of_the_variance(clip, pairs, objective):
    recipe = replace(
        longclip("tiny"), objective=objective, k=2, steps=2, warmup_steps=1, batch_size=8
    )
    run = train(clip, recipe, pairs, progress=False)
    found = measure(run.model, "tuned", "fine-tuned", {}, run=run)
    assert found.recipe["objective"] == objective
    if objective == "longclip":
        shares = [step["variance_kept"] for step in run.history]
        assert found.variance_kept == pytest.approx(sum(shares) / 2)
        assert 0 < found.variance_kept < 1
    else:
        assert found.variance_kept is None


def test_the_difference_on_the_same_pictures_is_narrower_than_the_scores():
    rng = np.random.default_rng(0)
    one_N = (rng.random(400) < 0.7).astype(float)
    other_N = one_N.copy()
    other_N[np.flatnonzero(one_N)[:12]] = 0.0
    one, other = (Measured("m", "start", {"long": hits}) for hits in (one_N, other_N))
    gap = one.against(other, "long")
    assert gap.value == pytest.approx(12 / 400)
    assert gap.low > 0
    assert gap.high - gap.low < one.score("long").high - one.score("long").low


def test_figures_take_it_as_a_row():
    row = Measured("m", "start", {"long": np.ones(4), "short": np.array([1.0, 0.0, 0.0, 0.0])})
    assert (long_score(row).value, short_score(row).value) == (1.0, 0.25)


def test_what_was_not_measured_is_refused():
    row = Measured("m", "start", {"long": np.ones(4)})
    with pytest.raises(LabError, match="no test 'short'"):
        row.score("short")
    with pytest.raises(LabError, match="the same pictures"):
        row.against(Measured("n", "start", {"long": np.ones(5)}), "long")
