"""From a scene to a picture.

A kind is a list of body shapes, which take the thing's colour and pattern, and a list of trim
shapes with colours of their own. Shapes are (form, coordinates 0 to 1[, colour]); the forms are
`ellipse` and `rounded` (a box), `polygon` (points), `line` (points) and `arc`.

At 72 pixels a picture takes a fraction of a millisecond after the first few hundred; at 576 the
same scene is a poster.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from longclip_lab.world.scene import EXTENT, PIXELS, RGB, Scene

# --- The twelve kinds of things, drawn with Pillow on a unit square ---

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


# --- From a scene to a picture, of any size. Sprites and backgrounds are drawn once and kept ---

HORIZON = 0.46
SKY = {  # colours at the zenith and at the horizon
    "clear": ((92, 164, 226), (196, 228, 246)),
    "cloudy": ((142, 158, 176), (208, 216, 222)),
    "sunset": ((112, 74, 140), (252, 168, 106)),
    "starry": ((18, 22, 58), (58, 66, 122)),
}
GROUND = {  # colours at the horizon and at the lower edge
    "meadow": ((150, 198, 110), (96, 156, 76)),
    "beach": ((244, 226, 172), (222, 192, 128)),
    "desert": ((232, 168, 104), (196, 118, 70)),
    "street": ((150, 150, 156), (104, 104, 112)),
    "lake": ((118, 184, 204), (52, 118, 156)),
    "snowfield": ((236, 243, 250), (202, 216, 232)),
}


def _gradient(top: tuple, bottom: tuple, height: int, width: int) -> np.ndarray:
    ramp = np.linspace(0, 1, height)[:, None, None]
    colours = (1 - ramp) * np.array(top, float) + ramp * np.array(bottom, float)
    return np.broadcast_to(colours, (height, width, 3))


def _draw_light(draw: ImageDraw.ImageDraw, sky: str, light: str, side: int) -> None:
    x = {"left": 0.2, "middle": 0.5, "right": 0.8}[light] * side
    y, r = (0.36 if sky == "sunset" else 0.13) * side, 0.075 * side
    colour = {"clear": (255, 240, 150), "sunset": (255, 214, 120)}.get(sky, (238, 240, 246))
    draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    if sky == "starry":  # a crescent
        draw.ellipse((x - 0.4 * r, y - 1.1 * r, x + 1.4 * r, y + 0.7 * r), fill=(28, 32, 72))


def _draw_sky(draw: ImageDraw.ImageDraw, sky: str, light: str, side: int) -> None:
    _draw_light(draw, sky, light, side)
    rng = np.random.default_rng(7)
    if sky == "starry":
        for x, y in rng.uniform(0, 1, (46, 2)) * (side, HORIZON * side * 0.92):
            r = side * 0.004
            draw.ellipse((x - r, y - r, x + r, y + r), fill=(250, 250, 220))
    if sky in ("cloudy", "sunset"):
        fill = (236, 240, 243) if sky == "cloudy" else (244, 150, 132)
        for x, y, w in ((0.16, 0.17, 0.17), (0.55, 0.1, 0.22), (0.86, 0.24, 0.16)):
            if sky == "sunset":
                draw.rounded_rectangle(
                    ((x - w) * side, y * side, (x + w) * side, (y + 0.022) * side),
                    side * 0.011, fill=fill,
                )  # fmt: skip
                continue
            for dx, dy, r in ((-0.5, 0.01, 0.32), (0.0, -0.02, 0.45), (0.5, 0.01, 0.34)):
                cx, cy, cr = (x + dx * w) * side, (y + dy) * side, r * w * side
                draw.ellipse((cx - cr, cy - cr * 0.7, cx + cr, cy + cr * 0.7), fill=fill)


def _draw_ground(draw: ImageDraw.ImageDraw, ground: str, side: int) -> None:
    rng = np.random.default_rng(11)
    shade = tuple(int(c * 0.86) for c in GROUND[ground][1])
    pale = tuple(min(255, int(c * 1.09) + 8) for c in GROUND[ground][0])
    low = HORIZON * side
    if ground == "street":
        draw.polygon(
            [(0.44 * side, low), (0.56 * side, low), (1.02 * side, side), (-0.02 * side, side)],
            fill=(84, 84, 92),
        )
        for k in range(4):
            y0, y1 = (
                low + (side - low) * (k / 4) ** 1.4,
                low + (side - low) * ((k + 0.5) / 4) ** 1.4,
            )
            w = 0.004 + 0.012 * k
            draw.rectangle(((0.5 - w) * side, y0, (0.5 + w) * side, y1), fill=(240, 226, 140))
    elif ground in ("desert", "snowfield"):
        for x, y, w, h in ((0.2, 0.5, 0.5, 0.1), (0.85, 0.56, 0.45, 0.12), (0.4, 0.8, 0.6, 0.14)):
            draw.ellipse(
                ((x - w) * side, y * side, (x + w) * side, (y + 2 * h) * side),
                fill=pale if ground == "snowfield" else GROUND["desert"][0],
                outline=shade if ground == "desert" else None,
            )
    else:
        marks = {"meadow": 60, "beach": 46, "lake": 34}[ground]
        for x, depth in rng.uniform(0, 1, (marks, 2)):
            y = low + (0.04 + 0.94 * depth) * (side - low)
            length = side * (0.008 + 0.02 * depth) * (3.0 if ground == "lake" else 1.0)
            end = (x * side, y - length) if ground == "meadow" else (x * side + length, y)
            fill = pale if ground == "lake" else shade
            draw.line((x * side, y, *end), fill=fill, width=max(1, round(side * 0.005)))


@lru_cache(maxsize=512)
def background(ground: str, sky: str, light: str, pixels: int) -> Image.Image:
    """The empty stage, RGB, `pixels` x `pixels`."""
    side = pixels * SUPERSAMPLE
    low = round(HORIZON * side)
    canvas = np.concatenate(
        [_gradient(*SKY[sky], low, side), _gradient(*GROUND[ground], side - low, side)]
    )
    if sky == "starry":  # night falls on the ground too
        canvas[low:] = canvas[low:] * 0.62 + np.array([10, 14, 40])
    elif sky == "sunset":
        canvas[low:] = canvas[low:] * 0.82 + np.array([34, 14, 4])
    image = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    _draw_sky(draw, sky, light, side)
    ground_layer = image.copy()
    _draw_ground(ImageDraw.Draw(ground_layer), ground, side)
    return Image.blend(image, ground_layer, 0.75).resize((pixels, pixels), Image.BOX)


@lru_cache(maxsize=16384)
def sprite(
    kind: str, colour: str, pattern: str, orientation: str, extent: int
) -> tuple[Image.Image, Image.Image]:
    """RGB sprite and its alpha mask, with a margin for the soft shadow, ready to paste."""
    margin = max(1, extent // 12)
    big = draw_sprite(kind, colour, pattern, orientation, extent * SUPERSAMPLE)
    side = (extent + 2 * margin) * SUPERSAMPLE
    canvas = Image.new("RGBA", (side, side), (20, 20, 40, 0))
    shadow = Image.new("L", (side, side), 0)
    offset = margin * SUPERSAMPLE
    shift = max(1, offset // 2)
    shadow.paste(big.getchannel("A").point(lambda a: a * 0.45), (offset + shift, offset + shift))
    canvas.putalpha(shadow.filter(ImageFilter.GaussianBlur(shift * 0.8)))
    canvas.alpha_composite(big, (offset, offset))
    size = (extent + 2 * margin,) * 2
    premultiplied = canvas.convert("RGBa").resize(size, Image.BOX).convert("RGBA")
    return premultiplied.convert("RGB"), premultiplied.getchannel("A")


def draw(scene: Scene, pixels: int = PIXELS) -> Image.Image:
    """Draw a scene: RGB, `pixels` x `pixels`. The same scene always gives the same picture."""
    image = background(scene.ground, scene.sky, scene.light, pixels).copy()
    for thing in scene.things:
        extent = round(EXTENT[thing.size] * pixels)
        colours, mask = sprite(thing.kind, thing.colour, thing.pattern, thing.orientation, extent)
        corner = (
            round(thing.x * pixels - colours.width / 2),
            round(thing.y * pixels - colours.height / 2),
        )
        image.paste(colours, corner, mask)
    return image
