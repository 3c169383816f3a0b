"""Maps from gradients: relevance, Grad-CAM, integrated gradients.

Chefer, Gur and Wolf, "Generic Attention-model Explainability for Interpreting Bi-Modal and
Encoder-Decoder Transformers", ICCV 2021, Section 3, for the two towers of a dual encoder.

B pairs, H heads, Q queries, T positions of a tower, W its width, D embedding.

B batch, P positions, h w rows and columns of the patch grid, W width.

B batch, T tokens, W width, D embedding.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from longclip_lab.attribution.attention import (
    TOWERS,
    Recording,
    attention_modules,
    averaged,
    patch_layout,
    record,
    text_pooling,
)
from longclip_lab.attribution.maps import (
    Explanation,
    Pairs,
    PatchMap,
    Picture,
    TokenMap,
    as_pairs,
    patch_method,
    token_method,
)
from longclip_lab.attribution.similarity import unit_texts
from longclip_lab.errors import COUNT, LabError, LabWarning
from longclip_lab.models import Clip, anatomy
from longclip_lab.models.anatomy import pool_type, text_tower
from longclip_lab.models.encoding import Images, evaluating
from longclip_lab.models.towers import can_pack, can_trim, encode_whole

# --- Gradient x attention: which tokens and patches a similarity rests on ---

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


# --- Grad-CAM on the image tower, for the cosine similarity with a text ---


@patch_method(
    "grad-cam",
    about="activations weighted by their channels' mean gradient",
    source="Selvaraju et al., ICCV 2017; captum's LayerGradCam",
    needs_gradient=True,
    imports=("captum.attr",),
)
def grad_cam_maps(pairs: Pairs, layer: int | None = None, relu: bool = True) -> list[PatchMap]:
    """Grad-CAM of the cosine similarity with the text.

    `layer` counts from 0, the patches as they enter the tower: layer n is what its n-th block (of
    a transformer) or n-th stage (of a convolutional tower) gives; -1 is the last. Without `layer`
    it is the last one on whose patches the similarity depends one by one: -1, but -2 where a class
    token is read off, as nothing reads the patches behind the last block. `relu` leaves out what
    lowers the similarity, as the paper does.

    The norms inside a block, which other packages look at, gave maps worse than chance on the
    drawn world, where the stream between the blocks did well; hence the stream.

    Raises LabError for a tower or a layer that is not known here.
    """
    # Here as captum brings matplotlib with it, which costs others of this room their time.
    from captum.attr import LayerGradCam

    clip = pairs.clip
    layer = _last_read(clip) if layer is None else layer
    texts_BD = unit_texts(clip, pairs.texts)
    with evaluating(clip.model), torch.enable_grad(), _as_grid(clip, layer) as grid:
        scores_B1hw = LayerGradCam(_similarity_with(clip), grid).attribute(
            pairs.pixels_B3HW.detach().clone(),
            additional_forward_args=(texts_BD,),
            relu_attributions=relu,
        )
    details = {"layer": layer, "relu": relu}
    return [
        PatchMap("grad-cam", clip.name, image, scores_hw, text, details, pairs.shift)
        for image, scores_hw, text in zip(
            pairs.shown_BSS3, scores_B1hw[:, 0].detach().cpu().numpy(), pairs.texts, strict=True
        )
    ]


def _similarity_with(clip: Clip) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Pictures and unit texts to cosine similarities [B]."""

    def similarity(pixels_B3HW: torch.Tensor, texts_BD: torch.Tensor) -> torch.Tensor:
        return (F.normalize(clip.encode_image(pixels_B3HW), dim=-1) * texts_BD).sum(-1)

    return similarity


