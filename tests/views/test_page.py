"""Pages that need nothing but themselves."""

from __future__ import annotations

import json
import re
from importlib.resources import files

import pandas as pd
import plotly

from longclip_lab.views.static import DARK, figure_block, table_html
from longclip_lab.views.static import standalone_page as page


def version(script: str) -> str:
    return re.search(r"plotly\.js (?:\(basic - minified\) )?v([\d.]+)", script).group(1)


def test_the_vendored_plotly_js_is_of_the_installed_plotlys_version():
    """A newer plotly may write JSON that an older plotly.js does not know."""
    vendored = (files("longclip_lab.views") / "vendor" / "plotly-basic.min.js").read_text("utf-8")
    own = (files(plotly) / "package_data" / "plotly.min.js").read_text("utf-8")
    assert version(vendored[:300]).split(".")[0] == version(own[:300]).split(".")[0]
    licence = (files("longclip_lab.views") / "vendor" / "plotly-basic-LICENSE.txt").read_text()
    assert licence.startswith("MIT License")


def test_the_basic_bundle_draws_every_trace_of_the_report(made_up):
    results = made_up.results()
    for result in (results.before.curve, results.before, results.probes["tiny"]):
        assert {trace.type for trace in result.plot().data} <= {"scatter", "bar", "pie"}


def test_a_figures_title_becomes_text_of_the_page(made_up):
    chart = made_up.curve().plot()
    block = figure_block(chart, "<table></table>")
    assert f"<h3>{chart.layout.title.text.replace('<br>', ' ')}</h3>" in block
    figure = json.loads(re.search(r"<script[^>]*>(.*?)</script>", block).group(1))
    assert "title" not in figure["layout"]
    assert len(figure["data"]) == len(chart.data)
    assert "<details>" in block
    assert "<details>" not in figure_block(chart)


def test_every_colour_of_the_figures_has_a_sibling_for_the_dark(made_up):
    results = made_up.results()
    from longclip_lab.views import stretching_figure, tradeoff_figure

    for chart in (results.before.curve.plot(), results.before.plot(),
                  stretching_figure(results.rows), tradeoff_figure(results.rows)):  # fmt: skip
        used = {*re.findall(r'"(#[0-9A-Fa-f]{6})"', figure_block(chart))}
        assert used <= {*DARK}


def test_nothing_in_a_page_can_end_its_script(made_up):
    curve = made_up.curve(model="</script><b>")
    document = page("A & B", figure_block(curve.plot()))
    assert "<title>A &amp; B</title>" in document
    assert "</script><b>" not in document.replace("&lt;", "<").replace("<\\/", "")
    assert document.count("<script") == document.count("</script>")


def test_tables_have_scopes_and_one_decimal():
    table = table_html(pd.DataFrame({"name": ["<a>"], "score": [12.345]}), "Scores", ["name"])
    assert '<th scope="col" class="words">name</th>' in table
    assert "<td>12.3</td>" in table
    assert "&lt;a&gt;" in table
    assert "<caption>Scores</caption>" in table
