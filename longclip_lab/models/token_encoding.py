"""Many texts and many pictures token by token, for models that compare tokens, as FILIP does.

N pictures, M texts, B batch, P image tokens, T text tokens, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm

from longclip_lab.errors import COUNT, LabError
from longclip_lab.models.clip import Clip
from longclip_lab.models.encoding import (
    Images,
    check_finite,
    checked_texts,
    evaluating,
    pixels,
)
from longclip_lab.models.token_features import encode_image_tokens, encode_text_tokens


@dataclass(frozen=True)
class TextTokens:
    """Every token of every text, in the order the texts were given.

    `mask_MT` says which tokens exist; T is the longest text's count, start and end included.
    `num_truncated` counts the texts that were longer than the model's context.
    """

    features_MTD: torch.Tensor
    mask_MT: torch.Tensor
    num_truncated: int


@torch.no_grad()
def encode_texts_by_token(
    clip: Clip, texts: Sequence[str], batch_size: int = 64, progress: bool = False
) -> TextTokens:
    """Every token of `texts` in the space of the pictures, float32 on the CPU, not normalised.

    Raises LabError as `encode_texts` and `encode_text_tokens` do.
    """
    texts = checked_texts(texts)
    COUNT.check("batch_size", batch_size)
    tokens = clip.tokenize(texts)
    order_M = torch.argsort(tokens.lengths_B, descending=True, stable=True)
    features_MTD = mask_MT = None
    with evaluating(clip.model), tqdm(total=len(texts), unit="text", disable=not progress) as bar:
        for rows_B in order_M.split(batch_size):
            ids_BT = tokens.ids_BT[rows_B].to(clip.device)
            part_BTD, exists_BT = encode_text_tokens(clip.model, ids_BT)
            length = part_BTD.shape[1]
            if features_MTD is None:  # the longest come first
                features_MTD = torch.zeros(len(texts), length, part_BTD.shape[2])
                mask_MT = torch.zeros(len(texts), length, dtype=torch.bool)
            features_MTD[rows_B, :length] = part_BTD.float().cpu()
            mask_MT[rows_B, :length] = exists_BT.cpu()
            bar.update(len(rows_B))
    check_finite(features_MTD.masked_fill(~mask_MT[..., None], 0), "texts", clip.name)
    return TextTokens(features_MTD, mask_MT, tokens.num_truncated)


@torch.no_grad()
def encode_images_by_token(
    clip: Clip, images: Images, batch_size: int = 64, progress: bool = False
) -> torch.Tensor:
    """Every patch of `images` in the space of the texts [N, P, D], float32 on the CPU, not
    normalised.

    Raises LabError as `encode_images` does, and for a tower that is not made of tokens.
    """
    if len(images) == 0:
        raise LabError("Expected at least one picture, got none.")
    COUNT.check("batch_size", batch_size)
    parts = []
    with (
        evaluating(clip.model),
        tqdm(total=len(images), unit="image", disable=not progress) as bar,
    ):
        for start in range(0, len(images), batch_size):
            pixels_B3HW = pixels(clip, images[start : start + batch_size]).to(clip.device)
            features_BPD = encode_image_tokens(clip.model, pixels_B3HW).float().cpu()
            parts.append(check_finite(features_BPD, "pictures", clip.name))
            bar.update(len(pixels_B3HW))
    return torch.cat(parts)
