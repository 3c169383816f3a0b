"""Reading caption files: every form, and a clear message for everything else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from longclip_lab.errors import LabError
from longclip_lab.text import read_texts

IIW = Path(__file__).parent / "data" / "imageinwords"


def test_a_line_of_a_txt_file_is_a_text(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_bytes("\ufeffA dog.\r\n\r\nUn café\u2028noir.\n  \nEnd".encode())
    texts = read_texts(path)
    assert texts.texts == ["A dog.", "Un café\u2028noir.", "End"]
    assert texts.names == ["captions.txt:1", "captions.txt:3", "captions.txt:5"]
    assert texts.skipped == {"empty caption": ["captions.txt:2", "captions.txt:4"]}
    assert len(texts) == 3


@pytest.mark.parametrize("ending", ["\r", "\r\n"])
def test_lines_of_other_systems_are_lines(tmp_path, ending):
    path = tmp_path / "captions.txt"
    path.write_bytes(ending.join(["A dog.", "A cat.", "A boat."]).encode())
    assert read_texts(path).texts == ["A dog.", "A cat.", "A boat."]
    path = tmp_path / "captions.jsonl"
    path.write_bytes(ending.join(['{"text": "A dog.\u2028Two."}', '{"text": "A"}']).encode())
    assert read_texts(path).texts == ["A dog.\u2028Two.", "A"]


@pytest.mark.parametrize(
    ("lines", "texts", "key"),
    [
        (['{"caption": "a"}', "", '{"caption": "b", "text": "x"}'], ["a", "b"], "caption"),
        (['{"IIW": "a", "caption": "x"}'], ["a"], "IIW"),
        (['"a"', '"b"'], ["a", "b"], None),
        (['{"text": "\\ud83d\\udc69 a"}'], ["👩 a"], "text"),
    ],
)
def test_json_lines(tmp_path, lines, texts, key):
    path = tmp_path / "captions.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    read = read_texts(path)
    assert read.texts == texts
    assert read.source["keys"] == {"captions.jsonl": key}


def test_a_key_can_be_named(tmp_path):
    path = tmp_path / "captions.jsonl"
    path.write_text('{"caption": "a", "long": "b"}\n')
    assert read_texts(path, key="long").texts == ["b"]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (["a", "b"], "captions.json[1]"),
        ([{"caption": "a"}, {"caption": "b"}], "captions.json[1]"),
        (
            {"images": [], "annotations": [{"id": 1, "caption": "a"}, {"id": 2, "caption": "b"}]},
            "captions.json.annotations[1]",
        ),
    ],
)
def test_json_lists_and_cocos_annotations(tmp_path, content, name):
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(content))
    read = read_texts(path)
    assert read.texts == ["a", "b"]
    assert read.names[1] == name


def test_empty_captions_are_counted_and_named(tmp_path):
    path = tmp_path / "captions.jsonl"
    path.write_text('{"caption": "a"}\n{"caption": " "}\n{"caption": null}\n{"caption": NaN}\n')
    read = read_texts(path)
    assert read.texts == ["a"]
    assert read.skipped == {"empty caption": [f"captions.jsonl:{n}" for n in (2, 3, 4)]}


def test_the_folder_of_imageinwords():
    texts = read_texts(IIW)
    assert len(texts) == 12
    assert texts.names[6] == "DCI_Test/data.jsonl:1"
    assert not texts.skipped
    assert texts.texts[0].startswith("A close-up outdoor shot shows an Echinops Bannaticus")
    again = read_texts(str(IIW) + "/../imageinwords")
    assert (again.name, again.source) == ("imageinwords", texts.source)
    assert read_texts(IIW / "DCI_Test").texts == texts.texts[6:9]


def test_parts_that_are_not_there_are_named(tmp_path):
    (tmp_path / "DCI_Test").mkdir()
    (tmp_path / "DCI_Test" / "data.jsonl").write_text('{"IIW": "a"}\n')
    missing = ["IIW-400/data.jsonl", "DOCCI_Test/data.jsonl"]
    assert read_texts(tmp_path).skipped == {"part not there": missing}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "empty.txt holds no text. Expected a .txt"),
        ("blank.txt", b"\n \n", "blank.txt holds no text: all 2 entries are empty"),
        ("empty.jsonl", b"", "holds no text"),
        ("empty.json", b"", "holds no text"),
        ("list.json", b"[]", "holds no text"),
        ("latin.txt", "A dog\nUn café".encode("latin-1"), "not UTF-8 text: line 2 has the byte"),
        ("utf16.txt", "A dog".encode("utf-16"), "utf16.txt is UTF-16 text"),
        ("utf16.txt", "A dog".encode("utf-16-le"), "holds zero bytes"),
        ("cut.jsonl", b'{"caption": "a"}\n{"capt', "cut.jsonl:2 is not JSON"),
        ("cut.json", b'[{"caption": "a"}, ', "cut.json is not JSON"),
        ("deep.json", b"[" * 100_000, "nested too deeply"),
        ("digits.jsonl", b'{"caption": "a", "n": ' + b"1" * 5000 + b"}", "cannot be read"),
        ("number.jsonl", b"3\n", "number.jsonl:1 is a JSON number. Expected an object"),
        ("object.json", b'{"caption": "a"}', "holds a JSON object. Expected a list"),
        ("null.json", b"null", "holds a JSON null"),
        ("other.jsonl", b'{"caption": ["a"]}', 'other.jsonl:1 has a JSON list under "caption"'),
        ("other.jsonl", b'{"capton": "a"}', "It has capton: name one with key=."),
        ("mixed.jsonl", b'{"text": "a"}\n{"texts": ""}', 'under "text". Did you mean texts?'),
        ("bare.jsonl", b'{"text": "a"}\n{}', "bare.jsonl:2 is an empty object"),
        ("pair.jsonl", b'{"text": "\\ud83d"}', "half a surrogate pair"),
        ("captions.csv", b"a,b", "Do not know how to read"),
        ("captions", b"a", "Do not know how to read"),
    ],
)  # fmt: skip
def test_bad_files_are_refused_with_one_clear_message(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(LabError, match=re.escape(message)) as caught:
        read_texts(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_file_and_a_folder_of_other_things_are_refused(tmp_path):
    with pytest.raises(LabError, match=r"no file or folder .*nowhere\.txt"):
        read_texts(tmp_path / "nowhere.txt")
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8")
    with pytest.raises(LabError, match=r"has none of IIW-400/data\.jsonl"):
        read_texts(tmp_path)
    with pytest.raises(LabError, match=r"The folder .* has none of"):
        read_texts(tmp_path / "..")


def test_a_key_that_is_nowhere_is_named(tmp_path):
    path = tmp_path / "captions.jsonl"
    path.write_text('{"caption": "a"}\n')
    with pytest.raises(LabError, match=r'nothing under "captoin"\. Did you mean caption\?'):
        read_texts(path, key="captoin")
