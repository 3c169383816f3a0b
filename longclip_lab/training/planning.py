"""How long a training run takes, what it holds and what it costs, before it is started.

Everything follows from the recipe by formula (`costs`, `memory`) and from assumptions, which a plan
carries with it and prints. Two times are told: what the arithmetic takes if pictures arrive fast
enough, and what it takes at the rate of both papers. A budget lies between them until somebody has
measured how fast pictures arrive (`arriving`).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from longclip_lab.errors import COUNT, LabError, Numbers
from longclip_lab.training.costs import ModelCost, model_cost
from longclip_lab.training.gpus import (
    GPUS,
    PAPERS_RATE,
    RESTART_MINUTES,
    SPOT_HOURS,
    SPOT_PRICE,
    Gpu,
    parse_gpus,
)
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
        from longclip_lab.training.plan_words import lines

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
