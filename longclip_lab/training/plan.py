"""How long a run takes, what it holds and what it costs, before it is started.

L layers, W width, I inner width of a layer, T tokens.

The peak is the end of the forward pass: all activations of the towers are there, and beside them
what a step always holds; with gradient caching those of a micro-batch, and not beside the loss. Not
counted: the allocator's fragments, the kernels' own workspace, batches that wait in worker
processes.

G pairs of a global batch, W processes.

Everything follows from the recipe by formula (`costs`, `memory`) and from assumptions, which a plan
carries with it and prints. Two times are told: what the arithmetic takes if pictures arrive fast
enough, and what it takes at the rate of both papers. A budget lies between them until somebody has
measured how fast pictures arrive (`arriving`).
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import open_clip
import torch
import transformers
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import nn

from longclip_lab.errors import COUNT, LabError, Numbers, suggest
from longclip_lab.models.build import build_model, config_of_towers, world_bert
from longclip_lab.objectives import OBJECTIVES
from longclip_lab.objectives.contrastive import JUDGED_AT_ONCE, ROWS_AT_ONCE
from longclip_lab.training.recipe import TEXT_PARTS, Recipe

if TYPE_CHECKING:
    import pandas as pd

    from longclip_lab.models import Clip


# --- What a plan knows about GPUs, their prices, and the times that the papers tell ---


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


# --- What a step of training computes and holds, by formula: operations and bytes ---

BERTS = {
    "bert-base-uncased": transformers.BertConfig,
    "minilm": lambda: transformers.BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    ),
    "world": world_bert,
}
"""Sizes of the recipes' text towers, so that a plan needs neither weights nor a network."""


@dataclass(frozen=True)
class TowerCost:
    """The sizes of a transformer that its cost depends on.

    `tokens` is what one item has, `stem` the operations before the first layer and `stem_kept` the
    numbers that these keep for the backward pass; `weights` is how many it has in all,
    `layer_weights` how many in one layer.
    """

    layers: int
    width: int
    inner: int
    tokens: int
    stem: int
    weights: int
    layer_weights: int
    stem_kept: int = 0

    def flops(self, tokens: int | None = None) -> int:
        """Operations of a forward pass of one item, a multiply-add counted as two.

        L (8 T W^2 + 4 T^2 W + 4 T W I) and the stem, as `models.text_flops` counts.
        """
        count = self.tokens if tokens is None else tokens
        layer = 8 * count * self.width**2 + 4 * count**2 * self.width
        return self.layers * (layer + 4 * count * self.width * self.inner) + self.stem

    def activations(self, tokens: int | None = None, half: bool = False) -> int:
        """Bytes that one layer keeps of one item for the backward pass.

        Kept are the residual twice, two normed copies, queries, keys, values, what attention gives,
        and the inner layer before and after its activation; no table of attention weights (the
        fused kernels keep none). `half`: under bfloat16 autocast only the residuals stay float32.
        """
        count = self.tokens if tokens is None else tokens
        others = 6 + 2 * self.inner / self.width
        each = 8 + 2 * others if half else 4 * (2 + others)
        return round(count * self.width * each)


@dataclass(frozen=True)
class ModelCost:
    """Both towers, and the size of the space they share."""

    image: TowerCost
    text: TowerCost
    embed_dim: int
    image_size: int
    trained: int
    """Weights that are trained."""

    @property
    def weights(self) -> int:
        """All weights."""
        return self.image.weights + self.text.weights

    @property
    def largest_layer(self) -> int:
        """Weights of the largest layer."""
        return max(self.image.layer_weights, self.text.layer_weights)

    @property
    def outside(self) -> int:
        """Weights that are in no layer: stems, embeddings, projections."""
        towers = (self.image, self.text)
        return self.weights - sum(tower.layers * tower.layer_weights for tower in towers)


