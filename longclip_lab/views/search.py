"""What a search found.

n sentences of the query that are read.
"""

from __future__ import annotations

import hashlib
import html
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from PIL import Image, ImageOps

from longclip_lab.errors import LabError
from longclip_lab.files import readable
from longclip_lab.images import open_image
from longclip_lab.views.html import Html, picture_uri
from longclip_lab.views.static import with_pictures
from longclip_lab.views.theme import (
    COLOURS,
    PALETTE,
    SYMBOLS,
    add_curve,
    end_labels,
    framed,
    listed,
    percent,
    plot_height,
)

if TYPE_CHECKING:
    from longclip_lab.search import Matches, Owed, SentenceRanks


# --- What a search found: the query as the model reads it, and the pictures, best first ---

THUMBNAIL = 256  # pixels; shown smaller, so that photographs stay sharp on good screens
_ENLARGED = 144
_BARS, _BAR_HEIGHT = 100, 34  # the width and height of a hit's bars, in their own units
_STYLE = f"""<style>
.lc-found {{max-width: 760px; margin: 0 0 26px; font-size: 16px; line-height: 1.5}}
.lc-found .headline {{font-size: 18px; line-height: 1.35; font-weight: 600; margin: 0 0 4px}}
.lc-found .soft {{opacity: .72}}
.lc-found .query {{line-height: 1.65; margin: 6px 0 12px}}
.lc-found .unread {{opacity: .45}}
.lc-found .number {{font-size: 13px; font-weight: 700; color: #fff; background: #5A6270;
  border-radius: 99px; padding: 0 .5em; margin-right: .35em}}
.lc-found .mark {{white-space: nowrap; font-size: 14px; font-weight: 600; color: #C25500;
  border-left: 3px solid #D55E00; padding: 0 .4em; margin: 0 .3em}}
.lc-found ol {{display: grid; grid-template-columns: repeat(auto-fill, minmax(136px, 1fr));
  gap: 14px; margin: 0; padding: 0; list-style: none}}
.lc-found li {{margin: 0; min-width: 0; font-size: 14px; line-height: 1.4}}
.lc-found img {{width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 6px;
  display: block; margin: 0 0 5px; outline: 5px solid transparent; outline-offset: -5px}}
.lc-found .wanted img {{outline-color: {COLOURS["vermillion"]}}}
.lc-found .wanted b {{background: {COLOURS["vermillion"]}; color: #fff; border-radius: 4px;
  padding: 0 .35em}}
.lc-found .name {{overflow-wrap: anywhere; display: -webkit-box; -webkit-line-clamp: 2;
  -webkit-box-orient: vertical; overflow: hidden}}
.lc-found svg {{display: block; width: 100%; height: {_BAR_HEIGHT}px; margin: 6px 0 2px}}
</style>"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_PAGE_STYLE = """
:root {color-scheme: light dark}
body {font: 400 17px/1.6 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif;
  margin: 28px auto; max-width: 1120px; padding: 0 22px; background: light-dark(#faf8f3, #14161a);
  color: light-dark(#1d2126, #ece9e2)}
body .lc-found {max-width: none; margin-bottom: 44px}
body .lc-found ol {grid-template-columns: repeat(auto-fill, minmax(180px, 1fr))}
"""


def found_html(
    found: Matches | Sequence[Matches] | Mapping[str, Matches],
    wanted: str | None = None,
    link: bool = False,
) -> Html:
    """What one or several searches found: query, pictures with scores, sentences that matter.

    A mapping gives each search a heading of its own. `wanted` is the name of a picture to frame.
    With `link` a picture leads to its file, which a browser allows for pages on the same disk.
    What the model does not read of a query is grey. Where a search was explained, bars under each
    picture show what its score loses without each sentence, and the longest is told.

    Raises LabError for nothing to show.
    """
    if not isinstance(found, Mapping):
        found = {"": found} if hasattr(found, "names") else dict(enumerate(found))
    if not found:
        raise LabError("expected at least one search to show, got none.")
    drawn = "".join(
        drawn_search(one, heading if isinstance(heading, str) else "", wanted, link)
        for heading, one in found.items()
    )
    return Html(with_pictures(drawn, thumbnails(found.values())))


def found_page(found: Sequence[Matches], notes: Sequence[str] = ()) -> str:
    """Searches as a page that stands alone, with `notes` in front; it asks for nothing else."""
    told = "".join(f'<p class="soft">{html.escape(note)}</p>' for note in notes)
    title = html.escape(f"{readable(found[0].root.resolve().name)}: {found[0].query[:60]}")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{title}</title><style>{_PAGE_STYLE}</style></head>\n"
        f'<body>{found_html(found, link=True)}<div class="lc-found">{told}</div></body></html>\n'
    )


def thumbnail_uri(path: Path, pixels: int = THUMBNAIL) -> str:
    """A picture file as a small data URI, upright; a tiny one is enlarged smoothly."""
    image = open_image(path)
    image.thumbnail((pixels, pixels))
    if max(image.size) < _ENLARGED:
        image = ImageOps.contain(image, (_ENLARGED, _ENLARGED), Image.Resampling.BICUBIC)
    return picture_uri(image, photo=True)


def thumbnails(searches: Iterable[Matches], pixels: int = THUMBNAIL) -> dict[str, str]:
    """The pictures of searches by the keys of `drawn_search`; "" for one that is gone."""
    made: dict[str, str] = {}
    for path in {path for found in searches for path in found.paths}:
        try:
            made[_key(path)] = thumbnail_uri(path, pixels)
        except LabError:
            made[_key(path)] = ""
    return made


def _key(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:12]


def drawn_search(
    found: Matches, heading: str = "", wanted: str | None = None, link: bool = False
) -> str:
    """The HTML of a search without its pictures, for `views.static.with_pictures`."""
    heading = heading or f"The {len(found)} nearest of {found.pictures:,} pictures"
    items = "".join(_hit(found, hit, found.names[hit] == wanted, link) for hit in range(len(found)))
    return (
        f'{_STYLE}\n<div class="lc-found"><div class="headline">{html.escape(heading)}</div>'
        f'<div class="query">{_query(found)}</div><ol>{items}</ol></div>'
    )


def _query(found: Matches) -> str:
    """The query with its sentences numbered, if they are known, and its unread end grey."""
    text, unread = found.query, found.reading.unread or ""
    end = len(text.rstrip()) - len(unread) if unread else len(text)
    starts = [span[0] for span in found.owed.spans] if found.owed is not None else []
    starts = starts if len(starts) > 1 else []
    pieces, at = [], 0
    for number, start in enumerate(starts, start=1):
        pieces += [html.escape(text[at:start]), f'<span class="number">{number}</span>']
        at = start
    pieces.append(html.escape(text[at:end]))
    if not found.reading.whole:
        mark = f"{found.reading.context_length} positions end here"
        if found.reading.read + 2 < found.reading.context_length:
            mark = "an end token ends the query here"
        pieces.append(f'<span class="mark">{mark}</span>')
    pieces.append(f'<span class="unread">{html.escape(text[end:])}</span>' * (end < len(text)))
    return "".join(pieces)


def _hit(found: Matches, hit: int, wanted: bool, link: bool) -> str:
    name, path = html.escape(readable(found.names[hit])), found.paths[hit]
    picture = f'<img data-picture="{_key(path)}" alt="{name}">'
    if link:
        picture = f'<a href="{html.escape(path.resolve().as_uri())}">{picture}</a>'
    return (
        f"<li{' class=wanted' * wanted}>{picture}<b>{hit + 1}</b> "
        f'<span class="soft">{found.scores[hit]:.3f}</span><div class="name soft">{name}</div>'
        f"{_owes(found.owed, hit)}</li>"
    )


def _owes(owed: Owed | None, hit: int) -> str:
    """Bars of what each sentence adds, and the place without the one that adds most."""
    if owed is None or len(owed.sentences) < 2:
        return ""
    most = owed.most(hit)
    told = f"without {most + 1}: place {owed.ranks[hit, most]:,}"
    return f'{_bars(owed, hit)}<div title="{html.escape(owed.sentences[most])}">{told}</div>'


def _bars(owed: Owed, hit: int) -> str:
    drops_n = owed.drops[hit]
    scale = _BAR_HEIGHT / max(float(np.ptp([0, *owed.drops.min(0), *owed.drops.max(0)])), 1e-9)
    zero = scale * max(0.0, float(owed.drops.max()))
    width = _BARS / len(drops_n)
    bars = "".join(
        f'<rect x="{width * n:.1f}" width="{0.8 * width:.1f}" '
        f'y="{min(zero, zero - scale * drop):.1f}" height="{max(0.5, abs(scale * drop)):.1f}" '
        f'fill="{COLOURS["vermillion"] if n == owed.most(hit) else "#8A93A3"}">'
        f"<title>{n + 1}: {drop:+.3f}, place {rank:,} without it</title></rect>"
        for n, (drop, rank) in enumerate(zip(drops_n, owed.ranks[hit], strict=True))
    )
    return (
        f'<svg viewBox="0 0 {_BARS} {_BAR_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="what each sentence adds to the score">{bars}'
        f'<line x1="0" x2="{_BARS}" y1="{zero:.1f}" y2="{zero:.1f}" stroke="currentColor" '
        'stroke-opacity=".5" stroke-width="1" vector-effect="non-scaling-stroke"/></svg>'
    )


# --- How the place of the wanted picture moves as a query goes on, sentence by sentence ---

_TOP = 1.06  # of the highest bound


def sentence_ranks_message(results: Mapping[str, SentenceRanks], places: int = 1) -> str:
    """What the whole paragraph finds, against its first sentence, by model."""
    told = []
    for label, one in results.items():
        first, last = (one.first(k, places).value for k in (1, one.ranks.shape[1]))
        told.append(f"{label} {percent(first)}\u00a0→\u00a0{percent(last)}")
    where = "first" if places == 1 else f"among the first {places}"
    return f"Found {where} by one sentence → by all: {listed(told)}"


def sentence_ranks_figure(
    result: SentenceRanks | Mapping[str, SentenceRanks], places: int = 1
) -> go.Figure:
    """The share of queries whose picture is among the first `places`, after each sentence.

    Bands are 95% bootstrap intervals over queries; hovering tells the median place. An open marker
    says that some of these queries are longer than the model reads.

    Raises LabError for no result, and for results of different numbers of sentences.
    """
    results = dict(result) if isinstance(result, Mapping) else {result.model: result}
    if len({one.ranks.shape for one in results.values()}) != 1:
        raise LabError(
            "expected at least one result, and results of the same queries, got shapes "
            f"{[one.ranks.shape for one in results.values()]}."
        )
    first = next(iter(results.values()))
    chart = framed(
        sentence_ranks_message(results, places),
        x="sentences of the query",
        y="found first (%)" if places == 1 else f"among the first {places} (%)",
        subtitle=f"{len(first):,} queries, {first.pictures:,} pictures; bands: 95% bootstrap "
        "intervals; open: not all of the text is read",
    )
    count, ends, highest = first.ranks.shape[1], [], 0.0
    for number, (label, one) in enumerate(results.items()):
        shares = [one.first(k, places) for k in range(1, count + 1)]
        band = [[100 * getattr(s, part) for s in shares] for part in ("value", "low", "high")]
        add_curve(chart, range(1, count + 1), *band, label, PALETTE[number])
        symbol = SYMBOLS[number % len(SYMBOLS)]
        cut = [not whole for whole in one.whole.all(axis=0)]
        chart.data[-1].marker = {
            "symbol": [f"{symbol}-open" if open_ else symbol for open_ in cut],
            "size": 9, "line": {"width": 2, "color": PALETTE[number]}, "color": PALETTE[number],
        }  # fmt: skip
        medians = [one.median(k) for k in range(1, count + 1)]
        chart.data[-1].customdata = [(m.value, m.low, m.high) for m in medians]
        chart.data[-1].hovertemplate = (
            "%{y:.0f}%; median place %{customdata[0]:.0f} "
            "(%{customdata[1]:.0f} to %{customdata[2]:.0f})"
        )
        ends.append(band[0][-1])
        highest = max(highest, *band[2])
    top = _TOP * max(highest, 1)
    per_pixel = top / plot_height(chart)
    end_labels(chart, ends, list(results), PALETTE[: len(results)], per_pixel, (0, top))
    chart.update_layout(hovermode="x unified")
    chart.update_yaxes(range=[0, top])
    chart.update_xaxes(range=[0.8, count + 0.2], dtick=1)
    return chart
