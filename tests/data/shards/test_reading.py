"""Shards read from anywhere, damaged ones too; and their check."""

from __future__ import annotations

import functools
import http.server
import pickle
import threading

import fsspec
import pytest

from longclip_lab import data
from longclip_lab.cli import main
from longclip_lab.data.shards import Broken
from longclip_lab.data.shards import format as places
from longclip_lab.errors import LabError
from longclip_lab.text import get_tokenizer


@pytest.fixture
def folder(on_disk, tmp_path):
    data.write_shards(on_disk, tmp_path / "shards", per_shard=10)
    return tmp_path / "shards"


def keys(shards, number, start=0):
    return [sample.key[-2:] for sample in shards.samples(number, start)]


class Interrupted(http.server.SimpleHTTPRequestHandler):
    """Serves files, but the first request for a tar breaks off in the middle."""

    broken: set[str]
    protocol_version = "HTTP/1.0"

    def copyfile(self, source, outputfile):
        content = source.read()
        if self.path.endswith("1.tar") and self.path not in self.broken:
            self.broken.add(self.path)
            content = content[: len(content) // 2]
        outputfile.write(content)

    def log_message(self, *said):
        """Nothing on stderr."""


@pytest.fixture
def server(folder, monkeypatch):
    monkeypatch.setattr(places, "PAUSE", 0.01)
    handler = type("Handler", (Interrupted,), {"broken": set()})
    served = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(folder))
    )
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{served.server_port}", handler
    served.shutdown()
    served.server_close()


def test_a_place_beyond_any_file_is_said(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"tar")
    with pytest.raises(LabError, match="cannot be read from byte 1,000"):
        places.Stream(str(tmp_path / "a.tar"), 10**30).read(1)


def test_a_web_server_that_breaks_off_loses_nothing(folder, server):
    url, handler = server
    shards, local = data.open_shards(url), data.open_shards(folder)
    assert shards.source == local.source
    for number in range(3):
        assert list(shards.samples(number)) == list(local.samples(number))
    assert handler.broken == {"/shard-000001.tar"}
    with pytest.raises(LabError, match=r"holds no manifest\.json"):
        data.open_shards(f"{url}/elsewhere")


def test_a_bucket_in_memory(folder):
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/bucket/shards", recursive=True)
    try:
        shards, local = data.open_shards("memory://bucket/shards"), data.open_shards(folder)
        assert list(shards.samples(2)) == list(local.samples(2))
        assert data.check_shards("memory://bucket/shards").ok
        assert shards.lengths.tolist() == local.lengths.tolist()
    finally:
        memory.rm("/bucket", recursive=True)


def test_other_ways_to_say_where(folder):
    for url in (f"file://{folder}", f"{folder}/"):
        assert keys(data.open_shards(url), 0) == [f"{n:02d}" for n in range(10)]
    with pytest.raises(LabError, match="no address that fsspec knows"):
        data.open_shards("bukket://shards")
    with pytest.raises(LabError, match=r"holds no manifest\.json, nor does a folder in it"):
        data.open_shards(folder.parent / "elsewhere")


def test_folders_of_shards_are_joined(on_disk, tmp_path):
    data.write_shards(on_disk, tmp_path / "b", per_shard=20)
    data.write_shards(on_disk.subset(range(5)), tmp_path / "a", per_shard=20)
    both = data.open_shards(tmp_path)
    assert [shard.name for shard in both.shards] == [
        "a/shard-000000.tar", "b/shard-000000.tar", "b/shard-000001.tar"
    ]  # fmt: skip
    assert len(both) == 35
    assert both.captioners == {"a": 35, "b": 35}
    assert sum(both.tokens["long"]["texts_by_length"].values()) == 35
    assert both.pair_name(5) == "b/shard-000000.tar/000000000"
    assert next(both.samples(1)).key == "b/000000000"
    data.write_shards(on_disk, tmp_path / "c", per_shard=20, tokenizer="bert")
    with pytest.raises(LabError, match="counted by bert and clip"):
        data.open_shards(tmp_path)


def test_only_what_is_asked_for_is_read(folder):
    shards = data.open_shards(folder)
    assert keys(shards, 1, start=7) == ["17", "18", "19"]
    for path in folder.glob("shard-00000[12].*"):
        path.unlink()
    assert len(data.open_shards(folder)) == 30
    assert len(keys(data.open_shards(folder), 0)) == 10
    with pytest.raises(LabError, match=r"There is no .*shard-000001\.json"):
        keys(data.open_shards(folder), 1)


