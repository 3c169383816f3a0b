"""Recaptioning webdataset shards: one file of captions a shard, and back into the shards."""

from __future__ import annotations

import pytest
from PIL import Image

from longclip_lab import data, world
from longclip_lab.cli import main
from longclip_lab.errors import LabError
from longclip_lab.recaptioning import Asking, read_lines, read_record, recaption, with_captions

BRIEF = Asking(max_new_tokens=12)


@pytest.fixture(scope="module")
def pairs():
    return world.pairs(10)


@pytest.fixture
def shards(pairs, tmp_path):
    return data.write_shards(pairs, tmp_path / "shards", per_shard=4, tokenizer="world")


def test_shards_say_what_their_pictures_say(llava, pairs, shards, tmp_path):
    recaption(llava, pairs, tmp_path / "direct", BRIEF, per_file=4)
    for place in ((1, 2), (0, 2)):
        recaption(llava, shards, tmp_path / "sharded", BRIEF, place=place)
    direct, sharded = (read_lines(tmp_path / name) for name in ("direct", "sharded"))
    assert [line.caption for line in sharded] == [line.caption for line in direct]
    assert [line.key for line in sharded] == [f"{i:09d}" for i in range(10)]
    assert sorted(path.name for path in (tmp_path / "sharded").glob("*.jsonl")) == [
        f"shard-{number:06d}.jsonl" for number in range(3)
    ]
    assert read_record(tmp_path / "sharded")["settings"]["data"]["hash"] == shards.source["hash"]


def test_captions_come_back_into_the_shards(llava, shards, tmp_path):
    recaption(llava, shards, tmp_path / "captions", BRIEF)
    said = {line.key: line.caption for line in read_lines(tmp_path / "captions")}
    joined = with_captions(shards, tmp_path / "captions")
    samples = [sample for number in range(3) for sample in joined.samples(number)]
    assert [sample.texts.captioners["LLaVA"] for sample in samples] == list(said.values())
    assert [sample.texts.long for sample in samples] == list(said.values())
    again = data.write_shards(joined, tmp_path / "again", per_shard=5, tokenizer="bert")
    assert again.captioners == {"LLaVA": 10}
    with pytest.raises(LabError, match="two sets of captions by LLaVA"):
        with_captions(shards, tmp_path / "captions", tmp_path / "captions")


def test_captions_of_other_shards_are_refused(llava, shards, tmp_path):
    other = data.write_shards(
        world.pairs(10, seed=8), tmp_path / "other", per_shard=4, tokenizer="world"
    )
    recaption(llava, other, tmp_path / "captions", BRIEF)
    with pytest.raises(LabError, match="describes other pictures than shards of world"):
        with_captions(shards, tmp_path / "captions")


def test_a_damaged_pair_is_named_and_the_rest_described(llava, shards, tmp_path):
    tar = tmp_path / "shards" / "shard-000001.tar"
    content = bytearray(tar.read_bytes())
    at = content.index(b"IDAT") + 40  # in the picture of its first pair
    content[at] ^= 255
    tar.write_bytes(content)
    recaption(llava, shards, tmp_path / "captions", BRIEF)
    record = read_record(tmp_path / "captions")
    assert (record["pictures"], record["captions"]) == (10, 9)
    ((name,),) = record["skipped"].values()
    assert name == "shard-000001.tar/000000004 (its bytes have changed (checksum))"
    with_nine = with_captions(shards, tmp_path / "captions")
    assert sum(isinstance(one, data.shards.Sample) for one in with_nine.samples(1)) == 3


def test_joined_sets_of_photographs_from_the_command(folders, pairs, tmp_path, capsys):
    for half, name in enumerate(("first", "second")):
        home = tmp_path / "pictures" / name
        home.mkdir(parents=True)
        paths = [home / f"{i}.jpg" for i in range(3)]
        for i, path in enumerate(paths):
            Image.fromarray(pairs.images[3 * half + i]).save(path)
        photos = data.Pairs(name, paths, ["a boat"] * 3, ["a boat"] * 3, [["a boat"]] * 3)
        data.write_shards(photos, tmp_path / "sets" / name)
    arguments = ("recaption", folders["llava"], tmp_path / "captions", "--data", "shards")
    arguments += ("--root", tmp_path / "sets", "--max-new-tokens", "8", "--no-progress")
    assert main([*map(str, arguments)]) == 0
    assert "6 captions of 6 pictures" in capsys.readouterr().out
    lines = read_lines(tmp_path / "captions")
    assert lines[0].key == "first/000000000"
    joined = with_captions(data.open_shards(tmp_path / "sets"), tmp_path / "captions")
    assert [one.texts.long for one in joined.samples(1)] == [line.caption for line in lines[3:]]
