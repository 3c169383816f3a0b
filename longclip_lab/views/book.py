"""A Sphinx extension that lets the book show figures and widgets without a network.

Notebooks store a plotly figure as its JSON, which JupyterLab draws. Jupyter Book would drop it, or
with another renderer load plotly.js from a server or carry 4.8 MB on each page. Here each figure
becomes its JSON in the page, and pages with figures share one plotly.js, copied from the installed
plotly. (myst-nb finds `PlotlyFigure` by the entry point in pyproject.toml.)
"""

from __future__ import annotations

import html
import importlib.util
import shutil
from pathlib import Path
from typing import Any, ClassVar

import plotly

from longclip_lab.files import to_json
from longclip_lab.views.theme import CONFIG

MIME_TYPE = "application/vnd.plotly.v1+json"
DEFAULT_HEIGHT = 450  # plotly's own

_DRAW = """
document.addEventListener("DOMContentLoaded", () => {
  for (const box of document.querySelectorAll(".plotly-json")) {
    Plotly.newPlot(box, JSON.parse(box.firstChild.textContent));
  }
});
"""


def figure_html(figure: dict[str, Any]) -> str:
    """The element that `_DRAW` fills: a box of the figure's height with the figure's JSON in it.

    >>> figure_html({"data": []})  # doctest: +ELLIPSIS
    '<div class="plotly-json" ...min-height: 450px"><script ...>{"data": [], ...}</script></div>'
    """
    layout = figure.get("layout", {})
    title = html.escape(layout.get("title", {}).get("text", "figure").replace("<br>", " "))
    height = layout.get("height", DEFAULT_HEIGHT)
    source = to_json({**figure, "config": CONFIG}).replace("</", r"<\/")
    return (
        f'<div class="plotly-json" role="figure" aria-label="{title}"'
        f' style="min-height: {height}px">'
        f'<script type="application/json">{source}</script></div>'
    )


class PlotlyFigure:
    """myst-nb's plug-in for outputs of the type `MIME_TYPE`."""

    mime_priority_overrides: ClassVar[list[tuple[str, str, int]]] = []  # the book's _config.yml

    @staticmethod
    def handle_mime(renderer: Any, data: Any, inline: bool) -> list[Any] | None:
        """A raw HTML node for a plotly figure, None for any other output."""
        if data.mime_type != MIME_TYPE:
            return None
        from docutils import nodes

        renderer.add_js_file("plotly", "vendor/plotly.min.js", {})
        renderer.add_js_file("plotly-draw", None, {"body": _DRAW})
        return [nodes.raw(text=figure_html(data.content), format="html", classes=["output"])]


def copy_scripts(app: Any, exception: Exception | None) -> None:
    """Put the JavaScript of the installed plotly and anywidget beside the book's own."""
    if exception is not None or app.builder.format != "html":
        return
    vendor = Path(app.outdir) / "_static" / "vendor"
    vendor.mkdir(parents=True, exist_ok=True)
    plotly_script = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    shutil.copyfile(plotly_script, vendor / "plotly.min.js")
    anywidget = importlib.util.find_spec("anywidget")
    if anywidget is not None and anywidget.origin is not None:
        script = Path(anywidget.origin).parent / "nbextension" / "index.js"
        shutil.copyfile(script, vendor / "anywidget.js")


def setup(app: Any) -> dict[str, bool]:
    """Sphinx calls this when the extension is loaded."""
    app.connect("build-finished", copy_scripts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
