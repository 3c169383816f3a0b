"""The transcription, checked by the sums, averages and differences that the papers print."""

from __future__ import annotations

import math
from statistics import fmean

import pytest

from longclip_lab.errors import LabError
from longclip_lab.reproduction.experiment import (
    published_statements,
    published_table,
    published_tables,
)

LONG3 = [f"{s} {way}" for s in ("DCI", "IIW", "ShareGPT4V-10k") for way in ("T2I", "I2T")]
LONG4 = [*LONG3, "ShareGPT4V-1k T2I", "ShareGPT4V-1k I2T"]
MSCOCO = ["MSCOCO T2I", "MSCOCO I2T"]
SHORT_AT_1 = [f"{s} {way} R@1" for s in ("MSCOCO", "Flickr30k") for way in ("I2T", "T2I")]


def mean(table: str, columns: list[str], **labels) -> float:
    return fmean(published_table(table).value(column, **labels) for column in columns)


def test_every_table_is_there():
    names = [f"lotlip/table{n}" for n in range(1, 12)]
    names += [f"longclip/supplement-table{n}" for n in range(1, 5)]
    assert set(published_tables()) == set(names)
    assert [name for name in published_tables() if name.startswith("lotlip")] == names[:11]
    for table in published_tables().values():
        assert table.source.endswith(table.table)
        assert all(math.isfinite(value) for row in table.rows for value in row.values.values())


@pytest.mark.parametrize(("name", "lines"), [("lotlip/table4", 11), ("lotlip/table10", 17)])
def test_printed_averages(name, lines):
    rows = published_table(name).rows
    assert len(rows) == lines
    for row in rows:
        average = fmean(row.values[column] for column in LONG4)
        # Printed rounded or cut after the second decimal.
        assert row.values["Avg"] - 0.005 <= average + 1e-9
        assert average < row.values["Avg"] + 0.01


@pytest.mark.parametrize(
    ("name", "table", "columns", "better", "worse"),
    [
        ("gain-over-lit-long", "lotlip/table2", LONG3, {"method": "LoTLIP"},
         {"method": "LiT", "long_texts": True}),
        ("gain-over-lit-longclip-long", "lotlip/table2", LONG3, {"method": "LoTLIP"},
         {"method": "LiT+Long-CLIP"}),
        ("gain-over-lit-mscoco", "lotlip/table2", MSCOCO, {"method": "LoTLIP"},
         {"method": "LiT", "long_texts": True}),
        ("gain-over-lit-imagenet", "lotlip/table2", ["ImageNet"], {"method": "LoTLIP"},
         {"method": "LiT", "long_texts": True}),
        ("gain-3m-long", "lotlip/table4", ["Avg"], {"model": "LoTLIP", "short_texts": "3M"},
         {"model": "LiT", "short_texts": "3M"}),
        ("gain-3m-imagenet", "lotlip/table5", ["ImageNet"],
         {"model": "LoTLIP", "short_texts": "3M"}, {"model": "LiT", "short_texts": "3M"}),
        ("gain-3m-short", "lotlip/table5", SHORT_AT_1,
         {"model": "LoTLIP", "short_texts": "3M"}, {"model": "LiT", "short_texts": "3M"}),
        ("gain-over-siglip", "lotlip/table4", ["Avg"],
         {"model": "LoTLIP", "short_texts": "100M"}, {"model": "SigLIP", "short_texts": "12B"}),
        ("gain-over-longclip", "lotlip/table4", ["Avg"],
         {"model": "LoTLIP", "short_texts": "100M"}, {"model": "Long-CLIP"}),
    ],
)  # fmt: skip
def test_differences_that_the_text_states(name, table, columns, better, worse):
    gain = mean(table, columns, **better) - mean(table, columns, **worse)
    assert gain == pytest.approx(published_statements()[name].value, abs=0.0051)


def test_the_same_model_has_the_same_numbers_everywhere():
    """LoTLIP with 2 corners on 3M stands in seven tables, and its baselines in several."""
    shared = [*LONG3, *MSCOCO, "ImageNet"]

    def line(name: str, **labels) -> list[float]:
        return [published_table(name).value(column, **labels) for column in shared]

    lotlip = line("lotlip/table2", method="LoTLIP")
    assert lotlip == line("lotlip/table3", corner_tokens=2, mask=True)
    assert lotlip == line("lotlip/table7", added_tokens="Corner")
    assert lotlip == line("lotlip/table9", captions_by="All")
    lit_long = line("lotlip/table2", method="LiT", long_texts=True)
    assert lit_long == line("lotlip/table3", corner_tokens=0)
    assert lit_long == line("lotlip/table7", added_tokens=None)
    for small, large in (("lotlip/table4", "lotlip/table10"), ("lotlip/table5", "lotlip/table11")):
        rows = {
            (row.labels["short texts"], row.labels["model"]): row
            for row in published_table(small).rows
        }
        for row in published_table(large).rows:
            key = (row.labels["data"].split("+")[0], row.labels["model"])
            if row.labels["architecture"] == "ViT-B/16" and key in rows:
                assert row.values == rows[key].values
                del rows[key]
        assert {model for _, model in rows} == {"FILIP", "LaCLIP", "SigLIP", "CLIP", "ALIGN"}


def test_the_scales_add_up():
    pairs = published_table("lotlip/table6")
    sources = ("CC3M", "CC12M", "YFCC15M", "LAION47M", "COYO24M")
    images = sum(pairs.value("images", dataset=source) for source in sources)
    assert images == pairs.value("images", dataset="LoTLIP")
    assert 3 * images == pairs.value("texts", dataset="LoTLIP")
    for dataset in ("DCI", "IIW"):
        for column in ("images", "texts", "sub-captions per text", "tokens per text"):
            evaluated = published_table("lotlip/table1").value(column, dataset=dataset)
            assert evaluated == pairs.value(column, dataset=dataset)


def test_frames_have_labels_and_columns():
    frame = published_table("lotlip/table3").to_frame()
    assert frame.shape == (7, 11)
    assert list(frame.columns[:2]) == ["corner tokens", "mask"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: published_table("lotlip/table33"), "No table .* Did you mean lotlip/table3"),
        (lambda: published_table("lotlip/table2").value("DCI"), "no column 'DCI'"),
        (lambda: published_table("lotlip/table2").value("DCI T2I", method="LiT"), "2 lines have"),
        (lambda: published_table("lotlip/table2").value("DCI T2I", method="CLIP"), "0 lines have"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(LabError, match=words):
        call()
