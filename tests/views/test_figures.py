"""Figures show the numbers they are given, and their titles say what those say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from longclip_lab import views
from longclip_lab.errors import LabError
from longclip_lab.objectives import rank_meter
from longclip_lab.views.counterfactual import read_by_all
from longclip_lab.views.models import against_sweep, short_weight_sweep


def title(chart) -> str:
    return chart.layout.title.text.replace("<br>", " ").replace("\u00a0", " ")


def texts(chart) -> list[str]:
    return [note.text for note in chart.layout.annotations]


def test_every_figure_is_small(made_up):
    results = made_up.results()
    probes = results.probes
    table = torch.randn(1000, 64)
    figures = [
        results.before.curve.plot(),
        results.after.curve.plot(),
        results.before.plot(),
        *(probes["tiny"].plot(by=by) for by in ("size", "position", "attribute")),
        *(views.counterfactual_figure(probes, by) for by in ("size", "position", "attribute")),
        views.stretching_figure(results.rows),
        views.tradeoff_figure(results.rows),
        views.position_similarity_figure({str(i): table for i in range(6)}),
        views.plot(rank_meter(torch.randn(512, 512))),
    ]
    assert max(len(chart.to_json()) for chart in figures) < 300_000
    assert all(title(chart) for chart in figures)


def test_truncation_title_says_what_moving_the_summary_does(made_up):
    lost = made_up.curve()
    assert title(lost.plot()) == (
        "Half of the score is there after 12 tokens; with the summary last, not even after 75"
    )
    late = made_up.curve(**{"summary last": (0.7, 50)})
    assert title(late.plot()).endswith("; with the summary last, after 50")
    same = made_up.curve(**{"summary last": (0.7, 11)})
    assert title(same.plot()).endswith(", wherever the summary stands")


def test_truncation_figure_draws_every_variant_and_its_band(made_up):
    curve = made_up.curve()
    chart = curve.plot()
    drawn = {trace.name: trace for trace in chart.data if trace.name}
    assert set(drawn) == set(curve.hits)
    for name, trace in drawn.items():
        assert np.allclose(trace.y, 100 * curve.hits[name].mean(1))
        assert tuple(trace.x) == curve.cuts
    assert {text.replace("<br>", " ") for text in texts(chart)} == set(curve.hits)


def test_a_curve_without_controls_is_drawn_too(made_up):
    curve = made_up.curve()
    alone = type(curve)(
        **{**vars(curve), "hits": {"as written": curve.hits["as written"]}},
    )
    assert title(alone.plot()) == "Half of the score is there after 12 tokens"


def test_effective_length_title_gives_the_range_of_the_definitions(made_up):
    effective = made_up.effective()
    found = [length.value for length in effective.lengths["as written"].values()]
    assert f"{min(found):.0f} to {max(found):.0f} tokens" in title(effective.plot())
    shown = set(texts(effective.plot()))
    assert {f"{value:.0f}" for value in found} <= shown


def test_effective_length_title_when_all_definitions_agree(made_up):
    effective = made_up.effective()
    length = effective.lengths["as written"]["half"]
    same = dict.fromkeys(effective.lengths["as written"], length)
    agreeing = type(effective)(effective.curve, {"as written": same}, effective.least_gain)
    assert title(agreeing.plot()).startswith(f"About {length.value:.0f} tokens")


def test_answers_title_tells_knowing_from_guessing(made_up):
    assert title(made_up.probe().plot()).endswith("for small things it guesses")
    knowing = made_up.probe(small=0.8, medium=0.8)
    assert "above chance for large things" in title(knowing.plot())
    blind = made_up.probe(large=0.5, medium=0.5, small=0.5)
    assert title(blind.plot()).startswith("It guesses throughout")


def test_answers_by_size_leave_out_what_a_model_cannot_read(made_up):
    probe = made_up.probe()
    chart = probe.plot(by="size")
    large = probe.accuracy((probe.size == "large") & ~probe.unread)
    assert math.isclose(chart.data[0].x[0], 100 * large.value)
    assert f"{(~probe.unread).sum():,} questions" in chart.layout.title.subtitle.text
    with pytest.raises(LabError, match="none of them"):
        read_by_all({"blind": type(probe)(**{**vars(probe), "unread": probe.unread | True})})


@pytest.mark.parametrize(
    ("small", "said"),
    [
        (0.9, "is better on small things"),
        (0.2, "is worse on small things"),
        (0.51, "No difference"),
    ],
)
def test_answers_title_compares_the_last_model_with_the_first(made_up, small, said):
    probes = {"before": made_up.probe(), "after": made_up.probe("after", 248, small=small)}
    assert said in title(views.counterfactual_figure(probes))


def test_position_title_says_whether_the_longer_context_is_used(made_up):
    reading = {"before": made_up.probe(), "after": made_up.probe("after", 248)}
    assert "“after” is right on" in title(views.counterfactual_figure(reading, "position"))
    chance = made_up.probe("after", 248, large=0.5, medium=0.5, small=0.5)
    guessing = views.counterfactual_figure({**reading, "after": chance}, "position")
    assert "but guesses the words" in title(guessing)


@pytest.mark.parametrize(
    ("early", "said"), [(1.0, "fall"), (0.0, "rise"), (0.5, "no difference that is seen")]
)
def test_position_title_of_one_model_says_where_it_reads_better(made_up, early, said):
    probe = made_up.probe(large=0.5, medium=0.5, small=0.5)
    wins = np.random.default_rng(0).permutation(len(probe.margins)) / len(probe.margins) < early
    margins = np.where(probe.position <= 20, np.where(wins, 0.1, -0.1), probe.margins)
    one = type(probe)(**{**vars(probe), "margins": margins})
    assert said in title(one.plot(by="position"))


def test_chance_is_marked(made_up):
    lines = [shape.x0 for shape in made_up.probe().plot().layout.shapes]
    assert lines == [50]
    assert [shape.y0 for shape in made_up.probe().plot(by="position").layout.shapes] == [50]


def test_an_unknown_grouping_names_the_known_ones(made_up):
    with pytest.raises(LabError, match="size"):
        made_up.probe().plot(by="sizes")
    with pytest.raises(LabError, match="at least one"):
        views.counterfactual_figure({})


def test_stretching_title_names_what_costs_and_what_does_not(made_up):
    harmful = title(views.stretching_figure(made_up.rows()))
    assert harmful.startswith("“linear” costs short captions 10.8 points")
    assert harmful.endswith("“KPS” and “keep + random” nothing that can be seen")
    harmless = title(views.stretching_figure(made_up.rows(linear=(0.7, 0.755))))
    assert harmless.startswith("No way of stretching costs")


@pytest.mark.parametrize(
    ("scores", "place"),
    [((0.80, 0.75), "on"), ((0.90, 0.85), "above"), ((0.60, 0.60), "below")],
)
def test_tradeoff_title_says_where_pcm_lies_to_the_sweep(made_up, scores, place):
    rows = made_up.rows(long___short__PCM=scores)
    assert f"“long + short, PCM” lies {place} the curve" in title(views.tradeoff_figure(rows))


def test_the_sweep_is_ordered_by_the_weight_of_the_short_loss(made_up):
    sweep = short_weight_sweep(made_up.rows()[::-1])
    assert [row.label for row in sweep] == ["long only", "long + 0.1 short", "long + 1.0 short"]
    assert all(against_sweep(row, sweep) == "on" for row in sweep)


def test_tradeoff_shows_every_fine_tuned_model_by_name_with_pcms_variance(made_up):
    chart = views.tradeoff_figure(made_up.rows(variance_kept=0.9995))
    named = texts(chart)
    assert {"long only", "long + 0.1 short", "long + 1.0 short", "KPS", "not stretched"} <= {*named}
    assert "long + short, PCM<br>99.95% of the variance kept" in named


def test_similarity_title_counts_the_positions_that_stay():
    old = torch.randn(77, 8, generator=torch.Generator().manual_seed(0))
    longer = torch.cat([old[:20], torch.zeros(228, 8)])
    chart = views.position_similarity_figure({"old": old, "new": longer, "other": old + 1})
    assert title(chart) == "Positions left as they were in “old”: new 20 and other 0"
    assert np.asarray(chart.data[0].z).max() == 100
    with pytest.raises(LabError, match="positions"):
        views.position_similarity_figure({"flat": torch.randn(77)})


def test_spectrum_shows_the_kept_directions_and_the_verdict():
    meter = rank_meter(torch.randn(64, 16, generator=torch.Generator().manual_seed(0)), k=4)
    chart = views.plot(meter)
    assert title(chart) == meter.verdict
    assert math.isclose(sum(chart.data[0].y), 100, rel_tol=1e-4)
    assert len(set(chart.data[0].marker.color[:4])) == 1
    assert chart.data[0].marker.color[3] != chart.data[0].marker.color[4]


def test_stretching_alone_is_told_for_long_captions_too(made_up):
    from longclip_lab.views.models import long_message

    gained = long_message(made_up.rows(KPS=(0.9, 0.758), keep___random=(0.8, 0.755)))
    assert gained == (
        "Long captions gain 21.5 points with “KPS” and 11.5 points with “keep + random”; they "
        "lose with “linear”"
    )
    same = made_up.rows(linear=(0.685, 0.7), KPS=(0.685, 0.7), keep___random=(0.685, 0.7))
    assert long_message(same) == "Long captions gain nothing that is seen"
