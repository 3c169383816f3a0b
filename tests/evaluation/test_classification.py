"""Zero-shot classification. Shapes: N images, C classes, P templates, D embedding."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from longclip_lab import world
from longclip_lab.errors import LabError
from longclip_lab.evaluation import zero_shot
from longclip_lab.evaluation.classification import (
    ClassFeatures,
    class_features,
    classify,
    ranked_classes,
)
from longclip_lab.models import encode_images, new_tiny

COLOURS = world.classes("colour")


@pytest.fixture(scope="module")
def clip():
    return new_tiny()


def as_classes(features_CD: torch.Tensor) -> ClassFeatures:
    names = tuple(f"class {index}" for index in range(len(features_CD)))
    return ClassFeatures(F.normalize(features_CD, dim=1), names, list(names), 0)


def test_features_are_normalised_averaged_and_normalised_again(clip):
    classes = class_features(clip, ["boat", "tree"], world.TEMPLATES)
    for row, name in zip(classes.features_CD, classes.names, strict=True):
        prompts = [template.format(name) for template in world.TEMPLATES]
        with torch.no_grad():
            each_PD = F.normalize(clip.encode_text(clip.tokenize(prompts).ids_BT), dim=1)
        torch.testing.assert_close(row, F.normalize(each_PD.mean(dim=0), dim=0))
    assert len(classes.prompts) == 2 * len(world.TEMPLATES)


def test_agrees_with_an_argsort_per_image(clip):
    single = world.single_objects(40)
    scores = zero_shot(clip, single.images, single.labels["colour"], COLOURS, world.TEMPLATES)
    features_ND = F.normalize(encode_images(clip, single.images), dim=1)
    order_NC = features_ND @ class_features(clip, COLOURS, world.TEMPLATES).features_CD.T
    order_NC = order_NC.argsort(dim=1, descending=True).numpy()
    labels = single.labels["colour"]
    for k, score in ((1, scores.top1), (5, scores.top5)):
        expected = np.mean([label in row[:k] for label, row in zip(labels, order_NC, strict=True)])
        assert score.value == pytest.approx(expected)
    hits = sum(interval.value * interval.n for interval in scores.per_class.values())
    assert hits == pytest.approx(40 * scores.top1.value)
    assert scores.num_truncated == 0


def test_a_model_that_cannot_tell_classes_apart_gets_nothing():
    scores = classify(torch.randn(30, 4), as_classes(torch.ones(9, 4)), [0] * 30)
    assert (scores.top1.value, scores.top5.value) == (0.0, 0.0)
    assert set(scores.ranks) == {9}


def test_known_ranks():
    classes = as_classes(torch.eye(3))
    scores = classify(torch.tensor([[3.0, 2.0, 1.0]] * 3), classes, [0, 1, 2])
    assert scores.ranks.tolist() == [1, 2, 3]
    assert scores.scores()["top-1"].value == pytest.approx(1 / 3)


def test_long_prompts_are_counted(clip):
    classes = class_features(clip, ["boat"], ["a {}.", "a boat " * 60 + "{}."])
    assert classes.num_truncated == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": [0, 1]}, "one class index for each of 3 images"),
        ({"labels": [0.0, 1.0, 2.0]}, "one class index"),
        ({"labels": [0, 1, 8]}, "expected 0 to 7, got 8"),
        ({"class_names": []}, "at least one class and one template, got 0 and 1"),
        ({"class_names": [""] * 8}, "class 0 has an empty name"),
        ({"templates": []}, "at least one class and one template"),
        ({"templates": ["a boat."]}, "exactly one"),
        ({"templates": ["a {} {}."]}, "exactly one"),
        ({"templates": ["a {colour}."]}, "exactly one"),
        ({"templates": "a {}."}, "expected lists"),
    ],
)
def test_bad_input(clip, change, words):
    call = {"labels": [0, 1, 2], "class_names": COLOURS, "templates": ["a {}."]} | change
    with pytest.raises(LabError, match=words):
        zero_shot(clip, world.single_objects(3).images, **call)


def test_nan_features_are_refused():
    with pytest.raises(LabError, match=r"image features: .* NaN"):
        classify(torch.full((2, 3), math.nan), as_classes(torch.eye(3)), [0, 1])


def test_a_score_that_is_no_number_never_helps():
    scores_NC = torch.tensor([[0.9, 0.1, 0.2], [torch.nan, 0.1, 0.2], [0.9, torch.nan, 0.2]])
    assert ranked_classes(scores_NC, torch.zeros(3, 1, dtype=torch.long)).tolist() == [1, 3, 2]
