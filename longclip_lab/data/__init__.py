"""Image-text pairs on disk: COCO's layout, published layouts of long captions, benchmarks, shards.

Whatever the source, a data set is a value with `.images`, `.short`, `.long`, `.captions`,
`.skipped` and `.source`, so that training, evaluation and probing need not know which it is. Only
shards are none: too large for that, they are streamed (`ShardSet`).
"""

from __future__ import annotations

from longclip_lab.data.benchmarks import (
    PROTOCOLS,
    Benchmark,
    Protocol,
    Verification,
    get_protocol,
    open_benchmark,
    statistics,
    verify,
)
from longclip_lab.data.captions import (
    DrawnTexts,
    choose_caption,
    draw_subcaptions,
    draw_texts,
    sample_subcaptions,
)
from longclip_lab.data.coco import BoxedPictures, BoxedThing, coco, coco_boxes
from longclip_lab.data.layouts import LAYOUTS, Columns, recaptioned
from longclip_lab.data.pairs import Pairs, keep_known_words
from longclip_lab.data.registry import DATA_NAMES, open_data
from longclip_lab.data.shards import ShardSet, check_shards, open_shards, write_shards

__all__ = [
    "DATA_NAMES",
    "LAYOUTS",
    "PROTOCOLS",
    "Benchmark",
    "BoxedPictures",
    "BoxedThing",
    "Columns",
    "DrawnTexts",
    "Pairs",
    "Protocol",
    "ShardSet",
    "Verification",
    "check_shards",
    "choose_caption",
    "coco",
    "coco_boxes",
    "draw_subcaptions",
    "draw_texts",
    "get_protocol",
    "keep_known_words",
    "open_benchmark",
    "open_data",
    "open_shards",
    "recaptioned",
    "sample_subcaptions",
    "statistics",
    "verify",
    "write_shards",
]
