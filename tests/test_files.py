"""Text and JSON files: one reader and one writer for every room."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from typing import Literal

import pytest

from longclip_lab import files
from longclip_lab.errors import LabError, NotFiniteError
from longclip_lab.files import (
    atomic_write,
    checked_fields,
    parse_json,
    read_json,
    read_json_list,
    read_json_object,
    read_lines,
    read_text,
    to_json,
)


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
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "'c' more than once"),
    ],
)
def test_what_is_no_json_is_named(text, said):
    with pytest.raises(LabError, match=f"a.json.*{said}"):
        parse_json(text, "a.json")


def test_nan_can_be_let_through():
    first, second = parse_json("[NaN, -Infinity]", "a.json", allow_nan=True)
    assert math.isnan(first)
    assert second == -math.inf


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_lines_one_by_one(tmp_path, ending):
    path = tmp_path / "texts.txt"
    path.write_bytes(ending.join(["\ufeffone", "two\u2028\x85\x0b", "", "four"]).encode())
    assert list(read_lines(path)) == ["one\n", "two\u2028\x85\x0b\n", "\n", "four"]


@pytest.mark.parametrize("read", [read_lines, read_json_list])
def test_what_is_no_text_is_named_piece_by_piece_too(tmp_path, read):
    path = tmp_path / "a.json"
    for content, said in {
        '["one"]'.encode("utf-16"): "is UTF-16 text",
        b'["one",\n"caf\xe9"]': "line 2 has the byte 0xe9",
        b"[1]\0": "zero bytes",
    }.items():
        path.write_bytes(content)
        with pytest.raises(LabError, match=said):
            list(read(path))
    with pytest.raises(LabError, match="There is no file"):
        list(read(tmp_path / "none"))
    with pytest.raises(LabError, match="Cannot read"):
        list(read(tmp_path))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("{}", "a JSON object; expected a list"),
        ("[1", "Is it complete"),
        ("[1 2]", "Expecting ',' delimiter in entry 1"),
        ("[,1]", "Expecting value in entry 0"),
        ("[1,]", "Expecting value in entry 1"),
        ("[1] 2", "more behind the list's end"),
        ("[1, NaN]", "it holds NaN"),
        ('[1, {"a": 1, "a": 2}]', "'a' more than once"),
        ("[1, " + "1" * 4400 + "]", "entry 1 is JSON that cannot be read"),
        ("[1, " + "[" * 100_000, "entry 1 is JSON that is nested too deeply"),
    ],
)
def test_lists_that_are_no_json_are_named(tmp_path, text, said):
    with pytest.raises(LabError, match=f"a.json.*{said}"):
        list(read_json_list(atomic_write(tmp_path / "a.json", text)))


@pytest.mark.parametrize("block", [1, 2, 3, 7])
def test_lists_are_read_alike_in_pieces_of_any_size(tmp_path, monkeypatch, block):
    monkeypatch.setattr(files, "_BLOCK", block)
    rows = [{"a": 'é ,]}{[ " \\'}, [1.5e-3, True], -12, None, "\U0001f600", {}, 345]
    path = atomic_write(tmp_path / "a.json", json.dumps(rows, indent=1))
    assert list(read_json_list(path)) == [(f"entry {n}", row) for n, row in enumerate(rows)]


def test_an_object_is_asked_for(tmp_path):
    with pytest.raises(LabError, match="holds a JSON list; expected an object"):
        read_json_object(atomic_write(tmp_path / "a.json", "[]"))


@dataclass
class Facts:
    name: str
    share: float
    counts: dict[str, list[int]]
    kind: Literal["a", "b"] | None = None


def test_fields_are_of_the_types_that_they_declare():
    assert checked_fields(Facts("x", 1, {"a": [1]}), "here").share == 1
    for facts, said in (
        (Facts(3, 1.0, {"a": [1]}), "'name' should be str, got 3"),
        (Facts("x", True, {}), "'share' should be float, got True"),
        (Facts("x", 1.0, {"a": [None]}), "'counts' should be dict"),
        (Facts("x", 1.0, {}, "c"), "'kind' should be .*Literal"),
    ):
        with pytest.raises(LabError, match=f"here: {said}"):
            checked_fields(facts, "here")


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
