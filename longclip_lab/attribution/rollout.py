"""Attention rollout: attention multiplied through the layers, with the residual stream.

Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020, Section 3.

B pairs, T positions of a tower.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from longclip_lab.attribution.attention import patch_scores, run, token_scores
from longclip_lab.attribution.inputs import Pairs
from longclip_lab.attribution.methods import patch_method, token_method
from longclip_lab.attribution.values import PatchMap, TokenMap

FACTS: dict[str, Any] = {
    "about": "attention weights multiplied through the layers, half of each the residual",
    "source": "Abnar and Zuidema, ACL 2020, Section 3",
}


@patch_method("rollout", asks_text=False, **FACTS)
def patch_rollout(pairs: Pairs) -> list[PatchMap]:
    """The patches that the pooled position gets to through all layers."""
    recording = run(pairs, "image")
    return patch_scores(pairs, "rollout", recording, rollout(recording.weights))


@token_method("rollout", **FACTS)
def token_rollout(pairs: Pairs) -> list[TokenMap]:
    """The tokens that the pooled position gets to through all layers.

    In a causal tower every path can end at the start token, and most of them do: that is a
    property of causal rollout, not of the text.
    """
    return token_scores(pairs, "rollout", rollout(run(pairs, "text").weights))


def rollout(weights_BHTT: Sequence[torch.Tensor]) -> torch.Tensor:
    """The product over layers of (mean over heads + 1) / 2, last layer leftmost: [B, T, T].

    Rows sum to 1, as those of the weights do.

    >>> uniform = torch.full((1, 2, 4, 4), 1 / 4)
    >>> rollout([uniform, uniform])[0, 0]
    tensor([0.4375, 0.1875, 0.1875, 0.1875])
    """
    first, *_ = weights_BHTT
    product_BTT = torch.eye(first.shape[-1]).to(first).expand(len(first), -1, -1)
    for layer_BHTT in weights_BHTT:
        product_BTT = (layer_BHTT.mean(dim=1) @ product_BTT + product_BTT) / 2
    return product_BTT