def model_cost(recipe: Recipe, model: str | None = None, context_length: int = 248) -> ModelCost:
    """The cost of the model that `recipe` trains: `model` (an open_clip name) read at
    `context_length` tokens, or by default the recipe's own towers.

    Nothing is allocated or fetched. Raises LabError for a model that open_clip does not know, for
    a recipe without towers, and for towers that are no plain transformers.
    """
    if model is not None:
        config = open_clip.get_model_config(model)
        if config is None:
            raise LabError(f"open_clip knows no architecture '{model}'.")
        config["text_cfg"]["context_length"] = context_length
    elif recipe.image_tower is None or recipe.text_tower is None:
        raise LabError(f"The recipe {recipe.name!r} trains a model that is given: name it.")
    else:
        text = BERTS.get(recipe.text_tower)
        tower = text() if text else recipe.text_tower
        config = config_of_towers(recipe.image_tower, tower, recipe.token_limit or 128)
    with torch.device("meta"):
        module = build_model(config)
    return cost_of(module, config["embed_dim"], lock_image=recipe.lock_image)


def cost_of(module: nn.Module, embed_dim: int, lock_image: bool = False) -> ModelCost:
    """The cost of an open_clip module; it may be on the meta device."""
    image, image_size = _image_cost(module.visual)
    text = _text_cost(module)
    trained = text.weights + (0 if lock_image else image.weights)
    return ModelCost(image, text, embed_dim, image_size, trained)


def _image_cost(visual: nn.Module) -> tuple[TowerCost, int]:
    weights = _count(visual)
    if isinstance(visual, TimmModel) and hasattr(visual.trunk, "blocks"):
        trunk = visual.trunk
        patches = trunk.patch_embed.num_patches
        size = visual.image_size if isinstance(visual.image_size, int) else visual.image_size[0]
        stem, kept = _stem(trunk.patch_embed, size)
        tokens = patches + trunk.num_prefix_tokens
        inner, layer = trunk.blocks[0].mlp.fc1.out_features, _count(trunk.blocks[0])
        sizes = (len(trunk.blocks), trunk.embed_dim, inner, tokens)
        return TowerCost(*sizes, stem, weights, layer, kept), size
    if isinstance(visual, VisionTransformer):
        blocks = visual.transformer.resblocks
        patches = visual.grid_size[0] * visual.grid_size[1]
        stem = 2 * patches * visual.conv1.weight.numel()
        inner = blocks[0].mlp.c_fc.out_features
        width = visual.transformer.width
        sizes = (len(blocks), width, inner, patches + 1)
        return TowerCost(*sizes, stem, weights, _count(blocks[0])), visual.image_size[0]
    raise LabError(f"The cost of an image tower of the kind {type(visual).__name__} is not known.")


def _stem(embed: nn.Module, size: int) -> tuple[int, int]:
    """Operations on a picture of `size` pixels, and the numbers kept between convolutions: what
    each gives, normed, and activated."""
    operations, between = 0, []
    for layer in embed.modules():
        if isinstance(layer, nn.Conv2d):
            kernel, stride, padding = layer.kernel_size[0], layer.stride[0], layer.padding[0]
            size = (size + 2 * padding - kernel) // stride + 1
            operations += 2 * size**2 * layer.weight.numel()
            between.append(3 * size**2 * layer.out_channels)
    return operations, sum(between[:-1])


def _text_cost(module: nn.Module) -> TowerCost:
    if hasattr(module, "text") and hasattr(module.text, "config"):
        config = module.text.config
        width, layers = config.hidden_size, config.num_hidden_layers
        inner, tokens = config.intermediate_size, module.text.context_length
        layer = _count(module.text.transformer.encoder.layer[0])
        return TowerCost(layers, width, inner, tokens, 0, _count(module.text), layer)
    tower = getattr(module, "text", module)
    blocks = getattr(getattr(tower, "transformer", None), "resblocks", None)
    if not blocks:
        raise LabError(f"The cost of a text tower of the kind {type(tower).__name__} is not known.")
    weights = _count(module) - _count(module.visual)
    inner = blocks[0].mlp.c_fc.out_features
    width = tower.transformer.width
    sizes = (len(blocks), width, inner, tower.context_length)
    return TowerCost(*sizes, 0, weights, _count(blocks[0]))


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# --- What one process holds at the peak of a training step, by formula. Everything in bytes ---

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


