"""CLIP's tokenizer: ids as open_clip gives them, spans that point into the original text."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from longclip_lab.text import get_tokenizer

CLIP = get_tokenizer("clip")
OPEN_CLIP = SimpleTokenizer()

AWKWARD = [
    "",
    "   ",
    "A red boat, on the left.",
    "It's the dog's, isn't it? We'll go; they've I'D 'S",
    "tabs\tand\nlines\r\nand\x0bfeeds\x0cand\x1cseparators\u2028\u3000",
    "caf\u00e9 cafe\u0301 NAÏVE Ünder",
    "&amp;amp;amp; &lt;b&gt; &eacute;t&eacute; &#233; &hellip; &notit; &nbsp;x & y",
    "<b>bold</b> &eacute;",
    "schÃ¶n Ã©tÃ© â€œquotedâ€\x9d doesnâ€™t",
    "ï¬‚at ﬂubberiﬁc ＬＯＵＤ　ＮＯＩＳＥＳ “curly” ‘quotes’ it’s…",
    "İstanbul ΣΊΣΥΦΟΣ ὈΔΥΣΣΕΎΣ ẞ ﬆ ſtart 'ſ",
    "日本語の文 中文 한국어 العربية हिन्दी 👩‍👩‍👧 🇫🇷 ½ ² ٣ Ⅷ",
    "<start_of_text> a <END_OF_TEXT> <|endoftext|> start_of_text",
    "\x00\x07\x1b[31mred\x1b[0m \x7f \xad \u200b \ufeff \ufffd",
    "half a pair \ud83d and \udc69 and \ud83d\udc69",
    "1234567890 3.14 1,000,000 50% $5 a_b __ --- ...",
    "x" * 300,
]

# A piece is what stands in a text, whatever its tokens become; none holds white space.
PIECES = [
    "boat", "Red", "it's", "3.5", "&amp;", "&eacute;t&eacute;", "&#233;", "caf\u00e9",
    "cafe\u0301", "cafÃ©", "doesnâ€™t", "it’s", "ﬂubberiﬁc", "ＬＯＵＤ", "İstanbul", "ΣΊΣΥΦΟΣ",
    "日本語", "👩‍👧", "...", "“", "x&hellip;", "<b>", "&lt;",
]  # fmt: skip
GAPS = [" ", "  ", "\n", " \t ", "\r\n", "\u3000"]


@pytest.mark.parametrize("text", AWKWARD)
def test_ids_are_those_of_open_clip(text):
    assert CLIP.encode(text) == OPEN_CLIP.encode(text)
    assert CLIP.tokenize(text).ids == OPEN_CLIP.encode(text)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60) | st.lists(st.sampled_from(PIECES + GAPS)).map("".join))
@example("&amp&lt;")
def test_ids_and_spans_hold_for_any_text(text):
    tokenized = CLIP.tokenize(text)
    assert CLIP.encode(text) == tokenized.ids == OPEN_CLIP.encode(text)
    assert tokenized.tokens == [OPEN_CLIP.decoder[number] for number in tokenized.ids]
    assert tokenized.spans == sorted(tokenized.spans)
    ends = [end for _, end in tokenized.spans]
    assert ends == sorted(ends)
    assert all(0 <= start < end <= len(text) for start, end in tokenized.spans)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from(GAPS)), min_size=1, max_size=9))
def test_spans_cover_each_piece_and_no_token_reaches_into_two(pieces):
    text, places = "", []
    for piece, gap in pieces:
        places.append((len(text), len(text) + len(piece)))
        text += piece + gap
    spans = CLIP.tokenize(text).spans
    for start, end in places:
        touching = [span for span in spans if span[0] < end and span[1] > start]
        assert touching[0][0] == start
        assert touching[-1][1] == end


def test_spans_of_repaired_words_are_exact():
    text = "ＬＯＵＤ  cafÃ© &eacute;t&eacute; ﬂag"
    tokenized = CLIP.tokenize(text)
    pieces = [
        (token, text[start:end])
        for token, (start, end) in zip(tokenized.tokens, tokenized.spans, strict=True)
    ]
    assert pieces == [
        ("loud</w>", "ＬＯＵＤ"), ("cafÃ©</w>", "cafÃ©"), ("Ã©", "&eacute;"),
        ("tÃ©</w>", "t&eacute;"), ("flag</w>", "ﬂag"),
    ]  # fmt: skip


def test_spans_of_plain_text_spell_the_tokens():
    tokenized = CLIP.tokenize("An Echinops Bannaticus isn't 3.5 m tall,  is it?")
    for token, (start, end) in zip(tokenized.tokens, tokenized.spans, strict=True):
        assert tokenized.text[start:end].lower() == token.removesuffix("</w>")


def test_calling_it_returns_open_clips_tensor():
    texts = [text for text in AWKWARD if text.isprintable()]
    for context_length in (8, 77, 248):
        ours, theirs = CLIP(texts, context_length), OPEN_CLIP(texts, context_length=context_length)
        assert ours.dtype == torch.long
        assert torch.equal(ours, theirs)
    assert torch.equal(CLIP("one text"), OPEN_CLIP("one text"))


def test_special_ids_and_size():
    assert (CLIP.start_id, CLIP.end_id, CLIP.pad_id, CLIP.vocab_size) == (49406, 49407, 0, 49408)


def test_copies_are_the_same_object():
    assert copy.deepcopy(CLIP) is CLIP
    assert pickle.loads(pickle.dumps(CLIP)) is CLIP


def test_tokenizing_needs_neither_torch_nor_open_clip():
    code = (
        "import sys, longclip_lab.text as text\n"
        "for name in text.TOKENIZERS: text.get_tokenizer(name).tokenize('a red boat')\n"
        "assert not {'torch', 'open_clip', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
