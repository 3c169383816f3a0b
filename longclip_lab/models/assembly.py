"""Putting a `Clip` together: a module of an open_clip config, preprocessing, tokenizer, card."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, get_type_hints

import open_clip
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from torch import nn

from longclip_lab.errors import LabError
from longclip_lab.models import tiny  # registers the tiny image tower with timm
from longclip_lab.models.bert_towers import build_with_bert
from longclip_lab.models.clip import Clip
from longclip_lab.models.corner_towers import CornerTokens, give_corners, position_offset
from longclip_lab.models.filling import check_finite
from longclip_lab.models.text_tower import text_tower
from longclip_lab.text import get_tokenizer

if TYPE_CHECKING:
    from PIL import Image

    from longclip_lab.text import Tokenizer


def build_model(model_cfg: dict[str, Any], at_most: int | None = None) -> nn.Module:
    """An open_clip module with random weights from a `model_cfg` as open_clip writes them.

    Nothing is fetched for the weights of the single towers, whatever the config says. Beyond
    open_clip, `text_cfg["hf_config"]` may hold a config of transformers, `text_cfg`'s
    "context_length" limits a tower of transformers too, and "corner_tokens" beside the towers'
    configs holds the fields of `CornerTokens`.

    `at_most` is how many parameters there can be, such as the bytes of the file that holds them: a
    config of more is refused before any memory is taken. Raises LabError for that, and for sizes
    that are no whole numbers.
    """
    least = sum(_least_parameters(model_cfg, part) for part in ("vision_cfg", "text_cfg"))
    if at_most is not None and least > at_most:
        raise LabError(
            f"its sizes make at least {least:,} parameters, more than its file of weights has "
            "bytes."
        )
    model_cfg = deepcopy(model_cfg)
    if "timm_model_name" in model_cfg["vision_cfg"]:
        model_cfg["vision_cfg"]["timm_model_pretrained"] = False
    text_cfg = model_cfg["text_cfg"]
    from_hub = "hf_model_name" in text_cfg
    if from_hub:
        text_cfg["hf_model_pretrained"] = False
    custom_text = model_cfg.pop("custom_text", False) or from_hub
    if "multimodal_cfg" in model_cfg:
        return open_clip.CoCa(**model_cfg)
    corner = model_cfg.pop("corner_tokens", None)
    if "hf_config" in text_cfg:
        model = build_with_bert(model_cfg, text_cfg.pop("hf_config"))
    else:
        model = (open_clip.CustomTextCLIP if custom_text else open_clip.CLIP)(**model_cfg)
    if from_hub:
        tower = model.text
        positions = tower.context_length - position_offset(tower)
        tower.context_length = min(text_cfg.get("context_length", positions), positions)
    if corner is not None:
        give_corners(model.text, CornerTokens(**corner))
    if hasattr(model, "text"):
        model.context_length = model.text.context_length
    return model


def _least_parameters(model_cfg: dict[str, Any], part: str) -> int:
    """Attention, embeddings and positions of a tower of open_clip's own; 0 for any other.

    Raises LabError for a size that is no whole number.
    """
    known = CLIPTextCfg if part == "text_cfg" else CLIPVisionCfg
    hints, told = get_type_hints(known), model_cfg[part]
    whole = {name: value for name, value in told.items() if hints.get(name) is int}
    for name, value in whole.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise LabError(f"its {part}: {name!r} should be a whole number, got {value!r:.60}.")
    sizes = known(**{name: value for name, value in told.items() if name in hints})
    if any(
        f"{library}_{what}" in told
        for library in ("hf", "timm")
        for what in ("config", "model_name")
    ):
        return 0
    layers = sizes.layers if isinstance(sizes.layers, int) else 0
    if part == "text_cfg":
        rows = sizes.vocab_size + sizes.context_length
    else:
        side = sizes.image_size if isinstance(sizes.image_size, int) else 0
        rows = (side // sizes.patch_size) ** 2 if layers and sizes.patch_size else 0
    return sizes.width * (4 * layers * sizes.width + rows)


def preprocess_card(model: nn.Module, **overrides: Any) -> dict[str, Any]:
    """The facts of the preprocessing: OpenAI's, at the image tower's size, with `overrides`."""
    card = merge_preprocess_dict(PreprocessCfg(), overrides)
    return {**card, "size": model.visual.image_size}


def build_preprocess(card: dict[str, Any]) -> Callable[[Image.Image], torch.Tensor]:
    """open_clip's evaluation transform for a card of `preprocess_card`.

    Raises LabError unless mean and deviation are three finite numbers each, the latter above 0.
    """
    for name in ("mean", "std"):
        values = card[name]
        numbers = isinstance(values, list | tuple) and len(values) == 3
        numbers = numbers and all(isinstance(v, int | float) and math.isfinite(v) for v in values)
        if not (numbers and (name == "mean" or min(values) > 0)):
            raise LabError(
                f"pictures cannot be normalised by the {name} {values}: expected three finite "
                "numbers" + (" above 0." if name == "std" else ".")
            )
    return image_transform_v2(PreprocessCfg(**card), is_train=False)


def assemble(
    model: nn.Module,
    model_cfg: dict[str, Any],
    tokenizer: Tokenizer,
    preprocess: dict[str, Any],
    name: str,
    **facts: Any,
) -> Clip:
    """A `Clip` in evaluation mode, with a card of its config and of `facts` about its origin.

    Raises NotFiniteError for weights that are not finite: such a model can answer nothing.
    """
    check_finite(model.float().state_dict(), name)
    length = int(text_tower(model).context_length)
    unstretched = {"method": "none", "keep": 0, "ratio": 1, "length": length}
    card = {
        "architecture": type(model).__name__,
        "model_cfg": model_cfg,
        "preprocess": preprocess,
        "positions": unstretched,
        **facts,
    }
    card = json.loads(json.dumps(card))  # what it will be after a round trip through a file
    return Clip(
        model=model.eval(),
        tokenizer=tokenizer,
        preprocess=build_preprocess(card["preprocess"]),
        name=name,
        card=card,
    )


def new_tiny(context_length: int = 77, seed: int = 0, name: str = "tiny-untrained") -> Clip:
    """A tiny CLIP with random weights and the world's tokenizer, ready to be trained.

    The caller's random state is left alone.
    """
    tokenizer = get_tokenizer("world")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = tiny.build_tiny(tokenizer.vocab_size, context_length)
    half = (0.5, 0.5, 0.5)
    return assemble(
        model,
        tiny.tiny_config(tokenizer.vocab_size, context_length),
        tokenizer,
        asdict(PreprocessCfg(size=tiny.IMAGE_SIZE, mean=half, std=half)),
        name,
        provenance=f"random weights, seed {seed}",
        trained_on=None,
    )
