"""Shards: what is written, that it can be read by others, and that a kill costs one shard."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import webdataset
from PIL import Image

from longclip_lab import data
from longclip_lab.cli import main
from longclip_lab.data.shards import Broken
from longclip_lab.errors import LabError
from longclip_lab.text import get_tokenizer, text_statistics


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def every(shards):
    return [sample for number in range(len(shards.shards)) for sample in shards.samples(number)]


def test_files_come_back_byte_for_byte(on_disk, tmp_path):
    (tmp_path / ".DS_Store").write_bytes(b"left by a desktop")
    shards = data.write_shards(on_disk, tmp_path, per_shard=8)
    assert [shard.pairs for shard in shards.shards] == [8, 8, 8, 6]
    for index, sample in enumerate(every(shards)):
        path = on_disk.images[index]
        assert sample.image == path.read_bytes()
        assert sample.kind == ("jpg", "png", "webp", "jpg")[index % 4]
        assert sample.texts.name == f"{path.parent.name}/{path.name}"
        assert sample.texts.short == on_disk.short[index]
        assert sample.texts.long == on_disk.long[index]
        assert sample.texts.captions == on_disk.captions[index]
        assert sample.texts.captioners == on_disk.captioners[index]


def test_drawn_pictures_come_back_value_for_value(drawn, tmp_path):
    shards = data.write_shards(drawn, tmp_path, per_shard=16)
    assert shards.pictures == "values"
    for image, sample in zip(drawn.images, every(shards), strict=True):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(sample.image))), image)


def test_webdataset_reads_them(on_disk, drawn, tmp_path):
    data.write_shards(on_disk, tmp_path, per_shard=16)
    url = f"{tmp_path}/shard-{{000000..000001}}.tar"
    theirs = webdataset.WebDataset(url, shardshuffle=False).decode("pil")
    found = list(theirs.to_tuple("jpg;png;webp", "json"))
    assert [texts["long"] for _, texts in found] == drawn.long
    assert np.array_equal(np.asarray(found[1][0]), drawn.images[1])


def test_the_same_data_give_the_same_bytes(on_disk, tmp_path):
    first, second = (
        data.write_shards(on_disk, tmp_path / name, per_shard=10, workers=workers)
        for name, workers in (("one", 0), ("two", 2))
    )
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert first.source == second.source
    other = replace(on_disk, short=[*on_disk.short[:-1], "Another."])
    assert data.write_shards(other, tmp_path / "three", 10).source["hash"] != first.source["hash"]


def test_the_manifest_counts(on_disk, drawn, tmp_path):
    shards = data.write_shards(on_disk, tmp_path, per_shard=7)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["pairs"] == len(shards) == 30
    assert manifest["captioners"] == {"a": 30, "b": 30}
    counted = text_statistics(drawn.long, "clip", contexts=(77, 128, 248)).to_dict()
    for name in ("tokens_per_text", "token_quantiles", "share_longer_than_128"):
        assert manifest["tokens"]["long"][name] == pytest.approx(counted[name], abs=1e-4)
    for shard in manifest["shards"]:
        content = (tmp_path / shard["name"]).read_bytes()
        assert shard["sha256"] == hashlib.sha256(content).hexdigest()
        assert shard["bytes"] == len(content)
    clip = get_tokenizer("clip")
    assert shards.lengths.tolist() == [len(clip.encode(text)) + 2 for text in drawn.long]
    assert shards.pair_name(20) == "shard-000002.tar/000000020"


WRITE = """
import os, pickle, signal, sys
from longclip_lab import data
from longclip_lab.cli import main
from longclip_lab.data.shards import format as samples

row = samples.PairRows.row
def dying(self, index):
    if index == 17:
        os.kill(os.getpid(), signal.SIGKILL)
    return row(self, index)
