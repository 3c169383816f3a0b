"""The family: every method's recipe trains, survives a kill, and is the same on two processes."""

from __future__ import annotations

import json
import math
import signal
from dataclasses import replace
from typing import get_args

import pytest
import torch

from longclip_lab import models, objectives, world
from longclip_lab.errors import LabError
from longclip_lab.training import METHODS, new_model, recipe_for, train
from longclip_lab.training.data import StepSampler, TrainingPairs
from longclip_lab.training.loop import parameter_groups, prepare
from longclip_lab.training.recipe import Objective
from tests.processes import run_script
from tests.training.runs import same, script, weights

FAMILY = [name for name in METHODS if name != "longclip"]
SMALL = {
    "batch_size": 8,
    "steps": 6,
    "warmup_steps": 0,
    "k": 4,
    "checkpoint_every": 2,
    "tensorboard": False,
}


@pytest.fixture(scope="module")
def web():
    return world.web_pairs(24, seed=5)


def small(method, **changes):
    return replace(recipe_for(method), **{**SMALL, **changes})


def run(recipe, data, **options):
    return train(None, recipe, data, progress=False, **options)


def test_a_recipe_may_ask_for_every_objective():
    assert set(get_args(Objective)) == set(objectives.OBJECTIVES)


@pytest.mark.parametrize("method", FAMILY)
def test_every_method_learns_and_its_model_can_be_read_back(method, web, tmp_path):
    recipe = small(method, steps=10)
    before = weights(new_model(recipe))
    trained = run(recipe, web, out=tmp_path / "run")
    losses = [row["loss"] for row in trained.history]
    assert all(map(math.isfinite, losses))
    assert sum(losses[-3:]) < sum(losses[:3])
    after = weights(trained.model)
    again = models.load(tmp_path / "run" / "model")
    assert same(after, weights(again))
    assert torch.isfinite(models.encode_texts(again, web.short[:3]).features_ND).all()
    moved = {name for name, tensor in before.items() if not tensor.equal(after[name])}
    assert any(name.startswith("visual.") for name in moved) is not recipe.lock_image
    assert ("text.corner_embedding" in moved) is (recipe.num_corner > 0)
    assert any(name.startswith("text.transformer") for name in moved)


@pytest.mark.parametrize("method", ["lotlip", "siglip"])
@pytest.mark.parametrize("captions", ["both", "short"])
def test_nothing_trained_is_left_without_a_gradient(method, captions, web):
    """Data parallelism waits for every parameter that is said to be trained."""
    recipe = small(method, captions=captions, objective="lit" if captions == "short" else method)
    clip = new_model(recipe)
    towers = prepare(clip, recipe)
    step = towers(TrainingPairs(clip, web, recipe).__getitems__(list(range(8))))
    objectives.objective_loss(recipe.objective, step).total.backward()
    lacking = [n for n, p in towers.named_parameters() if p.requires_grad and p.grad is None]
    assert lacking == []


def test_locked_and_spared(web):
    recipe = small("lotlip")
    towers = prepare(new_model(recipe), recipe)
    assert towers.training
    assert not towers.model.visual.trunk.training
    names = {id(p): name for name, p in towers.model.named_parameters()}
    decayed, spared = (
        {names[id(p)] for p in group["params"]} for group in parameter_groups(towers.model, recipe)
    )
    assert "text.corner_embedding" in spared
    assert "text.transformer.embeddings.position_embeddings.weight" in spared
    assert "text.transformer.embeddings.word_embeddings.weight" in decayed
    assert not any(name.startswith("visual.") for name in decayed | spared)


def test_lotlips_loss_is_its_equations_on_the_models_features(web):
    recipe = small("lotlip", steps=1)
    clip = new_model(recipe)
    row = run(recipe, web).history[0]
    pairs = TrainingPairs(clip, web, recipe)
    rows = next(iter(StepSampler(recipe, pairs.lengths, 0, 1)))
    assert rows.epoch == 0
    image_BD = models.encode_images(clip, web.images[rows])
    long_BCD = models.encode_text_corners(clip, pairs.texts("long", rows).padded(0))
    short_BD = models.encode_texts(clip, [web.short[i] for i in rows]).features_ND
    same_long, same_short = (
        objectives.same_identity(pairs.texts(which, rows).identity_B) for which in ("long", "short")
    )
    expected = objectives.lotlip_loss(
        image_BD, long_BCD, short_BD, clip.model.logit_scale.exp(),
        same_long_GG=same_long, same_short_GG=same_short,
    )  # fmt: skip
    assert row["loss"] == pytest.approx(expected.total.item(), rel=1e-4)
    assert row["loss_long"] == pytest.approx(expected.long.item(), rel=1e-4)


def test_reduction_and_weights_reach_the_loss(web):
    whole = run(small("lotlip", steps=1), web).history[0]
    mean = run(small("lotlip", steps=1, reduction="mean"), web).history[0]
    heavy = run(small("lotlip", steps=1, long_weight=3.0), web).history[0]
    assert mean["loss"] == pytest.approx(whole["loss"] / 4, rel=1e-5)
    assert heavy["loss_long"] == pytest.approx(3 * whole["loss_long"], rel=1e-5)


