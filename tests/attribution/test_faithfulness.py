"""The tests of attribution methods on maps and models whose scores can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longclip_lab import attribution, models, world
from longclip_lab.attribution import PATCH_METHODS, TOKEN_METHODS, PatchMap, TokenMap
from longclip_lab.attribution.faithfulness import (
    areas,
    baseline,
    filled,
    image_similarity,
    pointing_scores,
    randomised,
    rank_correlation,
    text_similarity,
    weights_score,
)
from longclip_lab.attribution.grounding import (
    energy_inside,
    patch_shares,
    patches_inside,
    peak_inside,
    proportion,
    seen_box,
    world_pictures,
)
from longclip_lab.attribution.verdicts import markdown
from longclip_lab.errors import LabError


@pytest.fixture(scope="module")
def clip():
    return models.load("tiny")


@pytest.fixture(scope="module")
def drawn():
    return world_pictures(12)


@pytest.fixture(scope="module")
def things(clip, drawn):
    return attribution.world_things(clip, drawn)


@pytest.fixture(scope="module")
def found(clip):
    """One good method, one that never sees the text, and one that cannot be run."""

    def broken(pairs):
        raise LabError("expected another tower.")

    PATCH_METHODS["broken"] = attribution.Method("broken", "fails", "this test", broken)
    try:
        chosen = ["similarity-gain", "rollout", "broken"]
        return attribution.faithfulness(clip, n=12, methods=chosen)
    finally:
        del PATCH_METHODS["broken"]


def maps_like(questions, draw):
    images = questions.asked()
    return [
        PatchMap("made", "none", image, draw(number), questions.texts[number])
        for number, image in enumerate(images)
    ]


def by_criterion(scores, size="all"):
    return {score.criterion: score for score in scores if score.size == size}


def test_a_map_that_is_the_box_scores_one(things):
    boxes = lambda q: patch_shares(things.answers[q], (72, 72), 72)  # noqa: E731
    scores = by_criterion(pointing_scores("box", things, maps_like(things, boxes)))
    assert scores["pointing"].value == 1
    assert scores["energy"].value > 0.9  # edges of boxes lie within pixels
    assert all(scores[name].passes for name in ("pointing", "centre", "question", "energy"))


def test_an_even_map_scores_exactly_chance(things):
    even = maps_like(things, lambda _: np.ones((6, 6)))
    for size in ("all", "large", "medium", "small"):
        scores = by_criterion(pointing_scores("even", things, even), size)
        assert scores["pointing"].value == pytest.approx(scores["pointing"].level)
        assert scores["energy"].value == pytest.approx(scores["energy"].level)
        assert not any(scores[name].passes for name in ("pointing", "energy", "question"))


def test_chance_of_the_pointing_game_is_what_random_maps_get(things):
    rng = np.random.default_rng(0)
    values = []
    for _ in range(30):
        random = maps_like(things, lambda _: rng.random((6, 6)))
        score = by_criterion(pointing_scores("random", things, random))["pointing"]
        values.append(score.value)
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values) - score.level) < 4 * error


def test_a_map_of_the_picture_alone_fails_the_other_question(things):
    rng = np.random.default_rng(0)
    drawn = {int(p): rng.random((6, 6)) for p in set(things.picture)}
    maps = maps_like(things, lambda q: drawn[int(things.picture[q])])
    question = by_criterion(pointing_scores("blind", things, maps))["question"]
    assert (question.gain.value, question.verdict) == (0, "no better")


def test_a_map_that_avoids_the_box_is_worse_than_chance(things):
    shun = maps_like(things, lambda q: 1 - patch_shares(things.answers[q], (6, 6), 72))
    scores = by_criterion(pointing_scores("shun", things, shun))
    assert (scores["pointing"].value, scores["pointing"].passes) == (0, False)
    assert scores["energy"].verdict == "worse"


@settings(deadline=None)
@given(
    st.lists(st.floats(-5, 5), min_size=2, max_size=30),
    st.integers(0, 2**30 - 1),
)
def test_energy_is_a_share_and_knows_its_complement(scores, bits):
    inside = np.array([bits >> i & 1 for i in range(len(scores))], dtype=float)
    within = energy_inside(np.array(scores), inside)
    assert 0 <= within <= 1 + 1e-12
    assert within + energy_inside(np.array(scores), 1 - inside) == pytest.approx(1)
    peak = peak_inside(np.array(scores), inside > 0)
    assert peak + peak_inside(np.array(scores), inside == 0) == pytest.approx(1)


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.floats(0, 20)] * 4), min_size=1, max_size=4), st.integers(1, 7))
def test_shares_of_patches_are_those_of_fine_pixels(corners, grid):
    boxes = [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in corners]
    boxes = [tuple(round(edge * 2) / 2 for edge in box) for box in boxes]
    middles = (np.arange(40 * grid) + 0.5) * 20 / (40 * grid)
    fine = np.zeros((40 * grid,) * 2)
    for x0, y0, x1, y1 in boxes:
        rows, columns = (y0 < middles) & (middles < y1), (x0 < middles) & (middles < x1)
        fine[np.ix_(rows, columns)] = 1
    expected = fine.reshape(grid, 40, grid, 40).mean((1, 3))
    assert np.allclose(patch_shares(boxes, (grid, grid), 20), expected)


def test_every_box_holds_a_patch():
    assert patches_inside([(31, 1, 33, 2)], (2, 2), 64).tolist() == [[False, True], [False, False]]
    whole = patches_inside([(0, 0, 64, 64)], (3, 5), 64)
    assert (whole.shape, whole.all()) == ((3, 5), True)


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_boxes_follow_the_picture_through_preprocessing(mode):
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from PIL import Image, ImageDraw

    box = (150, 60, 210, 120)
    picture = Image.new("RGB", (300, 200))
    ImageDraw.Draw(picture).rectangle((150, 60, 209, 119), fill="white")
    config = PreprocessCfg(
        size=(90, 90), mean=(0, 0, 0), std=(1, 1, 1), resize_mode=mode, fill_color=0
    )
    seen = image_transform_v2(config, is_train=False)(picture).mean(0).numpy() > 0.5
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    expected = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    assert np.allclose(seen_box(box, picture.size, 90, mode), expected, atol=1)


def test_clusters_widen_the_interval_of_a_proportion():
    hits = np.tile([1.0, 1.0, 0.0, 0.0], 10)
    alone = proportion(hits, np.arange(40))
    twins = proportion(hits, np.repeat(np.arange(20), 2))
    assert twins.high - twins.low > 1.2 * (alone.high - alone.low)
    same = proportion(np.tile([1.0, 0.0], 4), np.repeat(np.arange(4), 2))
    assert same.high - same.low > 0.5  # all groups equal: no bootstrap has a width


def linear(weights):
    """A model whose similarity is the sum of what is kept."""
    return lambda questions, kept: np.array([weights[keep].sum() for keep in kept])


def test_areas_of_a_linear_model_have_a_closed_form():
    weights = np.array([4.0, 1.0, 2.0, 0.0])
    best, worst = weights.copy(), -weights
    # Kept of 7 after 0 to 4 steps, trapezoids of width 1/4.
    deletion = (7 / 2 + 3 + 1 + 0 + 0 / 2) / 4
    insertion = (0 / 2 + 4 + 6 + 7 + 7 / 2) / 4
    both = lambda scores, mode: areas([scores], linear(weights), mode, steps=4)[0]  # noqa: E731
    assert both(best, "deletion") == pytest.approx(deletion)
    assert both(best, "insertion") == pytest.approx(insertion)
    assert both(worst, "deletion") == pytest.approx(insertion)  # the same curve, read backwards
    even = np.mean([areas([np.zeros(4)], linear(weights), "deletion", 4, s) for s in range(400)])
    assert even == pytest.approx(7 / 2, abs=0.12)


def test_pictures_are_emptied_patch_by_patch(clip, drawn):
    pixels_Q3SS = models.pixels(clip, drawn.images[:2])
    texts_QD = torch.nn.functional.normalize(torch.randn(2, clip.embed_dim), dim=1)
    similarity = image_similarity(clip, pixels_Q3SS, texts_QD, (6, 6), "grey")
    keep = np.ones(36, bool)
    keep[7] = False  # row 1, column 1
    expected = pixels_Q3SS.clone()
    expected[:, :, 12:24, 12:24] = 0
    for pictures, kept in ((pixels_Q3SS, np.ones(36, bool)), (expected, keep)):
        with torch.no_grad():
            features = torch.nn.functional.normalize(clip.encode_image(pictures), dim=1)
        cosines = (features * texts_QD).sum(1).numpy()
        assert np.allclose(similarity([0, 1], [kept, kept]), cosines, atol=1e-6)
    blurred = filled(pixels_Q3SS, (6, 6), "blur")
    assert blurred.std() < 0.9 * pixels_Q3SS.std()
    assert float(blurred.mean()) == pytest.approx(float(pixels_Q3SS.mean()), abs=0.05)


def test_texts_are_emptied_token_by_token(clip, drawn):
    texts = ["A red boat.", "A blue kite in a meadow."]
    images_QD = torch.nn.functional.normalize(torch.randn(2, clip.embed_dim), dim=1)
    ids = [np.array(clip.tokenizer.encode(text)) for text in texts]
    similarity = text_similarity(clip, ids, images_QD)
    features = models.encode_texts(clip, ["A boat.", "A blue kite in a meadow."]).features_ND
    expected = (torch.nn.functional.normalize(features, dim=1) * images_QD).sum(1)
    kept = [np.array([True, False, True, True]), np.ones(len(ids[1]), bool)]
    assert np.allclose(similarity([0, 1], kept), expected, atol=1e-5)


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=30).filter(lambda x: len(set(x)) > 1))
def test_rank_correlation_is_scipys(values):
    from scipy.stats import spearmanr

    other = np.random.default_rng(0).permutation(values)
    assert rank_correlation(np.array(values), other) == pytest.approx(
        spearmanr(values, other).statistic, abs=1e-9
    )


def test_shuffled_weights_touch_one_tower_and_leave_the_original(clip):
    before = {name: p.clone() for name, p in clip.model.named_parameters()}
    shuffled = randomised(clip, "image", seed=3)
    for name, parameter in shuffled.model.named_parameters():
        assert torch.equal(before[name].flatten().sort()[0], parameter.flatten().sort()[0])
        same = torch.equal(before[name], parameter)
        assert same or name.startswith("visual.")
    after = dict(clip.model.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = randomised(clip, "image", seed=3).model.state_dict()
    assert all(
        torch.equal(again[name], value) for name, value in shuffled.model.state_dict().items()
    )


def test_maps_that_do_not_change_fail_the_weights_check(things):
    rng = np.random.default_rng(0)
    maps = maps_like(things, lambda _: rng.random((6, 6)))
    others = maps_like(things, lambda _: rng.random((6, 6)))
    flipped = maps_like(things, lambda q: -maps[q].scores)
    verdicts = [
        weights_score("made", "patches", maps, after, things.group).verdict
        for after in (maps, flipped, others)
    ]
    assert verdicts == ["worse", "worse", "passes"]


def test_texts_of_the_world_fit_one_thing_and_captions_one_picture(clip, drawn, things):
    for text, picture, size in zip(things.texts, things.picture, things.size, strict=True):
        scene = drawn.scenes[picture]
        fits = [t for t in scene.things if text == f"A {t.colour} {t.kind}."]
        assert [thing.size for thing in fits] == [size]
    words = attribution.world_words(clip, drawn)
    for number, text in enumerate(words.texts):
        kinds = {thing.kind for thing in drawn.scenes[words.picture[number]].things}
        (start, end), *wrong = words.answers[number]
        assert text[start:end] in kinds
        assert wrong
        assert not {text[a:b] for a, b in wrong} & kinds
        (other,) = words.others[number]
        assert (words.texts[other], words.others[other]) == (text, [number])
    named = sum(len(names) for names in words.skipped.values())
    assert len(words) == 2 * (len(drawn) // 2 - named)


def test_only_words_that_name_a_kind_compete(clip, drawn):
    words = attribution.world_words(clip, drawn)
    text = words.texts[0]
    spans = tuple(clip.tokenizer.tokenize(text).spans)
    scores = np.array([9.0 if text[a:b] in (".", "A") else 1.0 for a, b in spans])
    found = TokenMap("made", "none", text, spans, scores)
    place = words.place(0, found)
    assert len(place.scores) == len(words.answers[0])
    assert peak_inside(place.scores, place.inside) == 1 / len(words.answers[0])
    (right,) = baseline("true word", words, [found])
    assert right.total(*words.answers[0][0]) == 1


def test_good_methods_pass_and_blind_ones_fail(found):
    assert sorted(found.methods("patches")) == ["rollout", "similarity-gain"]
    good = found.of("patches", "similarity-gain")
    assert set(good) == set(attribution.CRITERIA)
    assert not found.failures("patches", "similarity-gain")
    blind = found.failures("patches", "rollout")
    assert {"pointing", "question"} <= set(blind)
    assert "points as often at the same place" in blind["question"]
    box = found.of("patches", "true box")
    assert all(score.passes for score in box.values())
    assert found.of("patches", "random map")["pointing"].verdict != "passes"


def test_a_method_that_cannot_be_run_is_named_with_its_reason(found):
    assert found.failed["patches"] == {"broken": "expected another tower."}
    assert found.failures("patches", "broken") == {"run": "expected another tower."}
    assert "**broken** could not be run: expected another tower." in markdown(found)


def test_results_are_repeatable_and_survive_json(clip, found):
    one, again = (attribution.faithfulness(clip, n=4, methods=["rollout"]) for _ in range(2))
    assert again.scores == one.scores
    restored = attribution.Faithfulness.from_dict(found.to_dict())
    assert restored.scores == found.scores
    assert restored.table().equals(found.table())
    assert '"verdict": "passes"' in found.to_json()


def test_each_size_has_its_own_scores(found):
    sizes = {score.size for score in found if score.criterion == "pointing"}
    assert sizes == {"all", *world.SIZES}
    numbers = [found.table(size=size)["n"].max() for size in world.SIZES]
    assert sum(numbers) == found.facts["questions"]["patches"]["questions"]


def test_bad_requests_are_refused(clip):
    with pytest.raises(LabError, match="Did you mean relevance"):
        attribution.faithfulness(clip, methods=["relevence"])
    with pytest.raises(LabError, match="at least 4 pictures"):
        attribution.faithfulness(clip, n=2)


def test_the_model_is_left_as_it_was(clip, found):
    assert not clip.model.training
    assert all(p.requires_grad and p.grad is None for p in clip.model.parameters())
    assert TOKEN_METHODS
