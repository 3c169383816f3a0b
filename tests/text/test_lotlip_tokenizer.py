"""LoTLIP's way to feed BERT: [SEP] between sub-captions."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from longclip_lab.text import get_tokenizer, split_subcaptions

LOTLIP, BERT = get_tokenizer("lotlip"), get_tokenizer("bert")
LONG = "A red boat lies on the lake.\nIt is 2.5 m long. </s> The sky is grey ."

PIECES = st.lists(
    st.sampled_from(["a red boat", "snowfields", "naïve", ". ", ".", "\n", "</s>", " ", "3"]),
    max_size=12,
)


def released(text: str) -> str:
    """What the released code hands to BERT: sub-captions joined by ". ", which becomes [SEP]."""
    parts = [part.strip() for part in re.split(r"\n|</s>|[.]", text)]
    return "[SEP]".join(". ".join(part for part in parts if part).split(". "))


def test_ids_are_those_of_the_released_code():
    assert LOTLIP.encode(LONG) == BERT.encode(released(LONG))
    assert LOTLIP.tokenize("A dog. It sleeps.").tokens == ["a", "dog", "[SEP]", "it", "sleeps"]
    assert (LOTLIP.vocab_size, LOTLIP.end_id) == (BERT.vocab_size, BERT.end_id)


@settings(deadline=None)
@given(PIECES)
def test_any_text(pieces):
    text = "".join(pieces)
    tokenized = LOTLIP.tokenize(text)
    assert LOTLIP.encode(text) == tokenized.ids
    assert len(tokenized.ids) == len(tokenized.tokens) == len(tokenized.spans)
    starts, ends = zip(*tokenized.spans, strict=True) if tokenized.spans else ((), ())
    assert list(starts) == sorted(starts)
    assert list(ends) == sorted(ends)
    several = len(split_subcaptions(text)) > 1
    assert tokenized.ids == BERT.encode(released(text) if several else text)


def test_spans_are_those_of_the_original_text():
    tokenized = LOTLIP.tokenize(LONG)
    words = [LONG[start:end] for start, end in tokenized.spans]
    assert words[:8] == ["A", "red", "boat", "lies", "on", "the", "lake", ".\n"]
    assert words[-5:] == [". </s> ", "The", "sky", "is", "grey"]


def test_a_single_subcaption_is_read_as_it_is():
    """As the released code reads raw captions and prompts, with their full stop."""
    assert LOTLIP.tokenize("a photo of a dog.").tokens[-2:] == ["dog", "."]


def test_batches_are_framed_and_cut():
    batch = LOTLIP.encode_batch([LONG, "A dog"], 8)
    assert batch.ids[0].tolist()[:1] + batch.ids[0].tolist()[-1:] == [101, 102]
    assert batch.ids[1].tolist() == [101, 1037, 3899, 102, 0, 0, 0, 0]
    assert batch.truncated.tolist() == [True, False]
