"""What a step reads: captions as token ids, batches of pairs, cached features of a locked tower."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from longclip_lab import data, models, world
from longclip_lab.cache import DONE, FEATURES, PART
from longclip_lab.errors import LabError
from longclip_lab.models.encoding import images_hash
from longclip_lab.text import split_sentences
from longclip_lab.training import Recipe, stored_features
from longclip_lab.training import data as feature_store
from longclip_lab.training.data import (
    BatchIndices,
    CaptionSampler,
    StepSampler,
    TokenBatch,
    TrainingPairs,
    captions_of,
    epoch_order,
    joined,
)

# --- Texts of a run: drawn by (seed, epoch, picture) alone, cut at the limit, counted ---

DRAWN = Recipe(batch_size=8, subcaptions=3, seed=4)


@pytest.fixture(scope="module")
def web():
    return world.web_pairs(24, seed=5)


@pytest.fixture(scope="module")
def clip():
    return models.build_lotlip("tiny-tower", "world", 2)


def words(pairs, rows, which="long"):
    """The ids of a batch as lists."""
    batch = pairs.texts(which, rows)
    return [ids.tolist() for ids in batch.ids_P.split(batch.lengths_B.tolist())]


def tokens(clip, texts):
    """The ids of texts as lists, by the model's own tokenizer."""
    whole = clip.tokenize(texts)
    return [row[:n].tolist() for row, n in zip(whole.ids_BT, whole.lengths_B, strict=True)]


def test_they_are_the_data_rooms_draw(clip, web):
    pairs = TrainingPairs(clip, web, DRAWN)
    for epoch in (0, 1):
        expected = data.draw_texts(web.captioners, 3, seed=4, epoch=epoch)
        assert words(pairs, BatchIndices(range(24), epoch)) == tokens(clip, expected.texts)
    drawn = pairs.drawn
    assert (drawn.pictures, drawn.fewer, drawn.truncated) == (24, 0, 0)
    assert sum(drawn.by_captioner.values()) == 24


def test_a_draw_depends_on_nothing_before_it(clip, web):
    pairs = TrainingPairs(clip, web, DRAWN)
    late = words(pairs, BatchIndices([5, 7], 3))
    words(pairs, BatchIndices([1, 2], 0))
    assert words(pairs, BatchIndices([7, 5], 3)) == late[::-1]
    assert words(pairs, BatchIndices([5, 7], 2)) != late
    other = TrainingPairs(clip, web, replace(DRAWN, seed=5))
    assert words(other, BatchIndices([5, 7], 3)) != late


