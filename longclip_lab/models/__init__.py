"""Models: loading, saving, stretching and running open_clip's two-tower models.

Everything is one kind of object, a `Clip`: an open_clip module with its tokenizer, its
preprocessing and a card that says where it comes from. `load` opens the door to all formats,
`stretch` makes a model read longer texts, `encode_texts` and `encode_images` run it without
spending time on padding.
"""

from __future__ import annotations

from longclip_lab.models import adapters, anatomy
from longclip_lab.models.adapters import Adapter
from longclip_lab.models.build import (
    IMAGE_TOWERS,
    add_corner_tokens,
    assemble,
    build_lotlip,
    graft,
    new_tiny,
    world_bert,
)
from longclip_lab.models.clip import Clip, TextTower, Tokens
from longclip_lab.models.corner_tokens import (
    CornerTokens,
    causal_corner_mask,
    corner_attention_mask,
    corners_of,
    encode_corner_tokens,
    encode_text_corners,
)
from longclip_lab.models.encoding import TextFeatures, encode_images, encode_texts, pixels
from longclip_lab.models.flops import TextTowerSize, text_flops, text_tower_size
from longclip_lab.models.formats.export import FORMATS, export
from longclip_lab.models.formats.hf import load_text_tower
from longclip_lab.models.formats.lotlip import lotlip_state_dict
from longclip_lab.models.formats.parity import Parity, parity
from longclip_lab.models.inspect import Inspection, inspect
from longclip_lab.models.kps import METHODS, stretch, stretch_positions
from longclip_lab.models.load import load, save
from longclip_lab.models.tiny import build_tiny, bundled_folder, bundled_names, data_folder
from longclip_lab.models.towers import encode_image_tokens, encode_text_tokens

__all__ = [
    "FORMATS",
    "IMAGE_TOWERS",
    "METHODS",
    "Adapter",
    "Clip",
    "CornerTokens",
    "Inspection",
    "Parity",
    "TextFeatures",
    "TextTower",
    "TextTowerSize",
    "Tokens",
    "adapters",
    "add_corner_tokens",
    "anatomy",
    "assemble",
    "build_lotlip",
    "build_tiny",
    "bundled_folder",
    "bundled_names",
    "causal_corner_mask",
    "corner_attention_mask",
    "corners_of",
    "data_folder",
    "encode_corner_tokens",
    "encode_image_tokens",
    "encode_images",
    "encode_text_corners",
    "encode_text_tokens",
    "encode_texts",
    "export",
    "graft",
    "inspect",
    "load",
    "load_text_tower",
    "lotlip_state_dict",
    "new_tiny",
    "parity",
    "pixels",
    "save",
    "stretch",
    "stretch_positions",
    "text_flops",
    "text_tower_size",
    "world_bert",
]
