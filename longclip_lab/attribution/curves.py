"""Deletion and insertion: what the similarity does as the places a map names are taken or given.

Petsiuk et al. 2018 (RISE), Section 4.1. Deletion takes the highest places out of the whole first:
the sooner the similarity falls, the smaller the area under its curve, the better. Insertion puts
them into the emptied whole first: the larger the area, the better. Emptied pictures are no
pictures the model was trained on, so only the difference to a random order means something.

Q questions, K places (patches or tokens) of one of them, E steps, S side, D embedding, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.transforms.functional import gaussian_blur

from longclip_lab.attribution.values import patch_of_pixels
from longclip_lab.errors import COUNT, LabError
from longclip_lab.models import Clip
from longclip_lab.models.encoding import check_finite

Mode = Literal["deletion", "insertion"]
Fill = Literal["grey", "blur"]
Similarity = Callable[[Sequence[int], Sequence[np.ndarray]], np.ndarray]
"""Numbers of questions, and which places of each are kept (bool, flat), to their similarities."""
FILLS: dict[Mode, Fill] = {"deletion": "grey", "insertion": "blur"}
STEPS = 12


def ranks(scores_K: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The place of every score in falling order, 0 the highest; equal ones in random order.

    >>> ranks(np.array([0.2, 0.9, 0.5]), np.random.default_rng(0)).tolist()
    [2, 0, 1]
    """
    shuffled = rng.permutation(len(scores_K))
    order = shuffled[np.argsort(-scores_K[shuffled], kind="stable")]
    places = np.empty(len(scores_K), dtype=int)
    places[order] = np.arange(len(scores_K))
    return places


def areas(
    scores: Sequence[np.ndarray],
    similarity: Similarity,
    mode: Mode,
    steps: int = STEPS,
    seed: int = 0,
) -> np.ndarray:
    """The area under every question's deletion or insertion curve: [Q], in units of similarity.

    `scores` are the maps, flat. The curve has `steps` + 1 points (fewer where a map has fewer
    places), from nothing taken or given to everything, joined by straight lines.
    """
    COUNT.check("steps", steps)
    rng = np.random.default_rng(seed)
    questions, kept, shares = [], [], []
    for number, scores_K in enumerate(scores):
        rank_K = ranks(np.asarray(scores_K, dtype=float), rng)
        for count in np.unique(np.linspace(0, len(rank_K), steps + 1).round().astype(int)):
            first_K = rank_K < count
            questions.append(number)
            kept.append(~first_K if mode == "deletion" else first_K)
            shares.append(count / len(rank_K))
    values, shares = similarity(questions, kept), np.array(shares)
    numbers = np.array(questions)
    return np.array(
        [_trapezoid(values[numbers == q], shares[numbers == q]) for q in range(len(scores))]
    )


def _trapezoid(y: np.ndarray, x: np.ndarray) -> float:
    return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum())


def picture_similarity(
    clip: Clip,
    pixels_Q3SS: torch.Tensor,
    texts_QD: torch.Tensor,
    grid: tuple[int, int],
    fill: Fill,
    shift: tuple[float, float] = (0.0, 0.0),
    batch_size: int = 64,
) -> Similarity:
    """Cosine similarity of pictures of which some patches are kept and the others filled.

    `texts_QD` are the features of the questions' texts, normalised. Whole and emptied pictures are
    encoded once.
    """
    filled_Q3SS = filled(pixels_Q3SS, grid, fill)
    rows_S, columns_S = patch_of_pixels(grid, pixels_Q3SS.shape[-1], shift)
    known: dict[tuple[int, bool], float] = {}

    @torch.no_grad()
    def encode(questions: np.ndarray, kept_BK: np.ndarray) -> np.ndarray:
        mask_B1hw = torch.from_numpy(kept_BK).view(-1, 1, *grid)
        mask_B1SS = mask_B1hw[..., rows_S[:, None], columns_S[None, :]]
        rows = torch.from_numpy(questions)
        pictures = torch.where(mask_B1SS, pixels_Q3SS[rows], filled_Q3SS[rows])
        features_BD = F.normalize(_finite(clip, clip.encode_image(pictures), "pictures"), dim=1)
        return (features_BD * texts_QD[rows]).sum(1).double().numpy()

    def similarity(questions: Sequence[int], kept: Sequence[np.ndarray]) -> np.ndarray:
        return _known_ends(known, questions, kept, encode, batch_size)

    return similarity


