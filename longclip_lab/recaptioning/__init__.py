"""Recaptioning (LoTLIP, section 4.1): long captions of pictures by image-to-text models.

`recaption` writes them, file by file; `with_captions` and `to_sharegpt4v` bring them into training;
`hallucinated` says, in the drawn world, how much of them is not so.
"""

from __future__ import annotations

from longclip_lab.recaptioning.captioner import (
    FAMILIES,
    PROMPT,
    Asking,
    Captioner,
    Described,
    Family,
    load_captioner,
)
from longclip_lab.recaptioning.hallucination import (
    SYNONYMS,
    Claim,
    Hallucinated,
    claims,
    hallucinated,
)
from longclip_lab.recaptioning.run import (
    Folder,
    ImageRuns,
    Line,
    Recaptioned,
    Run,
    image_runs,
    open_folder,
    read_lines,
    read_record,
    recaption,
    to_sharegpt4v,
    with_captions,
)

__all__ = [
    "FAMILIES",
    "PROMPT",
    "SYNONYMS",
    "Asking",
    "Captioner",
    "Claim",
    "Described",
    "Family",
    "Folder",
    "Hallucinated",
    "ImageRuns",
    "Line",
    "Recaptioned",
    "Run",
    "claims",
    "hallucinated",
    "image_runs",
    "load_captioner",
    "open_folder",
    "read_lines",
    "read_record",
    "recaption",
    "to_sharegpt4v",
    "with_captions",
]
