"""Image-text pairs on disk: COCO's layout now, other benchmarks and shards as they come.

Whatever the source, a data set is a value with `.images`, `.short`, `.long`, `.captions`,
`.skipped` and `.source`, so that training, evaluation and probing need not know which it is.
"""

from __future__ import annotations

from longclip_lab.data.coco import coco
from longclip_lab.data.coco_boxes import BoxedPictures, BoxedThing, coco_boxes
from longclip_lab.data.known_words import keep_known_words
from longclip_lab.data.pairs import Pairs
from longclip_lab.data.registry import DATA_NAMES, open_data

__all__ = [
    "DATA_NAMES",
    "BoxedPictures",
    "BoxedThing",
    "Pairs",
    "coco",
    "coco_boxes",
    "keep_known_words",
    "open_data",
]
