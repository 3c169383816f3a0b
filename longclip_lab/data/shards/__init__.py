"""Data at scale: webdataset tars with checksums, a manifest, and an order to train in.

Written once from any data set (`write_shards`), read from anywhere as streams (`open_shards`).
"""

from __future__ import annotations

from longclip_lab.data.shards.format import Broken, PairTexts, Sample
from longclip_lab.data.shards.order import Order, Piece, Window, stand_ins
from longclip_lab.data.shards.read import Shard, ShardCheck, ShardSet, check_shards, open_shards
from longclip_lab.data.shards.write import write_shards

__all__ = [
    "Broken", "Order", "PairTexts", "Piece", "Sample", "Shard", "ShardCheck", "ShardSet", "Window",
    "check_shards", "open_shards", "stand_ins", "write_shards",
]  # fmt: skip
