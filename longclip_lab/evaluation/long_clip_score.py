"""`LongCLIPScore`: how well pictures and texts of any length fit, as a torchmetrics Metric.

Shapes: N pictures, M texts, D embedding.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from longclip_lab.errors import LabError, LabWarning
from longclip_lab.models import Clip, encode_images, encode_texts
from longclip_lab.models.encoding import Images

try:
    from torchmetrics import Metric
except ImportError as error:
    raise LabError(
        "LongCLIPScore is a metric of torchmetrics, which is not installed: "
        "pip install 'longclip-lab[metrics]'."
    ) from error


class LongCLIPScore(Metric):
    """Mean over pairs of 100 * max(cos(picture, text), 0) (CLIPScore, Hessel et al. 2021, w = 100).

    torchmetrics' `CLIPScore` with any `Clip` of the lab in it, so that a model of 248 positions
    reads 248 tokens. It differs in two things: texts that are longer than the model's context are
    counted (`num_truncated`) and warned of, and every pair is clamped at 0, as the formula says;
    torchmetrics clamps the mean. Several processes add their sums up.

    >>> from longclip_lab import models, world
    >>> metric, pairs = LongCLIPScore(models.new_tiny()), world.pairs(2)
    >>> metric.update(pairs.images, pairs.short)
    >>> 0 <= metric.compute() <= 100
    tensor(True)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 100.0

    total: torch.Tensor
    pairs: torch.Tensor
    truncated: torch.Tensor

    def __init__(self, clip: Clip, batch_size: int = 64, **options: Any) -> None:
        """`options` are those of `torchmetrics.Metric`; the model runs where its weights are."""
        super().__init__(**options)
        # Held beside the module's own children: a metric that is moved or saved leaves it alone.
        self._encoder = (clip, batch_size)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("pairs", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("truncated", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    @property
    def num_truncated(self) -> int:
        """Texts so far that the model could read only the beginning of."""
        return int(self.truncated)

    def update(self, images: Images, texts: str | Sequence[str]) -> None:
        """Add pairs: PIL pictures, paths or uint8 values [N, H, W, 3], and N texts.

        Raises LabError for another number of texts than of pictures and as `encode_images` and
        `encode_texts` do; then nothing is added. Warns (LabWarning) of texts that were cut.
        """
        clip, batch_size = self._encoder
        texts = [texts] if isinstance(texts, str) else list(texts)
        if len(images) != len(texts):
            raise LabError(
                f"Expected a text for each picture, got {len(images)} pictures and "
                f"{len(texts)} texts."
            )
        encoded = encode_texts(clip, texts, batch_size)
        images_ND = encode_images(clip, images, batch_size)
        # In double precision: a sum over a million pairs in float32 would lose digits.
        cosines_N = F.cosine_similarity(images_ND.double(), encoded.features_ND.double(), dim=-1)
        if encoded.num_truncated:
            warnings.warn(
                f"{encoded.num_truncated} of {len(texts)} texts are not read whole "
                f"by {clip.name} ({clip.context_length} tokens): their ends do not count.",
                LabWarning,
                stacklevel=2,
            )
        # CLIPScore's equation: w * max(cos, 0), here with w = 100 a pair, not on the mean.
        self.total += 100 * cosines_N.clamp(min=0).sum().to(self.total)
        self.pairs += len(texts)
        self.truncated += encoded.num_truncated

    def compute(self) -> torch.Tensor:
        """The mean so far, a float scalar from 0 to 100. Raises LabError before any pair."""
        if not self.pairs:
            raise LabError("LongCLIPScore has seen no pictures and texts yet: call update first.")
        # Sums, not means, are added over processes: their batches differ in size.
        return (self.total / self.pairs).float()
