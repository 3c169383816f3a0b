"""BERT's WordPiece against transformers, the world's words, and choosing a tokenizer by name."""

from __future__ import annotations

import re
import shutil
from importlib.resources import files

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizerFast

from longclip_lab.errors import LabError
from longclip_lab.text import get_tokenizer

BERT = get_tokenizer("bert")
WORLD = get_tokenizer("world")

AWKWARD = [
    "",
    "Snowfields, unbelievably unaffordable!",
    "naïve cafe\u0301 İstanbul ΣΑΣ ﬁ ２ 中文 日本語 한국어",
    "[SEP] [sep] [MASK]x [CLS].",
    "tabs\tlines\r\nzero\u200bwidth\xad \x00\x07 \ufffd 👩‍👩‍👧",
    "x" * 101,
    "it's 3.5 m & <b>&amp;</b>",
]


@pytest.fixture(scope="module")
def transformers_bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    vocabulary = files("longclip_lab.text") / "vocabularies" / "bert-base-uncased.txt"
    shutil.copy(str(vocabulary), folder / "vocab.txt")
    return BertTokenizerFast.from_pretrained(str(folder), do_lower_case=True)


def test_bert_ids_are_those_of_transformers(transformers_bert):
    assert len(transformers_bert) == BERT.vocab_size == 30522

    @settings(max_examples=100, deadline=None)
    @given(st.text(max_size=60) | st.sampled_from(AWKWARD))
    def check(text):
        ours = BERT.tokenize(text)
        theirs = transformers_bert(text, add_special_tokens=False, return_offsets_mapping=True)
        assert BERT.encode(text) == ours.ids == theirs["input_ids"]
        assert ours.tokens == transformers_bert.convert_ids_to_tokens(ours.ids)
        assert ours.spans == theirs["offset_mapping"]
        assert ours.spans == sorted(ours.spans)

    check()


def test_bert_frames_cuts_and_pads_as_transformers(transformers_bert):
    texts = ["A red boat lies on the lake.", "Snow"]
    theirs = transformers_bert(texts, max_length=6, truncation=True, padding="max_length")
    assert BERT.encode_batch(texts, 6).ids.tolist() == theirs["input_ids"]


def test_bert_refuses_half_a_surrogate_pair():
    with pytest.raises(LabError, match="surrogate"):
        BERT.encode("\ud800")


def test_bert_knows_lotlips_separator():
    assert BERT.encode("[SEP]") == [BERT.end_id]


def test_world_ids_follow_the_vocabulary_and_the_end_token_is_the_largest():
    ids = [WORLD.encode(word)[0] for word in WORLD.words]
    assert ids == list(range(1, len(WORLD.words) + 1))
    assert (WORLD.pad_id, WORLD.start_id, WORLD.end_id) == (0, len(ids) + 1, len(ids) + 2)
    assert WORLD.vocab_size == WORLD.end_id + 1


@settings(deadline=None)
@given(st.lists(st.sampled_from([word for word in WORLD.words if word.isalpha()])))
def test_world_has_one_token_for_every_word(words):
    text = " ".join(word.capitalize() for word in words) + "."
    tokenized = WORLD.tokenize(text)
    assert tokenized.tokens == [*words, "."]
    assert [text[start:end].lower() for start, end in tokenized.spans] == tokenized.tokens


def test_world_names_an_unknown_word_and_near_ones():
    known = WORLD.words[3]
    with pytest.raises(LabError, match=rf"'{known}q'.*Did you mean.*{known}"):
        WORLD.encode(f"a {known}q")
    with pytest.raises(LabError, match=r"'9'.*words"):
        WORLD.encode("9")


@pytest.mark.parametrize("name", ["clp", "..", "", "BERT"])
def test_an_unknown_tokenizer_is_named_with_the_known_ones(name):
    with pytest.raises(LabError, match=re.escape(f"'{name}'") + ".*(clip|bert|world)"):
        get_tokenizer(name)


def test_a_tokenizer_is_loaded_once():
    assert get_tokenizer("bert") is BERT
    assert repr(BERT) == "<bert tokenizer, 30522 tokens>"
