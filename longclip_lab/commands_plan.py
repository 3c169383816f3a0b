"""What `longclip-lab plan` can do; see `longclip_lab.commands`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from longclip_lab.commands import say
from longclip_lab.errors import COUNT, NOT_NEGATIVE, POSITIVE, SHARE
from longclip_lab.files import to_json
from longclip_lab.training.recipes import METHODS, DataScale, Preset, Scale, recipe_for

if TYPE_CHECKING:
    from longclip_lab.training.planning import Plan

PAIRS = {"3M": 3_000_000, "12M": 12_000_000, "30M": 30_000_000, "100M": 100_000_000}
SHAREGPT4V = 1_246_901 - 1_000
"""ShareGPT4V-PT without the first thousand, as the official code trains."""


@dataclass(kw_only=True)
class PlanRun:
    """Predict operations, memory, hours and dollars of a recipe before it is started.

    The assumptions are printed with it, and what the same run takes at the rate of both papers.
    """

    method: Annotated[Positional[str], arg(metavar="{" + ",".join(METHODS) + "}")]
    """The recipe, as for `train`."""
    gpus: str = "A100:8"
    """Kind and number: H100, A100, L4 or 4090."""
    scale: Scale = "paper"
    """Size of the run."""
    preset: Preset = "repository"
    """longclip: which of the two published settings."""
    data_scale: DataScale = "3M"
    """The others: which of LoTLIP's published data scales."""
    model: str = "ViT-B-16"
    """longclip: the open_clip architecture that is fine-tuned."""
    pairs: Annotated[int, COUNT] | None = None
    """Pairs in the data set; by default the published number."""
    micro_batch: Annotated[int, COUNT] | None = None
    """Pairs of a process at a time (gradient caching)."""
    batch_size: Annotated[int, COUNT] | None = None
    """Pairs in a global batch; by default the recipe's."""
    store_features: bool = True
    """Whether a locked tower's features are stored, as the recipe has it."""
    sharding: Literal["none", "full"] = "none"
    """full: weights, gradients and moments are shared out over the GPUs."""
    long_tokens: Annotated[int, COUNT] | None = None
    """Tokens of a long text on average; by default as many as the model reads."""
    short_tokens: Annotated[int, COUNT] = 32
    """Tokens of a short text on average."""
    utilisation: Annotated[float, SHARE] | None = None
    """Share of the peak that is reached; by default 0.30."""
    arriving: Annotated[float, POSITIVE] | None = None
    """Pairs a second that reach each GPU, where that was measured; by default as many as it can
    take."""
    spot: bool = False
    """On spot machines: half the price, and taken away every few hours."""
    dollars: Annotated[float, NOT_NEGATIVE] | None = None
    """Price of a GPU hour on demand."""
    json: bool = False
    """Print one JSON object instead of sentences."""

    def run(self) -> None:
        from longclip_lab.training import planning

        made = self.plan()
        table = planning.comparison(made)
        if self.json:
            facts = {"plan": made.to_dict(), "table": table.to_dict(orient="index")}
            say(to_json(facts, indent=2))
            return
        say(str(made))
        say(table.to_string())

    def plan(self) -> Plan:
        """The plan that these options ask for."""
        from longclip_lab.training import planning

        recipe = recipe_for(self.method, self.scale, self.preset, self.data_scale)
        changes = {"micro_batch": self.micro_batch, "batch_size": self.batch_size}
        recipe = replace(
            recipe,
            store_features=self.store_features,
            sharding=self.sharding,
            **{name: v for name, v in changes.items() if v is not None},
        )
        tuned = self.method == "longclip"
        given = (self.pairs, recipe.pairs, SHAREGPT4V if tuned else PAIRS[self.data_scale])
        pairs = next(number for number in given if number is not None)
        return planning.plan(
            recipe,
            self.gpus,
            pairs,
            self.model if tuned else None,
            self.long_tokens,
            self.short_tokens,
            planning.UTILISATION if self.utilisation is None else self.utilisation,
            self.dollars,
            self.arriving,
            self.spot,
        )
