"""The figures' look: titles that fit, no toolbar, intervals that belong to their curve."""

from __future__ import annotations

import plotly.io as pio
import pytest

from longclip_lab import views
from longclip_lab.errors import LabError


def test_a_long_title_is_broken_and_the_margin_grows_by_its_lines():
    short = views.figure("Short")
    long = views.figure("A message of many words " * 5)
    lines = long.layout.title.text.split("<br>")
    assert len(lines) == 2
    assert max(map(len, lines)) <= 66
    assert long.layout.margin.t - short.layout.margin.t == 25
    assert long.layout.title.pad.b - short.layout.title.pad.b == 25


def test_breaks_by_hand_are_kept():
    assert views.figure("one<br>two").layout.title.text == "one<br>two"


def test_figures_have_our_template_and_no_toolbar_in_jupyterlab(monkeypatch):
    monkeypatch.setattr(pio.renderers, "default", "plotly_mimetype")
    monkeypatch.setattr(pio.renderers["plotly_mimetype"], "config", {})
    figure = views.figure("Message")
    assert figure.layout.template.layout.colorway == views.PALETTE
    bundle = figure._repr_mimebundle_()
    assert bundle["application/vnd.plotly.v1+json"]["config"]["displayModeBar"] is False


@pytest.mark.parametrize("way", ["show", "_ipython_display_"])
def test_a_figure_that_is_shown_has_no_toolbar(way, monkeypatch):
    shown = []
    monkeypatch.setattr(pio.renderers, "default", "plotly_mimetype")
    monkeypatch.setattr(pio.renderers, "render_on_display", True)
    monkeypatch.setattr(pio.renderers["plotly_mimetype"], "config", {})
    monkeypatch.setattr(
        "plotly.io._renderers.ipython_display.display", lambda bundle, raw: shown.append(bundle)
    )
    getattr(views.figure("Message"), way)()
    [bundle] = shown
    assert bundle["application/vnd.plotly.v1+json"]["config"]["displayModeBar"] is False


def test_a_curve_brings_its_band_under_one_legend_entry():
    figure = views.figure("Message", x="tokens", y="R@1 (%)")
    views.add_curve(
        figure, [10, 20], [1.0, 2.0], [0.5, 1.5], [1.5, 2.5], "a", views.COLOURS["blue"]
    )
    band, curve = figure.data
    assert list(band.x) == [10, 20, 20, 10]
    assert list(band.y) == [1.5, 2.5, 1.5, 0.5]
    assert band.legendgroup == curve.legendgroup == "a"
    assert [band.showlegend, curve.showlegend] == [False, None]
    assert [tuple(pair) for pair in curve.customdata] == [(0.5, 1.5), (1.5, 2.5)]


def test_an_unknown_result_is_named():
    with pytest.raises(LabError, match="type dict"):
        views.plot({})
