"""Class names and templates by name, looked up when they are needed.

ImageNet's come from open_clip, whose import takes seconds: a table of protocols must not wait.
"""

from __future__ import annotations

from functools import cache

from longclip_lab import world
from longclip_lab.errors import LabError, suggest

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

CIFAR100_CLASSES = (
    "apple", "aquarium fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle",
    "bowl", "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle",
    "chair", "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup",
    "dinosaur", "dolphin", "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house",
    "kangaroo", "keyboard", "lamp", "lawn mower", "leopard", "lion", "lizard", "lobster", "man",
    "maple tree", "motorcycle", "mountain", "mouse", "mushroom", "oak tree", "orange", "orchid",
    "otter", "palm tree", "pear", "pickup truck", "pine tree", "plain", "plate", "poppy",
    "porcupine", "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal",
    "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar",
    "sunflower", "sweet pepper", "table", "tank", "telephone", "television", "tiger", "tractor",
    "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow tree", "wolf", "woman",
    "worm",
)  # fmt: skip

_PHOTOS = (
    *("a photo of {}", "a blurry photo of {}", "a black and white photo of {}"),
    *("a low contrast photo of {}", "a high contrast photo of {}", "a bad photo of {}"),
    *("a good photo of {}", "a photo of {} small", "a photo of {} big"),
)
CIFAR_TEMPLATES = tuple(
    f"{photo.format(article)} {{}}." for article in ("a", "the") for photo in _PHOTOS
)


@cache
def class_names(name: str) -> tuple[str, ...]:
    """The class names called `name`, in the order of the labels.

    Raises LabError for an unknown name.

    >>> class_names("cifar100 with underscores")[1]
    'aquarium_fish'
    """
    if name == "imagenet":
        from open_clip import IMAGENET_CLASSNAMES

        return tuple(IMAGENET_CLASSNAMES)
    known = {
        "": (),
        "cifar10": CIFAR10_CLASSES,
        "cifar100": CIFAR100_CLASSES,
        "cifar100 with underscores": tuple(one.replace(" ", "_") for one in CIFAR100_CLASSES),
        "world kind": tuple(world.classes("kind")),
        "world colour": tuple(world.classes("colour")),
    }
    return known[_checked(name, [*known, "imagenet"])]


@cache
def templates(name: str) -> tuple[str, ...]:
    """The templates called `name`, each with one "{}".

    Raises LabError for an unknown name.

    >>> len(templates("cifar")), templates("cifar")[0]
    (18, 'a photo of a {}.')
    """
    if name == "imagenet":
        from open_clip import OPENAI_IMAGENET_TEMPLATES

        return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
    known = {"": (), "cifar": CIFAR_TEMPLATES, "world": tuple(world.TEMPLATES)}
    return known[_checked(name, [*known, "imagenet"])]


def _checked(name: str, known: list[str]) -> str:
    if name not in known:
        raise LabError(f"There are no class names or templates {name!r}. {suggest(name, known)}")
    return name
