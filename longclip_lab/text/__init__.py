"""Texts before any model sees them: sentences, tokens with their characters, cuts, counts.

Nothing here imports torch, so a question about a file of captions is answered at once.
"""

from longclip_lab.text.base import POLICIES, TokenizedText, Tokenizer
from longclip_lab.text.reading import Texts, read_texts
from longclip_lab.text.sampling import sample_sentences
from longclip_lab.text.splitting import Span, split_sentences, split_subcaptions
from longclip_lab.text.statistics import Cut, TextStatistics, describe_texts, text_statistics
from longclip_lab.text.tokenizers import TOKENIZERS, get_tokenizer
from longclip_lab.text.truncation import (
    TokenBatch,
    cut_tokens,
    drop_sentence,
    move_sentence,
    pad_front,
    shuffle_sentences,
    truncate,
)

__all__ = [
    "POLICIES", "TOKENIZERS", "Cut", "Span", "TextStatistics", "Texts", "TokenBatch",
    "TokenizedText", "Tokenizer", "cut_tokens", "describe_texts", "drop_sentence",
    "get_tokenizer", "move_sentence", "pad_front", "read_texts", "sample_sentences",
    "shuffle_sentences", "split_sentences", "split_subcaptions", "text_statistics", "truncate",
]  # fmt: skip
