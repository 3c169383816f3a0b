"""Checkpoint files of DeCLIP, read into open_clip modules.

The release saves whole training states: {"model": ..., "optimizer": ...} with `module.` before
every name. The image tower has OpenAI's names; the text tower sits under `encode_text.`, its
projection is a linear layer with a bias, and its tokenizer has one token more than OpenAI's:
<|mask|>, just before the start and end tokens, for the masked language modelling of the training.

Followed: Sense-GVT/DeCLIP, prototype/model/{clip,declip}.py, prototype/model/text_encoder/
text_transformer.py, prototype/model/image_encoder/{base,visual}_transformer.py,
prototype/model/utils/text_utils/simple_tokenizer.py, prototype/data/imagenet_dataloader.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from longclip_lab.errors import LabError
from longclip_lab.models.build import assemble, build_model, preprocess_card
from longclip_lab.models.checkpoint import (
    count_layers,
    fill,
    fitting,
    leave_out,
    read_state_dict,
    renamed,
)
from longclip_lab.models.clip import Clip
from longclip_lab.text import get_tokenizer

MASK_ROW = 49406
"""The row of the token embedding that is <|mask|>; start and end follow it."""
HEADS = frozenset(
    f"{head}{of}"
    for head in ("projector", "predictor")
    for of in ("", "_d", "_text", "_nn_text")
) | {"text_label_predictor", "nn_replacer_img", "nn_replacer_text"}  # fmt: skip
"""What only the training uses: the heads of SimSiam and of masked words, the memory banks."""
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_TEXT = "encode_text."


def is_declip(state_dict: Mapping[str, torch.Tensor]) -> bool:
    """True for a state dict of DeCLIP's layout: its repository's CLIP, SLIP and DeCLIP share it."""
    return f"{_TEXT}token_embedding.weight" in state_dict and any(
        name.startswith("visual.") for name in state_dict
    )


def declip_config(weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The open_clip `model_cfg` of a DeCLIP state dict, read from the shapes alone.

    Raises KeyError if a weight is missing that every such ViT has.
    """
    patch_rows = weights["visual.conv1.weight"]
    grid = round((len(weights["visual.positional_embedding"]) - 1) ** 0.5)
    text_width = len(weights[f"{_TEXT}ln_final.weight"])
    rows = len(weights[f"{_TEXT}token_embedding.weight"])
    return {
        "embed_dim": weights["visual.proj"].shape[1],
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": grid * patch_rows.shape[-1],
            "layers": count_layers(weights, "visual.transformer"),
            "width": patch_rows.shape[0],
            "patch_size": patch_rows.shape[-1],
        },
        "text_cfg": {
            "context_length": len(weights[f"{_TEXT}positional_embedding"]),
            "vocab_size": min(rows, get_tokenizer("clip").vocab_size),
            "width": text_width,
            "heads": max(text_width // 64, 1),
            "layers": count_layers(weights, f"{_TEXT}transformer"),
            "proj_bias": True,
        },
    }


def declip_weights(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """DeCLIP's weights under open_clip's names, without the heads and without <|mask|>.

    With that row gone, start and end have the ids that OpenAI's tokenizer gives them.
    """
    plain = renamed(weights, lambda name: name.removeprefix(_TEXT))
    words = plain["token_embedding.weight"]
    if len(words) == get_tokenizer("clip").vocab_size + 1:
        without = torch.cat([words[:MASK_ROW], words[MASK_ROW + 1 :]])
        plain["token_embedding.weight"] = without
    if "logit_scale" in plain:
        plain["logit_scale"] = plain["logit_scale"].reshape(())
    return plain


def load_declip(
    path: str | os.PathLike[str], weights: dict[str, torch.Tensor] | None = None
) -> Clip:
    """A checkpoint file in the layout of DeCLIP's code as a `Clip`.

    What only the training used is left out; `card["left_out"]` counts its tensors by name.
    Pictures are normalised with ImageNet's mean and deviation. They are resized to the tower's
    size at once; DeCLIP's own evaluation resizes to 256 and crops 224 out of that.

    `weights` spares reading the file again. Raises LabError as `read_state_dict` does, for a
    ResNet or a BERT instead of the two transformers, and for weights that do not fit.
    """
    path = Path(path)
    weights = read_state_dict(path) if weights is None else weights
    if not is_declip(weights):
        raise LabError(
            f"{path} is not a DeCLIP checkpoint: it has no 'encode_text.token_embedding'."
        )
    if "visual.conv1.weight" not in weights or "visual.class_embedding" not in weights:
        raise LabError(
            f"{path} is a DeCLIP checkpoint with a ResNet as its image tower; only its vision "
            "transformers (ViT-B/32, ViT-B/16) can be opened."
        )
    weights, left_out = leave_out(weights, HEADS)
    with fitting(path, "does not fit DeCLIP's two transformers"):
        model_cfg = declip_config(weights)
        model = build_model(model_cfg)
        fill(model, declip_weights(weights))
    return assemble(
        model,
        model_cfg,
        get_tokenizer("clip"),
        preprocess_card(model, interpolation="bilinear", **IMAGENET),
        path.name.split(".")[0],
        provenance=f"DeCLIP checkpoint file {path.name}",
        trained_on="not stated in the file",
        left_out=left_out,
        released_preprocess="shorter side to 256, the middle 224 x 224",
    )
