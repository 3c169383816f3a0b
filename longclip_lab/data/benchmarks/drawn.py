"""The drawn world's own benchmarks: nothing to download, the same pictures everywhere.

Every picture set is held out: test pictures come from world.TEST_SEED, which no training set uses.
"""

from __future__ import annotations

from functools import lru_cache

from longclip_lab import world
from longclip_lab.data.benchmarks.protocol import Benchmark, Protocol

POOL = 1000
"""Pictures in a pool of the world. R@1 at 1,000 has a standard error of up to 1.6 points."""
SIBLINGS = 4
"""Pictures of the long captions' pool that share a summary and differ only in details."""

_SCENES = f"{POOL:,} pictures of the drawn world, seed {world.TEST_SEED}"


def _drawn(name: str, **facts) -> Protocol:
    return Protocol(
        name=f"world/{name}",
        num_images=POOL,
        users=("longclip_lab",),
        get=("nothing to download: it is drawn when it is opened",),
        licence="Apache-2.0, as this library",
        layout="none",
        sources=("longclip_lab.world",),
        reader="drawn",
        **facts,
    )


def _attribute(attribute: str) -> Protocol:
    names = tuple(world.classes(attribute))
    return _drawn(
        attribute,
        task="classification",
        about="Zero-shot: one large or medium thing a picture.",
        images=f"{_SCENES}, of single things",
        texts=f"the {len(names)} classes of the world's {attribute}, templates averaged",
        num_texts=len(names) * len(world.TEMPLATES),
        text_field="class name",
        prompts="world",
        classes=f"world {attribute}",
        options={"set": "single", "attribute": attribute},
    )


DRAWN = (
    _drawn(
        "long-retrieval",
        task="retrieval",
        about=f"{SIBLINGS} pictures share each summary: who reads only that is right one time in "
        f"{SIBLINGS}.",
        images=f"{_SCENES}, {SIBLINGS} with each summary",
        texts="one long caption a picture, 100 to 200 tokens",
        num_texts=POOL,
        texts_per_image=1,
        text_field="long",
        options={"set": "siblings"},
    ),
    _drawn(
        "short-retrieval",
        task="retrieval",
        about="Every summary is unique.",
        images=_SCENES,
        texts="one summary a picture",
        num_texts=POOL,
        texts_per_image=1,
        text_field="captions",
        options={"set": "pairs"},
    ),
    _attribute("kind"),
    _attribute("colour"),
)


def open_drawn(protocol: Protocol) -> Benchmark:
    """The benchmark of one of `DRAWN`."""
    if protocol.task == "classification":
        single = _single()
        return Benchmark(
            protocol,
            single.images,
            labels=single.labels[protocol.options["attribute"]],
            class_names=protocol.class_names,
            templates=protocol.templates,
            source=dict(single.source),
        )
    siblings = protocol.options["set"] == "siblings"
    pairs = _pairs(SIBLINGS if siblings else 1)
    return Benchmark(
        protocol,
        pairs.images,
        texts=list(pairs.long if siblings else pairs.short),
        image_of_text=list(range(len(pairs))),
        source=dict(pairs.source),
    )


@lru_cache(maxsize=2)
def _pairs(siblings: int) -> world.WorldPairs:
    return world.pairs(POOL, seed=world.TEST_SEED, siblings=siblings)


@lru_cache(maxsize=1)
def _single() -> world.SingleObjects:
    return world.single_objects(POOL, seed=world.TEST_SEED)
