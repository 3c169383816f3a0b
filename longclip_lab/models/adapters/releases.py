"""Checkpoint files of BLIP, PTP-BLIP, X-VLM and X2-VLM in the form of their releases.

All are training states, {"model": ...}, whose unimodal heads have the names `vision_proj` and
`text_proj`. BLIP and PTP-BLIP share one layout and cannot be told apart.

Followed: salesforce/BLIP, models/blip_retrieval.py and models/blip_pretrain.py; sail-sg/ptp,
src/blip_src/models/blip_retrieval.py; zengyan-97/X-VLM, models/xvlm.py and dataset/__init__.py;
zengyan-97/X2-VLM, models/xvlm.py and dataset/__init__.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from open_clip.transform import PreprocessCfg
from torch import nn

from longclip_lab.errors import LabError
from longclip_lab.models.adapters import image_towers
from longclip_lab.models.adapters.adapter import Adapter, adapt
from longclip_lab.models.adapters.two_towers import TwoTowers, bert, linear
from longclip_lab.models.checkpoints import read_state_dict, renamed
from longclip_lab.models.filling import fitting
from longclip_lab.models.left_out import leave_out

_MOMENTUM = ("visual_encoder_m", "text_encoder_m", "vision_proj_m", "text_proj_m")
_QUEUES = ("image_queue", "text_queue", "idx_queue", "ptr_queue", "queue_ptr")
_TRAINING = (
    *_MOMENTUM,
    *_QUEUES,
    *("temp", "itm_head", "bbox_head", "mlm_head", "text_decoder", "cross_encoder"),
    *("text_encoder.cls", "text_encoder.pooler", "text_encoder.embeddings.position_ids"),
    "absolute_frame_pos_embed",
)
"""What a feature of one picture or one text does not need: matching, boxes, captions, momentum."""


@dataclass(frozen=True)
class Release:
    """One layout: its names for the image tower, and who rebuilds that."""

    kind: str
    image: str
    """The image tower's prefix."""
    sign: str
    """A weight of the image tower that only this layout has."""
    tower: Callable[[Mapping[str, torch.Tensor]], tuple[nn.Module, int]]
    tokens: int
    """To how many tokens the released evaluation of retrieval cuts a text."""


RELEASES = {
    "blip": Release("BLIP", "visual_encoder", "pos_embed", image_towers.vit, 35),
    "xvlm": Release(
        "X-VLM", "vision_encoder", "layers.0.blocks.0.attn.qkv.weight", image_towers.swin, 40
    ),
    "x2vlm": Release(
        "X2-VLM", "vision_encoder", "blocks.0.attn.q_bias", image_towers.beit2, 40
    ),
}  # fmt: skip


def which_release(state_dict: Mapping[str, torch.Tensor]) -> str | None:
    """The key of `RELEASES` whose layout `state_dict` has; None for any other."""
    if "vision_proj.weight" not in state_dict or "text_proj.weight" not in state_dict:
        return None
    if not any(name.startswith("text_encoder.") for name in state_dict):
        return None
    for name, release in RELEASES.items():
        if f"{release.image}.{release.sign}" in state_dict:
            return name
    return None


def is_release(state_dict: Mapping[str, torch.Tensor]) -> bool:
    """True for a state dict of BLIP's, X-VLM's or X2-VLM's layout."""
    return which_release(state_dict) is not None


def load_release(
    path: str | os.PathLike[str],
    weights: Mapping[str, torch.Tensor] | None = None,
    context_length: int | None = None,
) -> Adapter:
    """A checkpoint file of BLIP, PTP-BLIP, X-VLM or X2-VLM as an `Adapter`.

    Only what one picture's and one text's feature need is kept; `card["left_out"]` counts the
    rest by name. Texts may be as long as the BERT has positions (512); `card["released_tokens"]`
    says where the released evaluation cuts, `context_length` cuts there or elsewhere.

    `weights` spares reading the file again. Raises LabError as `read_state_dict` does, for other
    layouts and weights that do not fit.
    """
    path = Path(path)
    weights = read_state_dict(path) if weights is None else weights
    name = which_release(weights)
    if name is None:
        raise LabError(
            f"{path} has not the layout of BLIP, X-VLM (with a Swin) or X2-VLM (with a BEiT-2): "
            "expected vision_proj, text_proj, text_encoder and one of these image towers. "
            "longclip-lab inspect shows what it has."
        )
    release = RELEASES[name]
    with fitting(path, f"looks like {release.kind}, but does not fit it"):
        model, size, left_out = rebuild(release, weights)
    return adapt(
        model,
        {**asdict(PreprocessCfg(size=size)), "resize_mode": "squash"},
        path.name.split(".")[0],
        context_length=context_length,
        provenance=f"{release.kind} checkpoint file {path.name}",
        trained_on="not stated in the file",
        released_tokens=release.tokens,
        left_out=left_out,
    )


def load_blip(path: str | os.PathLike[str], context_length: int | None = None) -> Adapter:
    """A BLIP or PTP-BLIP file in the form of their releases, or a folder of transformers' BLIP.

    Raises LabError as `load_release` and `load_blip_folder` do.
    """
    from longclip_lab.models.adapters.hub_folders import load_blip_folder

    if Path(path).is_dir():
        return load_blip_folder(path, context_length)
    return _load_only("blip", path, context_length)


def load_xvlm(path: str | os.PathLike[str], context_length: int | None = None) -> Adapter:
    """An X-VLM file in the form of its release. Raises LabError as `load_release` does."""
    return _load_only("xvlm", path, context_length)


def load_x2vlm(path: str | os.PathLike[str], context_length: int | None = None) -> Adapter:
    """An X2-VLM file in the form of its release. Raises LabError as `load_release` does."""
    return _load_only("x2vlm", path, context_length)


def _load_only(name: str, path: str | os.PathLike[str], context_length: int | None) -> Adapter:
    weights = read_state_dict(path)
    found = which_release(weights)
    if found is not None and found != name:
        raise LabError(
            f"{path} is a checkpoint of {RELEASES[found].kind}, not of {RELEASES[name].kind}."
        )
    return load_release(path, weights, context_length)


def rebuild(
    release: Release, weights: Mapping[str, torch.Tensor]
) -> tuple[TwoTowers, int, dict[str, int]]:
    """The two towers, the size of the pictures and how many tensors were left out, by name.

    On the meta device it takes no memory and no time, and says as well what does not fit.

    Raises KeyError or RuntimeError for a weight that is missing, unexpected or of another shape,
    LabError for one that is no floating point numbers.
    """
    plain = renamed(weights, _without_bert)
    needed, left_out = leave_out(plain, _TRAINING)
    towers: dict[str, dict[str, torch.Tensor]] = {release.image: {}, "text_encoder": {}}
    for name, tensor in needed.items():
        part, _, rest = name.partition(".")
        if part in towers:
            towers[part][rest] = tensor
        elif part not in ("vision_proj", "text_proj"):
            raise RuntimeError(f"unexpected weight {name}")
    image, size = release.tower(towers[release.image])
    text, fusion = bert(towers["text_encoder"])
    heads = linear(needed, "vision_proj"), linear(needed, "text_proj")
    return TwoTowers(release.kind, image, text, *heads), size, left_out | fusion


def _without_bert(name: str) -> str:
    """Pretraining states have `bert.` after `text_encoder.`, fine-tuned ones have not."""
    return name.replace("text_encoder.bert.", "text_encoder.", 1)