@contextmanager
def _as_grid(clip: Clip, layer: int) -> Iterator[nn.Module]:
    """A module that the layer's output passes through as [B, W, h, w] while the block lasts.

    captum averages gradients over all axes behind the second, which is right for convolutions. The
    tokens of a transformer are [B, P, W], so they are turned, shown to captum and turned back.
    """
    grid = nn.Identity()
    channels_last = getattr(getattr(clip.model.visual, "trunk", None), "output_fmt", "") == "NHWC"

    def show(_module: nn.Module, _inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        if output.ndim == 4:
            if channels_last:
                return grid(output.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            return grid(output)
        rows, columns = patch_layout(clip).grid
        prefix = output.shape[1] - rows * columns  # class and register tokens, behind the stem
        first, patches_BPW = output[:, :prefix], output[:, prefix:]
        seen_BWhw = grid(patches_BPW.transpose(1, 2).unflatten(2, (rows, columns)))
        return torch.cat([first, seen_BWhw.flatten(2).transpose(1, 2)], dim=1)

    handle = _layer(clip, layer).register_forward_hook(show)
    try:
        yield grid
    finally:
        handle.remove()


def _layer(clip: Clip, layer: int) -> nn.Module:
    """The module whose output is looked at."""
    layers = anatomy.image_layers(clip.model.visual)
    if not -len(layers) <= layer < len(layers):
        raise LabError(
            f"there is no layer {layer} in the image tower of '{clip.name}': expected 0 (the "
            f"patches) to {len(layers) - 1}; negative numbers count from the end."
        )
    return layers[layer]


def _last_read(clip: Clip) -> int:
    """The last layer on whose patches the feature depends."""
    tokens = anatomy.patch_tokens(clip.model.visual)
    # Of the last block's patches a class token reads the keys and values alone, not the output.
    return -2 if tokens is not None and tokens[2] == "token" else -1


# --- Integrated gradients on the token embedding, for the cosine similarity with a picture ---

LARGE_DELTA = 0.1
"""Warn if what the integral leaves unexplained is more than this share of the difference."""
SMALL_DIFFERENCE = 0.01
"""Differences of similarity below this are not asked to be explained to a share."""


@token_method(
    "integrated-gradients",
    about="gradient along the way from empty tokens to the text's, times that way",
    source="Sundararajan et al., ICML 2017; captum's LayerIntegratedGradients",
    needs_gradient=True,
    imports=("captum.attr",),
)
def integrated_gradients(
    pairs: Pairs, n_steps: int = 32, internal_batch_size: int | None = 64
) -> list[TokenMap]:
    """Integrated gradients of the cosine similarity with the picture, summed over each embedding.

    The way leads from the text with every token between start and end replaced by padding, so the
    scores sum to the similarity less that text's (the completeness axiom), but for the error of
    `n_steps` points of the Gauss-Legendre rule. `details` holds that `difference` and the error
    as `convergence_delta`; if for any pair it is more than a tenth of the difference, and the
    difference is not below 0.01, a LabWarning says so: more steps help.

    At most `internal_batch_size` texts on the way are run at a time (None: all).
    """
    COUNT.check("n_steps", n_steps)
    if internal_batch_size is not None:
        COUNT.check("internal_batch_size", internal_batch_size)
    clip = pairs.clip
    with torch.no_grad(), evaluating(clip.model):
        images_BD = F.normalize(clip.encode_image(pairs.pixels_B3HW), dim=-1)
    lengths_B = torch.tensor([where.stop + 1 for where in pairs.positions])
    maps: list[TokenMap | None] = [None] * len(pairs)
    # Texts of one length at a time: a shorter text in the batch would be run on fewer positions
    # than the embeddings that captum puts in.
    for length in lengths_B.unique().tolist():
        rows = (lengths_B == length).nonzero()[:, 0]
        scores_BT, details = _attribute(
            clip,
            pairs.ids_BT[rows, :length],
            images_BD[rows],
            n_steps,
            None if internal_batch_size is None else max(internal_batch_size, len(rows)),
        )
        for row, scores_T, found in zip(rows.tolist(), scores_BT, details, strict=True):
            maps[row] = TokenMap(
                method="integrated-gradients",
                model=clip.name,
                text=pairs.texts[row],
                spans=pairs.spans[row],
                scores=scores_T[pairs.positions[row]].cpu().numpy(),
                unread=pairs.unread[row],
                details={**found, "n_steps": n_steps},
            )
    _warn(maps)
    return maps


def _attribute(
    clip: Clip,
    ids_BT: torch.Tensor,
    images_BD: torch.Tensor,
    n_steps: int,
    internal_batch_size: int | None,
) -> tuple[torch.Tensor, list[dict[str, float]]]:
    """Scores [B, T] of texts of one length, with each text's difference and what is left of it."""
    from captum.attr import LayerIntegratedGradients  # here, as captum brings matplotlib with it

    embedding, similarity = (
        anatomy.token_embedding(text_tower(clip.model)),
        _integrated_gradients_similarity_with(clip),
    )
    length, pad_id = ids_BT.shape[1], clip.tokenizer.pad_id
    if pool_type(clip.model) != "hub" and not can_trim(clip.model):
        ids_BT = F.pad(ids_BT, (0, clip.context_length - length), value=pad_id)
    empty_BT = ids_BT.clone()
    empty_BT[:, 1 : length - 1] = pad_id
    with evaluating(clip.model), torch.enable_grad():
        scores_BTW = LayerIntegratedGradients(similarity, embedding).attribute(
            ids_BT,
            baselines=empty_BT,
            additional_forward_args=(images_BD,),
            n_steps=n_steps,
            internal_batch_size=internal_batch_size,
        )
    scores_BT = scores_BTW.detach().sum(-1)
    with torch.no_grad(), evaluating(clip.model):
        reached_B = similarity(ids_BT, images_BD)
        # captum's own delta would run the ids of the empty text. A tower that masks its padding
        # would then mask it all, but on the way the ids, and the mask, are those of the text.
        empty_BTW = embedding(empty_BT)
        handle = embedding.register_forward_hook(lambda _m, _i, out: empty_BTW[:, : out.shape[1]])
        try:
            started_B = similarity(ids_BT, images_BD)
        finally:
            handle.remove()
    difference_B = reached_B - started_B
    delta_B = scores_BT.sum(-1) - difference_B
    return scores_BT, [
        {"difference": difference, "convergence_delta": delta}
        for difference, delta in zip(difference_B.tolist(), delta_B.tolist(), strict=True)
    ]


def _integrated_gradients_similarity_with(
    clip: Clip,
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Token ids and unit pictures to cosine similarities [B]; texts of one length, without padding
    if the tower does without."""
    packed = clip.device.type == "cpu" and can_pack(clip.model)
    encode = partial(encode_whole, clip.model) if packed else clip.encode_text

    def similarity(ids_BT: torch.Tensor, images_BD: torch.Tensor) -> torch.Tensor:
        return (F.normalize(encode(ids_BT), dim=-1) * images_BD).sum(-1)

    return similarity


def _warn(maps: list[TokenMap]) -> None:
    """Say it if the scores of some pairs do not sum to what they should."""
    large = [
        abs(one.details["convergence_delta"] / one.details["difference"])
        for one in maps
        if abs(one.details["difference"]) >= SMALL_DIFFERENCE
    ]
    failed = [share for share in large if share > LARGE_DELTA]
    if failed:
        warnings.warn(
            f"integrated gradients did not converge for {len(failed)} of {len(maps)} pairs: up to "
            f"{max(failed):.0%} of the difference in similarity is left unexplained. Take more "
            "n_steps.",
            LabWarning,
            stacklevel=5,
        )
