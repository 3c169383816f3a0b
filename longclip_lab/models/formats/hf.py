"""Folders and hub ids of transformers and diffusers, read into open_clip modules.

Three things differ beside the names of the weights: transformers keeps queries, keys and values
apart, has its projections as linear layers (transposed), and puts `text_model.` or `vision_model.`
before a tower's names.

A text encoder alone is no `Clip`, as nothing can be compared with its texts. It reads, it is
stretched, and it is written again; what diffusion models are conditioned on are its hidden states.

B batch, T tokens, D embedding, W width of the tower.
"""

from __future__ import annotations

import os
import re
import ssl
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any
from urllib.error import HTTPError

import huggingface_hub
import open_clip
import torch
import transformers
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from open_clip.transformer import TextTransformer

from longclip_lab.errors import LabError, LabWarning
from longclip_lab.files import read_json_object
from longclip_lab.models.build import assemble, build_model, check_sizes, preprocess_card
from longclip_lab.models.checkpoint import (
    check_finite,
    fill,
    fitting,
    read_checkpoints,
    read_state_dict,
)
from longclip_lab.models.clip import Clip, TextTower
from longclip_lab.models.formats.openai import positions_card
from longclip_lab.text import get_tokenizer

# --- The same weights under open_clip's names and under those of transformers' CLIP ---

Weights = dict[str, torch.Tensor]
TEXT = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
IMAGE = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",  # the misspelling is transformers' own
    "ln_pre.bias": "pre_layrnorm.bias",
    "ln_post.weight": "post_layernorm.weight",
    "ln_post.bias": "post_layernorm.bias",
}
_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_LAYER_BACK = {theirs: ours for ours, theirs in _LAYER.items()}
_OURS = re.compile(r"transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)")
_THEIRS = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")


def to_transformers(weights: Mapping[str, torch.Tensor], top: Mapping[str, str]) -> Weights:
    """A tower's weights without its projection; `top` is `TEXT` or `IMAGE`.

    Raises LabError for a weight that transformers' tower has no place for.
    """
    renamed: Weights = {}
    for name, tensor in weights.items():
        layer = _OURS.fullmatch(name)
        if name in top:
            renamed[top[name]] = tensor
        elif layer and layer[2] in _LAYER:
            renamed[f"encoder.layers.{layer[1]}.{_LAYER[layer[2]]}.{layer[3]}"] = tensor
        elif layer and layer[2] == "attn.in_proj":
            # The way out of nn.MultiheadAttention's one weight: queries, keys, values.
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"encoder.layers.{layer[1]}.self_attn.{part}_proj.{layer[3]}"] = rows
        else:
            raise LabError(f"transformers' CLIP has no place for the weight '{name}'.")
    return renamed


