"""Text and JSON files: one reader and one writer for every room."""

from __future__ import annotations

import json
import os

import pytest

from longclip_lab.errors import LabError, NotFiniteError
from longclip_lab.files import atomic_write, parse_json, read_json, read_text, to_json


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_every_line_end_ends_a_line(tmp_path, ending):
    path = tmp_path / "texts.txt"
    path.write_bytes(ending.join(["one", "two", "three"]).encode())
    assert read_text(path).split("\n") == ["one", "two", "three"]


def test_byte_order_mark_is_no_text(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_bytes("one".encode("utf-8-sig"))
    assert read_text(path) == "one"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("one".encode("utf-16"), "is UTF-16 text"),
        ("one\ncafé".encode("latin-1"), r"line 2 has the byte 0xe9.*LATIN1"),
        (b"a\0b", "zero bytes"),
    ],
)
def test_what_is_no_utf8_is_named(tmp_path, content, said):
    path = tmp_path / "texts.txt"
    path.write_bytes(content)
    with pytest.raises(LabError, match=said):
        read_text(path)


def test_missing_file(tmp_path):
    with pytest.raises(LabError, match="There is no file"):
        read_text(tmp_path / "none.txt")
    with pytest.raises(LabError, match="Cannot read"):
        read_text(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("{", "not JSON.*line 1, column 2"),
        ("[NaN]", "it holds NaN"),
        ("[-Infinity]", "it holds -Infinity"),
        ("[" * 100_000, "nested too deeply"),
        ("1" * 4400, "cannot be read"),
    ],
)
def test_what_is_no_json_is_named(text, said):
    with pytest.raises(LabError, match=f"a.json.*{said}"):
        parse_json(text, "a.json")


def test_json_comes_back_as_it_was(tmp_path):
    value = {"a": [1, 2.5, None, "é"], "b": {"c": True}}
    assert read_json(atomic_write(tmp_path / "a.json", to_json(value, indent=1))) == value


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_json_has_not_are_not_written(number):
    with pytest.raises(NotFiniteError, match=r"scores\[1\].mean"):
        to_json({"scores": [{"mean": 1.0}, {"mean": number}]})
    with pytest.raises(NotFiniteError, match="the result"):
        to_json(number)


def test_other_mistakes_stay_python_errors():
    loop = []
    loop.append(loop)
    with pytest.raises((ValueError, RecursionError)) as raised:
        to_json(loop)
    assert not isinstance(raised.value, LabError)
    with pytest.raises(TypeError):
        json.loads(to_json({1, 2}))


def test_written_files_have_the_rights_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        path = atomic_write(tmp_path / "a.json", "{}")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_name_that_is_no_utf8_is_written_as_json_escapes_it(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    path = atomic_write(tmp_path / "names.json", to_json({"name": name}, ensure_ascii=False))
    assert read_json(path) == {"name": name}