def test_equal_texts_share_a_number_and_no_others(clip, web):
    twins = replace(web, captioners=[web.captioners[i // 2] for i in range(24)])
    whole = TrainingPairs(clip, twins, replace(DRAWN, subcaptions=99, captioners=("painter",)))
    identity_B = whole.texts("long", BatchIndices(range(24))).identity_B
    assert torch.equal(identity_B[::2], identity_B[1::2])
    assert len(set(identity_B.tolist())) == 12
    assert torch.equal(whole.texts("long", [6, 3]).identity_B, identity_B[[6, 3]])


def test_all_sub_captions_of_one_captioner(clip, web):
    whole = TrainingPairs(clip, web, replace(DRAWN, subcaptions="all"))
    more = TrainingPairs(clip, web, replace(DRAWN, subcaptions=99))
    rows = BatchIndices(range(24), 1)
    assert words(whole, rows) == words(more, rows)
    assert whole.drawn.fewer == 0
    assert len(whole.drawn.by_captioner) == 3


def test_fewer_sub_captions_than_asked_for_are_counted(clip, web):
    brief = [{"a": "A boat. A tree.", "b": "A boat. A tree. A car. A cup."} for _ in range(24)]
    drawn = TrainingPairs(clip, replace(web, captioners=brief), DRAWN).drawn
    assert drawn.fewer == drawn.by_captioner["a"] > 0


def test_the_token_limit_cuts_and_counts(clip, web):
    pairs = TrainingPairs(clip, web, replace(DRAWN, token_limit=16))
    lengths_B = pairs.texts("long", BatchIndices(range(24))).lengths_B
    assert lengths_B.max() == 16
    assert pairs.drawn.truncated == int((lengths_B == 16).sum()) > 0
    assert pairs.num_truncated["long"] > 0
    whole = TrainingPairs(clip, web, replace(DRAWN, subcaptions=None, token_limit=32))
    assert whole.num_truncated["long"] == whole.drawn.truncated == 24


def test_rewrites_come_from_the_captions_of_the_picture(clip, web):
    pairs = TrainingPairs(clip, web, Recipe(rewrites=True))
    seen = {tuple(words(pairs, BatchIndices([2], epoch), "short")[0]) for epoch in range(30)}
    assert seen == set(map(tuple, tokens(clip, web.captions[2])))


def test_debias_clip_reads_no_summary(clip, web):
    pairs = TrainingPairs(clip, web, Recipe(objective="debias-clip"))
    (summary,) = tokens(clip, [web.long[2][slice(*split_sentences(web.long[2])[0])]])
    first = summary[1:-1]
    drawn = [words(pairs, BatchIndices([2], epoch), "short")[0] for epoch in range(20)]
    assert len({tuple(ids) for ids in drawn}) > 10
    assert not any(ids[1 : len(first) + 1] == first for ids in drawn)


def test_one_captioner_or_some(web):
    chosen = captions_of(web, ("reporter", "painter"))
    assert list(chosen[0]) == ["reporter", "painter"]
    plain = world.pairs(3, seed=5)
    assert captions_of(plain) == [{"long": text} for text in plain.long]
    with pytest.raises(LabError, match=r"no captioner 'surveyer'. Did you mean surveyor"):
        captions_of(web, ("surveyer",))
    holes = replace(web, captioners=[{"surveyor": "A boat."}, *web.captioners[1:]])
    with pytest.raises(LabError, match="Picture 0 has no long caption by painter"):
        captions_of(holes, ("painter",))


def test_a_batch_knows_its_epoch():
    sampler = StepSampler(Recipe(batch_size=8), torch.zeros(24).numpy(), 2, 7)
    assert [rows.epoch for rows in sampler] == [0, 1, 1, 1, 2]


# --- Batches: a function of (seed, epoch, step), shared out evenly, without waste ---

LENGTHS = np.random.default_rng(0).integers(5, 248, 1000)


@given(st.integers(2, 40), st.integers(40, 200), st.booleans(), st.integers(0, 5))
def test_an_epoch_shows_every_pair_at_most_once(batch_size, count, grouped, epoch):
    recipe = Recipe(batch_size=batch_size, length_grouped=grouped)
    order = epoch_order(recipe, LENGTHS[:count], epoch)
    assert len(order) == count // batch_size * batch_size
    assert len(set(order.tolist())) == len(order)
    assert order.min() >= 0
    assert order.max() < count


@given(st.integers(1, 6), st.integers(2, 5), st.integers(60, 150))
def test_siblings_stay_together_in_a_batch(siblings, runs, count):
    recipe = Recipe(batch_size=siblings * runs, hard_negative_group=siblings)
    order = epoch_order(recipe, LENGTHS[:count], 0)
    assert len(order) == count // recipe.batch_size * recipe.batch_size
    for run in order.reshape(-1, siblings):
        assert run.tolist() == list(range(run[0], run[0] + siblings))
        assert run[0] % siblings == 0


def test_order_depends_on_seed_and_epoch():
    recipe = Recipe()
    first = epoch_order(recipe, LENGTHS, 0)
    assert np.array_equal(first, epoch_order(recipe, LENGTHS, 0))
    assert not np.array_equal(first, epoch_order(recipe, LENGTHS, 1))
    assert not np.array_equal(first, epoch_order(replace(recipe, seed=1), LENGTHS, 0))


@given(st.integers(0, 24), st.booleans())
def test_sampling_from_a_later_step_gives_the_same_batches(first, grouped):
    recipe = Recipe(batch_size=64, length_grouped=grouped)
    whole = list(StepSampler(recipe, LENGTHS[:400], 0, 25))
    assert list(StepSampler(recipe, LENGTHS[:400], first, 25)) == whole[first:]


@pytest.mark.parametrize("processes", [2, 4])
def test_shares_of_all_processes_are_the_global_batch(processes):
    recipe = Recipe(batch_size=64)
    whole = list(StepSampler(recipe, LENGTHS, 0, 20))
    shares = [list(StepSampler(recipe, LENGTHS, 0, 20, r, processes)) for r in range(processes)]
    assert [list(chain(*parts)) for parts in zip(*shares, strict=True)] == whole


def test_length_grouping_saves_padding():
    def padding(recipe):
        order = epoch_order(recipe, LENGTHS, 0).reshape(-1, recipe.batch_size)
        return sum(LENGTHS[rows].max() * len(rows) - LENGTHS[rows].sum() for rows in order)

    recipe = Recipe(batch_size=25)
    assert padding(replace(recipe, length_grouped=True)) < padding(recipe) / 5


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.data())
def test_a_ragged_batch_gives_any_of_its_texts(lengths, data):
    texts = [torch.arange(100 * i, 100 * i + n) for i, n in enumerate(lengths)]
    batch = TokenBatch(torch.cat(texts), torch.tensor(lengths), torch.arange(len(texts)))
    rows = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=9))
    some = batch.select(rows)
    assert torch.equal(some.ids_P, torch.cat([texts[row] for row in rows]))
    assert some.identity_B.tolist() == rows
    padded = torch.nn.utils.rnn.pad_sequence([texts[row] for row in rows], True, -1)
    assert torch.equal(some.padded(-1), padded)
    assert all(map(torch.equal, joined([batch, some]).select(range(len(texts))), batch))


