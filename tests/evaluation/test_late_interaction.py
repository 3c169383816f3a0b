"""FILIP's late interaction against a literal loop over pairs and tokens.

N images, M texts, P image tokens, T text tokens, D embedding.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from longclip_lab import world
from longclip_lab.errors import LabError
from longclip_lab.evaluation import (
    evaluate,
    get_similarity,
    late_interaction_classify,
    late_interaction_retrieval,
    retrieval,
)
from longclip_lab.evaluation.late_interaction import ClassTokens, LateInteraction, class_tokens
from longclip_lab.models import new_tiny
from longclip_lab.models.encoding import (
    TextTokens,
    encode_images_by_token,
    encode_texts_by_token,
)
from longclip_lab.training import recipes, train


def literal(images_NPD, texts_MTD, mask_MT) -> tuple[np.ndarray, np.ndarray]:
    """FILIP's equations 3 and 4, one pair and one token at a time, in double precision."""
    unit = [F.normalize(tokens.double(), dim=2).numpy() for tokens in (images_NPD, texts_MTD)]
    of_image = np.zeros((len(images_NPD), len(texts_MTD)))
    of_text = np.zeros_like(of_image)
    for i, image in enumerate(unit[0]):
        for j, text in enumerate(unit[1]):
            words = [word for word, there in zip(text, mask_MT[j], strict=True) if there]
            of_image[i, j] = np.mean([max(patch @ word for word in words) for patch in image])
            of_text[i, j] = np.mean([max(patch @ word for patch in image) for word in words])
    return of_image, of_text


@st.composite
def problems(draw):
    """Masks with gaps, texts of one token, tokens of padding that would win if they counted."""
    sizes = [draw(st.integers(1, high)) for high in (6, 8, 4, 7, 5)]
    images, texts, patches, tokens, dim = sizes
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    images_NPD = torch.randn(images, patches, dim, generator=generator)
    texts_MTD = torch.randn(texts, tokens, dim, generator=generator)
    mask_MT = torch.rand(texts, tokens, generator=generator) < 0.6
    mask_MT[range(texts), torch.randint(tokens, (texts,), generator=generator)] = True
    image_of_text = torch.randint(images, (texts,), generator=generator)
    return images_NPD, texts_MTD, mask_MT, image_of_text


@settings(deadline=None, max_examples=60)
@given(problem=problems(), chunk=st.integers(1, 9))
def test_both_directions_agree_with_the_loop(problem, chunk):
    images_NPD, texts_MTD, mask_MT, image_of_text = problem
    of_image_NM, of_text_NM = literal(images_NPD, texts_MTD, mask_MT)
    scores = LateInteraction(images_NPD, texts_MTD, mask_MT)
    blocks = scores.block(slice(0, len(images_NPD)), slice(0, len(texts_MTD)))
    for block, expected in zip(blocks, (of_image_NM, of_text_NM), strict=True):
        np.testing.assert_allclose(block.numpy(), expected, atol=2e-6)
    found = late_interaction_retrieval(*problem, chunk=chunk, bootstrap=0)
    of_text = image_of_text.numpy()
    t2i = [
        sum(of_text_NM[:, j] >= of_text_NM[of_text[j], j] - 1e-6)  # its own picture counts too
        for j in range(len(of_text))
    ]
    i2t = [
        1 + sum(of_image_NM[i, of_text != i] >= of_image_NM[i, of_text == i].max() - 1e-6)
        for i in np.unique(of_text)
    ]
    assert found.t2i_ranks.tolist() == t2i
    assert found.i2t_ranks.tolist() == i2t


