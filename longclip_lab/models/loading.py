"""`load`: every way in which a model can be named, one kind of model out."""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import replace
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
from longclip_lab.models.adapters import is_release, load_release
from longclip_lab.models.adapters.hub_folders import OPENERS, model_type
from longclip_lab.models.assembly import assemble, build_model, preprocess_card
from longclip_lab.models.bundled import bundled_folder, bundled_names
from longclip_lab.models.checkpoints import (
    CHECKPOINT_ENDINGS,
    Checkpoint,
    fill,
    fitting,
    read_checkpoint,
    read_state_dict,
)
from longclip_lab.models.clip import Clip
from longclip_lab.models.declip_checkpoints import is_declip, load_declip
from longclip_lab.models.folder import is_saved_clip, load_folder
from longclip_lab.models.formats.folders import clip_kind, read_json
from longclip_lab.models.formats.hub import answering_at_once, fetch, is_hub_id
from longclip_lab.models.formats.notes import OURS, positions_card
from longclip_lab.models.formats.openai_layout import is_longclip, load_openai_layout
from longclip_lab.models.formats.transformers_in import load_transformers
from longclip_lab.models.lotlip_checkpoints import is_lotlip, load_lotlip
from longclip_lab.models.tokenizers import tokenizer_for

_HUB = "hf-hub:"
_LOCAL = "local-dir:"
_OPEN_CLIP = "open_clip_config.json"
_FILES = ((is_lotlip, load_lotlip), (is_declip, load_declip), (is_release, load_release))
"""Which state dicts who opens; Long-CLIP's is the last resort, and says what it expected."""


def load(
    name_or_path: str | os.PathLike[str], pretrained: str | os.PathLike[str] | None = None
) -> Clip:
    """A model by name or path, in evaluation mode, float32, on the CPU.

    - "tiny", "tiny-notail": the models that come with the lab (a folder of that name: "./tiny");
    - an open_clip name such as "ViT-B-16", with `pretrained` one of its tags or a file of weights;
      without, the weights are random and a LabWarning says so;
    - "OWNER/NAME": an open_clip model ("hf-hub:OWNER/NAME", too) or a `CLIPModel` on the hub;
    - a checkpoint file of OpenAI (also as a TorchScript archive, of which nothing is run),
      Long-CLIP, LoTLIP or DeCLIP;
    - one of BLIP, PTP-BLIP, X-VLM or X2-VLM (an `Adapter`: it encodes, and is evaluated and
      probed; nothing else);
    - a folder of transformers' `CLIPModel`, or of its ALIGN or BLIP (an `Adapter`, too);
    - a folder written by `save`, or one in open_clip's own layout.

    Nothing is read from the network for the bundled models, files and folders.

    Raises LabError for an unknown name (with the near ones), a file that is missing, damaged, of
    another architecture or a pickle with code in it, and weights that could not be fetched.
    """
    name = os.fspath(name_or_path)
    if name in open_clip.list_models() or name.replace("/", "-") in open_clip.list_models():
        return _load_open_clip(name.replace("/", "-"), pretrained)
    if pretrained is not None:
        raise LabError(
            f"pretrained={os.fspath(pretrained)!r} goes with an open_clip name, but '{name}' is "
            f"none. {_near(name, open_clip.list_models())}"
        )
    if name in bundled_names():
        return load_folder(bundled_folder(name))
    path = Path(name)
    if path.is_dir():
        return _load_any_folder(path)
    if path.is_file():
        checkpoint = read_checkpoint(path)
        for matches, opener in _FILES:
            if matches(checkpoint.weights):
                return opener(path, checkpoint.weights)
        return load_openai_layout(path, checkpoint)
    if name.startswith(_LOCAL):
        return _load_open_clip_folder(Path(name.removeprefix(_LOCAL)))
    if name.startswith(_HUB):
        with answering_at_once(name.removeprefix(_HUB)):
            return _load_through_open_clip(name)
    if name.lower().endswith(CHECKPOINT_ENDINGS) or path.is_absolute() or name.startswith("."):
        raise LabError(f"There is no model file or folder {name}.")
    if is_hub_id(name):
        with answering_at_once(name):
            return _load_from_hub(name)
    known = [*bundled_names(), *open_clip.list_models()]
    raise LabError(f"No model is called '{name}', and there is no such file. {_near(name, known)}")


def _near(name: str, known: list[str]) -> str:
    """Near names, or only the bundled ones: open_clip knows more than a hundred."""
    sentence = suggest(name, known)
    if sentence.startswith("Did you mean"):
        return sentence
    bundled = ", ".join(bundled_names()) or "none in this installation"
    return f"Bundled models: {bundled}; open_clip's names: open_clip.list_models()."


def _load_any_folder(folder: Path) -> Clip:
    if not is_saved_clip(folder) and (opener := OPENERS.get(model_type(folder))):
        return opener(folder)
    if not is_saved_clip(folder) and (folder / _OPEN_CLIP).is_file():
        return _load_open_clip_folder(folder)
    if not is_saved_clip(folder) and clip_kind(folder):
        return load_transformers(folder)
    return load_folder(folder)


def _load_from_hub(name: str) -> Clip:
    """Models with open_clip's config are open_clip's; the others are tried as transformers'."""
    try:
        return _load_through_open_clip(_HUB + name)
    except LabError:
        try:
            folder = fetch(name)
        except LabError:
            folder = None
        opener = OPENERS.get(model_type(folder)) if folder else None
        if folder is None or not (opener or clip_kind(folder)):
            raise
    return replace(opener(folder), name=name) if opener else load_transformers(folder, name)


def _load_open_clip(name: str, pretrained: str | os.PathLike[str] | None) -> Clip:
    """An architecture of open_clip's list: random, with a tag's weights, or with a file's."""
    model_cfg = open_clip.get_model_config(name)
    weights = None if pretrained is None else os.fspath(pretrained)
    tag_cfg = open_clip.get_pretrained_cfg(name, weights) if weights else {}
    longer = False
    if weights and not tag_cfg:
        checkpoint = _checkpoint_of_file(name, weights)
        if checkpoint.from_openai or is_longclip(checkpoint.weights):
            return load_openai_layout(weights, checkpoint)
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


def _load_through_open_clip(name: str) -> Clip:
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
            f"No open_clip model '{name.removeprefix(_HUB)}' could be read on the hub (nor is it a "
            f"file or folder here): {reason}"
        ) from error
    return assemble(
        model,
        model_cfg,
        tokenizer,
        dict(open_clip.get_model_preprocess_cfg(model)),
        name.removeprefix(_HUB),
        provenance=name,
        trained_on="see its page",
    )


def _load_open_clip_folder(folder: Path) -> Clip:
    """A folder of open_clip's layout: the file that it would take, with nothing resized."""
    config = read_json(folder / _OPEN_CLIP)
    name = f"{_LOCAL}{folder}"
    path = _weights_of_open_clip(folder)
    with fitting(folder / _OPEN_CLIP, "describes no model of open_clip"):
        model_cfg = config["model_cfg"]
        model = build_model(model_cfg, at_most=path.stat().st_size)
        preprocess = preprocess_card(model, **config.get("preprocess_cfg", {}))
    with fitting(folder, f"holds weights that do not fit its {_OPEN_CLIP}"):
        _fill_open_clip(model, read_state_dict(path))
    with fitting(folder / _OPEN_CLIP, "describes no model of open_clip"):
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
