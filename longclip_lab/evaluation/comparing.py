"""Which conditions a score was measured under, and in what two scores differ.

Numbers under one name are often of different pictures, lengths or rules (see `aspects`). Two
records with any difference are not two measurements of the same thing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from longclip_lab.data.benchmarks import differing_facts
from longclip_lab.evaluation.records import Record

UNKNOWN = None
"""The value of an aspect that is not stated."""


def aspects(record: Record) -> dict[str, Any]:
    """What a score depends on apart from the weights, by name; None for what is not stated.

    "data" is the hash of pictures and texts: it tells sets apart that agree in everything named.
    """
    facts = record.facts
    return {
        "benchmark": record.protocol,
        "split": facts.get("split", record.source.get("split", UNKNOWN)),
        "pictures": record.counts.get("images"),
        "texts": record.counts.get("texts"),
        "text field": facts.get("text_field", UNKNOWN),
        "text processing": facts.get("text_processing", UNKNOWN),
        "words left out": record.source.get("words", {}).get("left_out", 0),
        "templates": _templates(record.settings.get("templates")),
        "length": record.length,
        "resolution": record.resolution,
        "dtype": record.dtype,
        "tie": record.settings.get("tie"),
        "similarity": record.settings.get("similarity", "pooled"),
        "partial": record.partial,
        "data": record.data_hash,
    }


def _templates(templates: list[str] | None) -> str | None:
    return f"{len(templates)}, from {templates[0]!r}" if templates else UNKNOWN


def comparable(one: Record, other: Record) -> list[str]:
    """Every difference between the conditions of two records, by name; [] if there is none.

    Whatever two protocols say differently comes first, then `aspects`; the data's hash counts only
    where nothing else tells the data apart.
    """
    facts = differing_facts(one.facts, other.facts) if one.facts and other.facts else []
    named = {difference.split(":")[0] for difference in facts}
    mine, theirs = (
        {**aspects(record), "image reading": record.settings.get("images")}
        for record in (one, other)
    )
    found = [
        f"{name}: {told(mine[name])} against {told(theirs[name])}"
        for name in differing(mine, theirs)
        if name not in named and not (name == "data" and facts)
    ]
    return facts + found


def differing(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Names of the aspects that two scores do not share; one that is not stated is not shared."""
    names = [name for name in mine if mine[name] != theirs.get(name)]
    of_data = {"pictures", "texts", "words left out", "partial", "benchmark", "templates"}
    return [name for name in names if name != "data" or not of_data & set(names)]


def told(value: Any) -> str:
    """The value of an aspect in words."""
    if value is UNKNOWN:
        return "not stated"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