def text_similarity(
    clip: Clip,
    ids: Sequence[np.ndarray],
    images_QD: torch.Tensor,
    batch_size: int = 64,
) -> Similarity:
    """Cosine similarity of pictures and texts of which some tokens are left out.

    `ids` are each text's token ids without start and end; tokens that stay move together. The
    features of the pictures are normalised.
    """
    tokenizer = clip.tokenizer
    known: dict[tuple[int, bool], float] = {}

    @torch.no_grad()
    def encode(questions: np.ndarray, kept: Sequence[np.ndarray]) -> np.ndarray:
        texts = [ids[q][keep] for q, keep in zip(questions, kept, strict=True)]
        ids_BT = np.full((len(texts), 2 + max(map(len, texts))), tokenizer.pad_id)
        for row, text in enumerate(texts):
            ids_BT[row, : len(text) + 2] = [tokenizer.start_id, *text, tokenizer.end_id]
        features_BD = _finite(clip, clip.encode_text(torch.from_numpy(ids_BT)), "texts")
        rows = torch.from_numpy(questions)
        return (F.normalize(features_BD, dim=1) * images_QD[rows]).sum(1).double().numpy()

    def similarity(questions: Sequence[int], kept: Sequence[np.ndarray]) -> np.ndarray:
        return _known_ends(known, questions, kept, encode, batch_size)

    return similarity


def filled(pixels_Q3SS: torch.Tensor, grid: tuple[int, int], fill: Fill) -> torch.Tensor:
    """Emptied pictures: the mean colour of the training pictures, or a strong blur.

    The blur's standard deviation is one patch. (Petsiuk et al. delete to grey and insert into a
    blur, for which inserted sharp edges look less like things.) Raises LabError for another fill.
    """
    if fill == "grey":
        return torch.zeros_like(pixels_Q3SS)  # 0 is the mean after normalisation
    if fill == "blur":
        sigma = pixels_Q3SS.shape[-1] / min(grid)
        radius = min(int(2 * sigma), pixels_Q3SS.shape[-1] // 2 - 1)
        return gaussian_blur(pixels_Q3SS, [2 * radius + 1] * 2, [sigma, sigma])
    raise LabError(f"expected fill grey or blur, got '{fill}'.")


def _finite(clip: Clip, features_BD: torch.Tensor, what: str) -> torch.Tensor:
    return check_finite(features_BD.float().cpu(), what, clip.name)


def _known_ends(
    known: dict[tuple[int, bool], float],
    questions: Sequence[int],
    kept: Sequence[np.ndarray],
    encode: Callable[[np.ndarray, np.ndarray], np.ndarray],
    batch_size: int,
) -> np.ndarray:
    """`encode` in batches; what is kept whole or emptied is looked up after the first time."""
    ends = [
        (q, bool(keep.all())) if keep.all() or not keep.any() else None
        for q, keep in zip(questions, kept, strict=True)
    ]
    values = np.array([known.get(end, np.nan) if end else np.nan for end in ends])
    # Masks of about the same size side by side: the texts of a batch are then about equally long.
    missing = sorted(np.flatnonzero(np.isnan(values)), key=lambda i: int(kept[i].sum()))
    for start in range(0, len(missing), batch_size):
        rows = missing[start : start + batch_size]
        numbers = np.array([questions[i] for i in rows])
        masks = [kept[i] for i in rows]
        same = len({len(mask) for mask in masks}) == 1
        values[rows] = encode(numbers, np.stack(masks) if same else masks)
    known.update({end: value for end, value in zip(ends, values, strict=True) if end})
    return values
