"""Models: loading, saving, stretching and running open_clip's two-tower models.

Everything is one kind of object, a `Clip`: an open_clip module with its tokenizer, its
preprocessing and a card that says where it comes from.
"""

from __future__ import annotations

from longclip_lab.models.clip import Clip, Tokens
from longclip_lab.models.tiny import build_tiny

__all__ = ["Clip", "Tokens", "build_tiny"]
