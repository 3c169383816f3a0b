"""What it never reads: a caption, a cut that moves, and the pictures found so far.

C cuts, N pictures, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ipywidgets as widgets
import numpy as np
import torch
from torch.nn import functional as F

from longclip_lab.errors import LabError
from longclip_lab.evaluation.retrieval import SAME_SCORE
from longclip_lab.models import Clip, encode_images
from longclip_lab.probing.truncation import cuts_share_states, encode_cuts
from longclip_lab.text import TokenizedText
from longclip_lab.views.html import Html, as_pool, cut_mark, marked, render
from longclip_lab.views.static import (
    Chart,
    Control,
    Scale,
    log_ticks,
    round_ticks,
    states_html,
    with_images,
)
from longclip_lab.views.theme import COLOURS
from longclip_lab.views.widgets.panel import Panel, dropdown, slider

_STATIC_STATES = 64
_IN_LIST = 72  # characters of a caption in the list


@dataclass(frozen=True)
class Reading:
    """What is found with the first `cut` content tokens of a text.

    `rank` is the place of the right picture among `pictures`, 1 the best, behind those of the same
    score; `found` are the best ones, best first. `read` is the text up to the cut, `tokens` the
    number of all its tokens.
    """

    text: str
    read: str
    cut: int
    tokens: int
    rank: int
    pictures: int
    found: tuple[int, ...]


class _Caption:
    """A text with the similarities of all pictures to each of its cuts, found when asked for."""

    def __init__(self, clip: Clip, images_ND: torch.Tensor, text: str):
        if not text.strip():
            raise LabError("expected a caption, got an empty text. Type one or choose one.")
        self.clip, self.images_ND, self.text = clip, images_ND, text
        self.tokenized: TokenizedText = clip.tokenizer.tokenize(text)
        if not len(self.tokenized):
            raise LabError("expected a caption with words, got none that the model has tokens for.")
        self.tokens = clip.tokenize(text)
        self.most = int(self.tokens.lengths_B[0]) - 2
        self._known: dict[int, np.ndarray] = {}

    def cosines(self, cut: int) -> np.ndarray:
        """Similarity of the text's first `cut` tokens to every picture [N].

        A causal tower reads all cuts in one pass, so that the slider never waits.
        """
        if cut not in self._known:
            cuts = range(1, self.most + 1) if cuts_share_states(self.clip) else (cut,)
            texts_CD = F.normalize(encode_cuts(self.clip, self.tokens, cuts)[:, 0], dim=1)
            rows_CN = (texts_CD @ self.images_ND.T).numpy()
            self._known.update(zip(cuts, rows_CN, strict=True))
        return self._known[cut]

    def ranks(self, own: int) -> dict[int, int]:
        """The rank of picture `own` after every cut that was read; level ones count as ahead."""
        cuts = sorted(self._known)
        cosines_CN = np.stack([self._known[cut] for cut in cuts])
        ranks_C = (cosines_CN >= cosines_CN[:, [own]] - SAME_SCORE).sum(1)
        return dict(zip(cuts, ranks_C.tolist(), strict=True))

    def read_to(self, cut: int) -> int:
        """The number of characters in the first `cut` tokens."""
        return self.tokenized.spans[cut - 1][1]


class ReadingCut(Panel):
    """Type or choose a caption, move the cut, and see the rank of its picture move.

    `clip` is any model, `pairs` pictures with captions (anything with `.images` and `.long` or
    `.short`), or pictures beside `texts`. `reading` is the present state as a value. Causal towers
    read all cuts of a caption at once; others read each cut when the slider gets there.

    Raises LabError for pairs that are none and an index outside them.
    """

    def __init__(
        self,
        clip: Clip,
        pairs: Any,
        texts: Sequence[str] | None = None,
        index: int = 0,
        cut: int | None = None,
        show: int = 5,
    ):
        self.clip, self.pool = clip, as_pool(pairs, texts)
        if not 0 <= index < len(self.pool):
            raise LabError(f"expected a picture from 0 to {len(self.pool) - 1}, got {index}.")
        self.show = min(show, len(self.pool))
        self._caption: _Caption | None = None
        listed = [(f"{i + 1}: {_clipped(text)}", i) for i, text in enumerate(self.pool.short)]
        self.choice = dropdown("picture", listed, index)
        self.text = widgets.Textarea(
            value=self.pool.long[index], description="caption", continuous_update=False, rows=4,
            placeholder="Type what to look for; it is read when you leave the field (Tab)",
            style={"description_width": "initial"},
        )  # fmt: skip
        self.cut = slider("tokens read", range(1, clip.context_length - 1), 1)
        super().__init__([self.choice, self.text, self.cut])
        self._watch(self._choose, self.choice)
        self._watch(self.refresh, self.text, self.cut)
        self._first_cut = cut

    @cached_property
    def images_ND(self) -> torch.Tensor:
        """Normalised features of the pool, computed once."""
        return F.normalize(encode_images(self.clip, self.pool.images), dim=1)

    @property
    def reading(self) -> Reading:
        """What the present cut of the present caption finds."""
        return self._reading(self._current(), self.cut.value)

    @property
    def first_found(self) -> int | None:
        """The first cut from which on the right picture stays in front; None if it does not.

        Of the cuts that were read: with a causal tower all of them.
        """
        ranks = self._current().ranks(self.choice.value)
        missed = [cut for cut, rank in ranks.items() if rank > 1]
        return min((cut for cut in ranks if not missed or cut > missed[-1]), default=None)

    def _current(self) -> _Caption:
        text = self.text.value
        if self._caption is None or self._caption.text != text:
            with self.busy(f"reading {len(self.pool)} pictures and the caption"):
                first = self._caption is None
                caption = _Caption(self.clip, self.images_ND, text)
                caption.cosines(caption.most)
                cut = self._first_cut if first and self._first_cut else self.cut.value
                with self._quietly():
                    self.cut.max = caption.most
                    self.cut.value = max(1, min(cut, caption.most))
                self._caption = caption
        return self._caption

    def _reading(self, caption: _Caption, cut: int) -> Reading:
        cosines_N = caption.cosines(cut)
        found = np.argsort(-cosines_N, kind="stable")[: self.show]
        return Reading(
            text=caption.text,
            read=caption.text[: caption.read_to(cut)],
            cut=cut,
            tokens=len(caption.tokenized),
            rank=caption.ranks(self.choice.value)[cut],
            pictures=len(self.pool),
            found=tuple(int(i) for i in found),
        )

    def _choose(self) -> None:
        with self._quietly():
            self.text.value = self.pool.long[self.choice.value]
        self.refresh()

    def draw(self) -> str:
        with_uris = self._draw(self._current(), self.cut.value)
        shown = self.reading.found
        return with_images(with_uris, {str(i): self.pool.thumbnail(i) for i in shown})

    def _draw(self, caption: _Caption, cut: int) -> str:
        reading = self._reading(caption, cut)
        text, at = caption.text, caption.read_to(cut)
        context = self.clip.context_length
        end = caption.tokenized.characters_read(context)
        # What the drawn world knows of a caption, its facts, is underlined.
        known = self.pool.long_captions[self.choice.value] if self.pool.long_captions else None
        facts = known.facts if known is not None and str(known) == text else ()
        return render(
            "reading-cut.html.j2",
            message=_message(reading),
            read=marked(text, facts, 0, at),
            ahead=marked(text, facts, at, end),
            behind=marked(text, facts, end, len(text)),
            mark=cut_mark(caption.tokenized, context) if end < len(text) else "",
            found=[
                {"picture": i, "text": _clipped(self.pool.short[i]), "own": i == self.choice.value}
                for i in reading.found
            ],
            chart=self._chart(caption, cut),
        )

    def _chart(self, caption: _Caption, cut: int) -> str:
        """The rank against the cut, as far as it is known."""
        ranks = caption.ranks(self.choice.value)
        size = len(self.pool)
        chart = Chart(
            Scale(0, caption.most, round_ticks(0, caption.most), "tokens read"),
            Scale(1.2 * size, 0.9, log_ticks(size), "rank (log)", log=True),
            label=f"rank of the right picture against tokens read, 1 is best; now {cut} tokens",
            height=220,
        )
        chart.line(ranks.items(), COLOURS["blue"])
        chart.rule(cut, COLOURS["vermillion"])
        chart.dot(cut, ranks[cut], COLOURS["vermillion"])
        return chart.html()

    def static(self, states: int = _STATIC_STATES) -> Html:
        """The present caption with a slider for its cut, for pages where no kernel runs.

        At most `states` cuts, evenly spread, the last token among them.
        """
        caption = self._current()
        count = min(states, caption.most)
        cuts = np.unique(np.linspace(1, caption.most, count).round().astype(int)).tolist()
        if not cuts_share_states(self.clip):
            for cut in cuts:
                caption.cosines(cut)
        start = min(range(len(cuts)), key=lambda i: abs(cuts[i] - self.cut.value))
        shown = {i for cut in cuts for i in self._reading(caption, cut).found}
        return states_html(
            [Control("tokens read", [str(cut) for cut in cuts], start)],
            lambda at: self._draw(caption, cuts[at]),
            self.pool.thumbnails(shown, 112),
        )


def _message(reading: Reading) -> str:
    read = f"{reading.cut} of {reading.tokens} tokens read"
    return f"{read}: the right picture is number {reading.rank} of {reading.pictures:,}"


def _clipped(text: str) -> str:
    return text if len(text) <= _IN_LIST else text[: _IN_LIST - 1] + "…"