def test_more_pictures_and_texts_than_are_worked_on_at_once(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    images_NPD = torch.randn(23, 5, 8, generator=generator)
    texts_MTD = torch.randn(40, 11, 8, generator=generator)
    mask_MT = torch.arange(11) < torch.randint(1, 12, (40,), generator=generator)[:, None]
    expected = literal(images_NPD, texts_MTD, mask_MT)
    monkeypatch.setattr("longclip_lab.evaluation.late_interaction.AT_ONCE", 900)
    scores = LateInteraction(images_NPD, texts_MTD, mask_MT)
    of_text_M = torch.arange(40) % 23
    blocks, own = scores.block(slice(3, 23), slice(5, 40)), scores.own(of_text_M, 1024)
    for block, alone, whole in zip(blocks, own, expected, strict=True):
        np.testing.assert_allclose(block.numpy(), whole[3:23, 5:40], atol=2e-6)
        np.testing.assert_allclose(alone.numpy(), whole[of_text_M, np.arange(40)], atol=2e-6)


def test_with_one_token_each_it_is_the_cosine():
    generator = torch.Generator().manual_seed(0)
    images_ND, texts_MD = (torch.randn(30, 4, generator=generator) for _ in range(2))
    mask = torch.ones(30, 1, dtype=torch.bool)
    late = late_interaction_retrieval(images_ND[:, None], texts_MD[:, None], mask, seed=3)
    assert late.scores() == retrieval(images_ND, texts_MD, seed=3).scores()


def test_templates_are_averaged_as_similarities():
    generator = torch.Generator().manual_seed(0)
    images_NPD = torch.randn(12, 3, 6, generator=generator)
    texts_MTD = torch.randn(10, 4, 6, generator=generator)  # five classes, two templates
    mask_MT = torch.ones(10, 4, dtype=torch.bool)
    classes = ClassTokens(TextTokens(texts_MTD, mask_MT, 3), tuple("abcde"), ["x"] * 10)
    labels = np.arange(12) % 5
    found = late_interaction_classify(images_NPD, classes, labels, bootstrap=0)
    scores_NK = literal(images_NPD, texts_MTD, mask_MT)[0].reshape(12, 5, 2).mean(axis=2)
    own_N1 = scores_NK[np.arange(12), labels][:, None]
    assert found.ranks.tolist() == (scores_NK >= own_N1 - 1e-9).sum(axis=1).tolist()
    assert found.top1.value == pytest.approx((found.ranks == 1).mean())
    assert found.num_truncated == 3


@pytest.fixture(scope="module")
def pairs():
    return world.pairs(12, seed=99)


@pytest.fixture(scope="module")
def trained(pairs):
    """A model by FILIP's recipe, cut to two steps."""
    recipe = replace(recipes.filip("tiny"), steps=2, warmup_steps=1, batch_size=8, pairs=12)
    data = world.web_pairs(12, 99)
    return train(None, recipe, data, progress=False).model


def test_texts_come_back_in_their_order_whatever_the_batch(trained, pairs):
    texts = [*pairs.short, *pairs.long[:3]]
    whole = encode_texts_by_token(trained, texts)
    parts = encode_texts_by_token(trained, texts, batch_size=2)
    assert torch.equal(whole.mask_MT, parts.mask_MT)
    there = whole.mask_MT
    assert torch.allclose(whole.features_MTD[there], parts.features_MTD[there], atol=1e-5)
    alone = encode_texts_by_token(trained, texts[4:5])
    length = alone.mask_MT.sum()
    assert torch.allclose(alone.features_MTD[0], whole.features_MTD[4, :length], atol=1e-5)


def test_evaluate_asks_a_model_in_the_way_it_was_trained(trained, pairs):
    """A FILIP model by its tokens, every other one by its pooled features; and as one says."""
    records = evaluate(trained, pairs)
    assert [record.settings["similarity"] for record in records] == ["late", "late"]
    texts = encode_texts_by_token(trained, pairs.long)
    own = late_interaction_retrieval(
        encode_images_by_token(trained, pairs.images), texts.features_MTD, texts.mask_MT
    )
    assert records.records[0].scores == own.scores()
    pooled = evaluate(trained, pairs, similarity="pooled")
    assert pooled.records[0].settings["similarity"] == "pooled"
    assert get_similarity(new_tiny()).name == "pooled"
    assert (
        evaluate(new_tiny(), pairs, similarity="late").records[0].settings["similarity"] == "late"
    )
    with pytest.raises(LabError, match="Did you mean late"):
        evaluate(trained, pairs, similarity="lat")


def test_single_things_by_tokens(trained):
    singles = world.single_objects(10)
    how = get_similarity(trained)
    classes = class_tokens(trained, world.classes("kind"), world.TEMPLATES)
    assert len(classes.prompts) == len(world.classes("kind")) * len(world.TEMPLATES)
    found = how.classify(
        how.encode_images(trained, singles.images), classes, singles.labels["kind"]
    )
    assert found.ranks.shape == (10,)


@pytest.mark.parametrize(
    ("images", "texts", "mask", "words"),
    [
        (torch.ones(2, 4), torch.ones(2, 3, 4), torch.ones(2, 3, dtype=torch.bool), "image tokens"),
        (
            torch.ones(2, 1, 5),
            torch.ones(2, 3, 4),
            torch.ones(2, 3).bool(),
            "embedding size, got 5",
        ),
        (torch.ones(2, 1, 4), torch.ones(2, 3, 4), torch.ones(2, 3), "expected bools"),
        (torch.ones(2, 1, 4), torch.ones(2, 3, 4), torch.eye(2, 3).bool() & False, "Text 0 has no"),
        (torch.full((2, 1, 4), math.nan), torch.ones(2, 3, 4), torch.ones(2, 3).bool(), "NaN"),
    ],
)
def test_bad_input(images, texts, mask, words):
    with pytest.raises(LabError, match=words):
        late_interaction_retrieval(images, texts, mask)
