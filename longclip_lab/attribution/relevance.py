"""Gradient x attention: which tokens and patches a similarity rests on.

Chefer, Gur and Wolf, "Generic Attention-model Explainability for Interpreting Bi-Modal and
Encoder-Decoder Transformers", ICCV 2021, Section 3, for the two towers of a dual encoder.

B pairs, H heads, Q queries, T positions of a tower, W its width, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from longclip_lab.attribution.inputs import Pairs, Picture, as_pairs
from longclip_lab.attribution.methods import patch_method, token_method
from longclip_lab.attribution.pooling import averaged, patch_layout, text_pooling
from longclip_lab.attribution.recording import TOWERS, Recording, attention_modules, record
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

    From R = 1 each layer adds R <- R + C R with C = mean over heads of max(0, A * dS/dA), where A
    are its attention weights and S is the cosine. The scores are what the tower reads off R:

    - at the end token or the class token, that row of R, as in the paper;
    - through an attention pool, its own C times R;
    - where it averages, the paper has no rule. A mean over n positions is attention with fixed
      weights 1/n, and the same rule for it gives C = max(0, x * dS/dx) for the averaged state x of
      each position. Rows of equal weight instead would drop what a patch tells by itself; on the
      tiny model their peak falls beside the named thing more often than chance does.

    Scores are not negative: they say what the similarity rests on, not what speaks against it.

    Options: `start`, the first layer to be counted (-1: the last layer only, as the authors' CLIP
    notebook does; default 0: all); `batch_size`, the pairs that are run at once.
    Raises LabError as `as_pairs` and `record` do.
    """
    return explain(as_pairs(clip, images, texts), **options)


def explain(pairs: Pairs, **options: Any) -> list[Explanation]:
    """`relevance` of pairs that are prepared."""
    return [
        Explanation(similarity, _token_map(pairs, b, tokens_T), _patch_map(pairs, b, patches_hw))
        for b, (similarity, tokens_T, patches_hw) in enumerate(_run(pairs, TOWERS, **options))
    ]


@patch_method("relevance", **FACTS)
def patch_relevance(pairs: Pairs, **options: Any) -> list[PatchMap]:
    """The patches' side of `relevance`, without the other side's backward pass."""
    scores = _run(pairs, ("image",), **options)
    return [_patch_map(pairs, b, patches_hw) for b, (_, patches_hw) in enumerate(scores)]


@token_method("relevance", **FACTS)
def token_relevance(pairs: Pairs, **options: Any) -> list[TokenMap]:
    """The tokens' side of `relevance`, without the other side's backward pass."""
    scores = _run(pairs, ("text",), **options)
    return [_token_map(pairs, b, tokens_T) for b, (_, tokens_T) in enumerate(scores)]


def _token_map(pairs: Pairs, b: int, scores_T: torch.Tensor) -> TokenMap:
    return TokenMap(
        method="relevance",
        model=pairs.clip.name,
        text=pairs.texts[b],
        spans=pairs.spans[b],
        scores=scores_T[pairs.positions[b]].cpu().numpy(),
        unread=pairs.unread[b],
    )


def _patch_map(pairs: Pairs, b: int, scores_hw: torch.Tensor) -> PatchMap:
    return PatchMap(
        method="relevance",
        model=pairs.clip.name,
        image=pairs.shown_BSS3[b],
        scores=scores_hw.cpu().numpy(),
        text=pairs.texts[b],
        shift=pairs.shift,
    )


def _run(
    pairs: Pairs, towers: Sequence[str], start: int = 0, batch_size: int = 16
) -> Iterator[tuple[Any, ...]]:
    """For each pair its similarity, then the scores of each of `towers`: [T] or [h, w]."""
    for first in range(0, len(pairs), batch_size):
        rows = slice(first, first + batch_size)
        similarity_B, *scores = _scores(pairs, rows, towers, start)
        yield from zip(similarity_B.tolist(), *scores, strict=True)


