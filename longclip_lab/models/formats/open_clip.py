"""Models of open_clip: by their names, with a tag's or a file's weights, on the hub, in folders.

open_clip resizes positions that do not fit and makes up what is missing without a word. Of files
and folders nothing is taken that way: sizes are the file's, and said, or refused.
"""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path
from textwrap import shorten
from typing import Any

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.factory import _find_checkpoint_in_dir
from open_clip.model import convert_to_custom_text_state_dict
from torch import nn

from longclip_lab.errors import LabError, LabWarning, suggest
from longclip_lab.models.build import assemble, build_model, preprocess_card
from longclip_lab.models.checkpoint import (
    Checkpoint,
    fill,
    fitting,
    read_checkpoint,
    read_state_dict,
)
from longclip_lab.models.clip import Clip, tokenizer_for
from longclip_lab.models.formats.hf_config import read_json
from longclip_lab.models.formats.openai import OURS, is_longclip, load_openai_layout, positions_card

HUB, LOCAL = "hf-hub:", "local-dir:"
OPEN_CLIP_CONFIG = "open_clip_config.json"


def load_open_clip_name(name: str, pretrained: str | os.PathLike[str] | None) -> Clip:
    """An architecture of open_clip's list: random, with a tag's weights, or with a file's."""
    model_cfg = open_clip.get_model_config(name)
    weights = None if pretrained is None else os.fspath(pretrained)
    tag_cfg = open_clip.get_pretrained_cfg(name, weights) if weights else {}
    longer = False
    if weights and not tag_cfg:
        checkpoint = _checkpoint_of_file(name, weights)
        if checkpoint.from_openai or is_longclip(checkpoint.weights):
            clip = load_openai_layout(weights, checkpoint)
            _warn_of_another_size(name, model_cfg, clip)
            return clip
        with fitting(weights, f"holds weights that are not those of a {name}"):
            longer = _take_context_length(model_cfg, checkpoint.weights)
            _take_image_size(model_cfg, checkpoint.weights, name, weights)
    if tag_cfg.get("quick_gelu"):
        # The weights say which activation they were trained with; the plain names do not.
        model_cfg["quick_gelu"] = True
    tokenizer = tokenizer_for(name, model_cfg)
    model = _built(name, model_cfg)
    if tag_cfg:
        _fetch_weights(model, name, weights, tag_cfg)
    elif weights:
        with fitting(weights, f"holds weights that are not those of a {name}"):
            _fill_open_clip(model, checkpoint.weights)
    else:
        _warn_of_random_weights(name)
    clip = assemble(
        model,
        model_cfg,
        tokenizer,
        preprocess_card(model, **tag_cfg),
        f"{name}/{Path(weights).stem}" if weights else f"{name}/random",
        provenance=f"open_clip {name}, weights: {weights or 'random'}",
        trained_on=weights,
    )
    if longer:
        clip.card["positions"] = positions_card({}, clip.context_length)
    return clip


def _warn_of_another_size(name: str, model_cfg: dict[str, Any], clip: Clip) -> None:
    """Files of OpenAI and Long-CLIP say their sizes themselves: say where a name says others."""
    parts = {"vision_cfg": ("image_size", "patch_size", "width", "layers"), "text_cfg": ("width",)}
    others = [
        f"{part.removesuffix('_cfg')} {size} {theirs}, not {ours}"
        for part, sizes in parts.items()
        for size in sizes
        if (ours := model_cfg[part].get(size)) is not None
        and (theirs := clip.card["model_cfg"][part].get(size)) not in (ours, None)
    ]
    if others:
        warnings.warn(
            f"{clip.name} is not of the size of {name}, and was opened as what it is: "
            f"{'; '.join(others)}.",
            LabWarning,
            stacklevel=4,
        )


def _checkpoint_of_file(name: str, weights: str) -> Checkpoint:
    if Path(weights).is_file():
        return read_checkpoint(weights)
    tags = open_clip.list_pretrained_tags_by_model(name)
    hint = suggest(weights, tags) if tags else "It has no tags."
    raise LabError(f"'{weights}' is neither a file nor a tag of {name}. {hint}")


def _take_context_length(model_cfg: dict[str, Any], state_dict: dict[str, torch.Tensor]) -> bool:
    """As many positions as the file holds, where open_clip would resize them; True if others."""
    text_cfg = model_cfg["text_cfg"]
    before = text_cfg.get("context_length", 77)
    tables = {
        name: len(state_dict[name])
        for name in ("positional_embedding", "text.positional_embedding")
        if name in state_dict
    }
    if len(tables) > 1:
        told = " and ".join(f"{name} of {length}" for name, length in tables.items())
        raise LabError(f"it has two tables of text positions, {told}: two models in one file")
    if tables and not text_cfg.get("embed_cls"):
        text_cfg["context_length"] = next(iter(tables.values()))
    return text_cfg.get("context_length", before) != before


