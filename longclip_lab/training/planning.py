"""How long a training run takes, what it holds and what it costs, before it is started.

Everything follows from the recipe by formula (`costs`) and from a few assumptions, which a plan
carries with it and prints.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from longclip_lab.errors import LabError, suggest
from longclip_lab.training.costs import ModelCost, model_cost
from longclip_lab.training.memory import (
    SHORT_TOKENS,
    StepMemory,
    memory_of,
    step_memory,
    text_lengths,
)
from longclip_lab.training.recipe import Recipe

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["GPUS", "Gpu", "Plan", "comparison", "memory_of", "plan"]

UTILISATION = 0.30
"""Share of a GPU's peak that training reaches if pictures arrive in time: an assumption. The times
that the papers tell come to much smaller shares: `python benchmarks/plan.py`."""
FILLED = 0.90
"""Share of a GPU's memory that may be planned for; the rest is the allocator's and the kernels'."""


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
    def hours(self) -> float:
        """Hours on the clock."""
        return self.flops / (1e12 * self.gpu.tflops * self.count * self.utilisation) / 3600

    @property
    def gpu_days(self) -> float:
        """Days of one GPU."""
        return self.hours * self.count / 24

    @property
    def dollars(self) -> float:
        """What the GPUs cost at the assumed price."""
        return self.hours * self.count * self.gpu.dollars

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
        room = FILLED * self.gpu.memory
        base = self.memory(1)
        each = self.memory(2) - base
        if base > room:
            return None
        return min(self.share, 1 + int((room - base) / each))

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: what is assumed and what follows."""
        return {
            "recipe": self.recipe.name,
            "gpu": self.gpu.name,
            "count": self.count,
            "pairs": self.pairs,
            "tokens": self.lengths,
            "utilisation": self.utilisation,
            "dollars_an_hour": self.gpu.dollars,
            "samples": self.samples,
            "flops": self.flops,
            "memory_gb": self.memory(),
            "largest_micro_batch": self.largest_micro_batch,
            "hours": self.hours,
            "gpu_days": self.gpu_days,
            "dollars": self.dollars,
        }

    def lines(self) -> list[str]:
        """The plan in words, assumptions first."""
        recipe, gpu = self.recipe, self.gpu
        fits = self.largest_micro_batch
        if fits is None:
            room = f"does not fit {gpu.memory:.0f} GB, not even a pair at a time"
        elif fits >= self.share:
            room = f"fits {gpu.memory:.0f} GB without gradient caching"
        else:
            room = f"needs --micro-batch {fits} or less to fit {gpu.memory:.0f} GB"
        return [
            f"{recipe.name} on {self.count} x {gpu.name}",
            f"assumed: {self.pairs:,} pairs; {' + '.join(map(str, self.lengths))} tokens a pair; "
            f"{self.utilisation:.0%} of {gpu.tflops:g} TFLOP/s; ${gpu.dollars:.2f} an hour; "
            "pictures arrive in time",
            f"{self.samples:,} pairs pass in {recipe.total_steps(self.pairs):,} steps of "
            f"{recipe.batch_size:,}: {self.flops:.2e} operations",
            f"memory: {self.memory():.1f} GB a GPU for {recipe.micro_batch or self.share} pairs at "
            f"a time; {room}",
            f"time: {self.hours:,.1f} hours, {self.gpu_days:,.1f} GPU days; cost: "
            f"${self.dollars:,.0f}",
        ]


def plan(
    recipe: Recipe,
    gpus: str = "A100:8",
    pairs: int | None = None,
    model: str | None = None,
    long_tokens: int | None = None,
    short_tokens: int = SHORT_TOKENS,
    utilisation: float = UTILISATION,
    dollars: float | None = None,
) -> Plan:
    """The plan of `recipe` on `gpus` ("A100:8": name and count) for a data set of `pairs`.

    `model` is the open_clip architecture for recipes that fine-tune one. `long_tokens`: how many a
    long text has on average, by default as many as are read. `dollars` an hour and GPU replaces
    the assumed price.

    Raises LabError for an unknown GPU (near ones are listed), a batch that does not divide,
    senseless numbers, and as `costs.model_cost` does.
    """
    gpu, count = _parse(gpus)
    if dollars is not None:
        gpu = replace(gpu, dollars=dollars)
    pairs = recipe.pairs if pairs is None else pairs
    if pairs is None:
        raise LabError("Say how many pairs the data set has (--pairs).")
    if not 0 < utilisation <= 1:
        raise LabError(f"The utilisation is a share above 0, up to 1; came {utilisation}.")
    if recipe.batch_size % count:
        raise LabError(f"A batch of {recipe.batch_size} cannot be shared out to {count} GPUs.")
    cost = model_cost(recipe, model)
    longest = cost.text.tokens
    return Plan(
        recipe, cost, gpu, count, pairs,
        min(long_tokens or longest, longest), min(short_tokens, longest), utilisation,
    )  # fmt: skip


def comparison(one: Plan, names: tuple[str, ...] = tuple(GPUS)) -> pd.DataFrame:
    """The same run on as many GPUs of every kind: memory, largest micro-batch, hours, dollars."""
    import pandas as pd

    rows = {}
    for name in names:
        gpu = GPUS[name] if name != one.gpu.name else one.gpu
        other = replace(one, gpu=gpu)
        rows[f"{one.count} x {name}"] = {
            "memory GB": gpu.memory,
            "needs GB": round(other.memory(), 1),
            "largest micro-batch": other.largest_micro_batch or 0,
            "hours": round(other.hours, 1),
            "GPU days": round(other.gpu_days, 1),
            "dollars": round(other.dollars),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _parse(gpus: str) -> tuple[Gpu, int]:
    name, _, count = gpus.partition(":")
    if name not in GPUS:
        raise LabError(f"There is no GPU {name!r} in the list. {suggest(name, GPUS)}")
    if not (count or "1").isdigit() or int(count or 1) < 1:
        raise LabError(f"Expected NAME:COUNT such as A100:8, got {gpus!r}.")
    return GPUS[name], int(count or 1)
