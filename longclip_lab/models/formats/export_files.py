"""A `Clip` as OpenAI's or Long-CLIP's file of tensors, or as a folder in open_clip's layout."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transform import PreprocessCfg
from safetensors.torch import save_file

from longclip_lab.errors import LabError
from longclip_lab.models.clip import Clip, TextTower
from longclip_lab.models.folder import stored
from longclip_lab.models.formats import names
from longclip_lab.models.formats.describe import QUICK, Blocks, describe_image, describe_text
from longclip_lab.models.formats.notes import note
from longclip_lab.models.formats.openai_layout import HEAD_WIDTH, RESIDUAL
from longclip_lab.models.formats.tokenizer_files import (
    check_tokenizer,
    write_any_tokenizer,
    write_json,
)
from longclip_lab.models.tokenizers import HubTokenizer

LONG = 248
_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")


def write_openai(source: Clip | TextTower, path: Path, dtype: torch.dtype) -> None:
    """A state dict that OpenAI's `clip.load` reads, with the three numbers its own files hold.

    Raises LabError for what that code, which asks nothing but shapes, would build otherwise.
    """
    weights = _openai_weights(source, dtype)
    facts = (source.image_size, source.context_length, source.vocab_size)
    for name, value in zip(
        ("input_resolution", "context_length", "vocab_size"), facts, strict=True
    ):
        weights[name] = torch.tensor(value)
    torch.save(weights, path)


def write_longclip(source: Clip | TextTower, path: Path, dtype: torch.dtype) -> None:
    """A state dict that Long-CLIP's `longclip.load` reads: the positions stand in both tables.

    Raises LabError as `write_openai` does, and for another length than 248.
    """
    weights = _openai_weights(source, dtype)
    if source.context_length != LONG:
        raise LabError(
            f"Long-CLIP's code reads {LONG} positions, this model {source.context_length}: stretch "
            "it first, or use 'openai'"
        )
    weights[RESIDUAL] = weights["positional_embedding"].clone()
    torch.save(weights, path)


def write_open_clip(source: Clip | TextTower, folder: Path, dtype: torch.dtype) -> None:
    """open_clip_config.json, open_clip_model.safetensors and the tokenizer's files.

    Raises LabError for a model that open_clip alone could not build.
    """
    source = _whole(source)
    model_cfg = deepcopy(source.card["model_cfg"])
    if "corner_tokens" in model_cfg or "hf_config" in model_cfg["text_cfg"]:
        raise LabError("corner tokens and towers of a stated config exist in longclip_lab only")
    image_model = model_cfg["vision_cfg"].get("timm_model_name")
    if image_model and not timm.model_entrypoint(image_model).__module__.startswith("timm."):
        raise LabError(
            f"its image tower '{image_model}' exists in longclip_lab only; save() keeps it"
        )
    if not isinstance(source.tokenizer, HubTokenizer):
        check_tokenizer(source.tokenizer, source.vocab_size)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {n: stored(n, tensor, dtype) for n, tensor in source.model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    preprocess = {name: source.card["preprocess"][name] for name in _PREPROCESSING}
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess}
    write_json(folder / "open_clip_config.json", config | note(source.name, source.card))
    write_any_tokenizer(folder, source.tokenizer, source.context_length)


def _whole(source: Clip | TextTower) -> Clip:
    if isinstance(source, TextTower):
        raise LabError("it is a text tower alone, without an image tower")
    return source


def _openai_weights(source: Clip | TextTower, dtype: torch.dtype) -> names.Weights:
    source = _whole(source)
    _check_openai(source)
    weights = {
        name.removeprefix("text."): stored(name, tensor, dtype)
        for name, tensor in source.model.state_dict().items()
    }
    weights["logit_scale"] = weights["logit_scale"].reshape(())
    return weights


def _check_openai(source: Clip) -> None:
    """Whatever OpenAI's code takes for granted."""
    model = source.model
    text = describe_text(model)
    _check_blocks(text, "text")
    if text.activation != QUICK:
        raise LabError(f"OpenAI's code knows QuickGELU only, its activation is {text.activation}")
    if not isinstance(model.visual, ModifiedResNet):
        image = describe_image(model.visual)
        _check_blocks(image, "image")
        if image.activation != QUICK:
            raise LabError("OpenAI's code knows QuickGELU only")
    if getattr(model, "logit_bias", None) is not None:
        raise LabError("its logits have a bias")
    if getattr(model, "text_projection", getattr(model, "text", None)) is None:
        raise LabError("its text tower has no projection")
    if source.tokenizer.name != "clip":
        raise LabError(f"OpenAI's code has CLIP's tokenizer, this model '{source.tokenizer.name}'")
    theirs = asdict(PreprocessCfg())
    told = source.card["preprocess"]
    other = [n for n in _PREPROCESSING if _plain(told[n]) != _plain(theirs[n])]
    if other:
        raise LabError(f"OpenAI's code prepares pictures in another way ({', '.join(other)})")


def _check_blocks(blocks: Blocks, tower: str) -> None:
    if blocks.heads * HEAD_WIDTH != blocks.width:
        raise LabError(
            f"OpenAI's code makes heads of {HEAD_WIDTH}, its {tower} tower has {blocks.heads} in a "
            f"width of {blocks.width}"
        )
    if blocks.mlp_width != 4 * blocks.width or blocks.eps != 1e-5:
        raise LabError(f"its {tower} tower's inner width or eps is not OpenAI's")


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value
