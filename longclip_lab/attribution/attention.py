"""Attention weights: all of one input's, and as scores read at the pooled position.

B pairs, L layers, H heads, T positions of a tower.
"""

from __future__ import annotations

from typing import Any

import torch

from longclip_lab.attribution.inputs import Pairs, Picture, as_pairs, tokenize_with_spans
from longclip_lab.attribution.methods import patch_method, token_method
from longclip_lab.attribution.pooling import patch_layout, text_pooled, text_pooling
from longclip_lab.attribution.recording import Recording, record
from longclip_lab.attribution.values import AttentionWeights, PatchMap, TokenMap
from longclip_lab.errors import LabError
from longclip_lab.models import Clip
from longclip_lab.models.encoding import evaluating
from longclip_lab.models.text_tower import text_tower

FACTS: dict[str, Any] = {
    "about": "attention weights of one layer, read at the pooled position",
    "source": "Vaswani et al., NeurIPS 2017, equation 1",
}


def attention(
    clip: Clip,
    source: str | Picture,
    tower: str | None = None,
    layer: int | None = None,
    head: int | None = None,
) -> AttentionWeights:
    """The attention weights of one text or one picture, exactly those of the forward pass.

    A `str` is a text, anything else a picture; say `tower="image"` for the path of a picture.
    `layer` and `head` keep one (negative: from the end), None keeps all; both axes stay, so the
    weights are [L, H, T, T] with L or H of 1. Padding and corner tokens stand behind a text's end
    token, in towers that read them.

    Raises LabError for towers without attention, unknown layers or heads, and bad pictures.

    >>> import longclip_lab as ll
    >>> weights = attention(ll.load("tiny"), "a red boat", layer=-1)
    >>> weights.weights.shape, weights.labels, weights.pooled
    ((1, 4, 5, 5), ('[start]', 'a', 'red', 'boat', '[end]'), 4)
    """
    tower = tower or ("text" if isinstance(source, str) else "image")
    layers = None if layer is None else [layer]
    with torch.no_grad(), evaluating(clip.model), record(clip, tower, layers=layers) as recording:
        if tower == "text":
            ids_BT, (spans,), _, _ = tokenize_with_spans(clip, [source])
            ids_BT = ids_BT.to(clip.device)
            clip.encode_text(ids_BT)
        else:
            pairs = as_pairs(clip, source, "")
            if len(pairs) != 1:
                raise LabError(f"expected one picture, got {len(pairs)}. Ask for one at a time.")
            clip.encode_image(pairs.pixels_B3HW)
    stacked = torch.cat([_choose(weights, head) for weights in recording.weights])
    if tower == "text":
        pooled_B = text_pooled(clip, ids_BT, stacked.shape[-1])
        pooled = None if pooled_B is None else int(pooled_B)
        words = [source[start:end] for start, end in spans]
        labels = ("[start]", *words, "[end]", *_behind(clip, stacked.shape[-1] - len(words) - 2))
        shown = source
    else:
        layout = patch_layout(clip)
        labels, pooled, shown = layout.labels, layout.pooled, pairs.shown_BSS3[0]
    return AttentionWeights(
        model=clip.name,
        tower=tower,
        weights=stacked.cpu().numpy(),
        labels=labels,
        pooled=pooled,
        source=shown,
    )


@patch_method("attention", asks_text=False, **FACTS)
def patch_attention(pairs: Pairs, layer: int = -1, head: int | None = None) -> list[PatchMap]:
    """What the pooled position attends to in `layer`; `head` None is the mean over heads."""
    recording = run(pairs, "image", [layer])
    return patch_scores(pairs, "attention", recording, _choose(recording.weights[0], head).mean(1))


@token_method("attention", **FACTS)
def token_attention(pairs: Pairs, layer: int = -1, head: int | None = None) -> list[TokenMap]:
    """What the pooled position attends to in `layer`; `head` None is the mean over heads."""
    recording = run(pairs, "text", [layer])
    return token_scores(pairs, "attention", _choose(recording.weights[0], head).mean(1))


def run(pairs: Pairs, tower: str, layers: list[int] | None = None) -> Recording:
    """The recording of one tower on the pairs."""
    clip = pairs.clip
    with torch.no_grad(), evaluating(clip.model), record(clip, tower, layers=layers) as recording:
        if tower == "text":
            clip.encode_text(pairs.ids_BT)
        else:
            clip.encode_image(pairs.pixels_B3HW)
    return recording


def patch_scores(
    pairs: Pairs, method: str, recording: Recording, matrix_BTT: torch.Tensor
) -> list[PatchMap]:
    """The pooled row of a matrix of positions, as maps; `elsewhere` is what is on no patch."""
    layout = patch_layout(pairs.clip)
    pooling_BT = layout.pooling_P().to(matrix_BTT).expand(len(matrix_BTT), -1)
    if recording.pool is not None:
        pooling_BT = layout.from_pool(recording.pool.mean(dim=(1, 2)))
    scores_Bhw = layout.to_grid(torch.einsum("bq,bqk->bk", pooling_BT, matrix_BTT))
    return [
        PatchMap(
            method=method,
            model=pairs.clip.name,
            image=shown,
            scores=scores.cpu().numpy(),
            details={"elsewhere": float(1 - scores.sum())},
            shift=pairs.shift,
        )
        for shown, scores in zip(pairs.shown_BSS3, scores_Bhw, strict=True)
    ]


def token_scores(pairs: Pairs, method: str, matrix_BTT: torch.Tensor) -> list[TokenMap]:
    """The pooled row of a matrix of positions, as maps; `elsewhere` is what is on no token."""
    pooling_BT = text_pooling(pairs.clip, pairs.ids_BT, matrix_BTT.shape[-1]).to(matrix_BTT)
    scores_BT = torch.einsum("bq,bqk->bk", pooling_BT, matrix_BTT)
    maps = []
    for b, positions in enumerate(pairs.positions):
        scores_T = scores_BT[b, positions]
        maps.append(
            TokenMap(
                method=method,
                model=pairs.clip.name,
                text=pairs.texts[b],
                spans=pairs.spans[b],
                scores=scores_T.cpu().numpy(),
                unread=pairs.unread[b],
                details={"elsewhere": float(1 - scores_T.sum())},
            )
        )
    return maps


def _behind(clip: Clip, count: int) -> list[str]:
    """Names of `count` positions behind the end token: corner or register tokens, or padding."""
    corner = getattr(text_tower(clip.model), "corner", None)
    if corner is not None and corner.num_corner == count:
        return [f"[{corner.kind} {i}]" for i in range(1, count + 1)]
    return ["[padding]"] * count


def _choose(weights_BHTT: torch.Tensor, head: int | None) -> torch.Tensor:
    """One head, or all of them: [B, 1 or H, T, T]."""
    heads = weights_BHTT.shape[1]
    if head is None:
        return weights_BHTT
    if not -heads <= head < heads:
        raise LabError(f"expected a head from {-heads} to {heads - 1}, got {head}.")
    return weights_BHTT[:, [head]]
