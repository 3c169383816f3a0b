"""The towers as training runs them: what is frozen, what decays, how a batch is encoded.

B pairs of one process, T tokens, C features of a text, D embedding, W width of the text tower.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from longclip_lab.models import Clip, encode_corner_tokens, encode_text_tokens
from longclip_lab.models.class_token import can_end_at_class, encode_at_class
from longclip_lab.models.packed import can_pack, encode_packed
from longclip_lab.models.text_tower import encode_tokens, text_tower
from longclip_lab.models.token_features import finish_image, frozen_part, image_states
from longclip_lab.objectives import OBJECTIVES, ImageSide, Settings, Step, TextSide
from longclip_lab.training.batches import Batch, Texts
from longclip_lab.training.recipe import TEXT_PARTS, Recipe
from longclip_lab.training.sharding import is_sharded, local, rows_here

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
SPARED = {"positional_embedding", "pos_embed", "cls_token", "reg_token", "corner_embedding"}
SPARED_TABLES = ("position_embeddings.weight",)
SIGLIP_BIAS = -10.0
"""Where SigLIP starts its bias (Zhai et al. 2023, section 3.2)."""


class Towers(nn.Module):
    """Both towers behind one `forward`, which is what data parallelism needs to wrap.

    `forward` gives the batch as a loss sees it: features (not normalised), tokens where the
    objective compares them, and scale and bias as factors.
    """

    def __init__(self, model: nn.Module, recipe: Recipe):
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.token_wise = needs(recipe, "tokens")
        self.reads_corners = needs(recipe, "corners")

    def train(self, mode: bool = True) -> Towers:
        """Training mode, except for a locked image tower and BatchNorm's running statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, BATCH_NORMS):
                module.eval()
        if self.recipe.lock_image:
            frozen_part(self.model.visual).eval()
        return self

    def forward(self, batch: Batch) -> Step:
        recipe = self.recipe
        device = next(self.model.parameters()).device
        lower = recipe.precision == "bf16"
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=lower):
            image = self.image_side(batch)
            long = None if batch.long is None else self.text_side(batch.long, self.reads_corners)
            short = None
            if batch.short is not None and recipe.objective != "long":
                short = self.text_side(batch.short)
        bias = self.model.logit_bias if needs(recipe, "logit_bias") else None
        settings = Settings(
            short_weight=recipe.short_weight,
            long_weight=recipe.long_weight,
            label_smoothing=recipe.label_smoothing,
            k=recipe.k,
            faithful=recipe.faithful,
            components_of=recipe.components_of,
            reduction=recipe.reduction,
            margin=recipe.margin,
        )
        return Step(image, short, long, self.model.logit_scale.exp(), bias, settings)

    def image_side(self, batch: Batch) -> ImageSide:
        """Features of the pictures: a locked tower's are stored, or made without a graph."""
        visual = self.model.visual
        if batch.stored_BS is not None:
            states = batch.stored_BS.float()
        elif self.recipe.lock_image:
            with torch.no_grad():
                states = image_states(visual, batch.pixels_B3HW, self.token_wise)
        elif self.token_wise:
            states = image_states(visual, batch.pixels_B3HW, tokens=True)
        elif can_end_at_class(visual) and not is_sharded(self):
            return ImageSide(encode_at_class(visual, batch.pixels_B3HW))
        else:
            return ImageSide(self.model.encode_image(batch.pixels_B3HW))
        features = finish_image(visual, states)
        return ImageSide(features.mean(dim=1), features) if self.token_wise else ImageSide(features)

    def text_side(self, texts: Texts, corners: bool = False) -> TextSide:
        """Features of texts; every corner's too where the objective matches them with pictures."""
        recipe = self.recipe
        masks = recipe.mask_duplicates and not recipe.faithful
        identity_B = texts.identity_B if masks else None
        if self.token_wise:
            tokens_BTD, mask_BT = encode_text_tokens(self.model, texts.ids_BT)
            return TextSide(tokens_BTD[:, :1], tokens_BTD, mask_BT, identity_B)
        if not corners and self.packs:
            features = encode_packed(self.model, texts.ids_BT)
        else:
            encode = encode_corner_tokens if corners else encode_tokens
            parts = recipe.text_parts or TEXT_PARTS
            features = encode_in_parts(self.model, texts, parts, encode)
        # Not a view: FSDP2 hangs hooks on what a module returns, and warns of views.
        features_BCD = features if corners else torch.stack([features], dim=1)
        return TextSide(features_BCD, identity_B=identity_B)

    @property
    def packs(self) -> bool:
        """Whether texts run end to end: on a CPU, unless something else works by blocks."""
        by_blocks = self.recipe.text_parts or self.recipe.grad_checkpointing or is_sharded(self)
        on_cpu = self.model.logit_scale.device.type == "cpu"
        return on_cpu and not by_blocks and can_pack(self.model)


