"""Sampling that depends on a picture's key and the seed, and on nothing else.

B rows of a batch, V the vocabulary, P tokens so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import torch
from transformers import LogitsProcessor, TopPLogitsWarper


class KeyedSampling(LogitsProcessor):
    """Makes of greedy decoding a sampling with a generator for each row.

    The largest of logits with Gumbel noise added is a sample of their softmax (Gumbel 1954; the
    "Gumbel-max trick"). The noise of a row comes from (seed, key), so which other pictures share
    its batch, or its process, does not matter; transformers' own sampling draws a batch at once.
    """

    def __init__(self, keys: Sequence[str], seed: int, temperature: float, top_p: float):
        self.generators = [_generator(seed, key) for key in keys]
        self.temperature = temperature
        self.nucleus = TopPLogitsWarper(top_p) if top_p < 1 else None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [B, V] of the next token after ids [B, P], with noise."""
        scores_BV = scores.float() / self.temperature
        if self.nucleus is not None:
            scores_BV = self.nucleus(input_ids, scores_BV)
        # Drawn on the CPU: a GPU's generator gives other numbers.
        noise_BV = torch.stack([
            -torch.empty(scores_BV.shape[1]).exponential_(generator=generator).log()
            for generator in self.generators
        ])  # fmt: skip
        return scores_BV + noise_BV.to(scores_BV.device)


def _generator(seed: int, key: str) -> torch.Generator:
    digest = blake2b(f"{seed}\0{key}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))
