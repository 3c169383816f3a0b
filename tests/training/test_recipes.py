"""Recipes: published numbers, the official schedule, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longclip_lab.cli import main
from longclip_lab.constants import RENAMED
from longclip_lab.errors import LabError
from longclip_lab.training import METHODS, Recipe, longclip, recipe_for
from longclip_lab.training.checkpoints import claim, describe


def official_cosine(base_lr, warmup_length, steps, step):
    """Long-CLIP's `train/scheduler.py`, written down once more."""
    if step < warmup_length:
        return base_lr * (step + 1) / warmup_length
    e, es = step - warmup_length, steps - warmup_length
    return 0.5 * (1 + math.cos(math.pi * e / es)) * base_lr


@given(st.integers(0, 50), st.integers(1, 500), st.data())
def test_schedule_is_the_official_one(warmup, after, data):
    total = warmup + after
    step = data.draw(st.integers(0, total - 1))
    recipe = Recipe(learning_rate=3e-4, warmup_steps=warmup)
    expected = official_cosine(3e-4, warmup, total, step)
    assert recipe.learning_rate_at(step, total) == pytest.approx(expected, rel=1e-12)


def test_paper_scale_has_the_published_numbers():
    # The repository's train/train.md, and Table 4 of the paper's supplement.
    repository, paper = longclip("paper", "repository"), longclip("paper", "paper")
    assert (repository.learning_rate, repository.batch_size, repository.epochs) == (1e-6, 2048, 6)
    assert (paper.learning_rate, paper.batch_size, paper.epochs) == (1e-4, 1024, 1)
    for recipe in (repository, paper):
        assert recipe.warmup_steps == 200
        assert (recipe.weight_decay, recipe.betas, recipe.eps) == (1e-2, (0.9, 0.999), 1e-8)
        assert (recipe.label_smoothing, recipe.k, recipe.short_weight) == (0.1, 32, 1.0)


@pytest.mark.parametrize("scale", ["tiny", "lab", "paper"])
@pytest.mark.parametrize("preset", ["repository", "paper"])
def test_every_scale_and_preset_is_a_recipe(scale, preset):
    assert longclip(scale, preset).name == f"longclip-{scale}-{preset}"


def test_steps_and_epochs():
    assert Recipe(batch_size=10, steps=7).total_steps(25) == 7
    assert Recipe(batch_size=10, steps=None, epochs=3).total_steps(25) == 6
    with pytest.raises(LabError, match=r"batch of 10 is larger than the data, 9 pairs"):
        Recipe(batch_size=10).total_steps(9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 1}, "either steps or epochs"),
        ({"steps": None}, "either steps or epochs"),
        ({"steps": 0}, r"steps must be a whole number from 1 to 10\^12; came 0"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"batch_size": 1}, "batch_size must be a whole number from 2"),
        ({"steps": True}, "steps"),
        ({"steps": 10**30}, "steps"),
        ({"workers": 10**6}, "workers must be a whole number from 0 to 1,024"),
        ({"seed": 2**32}, "seed"),
        ({"max_logit_scale": math.nan}, "max_logit_scale must be a finite number"),
        ({"start_logit_scale": -1e6}, "start_logit_scale must be a finite number from -20"),
        ({"start_logit_bias": math.inf}, "start_logit_bias"),
        ({"checkpoint_minutes": math.inf}, "checkpoint_minutes"),
        ({"learning_rate": 1e300}, "learning_rate"),
        ({"weight_decay": 1e39}, "weight_decay"),
        ({"max_bad_fraction": math.nan}, "max_bad_fraction must be a finite number from 0 to 1"),
        ({"betas": (0.9,)}, "betas must be two numbers"),
        ({"betas": (math.nan, 0.9)}, r"betas\[0\]"),
        ({"hard_negative_group": math.nan}, "hard_negative_group"),
        ({"k": 0}, "k must be"),
        (
            {"learning_rate": 0.0},
            "learning_rate must be a finite number, above 0 and at most 1,",
        ),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"learning_rate": math.inf}, "learning_rate"),
        ({"learning_rate": "fast"}, "learning_rate"),
        ({"weight_decay": -1}, "weight_decay"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\]"),
        ({"label_smoothing": 1.5}, "label_smoothing"),
        ({"max_grad_norm": 0}, "max_grad_norm"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"seed": -1}, "seed"),
        ({"objective": {}}, "no objective {}"),
        ({"objective": "longclp"}, "no objective 'longclp'. Did you mean longclip"),
        ({"precision": "fp16"}, "no precision"),
        ({"subcaptions": 0}, 'subcaptions must be a whole number of at least 1, or "all"; came 0'),
        ({"num_corner": -1}, "num_corner must be a whole number from 0"),
        ({"long_weight": -1.0}, "long_weight must be a finite number from 0 to 1,000,000"),
        ({"hallucination": 2.0}, "hallucination must be a finite number from 0 to 1"),
        ({"reduction": "men"}, "no reduction 'men'. Did you mean mean"),
        ({"objective": "lotlpi"}, "no objective 'lotlpi'. Did you mean lotlip"),
        ({"captions": "all"}, "no captions 'all'"),
        ({"subcaptions": 3, "length_grouped": True}, "drawn anew"),
    ],
)
def test_senseless_values_are_refused(change, message):
    with pytest.raises(LabError, match=message):
        replace(Recipe(), **change)


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_old_name_is_refused_with_the_new_one(old, new, capsys):
    flags = [f"--{name.replace('_', '-')}" for name in (old, new)]
    for method in ("train", "plan"):
        assert main([method, "longclip", flags[0], "1"]) == 2
        assert f"{flags[0]} is now called {flags[1]}." in capsys.readouterr().err
    if hasattr(Recipe, new):
        with pytest.raises(LabError, match=f"^{old} is now called {new}.$"):
            replace(Recipe(), **{old: 1})