def test_token_ids_are_the_tokenizers_without_its_padding(tiny, few):
    texts, truncated = CaptionSampler(tiny, Recipe()).tokenize(few.long)
    expected = tiny.tokenize(few.long)
    assert torch.equal(texts.lengths_B, expected.lengths_B)
    assert torch.equal(texts.padded(0), expected.ids_BT[:, : int(expected.lengths_B.max())])
    assert truncated == 0


def test_what_does_not_fit_is_cut_and_counted(few):
    whole = TrainingPairs(models.new_tiny(context_length=248), few)
    cut = TrainingPairs(models.new_tiny(context_length=30), few)
    assert cut.num_truncated["long"] == (whole.lengths > 30).sum() > 0
    assert cut.lengths.max() == 30


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_hold_the_pictures_of_their_texts(tiny, few, tmp_path, workers):
    from PIL import Image

    paths = [tmp_path / f"{i}.png" for i in range(len(few.images))]
    for path, image in zip(paths, few.images, strict=True):
        Image.fromarray(image).save(path)
    recipe = Recipe(batch_size=8, workers=workers)
    from_files = TrainingPairs(tiny, replace(few, images=paths), recipe)
    for step, batch in enumerate(from_files.batches(0, 2)):
        rows = from_files.members(step)
        assert torch.allclose(batch.pixels_B3HW, models.pixels(tiny, few.images[rows]), atol=1e-6)
        assert torch.equal(batch.short.ids_P, from_files.texts("short", rows).ids_P)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"short": ["a red boat"]}, "24 pictures, 1 short and 24 long"),
        ({"short": [" "] * 24}, r"short text of pair 0 is empty \(24 are\)"),
        ({"images": [], "short": [], "long": []}, "no pairs"),
    ],
)
def test_unfit_data_are_refused(tiny, few, change, message):
    with pytest.raises(LabError, match=message):
        TrainingPairs(tiny, replace(few, **change))


def test_data_without_long_texts_are_refused(tiny):
    with pytest.raises(LabError, match=r"dict has no \.images"):
        TrainingPairs(tiny, {})


# --- Stored features: those of the tower, made once, refused for another, mended when cut short ---


@pytest.fixture(scope="module")
def locked():
    return models.build_lotlip("tiny-tower", "world", 0)


