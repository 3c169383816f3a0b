"""State dicts under OpenAI's names: OpenAI's own, Long-CLIP's and DeCLIP's, as open_clip's.

open_clip has OpenAI's names, so little is renamed. Nothing but shapes says what the architecture
is: patches or a ResNet, a head for every 64 of width, always QuickGELU. Long-CLIP's released files
have two tables of positions of the full length: `positional_embedding`, of which positions 0-19
are used, and `positional_embedding_res`, used from 20 on. DeCLIP's release saves whole training
states; its text tower sits under `encode_text.`, projects with a bias, and its tokenizer has one
token more than OpenAI's: <|mask|>, just before start and end, for masked language modelling.

Followed: openai/CLIP, clip/model.py; beichenzbc/Long-CLIP, model/model_longclip.py;
Sense-GVT/DeCLIP, prototype/model/{clip,declip}.py, prototype/model/text_encoder/
text_transformer.py, prototype/model/image_encoder/{base,visual}_transformer.py,
prototype/model/utils/text_utils/simple_tokenizer.py, prototype/data/imagenet_dataloader.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from longclip_lab.errors import LabError
from longclip_lab.models.build import Converted
from longclip_lab.models.checkpoint import Checkpoint, Weights, count_blocks, leave_out, renamed
from longclip_lab.text import get_tokenizer

# --- What `export` notes beside the weights and `load` reads: name and positions ---

OURS = "longclip_lab"
"""The entry of config.json and open_clip_config.json that other libraries pass over."""
PLAIN_LENGTH = 77


def note(name: str, card: dict[str, Any]) -> dict[str, Any]:
    """The entry for a model of that name and card."""
    return {OURS: {"name": name, "positions": card["positions"]}}


def positions_card(stored: dict[str, Any], length: int) -> dict[str, Any]:
    """How a table of positions came about: as `stored` notes it; else unknown where not 77 long."""
    ours = stored.get(OURS)
    noted = ours.get("positions") if isinstance(ours, dict) else None
    if isinstance(noted, dict) and noted.get("length") == length:
        return noted
    method = "none" if length == PLAIN_LENGTH else "unknown"
    return {"method": method, "keep": 0, "ratio": length / PLAIN_LENGTH, "length": length}


# --- OpenAI and Long-CLIP ---

KEPT, RATIO = 20, 4
RESIDUAL = "positional_embedding_res"
HEAD_WIDTH = 64
_RESNET = "visual.layer1.0.conv1.weight"


def is_longclip(weights: Weights) -> bool:
    """True if the state dict has Long-CLIP's second table of positions."""
    return RESIDUAL in weights


def is_openai_layout(weights: Weights) -> bool:
    """True for a text transformer on the top level beside a ViT or a ResNet, under OpenAI's names.

    So are open_clip's own state dicts: these shapes alone do not tell whose code wrote the file.
    """
    towers = ("visual.proj", "visual.attnpool.positional_embedding")
    return "positional_embedding" in weights and any(name in weights for name in towers)


def openai_config(weights: Weights, text: str = "") -> dict[str, Any]:
    """The open_clip `model_cfg` of a state dict in OpenAI's layout, read from the shapes alone.

    `text` is put before the text tower's names. Raises KeyError if a weight is missing that every
    such model has, and LabError for a width that heads of 64 do not divide: how many heads such a
    tower has is not in the file.
    """
    text_width = weights[f"{text}ln_final.weight"].shape[0]
    resnet = _RESNET in weights
    widths = {"text": text_width}
    if not resnet:
        widths["image"] = weights["visual.conv1.weight"].shape[0]
    for tower, width in widths.items():
        if width % HEAD_WIDTH or not width:
            raise LabError(
                f"its {tower} tower is {width} wide, which heads of {HEAD_WIDTH}, as OpenAI's "
                "code has them, do not divide. If open_clip trained it, name its architecture: "
                'load("ViT-B-16", pretrained=FILE)'
            )
    projection = weights.get("text_projection")
    return {
        "embed_dim": weights["visual.proj"].shape[1] if projection is None else projection.shape[1],
        "quick_gelu": True,
        "vision_cfg": _resnet_config(weights) if resnet else _vit_config(weights),
        "text_cfg": {
            "context_length": len(weights[f"{text}positional_embedding"]),
            "vocab_size": len(weights[f"{text}token_embedding.weight"]),
            "width": text_width,
            "heads": text_width // HEAD_WIDTH,
            "layers": count_blocks(weights, rf"{text}transformer\.resblocks\.(\d+)\."),
        },
    }


def _vit_config(weights: Weights) -> dict[str, Any]:
    width, _, _, patch = weights["visual.conv1.weight"].shape
    # One position for the class token, the others for a square grid of patches.
    grid = round((len(weights["visual.positional_embedding"]) - 1) ** 0.5)
    layers = count_blocks(weights, r"visual\.transformer\.resblocks\.(\d+)\.")
    return {"image_size": grid * patch, "layers": layers, "width": width, "patch_size": patch}


