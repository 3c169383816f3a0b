"""Pictures against captions as a table of similarities: retrieval small enough to see."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np

from longclip_lab.errors import LabError
from longclip_lab.views.html import Html, picture, picture_uri

_STYLE = """<style>
table.lc-matches.lc-matches {border-collapse: separate; border-spacing: 4px; table-layout: fixed;
  width: 100%; max-width: 52em}
table.lc-matches.lc-matches :is(th, td) {border: 0; padding: .3em; text-align: center;
  border-radius: 4px; font-variant-numeric: tabular-nums}
table.lc-matches.lc-matches th[scope=row] {font-weight: 400; font-size: .84em; text-align: left;
  line-height: 1.3; background: none}
table.lc-matches.lc-matches th[scope=col] {padding: 0}
table.lc-matches tr > :first-child {width: 34%}
.lc-matches img {width: 100%; border-radius: 6px; display: block; margin: 0}
.lc-matches td.best {font-weight: 700; outline: 3px solid #D55E00; outline-offset: -3px}
</style>"""


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
    heads = "".join(
        f'<th scope="col"><img src="{picture_uri(picture(pairs, i, 184))}" '
        f'alt="{html.escape(pairs.short[i])}"></th>'
        for i in range(len(pairs))
    )
    rows = "".join(
        f'<tr><th scope="row">{html.escape(text)}</th>{_cells(values_N, low, high)}</tr>'
        for text, values_N in zip(texts, values_MN, strict=True)
    )
    return Html(f'{_STYLE}<table class="lc-matches"><tr><td></td>{heads}</tr>{rows}</table>')


def _cells(values_N: np.ndarray, low: float, high: float) -> str:
    best = int(values_N.argmax())
    cells = []
    for i, value in enumerate(values_N):
        share = (value - low) / max(high - low, 1e-9)
        ink = "#FFFFFF" if share > 0.72 else "#262626"
        cells.append(
            f'<td{" class=best" * (i == best)} style="background:rgb({_shade(share)});'
            f'color:{ink}">{value:.2f}</td>'
        )
    return "".join(cells)


def _shade(share: float) -> str:
    """From near white to the palette's blue."""
    light, dark = (240, 246, 250), (0, 90, 150)
    return ",".join(str(round(a + share * (b - a))) for a, b in zip(light, dark, strict=True))
