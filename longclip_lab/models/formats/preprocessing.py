"""How pictures are prepared: transformers' preprocessor_config.json and open_clip's facts."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from longclip_lab.errors import LabError, LabWarning
from longclip_lab.models.formats.folders import read_json

FILE = "preprocessor_config.json"
_NEWER = "processor_config.json"
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # PIL's numbers
_NUMBERS = {name: number for number, name in _INTERPOLATIONS.items()}


def read_preprocessing(folder: Path, image_size: int) -> dict[str, Any]:
    """What differs from OpenAI's preprocessing, under open_clip's names; the size is the tower's.

    A LabWarning says when the folder tells nothing and OpenAI's is taken, and when it prepares
    pictures of another size than the tower takes. Raises LabError for a way of resizing that
    open_clip does not have.
    """
    if (folder / FILE).is_file():
        facts = read_json(folder / FILE)
    elif (folder / _NEWER).is_file():
        facts = read_json(folder / _NEWER).get("image_processor", {})
    else:
        warnings.warn(
            f"{folder} has no {FILE}: pictures are prepared as OpenAI prepares them.",
            LabWarning,
            stacklevel=3,
        )
        return {}
    resized, cropped = facts.get("size", image_size), facts.get("crop_size", image_size)
    squashed = isinstance(resized, dict) and "shortest_edge" not in resized
    final = cropped if facts.get("do_center_crop", True) else resized
    if isinstance(final, dict):
        final = final.get("height", final.get("shortest_edge"))
    if final != image_size:
        warnings.warn(
            f"{folder} prepares pictures of {final} pixels, but its tower takes {image_size}: "
            f"{image_size} it is.",
            LabWarning,
            stacklevel=3,
        )
    resample = facts.get("resample", 3)
    if resample not in _INTERPOLATIONS:
        raise LabError(f"{folder} resizes pictures in PIL's way {resample}: expected 2 or 3.")
    told = {"mean": facts.get("image_mean"), "std": facts.get("image_std")}
    told = {name: tuple(values) for name, values in told.items() if values is not None}
    resize_mode = "squash" if squashed else "shortest"
    return {**told, "interpolation": _INTERPOLATIONS[resample], "resize_mode": resize_mode}


def preprocessor_config(facts: dict[str, Any]) -> dict[str, Any]:
    """preprocessor_config.json for the facts of `Clip.card["preprocess"]`.

    Raises LabError for what `CLIPImageProcessor` cannot do.
    """
    size = facts["size"]
    edge = size if isinstance(size, int) else size[0]
    mode = facts["resize_mode"]
    if mode not in ("shortest", "squash"):
        raise LabError(f"pictures are resized in the way '{mode}', which CLIPImageProcessor lacks")
    if facts["interpolation"] not in _NUMBERS:
        raise LabError(f"pictures are resized by '{facts['interpolation']}'")
    square = {"height": edge, "width": edge}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "feature_extractor_type": "CLIPFeatureExtractor",  # the name in older versions
        "processor_class": "CLIPProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": square if mode == "squash" else {"shortest_edge": edge},
        "resample": _NUMBERS[facts["interpolation"]],
        "do_center_crop": mode == "shortest",
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(facts["mean"]),
        "image_std": list(facts["std"]),
    }
