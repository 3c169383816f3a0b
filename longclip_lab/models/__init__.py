"""Models: loading, saving, stretching and running open_clip's two-tower models.

Everything is one kind of object, a `Clip`: an open_clip module with its tokenizer, its
preprocessing and a card that says where it comes from. `load` opens the door to all formats,
`stretch` makes a model read longer texts, `encode_texts` and `encode_images` run it without
spending time on padding.
"""

from __future__ import annotations

from longclip_lab.models.assembly import assemble, new_tiny
from longclip_lab.models.bundled import bundled_folder, bundled_names, data_folder
from longclip_lab.models.clip import Clip, Tokens
from longclip_lab.models.encoding import TextFeatures, encode_images, encode_texts, pixels
from longclip_lab.models.folder import save
from longclip_lab.models.loading import load
from longclip_lab.models.positions import METHODS, stretch_positions
from longclip_lab.models.stretching import stretch
from longclip_lab.models.tiny import build_tiny

__all__ = [
    "METHODS",
    "Clip",
    "TextFeatures",
    "Tokens",
    "assemble",
    "build_tiny",
    "bundled_folder",
    "bundled_names",
    "data_folder",
    "encode_images",
    "encode_texts",
    "load",
    "new_tiny",
    "pixels",
    "save",
    "stretch",
    "stretch_positions",
]
