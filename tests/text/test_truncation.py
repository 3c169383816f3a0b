"""Cuts on tokens and on sentences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longclip_lab.errors import LabError
from longclip_lab.text import (
    POLICIES,
    cut_tokens,
    drop_sentence,
    get_tokenizer,
    move_sentence,
    shuffle_sentences,
    split_sentences,
)

CLIP = get_tokenizer("clip")
TEXT = "A dog and a cat. The dog is brown. The cat sleeps."
BODY = [CLIP.encode(part) for part in ("A dog and a cat.", "The dog is brown.", "The cat sleeps.")]


def framed(*parts: list[int]) -> list[int]:
    return [CLIP.start_id, *(number for part in parts for number in part), CLIP.end_id]


@settings(deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=5), st.integers(2, 20))
def test_head_cuts_and_counts(sizes, context_length):
    batch = CLIP.encode_batch([" ".join(["dog"] * size) for size in sizes], context_length)
    assert batch.ids.shape == (len(sizes), context_length)
    assert batch.ids.dtype == np.int64
    assert batch.full_lengths.tolist() == [size + 2 for size in sizes]
    assert batch.lengths.tolist() == [min(size + 2, context_length) for size in sizes]
    assert batch.truncated.tolist() == [size + 2 > context_length for size in sizes]
    assert batch.num_truncated == sum(batch.truncated)
    last = batch.ids[np.arange(len(sizes)), batch.lengths - 1]
    assert (last == CLIP.end_id).all()
    assert ((batch.ids != 0).sum(axis=1) == batch.lengths).all()


@settings(deadline=None)
@given(st.lists(st.integers(0, 10), min_size=1, max_size=5), st.integers(0, 12))
def test_a_cut_equals_encoding_the_first_n_tokens(sizes, n):
    texts = [" ".join(["dog"] * size) for size in sizes]
    batch = CLIP.encode_batch(texts, 12)
    cut = cut_tokens(batch.ids, batch.lengths, n, CLIP.end_id, CLIP.pad_id)
    shorter = [" ".join(["dog"] * min(size, n)) for size in sizes]
    assert (cut == CLIP.encode_batch(shorter, 12).ids).all()


def test_a_cut_of_a_tensor_is_a_tensor_and_leaves_it_alone():
    ids_BT = torch.tensor([[8, 1, 2, 3, 9, 0]])
    cut = cut_tokens(ids_BT, torch.tensor([5]), 1, end_id=9, pad_id=0)
    assert torch.equal(cut, torch.tensor([[8, 1, 9, 0, 0, 0]]))
    assert ids_BT[0, 4] == 9


def test_sentence_functions():
    assert drop_sentence(TEXT, -1) == "A dog and a cat. The dog is brown."
    assert drop_sentence(TEXT, 5) == TEXT
    assert drop_sentence("One sentence") == "One sentence"
    assert drop_sentence("") == ""
    assert move_sentence(TEXT, 2, 0) == "The cat sleeps. A dog and a cat. The dog is brown."
    assert move_sentence(TEXT, 0, -2) == "The dog is brown. A dog and a cat. The cat sleeps."
    assert move_sentence("One sentence") == "One sentence"
    assert move_sentence(TEXT, 3) == TEXT


def test_shuffling_is_seeded_and_loses_nothing():
    shuffled = {shuffle_sentences(TEXT, seed) for seed in range(30)}
    assert len(shuffled) == 6
    expected = sorted(TEXT[start:end] for start, end in split_sentences(TEXT))
    for text in shuffled:
        assert sorted(text[start:end] for start, end in split_sentences(text)) == expected
    assert shuffle_sentences(TEXT, 3) == shuffle_sentences(TEXT, 3)


def test_policies_rearrange_before_the_cut():
    def row(policy: str) -> list[int]:
        batch = CLIP.encode_batch([TEXT], 32, policy=policy)
        return batch.ids[0, : batch.lengths[0]].tolist()

    assert row("head") == framed(*BODY)
    assert row("drop") == framed(*BODY[1:])
    assert row("move") == framed(*BODY[1:], BODY[0])
    assert sorted(row("shuffle")) == sorted(framed(*BODY))


@settings(deadline=None)
@given(st.integers(0, 1000))
def test_padding_in_front_keeps_the_text_whole(seed):
    batch = CLIP.encode_batch([TEXT, "dog"], 32, policy="pad", seed=seed)
    again = CLIP.encode_batch([TEXT, "dog"], 32, policy="pad", seed=seed)
    assert (batch.ids == again.ids).all()
    for ids, length, text in zip(batch.ids, batch.lengths, [TEXT, "dog"], strict=True):
        assert ids[ids != 0].tolist() == framed(CLIP.encode(text))
        assert ids[0] == CLIP.start_id
        assert ids[length - 1] == CLIP.end_id
        assert not ids[length:].any()


def test_padding_in_front_reaches_every_place():
    batch = CLIP.encode_batch(["dog"] * 200, 8, policy="pad")
    assert set(batch.lengths) == set(range(3, 9))


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_takes_empty_and_too_long_texts(policy):
    batch = CLIP.encode_batch(["", "dog " * 50], 8, policy=policy)
    assert batch.truncated.tolist() == [False, True]


def test_bad_input_is_refused():
    with pytest.raises(LabError, match=r"'tail'.*head, drop"):
        CLIP.encode_batch([TEXT], 77, policy="tail")
    with pytest.raises(LabError, match="at least 2, got 1"):
        CLIP.encode_batch([TEXT], 1)
    with pytest.raises(LabError, match="got NoneType"):
        CLIP.encode_batch([TEXT, None], 77)
    with pytest.raises(LabError, match="-1"):
        cut_tokens(np.zeros((1, 4)), [4], -1, 9, 0)


@pytest.mark.parametrize(
    ("context", "read"),
    [(2, ""), (3, "A"), (5, "A dog and"), (7, "A dog and a cat"), (77, TEXT)],
)
def test_characters_read(context, read):
    tokenized = CLIP.tokenize(TEXT)
    assert TEXT[: tokenized.characters_read(context)] == read


ENDED = "A dog <end_of_text> and a cat."  # a, dog, end token, and, a, cat, full stop


def test_what_follows_an_end_token_in_a_text_is_not_read():
    batch = CLIP.encode_batch([ENDED, "A dog"], 10)
    assert batch.full_lengths.tolist() == [9, 4]
    assert batch.lengths.tolist() == [4, 4]
    assert batch.truncated.tolist() == [True, False]
    assert batch.ids[0].tolist() == [*framed(CLIP.encode(ENDED)), 0]  # as open_clip has them
    assert CLIP.encode_batch([ENDED], 3).lengths.tolist() == [3]
    tokenized = CLIP.tokenize(ENDED)
    assert tokenized.before_end == 2
    assert [ENDED[: tokenized.characters_read(n)] for n in (2, 3, 4, 77)] == [
        "", "A", "A dog", "A dog",
    ]  # fmt: skip
    assert CLIP.tokenize("A dog").before_end is None
    padded = CLIP.encode_batch([ENDED], 40, policy="pad", seed=1)
    assert np.count_nonzero(padded.ids == CLIP.end_id) == 1


def test_words_of_other_tokenizers_are_words_and_a_separator_ends_nothing():
    """OpenAI writes its end token otherwise, which open_clip reads as text; BERT reads on."""
    batch = CLIP.encode_batch(["A dog <|endoftext|> and a cat."], 77)
    assert not batch.num_truncated
    assert batch.lengths.tolist() == batch.full_lengths.tolist()
    for name in ("bert", "lotlip"):
        batch = get_tokenizer(name).encode_batch(["a dog [SEP] and a cat"], 77)
        assert (batch.lengths.tolist(), batch.num_truncated) == ([8], 0)
        assert get_tokenizer(name).num_readable([1, 102, 2]) == 3
