"""Training on shards: the batches of a table, whatever reads them; broken pairs cost only names."""

from __future__ import annotations

import json
import signal
import tarfile
from collections import Counter
from dataclasses import replace

import fsspec
import pytest
import torch
from PIL import Image

from longclip_lab import data, models, world
from longclip_lab.cli import main
from longclip_lab.errors import LabError
from longclip_lab.training import Recipe, train
from longclip_lab.training.data import BatchIndices, TrainingPairs
from longclip_lab.training.streaming import StreamedPairs
from tests.processes import run_script
from tests.training.runs import same, script, weights

QUICK = Recipe(
    name="quick",
    batch_size=8,
    num_streams=4,
    shuffle_buffer=8,
    steps=10,
    warmup_steps=0,
    learning_rate=1e-3,
    k=4,
    checkpoint_every=2,
    tensorboard=False,
)
WAYS = {
    "exact": QUICK,
    "resampled": replace(QUICK, resample=True),
    "grouped": replace(QUICK, length_grouped=True),
}


@pytest.fixture(scope="module")
def web():
    return world.web_pairs(100, seed=5)


@pytest.fixture(scope="module")
def shards(web, tmp_path_factory):
    return data.write_shards(web, tmp_path_factory.mktemp("shards"), 15, tokenizer="world")


