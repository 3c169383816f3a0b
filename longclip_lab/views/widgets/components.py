"""Principal components: what the first k directions of a batch keep, and which captions notice.

B batch, D embedding, C principal directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from longclip_lab.errors import LabError
from longclip_lab.evaluation import retrieval
from longclip_lab.models import Clip, encode_images, encode_texts
from longclip_lab.objectives import RankMeter, primary_components, rank_meter
from longclip_lab.views.html import Html, as_pool, render
from longclip_lab.views.static import Chart, Control, Scale, round_ticks, states_html, with_images
from longclip_lab.views.theme import COLOURS
from longclip_lab.views.widgets.panel import Panel, dropdown, slider

KS, BATCHES = (1, 2, 4, 8, 16, 24, 32, 48, 64), (16, 32, 33, 34, 64, 128, 256)
_CAPTION = 76  # characters of a caption in the list


@dataclass(frozen=True)
class Kept:
    """What the first k directions keep of a batch of image features, and what captions find.

    `error` is the mean length of what is left out, as a share of the feature's length. `before` and
    `after` [B] are the ranks of each caption's own picture in the batch with full and with coarse
    features.
    """

    meter: RankMeter
    error: float
    before: np.ndarray
    after: np.ndarray

    @property
    def changed(self) -> np.ndarray:
        """Captions whose rank is another, those that move furthest (in ratio) first."""
        moved = np.abs(np.log(self.after / self.before))
        order = np.argsort(-moved, kind="stable")
        return order[moved[order] > 0]


class Components(Panel):
    """Sliders for k and the batch: variance kept, reconstruction, and captions that change rank.

    The batch is the first pictures of `pairs` (or pictures beside `texts`). `kept` is the present
    state as a value. Coarse features are normalised again, as the library's loss does by default.
    """

    def __init__(
        self,
        clip: Clip,
        pairs: Any,
        texts: Sequence[str] | None = None,
        k: int = 32,
        batch: int = 128,
        most: int = 64,
    ):
        self.clip, self.pool = clip, as_pool(pairs, texts)
        if len(self.pool) < 3:
            raise LabError(f"expected at least 3 pictures for a batch, got {len(self.pool)}.")
        self.k = slider("k, directions kept", range(1, most + 1), min(k, most))
        self.batch = slider(
            "pictures in the batch", range(2, len(self.pool) + 1), min(batch, len(self.pool))
        )
        self.captions = dropdown("captions", ["short", "long"])
        super().__init__([self.k, self.batch, self.captions])
        self._watch(self.refresh, self.k, self.batch, self.captions)
        self._keep = lru_cache(maxsize=512)(self._measure)

    @cached_property
    def images_ND(self) -> torch.Tensor:
        """Normalised features of all pictures, computed once."""
        with self.busy(f"reading {len(self.pool)} pictures"):
            return F.normalize(encode_images(self.clip, self.pool.images), dim=1)

    @cached_property
    def _texts(self) -> dict[str, torch.Tensor]:
        return {}

    def texts_ND(self, kind: str) -> torch.Tensor:
        """Features of all "short" or "long" captions, computed when first needed."""
        if kind not in self._texts:
            with self.busy(f"reading {len(self.pool)} {kind} captions"):
                self._texts[kind] = encode_texts(self.clip, getattr(self.pool, kind)).features_ND
        return self._texts[kind]

    @property
    def kept(self) -> Kept:
        """What the present k keeps of the present batch."""
        return self._keep(self.k.value, self.batch.value, self.captions.value)

    def _measure(self, k: int, batch: int, kind: str) -> Kept:
        full_BD, texts_BD = self.images_ND[:batch], self.texts_ND(kind)[:batch]
        coarse_BD = primary_components(full_BD, k)
        before, after = (
            retrieval(images_BD, texts_BD, bootstrap=0).t2i_ranks
            for images_BD in (full_BD, F.normalize(coarse_BD, dim=1))
        )
        error = float((full_BD - coarse_BD).norm(dim=1).mean())
        return Kept(rank_meter(full_BD, k), error, before, after)

    def draw(self) -> str:
        kept = self.kept
        pictures = {str(i): self.pool.thumbnail(i, 72) for i in self._shown(kept)}
        return with_images(self._draw(kept, self.captions.value), pictures)

    @staticmethod
    def _shown(kept: Kept) -> list[int]:
        return [int(i) for i in kept.changed[:5]]

    def _draw(self, kept: Kept, kind: str) -> str:
        meter, size = kept.meter, kept.meter.batch
        found = [f"{(ranks <= 1).sum()} of {size}" for ranks in (kept.before, kept.after)]
        cells = {
            "variance kept": _percent(meter.variance_kept),
            "reconstruction error": _percent(kept.error),
            "ranks that change": f"{len(kept.changed)} of {size}",
            "own picture first": f"{found[0]} → {found[1]}",
        }
        rows = [
            {
                "picture": i,
                "text": _clipped(getattr(self.pool, kind)[i]),
                "before": f"{kept.before[i]:g}",
                "after": f"{kept.after[i]:g}",
            }
            for i in self._shown(kept)
        ]
        return render(
            "components.html.j2",
            verdict=meter.verdict,
            cells=cells,
            chart=self._chart(meter),
            rows=rows,
            same="the coarse features are the features" if meter.is_identity else "this time",
        )

    def _chart(self, meter: RankMeter) -> Html:
        """The cumulative variance of the batch's directions, with k."""
        most = max(self.k.max, 8)
        shares_C = np.minimum(np.cumsum(meter.spectrum[: max(meter.rank, 1)]), 1)
        curve = [(0, 0.0), *((i + 1, round(100 * s, 2)) for i, s in enumerate(shares_C[:most]))]
        chart = Chart(
            Scale(0, most, round_ticks(0, most, 8), "directions kept"),
            Scale(0, 104, (0, 25, 50, 75, 100), "variance (%)"),
            label=f"variance kept against directions; k = {meter.k} keeps "
            f"{_percent(meter.variance_kept)}",
            height=230,
        )
        chart.line(curve, COLOURS["blue"])
        if meter.rank < most:
            chart.line([curve[-1], (most, 100)], COLOURS["blue"], 2, dash="2 5")
            told = f"{meter.batch} pictures vary in {meter.rank} directions"
            chart.text(most, 7, told, "end")
        chart.rule(meter.k, COLOURS["vermillion"])
        chart.dot(
            meter.k, 100 * meter.variance_kept, COLOURS["vermillion"],
            f"k = {meter.k}: {_percent(meter.variance_kept)}", hollow=meter.is_identity,
        )  # fmt: skip
        return chart.html()

    def static(self, ks: Sequence[int] = KS, batches: Sequence[int] = BATCHES) -> Html:
        """The view with sliders over `ks` and `batches`, for pages where no kernel runs.

        Batches that are larger than the pool are left out; the captions are those chosen now.
        """
        kind = self.captions.value
        batches = [batch for batch in batches if batch <= len(self.pool)] or [len(self.pool)]
        shown = {
            i for k in ks for batch in batches for i in self._shown(self._keep(k, batch, kind))
        }
        controls = [
            Control("k, directions kept", [str(k) for k in ks], _nearest(ks, self.k.value)),
            Control("pictures in the batch", [str(batch) for batch in batches],
                    _nearest(batches, self.batch.value)),
        ]  # fmt: skip
        return states_html(
            controls,
            lambda a, b: self._draw(self._keep(ks[a], batches[b], kind), kind),
            self.pool.thumbnails(shown, 72),
        )


def _percent(share: float) -> str:
    """Two digits more where a share is almost 1 and would look like it."""
    rounded = f"{100 * share:.1f}"
    return f"{100 * share:.3f}%" if rounded == "100.0" and share < 1 else f"{rounded}%"


def _clipped(text: str) -> str:
    return text if len(text) <= _CAPTION else text[: _CAPTION - 1] + "…"


def _nearest(values: Sequence[int], wanted: int) -> int:
    return min(range(len(values)), key=lambda i: abs(values[i] - wanted))
