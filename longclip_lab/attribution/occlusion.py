"""Occlusion: take a word or a square away and see by how much the similarity drops.

No gradient, any model, and what is measured is what is said. But a text without a word and a
picture with a grey square are unlike anything seen in training, and what two places show alike
is hidden by neither of them alone.

B pairs, T tokens, N rows that are run, K squares, D embedding, h w rows and columns of patches.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.timm_model import TimmModel

from longclip_lab.attribution.inputs import Pairs
from longclip_lab.attribution.methods import patch_method, token_method
from longclip_lab.attribution.similarity import unit_texts
from longclip_lab.attribution.values import PatchMap, TokenMap
from longclip_lab.attribution.wording import groups_of
from longclip_lab.errors import LabError, suggest
from longclip_lab.models import Clip
from longclip_lab.models.encoding import evaluating
from longclip_lab.models.packed import can_pack, encode_variants

WAYS = ("delete", "pad")
FILLS = ("grey", "average")
PLAIN_GRID = (7, 7)
"""For towers that have no grid of patches of their own."""


@token_method(
    "occlusion",
    about="drop of the similarity when a word is taken away",
    source="Li, Monroe and Jurafsky 2016, Understanding Neural Networks through Erasure",
)
@torch.no_grad()
def occluded_words(
    pairs: Pairs, unit: str = "word", by: str = "delete", batch_size: int = 128
) -> list[TokenMap]:
    """Similarity of the text less that of the text without a word; tokens of a word share it.

    `unit` is what goes at a time: "word", "token" or "sentence". `by="delete"` closes the gap, so
    that later words move to the left, as in a text written without the word; `by="pad"` puts
    padding in its place. Words behind the context cut stay unread either way.

    Raises LabError for another `unit` or `by`.
    """
    _check("by", by, WAYS)
    clip = pairs.clip
    pad_id = clip.tokenizer.pad_id
    rows, owners, origins, groups = [], [], [], []
    for b, (text, spans) in enumerate(zip(pairs.texts, pairs.spans, strict=True)):
        ids_T = pairs.ids_BT[b, : pairs.positions[b].stop + 1]
        groups.append(groups_of(text, spans, unit))
        owners += [b] * (1 + len(groups[-1]))
        origins += [len(rows)] * (1 + len(groups[-1]))
        rows.append(ids_T)
        for group in groups[-1]:
            rows.append(_without(ids_T, group + pairs.positions[b].start, by, pad_id))
    ids_NT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_id)
    with evaluating(clip.model):
        images_BD = F.normalize(clip.encode_image(pairs.pixels_B3HW), dim=-1)
        texts_ND = _encode_variants(clip, ids_NT, torch.tensor(origins), batch_size)
    similarity_N = (F.normalize(texts_ND, dim=-1) * images_BD[owners]).sum(-1).cpu().numpy()
    maps, first = [], 0
    for b, found in enumerate(groups):
        drops = similarity_N[first] - similarity_N[first + 1 : first + 1 + len(found)]
        first += 1 + len(found)
        scores_T = np.zeros(len(pairs.spans[b]), dtype=np.float32)
        for group, drop in zip(found, drops, strict=True):
            scores_T[group] = drop / len(group)
        maps.append(
            TokenMap(
                method="occlusion",
                model=clip.name,
                text=pairs.texts[b],
                spans=pairs.spans[b],
                scores=scores_T,
                unread=pairs.unread[b],
                details={"unit": unit, "by": by},
            )
        )
    return maps


@patch_method(
    "occlusion",
    about="drop of the similarity when a grey square covers the place",
    source="Zeiler and Fergus, ECCV 2014, Section 4.2",
)
@torch.no_grad()
def occluded_patches(
    pairs: Pairs,
    window: int | None = None,
    stride: int | None = None,
    fill: str = "grey",
    batch_size: int = 64,
) -> list[PatchMap]:
    """Similarity with the picture less that with a square of it covered.

    Squares of `window` x `window` patches are slid by `stride` patches; a patch has the mean of
    the drops of all squares that cover it. Without numbers squares move by about a seventh of the
    picture and are twice as wide. `fill="grey"` is the mean colour that the model subtracts,
    "average" the picture's own mean colour.

    Raises LabError for another `fill`, and for squares larger than the picture.
    """
    _check("fill", fill, FILLS)
    clip = pairs.clip
    squares_Khw = squares(_grid(clip), window, stride)
    texts_BD = unit_texts(clip, pairs.texts)
    # One picture may come with many texts: its squares are run once.
    first_of: dict[bytes, int] = {}
    same = [first_of.setdefault(image.tobytes(), b) for b, image in enumerate(pairs.shown_BSS3)]
    drops_BK = np.empty((len(pairs), len(squares_Khw)), dtype=np.float32)
    with evaluating(clip.model):
        for first in first_of.values():
            rows = [row for row, owner in enumerate(same) if owner == first]
            pictures = _covered(pairs.pixels_B3HW[first], squares_Khw, fill, batch_size)
            images_ND = torch.cat([clip.encode_image(part_B3HW) for part_B3HW in pictures])
            similarity_NR = F.normalize(images_ND, dim=-1) @ texts_BD[rows].T
            drops_BK[rows] = (similarity_NR[0] - similarity_NR[1:]).T.cpu().numpy()
    squares_Khw = squares_Khw.astype(np.float32)
    scores_Bhw = np.tensordot(drops_BK, squares_Khw, axes=1) / squares_Khw.sum(axis=0)
    details = {"squares": len(squares_Khw), "fill": fill}
    return [
        PatchMap("occlusion", clip.name, image, scores_hw, text, details)
        for image, scores_hw, text in zip(pairs.shown_BSS3, scores_Bhw, pairs.texts, strict=True)
    ]


def squares(grid: tuple[int, int], window: int | None, stride: int | None) -> np.ndarray:
    """The patches under each square, bool [K, h, w]; the last squares end at the edge.

    >>> squares((2, 3), window=2, stride=1).astype(int).tolist()
    [[[1, 1, 0], [1, 1, 0]], [[0, 1, 1], [0, 1, 1]]]
    """
    step = max(1, round(max(grid) / 7))
    stride = min(step, window or step) if stride is None else stride
    window = min(2 * stride, *grid) if window is None else window
    if not 1 <= window <= min(grid) or not 1 <= stride <= window:
        raise LabError(
            f"expected squares of 1 to {min(grid)} patches that move by no more than their width, "
            f"got window {window} and stride {stride} on a grid of {grid[0]} x {grid[1]}."
        )
    rows, columns = (sorted({*range(0, side - window, stride), side - window}) for side in grid)
    found = np.zeros((len(rows) * len(columns), *grid), dtype=bool)
    for square_hw, (row, column) in zip(found, product(rows, columns), strict=True):
        square_hw[row : row + window, column : column + window] = True
    return found


def _covered(
    pixels_3HW: torch.Tensor, squares_Khw: np.ndarray, fill: str, batch_size: int
) -> Iterator[torch.Tensor]:
    """The picture as it is, then under each square, in batches [B, 3, H, W]."""
    height, width = pixels_3HW.shape[1:]
    rows = np.arange(height) * squares_Khw.shape[1] // height
    columns = np.arange(width) * squares_Khw.shape[2] // width
    nothing_1hw = np.zeros_like(squares_Khw[:1])
    covers_Nhw = torch.from_numpy(np.concatenate([nothing_1hw, squares_Khw]))
    colour_311 = pixels_3HW.mean(dim=(1, 2), keepdim=True) if fill == "average" else 0.0
    for covers_Bhw in covers_Nhw.split(batch_size):
        covers_B1HW = covers_Bhw[:, rows][:, :, columns].unsqueeze(1).to(pixels_3HW.device)
        yield torch.where(covers_B1HW, colour_311, pixels_3HW)


def _grid(clip: Clip) -> tuple[int, int]:
    """Rows and columns of the tower's patches."""
    visual = clip.model.visual
    if isinstance(visual, TimmModel):
        visual = getattr(visual.trunk, "patch_embed", None)
    return tuple(getattr(visual, "grid_size", PLAIN_GRID))


