"""The papers' tables as scores on named benchmarks, to stand beside what is measured here.

Only what a paper states of its protocol is stated; what it does not say is left out, not guessed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from longclip_lab.evaluation.comparison import PublishedScore
from longclip_lab.reproduction.paper_tables import PublishedTable, published_table

LOTLIP_SETS: dict[str, tuple[str, dict[str, Any]]] = {
    # Counts: LoTLIP, Table 1.
    "DCI": ("dci-full", {"pictures": 7805, "texts": 7805}),
    "IIW": ("iiw", {"pictures": 612, "texts": 612}),
    "ShareGPT4V-1k": ("sharegpt4v-1k", {"pictures": 1000, "texts": 1000}),
    "ShareGPT4V-10k": ("sharegpt4v-10k", {"pictures": 10_000, "texts": 10_000}),
    "MSCOCO": ("coco-karpathy-5k", {"pictures": 5000, "texts": 25_000}),
    "Flickr30k": ("flickr30k-1k", {"pictures": 1000, "texts": 5000}),
}
"""What LoTLIP's columns are called, the benchmark here, and what the paper says of it."""

LENGTHS = {"LoTLIP": 128}
"""LoTLIP, implementation details; the lengths of the other models in its tables are not stated."""


CONTAMINATED = {
    ("Long-CLIP", "sharegpt4v-10k"): "Long-CLIP was fine-tuned on ShareGPT4V except ShareGPT4V-1k "
    "(LoTLIP, footnote of Table 4)",
}


def published_scores() -> list[PublishedScore]:
    """Every number of the transcribed tables that compare models on benchmarks of the lab.

    LoTLIP's Tables 4 and 5, and Tables 1 and 2 of Long-CLIP's supplement. The ablations, of models
    that nobody else has, are not among them.
    """
    return [*_lotlip("lotlip/table4"), *_lotlip("lotlip/table5"), *_urban()]


def _lotlip(name: str) -> Iterator[PublishedScore]:
    table = published_table(name)
    for row in table.rows:
        model = str(row.labels["model"])
        data = "+".join(str(row.labels[kind]) for kind in ("short texts", "long texts")
                        if row.labels[kind])  # fmt: skip
        for column, value in row.values.items():
            benchmark, score, stated = _of_column(column)
            if benchmark:
                length = {"length": LENGTHS[model]} if model in LENGTHS else {}
                trained = CONTAMINATED.get((model, benchmark), "")
                yield _score(
                    f"{model}, {data}", table, benchmark, score, value, stated | length, trained
                )


def _of_column(column: str) -> tuple[str, str, dict[str, Any]]:
    """Benchmark, score and stated conditions of a column such as "DCI T2I", "MSCOCO I2T R@5"."""
    if column == "ImageNet":
        return "imagenet", "top-1", {}
    dataset, _, rest = column.partition(" ")
    if dataset not in LOTLIP_SETS:
        return "", "", {}
    benchmark, stated = LOTLIP_SETS[dataset]
    way, _, k = rest.partition(" ")
    return benchmark, f"{way.lower()} {k or 'R@1'}", stated


def _urban() -> Iterator[PublishedScore]:
    places = {"longclip/supplement-table1": "urban1k", "longclip/supplement-table2": "urban200"}
    for name, benchmark in places.items():
        table = published_table(name)
        for row in table.rows:
            model = str(row.labels["model"])
            detail = row.labels.get("architecture") or row.labels.get("training data")
            for column, value in row.values.items():
                # The supplement's text gives Urban-1k's size and says that cosines are ranked.
                size = {"pictures": 1000, "texts": 1000} if benchmark == "urban1k" else {}
                stated = {"similarity": "pooled", **size}
                score = f"{column.lower()} R@1"
                yield _score(f"{model}, {detail}", table, benchmark, score, value, stated)


def _score(
    model: str,
    table: PublishedTable,
    benchmark: str,
    score: str,
    value: float,
    stated: dict[str, Any],
    contaminated: str = "",
) -> PublishedScore:
    return PublishedScore(model, table.source, benchmark, score, value / 100, stated, contaminated)
