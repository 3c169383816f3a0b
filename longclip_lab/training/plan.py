"""How long a run takes, what it holds and what it costs, before it is started.

Everything follows from the recipe by formula and from assumptions, which a plan carries with it and
prints. Two times are told: what the arithmetic takes if images arrive fast enough, and what it
takes at the rate of both papers; a budget lies between them until somebody has measured how fast
images arrive (`data_throughput`). `largest_micro_batch` asks this machine instead of the formula.

L layers, W width, I inner width of a layer, T tokens, B pairs of a step, S the shape of a cached
feature; with processes, G pairs of a global batch and N processes.
"""

from __future__ import annotations

import copy
import json
import os
import re
import warnings
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import open_clip
import psutil
import torch
import transformers
from accelerate import Accelerator

from longclip_lab.errors import COUNT, POSITIVE, PROCESSES, LabError, LabWarning, Numbers, suggest
from longclip_lab.models import Clip, pixels
from longclip_lab.models.build import build_model, config_of_towers, world_bert
from longclip_lab.models.flops import ModelCost, cost_of
from longclip_lab.objectives.contrastive import JUDGED_AT_ONCE, ROWS_AT_ONCE
from longclip_lab.training.data import Batch, CaptionSampler, stored_features
from longclip_lab.training.loop import Loop, needs
from longclip_lab.training.recipe import LENGTH_BUCKETS, Recipe

if TYPE_CHECKING:
    import pandas as pd

# --- What a plan knows about GPUs, their prices, and the times that the papers tell ---

GB = 1e9


@dataclass(frozen=True)
class Gpu:
    """A GPU: dense bfloat16 peak in TFLOP/s, memory in GB (10^9 bytes), assumed dollars an hour."""

    name: str
    tflops: float
    memory: float
    dollars: float


