"""The twelve kinds of things, drawn with Pillow on a unit square.

A kind is a list of body shapes, which take the thing's colour and pattern, and a list of trim
shapes with colours of their own. Shapes are (form, coordinates 0 to 1[, colour]); the forms are
`ellipse` and `rounded` (a box), `polygon` (points), `line` (points) and `arc`.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from longclip_lab.world.vocabulary import RGB

SUPERSAMPLE = 4
OUTLINE = (44, 42, 56)
DARK, WOOD, GLASS, CREAM, METAL = (
    (52, 50, 64), (128, 84, 52), (190, 228, 244), (252, 240, 214), (158, 164, 176),
)  # fmt: skip
TILT = {"upright": 0, "tilted": -38, "overturned": 180}

BODY: dict[str, list[tuple]] = {
    "house": [("polygon", (0.12, 0.46, 0.88, 0.46, 0.88, 0.96, 0.12, 0.96))],
    "tree": [
        ("ellipse", (0.06, 0.22, 0.56, 0.68)),
        ("ellipse", (0.44, 0.22, 0.94, 0.68)),
        ("ellipse", (0.2, 0.03, 0.8, 0.55)),
    ],
    "boat": [
        ("polygon", (0.02, 0.66, 0.98, 0.66, 0.8, 0.95, 0.2, 0.95)),
        ("polygon", (0.5, 0.04, 0.93, 0.6, 0.5, 0.6)),
    ],
    "car": [
        ("rounded", (0.02, 0.46, 0.98, 0.8)),
        ("polygon", (0.2, 0.5, 0.32, 0.2, 0.7, 0.2, 0.84, 0.5)),
    ],
    "balloon": [("ellipse", (0.16, 0.02, 0.84, 0.72))],
    "mushroom": [("polygon", "cap")],
    "fish": [
        ("polygon", (0.7, 0.5, 0.98, 0.2, 0.98, 0.8)),
        ("ellipse", (0.02, 0.22, 0.8, 0.78)),
    ],
    "bird": [
        ("polygon", (0.62, 0.52, 0.99, 0.36, 0.95, 0.62)),
        ("ellipse", (0.16, 0.34, 0.82, 0.82)),
        ("ellipse", (0.1, 0.12, 0.48, 0.5)),
    ],
    "parasol": [("polygon", "dome")],
    "rocket": [
        ("polygon", (0.34, 0.6, 0.12, 0.92, 0.36, 0.84)),
        ("polygon", (0.66, 0.6, 0.88, 0.92, 0.64, 0.84)),
        ("polygon", "hull"),
    ],
    "cup": [("polygon", (0.1, 0.24, 0.72, 0.24, 0.64, 0.92, 0.18, 0.92))],
    "kite": [("polygon", (0.5, 0.02, 0.86, 0.36, 0.5, 0.76, 0.14, 0.36))],
}
UNDER: dict[str, list[tuple]] = {  # trim that stands behind the body
    "tree": [("polygon", (0.42, 0.55, 0.58, 0.55, 0.62, 0.98, 0.38, 0.98), WOOD)],
    "boat": [("line", (0.47, 0.02, 0.47, 0.68), WOOD)],
    "balloon": [
        ("line", (0.3, 0.62, 0.42, 0.82), DARK),
        ("line", (0.7, 0.62, 0.58, 0.82), DARK),
        ("rounded", (0.38, 0.8, 0.62, 0.98), WOOD),
    ],
    "mushroom": [("rounded", (0.36, 0.4, 0.64, 0.97), CREAM)],
    "parasol": [
        ("line", (0.5, 0.1, 0.5, 0.88), DARK),
        ("arc", (0.5, 0.76, 0.7, 0.97, 0, 180), DARK),
    ],
    "rocket": [("polygon", (0.42, 0.82, 0.58, 0.82, 0.5, 1.0), (250, 170, 50))],
    "cup": [("arc", (0.56, 0.36, 0.96, 0.74, -100, 110), DARK)],
    "kite": [("line", (0.5, 0.74, 0.38, 0.84, 0.6, 0.9, 0.46, 0.99), DARK)],
}
OVER: dict[str, list[tuple]] = {  # trim that stands before the body
    "house": [
        ("polygon", (0.02, 0.48, 0.5, 0.04, 0.98, 0.48), (112, 64, 54)),
        ("rounded", (0.42, 0.66, 0.6, 0.96), WOOD),
        ("rounded", (0.2, 0.56, 0.36, 0.72), GLASS),
        ("rounded", (0.66, 0.56, 0.82, 0.72), GLASS),
    ],
    "car": [
        ("polygon", (0.29, 0.46, 0.37, 0.27, 0.49, 0.27, 0.49, 0.46), GLASS),
        ("polygon", (0.54, 0.46, 0.54, 0.27, 0.66, 0.27, 0.75, 0.46), GLASS),
        ("ellipse", (0.12, 0.64, 0.38, 0.92), DARK),
        ("ellipse", (0.62, 0.64, 0.88, 0.92), DARK),
        ("ellipse", (0.2, 0.72, 0.3, 0.84), METAL),
        ("ellipse", (0.7, 0.72, 0.8, 0.84), METAL),
    ],
    "fish": [
        ("ellipse", (0.15, 0.36, 0.27, 0.5), CREAM),
        ("ellipse", (0.18, 0.4, 0.24, 0.47), DARK),
    ],
    "bird": [
        ("polygon", (0.12, 0.26, 0.12, 0.4, 0.0, 0.34), (244, 168, 46)),
        ("ellipse", (0.2, 0.22, 0.3, 0.33), DARK),
        ("line", (0.42, 0.8, 0.4, 0.98), (196, 120, 40)),
        ("line", (0.58, 0.8, 0.58, 0.98), (196, 120, 40)),
        ("arc", (0.36, 0.36, 0.76, 0.7, 20, 150), DARK),
    ],
    "rocket": [("ellipse", (0.4, 0.3, 0.6, 0.5), GLASS)],
    "kite": [("line", (0.5, 0.02, 0.5, 0.76), DARK), ("line", (0.14, 0.36, 0.86, 0.36), DARK)],
}  # fmt: skip


def _curve(name: str) -> tuple[float, ...]:
    """Outlines that are easier to compute than to list."""
    t = np.linspace(0, np.pi, 24)
    if name == "cap":
        points = np.stack([0.5 - 0.47 * np.cos(t), 0.55 - 0.5 * np.sin(t)], 1)
    elif name == "dome":
        arch = np.stack([0.5 - 0.48 * np.cos(t), 0.54 - 0.48 * np.sin(t)], 1)
        hem = np.linspace(0.98, 0.02, 40)
        scallops = np.stack([hem, 0.54 - 0.07 * np.abs(np.sin((hem - 0.02) / 0.96 * 4 * np.pi))], 1)
        points = np.concatenate([arch, scallops])
    else:  # "hull"
        nose = np.linspace(-1, 1, 24)
        points = np.stack([0.5 + 0.2 * nose, 0.02 + 0.4 * np.abs(nose) ** 1.8], 1)
        points = np.concatenate([points, [[0.7, 0.82], [0.3, 0.82]]])
    return tuple(points.ravel())


def _paint(draw: ImageDraw.ImageDraw, shape: tuple, side: int, fill, outline, width: int) -> None:
    form, coordinates = shape[0], shape[1]
    if isinstance(coordinates, str):
        coordinates = _curve(coordinates)
    if form == "arc":
        *box, start, end = coordinates
        draw.arc([c * side for c in box], start, end, fill=fill, width=2 * width)
        return
    points = [c * side for c in coordinates]
    if form == "ellipse":
        draw.ellipse(points, fill=fill, outline=outline, width=width)
    elif form == "rounded":
        draw.rounded_rectangle(points, side * 0.04, fill=fill, outline=outline, width=width)
    elif form == "line":
        draw.line(points, fill=fill, width=2 * width, joint="curve")
    else:
        pairs = list(zip(points[::2], points[1::2], strict=True))
        draw.polygon(pairs, fill=fill)
        if outline is not None:
            draw.line([*pairs, pairs[0], pairs[1]], fill=outline, width=width, joint="curve")


@lru_cache(maxsize=256)
def _fill(colour: str, pattern: str, side: int) -> Image.Image:
    """The body's paint: a soft vertical shading, with stripes or dots in a contrasting tone."""
    base = np.array(RGB[colour], float)
    y, x = np.mgrid[0:side, 0:side] / side
    paint = base + (0.5 - y[..., None]) * 46
    ink = base * 0.3 if base.mean() > 128 else base * 0.3 + 178
    if pattern == "striped":
        marks = np.mod(x * 5.0 + 0.25, 1) < 0.46
    elif pattern == "dotted":
        u, v = np.mod(x * 4.2, 1) - 0.5, np.mod(y * 4.2, 1) - 0.5
        marks = u * u + v * v < 0.105
    else:
        marks = np.zeros_like(x, bool)
    paint[marks] = ink
    return Image.fromarray(paint.clip(0, 255).astype(np.uint8))


