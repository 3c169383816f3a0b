"""Which function reads which layout."""

from __future__ import annotations

from collections.abc import Callable

from longclip_lab.data.benchmarks import captioned, classified, described
from longclip_lab.data.benchmarks.found import Found
from longclip_lab.data.benchmarks.places import Place
from longclip_lab.data.benchmarks.protocol import Protocol

READERS: dict[str, Callable[[Place, Protocol], Found]] = {
    "urban": captioned.read_urban,
    "coco": captioned.read_coco,
    "karpathy": captioned.read_karpathy,
    "flickr": captioned.read_flickr,
    "sharegpt4v": described.read_sharegpt4v,
    "dci": described.read_dci,
    "long-dci": described.read_long_dci,
    "imageinwords": described.read_imageinwords,
    "docci": described.read_docci,
    "folders": classified.read_folders,
    "cifar": classified.read_cifar,
}
