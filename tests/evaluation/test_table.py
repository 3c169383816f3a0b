"""Differences of protocol by name, contamination, and the table that shows them."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longclip_lab.data.benchmarks import get_protocol
from longclip_lab.errors import LabError
from longclip_lab.evaluation import (
    Interval,
    PublishedScore,
    Record,
    at_length,
    comparable,
    contamination,
    score_table,
)
from longclip_lab.evaluation.records import aspects
from longclip_lab.models import encode_texts, load, new_tiny
from longclip_lab.reproduction.experiment import published_scores
from longclip_lab.views.tables import score_table_page

LENGTHS = ("length", "split", "pictures", "dtype", "resolution", "tie", "partial", "templates")


def record(model="A", benchmark="urban1k", r1=0.5, **changes) -> Record:
    """A record of 1,000 pictures as `eval` writes it."""
    settings = {"tie": "pessimistic", "bootstrap": 1000, "similarity": "pooled"}
    values = {
        "protocol": benchmark,
        "model": model,
        "model_hash": f"hash of {model}",
        "data_hash": "data",
        "scores": {
            "i2t R@1": Interval(r1, r1 - 0.03, r1 + 0.03, 1000),
            "t2i R@1": Interval(r1 - 0.1, r1 - 0.13, r1 - 0.07, 1000),
        },
        "counts": {"images": 1000, "texts": 1000, "different texts": 1000},
        "num_truncated": 0,
        "share_truncated": 0.0,
        "skipped": {},
        "settings": settings | changes.pop("settings", {}),
        "source": {},
        "seed": 0,
        "device": "cpu",
        "dtype": "float32",
        "seconds": 1.0,
        "length": 248,
        "resolution": 224,
        "facts": get_protocol(benchmark).facts(),
    }
    return Record(**(values | changes))


def changed(name: str) -> Record:
    """The record with one condition different."""
    facts = get_protocol("urban1k").facts()
    return {
        "length": record(length=77),
        "split": record(facts=facts | {"split": "train"}),
        "pictures": record(counts={"images": 999, "texts": 1000, "different texts": 1000}),
        "dtype": record(dtype="float16"),
        "resolution": record(resolution=336),
        "tie": record(settings={"tie": "optimistic"}),
        "partial": record(partial=True),
        "templates": record(settings={"templates": ["a {}."]}),
    }[name]


@pytest.mark.parametrize("name", LENGTHS)
def test_every_difference_is_named(name):
    [difference] = comparable(record(), changed(name))
    assert difference.startswith(f"{name}:")
    assert comparable(changed(name), changed(name)) == []


def test_other_pictures_under_the_same_description_are_found_by_their_hash():
    assert comparable(record(), record(data_hash="other")) == ["data: data against other"]


def test_two_protocols_differ_in_what_they_say():
    found = comparable(record(benchmark="urban1k"), record(benchmark="docci"))
    assert any(difference.startswith("num images: 1,000 against 5,000") for difference in found)
    assert any(difference.startswith("benchmark:") for difference in found)


@given(st.lists(st.sampled_from(LENGTHS), max_size=4))
def test_no_two_scores_that_differ_share_a_column_without_a_note(names):
    records = [record(), *(replace(changed(n), model=f"M{i}") for i, n in enumerate(names))]
    table = score_table(records)
    unmarked = [
        one
        for one, row in zip(records, table.rows, strict=True)
        if not row.cells["urban1k", "i2t R@1"].notes
    ]
    assert all(comparable(unmarked[0], other) == [] for other in unmarked)
    for one, row in zip(records, table.rows, strict=True):
        said = " ".join(table.notes[n - 1] for n in row.cells["urban1k", "i2t R@1"].notes)
        reference = table.references["urban1k", "i2t R@1"]
        for name in ("length", "split", "pictures", "dtype", "resolution", "tie", "partial"):
            assert (f"{name}:" in said) == (aspects(one)[name] != reference[name])


@pytest.mark.parametrize(
    ("card", "sets", "state"),
    [
        ({"trained_on": "WIT, then ShareGPT4V"}, ["sharegpt4v"], "yes"),
        ({"trained_on": "WIT, then ShareGPT4V"}, ["sharegpt4v/all"], "unknown"),
        ({"trained_on": "openai"}, ["sharegpt4v"], "unknown"),
        ({"trained_on": "not stated in the file"}, ["sharegpt4v"], "unknown"),
        ({}, ["sharegpt4v"], "unknown"),
        ({"trained_on": None}, ["sharegpt4v"], "no"),
        ({"trained_on": "world web captions"}, ["coco/train2017", "sharegpt4v"], "no"),
        ({"trained_on": "COCO train2017"}, ["coco/train2017"], "yes"),
        ({"trained_on": "MSCOCO 2017 and CC3M"}, ["coco"], "yes"),
        ({"trained_on": "Share-GPT4V"}, ["sharegpt4v"], "yes"),
        ({"trained_on": "a red circle"}, ["dci"], "unknown"),
        ({"trained_on": "DCI, tested on IIW"}, ["dci/test"], "unknown"),
    ],
)
def test_contamination_is_what_the_card_says(card, sets, state):
    assert contamination(card, sets).state == state


@pytest.mark.parametrize(
    ("data", "sets", "state"),
    [
        ({"dataset": "sharegpt4v"}, ["sharegpt4v"], "yes"),
        ({"dataset": "sharegpt4v"}, ["sharegpt4v/all"], "unknown"),
        ({"dataset": "coco", "split": "train2017"}, ["coco/train2017"], "yes"),
        ({"dataset": "coco", "split": "val2017"}, ["coco/train2017"], "no"),
        ({"dataset": "world"}, ["sharegpt4v"], "no"),
    ],
)
def test_contamination_by_a_run_of_the_lab(data, sets, state):
    card = {"trained_on": None, "fine_tuned": [{"data": data}]}
    assert contamination(card, sets).state == state
    assert contamination(card, []) is None


def test_a_contaminated_model_is_marked_in_the_table():
    sets = get_protocol("sharegpt4v-10k").contaminated_by
    cards = {"A": "ShareGPT4V", "B": "openai", "C": None}
    records = [
        record(m, "sharegpt4v-10k", contamination=contamination({"trained_on": on}, sets).to_dict())
        for m, on in cards.items()
    ]
    table = score_table(records)
    marks = [
        [table.notes[n - 1].split(":")[0] for n in row.cells["sharegpt4v-10k", "i2t R@1"].notes]
        for row in table.rows
    ]
    named = [[m for m in some if m.startswith("contam")] for some in marks]
    assert named == [["contaminated"], ["contamination unknown"], []]


def test_published_numbers_stand_beside_ours_with_what_they_do_not_state():
    table = score_table([record("tiny", "urban1k"), record("tiny", "iiw")], published_scores())
    published = {row.model: row for row in table.rows if row.published}
    cell = published["Long-CLIP, ViT-B/16"].cells["urban1k", "i2t R@1"]
    assert cell.score.value == 0.789
    said = [table.notes[note - 1] for note in cell.notes]
    assert len(said) == 1
    assert said[0].startswith("not stated by the paper: ")
    assert {"length", "dtype", "tie"} <= set(said[0].split(": ")[1].split(", "))
    lotlip = published["LoTLIP, 3M+3M"].cells["iiw", "t2i R@1"]
    assert lotlip.score.value == 0.8497
    assert "length: 128, where the column has 248" in [table.notes[n - 1] for n in lotlip.notes]


def test_a_published_number_of_a_contaminated_model_is_marked():
    table = score_table([record("tiny", "sharegpt4v-10k")], published_scores())
    column = ("sharegpt4v-10k", "i2t R@1")
    marked = {
        row.model
        for row in table.rows
        if any(table.notes[n - 1].startswith("contaminated") for n in row.cells[column].notes)
    }
    assert marked == {"Long-CLIP, 400M+1M"}


def test_the_published_scores_are_of_benchmarks_that_there_are():
    scores = published_scores()
    assert len({(s.model, s.source, s.benchmark, s.score) for s in scores}) == len(scores)
    for one in scores:
        assert get_protocol(one.benchmark)
        assert 0 < one.value < 1


def test_markdown_csv_and_html_say_the_same():
    published = [PublishedScore("P|Q", "a paper", "urban1k", "i2t R@1", 0.7, {"length": 77})]
    table = score_table([record("<A>"), record("B", length=77)], published)
    markdown, page = table.to_markdown(), score_table_page(table)
    rows = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert [row["kind"] for row in rows] == ["measured"] * 4 + ["published"]
    assert [float(row["percent"]) for row in rows if row["score"] == "i2t R@1"] == [50, 50, 70]
    assert rows[2]["notes"] == "length: 77, where the column has 248"
    assert "| B | 77 | 50.0 ±3.0 <sup>1</sup> |" in markdown
    assert "1. length: 77, where the column has 248" in markdown
    assert r"P\|Q (a paper)" in markdown
    assert "&lt;A&gt;" in page
    assert "<A>" not in page
    assert not re.search(r"(src|href)=\"(?!#)", page)
    for number, note in enumerate(table.notes, start=1):
        assert f'id="note-{number}"' in page
        assert note in markdown


def test_a_second_record_of_the_same_run_is_not_lost():
    table = score_table([record("A"), record("A", r1=0.6, data_hash="other")])
    assert len(table.rows) == 2


def test_nothing_to_show():
    with pytest.raises(LabError, match="at least one record"):
        score_table([])
    with pytest.raises(LabError, match=r"No record has any of top-3; they have i2t R@1, t2i R@1"):
        score_table([record()], scores=["top-3"])


def test_a_text_cut_at_a_length_is_the_text_with_fewer_words():
    clip = load("tiny")
    short = at_length(clip, 6)
    cut = encode_texts(short, ["a red boat and a tree.", "a boat."])
    whole = encode_texts(clip, ["a red boat and", "a boat."])
    torch.testing.assert_close(cut.features_ND, whole.features_ND)
    assert (cut.num_truncated, cut.lengths_N.tolist()) == (1, [6, 5])
    assert at_length(clip, None) is at_length(clip, 77) is clip


@pytest.mark.parametrize("length", [2, 78])
def test_a_length_the_model_does_not_read(length):
    with pytest.raises(LabError, match=f"3 to 77 tokens of a text; .* at {length}"):
        at_length(new_tiny(), length)
