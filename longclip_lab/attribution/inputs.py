"""Pictures and texts as the attribution methods take them: pairs, ready for the model.

B pairs, N pictures, T tokens, S side of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from PIL import Image

from longclip_lab.attribution.features import PatchFeatures, patch_features
from longclip_lab.errors import LabError
from longclip_lab.models import Clip, pixels
from longclip_lab.models.encoding import Images

Picture = Image.Image | str | np.ndarray
"""One picture: a PIL picture, a path, or uint8 values [H, W, 3]."""


@dataclass(frozen=True)
class Pictures:
    """N pictures, ready for the model, with what is known of them whatever the text.

    `pixels_N3HW` is preprocessed, on the model's device; `shown_NSS3` uint8 is the same for the
    eye. Ask about other texts with the same object, and the image tower does not run again; after
    training the model, prepare the pictures anew.
    """

    clip: Clip
    pixels_N3HW: torch.Tensor
    shown_NSS3: np.ndarray

    @cached_property
    def patches(self) -> PatchFeatures:
        """`patch_features` of the pictures, without gradient. Raises LabError as that does."""
        with torch.no_grad():
            return patch_features(self.clip, self.pixels_N3HW)

    def paired(self, texts: str | Sequence[str]) -> Pairs:
        """The pictures with their texts; one picture goes with every text, one text with every
        picture.

        Raises LabError if neither the counts agree nor one of them is 1.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        pictures = len(self.pixels_N3HW)
        if not texts:
            raise LabError(f"expected pictures and texts, got {pictures} pictures and 0 texts.")
        if pictures != len(texts) and 1 not in (pictures, len(texts)):
            raise LabError(
                f"expected one text a picture, got {pictures} pictures and {len(texts)} texts. "
                "Give lists of one length, or one picture or one text for all."
            )
        texts = texts * max(pictures, len(texts)) if len(texts) == 1 else texts
        ids_BT, spans, positions, unread = tokenize_with_spans(self.clip, texts)
        return Pairs(self, texts, ids_BT.to(self.clip.device), spans, positions, unread)


@dataclass(frozen=True)
class Pairs:
    """B pictures and B texts that belong together.

    `pictures` holds them, or the only one for all texts. `ids_BT` is trimmed
    to the longest text of the batch. `spans[b]` are the characters of the tokens read, which stand
    at `positions[b]` (a slice of T, without start and end); `unread[b]` counts the tokens cut off.
    """

    pictures: Pictures
    texts: list[str]
    ids_BT: torch.Tensor
    spans: list[tuple[tuple[int, int], ...]]
    positions: list[slice]
    unread: list[int]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def clip(self) -> Clip:
        return self.pictures.clip

    @property
    def pixels_B3HW(self) -> torch.Tensor:
        return self.pictures.pixels_N3HW.expand(len(self), -1, -1, -1)

    @property
    def shown_BSS3(self) -> np.ndarray:
        shown_NSS3 = self.pictures.shown_NSS3
        return shown_NSS3.repeat(len(self), 0) if len(shown_NSS3) < len(self) else shown_NSS3

    @property
    def patches(self) -> PatchFeatures:
        """`patch_features` of the B pictures, computed once for all texts; without gradient."""
        found = self.pictures.patches
        return PatchFeatures(
            found.patches_BhwD.expand(len(self), -1, -1, -1), found.images_BD.expand(len(self), -1)
        )

    @property
    def shift(self) -> tuple[float, float]:
        """How far what a patch's token sees lies from an even grid, (x, y) in pixels."""
        trunk = getattr(self.clip.model.visual, "trunk", self.clip.model.visual)
        return getattr(getattr(trunk, "patch_embed", None), "field_shift", (0.0, 0.0))


def as_pairs(clip: Clip, images: Picture | Images, texts: str | Sequence[str]) -> Pairs:
    """Check and prepare pictures with their texts; one picture may stand alone, so may one text.

    One picture with several texts, or several pictures with one text, are paired with each.
    Raises LabError if neither the counts agree nor one of them is 1, and as `pixels` does.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    images = _as_batch(images)
    if not len(images) or not texts:
        raise LabError(
            f"expected pictures and texts, got {len(images)} pictures and {len(texts)} texts."
        )
    return as_pictures(clip, images).paired(texts)


def as_pictures(clip: Clip, images: Picture | Images) -> Pictures:
    """Check and prepare pictures, to ask about more than once. Raises LabError as `pixels` does."""
    pixels_N3HW = pixels(clip, _as_batch(images))
    return Pictures(clip, pixels_N3HW.to(clip.device), shown(clip, pixels_N3HW))


def tokenize_with_spans(
    clip: Clip, texts: Sequence[str]
) -> tuple[torch.Tensor, list[tuple[tuple[int, int], ...]], list[slice], list[int]]:
    """Token ids [B, T], the spans and the positions of the tokens read, and how many were not.

    T is the longest text's length; the first position holds the start token.
    """
    tokens = clip.tokenize(texts)
    longest = int(tokens.lengths_B.max())
    spans, positions, unread = [], [], []
    for text, length in zip(texts, tokens.lengths_B.tolist(), strict=True):
        all_spans = clip.tokenizer.tokenize(text).spans
        read = length - 2
        spans.append(tuple(map(tuple, all_spans[:read])))
        positions.append(slice(1, 1 + read))
        unread.append(len(all_spans) - read)
    return tokens.ids_BT[:, :longest], spans, positions, unread


def shown(clip: Clip, pixels_B3HW: torch.Tensor) -> np.ndarray:
    """Preprocessed pictures for the eye again: uint8 [B, H, W, 3]."""
    mean_311 = torch.tensor(clip.image_mean).view(3, 1, 1)
    std_311 = torch.tensor(clip.image_std).view(3, 1, 1)
    values = pixels_B3HW.detach().cpu() * std_311 + mean_311
    return (values.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def _as_batch(images: Picture | Images) -> Images:
    """A single picture as a batch of one."""
    if isinstance(images, np.ndarray | torch.Tensor):
        return images[None] if images.ndim == 3 else images
    if isinstance(images, Sequence) and not isinstance(images, str):
        if images and all(isinstance(image, np.ndarray) for image in images):
            return np.stack(images) if len({i.shape for i in images}) == 1 else _pil(images)
        return images
    return [images]


def _pil(images: Sequence[np.ndarray]) -> list[Image.Image]:
    return [Image.fromarray(image) for image in images]
