"""Texts drawn from a text: training on a part of the sentences."""

from __future__ import annotations

import numpy as np

from longclip_lab.errors import LabError
from longclip_lab.text.splitting import split_sentences


def sample_sentences(
    text: str,
    seed: int | np.random.Generator = 0,
    count: int | None = None,
    drop_summary: bool = True,
) -> str:
    """Some sentences of a long caption, without its first, in their order.

    DeBias-CLIP (arXiv 2602.22419): long captions begin with a summary that training leans on, so
    it is removed and the rest is sub-sampled; the paper's third part, padding in front, is
    `pad_front`. `count` sentences are kept, or all if there are fewer; None draws their number
    evenly, from 1 to all. A text of one sentence stays as it is.
    Raises LabError for a count below 1.

    >>> text = "Two cats. One is red. It sits. The other is blue."
    >>> sample_sentences(text, seed=0, count=2)
    'It sits. The other is blue.'
    """
    if count is not None and count < 1:
        raise LabError(f"Sentences: expected to keep at least 1, got {count}.")
    sentences = [text[start:end] for start, end in split_sentences(text)]
    if drop_summary and len(sentences) > 1:
        del sentences[0]
    if not sentences:
        return text
    rng = np.random.default_rng(seed)
    drawn = int(rng.integers(1, len(sentences) + 1)) if count is None else count
    kept = rng.choice(len(sentences), min(drawn, len(sentences)), replace=False)
    return " ".join(sentences[i] for i in sorted(kept))
