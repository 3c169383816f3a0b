"""Features of many texts and images: pooled, or token by token; fingerprints of image sets.

N images or texts, M texts, B batch, P image tokens, T text tokens, D embedding, H W image.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

from longclip_lab.errors import COUNT, LabError, NotFiniteError
from longclip_lab.files import readable
from longclip_lab.images import READING, ImageError, as_rgb, open_image
from longclip_lab.models.clip import Clip
from longclip_lab.models.towers import (
    can_pack,
    encode_image_tokens,
    encode_packed,
    encode_text_tokens,
)

# --- Features of many texts and many images ---

Images = Sequence[Image.Image | str | os.PathLike[str]] | np.ndarray | torch.Tensor
"""PIL pictures or paths, read as `longclip_lab.images` says, or uint8 values [N, H, W, 3]."""


@dataclass
class TextFeatures:
    """Features of texts in the order they were given, with what was read of each.

    `lengths_N` counts the tokens that the model read, start and end included; `num_truncated`
    counts the texts that were longer than its context.
    """

    features_ND: torch.Tensor
    lengths_N: torch.Tensor
    num_truncated: int


@torch.no_grad()
def encode_texts(
    clip: Clip, texts: Sequence[str], batch_size: int = 64, progress: bool = False
) -> TextFeatures:
    """Features of `texts` [N, D], float32 on the CPU, not normalised.

    The features are those of the padded texts, but little or nothing is spent on padding: texts
    are sorted by length and every batch is trimmed to its longest; on the CPU the texts of a batch
    are packed end to end where the tower allows it.

    Raises LabError for no texts, for a text that is not a string, and for features that are not
    finite.
    """
    texts = checked_texts(texts)
    COUNT.check("batch_size", batch_size)
    tokens = clip.tokenize(texts)
    # Longest first: a batch that does not fit into memory fails at once, not after an hour.
    order_N = torch.argsort(tokens.lengths_B, descending=True, stable=True)
    # On a GPU many small attentions cost more than the padding they save.
    packed = clip.device.type == "cpu" and can_pack(clip.model)
    encode = partial(encode_packed, clip.model) if packed else clip.encode_text
    parts = []
    with evaluating(clip.model), tqdm(total=len(texts), unit="text", disable=not progress) as bar:
        for rows_B in order_N.split(batch_size):
            # Features leave the device at once: of a million texts only one batch lies there.
            parts.append(encode(tokens.ids_BT[rows_B]).float().cpu())
            bar.update(len(rows_B))
    sorted_ND = torch.cat(parts)
    features_ND = torch.empty_like(sorted_ND)
    # Back into the order in which the texts were given.
    features_ND[order_N] = sorted_ND
    check_finite(features_ND, "texts", clip.name)
    return TextFeatures(features_ND, tokens.lengths_B, tokens.num_truncated)


def checked_texts(texts: str | Sequence[str]) -> list[str]:
    """Texts as a list. Raises LabError for none, and for a text that is not a string."""
    texts = [texts] if isinstance(texts, str) else list(texts)
    if not texts:
        raise LabError("Expected at least one text, got none.")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise LabError(f"Text {index} of {len(texts)} is not a string but {text!r}.")
    return texts


@torch.no_grad()
def encode_images(
    clip: Clip, images: Images, batch_size: int = 64, progress: bool = False
) -> torch.Tensor:
    """Features of `images` [N, D], float32 on the CPU, not normalised.

    Raises LabError as `pixels` does, and for features that are not finite.
    """
    return _encode_images(clip, images, batch_size, progress, clip.encode_image)


def _encode_images(
    clip: Clip,
    images: Images,
    batch_size: int,
    progress: bool,
    encode: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """What `encode` makes of `images`, batch by batch, float32 on the CPU."""
    if len(images) == 0:
        raise LabError("Expected at least one picture, got none.")
    COUNT.check("batch_size", batch_size)
    parts = []
    with (
        evaluating(clip.model),
        tqdm(total=len(images), unit="image", disable=not progress) as bar,
    ):
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            features = encode(pixels(clip, batch).to(clip.device)).float().cpu()
            # Batch by batch, so that an overflow is told after a minute and not after the last
            # picture.
            parts.append(check_finite(features, "pictures", clip.name))
            bar.update(len(batch))
    return torch.cat(parts)


def check_finite(features: torch.Tensor, what: str, model: str) -> torch.Tensor:
    """`features` [N, ...] that `model` made of N `what` ("texts"), if all of them are finite.

    Whatever makes features passes them through here before anything is compared or stored.
    Raises NotFiniteError with the number of those that are not.
    """
    bad = len(features) - int(torch.isfinite(features).flatten(1).all(dim=1).sum())
    if bad:
        raise NotFiniteError(
            f"{model} gives features that are no finite numbers for {bad} of {len(features)} "
            f"{what}. Its weights are not finite, or overflow their precision: load a checkpoint "
            "from before the training diverged, or use float32."
        )
    return features


def pixels(clip: Clip, images: Images) -> torch.Tensor:
    """Pictures as the image tower takes them: float32 [B, 3, H, W], normalised, on the CPU.

    `images` are PIL pictures or paths of picture files, or uint8 values [B, H, W, 3]. Both kinds of
    pictures are turned upright as the EXIF that they have says, and converted to 8-bit RGB, by the
    rules of `longclip_lab.images`. Values of the model's own size are only normalised; everything
    else goes through `clip.preprocess`.

    Raises LabError for a file that is missing or no picture, and for values of another form.
    """
    if isinstance(images, np.ndarray | torch.Tensor):
        values_BHW3 = _checked_values(images)
        fits = values_BHW3.shape[1:3] == (clip.image_size, clip.image_size)
        if fits and not clip.card.get("preprocess", {}).get("crops_own_size"):
            return _normalised(clip, values_BHW3)
        images = [Image.fromarray(values_HW3.numpy()) for values_HW3 in values_BHW3]
    return torch.stack([clip.preprocess(_picture(image)) for image in images])


def _checked_values(images: np.ndarray | torch.Tensor) -> torch.Tensor:
    values = torch.as_tensor(images).cpu()
    if values.dtype != torch.uint8 or values.ndim != 4 or values.shape[-1] != 3:
        raise LabError(
            "Expected pictures as uint8 values of the shape [N, H, W, 3], "
            f"got {values.dtype} of {list(values.shape)}."
        )
    return values


def _normalised(clip: Clip, values_BHW3: torch.Tensor) -> torch.Tensor:
    mean_311 = torch.tensor(clip.image_mean).view(3, 1, 1)
    std_311 = torch.tensor(clip.image_std).view(3, 1, 1)
    # In place, on one copy: the pixels of a batch are the largest thing on the CPU here.
    values_B3HW = values_BHW3.permute(0, 3, 1, 2).contiguous().float()
    return values_B3HW.div_(255).sub_(mean_311).div_(std_311)


def _picture(image: Image.Image | str | os.PathLike[str]) -> Image.Image:
    """A loaded picture; the file is closed again at once."""
    if isinstance(image, str | os.PathLike):
        return open_image(image)
    if not isinstance(image, Image.Image):
        raise LabError(f"Expected a PIL picture or the path of one, got {type(image).__name__}.")
    try:
        return as_rgb(image)
    except ImageError as error:
        raise LabError(f"{image!r} is not a picture that can be read: {error}.") from None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block, whatever the mode was outside: no dropout."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


# --- Every token of many texts and images, for models that compare tokens (FILIP) ---


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
    # What stands behind a text is no token and may be anything.
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
    encode = partial(encode_image_tokens, clip.model)
    return _encode_images(clip, images, batch_size, progress, encode)


# --- Fingerprints of image sets ---


def how_read(images: Images) -> str | None:
    """How the pixels of pictures are read (`images.READING`), for the identity of what is made of
    them; None for uint8 values, which are taken as they are."""
    return None if isinstance(images, np.ndarray | torch.Tensor) else READING


def images_hash(images: Images, contents: bool = False) -> str:
    """SHA-256 over the values of pictures, or over the names and sizes of their files.

    With `contents` the files are read, so that one that was changed in place is another picture.
    What is said of the pictures does not count: one store serves every captioner.
    Raises LabError for a file that is missing.
    """
    whole = hashlib.sha256()
    if isinstance(images, np.ndarray):
        whole.update(str(images.shape).encode())
        whole.update(np.ascontiguousarray(images).data)
        return f"sha256:{whole.hexdigest()}"
    for image in images:
        if not isinstance(image, str | Path):
            raise LabError("Features are stored for picture files or uint8 values only.")
        path = Path(image)
        try:
            said = (
                hashlib.sha256(path.read_bytes()).hexdigest() if contents else path.stat().st_size
            )
        except (OSError, ValueError):  # missing, or no name that a file can have
            raise LabError(f"There is no picture {readable(image)}.") from None
        whole.update(f"{readable(path.name)}\0{said}\n".encode())
    return f"sha256:{whole.hexdigest()}"
