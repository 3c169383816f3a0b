"""`evaluate`, its records and folders of them: scored, interrupted, gone on with, at any length."""

from __future__ import annotations

import json
import os
import random
import signal
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from longclip_lab import models, world
from longclip_lab.cli import main
from longclip_lab.data import Benchmark, keep_known_words
from longclip_lab.data.benchmarks import load as benchmarks
from longclip_lab.errors import LabError
from longclip_lab.evaluation import (
    BENCHMARKS,
    Evaluation,
    Record,
    Scorer,
    evaluate,
    read_records,
    retrieval,
    scoring,
)
from longclip_lab.evaluation.records import data_hash, model_hash, read_record
from longclip_lab.evaluation.scoring import run, run_path, tasks
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


@pytest.fixture(scope="module")
def model_folder(clip, tmp_path_factory):
    return models.save(clip, tmp_path_factory.mktemp("models") / "fresh")


@pytest.fixture(scope="module")
def urban(tmp_path_factory) -> Path:
    """Sixty pictures of the world in Urban-1k's layout, which should hold a thousand."""
    root = tmp_path_factory.mktemp("data") / "Urban1k"
    pairs = world.pairs(60, seed=5)
    for folder in ("image", "caption"):
        (root / folder).mkdir(parents=True)
    for i, (image, text) in enumerate(zip(pairs.images, pairs.long, strict=True), start=1):
        Image.fromarray(image).save(root / "image" / f"{i}.jpg")
        (root / "caption" / f"{i}.txt").write_text(text, encoding="utf-8")
    return root


@pytest.fixture
def task(urban) -> Benchmark:
    pairs = world.pairs(60, seed=5)
    files = [urban / "image" / f"{i}.jpg" for i in range(1, 61)]
    return replace(tasks(pairs)[0], images=files)


@pytest.fixture
def short_runs(monkeypatch):
    monkeypatch.setattr(scoring, "RUN", 8)


def called(model_folder, urban, out, *more) -> list[str]:
    arguments = ["eval", str(model_folder), "--benchmark", "urban1k", "--root", str(urban.parent)]
    return [*arguments, "--out", str(out), "--no-progress", *more]


