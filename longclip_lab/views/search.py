"""What a search found.

n sentences of the query that are read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from PIL import Image, ImageOps

from longclip_lab.errors import LabError
from longclip_lab.files import readable
from longclip_lab.images import open_image
from longclip_lab.views.html import Html, image_uri, render
from longclip_lab.views.static import document, with_images
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
    from longclip_lab.search import Matches, SentenceRanks


# --- What a search found: the query as the model reads it, and the pictures, best first ---

THUMBNAIL = 256  # pixels; shown smaller, so that photographs stay sharp on good screens
_ENLARGED = 144
_BARS, _BAR_HEIGHT = 100, 34  # the width and height of a hit's bars, in their own units


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
    return Html(with_images(drawn, thumbnails(found.values())))


def found_page(found: Sequence[Matches], notes: Sequence[str] = ()) -> str:
    """Searches as a page that stands alone, with `notes` below; it asks for nothing else."""
    title = f"{readable(found[0].root.resolve().name)}: {found[0].query[:60]}"
    body = render("found-page.html.j2", found=found_html(found, link=True), notes=notes)
    return document(title, body, ("found-page",))


def thumbnail_uri(path: Path, pixels: int = THUMBNAIL) -> str:
    """A picture file as a small data URI, upright; a tiny one is enlarged smoothly."""
    image = open_image(path)
    image.thumbnail((pixels, pixels))
    if max(image.size) < _ENLARGED:
        image = ImageOps.contain(image, (_ENLARGED, _ENLARGED), Image.Resampling.BICUBIC)
    return image_uri(image, photo=True)


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
    """The HTML of a search without its pictures, for `views.static.with_images`."""
    reading, text, unread = found.reading, found.query, found.reading.unread or ""
    end = len(text.rstrip()) - len(unread) if unread else len(text)
    starts = [span[0] for span in found.owed.spans] if found.owed is not None else []
    starts = starts if len(starts) > 1 else []
    edges = [0, *starts, end]
    pieces = [
        (text[at:to], number if number <= len(starts) else 0)
        for number, (at, to) in enumerate(pairwise(edges), start=1)
    ]
    mark = "" if reading.whole else f"{reading.context_length} positions end here"
    if mark and reading.read + 2 < reading.context_length:
        mark = "an end token ends the query here"
    return render(
        "found.html.j2",
        heading=heading or f"The {len(found)} nearest of {found.pictures:,} pictures",
        pieces=pieces,
        mark=mark,
        unread=text[end:],
        hits=[_hit(found, hit, found.names[hit] == wanted, link) for hit in range(len(found))],
        width=_BARS,
        height=_BAR_HEIGHT,
    )


def _hit(found: Matches, hit: int, wanted: bool, link: bool) -> dict[str, Any]:
    path = found.paths[hit]
    shown = {
        "name": readable(found.names[hit]),
        "key": _key(path),
        "score": f"{found.scores[hit]:.3f}",
        "wanted": wanted,
        "link": path.resolve().as_uri() if link else "",
        "bars": [],
    }
    owed = found.owed
    if owed is None or len(owed.sentences) < 2:
        return shown
    # Bars of what each sentence adds, and the place without the one that adds most.
    most, drops_n = owed.most(hit), owed.drops[hit]
    scale = _BAR_HEIGHT / max(float(np.ptp([0, *owed.drops.min(0), *owed.drops.max(0)])), 1e-9)
    zero, width = scale * max(0.0, float(owed.drops.max())), _BARS / len(drops_n)
    bars = [
        {
            "x": f"{width * n:.1f}",
            "width": f"{0.8 * width:.1f}",
            "y": f"{min(zero, zero - scale * drop):.1f}",
            "height": f"{max(0.5, abs(scale * drop)):.1f}",
            "colour": COLOURS["vermillion"] if n == most else "#8A93A3",
            "title": f"{n + 1}: {drop:+.3f}, place {rank:,} without it",
        }
        for n, (drop, rank) in enumerate(zip(drops_n, owed.ranks[hit], strict=True))
    ]
    told = f"without {most + 1}: place {owed.ranks[hit, most]:,}"
    sentence = owed.sentences[most]
    return shown | {"bars": bars, "zero": f"{zero:.1f}", "told": told, "sentence": sentence}


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
