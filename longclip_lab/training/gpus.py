"""What a plan knows about GPUs, their prices, and the times that the papers tell."""

from __future__ import annotations

import re
from dataclasses import dataclass

from longclip_lab.errors import LabError, suggest


@dataclass(frozen=True)
class Gpu:
    """A GPU: dense bfloat16 peak in TFLOP/s, memory in GB (10^9 bytes), assumed dollars an hour."""

    name: str
    tflops: float
    memory: float
    dollars: float


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("H100", 989.0, 80.0, 3.00),
        Gpu("A100", 312.0, 80.0, 1.80),
        Gpu("L4", 121.0, 24.0, 0.80),
        Gpu("4090", 165.2, 24.0, 0.45),
    )
}
"""Peaks and memory from NVIDIA's data sheets (H100 SXM, A100 80 GB, L4, RTX 4090; without
sparsity). Prices are round assumptions of rent on demand: give yours."""

SPOT_PRICE = 0.5
"""Price of a spot machine, as a share of the one on demand: an assumption."""
SPOT_HOURS = 6.0
"""Hours until a spot machine is taken away, on average: an assumption."""
RESTART_MINUTES = 15.0
"""Minutes from then to the first new step: another machine, setup, loading. An assumption."""


@dataclass(frozen=True)
class PublishedTime:
    """What a run took, as its authors tell."""

    what: str
    source: str
    samples: int
    """Pairs that passed, over all epochs."""
    gpu_hours: float

    @property
    def rate(self) -> float:
        """Pairs a second and GPU."""
        return self.samples / self.gpu_hours / 3600


LONGCLIP_TIME = PublishedTime(
    "Long-CLIP, ViT-B/16, an epoch of ShareGPT4V: half an hour on 8 GPUs",
    "issue 99 of Long-CLIP's repository; that it means one epoch is our reading",
    1_245_901,
    8 * 0.5,
)
LOTLIP_TIME = PublishedTime(
    "LoTLIP, ViT-B/16, 10 epochs of 100M pictures: 133 days of an A100",
    "LoTLIP, section 7.5",
    10 * 100_000_000,
    133 * 24.0,
)
PAPERS_RATE = 87.0
"""Pairs a second and GPU that both published times come to. The two models differ in what they
compute, so it may have been the pictures that did not arrive faster; neither paper says."""


def parse_gpus(gpus: str) -> tuple[Gpu, int]:
    """Kind and number from "A100:8"; one without a number.

    Raises LabError for an unknown GPU (near ones are listed) and for another form.
    """
    name, _, count = gpus.partition(":")
    if name not in GPUS:
        raise LabError(f"There is no GPU {name!r} in the list. {suggest(name, GPUS)}")
    if gpus.endswith(":") or not re.fullmatch("[0-9]{0,6}", count) or (count and not int(count)):
        raise LabError(
            f"Expected NAME:COUNT with a count from 1 to 999,999, such as A100:8, got {gpus!r}."
        )
    return GPUS[name], int(count or 1)
