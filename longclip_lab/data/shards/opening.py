"""`open_shards`: a folder of shards anywhere, or several, as one `ShardSet`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longclip_lab.data.shards.manifest import MANIFEST, Manifest, read_manifest, token_facts
from longclip_lab.data.shards.places import content_of, folders_below, joined
from longclip_lab.data.shards.reading import Shard, ShardSet
from longclip_lab.errors import LabError

NAMED = "shards of "
"""What the name of a set begins with."""


def open_shards(url: str | Path) -> ShardSet:
    """The shards in a folder, given by its path or address (s3://, gs://, http://, memory://, ..).

    A folder that holds only folders of shards is all of them joined, in the order of their names.
    Reads the manifests and nothing else. Raises LabError if there are no shards, or if writing them
    was not finished.
    """
    url = str(url)
    content = content_of(joined(url, MANIFEST))
    if content is not None:
        return _shard_set(url, "", read_manifest(content, joined(url, MANIFEST)))
    parts = []
    for folder in folders_below(url):
        where = joined(joined(url, folder), MANIFEST)
        if (content := content_of(where)) is not None:
            parts.append(_shard_set(joined(url, folder), folder, read_manifest(content, where)))
    if not parts:
        raise LabError(
            f"{url} holds no {MANIFEST}, nor does a folder in it. Give a folder that "
            "`longclip-lab data shard` wrote."
        )
    return _joined_sets(parts)


def _shard_set(url: str, folder: str, manifest: Manifest) -> ShardSet:
    if not manifest.finished:
        raise LabError(
            f"The shards in {url} are not all written; the same `longclip-lab data shard` goes on."
        )
    front = f"{folder}/" if folder else ""
    shards = tuple(
        Shard(joined(url, one.name), front + one.name, one.pairs, one.bytes, one.sha256)
        for one in manifest.shards
    )
    source = {
        "dataset": "shards",
        "of": manifest.identity["data"],
        "pairs": manifest.pairs,
        "hash": manifest.hash,
    }
    return ShardSet(
        name=f"{NAMED}{manifest.name}",
        shards=shards,
        source=source,
        skipped=manifest.skipped or {},
        pictures=manifest.pictures,
        tokens=manifest.tokens or {},
        captioners=manifest.captioners or {},
    )


def _joined_sets(parts: Sequence[ShardSet]) -> ShardSet:
    if len({part.pictures for part in parts}) > 1:
        raise LabError("Shards of picture files and of a drawn world cannot be joined.")
    tokenizers = {part.tokens["tokenizer"] for part in parts}
    if len(tokenizers) > 1:
        raise LabError(
            f"The sets' tokens were counted by {' and '.join(sorted(tokenizers))}; write them with "
            "one --tokenizer to join them."
        )
    captioners: Counter[str] = Counter()
    skipped: dict[str, list[str]] = {}
    for part in parts:
        folder = part.shards[0].folder
        captioners.update(part.captioners)
        for reason, names in part.skipped.items():
            skipped.setdefault(reason, []).extend(f"{folder}/{name}" for name in names)
    return ShardSet(
        name=NAMED + " + ".join(part.name.removeprefix(NAMED) for part in parts),
        shards=tuple(shard for part in parts for shard in part.shards),
        source={
            "dataset": "shards",
            "of": [part.source["of"] for part in parts],
            "pairs": sum(map(len, parts)),
            "hash": [part.source["hash"] for part in parts],
        },
        skipped=skipped,
        pictures=parts[0].pictures,
        tokens=_added_tokens([part.tokens for part in parts]),
        captioners=dict(captioners),
    )


def _added_tokens(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    def added(which: str) -> dict[str, Any]:
        texts: Counter[int] = Counter()
        for part in parts:
            counted = part[which]["texts_by_length"].items()
            texts.update({int(length): count for length, count in counted})
        return token_facts(texts)

    return {"tokenizer": parts[0]["tokenizer"], "long": added("long"), "short": added("short")}