GPUS = {
    "H100": Gpu("H100", 989.0, 80.0, 3.00),
    "A100": Gpu("A100", 312.0, 80.0, 1.80),
    "L4": Gpu("L4", 121.0, 24.0, 0.80),
    "4090": Gpu("4090", 165.2, 24.0, 0.45),
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
compute, so it may have been the images that did not arrive faster; neither paper says."""


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


# --- The model that a recipe trains, without its weights ---

BERTS = {
    "bert-base-uncased": transformers.BertConfig,
    "minilm": lambda: transformers.BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    ),
    "world": world_bert,
}
"""Sizes of the recipes' text towers, so that a plan needs neither weights nor a network."""


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
    # Shapes without memory: a plan of ViT-L costs nothing.
    with torch.device("meta"):
        module = build_model(config)
    return cost_of(module, config["embed_dim"], lock_image=recipe.lock_image)


# --- What one process holds at the peak of a training step, by formula, in bytes ---
#
# The peak is the end of the forward pass: all activations of the towers are there, and beside them
# what a step always holds; with gradient caching those of a micro-batch, and not beside the loss.
# Not counted: the allocator's fragments, the kernels' workspace, batches in worker processes.

FLOAT, HALF = 4, 2
FEATURE_COPIES = 4
"""Features as they come, normalised, and the gradients of both."""
LOGIT_COPIES = 4
"""Tables of logits [G, G] that a loss keeps: scaled, two log-softmaxes, their gradient."""
SHARED_COPIES = 6
"""With several processes these are [G / N, G], of which each direction needs its own three."""
SIMILARITY_COPIES = 3
"""FILIP's similarities of a few images: as they are, masked, their gradient."""
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
    """The process's images, and the features of all pairs."""
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
    try:
        cost = cost_of(clip.model, clip.embed_dim, lock_image=recipe.lock_image)
    except LabError:
        return None
    tokens = min(recipe.token_limit or cost.text.tokens, cost.text.tokens)
    lengths = text_lengths(recipe, tokens + recipe.num_corner, min(SHORT_TOKENS, tokens))
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
    """What one of N `processes` holds at the peak, with texts of `lengths` tokens a pair.

    `micro_batch` pairs run at a time, by default the recipe's. Sharded, a process holds 1/N of
    weights, gradients and moments, and whole ones of the layers at work; between micro-batches
    gradients stay whole.
    """
    share = -(-recipe.batch_size // processes)
    size = min(micro_batch or recipe.micro_batch or share, share)
    half, token_wise = recipe.precision == "bf16", needs(recipe, "tokens")
    sharded = recipe.sharding == "full" and processes > 1
    parts = processes if sharded else 1
    weights = FLOAT * cost.weights // parts + HALF * half * cost.trained
    if sharded:
        # One layer at work and the next one prefetched, and what is in no layer.
        weights += FLOAT * (cost.outside + 2 * cost.largest_layer)
    # DistributedDataParallel keeps a bucket of gradients to send beside the gradients.
    copies = 2 if processes > 1 and not sharded else 1
    gradients = copies * FLOAT * cost.trained // (1 if size < share else parts)

    reads_cache = recipe.lock_image and recipe.cache_image_features
    image = FLOAT * 3 * cost.image_size**2
    if reads_cache:
        image = FLOAT * cost.image.width * (cost.image.tokens if token_wise else 1)
    # One image feature, one a text, one a corner; token-wise losses keep them all.
    features = 1 + len(lengths) + recipe.num_corner
    if token_wise:
        features = cost.image.tokens + sum(lengths)
    return StepMemory(
        weights=weights,
        gradients=gradients,
        moments=2 * FLOAT * cost.trained // parts,
        activations=size * _kept_of_a_pair(cost, recipe, lengths, half),
        batch=share * image
        + FEATURE_COPIES * FLOAT * recipe.batch_size * cost.embed_dim * features,
        loss=_tables_of_the_loss(cost, recipe, lengths, share),
        apart=size < share,
    )


def _kept_of_a_pair(cost: ModelCost, recipe: Recipe, lengths: list[int], half: bool) -> int:
    """Bytes that the towers keep of one pair for the backward pass."""
    text, image = cost.text, cost.image
    passes = [(text, length, recipe.length_buckets or LENGTH_BUCKETS) for length in lengths]
    if not recipe.lock_image:
        passes.append((image, image.tokens, 1))
    kept = sum(tower.stem_kept * (HALF if half else FLOAT) for tower, _, _ in passes)
    if recipe.grad_checkpointing:
        # Only the layers' inputs; one layer at a time is computed again, texts bucket by bucket.
        kept += sum(tower.layers * tokens * tower.width * FLOAT for tower, tokens, _ in passes)
        kept += max(tower.activations(tokens, half) // parts for tower, tokens, parts in passes)
    else:
        kept += sum(tower.layers * tower.activations(tokens, half) for tower, tokens, _ in passes)
    if recipe.lock_image and not recipe.cache_image_features:
        kept += image.activations(half=half)
    return kept


def _tables_of_the_loss(cost: ModelCost, recipe: Recipe, lengths: list[int], share: int) -> int:
    """Logits of `share` pairs of a process against all texts."""
    pairs, tables = recipe.batch_size, len(lengths) + recipe.num_corner
    if recipe.objective == "siglip":  # in chunks
        return LOGIT_COPIES * FLOAT * min(share * pairs, max(JUDGED_AT_ONCE, pairs)) * tables
    if not needs(recipe, "tokens"):
        # Alone, image-to-text logits are the transpose of text-to-image ones.
        copies = LOGIT_COPIES if share == pairs else SHARED_COPIES
        return copies * FLOAT * share * pairs * tables
    tokens = cost.image.tokens * max(lengths)
    rows = min(ROWS_AT_ONCE, pairs)
    return LOGIT_COPIES * FLOAT * pairs**2 * tables + (
        SIMILARITY_COPIES * FLOAT * rows * pairs * tokens
    )


# --- The plan of a run: its time, its memory and its price ---

MFU = 0.30
"""Model FLOPs utilisation: the share of a GPU's peak that training reaches if images arrive in
time. An assumption."""
TOKENS = Numbers(at_least=3, at_most=10**6, whole=True)
"""Start, one token and end at least."""
DOLLARS = Numbers(at_least=0, at_most=10**6)
MFUS = Numbers(at_least=0.001, at_most=1)
THROUGHPUT = Numbers(at_least=0.001, at_most=10**9)
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
    mfu: float
    data_throughput: float | None = None
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
        """Operations on one image, on average over the run."""
        forward = self.cost.image.flops()
        if not self.recipe.lock_image:
            return forward * self.passes
        if self.recipe.cache_image_features:
            # Each image once, however many epochs.
            return forward * min(1.0, self.pairs / self.samples)
        # Once a step, twice with gradient caching, never backwards.
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
        # The tower's context holds the corners too.
        cornered = min(self.long_tokens + self.recipe.num_corner, self.cost.text.tokens)
        return text_lengths(self.recipe, cornered, self.short_tokens)

    @property
    def rate(self) -> float:
        """Pairs a second and GPU: what it can take, or what arrives if that is less."""
        # What arithmetic allows; the GPU waits if fewer pairs arrive.
        able = 1e12 * self.gpu.tflops * self.mfu / (self.image_flops + self.text_flops)
        return able if self.data_throughput is None else min(able, self.data_throughput)

    @property
    def hours(self) -> float:
        """Hours on the clock, those lost with spot machines included."""
        # Lost hours as often as machines are taken away.
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
        return replace(self, data_throughput=PAPERS_RATE)

    @property
    def share(self) -> int:
        """Pairs of one process."""
        return self.recipe.batch_size // self.count

    def memory(self, micro_batch: int | None = None) -> float:
        """GB at the peak of a step with `micro_batch` pairs at a time, by default the recipe's."""
        return self.step_memory(micro_batch).total / GB

    def step_memory(self, micro_batch: int | None = None) -> StepMemory:
        """The same in bytes, by what they are for (`memory`)."""
        return step_memory(self.cost, self.recipe, self.lengths, self.count, micro_batch)

    @property
    def largest_micro_batch(self) -> int | None:
        """Pairs at a time that fit, None if not even one does."""
        # Memory grows with the micro-batch, so the largest that fits is found by bisection.
        sizes = range(1, self.share + 1)
        return bisect_right(sizes, FILLED * self.gpu.memory, key=self.memory) or None

    def assumptions(self) -> list[str]:
        """Everything that does not follow from the recipe."""
        arriving = "pictures arrive in time"
        if self.data_throughput is not None:
            arriving = f"at most {self.data_throughput:g} pairs a second arrive at a GPU"
        spot = [
            f"a machine is taken away every {SPOT_HOURS:g} hours, and the next step comes after "
            f"{RESTART_MINUTES:g} minutes"
        ]
        return [
            f"{self.pairs:,} pairs",
            f"{' + '.join(map(str, self.lengths))} tokens a pair",
            f"{self.mfu:.0%} of {self.gpu.tflops:g} TFLOP/s",
            arriving,
            f"${self.price:.2f} an hour and GPU",
            *(spot if self.spot else []),
        ]

    def __str__(self) -> str:
        recipe, slow, fits = self.recipe, self.as_published, self.largest_micro_batch
        parts = ", ".join(f"{k} {v / GB:.1f}" for k, v in self.step_memory().parts.items())
        if fits is None:
            room = f"does not fit {self.gpu.memory:.0f} GB, not even a pair at a time"
        elif fits >= self.share:
            room = f"fits {self.gpu.memory:.0f} GB without gradient caching"
        else:
            room = f"needs --micro-batch {fits} or less to fit {self.gpu.memory:.0f} GB"
        papers = f"both papers' runs came to {PAPERS_RATE:g} pairs a second and GPU"
        return "\n".join([
            f"{recipe.name} on {self.count} x {'spot ' if self.spot else ''}{self.gpu.name}",
            f"assumed: {'; '.join(self.assumptions())}",
            f"{self.samples:,} pairs pass in {recipe.total_steps(self.pairs):,} steps of "
            f"{recipe.batch_size:,}: {self.flops:.2e} operations",
            f"memory: {self.memory():.1f} GB a GPU for {recipe.micro_batch or self.share} pairs at "
            f"a time ({parts}); {room}",
            f"time: {self._time()}, at {self.rate:,.0f} pairs a second and GPU",
            f"{papers}: no slower"
            if self.rate <= PAPERS_RATE
            else f"{papers}; at that rate: {slow._time()}",
        ])  # fmt: skip

    def _time(self) -> str:
        return f"{self.hours:,.1f} hours, {self.gpu_days:,.1f} GPU days, ${self.dollars:,.0f}"

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
            "utilisation": self.mfu,
            "arriving": self.data_throughput,
            "dollars_an_hour": self.price,
            "samples": self.samples,
            "flops": self.flops,
            "memory_gb": self.memory(),
            "largest_micro_batch": self.largest_micro_batch,
            **self._price(),
            "at_the_papers_rate": {"pairs_a_second": slow.rate, **slow._price()},
        }

    def _price(self) -> dict[str, float]:
        return {"hours": self.hours, "gpu_days": self.gpu_days, "dollars": self.dollars}


def plan(
    recipe: Recipe,
    gpus: str = "A100:8",
    pairs: int | None = None,
    model: str | None = None,
    long_tokens: int | None = None,
    short_tokens: int = SHORT_TOKENS,
    mfu: float = MFU,
    dollars: float | None = None,
    data_throughput: float | None = None,
    spot: bool = False,
) -> Plan:
    """The plan of `recipe` on `gpus` ("A100:8": name and count) for a data set of `pairs`.

    `model` is the open_clip architecture for recipes that fine-tune one. `long_tokens`: how many a
    long text has on average, by default as many as are read. `dollars` an hour and GPU on demand
    replaces the assumed price. `data_throughput`: pairs a second that reach each GPU, where that
    was measured. `spot`: on machines that are cheaper and are taken away (`gpus`).

    Raises LabError for an unknown GPU (near ones are listed), a batch that does not divide,
    senseless numbers, and as `costs.model_cost` does.
    """
    for name, value, numbers in (
        ("The price of a GPU hour in dollars", dollars, DOLLARS),
        ("The number of pairs", pairs, COUNT),
        ("The tokens of a long text", long_tokens, TOKENS),
        ("The tokens of a short text", short_tokens, TOKENS),
        ("The utilisation", mfu, MFUS),
        ("The pairs that arrive in a second", data_throughput, THROUGHPUT),
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
    return Plan(recipe, cost, gpu, count, pairs, long, short, mfu, data_throughput, spot)


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


# --- A dry run: the largest micro-batch that fits, found by taking steps ---
#
# Random images, and texts as long as the model reads, which is the worst that can come. The formula
# says what to try next, put right by what the steps before have held.

FIRST, AT_MOST, TRIES = 2, 4, 12
"""The micro-batch to begin with, how many times as large the next one may be, and how many."""
PLAIN = "Here is a sentence for a model that reads English. "
WORLD = "there is a red rocket . "


@dataclass(frozen=True)
class Trial:
    """A step that was taken."""

    micro_batch: int
    measured: float
    """Bytes at the peak, in a process of the run that is asked about."""
    predicted: float
    """Bytes by formula (`memory.step_memory`)."""


@dataclass(frozen=True)
class Fit:
    """Which micro-batch fits into `memory` bytes a process, by what was tried."""

    share: int
    """Pairs of a process in a global batch."""
    memory: float
    tried: tuple[Trial, ...]
    largest: int | None
    """None if not even `FIRST` pairs fit; `share` if gradient caching is not needed."""

    def __str__(self) -> str:
        rows = [
            f"{one.micro_batch:6} pairs at a time: {one.measured / GB:8.3f} GB, predicted "
            f"{one.predicted / GB:8.3f} GB"
            for one in self.tried
        ]
        verdict = f"hold --micro-batch {self.largest} of {self.share} pairs of a process"
        if self.largest is None:
            verdict = f"are too few for {self.tried[-1].micro_batch} pairs at a time"
        elif self.largest == self.share:
            verdict = f"hold all {self.share} pairs of a process: no --micro-batch needed"
        return "\n".join([*rows, f"{self.memory / GB:.3f} GB {verdict}"])


def largest_micro_batch(
    clip: Clip, recipe: Recipe, processes: int = 1, memory: float | None = None
) -> Fit:
    """Find the largest micro-batch with which a process of `processes` needs at most `memory`.

    `memory` in bytes is by default 90% of the GPU's; without one, of the process's share of what is
    free here. Steps are real ones of a copy of `clip` in this process, each on one micro-batch
    alone, and what torch has allocated is measured. What the rest of the batch and other processes
    add (images that wait, features and logits of all pairs, copies of gradients) or take over is
    added by formula.

    Raises LabError for towers whose memory has no formula (`costs.cost_of`), a batch that does not
    divide, and more memory than is here.
    """
    PROCESSES.check("The number of processes", processes)
    if memory is not None:
        POSITIVE.check("The memory in bytes", memory)
    if recipe.batch_size % processes:
        raise LabError(
            f"A batch of {recipe.batch_size} cannot be shared out to {processes} processes."
        )
    dry = _DryRun(clip, recipe, processes)
    free = dry.free()
    memory = FILLED * free if memory is None else memory
    if not memory <= free:
        raise LabError(
            f"{memory / GB:.1f} GB a process were asked for and {free / GB:.1f} GB are here. A dry "
            "run takes real steps; `longclip-lab plan` predicts other machines."
        )
    share = recipe.batch_size // processes
    return search(dry.step, dry.predict, share, memory)


def search(
    step: Callable[[int], Trial], predict: Callable[[int], int], share: int, memory: float
) -> Fit:
    """Take steps until the largest size is known, up to `share`; see `largest_micro_batch`."""
    tried = [step(min(FIRST, share))]
    if tried[0].measured > memory:
        return Fit(share, memory, tuple(tried), None)
    # Each step tells the next more: what the formula is off by.
    while len(tried) < TRIES and (size := _next(tried, memory, share, predict)) is not None:
        tried.append(step(size))
    largest = max(one.micro_batch for one in tried if one.measured <= memory)
    return Fit(share, memory, tuple(tried), largest)


def _next(
    tried: list[Trial], memory: float, share: int, predict: Callable[[int], int]
) -> int | None:
    """The size to try next, at most `AT_MOST` times as large; None when the largest is known.

    By the formula, put right by the nearest step on the far side; by itself where that leaves
    nothing, or memory has not grown, as while the optimizer's step needs more than the towers.
    """
    held = sorted((one for one in tried if one.measured <= memory), key=lambda one: one.micro_batch)
    above = [one for one in tried if one.measured > memory]
    below, *before = held[::-1]
    nearest = min(above, key=lambda one: one.micro_batch, default=below)
    put_right = memory - (nearest.measured - nearest.predicted)
    # Corrected by what was measured; the formula by itself where the correction leaves no room.
    rooms = [put_right] if above else [put_right, memory]
    if not above and before and below.measured <= before[0].measured:
        rooms = [memory]
    end = min(nearest.micro_batch - 1 if above else share, AT_MOST * below.micro_batch)
    sizes = range(below.micro_batch + 1, end + 1)
    found = (bisect_right(sizes, room, key=predict) for room in rooms)
    return next((sizes[count - 1] for count in found if count), None)


class _DryRun:
    """Steps of one process, measured."""

    def __init__(self, clip: Clip, recipe: Recipe, processes: int):
        clip = replace(clip, model=copy.deepcopy(clip.model), card=copy.deepcopy(clip.card))
        self.cost = cost_of(clip.model, clip.embed_dim, lock_image=recipe.lock_image)
        limit = CaptionSampler(clip, recipe).limit
        long, short = limit + recipe.num_corner, min(SHORT_TOKENS, limit)
        self.lengths = text_lengths(recipe, long, short)
        self.recipe, self.processes = recipe, processes
        self.accelerator = Accelerator()
        self.device = self.accelerator.device
        # A rate that changes nothing: the random weights stay as they are.
        quick = replace(
            recipe, learning_rate=1e-30, weight_decay=0.0, warmup_steps=0, steps=2, epochs=None,
            batch_size=FIRST, hard_negative_group=1, sharding="none", micro_batch=None,
        )  # fmt: skip
        self.loop = Loop(self.accelerator, clip, quick, 2, None)
        self.pair = self._pair(clip, limit, short)
        self._step(FIRST)  # from now on the optimizer has its moments

    def _pair(self, clip: Clip, long: int, short: int) -> Batch:
        """One pair: noise, and a long and a short text of as many tokens as there may be."""
        image = np.random.default_rng(0).integers(0, 256, (1, clip.image_size, clip.image_size, 3))
        image = image.astype(np.uint8)
        phrase = WORLD if clip.tokenizer.name == "world" else PLAIN
        texts = {
            which: CaptionSampler(clip, replace(self.recipe, token_limit=tokens)).tokenize(
                [phrase * tokens]
            )[0]
            for which, tokens in (("long", long), ("short", short))
            if self.recipe.captions in ("both", which)
        }
        batch = Batch(None, texts.get("long"), texts.get("short"))
        if not (self.recipe.lock_image and self.recipe.cache_image_features):
            return batch._replace(pixels_B3HW=pixels(clip, image))
        tokens = needs(self.recipe, "tokens")
        stored_1S = stored_features(clip, image, tokens=tokens, accelerator=self.accelerator)
        return batch._replace(stored_BS=torch.from_numpy(stored_1S))

    def free(self) -> float:
        """Bytes that a process may have: its GPU's, or its share of what this machine has left."""
        if self.device.type == "cuda":
            return float(torch.cuda.mem_get_info(self.device)[1])
        return psutil.virtual_memory().available / self.processes

    def predict(self, size: int) -> int:
        """Bytes by formula, in a process of the run that is asked about."""
        return step_memory(self.cost, self.recipe, self.lengths, self.processes, size).total

    def step(self, size: int) -> Trial:
        """Take a step of `size` pairs."""
        taken = max(size, FIRST)  # of one pair alone there is no contrastive loss
        try:
            peak = self._peak(lambda: self._step(taken))
        except torch.OutOfMemoryError:
            peak = float("inf")
            torch.cuda.empty_cache()
        # What the whole batch and the other processes change, by formula.
        there = self.predict(size)
        here = replace(self.recipe, batch_size=taken, hard_negative_group=1, sharding="none")
        known = step_memory(self.cost, here, self.lengths, 1, taken).total
        return Trial(size, peak + there - known, there)

    def _step(self, pairs: int) -> None:
        self.loop.done = 0
        # The same pair so many times, each with an identity of its own.
        changes = {
            which: texts.select([0] * pairs)._replace(identity_B=torch.arange(pairs))
            for which in ("long", "short")
            if (texts := getattr(self.pair, which)) is not None
        }
        for which in ("pixels_B3HW", "stored_BS"):
            if (images := getattr(self.pair, which)) is not None:
                changes[which] = images.repeat(pairs, *(1,) * (images.ndim - 1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LabWarning)  # so few pairs cannot support PCM
            self.loop.step(self.pair._replace(**changes))

    def _peak(self, step: Callable[[], None]) -> float:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            step()
            return float(torch.cuda.max_memory_allocated(self.device))
        # Between two steps there are weights and AdamW's moments.
        self.loop.optimizer.zero_grad()
        states = self.loop.optimizer.state.values()
        moments = [value for state in states for value in state.values()]
        tensors = (*self.loop.towers.parameters(), *self.loop.towers.buffers(), *moments)
        return sum(tensor.nbytes for tensor in tensors) + _grown(step)


def _grown(step: Callable[[], None]) -> int:
    """Bytes by which torch's memory on the CPU had grown at most while `step` ran."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it reports as an error that there is no GPU
    with TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        kinds = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=kinds, profile_memory=True) as profile:
            step()
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    changes = [(one["ts"], one["args"]["Bytes"]) for one in events if one["name"] == "[memory]"]
    return max(accumulate(count for _, count in sorted(changes)), default=0)
