"""One evaluation as one row, with what is known of the run behind it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from longclip_lab import world
from longclip_lab.errors import LabError
from longclip_lab.evaluation import BENCHMARKS
from longclip_lab.models import new_tiny, stretch
from longclip_lab.reproduction.results import score_row
from longclip_lab.training import longclip, train


@pytest.fixture(scope="module")
def clip():
    return stretch(new_tiny(seed=0))


@pytest.fixture(scope="module")
def few(clip):
    """Eight pairs and the two classifications, on pools small enough for a test."""
    return world.pairs(8)


@pytest.fixture
def small_pool(monkeypatch):
    from longclip_lab.data.benchmarks import load as drawn

    monkeypatch.setattr(drawn, "POOL", 8)
    drawn.drawn_objects.cache_clear()
    yield
    drawn.drawn_objects.cache_clear()


def test_a_row_has_every_score_and_the_texts_that_were_cut(clip, few, small_pool):
    start = stretch(new_tiny(seed=0), method="none")
    row = score_row(start, "as it was", "start", few, "world/kind", "world/colour")
    assert (row.label, row.stage, row.truncated) == ("as it was", "start", 8)
    assert row.long_i2t.n == row.short_t2i.n == row.kind.n == row.colour.n == 8
    assert row.recipe == {}
    assert row.variance_kept is None


@pytest.mark.parametrize("objective", ["longclip", "mixed"])
def test_a_run_brings_its_recipe_and_its_share_of_the_variance(clip, few, small_pool, objective):
    recipe = replace(
        longclip("tiny"), objective=objective, k=2, steps=2, warmup_steps=1, batch_size=8
    )
    run = train(clip, recipe, few, progress=False)
    row = score_row(run.model, "tuned", "fine-tuned", few, "world/kind", "world/colour", run=run)
    assert row.recipe["objective"] == objective
    assert row.seconds == run.seconds > 0
    if objective == "longclip":
        shares = [step["variance_kept"] for step in run.history]
        assert row.variance_kept == pytest.approx(sum(shares) / 2)
        assert 0 < row.variance_kept < 1
    else:
        assert row.variance_kept is None


def test_a_benchmark_that_is_missing_is_named(clip, few):
    with pytest.raises(LabError, match="needs a score of kind"):
        score_row(clip, "x", "start", few)
    assert {name.rpartition("/")[2] for name in BENCHMARKS} == {
        "long-retrieval", "short-retrieval", "kind", "colour"
    }  # fmt: skip
