"""Text towers without an image tower: transformers' text models, diffusers' text encoders.

Such a tower is no `Clip`, as nothing can be compared with its texts. It reads, it is stretched,
and it is written again; what diffusion models are conditioned on are its hidden states.

B batch, T tokens, D embedding, W width of the tower.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import open_clip
import transformers
from open_clip.transformer import TextTransformer

from longclip_lab.errors import LabError
from longclip_lab.models.clip import TextTower
from longclip_lab.models.filling import check_finite, fitting
from longclip_lab.models.formats.folders import CONFIG, clip_kind, read_json, read_weights
from longclip_lab.models.formats.hub import fetch, is_hub_id
from longclip_lab.models.formats.notes import positions_card
from longclip_lab.models.formats.tokenizer_files import warn_of_vocabulary
from longclip_lab.models.formats.transformers_config import quick_gelu, text_cfg
from longclip_lab.models.formats.transformers_in import fill_from, read_config, text_weights
from longclip_lab.text import get_tokenizer

if TYPE_CHECKING:
    pass

_PROJECTION = "text_projection"


def load_text_tower(path: str | os.PathLike[str], subfolder: str | None = None) -> TextTower:
    """A text tower from a folder of transformers or of a diffusers pipeline, in float32.

    `path` is a folder of `CLIPTextModel` or `CLIPTextModelWithProjection`, a `CLIPModel`'s, whose
    text side is taken, or a pipeline with `subfolder` "text_encoder" (the default) or
    "text_encoder_2"; or the id of one on the hub, where a pipeline's subfolder must be named.
    Without a projection the features are the states at the end token.

    Raises LabError for another model (such as T5), and missing files, shards or weights.
    """
    root = Path(path)
    if not root.is_dir():
        if not is_hub_id(os.fspath(path)):
            raise LabError(f"There is no folder {root}.")
        root = fetch(os.fspath(path), subfolder)
    if clip_kind(root) == "diffusers":
        subfolder = subfolder or "text_encoder"
    folder = root / subfolder if subfolder else root
    stored = read_json(folder / CONFIG)
    config = _text_config(stored, folder)
    weights = {n: t for n, t in read_weights(folder).items() if not _of_images(n, stored)}
    projected = f"{_PROJECTION}.weight" in weights
    if not projected and "WithProjection" in str(stored.get("architectures")):
        raise LabError(f"{folder} lacks {_PROJECTION}.weight, which its {CONFIG} promises.")
    dim = len(weights[f"{_PROJECTION}.weight"]) if projected else None
    with fitting(folder / CONFIG, "describes no text tower"):
        facts = text_cfg(config)
        quick = quick_gelu(config)
        model = _build(dim, facts, quick)
    fill_from(folder, model, lambda: text_weights(weights))
    beside = root / (subfolder or "").replace("text_encoder", "tokenizer")
    warn_of_vocabulary(beside)
    name = root.resolve().name if Path(path).is_dir() else os.fspath(path)
    name += f"/{subfolder}" if subfolder else ""
    card = {
        "architecture": "TextTransformer",
        "model_cfg": {
            "embed_dim": dim or config.hidden_size,
            "quick_gelu": quick,
            "text_cfg": facts,
        },
        "provenance": f"transformers CLIPTextModel {name}",
        "positions": positions_card(stored, config.max_position_embeddings),
        "pad_id": _pad_id(beside),
    }
    check_finite(model.float().state_dict(), name)
    return TextTower(model.eval(), get_tokenizer("clip"), name, card)


def _build(dim: int | None, facts: dict[str, Any], quick: bool) -> TextTransformer:
    facts = {**facts, "proj_type": "linear" if dim else "none"}
    return open_clip.model._build_text_tower(dim or facts["width"], facts, quick)


def _text_config(stored: dict[str, Any], folder: Path) -> transformers.CLIPTextConfig:
    """The config of the text side. Raises LabError for anything but CLIP's."""
    kind = stored.get("model_type")
    if kind == "clip":
        return read_config(transformers.CLIPConfig, stored, folder).text_config
    if kind != "clip_text_model":
        raise LabError(f"{folder} holds a '{kind}', not the text tower of a CLIP.")
    return read_config(transformers.CLIPTextConfig, stored, folder)


def _of_images(name: str, stored: dict[str, Any]) -> bool:
    """Weights of a `CLIPModel` that its text side does not need."""
    return stored["model_type"] == "clip" and name.startswith(("vision_model.", "visual_", "logit"))


def _pad_id(folder: Path) -> int:
    """With what a tokenizer's folder fills up texts: id 0, unless it names the end token."""
    for path in (folder / "special_tokens_map.json", folder / "tokenizer_config.json"):
        if path.is_file():
            pad = read_json(path).get("pad_token")
            content = pad.get("content") if isinstance(pad, dict) else pad
            if content is not None:
                return get_tokenizer("clip").end_id if content == "<|endoftext|>" else 0
    return 0
