"""ALIGN and BLIP from folders of the transformers library.

B batch, T tokens, D embedding, H W picture.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
import transformers
from PIL import Image
from transformers.utils import logging

from longclip_lab.errors import LabError
from longclip_lab.files import read_json, read_text
from longclip_lab.models.adapters.adapter import Adapter, EmbeddingModel, adapt
from longclip_lab.models.filling import check_floats, fitting
from longclip_lab.models.formats.folders import read_weights

ALIGN_TOKENS, BLIP_TOKENS = 64, 35
"""To how many tokens the released evaluations cut a text: ALIGN's processor, BLIP's retrieval."""


class Align(EmbeddingModel):
    """transformers' `AlignModel`: EfficientNet and BERT."""

    kind = "ALIGN"

    def __init__(self, model: transformers.AlignModel):
        text = model.config.text_config
        positions, words = text.max_position_embeddings, text.vocab_size
        super().__init__(model.config.projection_dim, positions, words, text.pad_token_id)
        self.align = model

    def image_features(self, pixels_B3HW: torch.Tensor) -> torch.Tensor:
        return self.align.get_image_features(pixel_values=pixels_B3HW).pooler_output

    @property
    def position_table(self) -> torch.Tensor:
        """The learned positions of the BERT."""
        return self.align.text_model.embeddings.position_embeddings.weight

    def text_features(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        features = self.align.get_text_features(input_ids=ids_BT, attention_mask=mask_BT.long())
        return features.pooler_output


class Blip(EmbeddingModel):
    """transformers' `BlipForImageTextRetrieval`, its head for contrast (ITC)."""

    kind = "BLIP"

    def __init__(self, model: transformers.BlipForImageTextRetrieval):
        text = model.config.text_config
        positions, words = text.max_position_embeddings, text.vocab_size
        super().__init__(model.vision_proj.out_features, positions, words, text.pad_token_id)
        self.blip = model

    def image_features(self, pixels_B3HW: torch.Tensor) -> torch.Tensor:
        states = self.blip.vision_model(pixel_values=pixels_B3HW).last_hidden_state
        return self.blip.vision_proj(states[:, 0])

    @property
    def position_table(self) -> torch.Tensor:
        """The learned positions of the BERT."""
        return self.blip.text_encoder.embeddings.position_embeddings.weight

    def text_features(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        encode = self.blip.text_encoder
        states = encode(input_ids=ids_BT, attention_mask=mask_BT.long()).last_hidden_state
        return self.blip.text_proj(states[:, 0])


def load_align(folder: str | os.PathLike[str], context_length: int | None = None) -> Adapter:
    """A folder of transformers' ALIGN (config, weights, preprocessor_config.json).

    Texts may be as long as the BERT has positions (512); the released processor cuts at
    `card["released_tokens"]`.

    Raises LabError for a missing or damaged file, missing weights and another vocabulary.
    """
    model = _from_pretrained(transformers.AlignModel, Path(folder))
    return _adapted(Align(model), Path(folder), context_length, ALIGN_TOKENS)


def load_blip_folder(folder: str | os.PathLike[str], context_length: int | None = None) -> Adapter:
    """A folder of transformers' BLIP for retrieval, as `load_align` loads one of ALIGN.

    Raises LabError as `load_align` does, also for a BLIP without the two heads (for captions).
    """
    model = _from_pretrained(transformers.BlipForImageTextRetrieval, Path(folder))
    return _adapted(Blip(model), Path(folder), context_length, BLIP_TOKENS)


OPENERS: dict[str, Callable[[str | os.PathLike[str]], Adapter]] = {
    "align": load_align,
    "blip": load_blip_folder,
}
"""By the `model_type` of a folder's config.json."""


def model_type(folder: Path) -> str | None:
    """What the config.json of a folder calls its model; None without one that can be read."""
    try:
        config = read_json(folder / "config.json")
    except LabError:
        return None
    kind = config.get("model_type") if isinstance(config, dict) else None
    return kind if isinstance(kind, str) else None


def _from_pretrained(cls: type[transformers.PreTrainedModel], folder: Path) -> Any:
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with fitting(folder, f"could not be read as transformers' {cls.__name__}"):
            model, report = cls.from_pretrained(
                folder, local_files_only=True, output_loading_info=True, dtype=torch.float32
            )
            own = model.state_dict()  # transformers takes whatever numbers it finds
            stored = read_weights(folder).items()
            check_floats({n: t for n, t in stored if n in own and own[n].is_floating_point()})
    finally:
        if shown:
            logging.enable_progress_bar()
    missing = sorted(report["missing_keys"])
    if missing:
        raise LabError(
            f"{folder} has no weights for {len(missing)} parts of {cls.__name__}, such as "
            f"{missing[0]}: it was saved from another model."
        )
    return model


def _adapted(
    model: EmbeddingModel, folder: Path, context_length: int | None, released_tokens: int
) -> Adapter:
    _check_vocabulary(folder)
    transform, card = _preprocess(folder)
    return adapt(
        model,
        card,
        folder.name,
        context_length=context_length,
        transform=transform,
        provenance=f"transformers folder {folder.name} ({model.kind})",
        trained_on="see its page",
        released_tokens=released_tokens,
    )


def _preprocess(folder: Path) -> tuple[Callable[[Image.Image], torch.Tensor], dict[str, Any]]:
    """The folder's own image processor, and a card of what it does.

    Mean and deviation are read off from a black and a white picture, as processors have several
    ways to say them (ALIGN's rescales to -1 .. 1 and normalises nothing). "crops_own_size" says
    that even pictures of the model's size are resized and cropped.
    """
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # its checks raise whatever they like
        raise LabError(
            f"{folder} has no preprocessor_config.json that can be read: save the model's "
            f"processor there too. ({shorten(str(error), 200)})"
        ) from error

    def transform(image: Image.Image) -> torch.Tensor:
        return processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"][0]

    black_3HW, white_3HW = (transform(Image.new("RGB", (64, 64), c)) for c in ("black", "white"))
    std_3 = 1 / (white_3HW - black_3HW).mean(dim=(1, 2))
    mean_3 = -black_3HW.mean(dim=(1, 2)) * std_3
    size = list(black_3HW.shape[1:])
    ramp_HW = torch.linspace(0, 255, size[1]).round().to(torch.uint8).expand(size)
    seen_3HW = transform(Image.fromarray(ramp_HW.numpy()))
    as_it_is_3HW = (ramp_HW / 255 - mean_3.view(3, 1, 1)) / std_3.view(3, 1, 1)
    return transform, {
        "crops_own_size": not torch.allclose(seen_3HW, as_it_is_3HW, atol=1e-3),
        "size": size[0] if size[0] == size[1] else size,
        "mean": mean_3.tolist(),
        "std": std_3.tolist(),
        "resize_mode": "squash",
    }


def _check_vocabulary(folder: Path) -> None:
    """The lab reads with its own bert-base-uncased: a folder that has another one is refused."""
    source = files("longclip_lab.text") / "vocabularies" / "bert-base-uncased.txt"
    ours = source.read_text(encoding="utf-8").splitlines()
    theirs = _words(folder)
    if theirs is not None and theirs[: len(ours)] != ours:
        raise LabError(
            f"The tokenizer in {folder} has not the words of bert-base-uncased, which the lab "
            "would read its texts with."
        )


def _words(folder: Path) -> list[str] | None:
    """The vocabulary of the folder's tokenizer in order; None if there is no tokenizer in it."""
    if (folder / "vocab.txt").is_file():
        return read_text(folder / "vocab.txt").split("\n")
    if not (folder / "tokenizer.json").is_file():
        return None
    try:
        vocabulary = read_json(folder / "tokenizer.json")["model"]["vocab"]
        return sorted(vocabulary, key=vocabulary.__getitem__)
    except (KeyError, TypeError, AttributeError) as error:
        raise LabError(f"{folder / 'tokenizer.json'} is no tokenizer that can be read.") from error