@pytest.mark.parametrize("objective", ["debias-clip", "hn-clip", "longclip"])
def test_other_objectives_run_on_the_same_model(objective, web):
    history = run(small("lit", objective=objective, captions="both", steps=2), web).history
    assert all(math.isfinite(row["loss"]) for row in history)


def test_scale_and_bias(web):
    trained = run(small("siglip", steps=1), web)
    assert trained.model.model.logit_bias.item() == pytest.approx(-10, abs=0.1)
    assert trained.model.model.logit_bias.item() != -10
    hot = replace(small("lit", steps=1), start_logit_scale=9.0)
    assert run(hot, web).model.model.logit_scale.item() == pytest.approx(math.log(100))


def test_arms_of_one_seed_start_from_the_same_towers():
    first, second = (new_model(small("lotlip", num_corner=n)) for n in (2, 4))
    plain = weights(new_model(small("lit")))
    corners = weights(first)["text.corner_embedding"]
    assert torch.equal(weights(second)["text.corner_embedding"][:2], corners)
    assert same(plain, weights(first))
    assert not same(plain, weights(new_model(small("lit", seed=1))))


def test_a_model_that_is_given_is_trained_by_any_method(web):
    tiny = models.new_tiny(seed=1)
    for method in ("lit", "filip", "siglip"):
        trained = train(tiny, small(method, steps=2, lock_image=True), web, progress=False)
        assert trained.model.name.startswith("tiny-untrained+")
        assert same(
            {n: w for n, w in weights(tiny).items() if n.startswith("visual.trunk")},
            weights(trained.model),
        )


def test_the_worlds_alt_texts_are_the_default(tmp_path):
    recipe = small("lotlip", steps=1, pairs=8, captioners=("painter",), hallucination=0.5)
    trained = run(recipe, None, out=tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["data"]["dataset"] == "world-web"
    assert record["data"]["hallucination"] == 0.5
    assert record["drawn"]["by_captioner"] == {"painter": 8}
    assert trained.drawn.pictures == 8


def test_a_run_that_was_killed_ends_at_the_same_bits(web, tmp_path):
    """Six steps of 24 pairs by 8 are two epochs: what is drawn changes in between."""
    recipe = small("lotlip", rewrites=True)
    codes, said = run_script(*script(tmp_path, recipe, web, new=True, kill_after=5))
    assert codes == [-signal.SIGKILL], said
    assert (tmp_path / "run" / "features" / "features.npy").exists()
    resumed = run(recipe, web, out=tmp_path / "run", resume=True)
    whole = run(recipe, web)
    assert same(weights(resumed.model), weights(whole.model))
    assert [row["loss"] for row in resumed.history] == [row["loss"] for row in whole.history]


@pytest.mark.parametrize("method", ["lotlip", "siglip", "filip"])
def test_two_processes_do_what_one_does(method, web, tmp_path, in_processes):
    recipe = small(method, steps=4, learning_rate=1e-4)
    in_processes(2, *script(tmp_path, recipe, web, new=True))
    alone = run(recipe, web)
    both = models.load(tmp_path / "run" / "model")
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").open()]
    for row, expected in zip(log, alone.history, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    for encode in (
        lambda clip: models.encode_images(clip, web.images),
        lambda clip: models.encode_text_corners(clip, clip.tokenize(web.long).ids_BT).flatten(1),
    ):
        with torch.no_grad():
            one, other = (torch.nn.functional.normalize(encode(c), dim=1) for c in
                          (both, alone.model))  # fmt: skip
        assert torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("lotlip", {"captions": "short"}, "'lotlip' needs long"),
        ("lotlip", {"captioners": ("paintr",)}, "no captioner 'paintr'. Did you mean painter"),
        ("filip", {"num_corner": 2}, "without corner tokens"),
        ("lit", {"text_tower": None}, "image_tower and text_tower"),
        ("lit", {"image_tower": "ViT-B/61"}, "no image tower 'ViT-B/61'"),
    ],
)
def test_bad_input(method, changes, message, web):
    with pytest.raises(LabError, match=message):
        run(small(method, **changes), web)


@pytest.mark.parametrize("objective", ["longclip", "lit-longclip", "debias-clip"])
def test_what_the_recipe_says_of_components_reaches_the_loss(objective, web):
    """There were two ways to a loss, and `match_official` and `pca_scope` went one of them only."""
    seen = {}

    def spy(features_BD, k):
        seen["batch"] = len(features_BD)
        return features_BD * 0.5

    for match_official, name in ((False, "primary_components"), (True, "primary_components_svd")):
        seen.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"longclip_lab.objectives.longclip.{name}", spy)
            changes = {
                "objective": objective,
                "match_official": match_official,
                "k": 2,
                "hard_negative_group": 1,
            }
            run(replace(small("lit-longclip", steps=1), **changes), web)
        assert seen, f"{objective} with match_official={match_official} did not ask {name}"
