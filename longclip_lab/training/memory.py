"""What one process holds at the peak of a training step, by formula. Everything in bytes.

The peak is the end of the forward pass: all activations of the towers are there, and beside them
what a step always holds; with gradient caching those of a micro-batch, and not beside the loss. Not
counted: the allocator's fragments, the kernels' own workspace, batches that wait in worker
processes.

G pairs of a global batch, W processes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from longclip_lab.errors import LabError
from longclip_lab.objectives import OBJECTIVES
from longclip_lab.objectives.filip import ROWS_AT_ONCE
from longclip_lab.objectives.siglip import JUDGED_AT_ONCE
from longclip_lab.training.costs import ModelCost, cost_of
from longclip_lab.training.recipe import TEXT_PARTS, Recipe

if TYPE_CHECKING:
    from longclip_lab.models import Clip

FLOAT, HALF = 4, 2
FEATURE_COPIES = 4
"""Features as they come, normalised, and the gradients of both."""
LOGIT_COPIES = 4
"""Tables of logits [G, G] that a loss keeps: scaled, two log-softmaxes, their gradient."""
SHARED_COPIES = 6
"""With several processes these are [G / W, G], of which each direction needs its own three."""
SIMILARITY_COPIES = 3
"""FILIP's similarities of a few pictures: as they are, masked, their gradient."""
SHORT_TOKENS = 32
"""Tokens of a short text where nobody says: an assumption."""


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one process at the peak, by what they are for."""

    weights: int
    """float32 weights, and their bfloat16 copies under autocast."""
    gradients: int
    """float32; twice if DistributedDataParallel keeps its own copy to send."""
    moments: int
    """Both of AdamW's."""
    activations: int
    """What the towers keep of a micro-batch for the backward pass."""
    batch: int
    """The process's pictures, and the features of all pairs."""
    loss: int
    """Tables over all pairs of the global batch."""
    apart: bool = False
    """With gradient caching the loss is done before the activations are there again."""

    @property
    def parts(self) -> dict[str, int]:
        """Every part by its name."""
        return {name: value for name, value in asdict(self).items() if name != "apart"}

    @property
    def total(self) -> int:
        """What is there at the same time."""
        spared = min(self.activations, self.loss) if self.apart else 0
        return sum(self.parts.values()) - spared


def memory_of(clip: Clip, recipe: Recipe, processes: int = 1) -> StepMemory | None:
    """What one of `processes` holds if `clip` is trained by `recipe`; texts as long as are read.

    None for towers whose cost is not known (no plain transformers).
    """
    embed_dim = clip.card["model_cfg"]["embed_dim"]
    try:
        cost = cost_of(clip.model, embed_dim, lock_image=recipe.lock_image)
    except LabError:
        return None
    tokens = min(recipe.token_limit or cost.text.tokens, cost.text.tokens)
    long = tokens + recipe.num_corner
    lengths = text_lengths(recipe, long, min(SHORT_TOKENS, tokens))
    return step_memory(cost, recipe, lengths, processes)


def text_lengths(recipe: Recipe, long: int, short: int) -> list[int]:
    """Tokens of each text of a pair that the recipe reads: the long one's, the short one's."""
    return [long] * (recipe.captions != "short") + [short] * (recipe.captions != "long")


def step_memory(
    cost: ModelCost,
    recipe: Recipe,
    lengths: list[int],
    processes: int = 1,
    micro_batch: int | None = None,
) -> StepMemory:
    """What one of W `processes` holds at the peak, with texts of `lengths` tokens a pair.

    `micro_batch` pairs run at a time, by default the recipe's. Sharded, a process holds 1/W of
    weights, gradients and moments, and whole ones of the layers at work; between micro-batches
    gradients stay whole.
    """
    share = -(-recipe.batch_size // processes)
    size = min(micro_batch or recipe.micro_batch or share, share)
    half = recipe.precision == "bf16"
    sharded = recipe.sharding == "full" and processes > 1
    parts = processes if sharded else 1
    weights = FLOAT * cost.weights // parts + HALF * half * cost.trained
    copies = 2 if processes > 1 and not sharded else 1
    gradients = copies * FLOAT * cost.trained // (1 if size < share else parts)
    if sharded:
        # One layer at work and the next on its way, and what is in no layer.
        weights += FLOAT * (cost.outside + 2 * cost.largest_layer)
    return StepMemory(
        weights=weights,
        gradients=gradients,
        moments=2 * FLOAT * cost.trained // parts,
        activations=size * _kept_of_a_pair(cost, recipe, lengths, half),
        batch=share * _picture(cost, recipe) + _features(cost, recipe, lengths),
        loss=_loss(cost, recipe, lengths, share),
        apart=size < share,
    )


def _kept_of_a_pair(cost: ModelCost, recipe: Recipe, lengths: list[int], half: bool) -> int:
    text, image = cost.text, cost.image
    passes = [(text, length, recipe.text_parts or TEXT_PARTS) for length in lengths]
    if not recipe.lock_image:
        passes.append((image, image.tokens, 1))
    kept = sum(tower.stem_kept * (HALF if half else FLOAT) for tower, _, _ in passes)
    if recipe.grad_checkpointing:
        # Only the layers' inputs; one layer at a time is computed again, texts part by part.
        kept += sum(tower.layers * tokens * tower.width * FLOAT for tower, tokens, _ in passes)
        kept += max(tower.activations(tokens, half) // parts for tower, tokens, parts in passes)
    else:
        kept += sum(tower.layers * tower.activations(tokens, half) for tower, tokens, _ in passes)
    if recipe.lock_image and not recipe.store_features:
        kept += image.activations(half=half)
    return kept


def _picture(cost: ModelCost, recipe: Recipe) -> int:
    """A picture as the step reads it: pixels, or the features that were stored."""
    if recipe.lock_image and recipe.store_features:
        return FLOAT * cost.image.width * (cost.image.tokens if _token_wise(recipe) else 1)
    return FLOAT * 3 * cost.image_size**2


def _features(cost: ModelCost, recipe: Recipe, lengths: list[int]) -> int:
    each = 1 + len(lengths) + recipe.num_corner
    if _token_wise(recipe):
        each = cost.image.tokens + sum(lengths)
    return FEATURE_COPIES * FLOAT * recipe.batch_size * cost.embed_dim * each


def _loss(cost: ModelCost, recipe: Recipe, lengths: list[int], share: int) -> int:
    """`share` pairs of a process against all texts."""
    pairs = recipe.batch_size
    tables = len(lengths) + recipe.num_corner
    if recipe.objective == "siglip":
        return LOGIT_COPIES * FLOAT * min(share * pairs, max(JUDGED_AT_ONCE, pairs)) * tables
    if not _token_wise(recipe):
        copies = LOGIT_COPIES if share == pairs else SHARED_COPIES
        return copies * FLOAT * share * pairs * tables
    logits = LOGIT_COPIES * FLOAT * pairs**2 * tables
    rows = min(ROWS_AT_ONCE, pairs)
    tokens = cost.image.tokens * max(lengths)
    return logits + SIMILARITY_COPIES * FLOAT * rows * pairs * tokens


def _token_wise(recipe: Recipe) -> bool:
    return "tokens" in OBJECTIVES[recipe.objective].needs
