"""Retrieval against a literal per-row loop. Shapes: N images, M texts, D embedding."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from longclip_lab.errors import LabError
from longclip_lab.evaluation import retrieval
from longclip_lab.evaluation.retrieval import scored_retrieval


def official_recall(images_ND, texts_MD, image_of_text, k: int) -> tuple[float, float]:
    """The official evaluation: for each query, argsort all scores and look into the last k."""
    scores_NM = (F.normalize(images_ND, dim=1) @ F.normalize(texts_MD, dim=1).T).numpy()
    own = [np.flatnonzero(image_of_text == image) for image in range(len(images_ND))]
    asked = [image for image in range(len(images_ND)) if len(own[image])]
    i2t = [bool(set(own[i]) & set(scores_NM[i].argsort()[-k:])) for i in asked]
    t2i = [image in scores_NM[:, text].argsort()[-k:] for text, image in enumerate(image_of_text)]
    return float(np.mean(i2t)), float(np.mean(t2i))


def literal_hits(scores: np.ndarray, own: list[int], k: int, tie: str) -> float:
    """One query, by sorting; for "expected", by really shuffling the level candidates."""
    scores = np.round(scores, 4)
    if tie != "expected":
        sign = 1 if tie == "pessimistic" else -1
        order = sorted(range(len(scores)), key=lambda c: (-scores[c], sign * (c in own)))
        return float(bool(set(order[:k]) & set(own)))
    generator = np.random.default_rng(0)
    rounds = 4000
    hits = 0
    for _ in range(rounds):
        order = np.lexsort((generator.random(len(scores)), -scores))
        hits += bool(set(order[:k]) & set(own))
    return hits / rounds


@st.composite
def problems(draw):
    """Few small whole numbers as features, so that exact ties and duplicates abound."""
    images = draw(st.integers(1, 7))
    texts = draw(st.integers(1, 9))
    dim = draw(st.integers(1, 3))
    seed = draw(st.integers(0, 10_000))
    generator = torch.Generator().manual_seed(seed)
    images_ND = torch.randint(-1, 2, (images, dim), generator=generator).float()
    texts_MD = torch.randint(-1, 2, (texts, dim), generator=generator).float()
    image_of_text = torch.randint(0, images, (texts,), generator=generator)
    return images_ND, texts_MD, image_of_text


def normal_features(images: int, texts: int, dim: int = 16, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    images_ND = torch.randn(images, dim, generator=generator)
    image_of_text = torch.randint(0, images, (texts,), generator=generator)
    texts_MD = images_ND[image_of_text] + 1.5 * torch.randn(texts, dim, generator=generator)
    return images_ND, texts_MD, image_of_text


@settings(deadline=None, max_examples=150)
@given(
    problem=problems(),
    chunk=st.integers(1, 8),
    tie=st.sampled_from(["pessimistic", "optimistic"]),
    k=st.integers(1, 4),
)
def test_every_query_agrees_with_a_sort(problem, chunk, tie, k):
    images_ND, texts_MD, image_of_text = problem
    result = retrieval(
        images_ND, texts_MD, image_of_text, ks=[k], tie=tie, chunk=chunk, bootstrap=0
    )
    scores_NM = (F.normalize(images_ND) @ F.normalize(texts_MD).T).double().numpy()
    of_text = image_of_text.numpy()
    asked = np.unique(of_text)
    i2t = [literal_hits(scores_NM[i], list(np.flatnonzero(of_text == i)), k, tie) for i in asked]
    t2i = [literal_hits(scores_NM[:, j], [of_text[j]], k, tie) for j in range(len(of_text))]
    assert (result.i2t_ranks <= k).tolist() == [bool(hit) for hit in i2t]
    assert (result.t2i_ranks <= k).tolist() == [bool(hit) for hit in t2i]
    assert result.i2t[k].value == pytest.approx(np.mean(i2t))
    assert result.t2i[k].value == pytest.approx(np.mean(t2i))


@pytest.mark.parametrize("seed", range(4))
def test_expected_rule_is_the_mean_over_shuffles(seed):
    generator = torch.Generator().manual_seed(seed)
    images_ND = torch.randint(0, 2, (5, 2), generator=generator).float() + 0.5
    texts_MD = torch.randint(0, 2, (9, 2), generator=generator).float() + 0.5
    of_text = np.array([0, 0, 0, 1, 1, 2, 3, 4, 4])
    scores_NM = (F.normalize(images_ND) @ F.normalize(texts_MD).T).double().numpy()
    for k in (1, 2, 3):
        result = retrieval(images_ND, texts_MD, of_text.tolist(), ks=[k], tie="expected")
        i2t = [
            literal_hits(scores_NM[i], list(np.flatnonzero(of_text == i)), k, "expected")
            for i in range(5)
        ]
        t2i = [literal_hits(scores_NM[:, j], [of_text[j]], k, "expected") for j in range(9)]
        assert result.i2t[k].value == pytest.approx(np.mean(i2t), abs=0.02)
        assert result.t2i[k].value == pytest.approx(np.mean(t2i), abs=0.02)


@pytest.mark.parametrize(("images", "texts", "chunk"), [(60, 60, 1024), (50, 250, 64), (40, 90, 7)])
def test_equals_the_official_loop_without_ties(images, texts, chunk):
    images_ND, texts_MD, image_of_text = normal_features(images, texts)
    result = retrieval(images_ND, texts_MD, image_of_text, chunk=chunk, bootstrap=0)
    for k in (1, 5, 10):
        i2t, t2i = official_recall(images_ND, texts_MD, image_of_text.numpy(), k)
        assert result.i2t[k].value == pytest.approx(i2t)
        assert result.t2i[k].value == pytest.approx(t2i)


def test_own_captions_do_not_push_each_other_down():
    images_ND = torch.eye(2, 3)
    texts_MD = torch.tensor([[1.0, 0, 0], [0.9, 0.1, 0], [0.8, 0.2, 0], [0, 1.0, 0]])
    result = retrieval(images_ND, texts_MD, [0, 0, 0, 1])
    assert result.i2t_ranks.tolist() == [1, 1]
    swapped = retrieval(images_ND, texts_MD, [1, 0, 0, 0])
    assert swapped.i2t_ranks.tolist() == [2, 4]


@pytest.mark.parametrize("size", [5, 100, 513])
def test_duplicates_tie_whatever_block_they_fall_into(size):
    """Equal features must be level although blocks of a product round differently."""
    same_ND = torch.randn(1, 384, generator=torch.Generator().manual_seed(1)).expand(size, 384)
    for tie, rank in [("pessimistic", size), ("optimistic", 1), ("expected", (size + 1) / 2)]:
        result = retrieval(same_ND, same_ND * 3, tie=tie, chunk=100)
        assert result.i2t_ranks.tolist() == [rank] * size
        assert result.t2i_ranks.tolist() == [rank] * size
    assert result.t2i[5].value == pytest.approx(5 / size)


def test_a_collapsed_model_scores_nothing():
    result = retrieval(torch.ones(20, 4), torch.ones(20, 4))
    assert result.i2t[10].value == result.t2i[10].value == 0.0


def test_distractor_images_are_candidates_only():
    images_ND, texts_MD = torch.eye(4), torch.eye(4)[:2]
    result = retrieval(images_ND, texts_MD, [0, 1])
    assert len(result.i2t_ranks) == result.i2t[1].n == 2
    assert result.t2i[1].value == 1.0


def test_intervals_are_seeded_and_contain_the_value():
    images_ND, texts_MD, image_of_text = normal_features(80, 200)
    first = retrieval(images_ND, texts_MD, image_of_text, seed=3)
    assert first.i2t == retrieval(images_ND, texts_MD, image_of_text, seed=3).i2t
    assert first.t2i != retrieval(images_ND, texts_MD, image_of_text, seed=4).t2i
    for score in first.scores().values():
        assert score.low < score.value < score.high
    assert list(first.scores()) == [f"{way} R@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)]
    assert first.table()["percent"].iloc[0] == pytest.approx(100 * first.i2t[1].value)


def test_without_bootstrap_there_are_no_bounds():
    score = retrieval(torch.eye(3), torch.eye(3), bootstrap=0).i2t[1]
    assert math.isnan(score.low)
    assert score.to_dict() == {"value": 1.0, "low": None, "high": None, "n": 3}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"texts": torch.randn(5, 3)}, "Expected one text an image, got 4 images and 5 texts"),
        ({"texts": torch.randn(4, 2)}, "same embedding size, got 3 and 2"),
        ({"texts": torch.full((4, 3), math.nan)}, "text features: .* in 4 of 4 rows"),
        ({"texts": torch.empty(0, 3)}, "text features: expected floats"),
        ({"image_of_text_M": [0, 1, 2, 4]}, "from 0 to 3, got 4"),
        ({"image_of_text_M": [0, 1]}, "expected 4 whole numbers"),
        ({"ks": [0]}, "must be a whole number from 1 .* came 0"),
        ({"tie": "pesimistic"}, "No rule 'pesimistic' for ties. Did you mean pessimistic"),
        ({"chunk": 0}, "chunk must be a whole number from 1"),
    ],
)
def test_bad_input(call, words):
    texts_MD = call.pop("texts", torch.randn(4, 3))
    with pytest.raises(LabError, match=words):
        retrieval(torch.randn(4, 3), texts_MD, **call)


def test_a_score_that_is_no_number_never_helps():
    """Scores of somebody's own, one of which is NaN: what it belongs to is found last."""

    class Given:
        num_images, num_texts, device = 3, 3, torch.device("cpu")

        def __init__(self, scores_NM):
            self.scores_NM = scores_NM

        def own(self, image_of_text_M, chunk):
            own_M = self.scores_NM[image_of_text_M, torch.arange(3)]
            return own_M, own_M

        def block(self, rows, columns):
            block_RC = self.scores_NM[rows, columns]
            return block_RC.clone(), block_RC.clone()

    scores_NM = torch.eye(3)
    scores_NM[0, 0] = torch.nan  # a right answer
    scores_NM[1, 2] = torch.nan  # a wrong one
    found = scored_retrieval(Given(scores_NM), None, (1,), "pessimistic", 2, 0, 0)
    assert found.i2t_ranks.tolist() == [3, 2, 1]
    assert found.t2i_ranks.tolist() == [3, 1, 2]