def test_a_run_that_was_written_down_with_old_names_goes_on(tmp_path, tiny):
    recipe = Recipe(hard_negative_group=2, num_streams=4)
    new = describe(recipe, {}, tiny.model)
    before = {name: old for old, name in RENAMED.items()}
    old = {before.get(name, name): value for name, value in new["recipe"].items()}
    (tmp_path / "run.json").write_text(json.dumps({**new, "recipe": {**old, "objective": "pcm"}}))
    claim(tmp_path, new, {}, resume=True)
    with pytest.raises(LabError, match=r"different run \(hard_negative_group: 2 there, 1 now\)"):
        claim(tmp_path, describe(Recipe(num_streams=4), {}, tiny.model), {}, resume=True)


def test_the_old_name_of_an_objective_is_understood():
    assert Recipe(objective="pcm") == Recipe(objective="longclip")


def test_unknown_names_list_near_ones():
    for ask, message in (
        (lambda: longclip("lap"), "Did you mean lab"),
        (lambda: longclip("tiny", "official"), "no preset"),
        (lambda: recipe_for("lotlpi"), "no method 'lotlpi'. Did you mean lotlip"),
        (lambda: recipe_for("lotlip", "paper", data="4M"), "no data scale '4M'"),
        (lambda: recipe_for("lit", "papr"), "Did you mean paper"),
    ):
        with pytest.raises(LabError, match=message):
            ask()


@pytest.mark.parametrize("method", [name for name in METHODS if name != "longclip"])
@pytest.mark.parametrize("scale", ["tiny", "lab", "paper"])
def test_every_scale_is_a_recipe_and_says_how_to_run_it(method, scale):
    recipe = recipe_for(method, scale)
    assert recipe.objective == method
    assert Recipe(**asdict(recipe)) == recipe
    assert f"longclip-lab train {method}" in METHODS[method].__doc__


def test_lotlip_has_the_published_numbers():
    # LoTLIP, section 5.1
    for data, batch in (("3M", 2560), ("100M", 16384)):
        recipe = recipe_for("lotlip", "paper", data=data)
        assert (recipe.batch_size, recipe.epochs) == (batch, 10)
        assert (recipe.subcaptions, recipe.token_limit, recipe.num_corner) == (3, 128, 2)
        assert (recipe.image_tower, recipe.text_tower) == ("ViT-B/16", "bert-base-uncased")