@pytest.fixture(scope="module")
def images():
    return world.pairs(20, seed=5).images


@pytest.fixture(autouse=True)
def short_runs(monkeypatch):
    monkeypatch.setattr(feature_store, "RUN", 8)


@pytest.fixture
def passes(monkeypatch):
    """How many pictures go through the tower."""
    counted, original = [], feature_store.image_states

    def counting(visual, pixels_B3HW, tokens=False):
        if pixels_B3HW.any():  # not the blank one that only asks for the shape
            counted.append(len(pixels_B3HW))
        return original(visual, pixels_B3HW, tokens)

    monkeypatch.setattr(feature_store, "image_states", counting)
    return counted


def test_they_are_the_towers_features(locked, images, tmp_path):
    expected = models.encode_images(locked, images).numpy()
    stored = stored_features(locked, images, tmp_path / "store")
    assert isinstance(stored, np.memmap)
    assert stored.shape == (20, 128)
    assert np.allclose(stored, expected, atol=1e-5)
    assert np.array_equal(stored_features(locked, images), stored)
    half = stored_features(locked, images, half=True)
    assert half.dtype == np.float16
    assert np.allclose(half, expected, atol=1e-2)


def test_patch_tokens_too(locked, images):
    stored = torch.from_numpy(stored_features(locked, images, tokens=True))
    expected = models.encode_image_tokens(locked.model, models.pixels(locked, images))
    assert stored.shape == (20, 36, 128)
    assert torch.allclose(stored, expected, atol=1e-4)


def test_a_trained_head_stays_outside(images):
    clip = models.build_lotlip("tiny-tower", "world", 0, embed_dim=16)
    stored = torch.from_numpy(stored_features(clip, images))
    assert stored.shape == (20, 128)
    finished = models.towers.finish_image(clip.model.visual, stored)
    assert torch.allclose(finished, models.encode_images(clip, images), atol=1e-4)


def test_made_once(locked, images, passes, tmp_path):
    first = stored_features(locked, images, tmp_path / "store")
    assert passes == [8, 8, 4]
    second = stored_features(locked, images, tmp_path / "store")
    assert passes == [8, 8, 4]
    assert np.array_equal(first, second)
    with pytest.raises(ValueError, match="read-only"):
        second[0] = 0


def test_an_interrupted_store_is_finished_to_the_same_bits(locked, images, passes, tmp_path):
    whole = np.array(stored_features(locked, images, tmp_path / "whole"))
    broken = tmp_path / "broken"

    def interrupted(*_, **__):
        if len(passes) == 4:
            raise KeyboardInterrupt
        return original(*_, **__)

    original = feature_store.image_states
    feature_store.image_states = interrupted
    try:
        with pytest.raises(KeyboardInterrupt):
            stored_features(locked, images, broken)
    finally:
        feature_store.image_states = original
    assert sorted(path.name for path in broken.iterdir()) == [DONE, "features.json", PART]
    assert np.load(broken / DONE).tolist() == [True, False, False]
    passes.clear()
    assert np.array_equal(stored_features(locked, images, broken), whole)
    assert passes == [8, 4]
    assert sorted(path.name for path in broken.iterdir()) == ["features.json", FEATURES]


@pytest.mark.parametrize("damaged", [PART, DONE])
def test_a_half_written_store_is_rebuilt(damaged, locked, images, passes, tmp_path):
    whole = np.array(stored_features(locked, images, tmp_path))
    (tmp_path / FEATURES).rename(tmp_path / PART)
    np.save(tmp_path / DONE, np.ones(3, bool))
    content = (tmp_path / damaged).read_bytes()
    (tmp_path / damaged).write_bytes(content[:-2])
    passes.clear()
    assert np.array_equal(stored_features(locked, images, tmp_path), whole)
    assert passes == [8, 8, 4]


def test_a_kill_before_the_record_is_written_is_no_obstacle(locked, images, tmp_path):
    (tmp_path / ".features.json.x7.part").write_text('{"format"')
    assert len(stored_features(locked, images, tmp_path)) == 20