def change_picture(path, key):
    """Flip the bits of a byte in the middle of a pair's picture."""
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        info = tar.getmember(f"{key}.png")
    content[info.offset_data + info.size // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.fixture
def damaged(web, tmp_path):
    """Shards of which two pictures have changed, and one tar was cut short behind half of it."""
    folder = tmp_path / "damaged"
    data.write_shards(web, folder, 15, tokenizer="world")
    for number, key in ((1, "000000017"), (4, "000000066")):
        change_picture(folder / f"shard-{number:06d}.tar", key)
    path = folder / "shard-000005.tar"
    with tarfile.open(path) as tar:
        cut = tar.getmember("000000087.png").offset_data + 100
    path.write_bytes(path.read_bytes()[:cut])
    return data.open_shards(folder)


BROKEN = [
    "shard-000001.tar/000000017",
    "shard-000004.tar/000000066",
    *(f"shard-000005.tar/{number:09d}" for number in (87, 88, 89)),
]


def numbers(names):
    return [int(name.rpartition("/")[2]) for name in names]


def whole(batches):
    """The batches as a list; an error among them is raised."""
    found = list(batches)
    for batch in found:
        if isinstance(batch, LabError):
            raise batch
    return found


def equal(first, second):
    pictures = torch.equal(first.pixels_B3HW, second.pixels_B3HW)
    texts = zip((*first.long, *first.short), (*second.long, *second.short), strict=True)
    return pictures and all(torch.equal(one, other) for one, other in texts)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"subcaptions": 2, "rewrites": True, "captioners": ("painter", "reporter")},
        {"subcaptions": "all", "token_limit": 20},
        {"objective": "debias-clip"},
    ],
)
def test_batches_are_those_of_a_table(tiny, web, shards, changes):
    recipe = replace(QUICK, steps=None, epochs=2, **changes)
    table, streamed = TrainingPairs(tiny, web, recipe), StreamedPairs(tiny, shards, recipe)
    assert len(streamed) == len(table) == 100
    for step, batch in enumerate(whole(streamed.batches(0, 24))):
        rows = BatchIndices(numbers(streamed.members(step)), epoch=step // 12)
        assert equal(batch, table.__getitems__(rows))


def test_picture_files_are_decoded_as_from_a_table(tiny, web, tmp_path):
    paths = [tmp_path / f"{index}.jpg" for index in range(16)]
    for path, image in zip(paths, web.images, strict=False):
        Image.fromarray(image).resize((90, 70)).save(path)
    some = web.subset(range(16))
    pairs = data.Pairs("files", paths, some.short, some.long, some.captions)
    shards = data.write_shards(pairs, tmp_path / "shards", 6)
    streamed = StreamedPairs(tiny, shards, QUICK)
    (batch,) = whole(streamed.batches(1, 2))
    rows = numbers(streamed.members(1))
    assert equal(batch, TrainingPairs(tiny, pairs, QUICK).__getitems__(rows))


def test_an_epoch_has_every_pair_once(tiny, shards):
    streamed = StreamedPairs(tiny, shards, QUICK)
    for epoch in range(2):
        seen = [n for step in range(12) for n in numbers(streamed.members(12 * epoch + step))]
        assert len(set(seen)) == 96


@pytest.mark.parametrize("way", WAYS)
def test_neither_processes_nor_workers_nor_the_first_step_matter(tiny, damaged, way):
    recipe = replace(WAYS[way], max_bad_fraction=0.5)
    expected = whole(StreamedPairs(tiny, damaged, recipe).batches(0, 26))
    assert all(len(batch.pixels_B3HW) == 8 for batch in expected)
    for processes, workers, first in ((1, 0, 7), (1, 2, 3), (2, 0, 0), (2, 1, 13), (4, 0, 5)):
        shares = [
            whole(
                StreamedPairs(tiny, damaged, replace(recipe, workers=workers)).batches(
                    first, 26, rank, processes
                )
            )
            for rank in range(processes)
        ]
        for step, batch in enumerate(expected[first:]):
            pictures = torch.cat([share[step].pixels_B3HW for share in shares])
            assert torch.equal(pictures, batch.pixels_B3HW)
            lengths = torch.cat([share[step].long.lengths_B for share in shares])
            assert torch.equal(lengths, batch.long.lengths_B)


def test_broken_pairs_are_named_and_replaced_within_the_window(tiny, web, damaged):
    recipe = replace(QUICK, max_bad_fraction=0.1)
    streamed = StreamedPairs(tiny, damaged, recipe)
    known = {models.pixels(tiny, image[None])[0].numpy().tobytes(): n
             for n, image in enumerate(web.images)}  # fmt: skip
    found = Counter()
    for step, batch in enumerate(whole(streamed.batches(0, 12))):
        meant = numbers(streamed.members(step))
        got = [known[picture.numpy().tobytes()] for picture in batch.pixels_B3HW]
        assert len(set(got)) == 8
        good = [n for n in meant if n not in numbers(BROKEN)]
        assert [n for n, m in zip(got, meant, strict=True) if m in good] == good
        found.update(got)
    assert not set(found) & set(numbers(BROKEN))
    assert set(streamed.broken) <= set(BROKEN)
    assert found.total() == 96
    assert len(streamed.broken) >= len(BROKEN) - 4  # four pairs belong to no batch of an epoch
    assert "checksum" in streamed.broken.get(BROKEN[0], "checksum")


def test_one_per_cent_of_broken_pairs_trains_to_the_end_and_is_counted(tiny, tmp_path):
    shards = data.write_shards(world.pairs(200, seed=6), tmp_path / "shards", 30)
    names = ["shard-000001.tar/000000044", "shard-000006.tar/000000181"]
    for name in names:
        path = tmp_path / "shards" / name.partition("/")[0]
        change_picture(path, name.partition("/")[2])
    recipe = replace(QUICK, batch_size=10, num_streams=2, shuffle_buffer=20, token_limit=16)
    recipe = replace(recipe, steps=None, epochs=1)
    trained = train(tiny, recipe, shards, tmp_path / "run", progress=False)
    assert len(trained.history) == 20
    assert list(trained.broken) == names
    record = json.loads((tmp_path / "run" / "broken-samples.json").read_text())
    assert list(record) == names
    assert json.loads((tmp_path / "run" / "run.json").read_text())["broken"]["pairs"] == 2


def test_too_much_that_is_broken_stops_the_run(tiny, damaged):
    with pytest.raises(LabError, match=r"more than max_bad_fraction \(0\.01\) allows: shard-00000"):
        train(tiny, replace(QUICK, max_bad_fraction=0.01), damaged, progress=False)


def test_a_window_without_a_good_pair_stops_the_run(tiny, damaged):
    for shard in damaged.shards:
        with open(shard.url, "r+b") as file:
            file.write(bytes(shard.bytes))
    with pytest.raises(LabError, match="All 8 pairs of a window are broken"):
        train(tiny, replace(QUICK, max_bad_fraction=1.0), damaged, progress=False)


def test_killed_in_the_middle_of_damaged_shards_it_ends_at_the_same_bits(tiny, damaged, tmp_path):
    recipe = replace(QUICK, steps=13, max_bad_fraction=0.1, token_limit=16)
    expected = train(tiny, recipe, damaged, out=tmp_path / "whole", progress=False)
    codes, said = run_script(*script(tmp_path, recipe, damaged, kill_after=7))
    assert codes == [-signal.SIGKILL], said
    resumed = train(tiny, recipe, damaged, tmp_path / "run", resume=True, progress=False)
    assert same(weights(resumed.model), weights(expected.model))
    assert [row["loss"] for row in resumed.history] == [row["loss"] for row in expected.history]
    for run in (resumed, expected):
        assert sorted(run.broken) == BROKEN
        record = json.loads((run.folder / "broken-samples.json").read_text())
        assert record == run.broken
        told = json.loads((run.folder / "run.json").read_text())["broken"]
        assert told == {"pairs": 5, "named_in": "broken-samples.json"}
        reasons = ["its bytes have changed (checksum)"] * 2 + ["its picture is missing"]
        assert [record[name] for name in BROKEN] == [*reasons, *["not to be found in the tar"] * 2]


def test_two_processes_do_what_one_does(tiny, damaged, tmp_path, in_processes):
    recipe = replace(
        QUICK, steps=4, learning_rate=1e-4, eps=1e-5, max_bad_fraction=0.2, token_limit=32
    )
    in_processes(2, *script(tmp_path, recipe, damaged))
    alone = train(tiny, recipe, damaged, progress=False)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").open()]
    for row, expected in zip(log, alone.history, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert json.loads((tmp_path / "run" / "broken-samples.json").read_text()) == alone.broken


def test_similar_lengths_save_padding(tiny, shards):
    def padding(recipe):
        batches = whole(StreamedPairs(tiny, shards, recipe).batches(0, 12))
        return sum(int((batch.long.padded(-1) == -1).sum()) for batch in batches)

    wide = replace(QUICK, shuffle_buffer=24)
    assert padding(replace(wide, length_grouped=True)) < 0.8 * padding(wide)


def test_a_bucket_is_read_by_worker_processes(tiny, shards):
    memory = fsspec.filesystem("memory")
    memory.put(shards.shards[0].url.rpartition("/")[0], "/trained/shards", recursive=True)
    try:
        streamed = StreamedPairs(
            tiny, data.open_shards("memory://trained/shards"), replace(QUICK, workers=2)
        )
        local = StreamedPairs(tiny, shards, QUICK)
        pairs = zip(whole(streamed.batches(0, 5)), whole(local.batches(0, 5)), strict=True)
        assert all(equal(*both) for both in pairs)
    finally:
        memory.rm("/trained", recursive=True)


def test_what_is_cut_and_drawn_is_counted(tiny, web, shards, tmp_path):
    limited = replace(QUICK, token_limit=70)
    expected = TrainingPairs(tiny, web, limited).num_truncated
    assert 0 < expected["long"] == StreamedPairs(tiny, shards, limited).num_truncated["long"]
    by_clip = data.write_shards(web, tmp_path, 50)
    streamed = StreamedPairs(tiny, by_clip, limited)
    assert streamed.num_truncated["long"] is None
    whole(streamed.batches(0, 12))
    assert 0 < streamed.num_truncated["long"] <= expected["long"]
    for workers in (0, 2):
        recipe = replace(QUICK, subcaptions=3, workers=workers)
        drawn = train(tiny, recipe, shards, progress=False).drawn
        assert drawn.pictures == sum(drawn.by_captioner.values()) == 80
    assert set(drawn.by_captioner) == {"surveyor", "painter", "reporter"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hard_negative_group": 2}, r"--hard-negative-group 1"),
        ({"objective": "lit", "lock_image": True}, r"--no-cache-image-features"),
        ({"captioners": ("surveyer",), "subcaptions": 2}, "no captioner 'surveyer'. Did you mean"),
        ({"num_streams": 3}, "8 cannot be taken evenly from 3 lanes"),
        ({"shuffle_buffer": 3}, r"--shuffle-buffer"),
    ],
)
def test_what_streams_cannot_do(tiny, shards, changes, message):
    with pytest.raises(LabError, match=message):
        train(tiny, replace(QUICK, **changes), shards, progress=False)


def test_what_only_streams_can_do(tiny, few, shards):
    with pytest.raises(LabError, match="resample draws whole shards, and these data are none"):
        train(tiny, replace(QUICK, resample=True), few, progress=False)
    with pytest.raises(LabError, match="no epochs: give steps"):
        replace(QUICK, resample=True, steps=None, epochs=2)
    (error,) = StreamedPairs(tiny, shards, QUICK).batches(0, 2, 0, 8)
    assert "4 streams cannot be shared out evenly to 8 processes" in str(error)


def test_from_the_command_line(tmp_path, capsys):
    shards, out = str(tmp_path / "shards"), str(tmp_path / "run")
    assert main(["data", "shard", shards, "--data", "world", "--pairs", "40", "--no-progress"]) == 0
    assert "40 pairs in 1 shards" in capsys.readouterr().out
    quick = ["--steps", "1", "--batch-size", "16", "--warmup-steps", "0", "--no-progress"]
    command = ["train", "longclip", "--data", "shards", "--root", shards, *quick]
    assert main([*command, "--k", "4", "--hard-negative-group", "1", "--out", out]) == 0
    assert "shards of world: 40 pairs" in capsys.readouterr().out
    assert main(command) == 2
    assert "--hard-negative-group 1" in capsys.readouterr().err
