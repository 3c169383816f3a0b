"""Models of transformers and diffusers on the hub, fetched into its cache as folders."""

from __future__ import annotations

from pathlib import Path
from textwrap import shorten

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from longclip_lab.errors import LabError

_ABOUT = ("*.json", "*merges.txt")
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")


def is_hub_id(name: str) -> bool:
    """True for "OWNER/NAME"."""
    return name.count("/") == 1 and all(name.split("/")) and not name.startswith((".", "~"))


def fetch(name: str, subfolder: str | None = None) -> Path:
    """The folder of "OWNER/NAME" in the hub's cache: its JSON, and the weights of `subfolder`.

    safetensors, or the older files where there are none. What is in the cache already needs no
    network. Raises LabError for what cannot be fetched.
    """
    inside = f"{subfolder}/" if subfolder else ""
    for pattern in _WEIGHTS:
        folder = _fetched(name, [*_ABOUT, f"{inside}{pattern}"])
        if any((folder / inside).glob(pattern)):
            break
    return folder


def _fetched(name: str, patterns: list[str]) -> Path:
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:
        raise LabError(
            f"'{name}' is no folder here, and could not be fetched from the hub: "
            f"{shorten(str(error), 300)}"
        ) from error
