"""Figures in the book: JSON in the page, one plotly.js, nothing from a server."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import plotly
import plotly.graph_objects as go

from longclip_lab import views
from longclip_lab.views import book


def _json_in(page: str) -> dict:
    return json.loads(re.search(r"<script[^>]*>(.*)</script>", page).group(1))


def test_the_page_holds_the_figure_and_its_height_and_title():
    figure = views.figure("A & B<br>C", height=300).add_bar(y=[1, 2])
    page = book.figure_html(json.loads(figure.to_json()))
    assert 'aria-label="A &amp; B C"' in page
    assert "min-height: 300px" in page
    assert _json_in(page)["data"][0]["type"] == "bar"
    assert _json_in(page)["config"] == views.CONFIG


def test_text_in_a_figure_cannot_end_the_script():
    figure = go.Figure(layout={"xaxis": {"title": {"text": "</script><b>"}}})
    page = book.figure_html(json.loads(figure.to_json()))
    assert page.count("</script>") == 1
    assert _json_in(page)["layout"]["xaxis"]["title"]["text"] == "</script><b>"


class _Renderer:
    """The one method of myst-nb's renderer that the plug-in calls."""

    def __init__(self) -> None:
        self.scripts: dict[str, str | None] = {}

    def add_js_file(self, key: str, uri: str | None, kwargs: dict[str, str]) -> None:
        self.scripts[key] = uri


def test_only_plotly_outputs_are_taken_and_each_page_loads_plotly_once():
    renderer = _Renderer()
    html = SimpleNamespace(mime_type="text/html", content="<b>")
    assert book.PlotlyFigure.handle_mime(renderer, html, False) is None
    figure = SimpleNamespace(mime_type=book.MIME_TYPE, content={"data": []})
    for _ in range(2):
        (node,) = book.PlotlyFigure.handle_mime(renderer, figure, False)
    assert node["format"] == "html"
    assert renderer.scripts == {"plotly": "vendor/plotly.min.js", "plotly-draw": None}


def test_the_installed_plotly_and_anywidget_are_copied(tmp_path):
    app = SimpleNamespace(outdir=tmp_path, builder=SimpleNamespace(format="html"))
    book.copy_scripts(app, None)
    script = (tmp_path / "_static" / "vendor" / "plotly.min.js").read_text(encoding="utf-8")
    assert script == plotly.offline.get_plotlyjs()
    assert (tmp_path / "_static" / "vendor" / "anywidget.js").stat().st_size > 10_000


def test_a_failed_build_copies_nothing(tmp_path):
    app = SimpleNamespace(outdir=tmp_path, builder=SimpleNamespace(format="html"))
    book.copy_scripts(app, RuntimeError("a cell failed"))
    assert not list(tmp_path.iterdir())
