"""HTML for notebooks and reports: captions, images, overlays.

Orange and blue are told apart by everybody, and both can be seen on grey. h w rows and columns of
the patch grid, S side of the picture.
"""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from PIL import Image, ImageOps

from longclip_lab.attribution import PatchMap
from longclip_lab.errors import LabError
from longclip_lab.images import as_rgb, open_image
from longclip_lab.text import TokenizedText, get_tokenizer
from longclip_lab.views.theme import capital

if TYPE_CHECKING:
    from longclip_lab.world import Caption


# --- HTML for notebooks and reports: captions with what is read of them, pictures with ---

ATTRIBUTES = {  # what facts are about: the name in the legend and its colour
    "kind": ("kind", "#0072B2"),
    "colour": ("colour", "#D55E00"),
    "size": ("size", "#8A8F98"),
    "pattern": ("pattern", "#CC79A7"),
    "orientation": ("orientation", "#56B4E9"),
    "place": ("place", "#009E73"),
    "relation": ("relation", "#E69F00"),
    "ground": ("scene", "#B8A800"),
    "sky": ("scene", "#B8A800"),
    "light": ("scene", "#B8A800"),
    "count": ("scene", "#B8A800"),
}


class Html(str):
    """HTML text that notebooks show as HTML."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return str(self)

    __html__ = _repr_html_  # what templates ask before they escape

    def __repr__(self) -> str:
        return f"<HTML, {len(self):,} characters>"  # notebooks store it beside the HTML


@cache
def asset(name: str, folder: str = "styles") -> Html:
    """A file of CSS or JavaScript of this room."""
    return Html((files("longclip_lab.views") / folder / name).read_text("utf-8"))


def style(name: str) -> Html:
    """The style element of a view, by the name of its file."""
    return Html(f"<style>\n{asset(f'{name}.css')}</style>")


@cache
def _templates(package: str) -> Any:
    import jinja2  # here, as the first figure of a lesson needs no template

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=lambda share: f"{100 * share:.1f}", capital=capital)
    environment.globals.update(
        asset=asset,
        style=style,
        zipped=lambda names, words: [(n, words.get(n, "")) for n in names],
    )
    return environment


def render(template: str, package: str = "longclip_lab.views", **values: Any) -> Html:
    """A Jinja template of `package`'s folder "templates" with these values.

    Texts are escaped; figures and other `Html` are not. A name that the template does not know is
    an error.
    """
    return Html(_templates(package).get_template(template).render(values))


def caption_html(
    caption: Caption | str,
    context_length: int | None = None,
    tokenizer: str = "world",
    facts: bool = True,
    legend: bool = True,
) -> Html:
    """A caption with its facts underlined by attribute and what is not read in grey.

    Args:
        caption: a caption of the world, or any text (which has no known facts).
        context_length: positions of the model, start and end token included; None reads all.
        tokenizer: whose tokens the positions hold ("world", "clip" or "bert").
        facts: underline the facts.
        legend: explain the colours under the caption.
    """
    text = str(caption)
    tokens = get_tokenizer(tokenizer).tokenize(text)
    read = len(text) if context_length is None else tokens.characters_read(context_length)
    known = getattr(caption, "facts", ()) if facts else ()
    used = {fact.attribute for fact in known} if legend else ()
    return render(
        "caption.html.j2",
        read=marked(text, known, 0, read),
        unread=marked(text, known, read, len(text)),
        cut=cut_mark(tokens, context_length) if read < len(text) else "",
        legend=dict(ATTRIBUTES[attribute] for attribute in ATTRIBUTES if attribute in used),
    )


def cut_mark(tokens: TokenizedText, context_length: int) -> str:
    """What stands where a model stops reading: at its context's end, or at the text's own end."""
    ended = tokens.before_end is not None and tokens.before_end + 2 <= context_length
    return "an end token ends the text here" if ended else f"{context_length} positions end here"


def marked(text: str, facts: Sequence[Any], start: int, end: int) -> Html:
    """text[start:end] as HTML with the facts in it underlined."""
    pieces, at = [], start
    for fact in sorted(facts, key=lambda fact: fact.span):
        first, last = max(fact.span[0], at), min(fact.span[1], end)
        if first >= last:
            continue
        name, colour = ATTRIBUTES[fact.attribute]
        pieces.append(html.escape(text[at:first]))
        pieces.append(
            f'<span class="fact" style="--fact:{colour}" title="{name}">'
            f"{html.escape(text[first:last])}</span>"
        )
        at = last
    return Html("".join(pieces) + html.escape(text[at:end]))


def image_uri(image: Image.Image, photo: bool = False) -> str:
    """A picture as a data URI: PNG, which is small for drawings, or JPEG for photographs."""
    buffer = io.BytesIO()
    kind = "jpeg" if photo else "png"
    image.convert("RGB").save(buffer, kind, optimize=True, quality=85)
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode()


def picture(pairs: Any, index: int, pixels: int) -> Image.Image:
    """Picture `index` of a set, RGB; a scene of the world is drawn anew, `pixels` x `pixels`."""
    from PIL import Image

    from longclip_lab.images import as_rgb, open_image

    if getattr(pairs, "scenes", None):
        from longclip_lab.world import draw

        return draw(pairs.scenes[index], pixels)
    source = pairs.images[index]
    if isinstance(source, Image.Image):
        image = as_rgb(source)
    elif isinstance(source, str | PathLike):
        image = open_image(source)
    else:
        image = Image.fromarray(source)
    image = image.convert("RGB")
    image.thumbnail((pixels, pixels))
    return image


def scene_gallery(pairs: Any, n: int = 12, pixels: int = 240) -> Html:
    """The first `n` pictures of a set with their short captions. Raises LabError for n < 1."""
    if n < 1:
        raise LabError(f"expected at least one picture in the gallery, got n={n}.")
    photo = not getattr(pairs, "scenes", None)
    pictures = [
        (image_uri(picture(pairs, i, pixels), photo), pairs.short[i])
        for i in range(min(n, len(pairs.short)))
    ]
    return render("gallery.html.j2", pictures=pictures)


# --- Scores laid over a picture: grey picture below, orange for more, blue for less, clear ---

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
        source=image_uri(picture, photo=len(image_SS3) > DRAWING), x=0, y=0, sizex=grid[1],
        sizey=grid[0], xref=axes[0], yref=axes[1], sizing="stretch", layer="below",
    )  # fmt: skip


# --- Pictures with texts, in whichever form the reader has them, as the views take them ---

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
            self._thumbnails[key] = image_uri(made, photo=True)
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


# --- Pictures against captions as a table of similarities: retrieval small enough to see ---


def matches_html(pairs: Any, cosines_MN: Any, texts: Sequence[str] | None = None) -> Html:
    """Cosine similarities of M texts (rows) and the N pictures of `pairs` (columns).

    The darker, the more alike; the best picture of every text is framed. `texts` are the rows'
    names, by default the short captions. Raises LabError if the sizes do not fit.
    """
    values_MN = np.asarray(cosines_MN, dtype=float)
    texts = list(pairs.short) if texts is None else list(texts)
    if values_MN.shape != (len(texts), len(pairs)):
        raise LabError(
            f"expected similarities [{len(texts)}, {len(pairs)}] of {len(texts)} texts and "
            f"{len(pairs)} pictures, got {list(values_MN.shape)}."
        )
    low, high = values_MN.min(), values_MN.max()
    pictures = [(image_uri(picture(pairs, i, 184)), pairs.short[i]) for i in range(len(pairs))]
    rows = [(text, _cells(row_N, low, high)) for text, row_N in zip(texts, values_MN, strict=True)]
    return render("matches.html.j2", pictures=pictures, rows=rows)


def _cells(values_N: np.ndarray, low: float, high: float) -> list[dict[str, Any]]:
    shares_N = (values_N - low) / max(high - low, 1e-9)
    return [
        {
            "best": i == int(values_N.argmax()),
            "paper": f"rgb({_shade(share)})",
            "ink": "#FFFFFF" if share > 0.72 else "#262626",
            "value": f"{value:.2f}",
        }
        for i, (value, share) in enumerate(zip(values_N, shares_N, strict=True))
    ]


def _shade(share: float) -> str:
    """From near white to the palette's blue."""
    light, dark = (240, 246, 250), (0, 90, 150)
    return ",".join(str(round(a + share * (b - a))) for a, b in zip(light, dark, strict=True))
