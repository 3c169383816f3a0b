"""Counterfactual browser: two captions that differ in a word, and which one the model takes.

N questions.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import ipywidgets as widgets
import numpy as np

from longclip_lab.errors import LabError
from longclip_lab.models import Clip
from longclip_lab.probing import PairScores, pair_scores, wilson
from longclip_lab.views.counterfactual import (
    ANSWERS,
    EDGES,
    PIXELS,
    Question,
    changed_words,
    question_card,
    token_range,
)
from longclip_lab.views.html import Html, Pool
from longclip_lab.views.static import Card, cards_html, with_images
from longclip_lab.views.theme import with_interval
from longclip_lab.views.widgets.panel import Panel, dropdown

_STATIC_CARDS = 24


class CounterfactualBrowser(Panel):
    """Leaf through counterfactual questions: the picture, the sentence, both scores.

    `questions` are those of `world.counterfactuals`, or anything with `.images`, `.true` and
    `.false`; `.attribute`, `.size`, `.position` and `.box` (in pixels of the picture) are used if
    they are there. `question` is the present one as a value, `chosen` the indices of those that
    the filters leave.

    Raises LabError for questions without these parts and for unequal numbers of them.
    """

    def __init__(self, clip: Clip, questions: Any):
        missing = [name for name in ("images", "true", "false") if not hasattr(questions, name)]
        if missing:
            raise LabError(
                "expected questions with .images, .true and .false, got "
                f"{type(questions).__name__} without .{missing[0]}."
            )
        self.clip, self.questions = clip, questions
        self.pool = Pool(
            questions.images, list(questions.true), list(questions.true),
            scenes=getattr(questions, "scenes", None) or (),
        )  # fmt: skip
        self._changes = [
            changed_words(*both) for both in zip(questions.true, questions.false, strict=True)
        ]
        self._positions = self._token_positions()
        self.answer = dropdown("answer", ["all", *ANSWERS])
        self.attribute = dropdown("attribute", ["all", *self._values("attribute")])
        self.size = dropdown("size", ["all", *self._values("size")])
        most = max(1, int(self._positions.max()))
        self.position = widgets.IntRangeSlider(
            value=(0, most), min=0, max=most, description="token", continuous_update=False,
            style={"description_width": "initial"},
        )  # fmt: skip
        self.previous = widgets.Button(description="previous", icon="arrow-left")
        self.next = widgets.Button(description="next", icon="arrow-right")
        self._at = 0
        filters = widgets.HBox([self.answer, self.attribute, self.size])
        super().__init__([filters, self.position, widgets.HBox([self.previous, self.next])])
        self._watch(self._filter, self.answer, self.attribute, self.size, self.position)
        self.previous.on_click(lambda _: self.go(-1))
        self.next.on_click(lambda _: self.go(1))

    def _token_positions(self) -> np.ndarray:
        given = getattr(self.questions, "position", None)
        if given is not None:
            return np.asarray(given)
        tokenized = map(self.clip.tokenizer.tokenize, self.questions.true)
        return np.array(
            [
                1 + sum(end <= change.start for _, end in text.spans)
                for text, change in zip(tokenized, self._changes, strict=True)
            ]
        )

    def _values(self, name: str) -> list[str]:
        order = ["large", "medium", "small"] if name == "size" else []
        found = set(getattr(self.questions, name, None) or ())
        return [v for v in order if v in found] + sorted(found - set(order))

    @cached_property
    def scores(self) -> PairScores:
        """The scores of all questions, computed once."""
        asked = self.questions
        with self.busy(f"answering {len(asked.true)} questions"):
            return pair_scores(self.clip, asked.images, asked.true, asked.false)

    @cached_property
    def answers(self) -> np.ndarray:
        """One of `ANSWERS` for every question [N]."""
        margins = self.scores.margins
        told = np.where(margins > 0, "right", np.where(margins < 0, "wrong", "tie"))
        return np.where(self.scores.unread, "not read", told)

    @property
    def chosen(self) -> np.ndarray:
        """The indices of the questions that the filters leave."""
        asked = self._asked
        wanted = self.answer.value
        return asked if wanted == "all" else asked[self.answers[asked] == wanted]

    @property
    def _asked(self) -> np.ndarray:
        """The indices of the questions that fit all filters but the one for the answer."""
        low, high = self.position.value
        kept = (self._positions >= low) & (self._positions <= high)
        for name in ("attribute", "size"):
            wanted = getattr(self, name).value
            if wanted != "all":
                kept &= np.array(getattr(self.questions, name)) == wanted
        return np.flatnonzero(kept)

    @property
    def question(self) -> Question:
        """The question that is shown. Raises LabError if the filters leave none."""
        chosen = self.chosen
        if not len(chosen):
            raise LabError("No question is left: widen the filters.")
        return self._question(int(chosen[min(self._at, len(chosen) - 1)]))

    def _question(self, index: int) -> Question:
        asked = self.questions
        box = getattr(asked, "box", None)
        if box is not None:
            side = np.array(self.pool.size(index) * 2)
            box = tuple(float(share) for share in np.clip(np.array(box[index]) / side, 0, 1))
        return Question(
            index, asked.true[index], asked.false[index], self._changes[index],
            int(self._positions[index]),
            *(str(given[index]) if (given := getattr(asked, name, None)) is not None else ""
              for name in ("attribute", "size")),
            float(self.scores.true[index]), float(self.scores.false[index]),
            str(self.answers[index]), box,
        )  # fmt: skip

    def go(self, step: int) -> None:
        """Move `step` questions on, or back if negative, as far as there are any."""
        self._at = max(0, min(self._at + step, len(self.chosen) - 1))
        self.refresh()

    def _filter(self) -> None:
        self._at = 0
        self.refresh()

    def draw(self) -> str:
        question, chosen = self.question, self.chosen
        self.previous.disabled = self._at == 0
        self.next.disabled = self._at >= len(chosen) - 1
        name = str(question.index)
        card = question_card(question, self._span)
        return f"<p>question {self._at + 1} of {len(chosen)}; {self._tally()}</p>" + with_images(
            card, {name: self.pool.thumbnail(question.index, PIXELS, redraw=True)}
        )

    def _tally(self) -> str:
        """How many of the questions asked are answered right, whatever answer is looked at."""
        asked = self._asked
        read = asked[~self.scores.unread[asked]]
        if not len(read):
            return "none of them is read"
        wins = np.sum(self.answers[read] == "right") + np.sum(self.answers[read] == "tie") / 2
        unread = len(asked) - len(read)
        left = f"; {unread} not read" if unread else ""
        return f"in all {with_interval(wilson(wins, len(read)))} right of {len(read)} read{left}"

    @cached_property
    def _span(self) -> tuple[float, float]:
        """The bars' range, the same for all questions."""
        both = np.concatenate([self.scores.true, self.scores.false])
        room = max(0.05 * float(np.ptp(both)), 1e-3)
        return float(both.min()) - room, float(both.max()) + room

    def static(self, n: int = _STATIC_CARDS) -> Html:
        """Up to `n` of the chosen questions, evenly spread over the answers, with filters."""
        queues = [[i for i in self.chosen if self.answers[i] == answer] for answer in ANSWERS]
        picked: list[int] = []
        while len(picked) < n and any(queues):
            picked += [queue.pop(0) for queue in queues if queue]
        picked = sorted(int(i) for i in picked[:n])
        cards = []
        for i in picked:
            question = self._question(i)
            tags = {"answer": question.answer, "attribute": question.attribute,
                    "size": question.size, "token": token_range(question.position)}  # fmt: skip
            cards.append(Card(question_card(question, self._span), tags))
        ranges = [token_range(edge) for edge in EDGES[:-1]]
        order = {"answer": ANSWERS, "size": self._values("size"), "token": ranges}
        return cards_html(cards, self.pool.thumbnails(picked, 200), order)