def _scores(
    pairs: Pairs, rows: slice, towers: Sequence[str], start: int
) -> tuple[torch.Tensor, ...]:
    """Similarities [B], then the scores of all positions of the text [B, T], patches [B, h, w]."""
    clip = pairs.clip
    inputs = {"text": pairs.ids_BT[rows], "image": pairs.pixels_B3HW[rows]}
    encode = {"text": clip.encode_text, "image": clip.encode_image}
    seen, features = {}, {}
    with torch.enable_grad(), evaluating(clip.model):
        for tower in TOWERS:
            if tower not in towers:
                with torch.no_grad():
                    features[tower] = encode[tower](inputs[tower])
                continue
            layers = _from(start, clip, tower)
            with record(clip, tower, True, layers) as recording, averaged(clip, tower) as states:
                features[tower] = encode[tower](inputs[tower])
            seen[tower] = recording, states
        similarity_B = F.cosine_similarity(features["text"], features["image"])
        target = similarity_B.sum()  # for all: no pair's weights touch another's similarity
    return similarity_B.detach(), *(
        _read_off(clip, tower, inputs[tower], target, recording, states)
        for tower, (recording, states) in seen.items()
    )


def _read_off(
    clip: Clip,
    tower: str,
    inputs: torch.Tensor,
    target: torch.Tensor,
    recording: Recording,
    averaged_states: list[torch.Tensor],
) -> torch.Tensor:
    """R where the tower reads it off: [B, T] of a text, [B, h, w] of a picture."""
    steps_BTT = steps(target, recording.weights)
    layout = patch_layout(clip) if tower == "image" else None
    if averaged_states:
        rows_BT = averaging_step(target, *averaged_states)
    elif recording.pool is not None:
        (pool_BQT,) = steps(target, [recording.pool])
        rows_BT = layout.from_pool(pool_BQT.sum(dim=1))
    elif layout is not None:
        rows_BT = layout.pooling_P().to(target.device).expand(len(inputs), -1)
    else:
        rows_BT = text_pooling(clip, inputs, steps_BTT[0].shape[-1])
    scores_BT = through_layers(rows_BT, steps_BTT)
    return scores_BT if layout is None else layout.to_grid(scores_BT)


def steps(target: torch.Tensor, weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """C of each layer: mean over heads of max(0, A * d target / dA), [B, T, T] a layer."""
    gradients = torch.autograd.grad(target, weights, retain_graph=True)
    return [
        (weight * gradient).detach().clamp(min=0).mean(dim=1)
        for weight, gradient in zip(weights, gradients, strict=True)
    ]


def averaging_step(target: torch.Tensor, states_BTW: torch.Tensor) -> torch.Tensor:
    """C of a mean over positions, as attention with fixed weights: max(0, x * dS/dx), [B, T].

    With s = sum_k a_k x_k and a_k = 1/n: a_k * dS/da_k = a_k x_k dS/ds = x_k dS/dx_k.
    """
    (gradient_BTW,) = torch.autograd.grad(target, states_BTW, retain_graph=True)
    return (states_BTW * gradient_BTW).sum(dim=-1).detach().clamp(min=0)


def through_layers(rows_BT: torch.Tensor, steps_BTT: Sequence[torch.Tensor]) -> torch.Tensor:
    """`rows` times R = (1 + C_L) ... (1 + C_1), [B, T].

    The same as building R from the first layer up and reading the rows, with vectors only.

    >>> step = torch.tensor([[[0.0, 0.0], [0.5, 0.0]]])
    >>> through_layers(torch.tensor([[0.0, 1.0]]), [step, step])
    tensor([[1., 1.]])
    """
    for step_BTT in reversed(steps_BTT):
        rows_BT = rows_BT + torch.einsum("bq,bqk->bk", rows_BT, step_BTT)
    return rows_BT


def _from(start: int, clip: Clip, tower: str) -> list[int]:
    """The layers of a tower from `start` on."""
    count = len(attention_modules(clip, tower))
    if not -count <= start < count:
        raise LabError(
            f"expected a start from {-count} to {count - 1}, the layers of the {tower} tower of "
            f"'{clip.name}', got {start}."
        )
    return list(range(start % count, count))