# --- How long a training run takes, what it holds and what it costs, before it is started ---

__all__ = ["GPUS", "Gpu", "Plan", "comparison", "memory_of", "plan"]

UTILISATION = 0.30
"""Share of a GPU's peak that training reaches if pictures arrive in time: an assumption."""
TOKENS = Numbers(at_least=3, at_most=10**6, whole=True)
"""Start, one token and end at least."""
DOLLARS = Numbers(at_least=0, at_most=10**6)
UTILISATIONS = Numbers(at_least=0.001, at_most=1)
ARRIVING = Numbers(at_least=0.001, at_most=10**9)
FILLED = 0.90
"""Share of a GPU's memory that may be planned for; the rest is the allocator's and the kernels'."""


@dataclass(frozen=True)
class Plan:
    """What a run takes on `count` GPUs of one kind."""

    recipe: Recipe
    cost: ModelCost
    gpu: Gpu
    count: int
    pairs: int
    long_tokens: int
    short_tokens: int
    utilisation: float
    arriving: float | None = None
    """Pairs a second that reach each GPU; by default as many as it can take."""
    spot: bool = False
    """On spot machines: cheaper, and taken away now and then."""

    @property
    def samples(self) -> int:
        """Pairs that pass, over all epochs."""
        return self.recipe.total_steps(self.pairs) * self.recipe.batch_size

    @property
    def flops(self) -> float:
        """Operations of the whole run: a backward pass costs two forward ones."""
        return self.samples * (self.image_flops + self.text_flops)

    @property
    def image_flops(self) -> float:
        """Operations on one picture, on average over the run."""
        forward = self.cost.image.flops()
        if not self.recipe.lock_image:
            return forward * self.passes
        if self.recipe.store_features:
            return forward * min(1.0, self.pairs / self.samples)
        return forward * (2 if self.recipe.micro_batch else 1)

    @property
    def text_flops(self) -> float:
        """Operations on one pair's texts."""
        return self.passes * sum(self.cost.text.flops(length) for length in self.lengths)

    @property
    def passes(self) -> int:
        """Forward passes that a trained tower is worth: forward, backward, and what is done again
        for checkpointing or gradient caching."""
        return 3 + bool(self.recipe.grad_checkpointing) + bool(self.recipe.micro_batch)

    @property
    def lengths(self) -> list[int]:
        """Tokens of a pair's texts; corners count towards the token limit."""
        cornered = min(self.long_tokens + self.recipe.num_corner, self.cost.text.tokens)
        return text_lengths(self.recipe, cornered, self.short_tokens)

    @property
    def rate(self) -> float:
        """Pairs a second and GPU: what it can take, or what arrives if that is less."""
        able = 1e12 * self.gpu.tflops * self.utilisation / (self.image_flops + self.text_flops)
        return able if self.arriving is None else min(able, self.arriving)

    @property
    def hours(self) -> float:
        """Hours on the clock, those lost with spot machines included."""
        at_work = self.samples / (self.rate * self.count) / 3600
        return at_work * (1 + self.lost_hours / SPOT_HOURS) if self.spot else at_work

    @property
    def lost_hours(self) -> float:
        """Hours lost whenever a spot machine is taken away: until the next step, and half the time
        between two checkpoints. (A SIGTERM that comes in time saves the latter.)"""
        between = self.recipe.checkpoint_minutes or 0.0
        return (RESTART_MINUTES + between / 2) / 60

    @property
    def price(self) -> float:
        """Dollars an hour and GPU."""
        return self.gpu.dollars * (SPOT_PRICE if self.spot else 1)

    @property
    def gpu_days(self) -> float:
        """Days of one GPU."""
        return self.hours * self.count / 24

    @property
    def dollars(self) -> float:
        """What the GPUs cost at the assumed price."""
        return self.hours * self.count * self.price

    @property
    def as_published(self) -> Plan:
        """The same, if no more pairs arrive than in both papers' runs."""
        return replace(self, arriving=PAPERS_RATE)

    @property
    def share(self) -> int:
        """Pairs of one process."""
        return self.recipe.batch_size // self.count

    def memory(self, micro_batch: int | None = None) -> float:
        """GB at the peak of a step with `micro_batch` pairs at a time, by default the recipe's."""
        return self.step_memory(micro_batch).total / 1e9

    def step_memory(self, micro_batch: int | None = None) -> StepMemory:
        """The same in bytes, by what they are for (`memory`)."""
        return step_memory(self.cost, self.recipe, self.lengths, self.count, micro_batch)

    @property
    def largest_micro_batch(self) -> int | None:
        """Pairs at a time that fit, None if not even one does."""
        sizes = range(1, self.share + 1)
        return bisect_right(sizes, FILLED * self.gpu.memory, key=self.memory) or None

    def __str__(self) -> str:

        return "\n".join(lines(self))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: what is assumed and what follows."""
        slow = self.as_published
        return {
            "recipe": self.recipe.name,
            "gpu": self.gpu.name,
            "count": self.count,
            "spot": self.spot,
            "pairs": self.pairs,
            "tokens": self.lengths,
            "utilisation": self.utilisation,
            "arriving": self.arriving,
            "dollars_an_hour": self.price,
            "samples": self.samples,
            "flops": self.flops,
            "memory_gb": self.memory(),
            "largest_micro_batch": self.largest_micro_batch,
            "hours": self.hours,
            "gpu_days": self.gpu_days,
            "dollars": self.dollars,
            "at_the_papers_rate": {
                "pairs_a_second": slow.rate,
                "hours": slow.hours,
                "gpu_days": slow.gpu_days,
                "dollars": slow.dollars,
            },
        }


def plan(
    recipe: Recipe,
    gpus: str = "A100:8",
    pairs: int | None = None,
    model: str | None = None,
    long_tokens: int | None = None,
    short_tokens: int = SHORT_TOKENS,
    utilisation: float = UTILISATION,
    dollars: float | None = None,
    arriving: float | None = None,
    spot: bool = False,
) -> Plan:
    """The plan of `recipe` on `gpus` ("A100:8": name and count) for a data set of `pairs`.

    `model` is the open_clip architecture for recipes that fine-tune one. `long_tokens`: how many a
    long text has on average, by default as many as are read. `dollars` an hour and GPU on demand
    replaces the assumed price. `arriving`: pairs a second that reach each GPU, where that was
    measured. `spot`: on machines that are cheaper and are taken away (`gpus`).

    Raises LabError for an unknown GPU (near ones are listed), a batch that does not divide,
    senseless numbers, and as `costs.model_cost` does.
    """
    for name, value, numbers in (
        ("The price of a GPU hour in dollars", dollars, DOLLARS),
        ("The number of pairs", pairs, COUNT),
        ("The tokens of a long text", long_tokens, TOKENS),
        ("The tokens of a short text", short_tokens, TOKENS),
        ("The utilisation", utilisation, UTILISATIONS),
        ("The pairs that arrive in a second", arriving, ARRIVING),
    ):
        if value is not None:
            numbers.check(name, value)
    gpu, count = parse_gpus(gpus)
    if dollars is not None:
        gpu = replace(gpu, dollars=dollars)
    pairs = recipe.pairs if pairs is None else pairs
    if pairs is None:
        raise LabError("Say how many pairs the data set has (--pairs).")
    if recipe.batch_size % count:
        raise LabError(f"A batch of {recipe.batch_size} cannot be shared out to {count} GPUs.")
    cost = model_cost(recipe, model)
    longest = cost.text.tokens
    long, short = min(long_tokens or longest, longest), min(short_tokens, longest)
    return Plan(recipe, cost, gpu, count, pairs, long, short, utilisation, arriving, spot)


def comparison(one: Plan, names: tuple[str, ...] = tuple(GPUS)) -> pd.DataFrame:
    """The same run on as many GPUs of every kind: memory, largest micro-batch, hours, dollars."""
    import pandas as pd

    rows = {}
    for name in names:
        gpu = GPUS[name] if name != one.gpu.name else one.gpu
        other = replace(one, gpu=gpu)
        slow = other.as_published
        rows[f"{one.count} x {name}"] = {
            "has GB": gpu.memory,
            "needs GB": round(other.memory(), 1),
            "largest micro-batch": other.largest_micro_batch or 0,
            "hours": round(other.hours, 1),
            "GPU days": round(other.gpu_days, 1),
            "dollars": round(other.dollars),
            "hours at the papers' rate": round(slow.hours, 1),
            "dollars at the papers' rate": round(slow.dollars),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


# --- A plan in words, assumptions first ---

_GB = 1e9


def lines(plan: Plan) -> list[str]:
    """What is assumed, what is done, what it holds, how long it takes and what it costs."""
    recipe = plan.recipe
    machines = "spot " if plan.spot else ""
    return [
        f"{recipe.name} on {plan.count} x {machines}{plan.gpu.name}",
        f"assumed: {'; '.join(assumptions(plan))}",
        f"{plan.samples:,} pairs pass in {recipe.total_steps(plan.pairs):,} steps of "
        f"{recipe.batch_size:,}: {plan.flops:.2e} operations",
        f"memory: {_memory(plan)}",
        f"time: {_time(plan)}",
        _at_the_papers_rate(plan),
    ]


def assumptions(plan: Plan) -> list[str]:
    """Everything that does not follow from the recipe."""
    arriving = (
        "pictures arrive in time"
        if plan.arriving is None
        else f"at most {plan.arriving:g} pairs a second arrive at a GPU"
    )
    spot = [
        f"a machine is taken away every {SPOT_HOURS:g} hours, and the next step comes after "
        f"{RESTART_MINUTES:g} minutes"
    ]
    return [
        f"{plan.pairs:,} pairs",
        f"{' + '.join(map(str, plan.lengths))} tokens a pair",
        f"{plan.utilisation:.0%} of {plan.gpu.tflops:g} TFLOP/s",
        arriving,
        f"${plan.price:.2f} an hour and GPU",
        *(spot if plan.spot else []),
    ]


def _memory(plan: Plan) -> str:
    size, fits = plan.recipe.micro_batch or plan.share, plan.largest_micro_batch
    parts = plan.step_memory().parts
    named = ", ".join(f"{what} {count / _GB:.1f}" for what, count in parts.items())
    if fits is None:
        room = f"does not fit {plan.gpu.memory:.0f} GB, not even a pair at a time"
    elif fits >= plan.share:
        room = f"fits {plan.gpu.memory:.0f} GB without gradient caching"
    else:
        room = f"needs --micro-batch {fits} or less to fit {plan.gpu.memory:.0f} GB"
    return f"{plan.memory():.1f} GB a GPU for {size} pairs at a time ({named}); {room}"


def _time(plan: Plan) -> str:
    return (
        f"{plan.hours:,.1f} hours, {plan.gpu_days:,.1f} GPU days, ${plan.dollars:,.0f}, at "
        f"{plan.rate:,.0f} pairs a second and GPU"
    )


def _at_the_papers_rate(plan: Plan) -> str:
    slow = plan.as_published
    if plan.rate <= PAPERS_RATE:
        return f"both papers' runs came to {PAPERS_RATE:g} pairs a second and GPU: no slower"
    return (
        f"both papers' runs came to {PAPERS_RATE:g} pairs a second and GPU; at that rate: "
        f"{slow.hours:,.1f} hours, {slow.gpu_days:,.1f} GPU days, ${slow.dollars:,.0f}"
    )