def _resnet_config(weights: Weights) -> dict[str, Any]:
    """OpenAI's ResNets shrink the image by 32 before the attention pool."""
    grid = round((len(weights["visual.attnpool.positional_embedding"]) - 1) ** 0.5)
    # A ResNet of CLIP has four stages.
    blocks = [count_blocks(weights, rf"visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)]
    return {"image_size": grid * 32, "layers": blocks, "width": len(weights[_RESNET])}


def convert_openai(checkpoint: Checkpoint, path: Path) -> Converted:
    """A file of OpenAI, or of open_clip under the same names, whose activation it does not state.

    Raises as `openai_config` does.
    """
    weights = _without_mask(checkpoint.weights)
    model_cfg = openai_config(weights)
    positions = positions_card({}, model_cfg["text_cfg"]["context_length"])
    archive = checkpoint.container.startswith("TorchScript")
    kind = "TorchScript archive" if archive else "state dict"
    if checkpoint.from_openai:
        return Converted(f"OpenAI {kind}", model_cfg, weights, positions=positions)
    return Converted(
        "state dict in OpenAI's layout (OpenAI or open_clip)",
        model_cfg,
        weights,
        positions=positions,
        call="load(FILE), or load(NAME, pretrained=FILE) if open_clip trained it",
        notes=(
            "OpenAI's names without the three numbers that its code writes: open_clip has the same "
            "names. The activation (QuickGELU or GELU) and the heads' width are not in the file.",
        ),
        warning=(
            f"{path.name} is taken for OpenAI's kind of CLIP: QuickGELU, heads of {HEAD_WIDTH}. If "
            'open_clip trained it, name its architecture: load("ViT-B-16", pretrained=FILE).'
        ),
    )


def convert_longclip(checkpoint: Checkpoint, path: Path) -> Converted:
    """A file of Long-CLIP: positions 0-19 of the first table, all later ones of the second.

    Raises LabError unless both have the same size, and as `openai_config` does.
    """
    weights = _without_mask(checkpoint.weights)
    first_LW, later_LW = weights["positional_embedding"], weights.pop(RESIDUAL)
    if first_LW.ndim != 2 or first_LW.shape != later_LW.shape:
        raise LabError(
            f"its two tables of positions differ: positional_embedding has {list(first_LW.shape)}, "
            f"{RESIDUAL} {list(later_LW.shape)}; Long-CLIP's have the same size, so this is no "
            "whole Long-CLIP"
        )
    # Long-CLIP's forward masks each table to the rows that it reads and adds the two.
    weights["positional_embedding"] = torch.cat([first_LW[:KEPT], later_LW[KEPT:]])
    positions = {"method": "kps", "keep": KEPT, "ratio": RATIO, "length": len(first_LW)}
    return Converted("Long-CLIP state dict", openai_config(weights), weights, positions=positions)


def _without_mask(weights: Weights) -> dict[str, torch.Tensor]:
    """Without the causal mask, which comes along where it was traced with the weights."""
    return {name: tensor for name, tensor in weights.items() if not name.endswith("attn_mask")}


# --- DeCLIP ---

MASK_ROW = 49406
"""The row of the token embedding that is <|mask|>; start and end follow it."""
HEADS = frozenset(
    f"{head}{of}"
    for head in ("projector", "predictor")
    for of in ("", "_d", "_text", "_nn_text")
) | {"text_label_predictor", "nn_replacer_img", "nn_replacer_text"}  # fmt: skip
"""What only the training uses: the heads of SimSiam and of masked words, the memory banks."""
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_TEXT = "encode_text."


def is_declip(weights: Weights) -> bool:
    """True for a state dict of DeCLIP's layout: its repository's CLIP, SLIP and DeCLIP share it."""
    return f"{_TEXT}token_embedding.weight" in weights and any(
        name.startswith("visual.") for name in weights
    )


def declip_config(weights: Weights) -> dict[str, Any]:
    """The open_clip `model_cfg` of a DeCLIP state dict, read from the shapes alone.

    Raises as `openai_config` does.
    """
    model_cfg = openai_config(weights, _TEXT)
    text_cfg = model_cfg["text_cfg"]
    text_cfg["vocab_size"] = min(text_cfg["vocab_size"], get_tokenizer("clip").vocab_size)
    text_cfg["proj_bias"] = True
    return model_cfg


def convert_declip(checkpoint: Checkpoint, path: Path) -> Converted:
    """A training state of DeCLIP, without the heads and without <|mask|>.

    With that row gone, start and end have the ids that OpenAI's tokenizer gives them. Images are
    normalised with ImageNet's mean and deviation and resized to the tower's size at once; DeCLIP's
    own evaluation resizes to 256 and crops 224 out of that.

    Raises LabError for a ResNet instead of a ViT, and as `openai_config` does.
    """
    if not {"visual.conv1.weight", "visual.class_embedding"} <= checkpoint.weights.keys():
        raise LabError(
            f"{path} is a DeCLIP checkpoint with a ResNet as its image tower; only its vision "
            "transformers (ViT-B/32, ViT-B/16) can be opened."
        )
    kept, left_out = leave_out(checkpoint.weights, HEADS)
    weights = renamed(kept, lambda name: name.removeprefix(_TEXT))
    words = weights["token_embedding.weight"]
    # Others of that repository (CLIP, SLIP) have no <
    # mask
    # >.
    if len(words) == get_tokenizer("clip").vocab_size + 1:
        weights["token_embedding.weight"] = torch.cat([words[:MASK_ROW], words[MASK_ROW + 1 :]])
    if "logit_scale" in weights:
        # DeCLIP keeps it as [1], open_clip as a scalar.
        weights["logit_scale"] = weights["logit_scale"].reshape(())
    return Converted(
        "DeCLIP training state",
        declip_config(kept),
        weights,
        preprocess={"interpolation": "bilinear", **IMAGENET},
        facts={
            "left_out": left_out,
            "released_preprocess": "shorter side to 256, the middle 224 x 224",
        },
    )