def test_a_set_can_be_sent_to_another_process(folder):
    shards = pickle.loads(pickle.dumps(data.open_shards(folder)))
    assert len(keys(shards, 0)) == 10


def test_a_damaged_picture_is_named(folder, flip):
    path = folder / "shard-000001.tar"
    flip(path, "000000013")
    samples = list(data.open_shards(folder).samples(1))
    assert [isinstance(sample, Broken) for sample in samples] == [n == 3 for n in range(10)]
    assert samples[3].name == "shard-000001.tar/000000013"
    assert "checksum" in samples[3].detail


def test_of_a_tar_that_was_cut_short_the_beginning_is_used(folder):
    path = folder / "shard-000002.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    samples = list(data.open_shards(folder).samples(2))
    broken = [isinstance(sample, Broken) for sample in samples]
    assert len(samples) == 10
    assert 0 < broken.index(True) < 10
    assert all(broken[broken.index(True) :])
    assert not any(broken[: broken.index(True)])


@pytest.mark.parametrize("header", [0, 1, 6])
def test_behind_a_damaged_header_reading_goes_on(folder, header):
    import tarfile

    path = folder / "shard-000000.tar"
    with tarfile.open(path) as tar:
        info = tar.getmembers()[header]
    content = bytearray(path.read_bytes())
    content[info.offset + 10 : info.offset + 200] = bytes(190)
    path.write_bytes(content)
    samples = list(data.open_shards(folder).samples(0))
    lost = [n for n, sample in enumerate(samples) if isinstance(sample, Broken)]
    assert lost == [header // 2]


def test_the_check_names_everything(folder, flip, capsys):
    assert main(["data", "check", str(folder), "--no-progress"]) == 0
    assert "every pair decodes" in capsys.readouterr().out
    flip(folder / "shard-000001.tar", "000000013")
    path = folder / "shard-000002.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (folder / "shard-000000.tar").unlink()
    assert main(["data", "check", str(folder), "--no-progress"]) == 2
    said = capsys.readouterr()
    for name in ("shard-000000.tar: ", "shard-000001.tar: ", "shard-000002.tar: "):
        assert name in said.out
    assert "shard-000001.tar/000000013: its bytes have changed" in said.out
    assert "3 shards and" in said.err


def test_sidecars_of_another_writing_are_refused(folder, on_disk, tmp_path):
    data.write_shards(on_disk.subset(range(10)), tmp_path / "other", per_shard=10)
    (folder / "shard-000001.json").write_bytes((tmp_path / "other/shard-000000.json").read_bytes())
    with pytest.raises(LabError, match="speak of different shards"):
        keys(data.open_shards(folder), 1)


def test_a_model_that_knows_few_words_is_given_no_others(on_disk, tmp_path):
    strange = on_disk.subset(range(2))
    strange.short[0], strange.captioners[1]["a"] = "A zeppelin over a boat.", "Zeppelins."
    shards = data.write_shards(strange, tmp_path, per_shard=10)
    known = data.keep_known_words(shards, get_tokenizer("world"))
    first, second = known.samples(0)
    assert first.texts.short == "A over a boat ."
    assert second.texts.captioners["a"] == "."
    assert known.source["words"] == {"known": len(set(get_tokenizer("world").words))}
    assert data.keep_known_words(shards, get_tokenizer("clip")) is shards


@pytest.mark.parametrize("start", [0, 1, 9])
def test_reading_begins_where_it_is_asked_to(folder, server, monkeypatch, start):
    handed, read = [], places.Stream.read

    def counted(stream, count=-1):
        handed.append(read(stream, count))
        return handed[-1]

    monkeypatch.setattr(places.Stream, "read", counted)
    for url in (folder, server[0]):
        shards = data.open_shards(url)
        size = shards.shards[2].bytes - shards.sidecar(2).offsets[start]
        handed.clear()
        assert keys(shards, 2, start) == [f"{20 + n}" for n in range(start, 10)]
        # A server without ranges sends everything, and the beginning is thrown away unread.
        assert sum(map(len, handed)) <= size


def test_a_tar_that_ends_before_the_pair(folder):
    path = folder / "shard-000000.tar"
    path.write_bytes(path.read_bytes()[:5000])
    samples = list(data.open_shards(folder).samples(0, 8))
    assert [sample.name[-2:] for sample in samples] == ["08", "09"]
    assert all(isinstance(sample, Broken) for sample in samples)
