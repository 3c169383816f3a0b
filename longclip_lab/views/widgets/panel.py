"""What every view here is: controls, one panel that is drawn anew, a busy sign, a place for errors.

The panel is HTML with small SVG charts, so that an answer is a few KB and nothing flickers. Models
and pools are read when the view is shown, not when it is made: the reader sees it at work.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anywidget
import ipywidgets as widgets
from IPython.display import display

from longclip_lab.errors import LabError
from longclip_lab.views.html import asset, style


class _Keys(anywidget.AnyWidget):
    """Keeps the keys pressed in a view from JupyterLab, which would move to another cell."""

    _esm = str(asset("keys.js"))


class Panel(widgets.VBox):
    """A view; subclasses draw and say which of their controls change what."""

    def __init__(self, controls: list[widgets.Widget]):
        self._panel = widgets.HTML()
        self._sign = widgets.HTML()
        self._error = widgets.HTML()
        self._quiet = False
        self.error = ""  # what the view says in place of an answer
        styles = widgets.HTML(style("view") + style("panel"))
        super().__init__([styles, _Keys(), *controls, self._sign, self._error, self._panel])
        self.add_class("lc-view")
        self.add_class("lc-panel")

    def draw(self) -> str:
        """The HTML of the present state. Raises LabError where the state makes no sense."""
        raise NotImplementedError

    def refresh(self) -> None:
        """Draw the present state; the message of a LabError stands above the last good one."""
        message = ""
        with self.busy():
            try:
                drawn = self.draw()
                self._panel.value = f'<div role="status" aria-live="polite">{drawn}</div>'
            except LabError as error:
                message = str(error)
        self.error = message
        box = f'<div class="error" role="alert">{html.escape(message)}</div>'
        self._error.value = box if message else ""

    @contextmanager
    def busy(self, doing: str = "working") -> Iterator[None]:
        """Show the busy sign, and what is being done, inside the block."""
        before = self._sign.value
        self._sign.value = f'<span class="busy" role="status">{html.escape(doing)} …</span>'
        try:
            yield
        finally:
            self._sign.value = before

    def _watch(self, act: Callable[[], Any], *controls: widgets.Widget) -> None:
        """Call `act` when a control's value changes, unless the view itself changed it."""
        for control in controls:
            control.observe(lambda _: None if self._quiet else act(), "value")

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """Change controls inside the block without an answer to each change."""
        self._quiet, before = True, self._quiet
        try:
            yield
        finally:
            self._quiet = before

    def _ipython_display_(self, **options: Any) -> None:
        display(self._repr_mimebundle_(**options), raw=True)
        self.refresh()


def slider(label: str, values: range, value: int, **options: Any) -> widgets.IntSlider:
    """A labelled slider over whole numbers that answers while it is dragged."""
    return widgets.IntSlider(
        value=value, min=values.start, max=values.stop - 1, step=values.step, description=label,
        style={"description_width": "initial"}, continuous_update=True, **options,
    )  # fmt: skip


def dropdown(label: str, options: list, value: Any = None, **more: Any) -> widgets.Dropdown:
    """A labelled list to choose from; the first option unless `value` says otherwise."""
    chosen = {} if value is None else {"value": value}
    return widgets.Dropdown(
        options=options, description=label, style={"description_width": "initial"}, **chosen, **more
    )
