"""Models of transformers and text encoders of diffusers, from a folder or the hub.

Such a tower is no `Clip`, as nothing can be compared with its texts. It reads, it is stretched,
and it is written again; what diffusion models are conditioned on are its hidden states.

B batch, T tokens, D embedding, W width of the tower.
"""

from __future__ import annotations

import os
import ssl
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any
from urllib.error import HTTPError

import huggingface_hub
import open_clip
import transformers
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from open_clip.transformer import TextTransformer

from longclip_lab.errors import LabError
from longclip_lab.models.build import assemble, build_model, preprocess_card
from longclip_lab.models.checkpoint import check_finite, fill, fitting
from longclip_lab.models.clip import Clip, TextTower
from longclip_lab.models.formats import hf_config
from longclip_lab.models.formats.hf_config import (
    CONFIG,
    Weights,
    clip_kind,
    quick_gelu,
    read_object,
    read_preprocessing,
    read_weights,
    text_cfg,
    vision_cfg,
    warn_of_vocabulary,
)
from longclip_lab.models.formats.openai import positions_card
from longclip_lab.text import get_tokenizer

# --- Models of transformers and diffusers on the hub, fetched into its cache as folders ---

_ABOUT = ("*.json", "*merges.txt")
_PATIENCE = 5.0  # seconds
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")


def is_hub_id(name: str) -> bool:
    """True for "OWNER/NAME"."""
    return name.count("/") == 1 and all(name.split("/")) and not name.startswith((".", "~"))


@contextmanager
def answering_at_once(name: str) -> Iterator[None]:
    """Inside the block the hub counts as offline if it does not answer now.

    Otherwise every request is repeated for half a minute before it fails. What is in the hub's
    cache loads all the same. Raises LabError, in place of the one raised in the block, that says
    why the hub was not asked. HF_HUB_OFFLINE is left as it is set.
    """
    reason = None if constants.HF_HUB_OFFLINE else _unreachable(constants.ENDPOINT)
    if reason is None:
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    except LabError as error:
        raise LabError(
            f"'{name}' is no file or folder here and not in the hub's cache, and the hub "
            f"({constants.ENDPOINT}) cannot be reached: {reason}. Give a path, or a bundled model."
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = False


def _unreachable(address: str) -> str | None:
    """Why there is no connection, through the proxies that are set; None if there is one."""
    request = urllib.request.Request(address, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_PATIENCE).close()
    except HTTPError:
        return None  # it answered
    except OSError as error:
        cause = getattr(error, "reason", error)
        # The hub's own client may trust other authorities.
        return None if isinstance(cause, ssl.SSLError) else str(cause)
    return None


def fetch(name: str, subfolder: str | None = None) -> Path:
    """The folder of "OWNER/NAME" in the hub's cache: its JSON, and the weights of `subfolder`.

    safetensors, or the older files where there are none. What is in the cache already needs no
    network. Raises LabError for what cannot be fetched.
    """
    inside = f"{subfolder}/" if subfolder else ""
    for pattern in _WEIGHTS:
        folder = _fetched(name, [*_ABOUT, f"{inside}{pattern}"])
        if any((folder / inside).glob(pattern)):
            break
    return folder


def _fetched(name: str, patterns: list[str]) -> Path:
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:
        raise LabError(
            f"'{name}' is no folder here, and could not be fetched from the hub: "
            f"{shorten(str(error), 300)}"
        ) from error


# --- Folders of transformers' `CLIPModel`, read into open_clip modules ---


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
    stored = read_object(folder / CONFIG)
    config = read_config(transformers.CLIPConfig, stored, folder)
    text, image = config.text_config, config.vision_config
    with fitting(folder / CONFIG, "describes no CLIP"):
        model_cfg = {
            "embed_dim": config.projection_dim,
            "quick_gelu": quick_gelu(text, image),
            "vision_cfg": vision_cfg(image),
            "text_cfg": text_cfg(text),
        }
    weights = read_weights(folder)
    with fitting(folder / CONFIG, "describes no CLIP"):
        model = build_model(model_cfg, sum(tensor.nbytes for tensor in weights.values()))
    with fitting(folder, f"holds weights that do not fit its {CONFIG}"):
        fill(model, _clip_weights(weights))
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
        for name, tensor in hf_config.split(weights, prefix).items()
        if not name.endswith("position_ids") and name != "text_projection.weight"
    }
    ours = hf_config.from_transformers(inner, hf_config.TEXT)
    if "text_projection.weight" in weights:
        ours["text_projection"] = weights["text_projection.weight"].T
    return ours


def _clip_weights(weights: Weights) -> Weights:
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
        for name, tensor in hf_config.split(weights, "vision_model.").items()
        if not name.endswith("position_ids")
    }
    image = hf_config.from_transformers(image, hf_config.IMAGE)
    image["proj"] = weights["visual_projection.weight"].T
    text = {name: t for name, t in weights.items() if not name.startswith("vis")}
    text.pop("logit_scale")
    return {
        **text_weights(text),
        **hf_config.prefixed(image, "visual."),
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


# --- Text towers without an image tower: transformers' text models, diffusers' text encoders ---

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
    stored = read_object(folder / CONFIG)
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
    with fitting(folder, f"holds weights that do not fit its {CONFIG}"):
        fill(model, text_weights(weights))
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
            pad = read_object(path).get("pad_token")
            content = pad.get("content") if isinstance(pad, dict) else pad
            if content is not None:
                return get_tokenizer("clip").end_id if content == "<|endoftext|>" else 0
    return 0
