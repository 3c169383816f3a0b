"""Gradient x attention: which tokens and patches a similarity rests on.

Chefer, Gur and Wolf, "Generic Attention-model Explainability for Interpreting Bi-Modal and
Encoder-Decoder Transformers", ICCV 2021, Section 3, for the two towers of a dual encoder.

B pairs, H heads, T positions of a tower, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from longclip_lab.attribution.inputs import Pairs, Picture, as_pairs
from longclip_lab.attribution.methods import patch_method, token_method
from longclip_lab.attribution.pooling import patch_layout, text_pooling
from longclip_lab.attribution.recording import attention_modules, record
from longclip_lab.attribution.values import Explanation, PatchMap, TokenMap
from longclip_lab.errors import LabError
from longclip_lab.models import Clip
from longclip_lab.models.encoding import Images, evaluating

FACTS: dict[str, Any] = {
    "about": "attention weights times their gradients, multiplied through the layers",
    "source": "Chefer et al., ICCV 2021, Section 3, equations 5 and 6",
    "needs_gradient": True,
}


def relevance(
    clip: Clip, images: Picture | Images, texts: str | Sequence[str], **options: Any
) -> list[Explanation]:
    """Why each picture and its text have their cosine similarity, on both sides.

    Each layer adds R <- R + mean_heads(max(0, A * dS/dA)) R to R = 1, where A are its attention
    weights and S is the cosine. The scores are the row of R that the tower reads off: the end
    token's, the class token's, or the mean over the patches. They are not negative, and say what
    the similarity rests on, not what speaks against it.

    Options: `start`, the first layer to be counted (-1: the last layer only, as the authors' CLIP
    notebook does; default 0: all); `batch_size`, the pairs that are run at once.
    Raises LabError as `as_pairs` and `record` do.
    """
    return explain(as_pairs(clip, images, texts), **options)


def explain(pairs: Pairs, start: int = 0, batch_size: int = 16) -> list[Explanation]:
    """`relevance` of pairs that are prepared."""
    explained = []
    for first in range(0, len(pairs), batch_size):
        explained += _explain_batch(pairs, slice(first, first + batch_size), start)
    return explained


@patch_method("relevance", **FACTS)
def patch_relevance(pairs: Pairs, **options: Any) -> list[PatchMap]:
    """The patches' side of `relevance`."""
    return [explanation.patches for explanation in explain(pairs, **options)]


@token_method("relevance", **FACTS)
def token_relevance(pairs: Pairs, **options: Any) -> list[TokenMap]:
    """The tokens' side of `relevance`."""
    return [explanation.tokens for explanation in explain(pairs, **options)]


def _explain_batch(pairs: Pairs, rows: slice, start: int) -> list[Explanation]:
    clip = pairs.clip
    ids_BT = pairs.ids_BT[rows]
    layout = patch_layout(clip)
    text_layers, image_layers = (_from(start, clip, tower) for tower in ("text", "image"))
    with (
        torch.enable_grad(),
        evaluating(clip.model),
        record(clip, "text", gradients=True, layers=text_layers) as text,
        record(clip, "image", gradients=True, layers=image_layers) as image,
    ):
        text_BD = clip.encode_text(ids_BT)
        image_BD = clip.encode_image(pairs.pixels_B3HW[rows])
        similarity_B = F.cosine_similarity(text_BD, image_BD)
        # One sum for all pairs: no pair's weights touch another pair's similarity.
        text_steps = steps(similarity_B.sum(), text.weights)
        image_steps = steps(similarity_B.sum(), image.weights)
    pooling_BT = text_pooling(clip, ids_BT, text_steps[0].shape[-1])
    token_scores_BT = through_layers(pooling_BT, text_steps)
    if image.pool is None:
        pooling_BP = layout.pooling_P().to(clip.device).expand(len(ids_BT), -1)
    else:
        (pool_BQP,) = steps(similarity_B.sum(), [image.pool])
        pooling_BP = layout.from_pool(pool_BQP.sum(dim=1))
    patch_scores_Bhw = layout.to_grid(through_layers(pooling_BP, image_steps))
    return [
        Explanation(
            similarity=float(similarity.detach()),
            tokens=TokenMap(
                method="relevance",
                model=clip.name,
                text=pairs.texts[b],
                spans=pairs.spans[b],
                scores=token_scores[pairs.positions[b]].cpu().numpy(),
                unread=pairs.unread[b],
            ),
            patches=PatchMap(
                method="relevance",
                model=clip.name,
                image=pairs.shown_BSS3[b],
                scores=patch_scores.cpu().numpy(),
                text=pairs.texts[b],
            ),
        )
        for b, similarity, token_scores, patch_scores in zip(
            range(len(pairs))[rows], similarity_B, token_scores_BT, patch_scores_Bhw, strict=True
        )
    ]


def _from(start: int, clip: Clip, tower: str) -> list[int]:
    """The layers of a tower from `start` on."""
    count = len(attention_modules(clip, tower))
    if not -count <= start < count:
        raise LabError(
            f"expected a start from {-count} to {count - 1}, the layers of the {tower} tower of "
            f"'{clip.name}', got {start}."
        )
    return list(range(start % count, count))


def steps(target: torch.Tensor, weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """What each layer adds: mean over heads of max(0, A * d target / dA), [B, T, T] a layer."""
    gradients = torch.autograd.grad(target, weights, retain_graph=True)
    return [
        (weight * gradient).detach().clamp(min=0).mean(dim=1)
        for weight, gradient in zip(weights, gradients, strict=True)
    ]


def through_layers(rows_BT: torch.Tensor, steps_BTT: Sequence[torch.Tensor]) -> torch.Tensor:
    """What the layers add to rows: `rows` (R - 1), where R = (1 + C_L) ... (1 + C_1), [B, T].

    The same as building R from the first layer up and reading the rows, with vectors only. The 1 is
    taken off because it is a position's share in itself: nothing for tokens behind an end token,
    but a constant that would drown the map where a tower averages its patches.
    """
    start_BT = rows_BT
    for step_BTT in reversed(steps_BTT):
        rows_BT = rows_BT + torch.einsum("bq,bqk->bk", rows_BT, step_BTT)
    return rows_BT - start_BT
