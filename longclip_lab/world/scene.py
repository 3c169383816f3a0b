"""Scenes: the vocabulary of the world, and what is in a picture before it is drawn or described.

A scene has a ground, a sky, a light and 5 to 8 things of different kinds in different cells of a
3 x 3 grid; one or two are large and dominate. Boxes are (x0, y0, x1, y1) in pixels, origin top
left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from longclip_lab.errors import LabError, suggest

# --- Everything the world can contain, and the words for it. Every list here is in a fixed ---

KINDS = (
    "house", "tree", "boat", "car", "balloon", "mushroom",
    "fish", "bird", "parasol", "rocket", "cup", "kite",
)  # fmt: skip
COLOURS = ("red", "brown", "yellow", "green", "blue", "purple", "pink", "white")
SIZES = ("large", "medium", "small")
PATTERNS = ("plain", "striped", "dotted")
ORIENTATIONS = ("upright", "tilted", "overturned")
GROUNDS = ("meadow", "beach", "desert", "street", "lake", "snowfield")
SKIES = ("clear", "cloudy", "sunset", "starry")
LIGHTS = ("left", "middle", "right")

# Cell c of the 3 x 3 grid has row c // 3 (from the top) and column c % 3 (from the left).
PLACES = (
    "at the top left", "at the top", "at the top right",
    "on the left", "in the centre", "on the right",
    "at the bottom left", "at the bottom", "at the bottom right",
)  # fmt: skip
RELATIONS = ("left of", "right of", "above", "below")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# Attributes of a thing and their values. Summaries name kind and colour only.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "kind": KINDS,
    "colour": COLOURS,
    "size": SIZES,
    "pattern": PATTERNS,
    "orientation": ORIENTATIONS,
    "place": PLACES,
    "relation": RELATIONS,
}

RGB = {
    "red": (212, 52, 48),
    "brown": (150, 92, 54),
    "yellow": (250, 212, 62),
    "green": (62, 150, 74),
    "blue": (52, 104, 200),
    "purple": (128, 76, 176),
    "pink": (244, 138, 178),
    "white": (248, 247, 242),
}

# Zero-shot templates, in words of the world.
TEMPLATES = (
    "a {}.",
    "the {}.",
    "a picture of a {}.",
    "there is a {} in the picture.",
    "we see a {}.",
)


def classes(attribute: str) -> tuple[str, ...]:
    """The values of an attribute, in the order of the labels.

    >>> classes("size")
    ('large', 'medium', 'small')
    """
    if attribute not in ATTRIBUTES:
        raise LabError(
            f"expected an attribute of the world, got {attribute!r}. "
            + suggest(attribute, ATTRIBUTES)
        )
    return ATTRIBUTES[attribute]


# --- Scenes: what is in a picture, before it is drawn or told ---

PIXELS = 72
EXTENT = {"large": 0.43, "medium": 0.29, "small": 0.19}  # side of a thing / side of the picture


@dataclass(frozen=True)
class Thing:
    """One thing: its attributes, its cell (0 to 8) and the centre of its box (0 to 1)."""

    kind: str
    colour: str
    size: str
    pattern: str
    orientation: str
    cell: int
    x: float
    y: float

    @property
    def place(self) -> str:
        return PLACES[self.cell]

    def box(self, pixels: int = PIXELS) -> tuple[float, float, float, float]:
        """Bounding square (x0, y0, x1, y1) in pixels of a picture with sides of `pixels`."""
        half = EXTENT[self.size] / 2
        return (
            (self.x - half) * pixels,
            (self.y - half) * pixels,
            (self.x + half) * pixels,
            (self.y + half) * pixels,
        )


@dataclass(frozen=True)
class Scene:
    """Ground, sky, light (where sun or moon stands) and the things, the largest first."""

    ground: str
    sky: str
    light: str
    things: tuple[Thing, ...]

    @property
    def main(self) -> tuple[int, int]:
        """Indices of the two things that a summary names: the two largest."""
        return (0, 1)

    def change(self, index: int, **attributes: object) -> Scene:
        """The same scene with some attributes of one thing changed."""
        things = list(self.things)
        things[index] = replace(things[index], **attributes)
        return replace(self, things=tuple(things))


def relation(one: Thing, other: Thing) -> str | None:
    """How `one` lies to `other` on the grid, or None if neither axis decides.

    The axis with the larger distance decides; with equal distances there is no relation.
    """
    rows = one.cell // 3 - other.cell // 3
    columns = one.cell % 3 - other.cell % 3
    if abs(rows) == abs(columns):
        return None
    if abs(columns) > abs(rows):
        return "left of" if columns < 0 else "right of"
    return "above" if rows < 0 else "below"


def _place_in_cell(cell: int, size: str, rng: np.random.Generator) -> tuple[float, float]:
    """A centre near the middle of the cell, with the whole thing inside the picture."""
    half = EXTENT[size] / 2
    centre = np.array([(cell % 3 + 0.5) / 3, (cell // 3 + 0.5) / 3])
    x, y = np.clip(centre + rng.uniform(-0.045, 0.045, 2), half + 0.01, 1 - half - 0.01)
    return float(x), float(y)


def random_scene(rng: np.random.Generator, count: int | None = None) -> Scene:
    """Draw a scene with `count` things (5 to 8 when None); kinds and cells are all different.

    Errors: LabError if count is not in 1..8.
    """
    if count is None:
        count = int(rng.integers(5, 9))
    if not 1 <= count <= 8:
        raise LabError(f"expected 1 to 8 things in a scene, got {count}. Choose another count.")
    large = min(count, int(rng.integers(1, 3)))
    rest = sorted(rng.choice(SIZES[1:], count - large, p=[0.45, 0.55]))  # "medium" < "small"
    sizes = ["large"] * large + [str(size) for size in rest]
    kinds = rng.choice(len(KINDS), count, replace=False)
    cells = rng.choice(9, count, replace=False)
    things = []
    for size, kind, cell in zip(sizes, kinds, cells, strict=True):
        x, y = _place_in_cell(int(cell), size, rng)
        things.append(
            Thing(
                kind=KINDS[kind],
                colour=str(rng.choice(COLOURS)),
                size=size,
                pattern=str(rng.choice(PATTERNS)),
                orientation=str(rng.choice(ORIENTATIONS, p=[0.5, 0.25, 0.25])),
                cell=int(cell),
                x=x,
                y=y,
            )
        )
    return Scene(
        ground=str(rng.choice(GROUNDS)),
        sky=str(rng.choice(SKIES)),
        light=str(rng.choice(LIGHTS)),
        things=tuple(things),
    )


def sibling(scene: Scene, rng: np.random.Generator) -> Scene:
    """Another scene with the same summary: ground, sky, kind and colour of the main things.

    Everything else is drawn anew: places, patterns, orientations, light and all other things.
    """
    while True:
        other = random_scene(rng)
        kinds = {thing.kind for thing in other.things[2:]}
        if not kinds & {scene.things[i].kind for i in scene.main}:
            break
    for i in scene.main:
        other = other.change(i, kind=scene.things[i].kind, colour=scene.things[i].colour)
    return replace(other, ground=scene.ground, sky=scene.sky)


def single_thing_scene(rng: np.random.Generator) -> Scene:
    """A scene with one thing of a random size, for zero-shot classification."""
    scene = random_scene(rng, count=1)
    size = str(rng.choice(SIZES[:2]))
    x, y = _place_in_cell(scene.things[0].cell, size, rng)
    return scene.change(0, size=size, x=x, y=y)


def move(scene: Scene, index: int, cell: int, rng: np.random.Generator) -> Scene:
    """The same scene with one thing in another (free) cell."""
    x, y = _place_in_cell(cell, scene.things[index].size, rng)
    return scene.change(index, cell=cell, x=x, y=y)
