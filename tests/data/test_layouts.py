"""The published layouts of long captions, on small files of each."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from longclip_lab.data import (
    Columns,
    draw_texts,
    keep_known_words,
    open_data,
    recaptioned,
    statistics,
)
from longclip_lab.data.layouts import read_rows
from longclip_lab.errors import LabError
from longclip_lab.text import get_tokenizer

# The header of cc3m_3long_3short_1raw_captions_url.csv, in its order.
HEADER = [
    "Image Path", "raw_caption", "shortIB_captions", "longIB_captions", "shortSV_captions",
    "longSV_captions", "shortLLA_captions", "longLLA_captions",
]  # fmt: skip
ROWS = [
    ["cc3m/0.jpg", "how to build", "a cabin", "A cabin, small. It is red.", "A wooden cabin.",
     "The image captures a cabin.\n\nIt has a \"door\".", "A cabin.", "The cabin."],
    ["cc3m/1.jpg", "a café", "a dog", "A dog.", "A dog runs.", "A dog runs. Grass.", "Dog.", ""],
]  # fmt: skip
FORMATS = ["csv", "tsv", "semicolon", "json", "jsonl", "parquet"]


def draw_pictures(root: Path, names: list[str]) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "teal").save(root / name)


def write_table(root: Path, rows: list[list[str]], form: str = "csv", header=HEADER) -> Path:
    root.mkdir(exist_ok=True)
    objects = [dict(zip(header, row, strict=True)) for row in rows]
    if form in ("csv", "tsv", "semicolon"):
        path = root / f"cc3m_captions.{'tsv' if form == 'tsv' else 'csv'}"
        delimiter = {"csv": ",", "tsv": "\t", "semicolon": ";"}[form]
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter=delimiter).writerows([header, *rows])
        return path
    path = root / f"cc3m_captions.{form}"
    if form == "parquet":
        pd.DataFrame(objects).to_parquet(path)
    else:
        whole = json.dumps(objects) if form == "json" else "\n".join(map(json.dumps, objects))
        path.write_text(whole, encoding="utf-8")
    return path


def dreamlip(root: Path, rows=ROWS, form: str = "csv", pictures: bool = True) -> Path:
    path = write_table(root, rows, form)
    if pictures:
        draw_pictures(root, [row[0] for row in rows])
    return path


@pytest.mark.parametrize("form", FORMATS)
def test_dreamlip_in_every_form(tmp_path, form):
    dreamlip(tmp_path, form=form)
    pairs = recaptioned(tmp_path, "dreamlip", verify=True)
    assert [path.name for path in pairs.images] == ["0.jpg", "1.jpg"]
    assert pairs.short == ["how to build", "a café"]
    assert pairs.captions[0] == ["how to build", "a cabin", "A cabin.", "A wooden cabin."]
    assert pairs.captioners[0] == {
        "InstructBLIP": "A cabin, small. It is red.",
        "LLaVA": "The cabin.",
        "ShareGPT4V": 'The image captures a cabin.\n\nIt has a "door".',
    }
    assert pairs.captioners[1] == {"InstructBLIP": "A dog.", "ShareGPT4V": "A dog runs. Grass."}
    assert pairs.long == ["A cabin, small. It is red.", "A dog."]
    assert pairs.source["captioners"] == {"InstructBLIP": 2, "LLaVA": 1, "ShareGPT4V": 2}
    assert pairs.source["short"] == "raw caption"
    json.dumps(pairs.source)
    assert pairs.subset([1]).captioners == [pairs.captioners[1]]
    assert len(draw_texts(pairs.captioners, 3).texts) == 2


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    path = dreamlip(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(recaptioned(tmp_path, "dreamlip")) == 2


def test_shards_keep_captions_as_lists_of_one(tmp_path):
    rows = [[row[0], *([text] for text in row[1:])] for row in ROWS]
    dreamlip(tmp_path, rows, "json")
    assert recaptioned(tmp_path, "dreamlip").short == ["how to build", "a café"]


def test_lotlip_has_long_captions_alone(tmp_path):
    header = ["Image Path", "longIB_captions", "longSV_captions", "longLLA_captions"]
    write_table(tmp_path, [["a.jpg", "A cat. It sits.", "Cat.", "One."]], header=header)
    draw_pictures(tmp_path, ["a.jpg"])
    pairs = open_data("lotlip", tmp_path)
    assert (pairs.short, pairs.captions) == (["A cat"], [["A cat"]])
    assert pairs.source["short"] == "the long caption before the first '. '"
    assert len(pairs.captioners[0]) == 3


def test_columns_of_other_names(tmp_path):
    write_table(tmp_path, [["a.jpg", "raw", "long"]], header=["file", "alt", "mine"])
    draw_pictures(tmp_path, ["a.jpg"])
    columns = Columns(image="file", raw="alt", long={"Me": "mine"}, short={})
    pairs = recaptioned(tmp_path, "dreamlip", columns=columns)
    assert (pairs.short, pairs.captioners) == (["raw"], [{"Me": "long"}])


def test_addresses_need_paths(tmp_path):
    rows = [["https://a.org/x.jpg", *ROWS[0][1:]], ["https://a.org/y.jpg", *ROWS[1][1:]]]
    dreamlip(tmp_path, rows, pictures=False)
    draw_pictures(tmp_path, ["got/0.jpg"])
    with pytest.raises(LabError, match=r"line 2 names its picture by address: https://a\.org"):
        recaptioned(tmp_path, "dreamlip")
    paths = {"https://a.org/x.jpg": "got/0.jpg"}
    pairs = recaptioned(tmp_path, "dreamlip", paths=paths, skip_bad=True)
    assert [path.name for path in pairs.images] == ["0.jpg"]
    assert pairs.skipped == {"picture without a path": ["https://a.org/y.jpg"]}


def write_sharegpt4v(root: Path, count: int) -> None:
    entries = [
        {
            "id": f"sa_{i}",
            "image": f"sam/images/sa_{i}.jpg",
            "conversations": [
                {"from": "human", "value": "Describe the image.\n<image>"},
                {"from": "gpt", "value": f"The image shows {i} cats. They sit."},
            ],
        }
        for i in range(count)
    ]
    (root / "share-captioner.json").write_text(json.dumps(entries), encoding="utf-8")
    draw_pictures(root, [entry["image"] for entry in entries])


def test_sharegpt4v_and_longclips_split(tmp_path):
    write_sharegpt4v(tmp_path, 1003)
    train, val = (
        open_data("sharegpt4v", tmp_path, split, verify=False) for split in ("train", "val")
    )
    assert (len(train), len(val)) == (3, 1000)
    assert train.short[0] == "The image shows 1000 cats"
    assert train.long[0] == "The image shows 1000 cats. They sit."
    assert train.captioners[0] == {"ShareGPT4V": train.long[0]}
    assert len(recaptioned(tmp_path, "sharegpt4v", limit=7)) == 7
    assert len(recaptioned(tmp_path, "sharegpt4v", split="train", limit=2)) == 2


def test_missing_pictures_are_counted_and_named(tmp_path):
    rows = [[f"cc3m/{i}.jpg", *ROWS[0][1:]] for i in range(9)]
    dreamlip(tmp_path, rows, pictures=False)
    draw_pictures(tmp_path, ["cc3m/0.jpg"])
    expected = r"8 x missing picture: cc3m/1.jpg, .*cc3m/5.jpg and 3 more"
    with pytest.raises(LabError, match=expected):
        recaptioned(tmp_path, "dreamlip")
    pairs = recaptioned(tmp_path, "dreamlip", skip_bad=True)
    assert len(pairs) == 1
    assert pairs.skipped["missing picture"] == [f"cc3m/{i}.jpg" for i in range(1, 9)]


def test_holes_are_counted_and_named(tmp_path):
    rows = [
        ROWS[0],
        ROWS[0],
        ["cc3m/1.jpg", *[""] * 7],
        ["cc3m/2.jpg", " ", *ROWS[0][2:]],
        ["", *ROWS[0][1:]],
    ]
    dreamlip(tmp_path, rows, pictures=False)
    draw_pictures(tmp_path, [f"cc3m/{i}.jpg" for i in range(3)])
    pairs = recaptioned(tmp_path, "dreamlip", skip_bad=True)
    assert [path.name for path in pairs.images] == ["0.jpg"]
    assert pairs.skipped == {
        "picture listed twice": ["cc3m/0.jpg"],
        "no long caption": ["cc3m/1.jpg"],
        "no raw caption": ["cc3m/2.jpg"],
        # The texts of ROWS[0] hold two line breaks.
        "row without a picture's name": ["line 12"],
    }
    with pytest.raises(LabError, match=r"1 x no raw caption: cc3m/2\.jpg"):
        recaptioned(tmp_path, "dreamlip")


def conversation(name: str, *turns: tuple[str, object]) -> dict:
    said = [{"from": speaker, "value": value} for speaker, value in turns]
    return {"id": name, "image": name, "conversations": said}


@pytest.mark.parametrize(
    "turns",
    [
        [("system", "You are kind."), ("human", "What is it?"), ("gpt", "A cat. It sits.")],
        [("gpt", "A cat. It sits."), ("human", "What is it?")],
        [("human", "What is it?"), ("Assistant", "A cat. It sits.")],
        [("human", "What is it?"), ("gpt", "A cat. It sits."), ("human", "Sure?"), ("gpt", "Yes.")],
    ],
)
def test_the_caption_is_what_the_model_says(tmp_path, turns):
    path = tmp_path / "share-captioner_coco_lcs_sam_1246k_1107.json"
    path.write_text(json.dumps([conversation("a.jpg", *turns)]))
    draw_pictures(tmp_path, ["a.jpg"])
    assert recaptioned(tmp_path, "sharegpt4v").long == ["A cat. It sits."]
    assert statistics(tmp_path, ["sharegpt4v"]).rows[0].texts == 1


def test_a_conversation_without_an_answer_is_named(tmp_path):
    rows = [
        conversation("a.jpg", ("gpt", "A cat.")),
        conversation("b.jpg", ("system", "Be kind."), ("human", "What is it?")),
        {"image": "c.jpg", "conversations": [{"value": "?"}, {"value": "A dog."}]},
        conversation("d.jpg", ("human", "?"), ("gpt", float("nan"))),
        conversation("e.jpg", ("human", "?"), ("gpt", ["A dog."] * 2)),
    ]
    (tmp_path / "captions.json").write_text(json.dumps(rows))
    draw_pictures(tmp_path, [row["image"] for row in rows])
    with pytest.raises(LabError, match=r"2 x conversation without an answer by a model: b\.jpg"):
        recaptioned(tmp_path, "sharegpt4v")
    pairs = recaptioned(tmp_path, "sharegpt4v", skip_bad=True)
    assert pairs.long == ["A cat."]
    assert pairs.skipped == {
        "conversation without an answer by a model": ["b.jpg", "c.jpg"],
        "no long caption": ["d.jpg"],
        "caption that is no text": ["e.jpg (value)"],
    }


BAD = {
    "missing": float("nan"),
    "white": " \u2003\n\u200b",
    "number": 7,
    "list": ["A cat.", "A dog."],
    "surrogate": "A \ud83d",
}
NAMED = {
    "caption that is no text": ["number.jpg (longIB_captions)", "list.jpg (longIB_captions)"],
    "caption with half a surrogate pair, which is no text": ["surrogate.jpg (longIB_captions)"],
    "no long caption": ["missing.jpg", "white.jpg"],
}


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_captions_that_are_none_are_named_and_can_be_left_out(tmp_path, form):
    captions = {"good": "A boat."} | BAD
    rows = [[f"{name}.jpg", caption] for name, caption in captions.items()]
    write_table(tmp_path, rows, form, ["Image Path", "longIB_captions"])
    draw_pictures(tmp_path, [row[0] for row in rows])
    with pytest.raises(LabError, match=r"2 x no long caption: missing\.jpg, white\.jpg"):
        recaptioned(tmp_path, "dreamlip")
    pairs = recaptioned(tmp_path, "dreamlip", skip_bad=True)
    assert (pairs.long, pairs.skipped) == (["A boat."], NAMED)


@pytest.mark.parametrize("form", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_what_pandas_writes_for_a_missing_caption_is_one(tmp_path, form):
    told = {"Image Path": ["a.jpg", "b.jpg", None], "longIB_captions": ["A boat.", None, "A cat."]}
    table, path = pd.DataFrame(told), tmp_path / f"t.{form}"
    table = table.where(table.notna(), float("nan"))
    if form in ("csv", "tsv"):
        table.to_csv(path, index=False, sep="," if form == "csv" else "\t", na_rep="NaN")
    elif form == "parquet":
        table.to_parquet(path)
    else:
        rows = table.to_dict("records")
        path.write_text(json.dumps(rows) if form == "json" else "\n".join(map(json.dumps, rows)))
    draw_pictures(tmp_path, ["a.jpg", "b.jpg"])
    with pytest.raises(LabError, match=r"1 x no long caption: b\.jpg.*--skip-bad"):
        recaptioned(tmp_path, "dreamlip")
    pairs = recaptioned(tmp_path, "dreamlip", skip_bad=True)
    assert pairs.long == ["A boat."]
    place = {"csv": "line 4", "tsv": "line 4", "json": "entry 2", "jsonl": "line 3"}
    assert pairs.skipped["row without a picture's name"] == [place.get(form, "row 2")]


@pytest.mark.parametrize("form", FORMATS)
def test_a_picture_under_two_names_is_listed_twice(tmp_path, form):
    rows = [ROWS[0], ["./cc3m//0.jpg", *ROWS[1][1:]], ROWS[1]]
    dreamlip(tmp_path, rows, form)
    with pytest.raises(LabError, match=r"1 x picture listed twice: cc3m/0\.jpg"):
        recaptioned(tmp_path, "dreamlip")
    pairs = recaptioned(tmp_path, "dreamlip", skip_bad=True)
    assert pairs.short == ["how to build", "a café"]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_every_line_end_ends_a_row(tmp_path, form, ending):
    text = "A red\u2028boat."
    if form == "csv":
        rows = ["Image Path,longIB_captions", f"a.jpg,{text}", f'b.jpg,"It{ending}sits."', ""]
    else:
        rows = [
            json.dumps({"Image Path": name, "longIB_captions": told}, ensure_ascii=False)
            for name, told in (("a.jpg", text), ("b.jpg", "It\nsits."))
        ]
    (tmp_path / f"t.{form}").write_bytes(ending.join(rows).encode())
    found = [row["longIB_captions"] for _, row in read_rows(tmp_path / f"t.{form}")]
    assert found == [text, "It\nsits."]


def test_nameless_columns_of_a_spreadsheet_do_no_harm(tmp_path):
    (tmp_path / "t.csv").write_text("Image Path,longIB_captions,,\na.jpg,A boat.,,\n")
    draw_pictures(tmp_path, ["a.jpg"])
    assert recaptioned(tmp_path, "dreamlip").long == ["A boat."]


def test_a_column_twice_in_parquet_is_named(tmp_path):
    table = pyarrow.table([["a.jpg"], ["A."], ["B."]], ["Image Path", *["longIB_captions"] * 2])
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(LabError, match="has the column 'longIB_captions' 2 times"):
        recaptioned(tmp_path, "dreamlip")


def test_known_words_reach_every_captioner(tmp_path):
    dreamlip(tmp_path)
    known = keep_known_words(recaptioned(tmp_path, "dreamlip"), get_tokenizer("world"))
    assert known.captioners[0]["InstructBLIP"] == "A , small . It is red ."


def text_of(name: str, text: str, encoding: str = "utf-8"):
    return lambda root: (root / name).write_text(text, encoding=encoding, newline="")


def csv_of(text: str, encoding: str = "utf-8"):
    return text_of("t.csv", text, encoding)


LINE = "Image Path,raw_caption,longIB_captions"
ENTRY = '{"Image Path": "a.jpg", "longIB_captions": "7"}'


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: None, "should hold one table .* it holds none"),
        (csv_of(""), "is empty"),
        (csv_of("Image Path|longIB_captions\na.jpg|b"), "is one column. Expected columns"),
        (csv_of(f"{LINE}\na.jpg,b"), "line 2: 2 fields for 3 columns parted by comma"),
        (csv_of(f"{LINE}\na.jpg,b,c, d"), "line 2: 4 fields .* needs quotes"),
        (csv_of(f'{LINE}\na.jpg,b,"c\nd.jpg,e,f'), "Is a quote left open"),
        (csv_of("path,caption\na.jpg,b"), "the column 'Image Path' .* it has 'path', 'caption'"),
        (csv_of("Image Path,caption\na.jpg,b"), "at least one of 'longIB_captions'"),
        (csv_of(f"{LINE}\n../a.jpg,b,c"), "leads out of the picture folder"),
        (csv_of(LINE), "leaves no picture"),
        (csv_of(f"{LINE}\na.jpg,b,\xe9", "latin-1"), "line 2 has the byte 0xe9"),
        (csv_of(LINE, "utf-16"), "is UTF-16 text"),
        (csv_of(LINE, "utf-16-le"), "zero bytes. Is it compressed, or UTF-16"),
        (text_of("t.json", "[]", "utf-16"), "is UTF-16 text"),
        (text_of("t.jsonl", ENTRY, "utf-16"), "is UTF-16 text"),
        (csv_of(f"{LINE},raw_caption\na.jpg,b,c,d"), "has the column 'raw_caption' 2 times"),
        (text_of("t.jsonl", '{"text": "a", "text": "b"}'), "'text' more than once"),
        (text_of("t.json", '[{"Image Path": ' + "1" * 4400 + "}]"), "cannot be read"),
        (text_of("t.jsonl", '{"Image Path": ' + "1" * 4400 + "}"), "line 1 is JSON that cannot"),
        (text_of("t.json", f"[{ENTRY} {ENTRY}]"), "Expecting ',' delimiter in entry 1"),
        (text_of("t.json", f"[{ENTRY},]"), "Expecting value in entry 1"),
        (text_of("t.json", f"[{ENTRY}] []"), "more behind the list's end"),
        (text_of("t.json", '[{"Image Path": "a.jpg"'), "is not JSON"),
        (text_of("t.json", '{"a": 1}'), "holds a JSON object; expected a list"),
        (text_of("t.json", "[3]"), "entry 0: expected an object"),
        (text_of("t.jsonl", ENTRY + "\n{"), "line 2 is not JSON"),
        (text_of("t.json", '[{"Image Path": "a", "longIB_captions": 7}]'),
         r"1 x caption that is no text: a \(longIB_captions\)"),
    ],
)  # fmt: skip
def test_bad_tables(tmp_path, spoil, words):
    spoil(tmp_path)
    with pytest.raises(LabError, match=words):
        recaptioned(tmp_path, "dreamlip")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda root: recaptioned(root, "dreamlap"),
            "no layout 'dreamlap'. Did you mean dreamlip?",
        ),
        (lambda root: recaptioned(root / "nowhere", "dreamlip"), "There is no folder"),
        (lambda root: recaptioned(root, "dreamlip", table="no.csv"), "There is no file"),
        (lambda root: recaptioned(root, "dreamlip", table="cc3m"), "expected a table"),
        (lambda root: recaptioned(root, "dreamlip", split="cc12m"), "begins with 'cc12m'"),
        (lambda root: recaptioned(root, "dreamlip", limit=0), "whole number from 1"),
        (lambda root: recaptioned(root, "sharegpt4v", split="test"), "the splits train and val"),
        (lambda root: recaptioned(root, "sharegpt4v"), 'expected {"image"'),
        (lambda root: open_data("dreamlip"), "say where with root"),
    ],
)
def test_bad_calls(tmp_path, call, words):
    dreamlip(tmp_path)
    with pytest.raises(LabError, match=words):
        call(tmp_path)


def test_parquet_of_several_row_groups_is_read_in_order(tmp_path):
    """More rows than are held at once, and a caption that is missing in one of them."""
    objects = [{"Image Path": f"{n}.jpg", "longIB_captions": f"Told {n}."} for n in range(2500)]
    objects[7]["longIB_captions"] = None
    path = tmp_path / "captions.parquet"
    pd.DataFrame(objects).to_parquet(path, row_group_size=700)
    assert list(read_rows(path)) == [(f"row {n}", row) for n, row in enumerate(objects)]
    draw_pictures(tmp_path, [row["Image Path"] for row in objects[:9]])
    pairs = recaptioned(tmp_path, "dreamlip", limit=9, skip_bad=True)
    assert pairs.long == [f"Told {n}." for n in range(9) if n != 7]
    assert sum(map(len, pairs.skipped.values())) == 1


def test_a_broken_parquet_file_is_named(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(LabError, match=r"t.parquet is not a Parquet file"):
        recaptioned(tmp_path, "dreamlip")


def test_parquet_says_what_it_needs(tmp_path, monkeypatch):
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(LabError, match="pip install pyarrow, or save the table as CSV"):
        recaptioned(tmp_path, "dreamlip")
