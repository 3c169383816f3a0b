"""Twins: pairs of one batch that share their text, so that neither is the other's negative.

Shapes: B batch of one process, G global batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import torch

from longclip_lab.errors import LabError
from longclip_lab.objectives.gathering import gather


def same_text(texts: Sequence[str], device: torch.device | str | None = None) -> torch.Tensor:
    """Which pairs of the batch of all processes have the same text, bool [G, G].

    Texts are the same when they are equal character by character. `device` is where the
    features are: with several processes the texts travel there as 64-bit hashes, and every
    process must bring as many. Raises LabError for a batch without texts.

    >>> same_text(["a cat", "a dog", "a cat"]).int().tolist()
    [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    """
    if isinstance(texts, str) or len(texts) == 0:
        raise LabError(f"texts: expected one text a pair, got {texts!r}; pass a list of them.")
    # Python's own hash differs from process to process.
    digests = [blake2b(text.encode(), digest_size=8).digest() for text in texts]
    ids = [int.from_bytes(digest, "big", signed=True) for digest in digests]
    return same_identity(torch.tensor(ids, device=device))


def same_identity(identity_B: torch.Tensor) -> torch.Tensor:
    """The same for texts that are known by a number, int [B] -> bool [G, G].

    A text must have the same number in every process. Raises LabError for anything but whole
    numbers in one row.

    >>> same_identity(torch.tensor([7, 3, 7])).int().tolist()
    [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    """
    if identity_B.ndim != 1 or identity_B.is_floating_point() or len(identity_B) == 0:
        raise LabError(
            f"identity_B: expected one whole number a pair, got {identity_B.dtype} "
            f"{list(identity_B.shape)}."
        )
    identity_G = gather(identity_B)
    return identity_G[:, None] == identity_G[None, :]