def from_transformers(weights: Mapping[str, torch.Tensor], top: Mapping[str, str]) -> Weights:
    """The way back.

    Raises LabError for a weight that open_clip's tower has no place for, and KeyError if queries
    come without keys or values.
    """
    back = {theirs: ours for ours, theirs in top.items()}
    renamed: Weights = {}
    for name, tensor in weights.items():
        layer = _THEIRS.fullmatch(name)
        if name in back:
            renamed[back[name]] = tensor
        elif layer and layer[2] in _LAYER_BACK:
            renamed[f"transformer.resblocks.{layer[1]}.{_LAYER_BACK[layer[2]]}.{layer[3]}"] = tensor
        elif layer and layer[2] == "self_attn.q_proj":
            # open_clip, like nn.MultiheadAttention, has queries, keys and values in one weight.
            parts = [weights[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            joined = f"transformer.resblocks.{layer[1]}.attn.in_proj_{layer[3]}"
            renamed[joined] = torch.cat(parts)
        elif not (layer and layer[2] in ("self_attn.k_proj", "self_attn.v_proj")):
            raise LabError(f"open_clip's CLIP has no place for the weight '{name}'.")
    return renamed


def split(weights: Mapping[str, torch.Tensor], prefix: str) -> Weights:
    """The weights that begin with `prefix`, without it."""
    return {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)}


def prefixed(weights: Mapping[str, torch.Tensor], prefix: str) -> Weights:
    """All weights, with `prefix` before their names."""
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


# --- Folders as transformers writes them: JSON, and weights in one file or in shards ---

CONFIG = "config.json"
_STEMS = ("model.safetensors", "pytorch_model.bin")
_INDEX = ".index.json"


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object. Raises LabError if the file is missing or holds something else."""
    if not path.exists():
        raise LabError(f"There is no {path.name} in {path.parent}.")
    return read_json_object(path)


def clip_kind(folder: Path) -> str | None:
    """What a folder holds: transformers' "clip", "clip_text_model", .., "diffusers", or None."""
    if (folder / "model_index.json").is_file() or (folder / "text_encoder" / CONFIG).is_file():
        return "diffusers"
    if not (folder / CONFIG).is_file():
        return None
    kind = read_object(folder / CONFIG).get("model_type")
    return kind if isinstance(kind, str) and kind.startswith("clip") else None


def read_weights(folder: Path) -> Weights:
    """All tensors of a folder: model.safetensors or pytorch_model.bin, whole or in shards.

    Where both are there, safetensors. A file of half precision alone (model.fp16.safetensors) is
    read too. Raises LabError if there are none, if shards are missing or hold less than the index
    says, and as `read_state_dict` does.
    """
    for stem in _STEMS:
        if (folder / stem).is_file():
            return read_state_dict(folder / stem)
        if (folder / f"{stem}{_INDEX}").is_file():
            return _read_shards(folder / f"{stem}{_INDEX}")
    variants = sorted(folder.glob("model.*.safetensors"))
    if len(variants) == 1:
        return read_state_dict(variants[0])
    raise LabError(
        f"There are no weights in {folder}: expected {' or '.join(_STEMS)}, whole or with "
        f"{_INDEX}; got {', '.join(path.name for path in sorted(folder.iterdir()))}."
    )


def _read_shards(index: Path) -> Weights:
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(n, str) for n in places.values()):
        raise LabError(f"{index} does not say which weights are in which file.")
    files = sorted(set(places.values()))
    # An index may not lead out of its folder: "../../secret".
    if outside := [name for name in files if Path(name).name != name]:
        raise LabError(f"{index} names files outside its folder, which is refused: {outside[0]}.")
    if missing := [name for name in files if not (index.parent / name).is_file()]:
        raise LabError(
            f"{len(missing)} of {len(files)} files of weights are missing in {index.parent}: "
            f"{', '.join(missing)}."
        )
    weights = read_checkpoints([index.parent / name for name in files]).weights
    if len(weights) < len(places) and (lost := sorted(places.keys() - weights.keys())):
        raise LabError(f"{index.parent} lacks {len(lost)} weights of its index, such as {lost[0]}.")
    return weights


def warn_of_vocabulary(folder: Path) -> None:
    """A LabWarning if the tokenizer in `folder` numbers other pieces than CLIP's; none is fine."""
    if (folder / "vocab.json").is_file():
        vocabulary = read_object(folder / "vocab.json")
    elif (folder / "tokenizer.json").is_file():
        vocabulary = read_object(folder / "tokenizer.json").get("model", {}).get("vocab", {})
    else:
        return
    pieces = get_tokenizer("clip").entries[:-2]  # start and end have other names in transformers
    if any(vocabulary.get(piece) != number for number, piece in enumerate(pieces)):
        warnings.warn(
            f"The tokenizer in {folder} is not CLIP's, which is the one that is used here: texts "
            "will be misread. Give token ids of its own to encode_text.",
            LabWarning,
            stacklevel=4,
        )


# --- Configs and preprocessing, under open_clip's names ---

QUICK, EXACT, TANH = "quick_gelu", "gelu", "gelu_pytorch_tanh"
"""Activations, under transformers' names."""
LEGACY_END = 2
"""The eos_token_id of configs older than transformers 4.31: texts are read off at their largest id.

Later ones name the end token, and texts are read off where it stands first."""
_EPS = 1e-5


def text_cfg(config: transformers.CLIPTextConfig) -> dict[str, Any]:
    """open_clip's `text_cfg`."""
    cfg = {
        "context_length": config.max_position_embeddings,
        "vocab_size": config.vocab_size,
        "width": config.hidden_size,
        "heads": config.num_attention_heads,
        "layers": config.num_hidden_layers,
        **_shared(config),
    }
    end = config.eos_token_id
    # Otherwise the end token is the largest id, which is open_clip's own rule (argmax).
    if end not in (LEGACY_END, config.vocab_size - 1):
        if not isinstance(end, int):
            raise LabError(f"Texts are read off at one end token, but the config names {end}.")
        cfg |= {"pool_type": "eos", "eos_id": end}
    return cfg


