"""Contributions of sentences: Shapley's axioms, closed forms, and the texts that are really run."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from longclip_lab.attribution import contributions, units_of
from longclip_lab.attribution.contribution import _orders, _subsets, exact_shapley, sampled_shapley
from longclip_lab.errors import LabError
from longclip_lab.models import encode_images, encode_texts, stretch
from longclip_lab.text import split_sentences, split_subcaptions


def random_game(n: int, seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return {subset: float(rng.normal()) for subset in _subsets(n)}


def orders_of(n: int, count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    half = np.array([rng.permutation(n) for _ in range(count // 2)])
    return np.concatenate([half, half[:, ::-1]])


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 5), seed=st.integers(0, 1000))
def test_exact_is_the_mean_over_all_orders(n, seed):
    value = random_game(n, seed)
    gains = np.zeros(n)
    orders = list(permutations(range(n)))
    for order in orders:
        for k, player in enumerate(order):
            gains[player] += value[frozenset(order[: k + 1])] - value[frozenset(order[:k])]
    np.testing.assert_allclose(exact_shapley(n, value), gains / len(orders), atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 7), seed=st.integers(0, 1000))
def test_values_sum_to_the_whole(n, seed):
    value = random_game(n, seed)
    whole = value[frozenset(range(n))] - value[frozenset()]
    sampled, errors = sampled_shapley(orders_of(n, 8, seed), value)
    assert exact_shapley(n, value).sum() == pytest.approx(whole)
    assert sampled.sum() == pytest.approx(whole)
    assert (errors >= 0).all()


def test_an_order_and_its_reverse_are_exact_for_pairs():
    """Where units interact at most two by two, half a sampled pair goes to each: no error left."""
    rng = np.random.default_rng(0)
    single, between = rng.normal(size=7), np.triu(rng.normal(size=(7, 7)), 1)
    value = {
        s: sum(single[i] for i in s) + sum(between[i, j] for i in s for j in s) for s in _subsets(7)
    }
    sampled, errors = sampled_shapley(orders_of(7, 4), value)
    expected = single + (between.sum(0) + between.sum(1)) / 2
    np.testing.assert_allclose(sampled, expected)
    np.testing.assert_allclose(exact_shapley(7, value), expected)
    np.testing.assert_allclose(errors, 0, atol=1e-12)


def test_standard_errors_cover():
    """About 95% of sampled values lie within two of their standard errors."""
    value = random_game(7, seed=1)
    exact, hits = exact_shapley(7, value), []
    for seed in range(100):
        sampled, errors = sampled_shapley(orders_of(7, 64, seed), value)
        hits.append(np.abs(sampled - exact) < 2 * errors)
    assert 0.9 < np.mean(hits) < 0.99


def test_orders_come_with_their_reverse():
    orders = _orders(12, 8, np.random.default_rng(0))
    np.testing.assert_array_equal(orders[4:], orders[:4, ::-1])
    assert (np.sort(orders, axis=1) == np.arange(12)).all()
    assert _orders(6, 4, np.random.default_rng(0)) is None
    assert _orders(9, 64, np.random.default_rng(0)) is None


def cosine(clip, image, texts) -> np.ndarray:
    images_ND = encode_images(clip, image[None])
    return F.cosine_similarity(images_ND, encode_texts(clip, texts).features_ND, dim=-1).numpy()


def test_the_texts_are_those_of_the_sentences(trained, drawn):
    image = drawn.images[0]
    spans = split_sentences(drawn.long[0])[:3]
    text = drawn.long[0][: spans[-1].end]
    first, second, third = (text[start:end] for start, end in spans)
    found = contributions(trained, image, text)
    values = cosine(
        trained,
        image,
        [
            "",
            first,
            second,
            third,
            f"{first} {second}",
            f"{first} {third}",
            f"{second} {third}",
            text,
        ],
    )
    none, a, b, c, ab, ac, bc, abc = values
    np.testing.assert_allclose(found.add_one, [a - none, b - none, c - none], atol=1e-6)
    np.testing.assert_allclose(found.leave_one_out, [abc - bc, abc - ac, abc - ab], atol=1e-6)
    np.testing.assert_allclose(found.curve, [none, a, ab, abc], atol=1e-6)
    shapley = [
        (2 * (a - none) + (ab - b) + (ac - c) + 2 * (abc - bc)) / 6,
        (2 * (b - none) + (ab - a) + (bc - c) + 2 * (abc - ac)) / 6,
        (2 * (c - none) + (ac - a) + (bc - b) + 2 * (abc - ab)) / 6,
    ]
    np.testing.assert_allclose(found.shapley, shapley, atol=1e-6)
    assert found.exact
    assert found.texts_run == 8
    assert found.similarity == pytest.approx(abc, abs=1e-6)
    assert found.empty_similarity == pytest.approx(none, abs=1e-6)
    assert found.rising == np.mean([ab > a, abc > ab])
    assert [text[start:end] for start, end in found.spans] == list(found.units.texts)
    assert list(found.table()["unit"]) == [first, second, third]


def test_long_texts_are_sampled(trained, drawn):
    clip = stretch(trained)
    index = max(range(len(drawn)), key=lambda i: len(split_sentences(drawn.long[i])))
    image, text = drawn.images[index], drawn.long[index]
    found = contributions(clip, image, text, permutations=16, seed=1)
    assert not found.exact
    assert len(found.units) == len(split_sentences(text)) > 8
    assert found.unread == 0
    assert not found.cut
    whole = found.similarity - found.empty_similarity
    assert found.shapley.sum() == pytest.approx(whole, abs=1e-6)
    assert (found.errors > 0).all()
    again = contributions(clip, image, text, permutations=16, seed=1)
    np.testing.assert_array_equal(found.shapley, again.shapley)
    assert found.similarity == pytest.approx(cosine(clip, image, [text]).item(), abs=1e-5)


def test_many_pairs_at_once(trained, drawn):
    texts = [*drawn.short[:2], drawn.long[2]]
    together = contributions(trained, drawn.images[:3], texts)
    for one, image, text in zip(together, drawn.images, texts, strict=False):
        alone = contributions(trained, image, text)
        np.testing.assert_allclose(one.shapley, alone.shapley, atol=1e-5)
    one_text = contributions(trained, drawn.images[:2], drawn.short[0])
    assert len(one_text) == 2


def test_what_is_not_read_has_no_part(trained, drawn):
    """Were it not left out, taking a sentence away would bring later ones into view."""
    text = drawn.long[0]
    found = contributions(trained, drawn.images[0], text)
    sentences = split_sentences(text)
    assert found.unread == len(sentences) - len(found.units) > 0
    joined = found.units.join(frozenset(range(len(found.units))))
    assert not trained.tokenize(joined).num_truncated
    assert len(trained.tokenizer.tokenize(joined).ids) == 75
    assert found.similarity == pytest.approx(
        cosine(trained, drawn.images[0], [text]).item(), abs=1e-6
    )
    last = found.units.texts[-1]
    assert found.cut == (last != text[slice(*sentences[len(found.units) - 1])])


def test_sub_captions(trained, drawn):
    text = drawn.long[0][: split_sentences(drawn.long[0])[2].end]
    found = contributions(trained, drawn.images[0], text, units="subcaptions")
    assert list(found.units.texts) == split_subcaptions(text)
    assert found.units.join(frozenset({0, 2})).count(". ") == 1
    assert [text[start:end] for start, end in found.spans] == split_subcaptions(text)
    assert found.similarity == pytest.approx(
        cosine(trained, drawn.images[0], [text]).item(), abs=1e-6
    )


def test_units_with_the_tokens_of_clip(towers):
    """Byte-pair tokens, decimals, lines; the context of 77 ends within the second sentence."""
    clip = towers.bpe_clip()
    text = "It is 2.5 m long\n" + "A red boat lies on the lake, " * 12 + "far away. It is cold."
    read = units_of(clip, text)
    assert len(read) == 2
    assert read.unread == 1
    assert read.cut
    longer = text[: read.spans[1][1] + 1 + len("longer")]
    assert not clip.tokenize(read.join(frozenset({0, 1}))).num_truncated
    assert clip.tokenize(longer).num_truncated


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "at least one sentence"),
        ("a boat.", {"units": "words"}, "no units 'words'"),
        ("a boat.", {"permutations": 2}, "even number of permutations from 4"),
        ("a boat.", {"permutations": 5}, "even number of permutations from 4"),
    ],
)
def test_bad_input(text, options, message, trained, drawn):
    with pytest.raises(LabError, match=message):
        contributions(trained, drawn.images[0], text, **options)