HEADS = [b"{'descr': '<f4", b"{'descr': 3, 'fortran_order': False, 'shape': ()}", b"\0" * 20]


@pytest.mark.parametrize("head", [*HEADS, None, b"PK\3\4"])
def test_a_finished_store_that_was_damaged_is_rebuilt(head, locked, images, tmp_path):
    whole = np.array(stored_features(locked, images, tmp_path))
    content = (tmp_path / FEATURES).read_bytes()
    if head is None:
        content = content[: len(content) // 2]
    elif head in HEADS:
        content = (
            content[:10] + head.ljust(content.index(b"\n") - 10) + content[content.index(b"\n") :]
        )
    else:
        content = head + content[len(head) :]
    (tmp_path / FEATURES).write_bytes(content)
    assert np.array_equal(stored_features(locked, images, tmp_path), whole)


def test_features_of_anything_else_are_refused(locked, images, tmp_path):
    stored_features(locked, images, tmp_path)
    other = models.build_lotlip("tiny-tower", "world", 0, pretrained_image=False, seed=1)
    with pytest.raises(LabError, match=r"another image tower \(sha256:.* there, sha256:.* now\)"):
        stored_features(other, images, tmp_path)
    with pytest.raises(LabError, match="other pictures"):
        stored_features(locked, images[::-1].copy(), tmp_path)
    with pytest.raises(LabError, match=r"another kind .*False there, True now"):
        stored_features(locked, images, tmp_path, tokens=True)
    with pytest.raises(LabError, match="another precision"):
        stored_features(locked, images, tmp_path, half=True)
    card = {**locked.card, "preprocess": {**locked.card["preprocess"], "mean": [0.4] * 3}}
    with pytest.raises(LabError, match="other preprocessing"):
        stored_features(replace(locked, card=card), images, tmp_path)


def test_another_text_tower_is_no_reason(locked, images, tmp_path):
    first = stored_features(locked, images, tmp_path)
    corners = models.build_lotlip("tiny-tower", "world", 2, seed=3)
    assert np.array_equal(stored_features(corners, images, tmp_path), first)


def test_a_folder_of_something_else_is_left_alone(locked, images, tmp_path):
    (tmp_path / "thesis.tex").write_text("important")
    with pytest.raises(LabError, match="holds no stored features"):
        stored_features(locked, images, tmp_path)
    with pytest.raises(LabError, match="is a file"):
        stored_features(locked, images, tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    record = tmp_path / "store" / "features.json"
    record.parent.mkdir()
    for content in ("{", "[]", '{"a": 1, "a": 2}', '{"shape": NaN}'):
        record.write_text(content)
        with pytest.raises(LabError, match=r"features\.json.*Delete the folder, or give another"):
            stored_features(locked, images, record.parent)
        assert record.read_text() == content


@pytest.mark.parametrize("workers", [0, 1])
def test_pictures_on_disk(workers, locked, images, tmp_path):
    paths = [tmp_path / f"{i:02d}.png" for i in range(len(images))]
    for path, values in zip(paths, images, strict=True):
        Image.fromarray(values).save(path)
    stored = stored_features(locked, paths, tmp_path / "store", workers=workers)
    assert np.allclose(stored, stored_features(locked, images), atol=1e-4)
    before = images_hash(paths)
    paths[3].unlink()
    with pytest.raises(LabError, match=r"no picture .*03\.png"):
        stored_features(locked, paths, tmp_path / "other", workers=workers)
    Image.fromarray(images[0][:8]).save(paths[3])
    assert images_hash(paths) != before


def test_pictures_that_are_mapped_read_only(locked, images, tmp_path, recwarn):
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert np.array_equal(stored_features(locked, mapped), stored_features(locked, images))
    assert images_hash(mapped) == images_hash(images)
    assert not recwarn


def test_the_record_can_be_read(locked, images, tmp_path):
    stored_features(locked, images, tmp_path)
    record = json.loads((tmp_path / "features.json").read_text())
    assert (record["shape"], record["dtype"], record["tokens"]) == ([20, 128], "float32", False)
