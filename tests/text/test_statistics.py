"""Counts of real descriptions; the expected numbers come from other implementations.

For the twelve descriptions in data/imageinwords, tokens were counted with open_clip's
SimpleTokenizer and with transformers' BertTokenizerLegacy (pure Python) on bert-base-uncased's
vocabulary, sub-captions by replacing "</s>" and newlines with full stops and splitting at those.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from longclip_lab.errors import LabError
from longclip_lab.text import Texts, describe_texts, get_tokenizer, read_texts, text_statistics

IIW = Path(__file__).parent / "data" / "imageinwords"
TOKENS = {
    "clip": [116, 143, 158, 281, 54, 235, 124, 254, 144, 231, 223, 164],
    "bert": [118, 146, 161, 280, 58, 236, 122, 256, 135, 227, 224, 171],
}
SUBCAPTIONS = [5, 10, 4, 16, 3, 13, 6, 15, 7, 13, 7, 9]


@pytest.mark.parametrize("name", ["clip", "bert"])
def test_real_descriptions_are_counted_as_others_count_them(name):
    texts, tokenizer = read_texts(IIW), get_tokenizer(name)
    assert [len(tokenizer.encode(text)) for text in texts.texts] == TOKENS[name]
    statistics = text_statistics(texts, name).to_dict()
    assert statistics["texts"] == 12
    assert statistics["subcaptions_per_text"] == pytest.approx(sum(SUBCAPTIONS) / 12)
    assert statistics["tokens_per_text"] == pytest.approx(sum(TOKENS[name]) / 12)
    assert statistics["share_longer_than_77"] == pytest.approx(11 / 12)
    assert statistics["share_longer_than_248"] == pytest.approx(2 / 12)
    assert statistics["token_quantiles"]["longest"] == max(TOKENS[name])
    assert json.loads(json.dumps(statistics)) == statistics


def test_a_text_that_just_fits_is_not_cut():
    statistics = text_statistics(["dog " * 75, "dog " * 76, "dog " * 85], contexts=[77])
    (cut,) = statistics.cuts
    assert (cut.texts, cut.share) == (2, pytest.approx(2 / 3))
    assert cut.share_of_tokens == pytest.approx((1 + 10) / (75 + 76 + 85))
    assert statistics.example == (" ".join(["dog"] * 75), " dog ")


def test_the_report_says_the_same_in_sentences(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("A red boat. It is 2.5 m long.\n\n" + "\n" * 6)
    report = str(describe_texts(path, "bert"))
    assert report.splitlines() == [
        "captions.txt: 1 text, tokenizer bert",
        "      3.00 sub-captions a text",
        "     12.00 tokens a text, without start and end (median 12, 5-95% 12-12)",
        "      0.0% of the texts are longer than 77 tokens, start and end included; "
        "0.0% of all tokens are never read",
        "      0.0% of the texts are longer than 248 tokens, start and end included; "
        "0.0% of all tokens are never read",
        "  left out, empty caption: 7 (captions.txt:2, captions.txt:3, captions.txt:4, "
        "captions.txt:5, captions.txt:6 and 2 more)",
    ]


def test_the_report_shows_what_is_never_read():
    texts = read_texts(IIW)
    lines = text_statistics(texts, "bert").render().splitlines()
    unread = " ".join(" ".join(lines[lines.index("and never") + 1 :]).split())
    assert unread.startswith("At the bottom-left is a clear focused dark green leaf")
    assert unread.removesuffix(" ...") in texts.texts[0]


def test_what_follows_an_end_token_counts_as_unread():
    ended = "A dog <end_of_text> and a cat."  # 7 tokens, of which 2 are read
    statistics = text_statistics([ended, "A dog.", "dog " * 80], contexts=[77, 248])
    assert statistics.ended_early == 1
    assert [cut.texts for cut in statistics.cuts] == [1, 0]  # longer than the context
    shares = [cut.share_of_tokens for cut in statistics.cuts]
    assert shares == pytest.approx([(5 + 5) / 90, 5 / 90])
    assert statistics.example == ("A dog", " <end_of_text> and a cat.")
    assert "1 text holds an end token: what stands behind it is never read" in str(statistics)
    assert statistics.to_dict()["texts_with_an_end_token"] == 1
    assert text_statistics(["a dog [SEP] a cat"], "bert").ended_early == 0


def test_bad_input_is_refused():
    with pytest.raises(LabError, match="holds no text"):
        text_statistics([])
    with pytest.raises(LabError, match=r"Unknown tokenizer 'brt'\. Did you mean bert\?"):
        describe_texts(IIW, "brt")
    with pytest.raises(LabError, match=r"captions\.txt:7: 'zebra' is not a word of the drawn"):
        text_statistics(Texts("captions.txt", ["a zebra"], ["captions.txt:7"]), "world")