def _take_image_size(
    model_cfg: dict[str, Any], state_dict: dict[str, torch.Tensor], name: str, path: str
) -> None:
    """The pictures' size that the file's grid of positions is for, where open_clip would resize
    it; a LabWarning says so. Other image towers than ViT and ResNet are not resized by anybody."""
    vision_cfg = model_cfg["vision_cfg"]
    usual = vision_cfg.get("image_size", 224)
    tables = {
        "visual.positional_embedding": vision_cfg.get("patch_size", 16),
        "visual.attnpool.positional_embedding": 32,  # by which a ResNet shrinks its pictures
    }
    found = [(state_dict[key], patch) for key, patch in tables.items() if key in state_dict]
    if not found or "timm_model_name" in vision_cfg or not isinstance(found[0][1], int):
        return
    table, patch = found[0]
    side = math.isqrt(max(len(table) - 1, 0))
    if side * side + 1 != len(table):
        raise LabError(f"its {len(table)} positions of patches are no square and a class token")
    size = side * patch
    if size != usual and [size, size] != list(usual if isinstance(usual, list | tuple) else ()):
        vision_cfg["image_size"] = size
        warnings.warn(
            f"{Path(path).name} takes pictures of {size} pixels, not of {usual} as {name}: "
            f"{size} it is.",
            LabWarning,
            stacklevel=4,
        )


def _fill_open_clip(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """What `open_clip.load_checkpoint` does, but nothing is resized or made up."""
    weights = convert_state_dict(model, weights)
    if "positional_embedding" in weights and not hasattr(model, "positional_embedding"):
        weights = convert_to_custom_text_state_dict(weights)
    for scalar in ("logit_scale", "logit_bias"):
        own = getattr(model, scalar, None)
        if scalar in weights and own is not None:
            weights[scalar] = weights[scalar].reshape(own.shape)
    own_names = model.state_dict().keys()
    unneeded = ("position_ids", "attn_mask")  # of older versions, or traced with the weights
    fill(model, {n: t for n, t in weights.items() if n in own_names or not n.endswith(unneeded)})


def _built(name: str, model_cfg: dict[str, Any]) -> nn.Module:
    with fitting(name, "could not be built"):
        return build_model(model_cfg)


def _fetch_weights(model: nn.Module, name: str, pretrained: str, tag_cfg: dict[str, Any]) -> None:
    try:
        path = open_clip.download_pretrained(tag_cfg)
    except (OSError, RuntimeError, ValueError) as error:
        raise LabError(
            f"The weights '{pretrained}' of {name} cannot be fetched: {shorten(str(error), 300)}"
        ) from error
    try:
        open_clip.load_checkpoint(model, path)
    except (RuntimeError, KeyError, AssertionError) as error:
        reason = shorten(str(error), 300)
        raise LabError(f"The weights in {path} are not those of a {name}: {reason}") from error


def _warn_of_random_weights(name: str) -> None:
    tags = open_clip.list_pretrained_tags_by_model(name)
    message = f"{name} has random weights: its features mean nothing until it is trained."
    if tags:
        message += (
            f" Trained ones: load({name!r}, pretrained={tags[0]!r}); tags: {', '.join(tags)}."
        )
    warnings.warn(message, LabWarning, stacklevel=4)


def load_from_open_clips_hub(name: str) -> Clip:
    """A model with its own config beside it, on the hub."""
    try:
        model_cfg = open_clip.get_model_config(name)
        tokenizer = tokenizer_for(name, model_cfg)
        model = open_clip.create_model(name, pretrained_text=False, require_pretrained=True)
    except Exception as error:  # open_clip checks nothing of a config
        if isinstance(error, LabError):
            raise
        reason = shorten(str(error), 300)
        raise LabError(
            f"No open_clip model '{name.removeprefix(HUB)}' could be read on the hub (nor is it a "
            f"file or folder here): {reason}"
        ) from error
    return assemble(
        model,
        model_cfg,
        tokenizer,
        dict(open_clip.get_model_preprocess_cfg(model)),
        name.removeprefix(HUB),
        provenance=name,
        trained_on="see its page",
    )


def load_open_clip_folder(folder: Path) -> Clip:
    """A folder of open_clip's layout: the file that it would take, with nothing resized."""
    config = read_json(folder / OPEN_CLIP_CONFIG)
    name = f"{LOCAL}{folder}"
    weights = read_state_dict(_weights_of_open_clip(folder))
    with fitting(folder / OPEN_CLIP_CONFIG, "describes no model of open_clip"):
        model_cfg = config["model_cfg"]
        model = build_model(model_cfg, sum(tensor.nbytes for tensor in weights.values()))
        preprocess = preprocess_card(model, **config.get("preprocess_cfg", {}))
    with fitting(folder, f"holds weights that do not fit its {OPEN_CLIP_CONFIG}"):
        _fill_open_clip(model, weights)
    with fitting(folder / OPEN_CLIP_CONFIG, "describes no model of open_clip"):
        tokenizer = tokenizer_for(name, _with_tokenizer_beside(folder, model_cfg))
        facts = {"provenance": name, "trained_on": None}
        clip = assemble(model, model_cfg, tokenizer, preprocess, os.fspath(folder), **facts)
        if OURS in config:
            clip.card["positions"] = positions_card(config, clip.context_length)
    return clip


def _weights_of_open_clip(folder: Path) -> Path:
    """The file that open_clip would take. Raises LabError if there is none."""
    found = _find_checkpoint_in_dir(folder)
    if found is None:
        there = ", ".join(sorted(path.name for path in folder.iterdir()))
        raise LabError(f"There are no weights in {folder}: it holds {there}.")
    return Path(found)


def _with_tokenizer_beside(folder: Path, model_cfg: dict[str, Any]) -> dict[str, Any]:
    """As open_clip does for a folder: its own tokenizer files go before a name on the hub."""
    text_cfg = model_cfg["text_cfg"]
    beside = (folder / "tokenizer_config.json").is_file()
    if not beside or "hf_tokenizer_name" not in text_cfg:
        return model_cfg
    return {**model_cfg, "text_cfg": {**text_cfg, "hf_tokenizer_name": os.fspath(folder)}}
