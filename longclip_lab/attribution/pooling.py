"""Where a tower reads off its last layer: the end token, a class token, or a mean of positions.

Every way is a distribution over positions. Multiplied with a matrix of queries by keys it gives
one row: what the pooled feature took from each position.

B batch, T positions of the text tower, P positions of the image tower, W width of a tower.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.hf_model import HFTextEncoder
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import nn

from longclip_lab.errors import LabError
from longclip_lab.models import Clip
from longclip_lab.models.text_tower import end_positions, pool_type, text_tower

KNOWN_POOLS = ("token", "avg", "map")


@dataclass(frozen=True)
class PatchLayout:
    """How a transformer of pictures orders its positions: `prefix` of them, then the patches.

    `grid` is (rows, columns). `pool` says what is read off: "token" the first position, "avg" the
    mean of the patches, "map" an attention pool over them; others are not understood here.
    """

    grid: tuple[int, int]
    prefix: int
    pool: str

    @property
    def pooled(self) -> int | None:
        """The position that is read off, None where it is more than one."""
        return 0 if self.pool == "token" else None

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the positions: "[class]", "[register 1]", then "row,column" from 0."""
        rows, columns = self.grid
        special = ["[class]"] + [f"[register {i}]" for i in range(1, self.prefix)]
        patches = [f"{row},{column}" for row in range(rows) for column in range(columns)]
        return tuple(special[: self.prefix] + patches)

    def pooling_P(self) -> torch.Tensor:
        """The share of each position in the pooled feature; LabError for an unknown pool."""
        if self.pool not in KNOWN_POOLS:
            raise LabError(
                f"this image tower pools its patches by '{self.pool}'; known here are "
                f"{', '.join(KNOWN_POOLS)}. Choose a method that does not ask, such as occlusion."
            )
        rows, columns = self.grid
        share_P = torch.zeros(self.prefix + rows * columns)
        if self.pooled is None:
            share_P[self.prefix :] = 1 / (rows * columns)
        else:
            share_P[self.pooled] = 1
        return share_P

    def from_pool(self, pool_BT: torch.Tensor) -> torch.Tensor:
        """What an attention pool takes, on all positions: [B, P]. It reads the patches only."""
        return F.pad(pool_BT, (self.prefix, 0))

    def to_grid(self, scores_BP: torch.Tensor) -> torch.Tensor:
        """The patches' part of scores of all positions: [B, rows, columns]."""
        return scores_BP[:, self.prefix :].unflatten(1, self.grid)


def patch_layout(clip: Clip) -> PatchLayout:
    """The positions of the image tower; LabError for towers that keep no patches to the end."""
    visual = clip.model.visual
    if isinstance(visual, VisionTransformer):
        pool = {"tok": "token"}.get(visual.pool_type, visual.pool_type)
        pool = pool if visual.attn_pool is None else "attention with several queries"
        return PatchLayout(tuple(visual.grid_size), 1, pool)
    trunk = visual.trunk if isinstance(visual, TimmModel) else visual
    grid = getattr(getattr(trunk, "patch_embed", None), "grid_size", None)
    if grid is None or not hasattr(trunk, "num_prefix_tokens"):
        raise LabError(
            f"the image tower of '{clip.name}' ({type(trunk).__name__}) keeps no tokens of patches "
            "to its end. Choose a method that needs none, such as grad-cam or occlusion."
        )
    pool = "all positions" if getattr(trunk, "pool_include_prefix", False) else trunk.global_pool
    return PatchLayout(tuple(grid), trunk.num_prefix_tokens, pool)


def text_pooled(clip: Clip, ids_BT: torch.Tensor, length: int) -> torch.Tensor | None:
    """The position that is read off each text, [B]; None where the tower averages its tokens.

    `length` is the number of positions that the tower ran on, which may be more than those of
    `ids_BT` (padding, a class token or corner tokens behind).
    """
    kind = pool_type(clip.model)
    tower = text_tower(clip.model)
    if isinstance(tower, HFTextEncoder):
        position = getattr(tower.pooler, "cls_token_position", None)
        if position is None:
            return None
    elif kind in ("argmax", "eos") and getattr(tower, "cls_emb", None) is None:
        return end_positions(clip.model, ids_BT)
    else:
        position = 0 if kind == "first" else length - 1
    return torch.full((len(ids_BT),), position, device=ids_BT.device)


def text_pooling(clip: Clip, ids_BT: torch.Tensor, length: int) -> torch.Tensor:
    """The share of each position in the pooled feature of each text: [B, length]."""
    pooled_B = text_pooled(clip, ids_BT, length)
    if pooled_B is not None:
        return F.one_hot(pooled_B, length).float()
    read_BT = (ids_BT[:, :length] != text_tower(clip.model).config.pad_token_id).float()
    return read_BT / read_BT.sum(dim=1, keepdim=True)


@contextmanager
def averaged(clip: Clip, tower: str) -> Iterator[list[torch.Tensor]]:
    """The states [B, T, W] whose mean a tower takes, once it ran inside the block.

    The list stays empty for a tower that reads off one position or has an attention pool.
    """
    states: list[torch.Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        states[:] = [getattr(output, "last_hidden_state", output)]

    module = _averaging_input(clip, tower)
    handle = module.register_forward_hook(keep) if module is not None else None
    try:
        yield states
    finally:
        if handle is not None:
            handle.remove()


def _averaging_input(clip: Clip, tower: str) -> nn.Module | None:
    """The module that puts out what is averaged, in towers that average."""
    if tower == "text":
        part = text_tower(clip.model)
        if isinstance(part, HFTextEncoder) and not hasattr(part.pooler, "cls_token_position"):
            return part.transformer
        return None
    if patch_layout(clip).pool != "avg":
        return None
    visual = clip.model.visual
    if isinstance(visual, VisionTransformer):
        return visual.transformer if visual.final_ln_after_pool else visual.ln_post
    return visual.trunk.norm