def draw_sprite(kind: str, colour: str, pattern: str, orientation: str, side: int) -> Image.Image:
    """One thing on a transparent square of `side` pixels, without anti-aliasing."""
    image = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    width = max(1, round(side * 0.022))
    for shape in UNDER.get(kind, []):
        _paint(draw, shape, side, shape[2], OUTLINE, width)
    outline, inside = Image.new("L", (side, side), 0), Image.new("L", (side, side), 0)
    for shape in BODY[kind]:
        _paint(ImageDraw.Draw(outline), shape, side, 255, 255, 2 * width)
    for shape in BODY[kind]:
        _paint(ImageDraw.Draw(inside), shape, side, 255, 0, width)
        if len(BODY[kind]) > 1:  # later shapes join the earlier ones without a seam
            _paint(ImageDraw.Draw(inside), shape, side, 255, None, width)
    image.paste(OUTLINE, (0, 0), outline)
    image.paste(_fill(colour, pattern, side), (0, 0), inside)
    for shape in OVER.get(kind, []):
        _paint(draw, shape, side, shape[2], OUTLINE, width)
    if orientation == "tilted":  # smaller, so that no corner leaves the square
        image = image.transform(
            image.size,
            Image.AFFINE,
            (1.18, 0, -0.09 * side, 0, 1.18, -0.09 * side),
            Image.BILINEAR,
        )
    return image.rotate(TILT[orientation], Image.BILINEAR)
