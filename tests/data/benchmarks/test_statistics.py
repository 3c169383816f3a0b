"""LoTLIP's Tables 1 and 6: counted from the texts alone, as they are published."""

from __future__ import annotations

import json

import pytest

from longclip_lab.data import statistics
from longclip_lab.errors import LabError
from longclip_lab.text import get_tokenizer


def test_counts_are_those_of_the_published_texts(layout, root):
    (row,) = statistics(root, [layout.protocol]).rows
    assert (row.images, row.texts) == (3, layout.protocol.num_texts)
    texts = [text for _, of_picture in layout.entries for text in of_picture]
    bert = get_tokenizer("bert")
    tokens = sum(len(bert.tokenize(text).ids) for text in texts) / len(texts)
    assert row.tokens_per_text == pytest.approx(tokens)
    # "A red boat", "It is 3", "5 m long", "A lake, 0": LoTLIP's rule splits at every full stop.
    # Of a list of several captions each "Boat 0, 0." is one.
    assert row.subcaptions_per_text == (1 if len(texts) > 3 else 4)
    assert not row.partial


def test_pictures_are_not_needed(layout, root):
    before = statistics(root, [layout.name])
    for path in list(root.rglob("*.jpg")):
        path.unlink()
    assert statistics(root, [layout.name]) == before


@pytest.mark.layouts("iiw")
def test_what_is_found_is_counted_without_names(layout, tmp_path):
    layout.write(tmp_path / "imageinwords", layout.entries)
    (row,) = statistics(tmp_path).rows
    assert row.name == "iiw"
    assert row.partial  # 3 of 612


@pytest.mark.layouts("docci")
def test_the_share_that_is_cut(layout, tmp_path):
    # "boat" is one of CLIP's tokens: with start and end 77, 78, 130 and 249 of them.
    counts = {"1.jpg": 75, "2.jpg": 76, "10.jpg": 128, "11.jpg": 247}
    layout.write(tmp_path, [(name, [" ".join(["boat"] * n)]) for name, n in counts.items()])
    (row,) = statistics(tmp_path, ["docci"]).rows
    assert row.cut == {77: 3 / 4, 128: 2 / 4, 248: 1 / 4}
    assert row.to_dict()["share_longer_than_248"] == 0.25
    assert statistics(tmp_path, ["docci"]).table()[">77 %"].tolist() == [75.0]


@pytest.mark.layouts("urban1k")
def test_an_empty_caption_is_left_out_and_told(root):
    (root / "caption" / "10.txt").write_text("\n")
    (row,) = statistics(root, ["urban1k"]).rows
    assert row.texts == 2
    assert row.skipped == {"empty caption": ["image/10.jpg (caption/10.txt)"]}
    json.dumps(row.to_dict())


@pytest.mark.layouts("sharegpt4v-1k")
def test_a_training_set_is_counted_whole(root):
    (row,) = statistics(root, ["sharegpt4v"]).rows
    assert row.texts == 4  # the entry behind the benchmark's too


def test_raw_and_long_captions_of_a_table_apart(tmp_path):
    rows = ['"Image Path","raw_caption","longSV_captions","longIB_captions"']
    rows += ['a.jpg,a dog,"A dog. It runs.",A dog.', 'b.jpg,a cat,"A cat. It sits.",A cat.']
    (tmp_path / "cc3m_captions.csv").write_text("\n".join(rows) + "\n")
    raw, long = statistics(tmp_path, ["dreamlip"]).rows
    assert (raw.name, raw.images, raw.texts) == ("cc3m_captions: raw", 2, 2)
    assert (long.name, long.images, long.texts) == ("cc3m_captions: long", 2, 4)
    assert (raw.subcaptions_per_text, long.subcaptions_per_text) == (1.0, 1.5)
    assert not raw.partial


def test_bad_names_and_roots(tmp_path):
    with pytest.raises(LabError, match="holds no texts of a benchmark"):
        statistics(tmp_path)
    with pytest.raises(LabError, match="Did you mean urban1k"):
        statistics(tmp_path, ["urban1"])
    with pytest.raises(LabError, match="has class names, not texts"):
        statistics(tmp_path, ["cifar10"])
    with pytest.raises(LabError, match="no table"):
        statistics(tmp_path, ["lotlip"])
