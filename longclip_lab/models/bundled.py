"""Where the models that come with the lab are: beside a clone, or inside an installed wheel."""

from __future__ import annotations

from pathlib import Path

import longclip_lab
from longclip_lab.errors import LabError, suggest

_CONFIG = "clip.json"


def data_folder() -> Path:
    """The folder of bundled data: `longclip_lab/_bundled` of a wheel, or `data` of the clone.

    Raises LabError if there is neither.
    """
    package = Path(longclip_lab.__file__).parent
    places = [package / "_bundled", package.parent / "data"]
    for place in places:
        if place.is_dir():
            return place
    raise LabError(
        "The bundled models are missing: neither "
        f"{' nor '.join(str(place) for place in places)} is a folder. Install the wheel or work "
        "in a full clone of the repository."
    )


def bundled_names() -> list[str]:
    """The names of the bundled models, sorted; empty if the bundled data is missing."""
    try:
        folders = data_folder().iterdir()
    except LabError:
        return []
    return sorted(folder.name for folder in folders if (folder / _CONFIG).is_file())


def bundled_folder(name: str) -> Path:
    """The folder of the bundled model `name`.

    Raises LabError for a name that is not bundled, with the near ones.
    """
    folder = data_folder() / name
    if not (folder / _CONFIG).is_file():
        raise LabError(f"No bundled model is called '{name}'. {suggest(name, bundled_names())}")
    return folder
