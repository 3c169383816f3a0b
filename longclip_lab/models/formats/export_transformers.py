"""A `Clip` or a text tower as a folder of transformers, or as a text encoder for diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from open_clip.transformer import TextTransformer
from safetensors.torch import save_file
from torch import nn

from longclip_lab.errors import LabError
from longclip_lab.models.clip import Clip, TextTower
from longclip_lab.models.folder import stored
from longclip_lab.models.formats import names
from longclip_lab.models.formats.describe import describe_image, describe_text, end_id
from longclip_lab.models.formats.notes import note
from longclip_lab.models.formats.preprocessing import FILE, preprocessor_config
from longclip_lab.models.formats.tokenizer_files import (
    check_tokenizer,
    write_json,
    write_tokenizer,
)
from longclip_lab.models.formats.transformers_config import text_config, vision_config
from longclip_lab.models.text_tower import text_tower

WEIGHTS, CONFIG = "model.safetensors", "config.json"
_OLD_SCALE = 2.6592


def write_transformers(source: Clip | TextTower, folder: Path, dtype: torch.dtype) -> None:
    """`CLIPModel` with processor and tokenizer; of a text tower alone `CLIPTextModel`.

    Raises LabError, without a word about the model's name, for what transformers cannot hold.
    """
    if isinstance(source, TextTower):
        _write_text(source, folder, dtype)
        write_tokenizer(folder, source.tokenizer, source.context_length)
        return
    model = source.model
    if getattr(model, "logit_bias", None) is not None:
        raise LabError("its logits have a bias, as SigLIP's, which CLIPModel has not")
    image, text = describe_image(model.visual), _text_config(source)
    check_tokenizer(source.tokenizer, source.vocab_size)
    preprocessor = preprocessor_config(source.card["preprocess"])
    visual = names.split(_weights(model), "visual.")
    weights = _text_weights(model) | {"logit_scale": model.logit_scale.detach().reshape(())}
    weights["visual_projection.weight"] = visual.pop("proj").T
    weights |= names.prefixed(names.to_transformers(visual, names.IMAGE), "vision_model.")
    patch, dim = model.visual.patch_size[0], source.embed_dim
    if "text_projection.weight" not in weights:
        raise LabError("its text tower has no projection, which CLIPModel must have")
    config = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": dim,
        "logit_scale_init_value": _OLD_SCALE,
        "text_config": text,
        "vision_config": vision_config(image, source.image_size, patch, dim),
    }
    _write(folder, config, weights, source, dtype)
    write_json(folder / FILE, preprocessor)
    write_tokenizer(folder, source.tokenizer, source.context_length)


def write_diffusers(source: Clip | TextTower, folder: Path, dtype: torch.dtype) -> None:
    """text_encoder/ and tokenizer/ as in a pipeline of diffusers; the image tower is not needed.

    Raises LabError as `write_transformers` does.
    """
    _write_text(source, folder / "text_encoder", dtype)
    write_tokenizer(folder / "tokenizer", source.tokenizer, source.context_length)


def _write_text(source: Clip | TextTower, folder: Path, dtype: torch.dtype) -> None:
    """`CLIPTextModelWithProjection`, which `CLIPTextModel` reads too; the latter without one."""
    config, weights = _text_config(source), _text_weights(source.model)
    check_tokenizer(source.tokenizer, source.vocab_size)
    projected = "text_projection.weight" in weights
    kind = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
    _write(folder, {"architectures": [kind], **config}, weights, source, dtype)


def _text_config(source: Clip | TextTower) -> dict[str, Any]:
    model = source.model
    blocks = describe_text(model)
    length, dim = source.context_length, source.embed_dim
    return text_config(blocks, source.vocab_size, length, end_id(model), dim)


def _text_weights(model: nn.Module) -> names.Weights:
    weights = _weights(text_tower(model))
    if not isinstance(model, TextTransformer) and text_tower(model) is model:
        weights = {
            name: tensor
            for name, tensor in weights.items()
            if not name.startswith("visual.") and name not in ("logit_scale", "logit_bias")
        }
    projection = weights.pop("text_projection", None)
    renamed = names.prefixed(names.to_transformers(weights, names.TEXT), "text_model.")
    if projection is not None:
        renamed["text_projection.weight"] = projection.T
    return renamed


def _weights(model: nn.Module) -> names.Weights:
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def _write(
    folder: Path,
    config: dict[str, Any],
    weights: names.Weights,
    source: Clip | TextTower,
    dtype: torch.dtype,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: stored(name, tensor, dtype) for name, tensor in weights.items()}
    # Versions of transformers before 5 refuse safetensors that do not name a format.
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})
    precision = str(dtype).removeprefix("torch.")
    noted = note(source.name, source.card)
    write_json(folder / CONFIG, {**config, "torch_dtype": precision, **noted})