def _without(ids_T: torch.Tensor, taken: np.ndarray, by: str, pad_id: int) -> torch.Tensor:
    """The ids without those at the positions `taken`."""
    if by == "pad":
        return ids_T.index_fill(0, torch.from_numpy(taken).to(ids_T.device), pad_id)
    kept_T = torch.ones(len(ids_T), dtype=torch.bool)
    kept_T[taken] = False
    return ids_T[kept_T.to(ids_T.device)]


def _encode_variants(
    clip: Clip, ids_NT: torch.Tensor, origin_N: torch.Tensor, batch_size: int
) -> torch.Tensor:
    """Features [N, D] of texts, each behind the one that it is a variant of, `origin_N`."""
    if clip.device.type != "cpu" or not can_pack(clip.model):
        return torch.cat([clip.encode_text(part_BT) for part_BT in ids_NT.split(batch_size)])
    parts = zip(ids_NT.split(batch_size), origin_N.split(batch_size), strict=True)
    found = []
    for number, (part_BT, origin_B) in enumerate(parts):
        first = number * batch_size
        # A batch that begins within the variants of a text runs that text again.
        before = int(origin_B[0] < first)
        part_BT = torch.cat([ids_NT[origin_B[:before]], part_BT])
        origin_B = torch.cat([origin_B.new_zeros(before), (origin_B - first + before).clamp(min=0)])
        found.append(encode_variants(clip.model, part_BT, origin_B)[before:])
    return torch.cat(found)


def _check(what: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise LabError(f"There is no {what}='{given}'. {suggest(given, known)}")
