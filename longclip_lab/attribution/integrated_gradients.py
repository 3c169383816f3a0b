"""Integrated gradients on the token embedding, for the cosine similarity with a picture.

B batch, T tokens, W width, D embedding.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from open_clip.hf_model import HFTextEncoder
from torch import nn

from longclip_lab.attribution.inputs import Pairs
from longclip_lab.attribution.methods import token_method
from longclip_lab.attribution.values import TokenMap
from longclip_lab.errors import COUNT, LabError, LabWarning
from longclip_lab.models import Clip
from longclip_lab.models.encoding import evaluating
from longclip_lab.models.packed import can_pack, encode_whole
from longclip_lab.models.text_tower import can_trim, pool_type, text_tower

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

    embedding, similarity = _embedding(clip), _similarity_with(clip)
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


def _similarity_with(clip: Clip) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Token ids and unit pictures to cosine similarities [B]; texts of one length, without padding
    if the tower does without."""
    packed = clip.device.type == "cpu" and can_pack(clip.model)
    encode = partial(encode_whole, clip.model) if packed else clip.encode_text

    def similarity(ids_BT: torch.Tensor, images_BD: torch.Tensor) -> torch.Tensor:
        return (F.normalize(encode(ids_BT), dim=-1) * images_BD).sum(-1)

    return similarity


def _embedding(clip: Clip) -> nn.Module:
    """The layer that turns token ids into vectors."""
    tower = text_tower(clip.model)
    if isinstance(tower, HFTextEncoder):
        return tower.transformer.get_input_embeddings()
    if not hasattr(tower, "token_embedding"):
        raise LabError(f"{type(tower).__name__} is no text tower whose tokens are known here.")
    return tower.token_embedding


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
