"""Telling picture sets apart."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from longclip_lab.errors import LabError
from longclip_lab.files import readable
from longclip_lab.images import READING
from longclip_lab.models.encoding import Images


def how_read(images: Images) -> str | None:
    """How the pixels of pictures are read (`images.READING`), for the identity of what is made of
    them; None for uint8 values, which are taken as they are."""
    return None if isinstance(images, np.ndarray | torch.Tensor) else READING


def pictures_hash(images: Images, contents: bool = False) -> str:
    """SHA-256 over the values of pictures, or over the names and sizes of their files.

    With `contents` the files are read, so that one that was changed in place is another picture.
    What is said of the pictures does not count: one store serves every captioner.
    Raises LabError for a file that is missing.
    """
    whole = hashlib.sha256()
    if isinstance(images, np.ndarray):
        whole.update(str(images.shape).encode())
        whole.update(np.ascontiguousarray(images).data)
        return f"sha256:{whole.hexdigest()}"
    for image in images:
        if not isinstance(image, str | Path):
            raise LabError("Features are stored for picture files or uint8 values only.")
        path = Path(image)
        try:
            said = (
                hashlib.sha256(path.read_bytes()).hexdigest() if contents else path.stat().st_size
            )
        except (OSError, ValueError):  # missing, or no name that a file can have
            raise LabError(f"There is no picture {readable(image)}.") from None
        whole.update(f"{readable(path.name)}\0{said}\n".encode())
    return f"sha256:{whole.hexdigest()}"
