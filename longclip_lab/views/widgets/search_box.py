"""Search a folder of pictures: type, and see what is found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import ipywidgets as widgets

from longclip_lab.errors import LabError
from longclip_lab.views.html import Html
from longclip_lab.views.search import drawn_search, found_html, thumbnails
from longclip_lab.views.static import Control, states_html
from longclip_lab.views.widgets.panel import Panel, dropdown

if TYPE_CHECKING:
    from longclip_lab.search import ImageIndex, Matches

_SMALL = 144  # pixels of a picture on a page that holds many
_IN_LIST, _AT_SLIDER = 72, 36  # characters of an example
_PLACEHOLDER = "Say what to look for; it is searched when you leave the field (Tab)"


class SearchBox(Panel):
    """Type a query of any length, or choose one of `examples`, and see the nearest pictures.

    `index` is a `search.ImageIndex`; with several models give them as {label: index}. `found` is
    the present answer as a value. What the model does not read of the query is grey, and every
    sentence that it reads is left out once to see what it does.

    Raises LabError for no index, no example and fewer than one picture to show.
    """

    def __init__(
        self, index: ImageIndex | dict[str, ImageIndex], examples: Sequence[str], top: int = 5
    ):
        self.indices = index if isinstance(index, dict) else {index.clip.name: index}
        self.examples, self.top = list(examples), top
        if not self.indices or not self.examples or top < 1:
            raise LabError(
                "expected an index, at least one example and at least one picture to show, got "
                f"{len(self.indices)}, {len(self.examples)} and {top}."
            )
        self.model = dropdown("model", list(self.indices))
        listed = [(f"{n}: {_clipped(one)}", one) for n, one in enumerate(self.examples, start=1)]
        self.choice = dropdown("example", listed)
        self.text = widgets.Textarea(
            value=self.examples[0], description="query", continuous_update=False, rows=4,
            placeholder=_PLACEHOLDER, style={"description_width": "initial"},
        )  # fmt: skip
        several = [self.model] * (len(self.indices) > 1)
        super().__init__([*several, self.choice, self.text])
        self._watch(self._choose, self.choice)
        self._watch(self.refresh, self.text, self.model)

    @property
    def found(self) -> Matches:
        """What the present query finds. Raises LabError for one that the model cannot read."""
        return self._search(self.indices[self.model.value], self.text.value)

    def _search(self, index: ImageIndex, text: str) -> Matches:
        return index.search(text, self.top, explain=True, warn=False)  # the answer shows it

    def _choose(self) -> None:
        with self._quietly():
            self.text.value = self.choice.value
        self.refresh()

    def draw(self) -> str:
        return found_html(self.found)

    def static(self) -> Html:
        """Every example with every model behind sliders, for pages where no kernel runs."""
        labels = list(self.indices)
        answers = [
            [self._search(index, text) for text in self.examples] for index in self.indices.values()
        ]
        pictures = thumbnails((found for row in answers for found in row), _SMALL)
        names = [_clipped(text, _AT_SLIDER) for text in self.examples]
        controls = [Control("query", names), *[Control("model", labels)] * (len(labels) > 1)]

        def drawn(query: int, model: int = 0) -> str:
            return drawn_search(answers[model][query])

        return states_html(controls, drawn, pictures)


def _clipped(text: str, characters: int = _IN_LIST) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"
