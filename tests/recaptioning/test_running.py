"""Whole recaptionings: resumed, in several processes, with broken pictures, of other models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from longclip_lab import world
from longclip_lab.errors import LabError
from longclip_lab.recaptioning import (
    Asking,
    Line,
    load_captioner,
    open_folder,
    read_lines,
    read_record,
    recaption,
)
from longclip_lab.recaptioning.run import summary, write_lines
from longclip_lab.text import text_statistics

BRIEF = Asking(max_new_tokens=16)
SAMPLED = Asking(max_new_tokens=16, temperature=1.0, seed=3)


def contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


@pytest.fixture(scope="module")
def pairs():
    return world.pairs(20)


@pytest.fixture(scope="module")
def whole(llava, pairs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    done = recaption(llava, pairs, folder, SAMPLED, batch_size=3, per_file=4)
    assert (done.files, done.written, done.counted, done.finished) == (5, 5, True, True)
    return folder


def test_every_picture_gets_a_line_and_the_record_counts_them(whole, llava, pairs):
    assert list(contents(whole)) == [
        *(f"{number:06d}.jsonl" for number in range(5)),
        *(f"counts/{number:06d}.json" for number in range(5)),
        "recaption.json",
    ]
    lines = read_lines(whole)
    assert [line.key for line in lines] == [f"{i:06d}" for i in range(20)]
    assert {line.captioner for line in lines} == {"LLaVA"}
    first = json.loads((whole / "000000.jsonl").read_text().splitlines()[0])
    assert set(first) == {"key", "captioner", "caption", "tokens", "finished"}
    record = read_record(whole)
    assert (record["pictures"], record["captions"], record["skipped"]) == (20, 20, {})
    assert record["settings"]["asking"]["prompt"] == "Describe the image in detail."
    assert record["settings"]["data"]["hash"] == pairs.source["hash"]
    assert record["settings"]["weights"] == llava.facts["weights"]
    counts = record["statistics"]
    texts = text_statistics([line.caption for line in lines], "bert")
    assert counts["tokens_per_text"] == texts.tokens_per_text
    assert counts["subcaptions_per_text"] == texts.subcaptions_per_text
    assert counts["unfinished"] == sum(not line.finished for line in lines) / 20
    assert counts["generated_per_text"] == sum(line.tokens for line in lines) / 20


def test_several_processes_write_what_one_writes(whole, llava, pairs, tmp_path):
    finished = []
    for number in (2, 0, 1):
        place = (number, 3)
        done = recaption(llava, pairs, tmp_path, SAMPLED, batch_size=5, per_file=4, place=place)
        finished.append((done.files, done.counted, done.finished))
    assert finished == [(1, False, False), (2, False, False), (2, True, True)]
    assert contents(tmp_path) == contents(whole)


def test_what_is_whole_is_kept(whole, llava, pairs, tmp_path):
    recaption(llava, pairs, tmp_path, SAMPLED, per_file=4)
    (tmp_path / "000003.jsonl").unlink()
    kept = (tmp_path / "000001.jsonl").stat().st_mtime_ns
    done = recaption(llava, pairs, tmp_path, SAMPLED, per_file=4)
    assert (done.written, done.counted) == (1, False)  # it had been counted before
    assert (tmp_path / "000001.jsonl").stat().st_mtime_ns == kept
    assert contents(tmp_path) == contents(whole)


def test_captions_made_otherwise_are_refused(whole, folders, llava, pairs):
    other = load_captioner(folders["other"])
    before = contents(whole)
    for captioner, data, asking, message in (
        (other, pairs, SAMPLED, "weights was 'sha256:"),
        (llava, pairs, Asking(prompt="What is it?", max_new_tokens=16), "asking.prompt was"),
        (llava, world.pairs(20, seed=9), SAMPLED, "data.seed was 5, now 9"),
    ):
        with pytest.raises(LabError, match=message):
            recaption(captioner, data, whole, asking, per_file=4)
    with pytest.raises(LabError, match=r"data\.files was 5, now 1"):
        recaption(llava, pairs, whole, SAMPLED)
    assert contents(whole) == before


def test_files_of_unknown_origin_are_not_added_to(llava, pairs, tmp_path):
    (tmp_path / "notes.jsonl").write_text("{}\n")
    with pytest.raises(LabError, match=r"no recaption\.json that says whose"):
        recaption(llava, pairs, tmp_path, BRIEF)


def test_broken_pictures_are_counted_and_named(llava, pairs, tmp_path):
    root = tmp_path / "pictures"
    (root / "deep").mkdir(parents=True)
    for i in range(5):
        Image.fromarray(pairs.images[i]).save(root / "deep" / f"{i}.png")
    (root / "letter.jpg").write_text("Dear reader,")
    (root / "cut.png").write_bytes((root / "deep" / "0.png").read_bytes()[:800])
    (root / ".hidden.png").write_bytes(b"")
    folder = tmp_path / "captions"
    for place in ((1, 2), (0, 2)):
        recaption(llava, open_folder(root), folder, BRIEF, root=root, per_file=4, place=place)
    record = read_record(folder)
    assert (record["pictures"], record["captions"]) == (7, 5)
    assert record["skipped"].pop("hidden") == [".hidden.png"]
    (names,) = record["skipped"].values()
    assert [name.split(" ")[0] for name in names] == ["cut.png", "letter.jpg"]
    assert names[1] == "letter.jpg (not a picture)"
    assert "damaged" in names[0]
    assert [line.key for line in read_lines(folder)] == [f"deep/{i}.png" for i in range(5)]


def test_any_text_survives_its_file(tmp_path):
    texts = ["a\u2028b\x85c", "two\nlines\r\n", '"', "", "\u00e9\U0001f600"]
    lines = [Line(str(i), "x", text, 1, True) for i, text in enumerate(texts)]
    write_lines(tmp_path, "000000", lines, {})
    assert read_lines(tmp_path) == lines


def test_lines_of_another_form_are_refused(tmp_path):
    with pytest.raises(LabError, match=r"holds no recaption\.json"):
        read_record(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"key": "1"}\n')
    with pytest.raises(LabError, match=r"a\.jsonl, line 1: expected a caption"):
        read_lines(tmp_path)
    (tmp_path / "a.jsonl").write_text(json.dumps({"red " * 3000: 1}) + "\n")
    with pytest.raises(LabError, match="expected a caption") as told:
        read_lines(tmp_path)
    assert len(str(told.value)) < 800
    line = {"key": "1", "captioner": "x", "caption": "y", "tokens": 1, "finished": True}
    (tmp_path / "a.jsonl").write_text(2 * (json.dumps(line) + "\n"))
    with pytest.raises(LabError, match="line 2: there already is a caption of 1"):
        read_lines(tmp_path)


PARTS = b'{"captioner": "a", "model": "b", "weights": "c", "data": {}, "asking": 3}'
GARBAGE = [b"\xff\xfe{\0", b"\x89PNG\r\n", b"[]", b"1" * 4400, b'{"a": 1, "a": 2}', b"{}", b"{"]
GARBAGE += [
    b'{"finished": true, "settings": {"data": {}}}',
    b'{"finished": true, "settings": %s}' % PARTS,
]


@pytest.mark.parametrize("content", GARBAGE)
def test_files_of_garbage_are_named_and_left_alone(content, llava, pairs, tmp_path):
    (tmp_path / "recaption.json").write_bytes(content)
    with pytest.raises(LabError, match=r"recaption\.json is damaged"):
        read_record(tmp_path)
    with pytest.raises(LabError, match=r"recaption\.json is damaged.*another folder"):
        recaption(llava, pairs, tmp_path)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [content]
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(LabError, match=r"a\.jsonl"):
        read_lines(tmp_path)
    (tmp_path / "counts").mkdir()
    (tmp_path / "counts" / "a.json").write_bytes(content)
    with pytest.raises(LabError, match=r"a\.json"):
        summary(tmp_path, ["a"], {})


def test_a_line_with_another_type_is_named(tmp_path):
    line = {"key": "1", "captioner": "x", "caption": None, "tokens": 1, "finished": True}
    (tmp_path / "a.jsonl").write_text(json.dumps(line))
    with pytest.raises(LabError, match=r"a\.jsonl, line 1: expected .*'caption' should be str"):
        read_lines(tmp_path)


def command(folders, folder, *more):
    return [
        *("-m", "longclip_lab.cli", "recaption", str(folders["llava"]), str(folder)),
        *("--data", "world", "--pairs", "20", "--per-file", "2", "--max-new-tokens", "120"),
        *("--no-progress", *more),
    ]


def test_killed_in_the_middle_it_goes_on(folders, llava, pairs, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    asking = Asking(max_new_tokens=120)
    recaption(llava, pairs, whole, asking, batch_size=1, per_file=2)
    started = subprocess.Popen([sys.executable, *command(folders, killed, "--batch-size", "1")])
    until = time.monotonic() + 100
    while not (killed / "000002.jsonl").exists() and time.monotonic() < until:
        time.sleep(0.005)
    os.kill(started.pid, signal.SIGKILL)
    assert started.wait() == -signal.SIGKILL
    assert not read_record(killed)["finished"]
    for path in killed.glob("*.jsonl"):
        assert path.read_text() == (whole / path.name).read_text()
    done = recaption(llava, pairs, killed, asking, batch_size=1, per_file=2)
    assert 0 < done.written < 10
    found = contents(killed)
    assert {name: text for name, text in found.items() if ".part" not in name} == contents(whole)


def test_under_torchrun(folders, llava, pairs, tmp_path, under_torchrun):
    alone, launched = tmp_path / "alone", tmp_path / "launched"
    recaption(llava, pairs, alone, Asking(max_new_tokens=120), per_file=2)
    said = under_torchrun(2, *command(folders, launched))
    assert "5 files written, 0 were there" in said  # half of them, by each process
    assert "10 files written" not in said
    assert "20 captions of 20 pictures" in said
    assert contents(launched) == contents(alone)
