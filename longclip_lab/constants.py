"""Constants that several rooms share."""

from __future__ import annotations

from collections.abc import Mapping

OLD_OBJECTIVES: Mapping[str, str] = {"pcm": "longclip"}
"""Objectives by a name that they had before, still understood wherever one is named."""
