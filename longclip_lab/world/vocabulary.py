"""Everything the world can contain, and the words for it. Every list here is in a fixed order."""

from __future__ import annotations

from longclip_lab.errors import LabError, suggest

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
