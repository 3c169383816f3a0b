"""Folders of transformers' `CLIPModel`, read into open_clip modules."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
import transformers

from longclip_lab.errors import LabError
from longclip_lab.models.assembly import assemble, build_model, preprocess_card
from longclip_lab.models.clip import Clip
from longclip_lab.models.filling import fill, fitting
from longclip_lab.models.formats import names
from longclip_lab.models.formats.folders import CONFIG, clip_kind, read_json, read_weights
from longclip_lab.models.formats.names import Weights
from longclip_lab.models.formats.notes import positions_card
from longclip_lab.models.formats.preprocessing import read_preprocessing
from longclip_lab.models.formats.tokenizer_files import warn_of_vocabulary
from longclip_lab.models.formats.transformers_config import quick_gelu, text_cfg, vision_cfg
from longclip_lab.text import get_tokenizer


def load_transformers(folder: str | os.PathLike[str], name: str | None = None) -> Clip:
    """A folder of transformers' `CLIPModel` as a `Clip`.

    Texts may have any number of positions. They are read off at the largest id where the config
    has the eos_token_id 2 of old, and where the named end token is the largest id anyway;
    otherwise at the first end token that it names.

    Raises LabError for another kind of model (a text or an image tower alone is no `Clip`),
    missing files, shards or weights, and an activation that open_clip does not have.
    """
    folder = Path(folder)
    kind = clip_kind(folder)
    if kind != "clip":
        raise LabError(_no_clip(folder, kind))
    stored = read_json(folder / CONFIG)
    config = read_config(transformers.CLIPConfig, stored, folder)
    text, image = config.text_config, config.vision_config
    with fitting(folder / CONFIG, "describes no CLIP"):
        model_cfg = {
            "embed_dim": config.projection_dim,
            "quick_gelu": quick_gelu(text, image),
            "vision_cfg": vision_cfg(image),
            "text_cfg": text_cfg(text),
        }
        model = build_model(model_cfg)
    fill_from(folder, model, lambda: _weights(read_weights(folder)))
    warn_of_vocabulary(folder)
    with fitting(folder, "holds a preprocessing that cannot be read"):
        clip = assemble(
            model,
            model_cfg,
            get_tokenizer("clip"),
            preprocess_card(model, **read_preprocessing(folder, image.image_size)),
            name or folder.resolve().name,
            provenance=f"transformers CLIPModel {name or folder.resolve().name}",
            trained_on="not stated in the folder",
        )
    clip.card["positions"] = positions_card(stored, clip.context_length)
    return clip


def read_config(kind: type, stored: dict[str, Any], folder: Path) -> Any:
    """A config of transformers. Raises LabError for one that it does not accept."""
    try:
        return kind(**stored)
    except Exception as error:  # its checks raise whatever they like
        reason = shorten(str(error), 300)
        raise LabError(f"{folder / CONFIG} is no {kind.__name__}: {reason}") from error


def fill_from(folder: Path, model: torch.nn.Module, weights: Callable[[], Weights]) -> None:
    """Load what `weights()` returns, all of it and nothing else.

    Raises LabError naming the folder for weights that are missing, too many, no floating point
    numbers or of another shape.
    """
    with fitting(folder, f"holds weights that do not fit its {CONFIG}"):
        fill(model, weights())


def text_weights(weights: Weights) -> Weights:
    """The text tower's weights under open_clip's names, from a `CLIPModel` or a text model.

    The projection comes along, if there is one.
    """
    prefix = "text_model." if any(name.startswith("text_model.") for name in weights) else ""
    others = [n for n in weights if not n.startswith((prefix, "text_projection.weight"))]
    if others := [name for name in others if not name.endswith("position_ids")]:
        raise LabError(f"CLIP's text tower has no place for the weight '{others[0]}'.")
    inner = {
        name: tensor
        for name, tensor in names.split(weights, prefix).items()
        if not name.endswith("position_ids") and name != "text_projection.weight"
    }
    ours = names.from_transformers(inner, names.TEXT)
    if "text_projection.weight" in weights:
        ours["text_projection"] = weights["text_projection.weight"].T
    return ours


def _weights(weights: Weights) -> Weights:
    """The weights of a `CLIPModel` under open_clip's names."""
    rest = {
        name: tensor
        for name, tensor in weights.items()
        if not name.startswith(("text_model.", "vision_model."))
        and name not in ("text_projection.weight", "visual_projection.weight", "logit_scale")
    }
    if rest:
        raise LabError(f"CLIP has no place for the weight '{next(iter(rest))}'.")
    image = {
        name: tensor
        for name, tensor in names.split(weights, "vision_model.").items()
        if not name.endswith("position_ids")
    }
    image = names.from_transformers(image, names.IMAGE)
    image["proj"] = weights["visual_projection.weight"].T
    text = {name: t for name, t in weights.items() if not name.startswith("vis")}
    text.pop("logit_scale")
    return {
        **text_weights(text),
        **names.prefixed(image, "visual."),
        "logit_scale": weights["logit_scale"].reshape(()),
    }


def _no_clip(folder: Path, kind: str | None) -> str:
    if kind in ("clip_text_model", "diffusers"):
        what = "text encoders of diffusers" if kind == "diffusers" else "a text tower alone"
        return (
            f"{folder} holds {what}: without an image tower it is no CLIP. "
            "Open it with longclip_lab.models.load_text_tower(FOLDER)."
        )
    return f"{folder} holds no CLIPModel of transformers, but {kind or 'something else'}."