samples.PairRows.row = dying
data.write_shards(pickle.load(open(sys.argv[1], "rb")), sys.argv[2], per_shard=6)
"""


def test_killed_in_the_middle_it_goes_on(on_disk, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    data.write_shards(on_disk, whole, per_shard=6)
    (tmp_path / "pairs").write_bytes(pickle.dumps(on_disk))
    (tmp_path / "write.py").write_text(WRITE)
    arguments = [sys.executable, tmp_path / "write.py", tmp_path / "pairs", killed]
    done = subprocess.run(list(map(str, arguments)), capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert any(path.suffix == ".part" for path in killed.iterdir())
    with pytest.raises(LabError, match="not all written"):
        data.open_shards(killed)
    kept = (killed / "shard-000001.tar").stat().st_mtime_ns
    data.write_shards(on_disk, killed, per_shard=6)
    assert contents(killed) == contents(whole)
    assert (killed / "shard-000001.tar").stat().st_mtime_ns == kept


def test_a_shard_that_was_damaged_is_written_anew(on_disk, flip, tmp_path):
    data.write_shards(on_disk, tmp_path, per_shard=10)
    before = contents(tmp_path)
    flip(tmp_path / "shard-000001.tar", "000000012")
    (tmp_path / "shard-000002.json").write_text('{"sha256": "')
    data.write_shards(on_disk, tmp_path, per_shard=10)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "spoil",
    [
        lambda facts: [],
        lambda facts: facts | {"format": 3},
        lambda facts: facts | {"shards": [3]},
        lambda facts: facts | {"shards": [{"name": 3}]},
        lambda facts: facts | {"shards": None},
        lambda facts: facts | {"shards": [facts["shards"][0] | {"pairs": "2"}]},
        lambda facts: facts | {"identity": {}},
        lambda facts: facts | {"skipped": {"a": "b"}},
        lambda facts: facts | {"pairs": float("nan")},
        lambda facts: {key: facts[key] for key in facts if key != "name"},
    ],
)
def test_a_manifest_of_garbage_is_named_and_left_alone(on_disk, tmp_path, spoil):
    data.write_shards(on_disk, tmp_path, per_shard=10)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(spoil(json.loads(path.read_text()))))
    before = contents(tmp_path)
    for use in (data.open_shards, lambda folder: data.write_shards(on_disk, folder, per_shard=10)):
        with pytest.raises(LabError, match=r"manifest\.json .*shards anew|manifest\.json is not"):
            use(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "spoil",
    [
        lambda facts: [],
        lambda facts: facts | {"offsets": None},
        lambda facts: facts | {"long_tokens": facts["long_tokens"][1:]},
        lambda facts: facts | {"keys": [1] * len(facts["keys"])},
    ],
)
def test_a_sidecar_of_garbage_is_named(on_disk, tmp_path, spoil):
    shards = data.write_shards(on_disk, tmp_path, per_shard=10)
    path = tmp_path / "shard-000001.json"
    path.write_text(json.dumps(spoil(json.loads(path.read_text()))))
    with pytest.raises(LabError, match=r"shard-000001\.json cannot be read as what"):
        list(data.open_shards(tmp_path).samples(1))
    assert len(shards) == len(on_disk)


def test_nothing_else_is_overwritten(on_disk, drawn, tmp_path):
    data.write_shards(on_disk, tmp_path / "shards", per_shard=10)
    with pytest.raises(LabError, match=r"made otherwise \(data: .*'files'.* there"):
        data.write_shards(drawn, tmp_path / "shards", per_shard=10)
    with pytest.raises(LabError, match="per_shard: 10 there, 20 now"):
        data.write_shards(on_disk, tmp_path / "shards", per_shard=20)
    (tmp_path / "thesis.tex").write_text("important")
    with pytest.raises(LabError, match=r"holds something else \(shards\)"):
        data.write_shards(on_disk, tmp_path)
    with pytest.raises(LabError, match="is a file"):
        data.write_shards(on_disk, tmp_path / "thesis.tex")


def test_what_cannot_be_used_is_named_and_left_out_if_asked(on_disk, tmp_path):
    images = list(on_disk.images)
    for index, content in ((3, images[3].read_bytes()[:400]), (4, b"no picture")):
        images[index] = images[index].with_name(f"broken{index}.jpg")
        images[index].write_bytes(content)
    images[5] = images[5].with_name("gone.png")
    long = [*on_disk.long[:6], "  ", *on_disk.long[7:]]
    damaged = replace(on_disk, images=images, long=long)
    try:
        for workers in (0, 1):
            with pytest.raises(LabError, match=r"Pairs 0 to 9 of files: 2 x broken.*broken3"):
                data.write_shards(damaged, tmp_path, per_shard=10, workers=workers)
        shards = data.write_shards(damaged, tmp_path, per_shard=10, skip_bad=True)
    finally:
        images[3].unlink()
        images[4].unlink()
    assert len(shards) == 26
    assert shards.skipped["missing picture"] == ["part1/gone.png"]
    assert shards.skipped["empty text"] == ["part0/a.6.webp"]
    assert [name.split(" ")[0] for name in shards.skipped["broken picture"]] == [
        "part1/broken3.jpg",
        "part0/broken4.jpg",
    ]
    assert [sample.key[-2:] for sample in shards.samples(0)] == ["00", "01", "02", "07", "08", "09"]


def test_shards_of_shards(on_disk, tmp_path):
    shards = data.write_shards(on_disk, tmp_path / "one", per_shard=7)
    again = data.write_shards(shards, tmp_path / "two", per_shard=12)
    assert again.counts.tolist() == [12, 12, 6]
    for before, after in zip(every(shards), every(again), strict=True):
        assert before == after
    assert again.pictures == "files"


def test_shards_with_more_captions(on_disk, tmp_path):
    shards = data.write_shards(on_disk, tmp_path / "one", per_shard=16)
    said = {f"{index:09d}": {"new": f"A thing. It is number {index}."} for index in range(29)}
    more = shards.with_captions(said, "test")
    assert list(more.samples(0))[3].texts.captioners["new"] == "A thing. It is number 3."
    assert isinstance(list(more.samples(1))[-1], Broken)
    again = data.write_shards(more, tmp_path / "two", per_shard=16)
    assert again.captioners == {"a": 29, "b": 29, "new": 29}
    assert again.skipped == {"no new caption": ["shard-000001.tar/000000029"]}
    assert list(again.samples(0))[3].texts.long == "A thing. It is number 3."


def test_the_command_writes_captions_in(on_disk, tmp_path, capsys):
    shards = data.write_shards(on_disk, tmp_path / "one", per_shard=16)
    captions = tmp_path / "captions"
    captions.mkdir()
    said = [
        {"key": f"{index:09d}", "captioner": "new", "caption": "A thing.", "tokens": 3,
         "finished": True}
        for index in range(28)
    ]  # fmt: skip
    (captions / "000000.jsonl").write_text("".join(json.dumps(line) + "\n" for line in said))
    facts = {"captioner": "new", "model": "made up", "weights": "", "asking": {"prompt": "?"}}
    record = {"finished": True, "settings": {**facts, "data": {"hash": shards.source["hash"]}}}
    (captions / "recaption.json").write_text(json.dumps(record))
    places = [str(tmp_path / "one"), str(tmp_path / "two")]
    command = ["data", "shard", *places, "--data", "shards", "--captions", str(captions)]
    assert main([*command, "--no-progress"]) == 0
    out = capsys.readouterr().out
    assert "28 pairs in 1 shards" in out
    assert "left out, no new caption: 2" in out
    assert "a 28, b 28, new 28" in out
    assert main(["data", "shard", places[1], "--data", "shards"]) == 2
    assert "takes SRC and DST" in capsys.readouterr().err