def in_a_child(work) -> int:
    """Fork, do `work` there, and return the child's number."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)  # the parent's threads did not come along
            work()
        finally:
            os._exit(0)
    return child


def killing_itself(scorer: Scorer, after: int, seconds: float) -> Scorer:
    """Dies by SIGKILL in its own middle: so long after it has encoded so many runs of pictures."""
    original, passed = scorer.how.encode_images, []

    def encode(clip, images, progress=False):
        if len(passed) == after:
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            signal.setitimer(signal.ITIMER_REAL, seconds)
        passed.append(len(images))
        return original(clip, images, progress=progress)

    scorer.features.how = replace(scorer.how, encode_images=encode)
    return scorer


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe{\0", b"[]", b"{}", b"1" * 4400, b'{"a": 1, "a": 2}', {"seed": "0"}, {"scores": [1]},
     {"source": {"split": []}}, {"source": {"words": 3}}, {"settings": {"templates": {"a": 1}}},
     {"scores": {"i2t R@1": {"value": 1}}}, {"scores": {"i2t": 3}}, {"counts": {"images": None}}],
)  # fmt: skip
def test_a_record_of_garbage_is_named_and_left_alone(clip, task, tmp_path, content):
    path = run_path(tmp_path, Scorer(clip).conditions(task, 77))
    if isinstance(content, dict):
        content = json.dumps(Scorer(clip).record(task).to_dict() | content).encode()
    path.write_bytes(content)
    with pytest.raises(LabError, match="is not a record of an evaluation"):
        run(Scorer(clip), task, 77, tmp_path, True)
    with pytest.raises(LabError, match=r"is not a record of an evaluation|holds no records"):
        read_records(tmp_path)
    assert path.read_bytes() == content


def test_a_run_that_is_killed_at_any_moment_is_gone_on_with(clip, task, short_runs, tmp_path):
    expected = Scorer(clip).record(task)
    delays = random.Random(0)
    killed = 0
    for after in (0, 1, 1, 2, 2):
        scorer = Scorer(clip, features=tmp_path / "features")
        dying = killing_itself(scorer, after, delays.uniform(0.0001, 0.01))
        child = in_a_child(lambda scorer=dying: run(scorer, task, 77, tmp_path, True))
        _, status = os.waitpid(child, 0)
        killed += os.WIFSIGNALED(status)
        for path in tmp_path.glob("*.json"):
            assert read_record(path).scores == expected.scores  # whole, or not there
    assert killed
    done = run(Scorer(clip, features=tmp_path / "features"), task, 77, tmp_path, True)
    assert done.record.scores == expected.scores


def test_pictures_that_were_encoded_are_not_encoded_again(clip, task, short_runs, tmp_path):
    passed: list[int] = []

    def scorer(stop_after: int | None = None) -> Scorer:
        made = Scorer(clip, features=tmp_path)
        original = made.how.encode_images

        def counting(clip, images, progress=False):
            if stop_after is not None and len(passed) == stop_after:
                raise KeyboardInterrupt
            if len(images) > 1:  # not the one that only asks for the shape
                passed.append(len(images))
            return original(clip, images, progress=progress)

        made.features.how = replace(made.how, encode_images=counting)
        return made

    with pytest.raises(KeyboardInterrupt):
        scorer(stop_after=3).record(task)
    assert passed == [8, 8, 8]
    features = scorer().features(task.images)
    assert passed == [8] * 7 + [4]
    torch.testing.assert_close(features, models.encode_images(clip, task.images))
    stretched = Scorer(models.stretch(clip), features=tmp_path)
    assert torch.equal(stretched.features(task.images), features)
    assert len(list(tmp_path.iterdir())) == 1  # stretching the text tower leaves pictures alone


def test_other_pictures_under_the_same_names_are_encoded(clip, task, tmp_path):
    files = [tmp_path / f"{i}.bmp" for i in range(3)]
    for path, image in zip(files, world.pairs(3).images, strict=True):
        Image.fromarray(image).save(path)
    before = Scorer(clip, features=tmp_path / "f").features(files)
    size = files[1].stat().st_size
    Image.fromarray(np.zeros((72, 72, 3), np.uint8)).save(files[1])
    assert files[1].stat().st_size == size
    after = Scorer(clip, features=tmp_path / "f").features(files)
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.equal(before[1], after[1])


def test_half_a_benchmark_is_refused_or_recorded_as_partial(model_folder, urban, tmp_path, capsys):
    assert main(called(model_folder, urban, tmp_path / "out")) == 2
    assert "60 of 1,000 pictures" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(called(model_folder, urban, tmp_path / "out", "--allow-partial")) == 0
    assert "only partly there" in capsys.readouterr().err
    (tmp_path / "out" / "._left-by-a-desktop.json").write_bytes(b"\x00\x05\x16\x07")
    [record] = read_records(tmp_path / "out")
    assert record.partial
    assert record.counts["images"] == 60
    assert record.facts["num_images"] == 1000
    assert main(["table", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "partial: some of what the protocol promises was missing" in said
    assert "pictures: 60, where the column has 1,000" in said
    assert "Long-CLIP, ViT-B/16 (Long-CLIP (Zhang et al., ECCV 2024), supplement, Table 1)" in said


def test_lengths_and_what_is_there_already(model_folder, urban, tmp_path, capsys):
    out = tmp_path / "out"
    more = ["--allow-partial", "--length", "20", "77", "248", "--skip-existing"]
    assert main(called(model_folder, urban, out, *more)) == 0
    said = capsys.readouterr().out
    assert "left out: tiny-untrained at 248, it reads 3 to 77 tokens" in said
    paths = sorted(out.glob("tiny-untrained__urban1k__*.json"))
    assert len(paths) == len(list(out.glob("*.json"))) == 2
    short, whole = map(read_record, paths)
    assert (short.length, whole.length) == (20, 77)
    assert short.num_truncated == whole.num_truncated == 60
    assert short.scores != whole.scores
    before = [path.stat().st_mtime_ns for path in paths]
    assert main(called(model_folder, urban, out, *more)) == 0
    assert capsys.readouterr().out.count("is there:") == 2
    assert [path.stat().st_mtime_ns for path in paths] == before
    other = models.save(models.new_tiny(seed=2), tmp_path / "other")
    assert main(called(other, urban, out, *more)) == 0
    assert capsys.readouterr().out.count("written to") == 2
    assert [path.stat().st_mtime_ns for path in paths] == before
    assert len({(one.model_hash, one.length) for one in read_records(out)}) == 4
    assert main(called(other, urban, out, *more[:-1])) == 0
    assert capsys.readouterr().out.count("replaced, asked for again:") == 2
    assert len(read_records(out)) == 4


def test_two_models_of_one_name_keep_their_records(model_folder, clip, task, tmp_path, capsys):
    other = models.new_tiny(seed=2)
    other.name = clip.name
    first = run(Scorer(clip), task, 77, tmp_path)
    content = first.path.read_bytes()
    second = run(Scorer(other), task, 77, tmp_path)
    assert second.how == "made"
    assert second.path != first.path
    assert first.path.read_bytes() == content
    assert [run(Scorer(one), task, 77, tmp_path, True).how for one in (clip, other)] == ["kept"] * 2
    part = replace(task, images=task.images[:9], texts=task.texts[:9], image_of_text=[*range(9)])
    assert run(Scorer(clip), part, 77, tmp_path).how == "made"
    assert len(read_records(tmp_path)) == 3
    assert main(["table", str(tmp_path), "--no-published"]) == 0
    assert capsys.readouterr().out.count("| tiny-untrained |") == 3


def test_a_record_of_an_earlier_version_is_found_by_what_it_says(clip, task, tmp_path):
    made = run(Scorer(clip), task, 77, tmp_path)
    earlier = made.path.rename(tmp_path / f"{made.path.name.rsplit('__', 1)[0]}.json")
    kept = run(Scorer(clip), task, 77, tmp_path, skip_existing=True)
    assert (kept.how, kept.path) == ("kept", earlier)
    other = replace(models.new_tiny(seed=2), name=clip.name)
    assert run(Scorer(other), task, 77, tmp_path).how == "made"
    assert read_record(earlier) == made.record
    misnamed = run_path(tmp_path, Scorer(other).conditions(task))
    misnamed.write_bytes(earlier.read_bytes())
    with pytest.raises(LabError, match="holds another record than its name says: other weights"):
        run(Scorer(other), task, 77, tmp_path)


@pytest.mark.parametrize("form", ["csv", "html"])
def test_the_table_is_written(form, clip, task, tmp_path, capsys):
    run(Scorer(clip), task, 77, tmp_path / "out")
    path = tmp_path / f"table.{form}"
    assert main(["table", str(tmp_path / "out"), "--format", form, "--out", str(path)]) == 0
    assert task.name in path.read_text(encoding="utf-8")


def test_what_decides_whether_a_record_is_of_the_same_run(clip, task):
    record = Scorer(clip).record(task)
    conditions = Scorer(clip).conditions(task)
    assert scoring.differing_runs(record, conditions) == []
    assert scoring.differing_runs(replace(record, length=20), conditions) == ["another length"]
    other = replace(task, texts=[*task.texts[:-1], "a boat."])
    assert scoring.differing_runs(record, Scorer(clip).conditions(other)) == [
        "other pictures or texts"
    ]
    assert scoring.differing_runs(record, Scorer(clip, seed=1).conditions(task)) == ["another seed"]


def test_records_of_one_file_are_read_too(clip, task, tmp_path):
    record = Scorer(clip).record(task)
    (tmp_path / "all.json").write_text(json.dumps({"records": [record.to_dict()], "data": []}))
    assert read_records(tmp_path) == [record]


def test_a_length_in_python(clip, task):
    evaluation = evaluate(clip, world.pairs(8), length=9)
    assert {record.length for record in evaluation} == {9}
    assert evaluation.records[0].settings["context_length"] == 77


def test_a_model_of_few_words_gets_what_it_can_read(clip, task):
    photographs = replace(task, texts=["A boat at dawn.", *task.texts[1:]])
    read = keep_known_words(photographs, clip.tokenizer)
    assert read.texts[0] == "A boat at ."
    assert read.source["words"]["left_out"] == 1
    assert keep_known_words(task, clip.tokenizer) is task
    pictures = world.single_objects(4)
    names, templates = ("boat", "airplane"), ("a photo of a {}.",)
    shared = {"class_names": names, "templates": templates}
    classes = Benchmark("c", pictures.images, labels=np.zeros(4, int), **shared)
    read = keep_known_words(classes, clip.tokenizer)
    assert read.class_names == ("boat", ".")
    assert Scorer(clip).record(read).counts["texts"] == 2


def test_bad_folders(tmp_path):
    with pytest.raises(LabError, match="no folder"):
        read_records(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LabError, match="holds no records"):
        read_records(tmp_path / "empty")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("eval {model} --skip-existing", "give it with --out DIR"),
        ("eval {model} --skip-existing --out all.json", "give it with --out DIR"),
        ("eval {model} --length 248 --out {out}", "none of --length 248 is among them"),
        ("eval {model} --benchmark urban1k --out {out}", "--root DIR"),
        ("table {out}", "no folder"),
    ],
)
def test_bad_input_is_one_line(arguments, message, model_folder, tmp_path, capsys):
    filled = arguments.format(model=model_folder, out=tmp_path / "out").split()
    assert main(filled) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