def needs(recipe: Recipe, what: str) -> bool:
    """Whether the recipe's objective needs this (`objectives.ObjectiveEntry`)."""
    return what in OBJECTIVES[recipe.objective].needs


def encode_in_parts(
    model: nn.Module,
    texts: Texts,
    parts: int,
    encode: Callable[[nn.Module, torch.Tensor], torch.Tensor] = encode_tokens,
) -> torch.Tensor:
    """Text features [B, D] of a batch, sorted by length and run in `parts` parts.

    Each part is trimmed to its own longest text (`encode_tokens`), so that a few long texts do not
    pad all the others. The features are the same. `encode_corner_tokens` gives [B, C, D].
    """
    order_B = texts.lengths_B.argsort(stable=True)
    size = math.ceil(len(order_B) / parts)
    in_order = torch.cat([encode(model, texts.ids_BT[rows]) for rows in order_B.split(size)])
    return in_order[order_B.argsort()]


def prepare(clip: Clip, recipe: Recipe) -> Towers:
    """Set the model of `clip` up for `recipe`, in place, and wrap it for training."""
    model = clip.model
    if recipe.lock_image:
        model.lock_image_tower()
    _set_scale_and_bias(clip, recipe)
    tower = text_tower(model)
    corner = getattr(tower, "corner", None)
    if corner is not None:
        # Behind the mask a corner moves nothing but its own feature: without a loss on that it
        # has no gradient, which data parallelism would wait for.
        read = needs(recipe, "corners") and recipe.captions != "short"
        tower.corner_embedding.requires_grad_(read or not corner.mask)
    if recipe.grad_checkpointing:
        model.set_grad_checkpointing(True)
    return Towers(model, recipe).train()


def _set_scale_and_bias(clip: Clip, recipe: Recipe) -> None:
    model = clip.model
    start = recipe.start_logit_scale
    if start is None and recipe.faithful:
        start = math.log(100)
    if start is not None:
        with torch.no_grad():
            model.logit_scale.fill_(start)
    bias = getattr(model, "logit_bias", None)
    if not needs(recipe, "logit_bias"):
        if bias is not None:
            bias.requires_grad_(False)
        return
    if recipe.start_logit_bias is not None or bias is None:
        begin = SIGLIP_BIAS if recipe.start_logit_bias is None else recipe.start_logit_bias
        model.logit_bias = nn.Parameter(torch.full_like(model.logit_scale.detach(), begin))
    model.logit_bias.requires_grad_(True)
    clip.card["model_cfg"]["init_logit_bias"] = model.logit_bias.item()


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict]:
    """Trained parameters for AdamW, with and without weight decay.

    `faithful` decays everything, as the official code does. The default spares what has no
    scale to be kept small: norms, biases, the logit scale, positions, class and corner tokens.
    """
    decayed, spared = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_spared = (
            parameter.ndim < 2 or name.rpartition(".")[2] in SPARED or name.endswith(SPARED_TABLES)
        )
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
        if keep:
            # Of a sharded table each process holds some rows.
            self.mine_T = rows_here(self.positions_TW) < keep
            self.kept_KW = local(self.positions_TW.detach())[self.mine_T].clone()

    def clear_gradient(self) -> None:
        if self.positions_TW is not None and self.positions_TW.grad is not None:
            local(self.positions_TW.grad)[self.mine_T] = 0

    def restore(self) -> None:
        if self.positions_TW is not None:
            local(self.positions_TW.detach())[self.mine_T] = self.kept_KW
