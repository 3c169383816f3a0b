"""HTML for notebooks and reports: captions with what is read of them, pictures with captions."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from longclip_lab.errors import LabError
from longclip_lab.text import TokenizedText, get_tokenizer

if TYPE_CHECKING:
    from PIL import Image

    from longclip_lab.world import Caption

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
_STYLE = """<style>
.lc-caption {line-height: 1.75; max-width: 46em; font-size: 1.02em}
.lc-caption .fact {border-bottom: .16em solid var(--fact); padding-bottom: .04em}
.lc-caption .unread {opacity: .42}
.lc-caption .cut {white-space: nowrap; font-size: .78em; font-weight: 600; color: #D55E00;
  border-left: .18em solid #D55E00; padding: .1em .5em; margin: 0 .3em}
.lc-legend {font-size: .84em; margin-top: .6em; display: flex; flex-wrap: wrap; gap: .2em 1.2em}
.lc-legend span {border-bottom: .18em solid var(--fact)}
.lc-gallery {display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 14px}
.lc-gallery figure {margin: 0}
.lc-gallery img {width: 100%; border-radius: 6px; display: block}
.lc-gallery figcaption {font-size: .84em; line-height: 1.35; margin-top: 5px}
</style>"""


class Html(str):
    """HTML text that notebooks show as HTML."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return f"<HTML, {len(self):,} characters>"  # notebooks store it beside the HTML


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
    body = _marked(text, known, 0, read)
    if read < len(text):
        body += (
            f'<span class="cut">{cut_mark(tokens, context_length)}</span>'
            f'<span class="unread">{_marked(text, known, read, len(text))}</span>'
        )
    key = _legend({fact.attribute for fact in known}) if legend and known else ""
    return Html(f'{_STYLE}<div class="lc-caption">{body}{key}</div>')


def cut_mark(tokens: TokenizedText, context_length: int) -> str:
    """What stands where a model stops reading: at its context's end, or at the text's own end."""
    ended = tokens.before_end is not None and tokens.before_end + 2 <= context_length
    return "an end token ends the text here" if ended else f"{context_length} positions end here"


def _marked(text: str, facts: Sequence[Any], start: int, end: int) -> str:
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
    return "".join(pieces) + html.escape(text[at:end])


def _legend(used: set[str]) -> str:
    names = dict(ATTRIBUTES[attribute] for attribute in ATTRIBUTES if attribute in used)
    items = "".join(
        f'<span style="--fact:{colour}">{name}</span>' for name, colour in names.items()
    )
    return f'<div class="lc-legend">{items}</div>'


def picture_uri(image: Image.Image, photo: bool = False) -> str:
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
    items = "".join(
        f'<figure><img src="{picture_uri(picture(pairs, i, pixels), photo)}" '
        f'alt="{html.escape(pairs.short[i])}">'
        f"<figcaption>{html.escape(pairs.short[i])}</figcaption></figure>"
        for i in range(min(n, len(pairs.short)))
    )
    return Html(f'{_STYLE}<div class="lc-gallery">{items}</div>')
