"""Models of transformers and diffusers on the hub, fetched into its cache as folders."""

from __future__ import annotations

import ssl
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from urllib.error import HTTPError

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from longclip_lab.errors import LabError

_ABOUT = ("*.json", "*merges.txt")
_PATIENCE = 5.0  # seconds
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")


def is_hub_id(name: str) -> bool:
    """True for "OWNER/NAME"."""
    return name.count("/") == 1 and all(name.split("/")) and not name.startswith((".", "~"))


@contextmanager
def answering_at_once(name: str) -> Iterator[None]:
    """Inside the block the hub counts as offline if it does not answer now.

    Otherwise every request is repeated for half a minute before it fails. What is in the hub's
    cache loads all the same. Raises LabError, in place of the one raised in the block, that says
    why the hub was not asked. HF_HUB_OFFLINE is left as it is set.
    """
    reason = None if constants.HF_HUB_OFFLINE else _unreachable(constants.ENDPOINT)
    if reason is None:
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    except LabError as error:
        raise LabError(
            f"'{name}' is no file or folder here and not in the hub's cache, and the hub "
            f"({constants.ENDPOINT}) cannot be reached: {reason}. Give a path, or a bundled model."
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = False


def _unreachable(address: str) -> str | None:
    """Why there is no connection, through the proxies that are set; None if there is one."""
    request = urllib.request.Request(address, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_PATIENCE).close()
    except HTTPError:
        return None  # it answered
    except OSError as error:
        cause = getattr(error, "reason", error)
        # The hub's own client may trust other authorities.
        return None if isinstance(cause, ssl.SSLError) else str(cause)
    return None


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
