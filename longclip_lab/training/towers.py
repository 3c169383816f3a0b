"""The towers as training runs them: what is frozen, what decays, how a batch is encoded.

B pairs of one process, T tokens, D embedding, W width of the text tower.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from longclip_lab.models import Clip
from longclip_lab.models.text_tower import encode_tokens, text_tower
from longclip_lab.training.batches import Batch, Texts
from longclip_lab.training.recipes import Recipe

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
SPARED = {"positional_embedding", "pos_embed", "cls_token", "reg_token"}


class Towers(nn.Module):
    """Both towers behind one `forward`, which is what data parallelism needs to wrap.

    `forward` gives image, long and short features [B, D], not normalised (short: None for the
    objective "long"), and the logit scale as a factor.
    """

    def __init__(self, model: nn.Module, recipe: Recipe):
        super().__init__()
        self.model = model
        self.recipe = recipe

    def train(self, mode: bool = True) -> Towers:
        """Training mode, except that BatchNorm keeps its running statistics as they are."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, BATCH_NORMS):
                module.eval()
        return self

    def forward(
        self, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]:
        with torch.autocast(
            batch.pixels_B3HW.device.type,
            dtype=torch.bfloat16,
            enabled=self.recipe.precision == "bf16",
        ):
            image_BD = self.model.encode_image(batch.pixels_B3HW)
            long_BD = encode_in_parts(self.model, batch.long, self.recipe.text_parts)
            short_BD = None
            if self.recipe.objective != "long":
                short_BD = encode_in_parts(self.model, batch.short, self.recipe.text_parts)
        return image_BD, long_BD, short_BD, self.model.logit_scale.exp()


def encode_in_parts(model: nn.Module, texts: Texts, parts: int) -> torch.Tensor:
    """Text features [B, D] of a batch, sorted by length and run in `parts` parts.

    Each part is trimmed to its own longest text (`encode_tokens`), so that a few long texts do not
    pad all the others. The features are the same.
    """
    order_B = texts.lengths_B.argsort(stable=True)
    size = math.ceil(len(order_B) / parts)
    sorted_BD = torch.cat(
        [encode_tokens(model, texts.ids_BT[rows]) for rows in order_B.split(size)]
    )
    return sorted_BD[order_B.argsort()]


def prepare(clip: Clip, recipe: Recipe) -> Towers:
    """Set the model of `clip` up for `recipe`, in place, and wrap it for training."""
    start = recipe.start_logit_scale
    if start is None and recipe.faithful:
        start = math.log(100)
    if start is not None:
        with torch.no_grad():
            clip.model.logit_scale.fill_(start)
    if recipe.grad_checkpointing:
        clip.model.set_grad_checkpointing(True)
    return Towers(clip.model, recipe).train()


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict]:
    """Trained parameters for AdamW, with and without weight decay.

    `faithful` decays everything, as the official code does. The default spares what has no
    scale to be kept small: norms, biases, the logit scale, positions and class tokens.
    """
    decayed, spared = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_spared = parameter.ndim < 2 or name.rpartition(".")[2] in SPARED
        (spared if is_spared and not recipe.faithful else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]


class KeptPositions:
    """Holds the positions that stretching kept exactly where they were.

    Their gradient is cleared, so that it counts neither in the norm nor in AdamW's moments, and
    `restore` after a step undoes weight decay. Long-CLIP freezes them in the same way: its
    `positional_embedding` (positions 0 to 19) is not trained, `positional_embedding_res` is.
    """

    def __init__(self, clip: Clip, recipe: Recipe):
        keep = clip.card.get("positions", {}).get("keep", 0) if recipe.freeze_kept else 0
        self.positions_TW = text_tower(clip.model).positional_embedding if keep else None
        self.kept_KW = self.positions_TW.detach()[:keep].clone() if keep else None

    def clear_gradient(self) -> None:
        if self.positions_TW is not None and self.positions_TW.grad is not None:
            self.positions_TW.grad[: len(self.kept_KW)] = 0

    def restore(self) -> None:
        if self.positions_TW is not None:
            with torch.no_grad():
                self.positions_TW[: len(self.kept_KW)] = self.kept_KW
