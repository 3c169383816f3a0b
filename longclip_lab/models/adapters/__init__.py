"""Models that are not open_clip's, with the interface that encoding, evaluation and probes need.

ALIGN and BLIP run through transformers; BLIP's, PTP-BLIP's, X-VLM's and X2-VLM's own files are
rebuilt on timm and transformers. `load` opens all of them where it can tell what they are.
"""

from __future__ import annotations

from longclip_lab.models.adapters.adapter import Adapter, EmbeddingModel, NotOpenClipError, adapt
from longclip_lab.models.adapters.hub_folders import load_align, load_blip_folder
from longclip_lab.models.adapters.releases import (
    is_release,
    load_blip,
    load_release,
    load_x2vlm,
    load_xvlm,
)

__all__ = [
    "Adapter",
    "EmbeddingModel",
    "NotOpenClipError",
    "adapt",
    "is_release",
    "load_align",
    "load_blip",
    "load_blip_folder",
    "load_release",
    "load_x2vlm",
    "load_xvlm",
]
