"""Constants that several rooms share."""

from __future__ import annotations

from collections.abc import Mapping

OLD_OBJECTIVES: Mapping[str, str] = {"pcm": "longclip"}
"""Objectives by a name that they had before, still understood wherever one is named."""

CONTEXTS = (77, 128, 248)
"""Tokens that CLIP, LoTLIP and Long-CLIP read of a text, start and end included."""
