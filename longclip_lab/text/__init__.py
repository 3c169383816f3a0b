"""Texts before any model sees them: sentences, tokens with their characters, cuts, counts.

Nothing here imports torch, so a question about a file of captions is answered at once.
"""

from longclip_lab.text.sentences import (
    Span,
    TokenBatch,
    cut_tokens,
    drop_sentence,
    move_sentence,
    pad_front,
    sample_sentences,
    shuffle_sentences,
    split_sentences,
    split_subcaptions,
    truncate,
)
from longclip_lab.text.statistics import (
    Cut,
    Texts,
    TextStatistics,
    describe_texts,
    read_texts,
    text_statistics,
)
from longclip_lab.text.tokenizers import (
    POLICIES,
    TOKENIZERS,
    TokenizedText,
    Tokenizer,
    get_tokenizer,
)

__all__ = [
    "POLICIES", "TOKENIZERS", "Cut", "Span", "TextStatistics", "Texts", "TokenBatch",
    "TokenizedText", "Tokenizer", "cut_tokens", "describe_texts", "drop_sentence",
    "get_tokenizer", "move_sentence", "pad_front", "read_texts", "sample_sentences",
    "shuffle_sentences", "split_sentences", "split_subcaptions", "text_statistics", "truncate",
]  # fmt: skip
