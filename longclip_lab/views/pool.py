"""Pictures with texts, in whichever form the reader has them, as the views take them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image, ImageOps

from longclip_lab.errors import LabError
from longclip_lab.images import as_rgb, open_image
from longclip_lab.views.html import picture, picture_uri

THUMBNAIL = 144  # pixels; shown smaller, so that they stay sharp on good screens
_SMALLEST = 48
_MOST_BYTES = 400_000


@dataclass(frozen=True)
class Pool:
    """N pictures (arrays, PIL pictures or paths) with a short and a long text each.

    `scenes` and `long_captions` are there for pictures of the drawn world, else empty.
    """

    images: Any
    short: list[str]
    long: list[str]
    scenes: Sequence[Any] = ()
    long_captions: Sequence[Any] = ()
    source: dict[str, Any] = field(default_factory=dict)
    _thumbnails: dict[tuple[int, int, bool], str] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.images)

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of picture `index` upright, in pixels."""
        source = self.images[index]
        if isinstance(source, str | os.PathLike):
            return open_image(source).size
        return as_rgb(source).size if isinstance(source, Image.Image) else source.shape[1::-1]

    def thumbnail(self, index: int, pixels: int = THUMBNAIL, redraw: bool = False) -> str:
        """Picture `index` as a data URI of at most `pixels` x `pixels`; each is made once.

        `redraw` draws a scene of the world anew, which is sharper and takes 0.1 seconds; otherwise
        the picture that the model sees is enlarged.
        """
        key = int(index), pixels, redraw
        if key not in self._thumbnails:
            made = picture(self if redraw else replace(self, scenes=()), key[0], pixels)
            if max(made.size) < pixels:
                made = ImageOps.contain(made, (pixels, pixels), Image.Resampling.BICUBIC)
            self._thumbnails[key] = picture_uri(made, photo=True)
        return self._thumbnails[key]

    def thumbnails(self, indices: Iterable[int], pixels: int = THUMBNAIL) -> dict[str, str]:
        """Pictures by their index as text, sharp, and smaller if they are many: at most 400 KB."""
        indices = sorted(int(i) for i in set(indices))
        while True:
            made = {str(i): self.thumbnail(i, pixels, redraw=True) for i in indices}
            if sum(map(len, made.values())) <= _MOST_BYTES or pixels <= _SMALLEST:
                return made
            pixels = max(_SMALLEST, round(0.75 * pixels))


def as_pool(pairs: Any, texts: Sequence[str] | None = None) -> Pool:
    """A pool of anything with `.images` and `.short` or `.long`, or of pictures and `texts`.

    What has only one of short and long texts is read with it as both. Raises LabError for other
    things, for no pictures, and if the numbers of pictures and texts differ.

    >>> as_pool(["a.jpg", "b.jpg"], ["a boat", "a tower"]).long
    ['a boat', 'a tower']
    """
    if texts is not None:
        images, short, long = pairs, list(texts), list(texts)
    else:
        images = getattr(pairs, "images", None)
        short, long = (getattr(pairs, name, None) for name in ("short", "long"))
        if images is None or (short is None and long is None):
            raise LabError(
                "expected pairs with .images and .short or .long, or a list of pictures with a "
                f"list of texts, got {type(pairs).__name__}."
            )
        short, long = list(long if short is None else short), list(short if long is None else long)
    if not len(images) or not len(images) == len(short) == len(long):
        raise LabError(
            f"expected one text for every picture and at least one picture, got {len(images)} "
            f"pictures, {len(short)} short and {len(long)} long texts."
        )
    return Pool(
        images, short, long,
        scenes=getattr(pairs, "scenes", None) or (),
        long_captions=getattr(pairs, "long_captions", None) or (),
        source=dict(getattr(pairs, "source", None) or {}),
    )  # fmt: skip
