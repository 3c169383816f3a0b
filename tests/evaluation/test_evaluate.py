"""`evaluate` and its records, with a small random model on the drawn world."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from longclip_lab import world
from longclip_lab.data.benchmarks import load as benchmarks
from longclip_lab.errors import LabError
from longclip_lab.evaluation import BENCHMARKS, Evaluation, Record, evaluate, retrieval
from longclip_lab.evaluation.records import data_hash, model_hash
from longclip_lab.evaluation.scoring import tasks
from longclip_lab.models import encode_images, encode_texts, new_tiny


@dataclass
class OwnPairs:
    """Somebody's own data: nothing but the fields."""

    images: Any
    long: list[str]
    captions: list[list[str]]
    name: str = "own"
    skipped: dict[str, list[str]] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)


@pytest.fixture(scope="module")
def clip():
    return new_tiny()


@pytest.fixture(scope="module")
def drawn():
    return world.pairs(12, seed=99)


def own(drawn, **changes) -> OwnPairs:
    captions = [
        [text, "a picture of a boat.", "a tree."][: 1 + i % 3] for i, text in enumerate(drawn.short)
    ]
    return replace(OwnPairs(drawn.images, list(drawn.long), captions), **changes)


def test_own_pairs_are_scored_long_and_short(clip, drawn):
    pairs = own(drawn, skipped={"no caption": ["a.jpg", "b.jpg"]}, source={"dataset": "mine"})
    result = evaluate(clip, pairs, seed=5)
    long, short = result
    assert (long.protocol, short.protocol) == ("own/long-retrieval", "own/short-retrieval")
    assert long.counts == {"images": 12, "texts": 12, "different texts": 12}
    assert short.counts == {"images": 12, "texts": 24, "different texts": 14}
    assert long.skipped == {"no caption": 2}
    assert (long.num_truncated, long.share_truncated) == (12, 1.0)
    assert (short.num_truncated, short.share_truncated) == (0, 0.0)
    assert (long.model, long.seed, long.device, long.dtype) == (clip.name, 5, "cpu", "float32")
    images_ND = encode_images(clip, drawn.images)
    texts_MD = encode_texts(clip, [t for texts in pairs.captions for t in texts]).features_ND
    of_text = [i for i, texts in enumerate(pairs.captions) for _ in texts]
    assert short.scores == retrieval(images_ND, texts_MD, of_text, seed=5).scores()


def test_named_benchmarks_on_smaller_pools(clip, monkeypatch):
    monkeypatch.setattr(benchmarks, "drawn_pairs", lambda siblings: world.pairs(8))
    monkeypatch.setattr(benchmarks, "drawn_objects", lambda: world.single_objects(8))
    result = evaluate(clip)
    assert [record.protocol for record in result] == list(BENCHMARKS)
    assert list(result["world/kind"].scores) == ["top-1", "top-5"]
    assert result["world/colour"].counts["texts"] == len(world.COLOURS) * len(world.TEMPLATES)
    assert result["world/long-retrieval"].source["seed"] == world.TEST_SEED
    table = result.table()
    assert list(table["benchmark"].unique()) == list(BENCHMARKS)
    assert len(table) == 6 + 6 + 2 + 2
    with pytest.raises(LabError, match="Did you mean world/kind"):
        result["world/kinds"]


def test_world_pools_hold_a_thousand_different_held_out_pictures():
    task = tasks("world/short-retrieval")[0]
    assert len(task.images) == len(set(task.texts)) == 1000
    assert task.source["seed"] == world.TEST_SEED


def test_four_pictures_of_the_long_pool_share_each_summary():
    task = tasks("world/long-retrieval")[0]
    summaries = [text.split(".")[0] for text in task.texts]
    assert len(set(task.texts)) == 1000
    assert len(set(summaries)) == 250
    assert all(len(set(summaries[i : i + 4])) == 1 for i in range(0, 1000, 4))


def test_json_round_trip_and_atomic_file(clip, drawn, tmp_path: Path):
    result = evaluate(clip, own(drawn))
    path = tmp_path / "new" / "records.json"
    text = result.to_json(path)
    assert path.read_text() == text
    assert [p.name for p in path.parent.iterdir()] == ["records.json"]
    assert Evaluation.from_json(text) == result
    record = json.loads(text)[0]
    assert Record.from_dict(record) == result.records[0]
    assert record["versions"]["torch"] == torch.__version__
    with pytest.raises(LabError, match=r"missing fields \['seed'\], unknown fields \['seeds'\]"):
        Record.from_dict({"seeds" if key == "seed" else key: v for key, v in record.items()})
    for broken in ("{", "{}", "[1]"):
        with pytest.raises(LabError, match="JSON list of records"):
            Evaluation.from_json(broken)


def test_hashes_tell_models_and_data_apart(clip, drawn):
    other = new_tiny(seed=1)
    assert model_hash(clip.model) == model_hash(new_tiny().model) != model_hash(other.model)
    first = evaluate(clip, own(drawn))
    again = evaluate(clip, own(drawn))
    changed = evaluate(clip, own(drawn, long=["a boat.", *drawn.long[1:]]))
    assert [r.data_hash for r in first] == [r.data_hash for r in again]
    assert first.records[0].data_hash != changed.records[0].data_hash
    darker = drawn.images.copy()
    darker[0, 0, 0] //= 2
    assert data_hash(darker, [], {}) != data_hash(drawn.images, [], {})
    here, there = [Path("/here/a.jpg")], [Path("/there/a.jpg")]
    assert data_hash(here, ["x"], {}) == data_hash(there, ["x"], {})


def test_pictures_without_captions_are_left_out_and_counted(clip, drawn, tmp_path: Path):
    paths = []
    for index, values in enumerate(drawn.images):
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(values).save(paths[-1])
    captions = [[text] if index % 4 else [] for index, text in enumerate(drawn.short)]
    for images in (drawn.images, paths):
        record = evaluate(clip, own(drawn, images=images, captions=captions)).records[1]
        assert record.counts["images"] == record.counts["texts"] == 9
        assert record.skipped == {"no caption in the benchmark": 3}
        assert record.scores["i2t R@1"].n == 9


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"captions": [["a boat."]]}, "expected captions for every picture, got 1 for 12"),
        ({"captions": [[]] * 12}, "no picture with a caption"),
        ({"captions": [["a boat."]] * 11 + [["  "]]}, "picture 11 has an empty caption"),
        ({"images": np.zeros((12, 8, 8, 3))}, "uint8"),
    ],
)
def test_bad_pairs(clip, drawn, change, words):
    with pytest.raises(LabError, match=words):
        evaluate(clip, own(drawn, **change))


def test_bad_benchmarks(clip):
    with pytest.raises(LabError, match=r"no benchmark 'world/colur'. Did you mean world/colour"):
        evaluate(clip, "world/colur")
    with pytest.raises(LabError, match="dict has no name"):
        evaluate(clip, {})


def test_progress_is_silent_unless_asked(clip, drawn, capsys):
    evaluate(clip, own(drawn))
    assert capsys.readouterr() == ("", "")
