"""From a scene to a picture, of any size. Sprites and backgrounds are drawn once and kept.

At 72 pixels a picture takes a fraction of a millisecond after the first few hundred; at 576 the
same scene is a poster.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from longclip_lab.world.scene import EXTENT, PIXELS, Scene
from longclip_lab.world.sprites import SUPERSAMPLE, draw_sprite

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
