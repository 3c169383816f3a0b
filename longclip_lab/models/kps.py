"""Knowledge-preserved stretching (KPS) of the positional embedding: Long-CLIP, section 3.2.

CLIP reads 77 tokens, but hardly ever saw a caption of more than 20: only the first 20 rows of its
table of positions are well trained (section 3.1). Long-CLIP keeps these rows and stretches the
other 57 to four times as many, 20 + 57 * 4 = 248. With keep k and ratio r the new table is

    PE*(p) = PE(p)                                          for p < k
    PE*(p) = (1 - a) PE(floor(s)) + a PE(floor(s) + 1)      for p >= k,

where s = k + (p - k) / r is the place in the old table and a = s - floor(s). The last r - 1 rows
have no right neighbour and follow the last difference, as in the official code. Fine-tuning then
leaves the first k rows as they are (`longclip_lab.training`).

`stretch_positions` is this equation, `new_positions` adds the rivals that it is compared with, and
`stretch` gives a model the longer table.

T old positions, L new positions, W width.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from open_clip.transformer import TextTransformer
from torch import nn

from longclip_lab.errors import SEED, LabError, Numbers, suggest
from longclip_lab.models.anatomy import pool_type, text_tower

if TYPE_CHECKING:
    from longclip_lab.models.clip import Clip, TextTower


# --- Longer tables of learned positions, made from a shorter one: pure functions of tensors ---

METHODS = ("kps", "linear", "random", "none")
MAX_LENGTH = 16_384
"""No text tower reads more; its causal mask alone, T x T, would take a gigabyte."""


def stretched_length(length: int, keep: int = 20, ratio: float = 4) -> int:
    """The number of positions after stretching: keep + (length - keep) * ratio, rounded down.

    >>> stretched_length(77)
    248
    """
    return keep + math.floor((length - keep) * ratio)


def stretch_positions(
    positional_embedding_TW: torch.Tensor, keep: int = 20, ratio: float = 4
) -> torch.Tensor:
    """Knowledge-preserved stretching: [T, W] to [keep + (T - keep) * ratio, W].

    The first `keep` positions stay as they are; the others are interpolated linearly to `ratio`
    times as many. The last `ratio - 1` new positions have no right neighbour and follow the last
    difference, as in the official code. Ratios need not be whole.

    Source: Long-CLIP (Zhang et al., ECCV 2024), section 3.2, with keep 20 and ratio 4.

    Raises LabError unless 0 <= keep < T and ratio >= 1, and for more than `MAX_LENGTH` positions.

    >>> stretch_positions(torch.tensor([[0.0], [1.0], [2.0], [4.0]]), keep=2, ratio=2).T
    tensor([[0., 1., 2., 3., 4., 5.]])
    """
    check_keep_and_ratio(positional_embedding_TW, keep, ratio)
    length = stretched_length(len(positional_embedding_TW), keep, ratio)
    check_length(length, keep)
    return _interpolate(positional_embedding_TW, keep, ratio, length)


def new_positions(
    positional_embedding_TW: torch.Tensor,
    method: str = "kps",
    keep: int = 20,
    ratio: float = 4,
    length: int | None = None,
    seed: int = 0,
) -> torch.Tensor:
    """A table of `length` positions [L, W] by one of `METHODS`.

    `length` is keep + (T - keep) * ratio unless given, for every method, so that the rivals of
    "kps" are compared with it at the same size.

    - "kps": `stretch_positions`, cut at `length` or carried on along the last difference.
    - "linear": all positions interpolated from T to `length`, none kept.
    - "random": all T old positions kept; the new ones drawn from a normal distribution with the
      old ones' mean and deviation in each dimension (seeded). With `length` below T it is a cut.
    - "none": the old table; keep, ratio and length do not matter.
    """
    if method not in METHODS:
        raise LabError(f"No method of stretching is called '{method}'. {suggest(method, METHODS)}")
    # "none" goes before all checks: its keep, ratio and length may be anything.
    if method == "none":
        return positional_embedding_TW.clone()
    check_keep_and_ratio(positional_embedding_TW, keep, ratio)
    SEED.check("The seed", seed)
    if length is None:
        length = stretched_length(len(positional_embedding_TW), keep, ratio)
    check_length(length, keep)
    if method == "kps":
        return _interpolate(positional_embedding_TW, keep, ratio, length)
    # Plain interpolation is KPS with nothing kept: the ablation of the paper.
    if method == "linear":
        linear_ratio = length / len(positional_embedding_TW)
        return _interpolate(positional_embedding_TW, 0, linear_ratio, length)
    return _with_random_tail(positional_embedding_TW, length, seed)


def check_keep_and_ratio(positional_embedding_TW: torch.Tensor, keep: int, ratio: float) -> None:
    """Raise LabError unless the table is [T, W], 0 <= keep < T and ratio is a number >= 1."""
    if positional_embedding_TW.ndim != 2 or len(positional_embedding_TW) < 2:
        shape = list(positional_embedding_TW.shape)
        raise LabError(f"Expected at least two positions [T, W], got a tensor of {shape}.")
    length = len(positional_embedding_TW)
    if keep not in Numbers(at_least=0, below=length, whole=True):
        raise LabError(
            f"keep must be a whole number from 0 to {length - 1}, one less than the {length} "
            f"positions of the model, got {keep}: nothing would be left to stretch."
        )
    if ratio not in Numbers(at_least=1, at_most=1024):
        raise LabError(
            f"ratio must be at least 1 (which changes nothing) and at most 1,024, got {ratio}."
        )


def check_length(length: int, keep: int) -> None:
    """Raise LabError unless `length` is a whole number above `keep`, at most `MAX_LENGTH`."""
    if length not in Numbers(above=keep, at_most=MAX_LENGTH, whole=True):
        raise LabError(
            f"The new length must be larger than keep ({keep}), a whole number and at most "
            f"{MAX_LENGTH:,} positions, got {length}."
        )


def _interpolate(
    positional_embedding_TW: torch.Tensor, keep: int, ratio: float, length: int
) -> torch.Tensor:
    """New position keep + i reads the old table at keep + i / ratio."""
    # Half precision would round the weights a; in float32 the golden tables are met to 1e-5.
    old_TW = positional_embedding_TW
    if old_TW.dtype in (torch.float16, torch.bfloat16):
        old_TW = old_TW.float()
    # In float64: i / ratio of a whole multiple must be that whole number, or floor takes the
    # wrong neighbour for ratios such as 1.1.
    steps = torch.arange(length - keep, dtype=torch.float64, device="cpu")
    source = keep + steps / ratio  # s
    # Behind the last old position the weight exceeds 1, which carries the last difference on.
    left = source.floor().clamp(max=len(old_TW) - 2)
    weight = (source - left).to(old_TW).unsqueeze(1)  # a
    left = left.long().to(old_TW.device)
    stretched = (1 - weight) * old_TW[left] + weight * old_TW[left + 1]
    return torch.cat([old_TW[:keep], stretched]).to(positional_embedding_TW.dtype)


def _with_random_tail(
    positional_embedding_TW: torch.Tensor, length: int, seed: int
) -> torch.Tensor:
    # The tail has the old rows' scale: what it lacks is their order, not their size.
    old_TW = positional_embedding_TW.float()
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(max(length - len(old_TW), 0), old_TW.shape[1], generator=generator)
    tail = old_TW.mean(dim=0) + old_TW.std(dim=0) * noise.to(old_TW.device)
    return torch.cat([old_TW[:length], tail]).to(positional_embedding_TW.dtype)


# --- A model that reads longer texts: the same weights with another table of positions ---

Stretchable = TypeVar("Stretchable", "Clip", "TextTower")


def stretch(
    clip: Stretchable,
    keep: int = 20,
    ratio: float = 4,
    length: int | None = None,
    method: str = "kps",
    seed: int = 0,
) -> Stretchable:
    """A copy of `clip` that reads keep + (T - keep) * ratio tokens; `clip` itself is untouched.

    `clip` may be a text tower alone. Any keep, ratio and `length` go: a `length` that is not the
    one above cuts the stretched table, or carries it on along its last difference. `method` names
    the way, "kps" (knowledge-preserved stretching, the default) or its rivals "linear", "random"
    and "none", see `longclip_lab.models.kps.new_positions`; `seed` is for "random".
    open_clip's own `encode_text` runs at the new length. `card["positions"]` records method, keep,
    ratio, length; keep is there the number of leading positions that were left as they are (0 for
    "none", where nothing was added that they could be told from).

    Source: Long-CLIP (Zhang et al., ECCV 2024), section 3.2.

    Raises LabError if keep >= T, ratio < 1, length <= keep, for more than 16,384 positions, or if
    the text tower has no table of positions of its own (towers of transformers, CoCa).
    """
    tower = text_tower(clip.model)
    if pool_type(clip.model) == "hub" or getattr(tower, "cls_emb", None) is not None:
        raise LabError(
            f"The text tower of '{clip.name}' has no plain table of learned positions to stretch."
        )
    old_TW = tower.positional_embedding.detach()
    positions_LW = new_positions(old_TW, method, keep, ratio, length, seed)
    card = copy.deepcopy(clip.card)
    card["positions"] = _positions_card(method, keep, ratio, len(old_TW), len(positions_LW))
    card["model_cfg"]["text_cfg"]["context_length"] = len(positions_LW)
    return replace(
        clip,
        model=replace_positions(copy.deepcopy(clip.model), positions_LW),
        name=clip.name if method == "none" else f"{clip.name}+{method}{len(positions_LW)}",
        card=card,
    )


def replace_positions(model: nn.Module, positions_LW: torch.Tensor) -> nn.Module:
    """Give `model` (changed in place) another table of positions and all that depends on it.

    open_clip keeps the length in up to three attributes and, for causal towers, in the mask.
    """
    tower = text_tower(model)
    length = len(positions_LW)
    # A locked table stays locked: whoever froze it did not ask for another one to train.
    trained = tower.positional_embedding.requires_grad
    tower.positional_embedding = nn.Parameter(positions_LW.clone(), requires_grad=trained)
    # Corner tokens occupy rows of the table that the text cannot use.
    taken = tower.corner.shift if hasattr(tower, "corner") else 0
    model.context_length = tower.context_length = length - taken
    if isinstance(tower, TextTransformer):
        tower.num_pos = length
    # No token sees a later one: minus infinity above the diagonal, as open_clip builds it.
    if tower.attn_mask is not None:
        mask = torch.full((length, length), float("-inf")).triu_(1)
        tower.attn_mask = mask.to(tower.attn_mask)
    return model


def _positions_card(
    method: str, keep: int, ratio: float, old_length: int, length: int
) -> dict[str, Any]:
    kept = {"kps": keep, "linear": 0, "random": min(old_length, length), "none": 0}
    ratios = {"kps": ratio, "linear": length / old_length, "random": 1, "none": 1}
    return {"method": method, "keep": kept[method], "ratio": ratios[method], "length": length}