def vision_cfg(config: transformers.CLIPVisionConfig) -> dict[str, Any]:
    """open_clip's `vision_cfg`."""
    for name in ("image_size", "patch_size"):
        if not isinstance(getattr(config, name), int):
            raise LabError(f"Expected square pictures, got {name} {getattr(config, name)}.")
    return {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        "head_width": config.hidden_size // config.num_attention_heads,
        **_shared(config),
    }


def quick_gelu(*configs: transformers.PretrainedConfig) -> bool:
    """Whether the towers use QuickGELU; raises LabError if only one does, or for another one."""
    names = {config.hidden_act for config in configs}
    if not names <= {QUICK, EXACT, TANH} or (QUICK in names and len(names) > 1):
        raise LabError(
            f"Expected the activation {QUICK} in all towers, or {EXACT} or {TANH}; got "
            f"{', '.join(sorted(names))}."
        )
    return names == {QUICK}


def _shared(config: transformers.PretrainedConfig) -> dict[str, Any]:
    ratio = config.intermediate_size / config.hidden_size
    # Floating point: 320 / 128 * 128 must be 320 again.
    if int(config.hidden_size * ratio) != config.intermediate_size:
        ratio += 1e-9  # open_clip multiplies and rounds down
    cfg: dict[str, Any] = {} if ratio == 4 else {"mlp_ratio": ratio}
    if config.layer_norm_eps != _EPS:
        cfg["norm_kwargs"] = {"eps": config.layer_norm_eps}
    if config.hidden_act == TANH:
        cfg["act_kwargs"] = {"approximate": "tanh"}
    return cfg


FILE = "preprocessor_config.json"
_NEWER = "processor_config.json"
RESAMPLING = {"bilinear": 2, "bicubic": 3}  # PIL's numbers


def read_preprocessing(folder: Path, image_size: int) -> dict[str, Any]:
    """What differs from OpenAI's preprocessing, under open_clip's names; the size is the tower's.

    A LabWarning says when the folder tells nothing and OpenAI's is taken, and when it prepares
    pictures of another size than the tower takes. Raises LabError for a way of resizing that
    open_clip does not have.
    """
    if (folder / FILE).is_file():
        facts = read_object(folder / FILE)
    elif (folder / _NEWER).is_file():
        facts = read_object(folder / _NEWER).get("image_processor", {})
    else:
        warnings.warn(
            f"{folder} has no {FILE}: pictures are prepared as OpenAI prepares them.",
            LabWarning,
            stacklevel=3,
        )
        return {}
    resized, cropped = facts.get("size", image_size), facts.get("crop_size", image_size)
    squashed = isinstance(resized, dict) and "shortest_edge" not in resized
    final = cropped if facts.get("do_center_crop", True) else resized
    if isinstance(final, dict):
        final = final.get("height", final.get("shortest_edge"))
    if final != image_size:
        warnings.warn(
            f"{folder} prepares pictures of {final} pixels, but its tower takes {image_size}: "
            f"{image_size} it is.",
            LabWarning,
            stacklevel=3,
        )
    resample = facts.get("resample", 3)
    names = {number: name for name, number in RESAMPLING.items()}
    if resample not in names:
        raise LabError(f"{folder} resizes pictures in PIL's way {resample}: expected 2 or 3.")
    told = {"mean": facts.get("image_mean"), "std": facts.get("image_std")}
    told = {name: tuple(values) for name, values in told.items() if values is not None}
    resize_mode = "squash" if squashed else "shortest"
    return {**told, "interpolation": names[resample], "resize_mode": resize_mode}


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
    # The hub's client reads this at every call; it is set back whatever happens.
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
        for name, tensor in split(weights, prefix).items()
        if not name.endswith("position_ids") and name != "text_projection.weight"
    }
    ours = from_transformers(inner, TEXT)
    if "text_projection.weight" in weights:
        # nn.Linear stores [out, in]; open_clip multiplies from the right by [in, out].
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
        for name, tensor in split(weights, "vision_model.").items()
        if not name.endswith("position_ids")
    }
    image = from_transformers(image, IMAGE)
    # Transposed for the same reason as the text projection.
    image["proj"] = weights["visual_projection.weight"].T
    text = {name: t for name, t in weights.items() if not name.startswith("vis")}
    text.pop("logit_scale")
    return {
        **text_weights(text),
        **prefixed(image, "visual."),
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
        check_sizes({"text_cfg": facts}, sum(tensor.nbytes for tensor in weights.values()))
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
