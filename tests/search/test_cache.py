"""Features are kept: only what is new or changed is encoded, and never for another model."""

from __future__ import annotations

import os
import shutil
import time

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from longclip_lab import models, search
from longclip_lab.errors import LabWarning
from longclip_lab.search import store as updating


def done(index) -> tuple[int, int, int, int]:
    update = index.update
    return update.kept, update.recognised, update.encoded, update.dropped


def test_the_second_call_encodes_nothing(clip, folder, cache):
    first = search.index(clip, folder, cache)
    second = search.index(clip, folder, cache)
    assert done(first) == (0, 0, 12, 0)
    assert done(second) == (12, 0, 0, 0)
    assert second.names == first.names
    np.testing.assert_array_equal(second.features_ND, first.features_ND)


def test_new_changed_moved_and_deleted_pictures(clip, pairs, folder, cache, put):
    before = search.index(clip, folder, cache)
    put(folder / "new.png", pairs.images[0] // 2)
    put(folder / "01.png", pairs.images[1][:, ::-1], 1_600_000_060)
    (folder / "02.png").rename(folder / "trips" / "renamed.png")
    os.utime(folder / "03.png")  # touched, not changed
    (folder / "04.png").unlink()
    after = search.index(clip, folder, cache)
    # gone from the cache: 02.png, which has a new name, and 04.png
    assert done(after) == (8, 2, 2, 2)
    old, new = before.features_ND, after.features_ND
    assert not np.allclose(new[after.row("01.png")], old[before.row("01.png")], atol=1e-3)
    for name, source in (("trips/renamed.png", "02.png"), ("03.png", "03.png"), ("05.png",) * 2):
        np.testing.assert_array_equal(new[after.row(name)], old[before.row(source)])
    assert "04.png" not in after.names
    fresh = search.index(clip, folder, cache.with_name("another"))
    assert fresh.names == after.names
    np.testing.assert_allclose(fresh.features_ND, new, atol=1e-5)


def test_a_change_within_a_tick_of_the_clock_is_seen(clip, pairs, tmp_path, cache, put):
    folder, now = tmp_path / "fresh", time.time()
    put(folder / "a.bmp", pairs.images[0], now)
    before = search.index(clip, folder, cache)
    put(folder / "a.bmp", pairs.images[1], now)  # the same size, the same time
    after = search.index(clip, folder, cache)
    assert done(after) == (0, 0, 1, 0)
    assert not np.allclose(before.features_ND, after.features_ND, atol=1e-3)


def test_verify_sees_what_size_and_time_hide(clip, pairs, tmp_path, cache, put):
    folder = tmp_path / "old"
    put(folder / "a.bmp", pairs.images[0])
    search.index(clip, folder, cache)
    put(folder / "a.bmp", pairs.images[1])
    assert done(search.index(clip, folder, cache)) == (1, 0, 0, 0)
    assert done(search.index(clip, folder, cache, verify=True)) == (0, 0, 1, 0)
    assert done(search.index(clip, folder, cache, verify=True)) == (0, 1, 0, 0)


def test_an_interrupted_call_goes_on(clip, folder, cache, monkeypatch):
    monkeypatch.setattr(updating, "RUN", 4)
    encode, calls = type(clip).encode_image, []

    def pulled_plug(self, pixels_B3HW):
        calls.append(len(pixels_B3HW))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, pixels_B3HW)

    with monkeypatch.context() as during:
        during.setattr(type(clip), "encode_image", pulled_plug)
        with pytest.raises(KeyboardInterrupt):
            search.index(clip, folder, cache)
    assert calls == [4, 4, 4]
    resumed = search.index(clip, folder, cache)
    assert done(resumed) == (8, 0, 4, 0)
    whole = search.index(clip, folder, cache.with_name("another"))
    np.testing.assert_allclose(resumed.features_ND, whole.features_ND, atol=1e-6)
    assert [path.name for path in resumed.cache.iterdir()] == ["all.safetensors"]


def test_another_model_has_a_cache_of_its_own(clip, folder, cache):
    other = models.new_tiny(seed=7)
    first = search.index(clip, folder, cache)
    second = search.index(other, folder, cache)
    assert done(second) == (0, 0, 12, 0)
    assert first.cache != second.cache
    assert not np.allclose(first.features_ND, second.features_ND, atol=1e-2)
    shutil.copy(first.cache / "all.safetensors", second.cache)  # even where it lies wrong
    with pytest.warns(LabWarning, match="features of another model.* encoded again"):
        third = search.index(other, folder, cache)
    assert done(third) == (0, 0, 12, 0)
    np.testing.assert_allclose(third.features_ND, second.features_ND, atol=1e-6)


def test_a_stretched_text_tower_shares_the_pictures(clip, folder, cache):
    search.index(clip, folder, cache)
    assert done(search.index(models.stretch(clip), folder, cache)) == (12, 0, 0, 0)


def test_a_damaged_cache_is_said_and_made_again(clip, folder, cache):
    first = search.index(clip, folder, cache)
    path = first.cache / "all.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(LabWarning, match=r"all.safetensors cannot be used"):
        second = search.index(clip, folder, cache)
    assert done(second) == (0, 0, 12, 0)
    assert done(search.index(clip, folder, cache)) == (12, 0, 0, 0)


@pytest.mark.parametrize(
    "rows", ["{", "[1]", '[["a.png", "1", 2, 3, "", ""]]', "[[]]", "1" * 5000, "NaN", "[" * 100_000]
)
def test_a_cache_of_garbage_is_said_and_made_again(clip, folder, cache, rows):
    first = search.index(clip, folder, cache)
    path = first.cache / "all.safetensors"
    with safe_open(path, framework="numpy") as block:
        tensors, facts = {"features": block.get_tensor("features")}, block.metadata()
    tensors["entries"] = np.frombuffer(rows.encode(), np.uint8)
    save_file(tensors, path, facts)
    with pytest.warns(LabWarning, match=r"all.safetensors cannot be used"):
        second = search.index(clip, folder, cache)
    assert done(second) == (0, 0, 12, 0)


def test_nothing_is_written_among_the_pictures(clip, folder, cache, monkeypatch):
    before = sorted(folder.rglob("*"))
    search.index(clip, folder, cache)
    assert sorted(folder.rglob("*")) == before
    monkeypatch.setenv("LONGCLIP_LAB_CACHE", str(folder.parent / "users"))
    assert search.index(clip, folder).cache.is_relative_to(folder.parent / "users")
    assert sorted(folder.rglob("*")) == before


def test_a_cache_that_the_reader_puts_there_is_not_searched(clip, folder):
    for _ in range(2):
        index = search.index(clip, folder, cache=folder / "features")
        assert len(index) == 12
        assert index.left_out == {}


def test_a_stored_feature_of_which_a_bit_has_turned_is_made_again(clip, folder, cache):
    made = search.index(clip, folder, cache)
    (path,) = made.cache.glob("all.safetensors")
    with safe_open(path, framework="numpy") as block:
        number = block.get_tensor("features")[2, :1]
    content = path.read_bytes()
    at = content.index(number.tobytes()) + 2
    path.write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
    with pytest.warns(LabWarning, match="bytes have changed"):
        again = search.index(clip, folder, cache)
    assert again.update.encoded == 12
    np.testing.assert_array_equal(again.features_ND, made.features_ND)
