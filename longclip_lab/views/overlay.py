"""Scores laid over a picture: grey picture below, orange for more, blue for less, clear for none.

Orange and blue are told apart by everybody, and both can be seen on grey. h w rows and columns of
the patch grid, S side of the picture.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from PIL import Image

from longclip_lab.attribution import PatchMap
from longclip_lab.views.html import picture_uri

MORE, LESS = "230, 120, 0", "0, 114, 178"
DRAWING = 100  # pixels; smaller pictures are drawings and stored without loss
SMALL, LARGE = 160, 224  # pixels of a stored picture, one of many or alone
_STRONGEST = 0.9
_STOPS = 13


def strength(share: float) -> float:
    """How opaque a colour is at a share of the largest score, 0 to 1: small scores stay faint."""
    return _STRONGEST * abs(share) ** 1.4


def signed_range(low: float, high: float) -> tuple[float, float]:
    """The range of the colours: around 0 if scores on both sides matter, else as it is.

    >>> signed_range(-0.5, 1.0), signed_range(-0.05, 1.0), signed_range(0.2, 0.2)
    ((-1.0, 1.0), (-0.05, 1.0), (0.2, 1.2))
    """
    if low < 0 < high and min(-low, high) > 0.2 * max(-low, high):
        return -max(-low, high), max(-low, high)
    return (low, high) if high > low else (low, low + 1)


def coloured(scores_hw: np.ndarray, span: tuple[float, float] | None = None) -> dict[str, Any]:
    """The scores, range and colours of a plotly heat map; `span` is a range shared with others."""
    low, high = span or (float(scores_hw.min()), float(scores_hw.max()))
    low, high = signed_range(low, high)
    signed = low == -high
    stops = []
    for at in np.linspace(0, 1, _STOPS):
        place = 2 * at - 1 if signed else at
        stops.append(
            [round(float(at), 3), f"rgba({LESS if place < 0 else MORE}, {strength(place):.3f})"]
        )
    z = [[float(f"{value:.3g}") for value in row] for row in scores_hw]
    return {"z": z, "zmin": low, "zmax": high, "colorscale": stops}


def placed(found: PatchMap) -> dict[str, float]:
    """Where a heat map's first cell lies on axes that count patches: the map may be shifted."""
    (height, width), (rows, columns) = found.image.shape[:2], found.grid
    return {
        "x0": 0.5 + found.shift[0] * columns / width,
        "y0": 0.5 + found.shift[1] * rows / height,
    }


def add_grey(
    chart: go.Figure,
    image_SS3: np.ndarray,
    grid: tuple[int, int],
    axes: tuple[str, str],
    pixels: int = LARGE,
) -> None:
    """The picture in grey on two axes that run from 0 to the number of patches, row 0 on top."""
    picture = Image.fromarray(image_SS3).convert("L")
    picture.thumbnail((pixels, pixels))
    chart.add_layout_image(
        source=picture_uri(picture, photo=len(image_SS3) > DRAWING), x=0, y=0, sizex=grid[1],
        sizey=grid[0], xref=axes[0], yref=axes[1], sizing="stretch", layer="below",
    )  # fmt: skip
