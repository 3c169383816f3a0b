"""Pictures from long prompts: Long-CLIP in Stable Diffusion (Long-CLIP, supplement, section 3)."""

from __future__ import annotations

from longclip_lab.generation.judge import Judged, Seen, judge, see
from longclip_lab.generation.prompts import (
    STRATEGIES,
    Drawn,
    EncodedPrompt,
    draw,
    encode_prompt,
    read_prompt,
    split_prompt,
)
from longclip_lab.generation.text_encoders import load_pipeline, use_long_clip

__all__ = [
    "STRATEGIES",
    "Drawn",
    "EncodedPrompt",
    "Judged",
    "Seen",
    "draw",
    "encode_prompt",
    "judge",
    "load_pipeline",
    "read_prompt",
    "see",
    "split_prompt",
    "use_long_clip",
]
