"""Commands of training: train, and plan what a run takes."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from longclip_lab.commands import Files, load_model, readable_data, say
from longclip_lab.errors import COUNT, MANY, NOT_NEGATIVE, POSITIVE, PROCESSES, SHARE, LabError
from longclip_lab.files import to_json
from longclip_lab.threads import rank_and_size
from longclip_lab.training.recipes import METHODS, DatasetSize, Preset, Recipe, Scale, recipe_for

if TYPE_CHECKING:
    from longclip_lab.training.plan import Plan


# --- What `longclip-lab train` can do; see `longclip_lab.commands` ---

TrainingData = Literal["world", "coco", "dreamlip", "lotlip", "sharegpt4v", "shards"]


@dataclass(frozen=True)
class RecipeOptions(Recipe):
    """Fields of longclip_lab.training.Recipe; the method, --scale, --preset and --dataset-size set
    the defaults shown."""

    def __post_init__(self) -> None:
        """Nothing yet: `checked` makes a Recipe, whose complaint becomes one line."""

    def checked(self, default: Recipe) -> Recipe:
        """The recipe. Whichever of steps and epochs was changed stands in for the other."""
        values = {f.name: getattr(self, f.name) for f in fields(Recipe)}
        if self.steps is not None and self.epochs is not None:
            changed_epochs = self.epochs != default.epochs
            if changed_epochs != (self.steps != default.steps):
                values["steps" if changed_epochs else "epochs"] = None
        return Recipe(**values)


def default_options(
    method: str = "longclip",
    scale: Scale = "tiny",
    preset: Preset = "repository",
    dataset_size: DatasetSize = "3M",
) -> RecipeOptions:
    """The preset of `recipe_for` as options."""
    return RecipeOptions(**asdict(recipe_for(method, scale, preset, dataset_size)))


@dataclass(kw_only=True)
class Train(Files):
    """Train a model by a recipe: Long-CLIP, LoTLIP, or one of the methods they are compared with.

    longclip fine-tunes a model with stretched positions; the others start a new one from two
    towers.
    """

    method: Annotated[Positional[str], arg(metavar="{" + ",".join(METHODS) + "}")]
    """longclip: long captions, and short ones against the primary components (PCM). lotlip: a
    locked image tower and corner tokens. lit, clip, siglip, filip, laclip: each by its own paper.
    lit-longclip: LiT with Long-CLIP's loss. register: LiT with register tokens."""
    model: str | None = None
    """A bundled model, an open_clip name, a checkpoint file or a saved folder; by default tiny for
    longclip and a new model for the others."""
    pretrained: str | None = None
    """open_clip's tag, or a file of weights, for an open_clip name."""
    stretch: Literal["kps", "linear", "random", "none"] = "kps"
    """longclip: how to stretch the positions of a model that has not been stretched yet."""
    keep: Annotated[int, MANY] = 20
    """Positions that stretching keeps."""
    ratio: Annotated[float, NOT_NEGATIVE] = 4
    """How many times as many the others become."""
    scale: Scale = "tiny"
    """Size of the run; sets the recipe's defaults."""
    preset: Preset = "repository"
    """longclip: which of the two published settings; sets the recipe's defaults."""
    dataset_size: DatasetSize = "3M"
    """The others, at paper scale: which of LoTLIP's published data scales; sets the defaults."""
    data: TrainingData = "world"
    """The world's training set, a folder in COCO's layout, long captions as published, or shards:
    their folder or address (s3://, gs://, https://) is --root."""
    root: str | None = None
    """Folder of the data set; of shards also an address."""
    out: Path | None = None
    """Folder for log, checkpoints and the trained model."""
    features: Path | None = None
    """Folder for a locked tower's features, for all runs on the same pictures; by default in
    --out."""
    resume: bool = False
    """Go on from the last checkpoint in --out."""
    processes: Annotated[int, PROCESSES] = 1
    """Processes of this machine that share the work, a GPU each where there are any. On several
    machines use torchrun."""
    dry_run: bool = False
    """Do not train: find the largest --micro-batch that fits by taking steps on made-up pairs."""
    memory: Annotated[float, POSITIVE] | None = None
    """--dry-run: GB (10^9 bytes) a process may use; by default 90% of the GPU, or of what is free
    here, shared by --processes."""
    recipe: OmitArgPrefixes[RecipeOptions] = field(default_factory=default_options)

    def run(self) -> None:
        default = recipe_for(self.method, self.scale, self.preset, self.dataset_size)
        recipe = self.recipe.checked(default)
        if self.dry_run and "WORLD_SIZE" in os.environ:
            raise LabError("A dry run takes one process; --processes says how many there will be.")
        data = None if self.dry_run else self._open()
        from longclip_lab import training

        clip = self._stretched(recipe) if self.method == "longclip" else self._with_corners(recipe)
        processes = max(self.processes, rank_and_size()[1])
        _predict(clip, recipe, processes)
        if self.dry_run:
            memory = None if self.memory is None else 1e9 * self.memory
            say(str(training.largest_micro_batch(clip, recipe, processes, memory)))
            return
        data = data and readable_data(clip, data)
        run = training.train(
            clip,
            recipe,
            data,
            self.out,
            self.resume,
            self.progress,
            features=self.features,
            processes=self.processes,
        )
        _tell(run)

    def _open(self) -> Any:
        if self.data == "world":
            return None
        if self.data == "coco":
            return self.open_coco("train2017")
        from longclip_lab.commands import announced
        from longclip_lab.data import open_data

        if self.data == "shards":
            shards = open_data("shards", self.root, self.split)
            say(f"{shards.name}: {len(shards)} pairs in {len(shards.shards)} shards")
            return shards
        return announced(
            open_data(
                self.data,
                self.root,
                self.split,
                skip_bad=self.skip_bad,
                progress=self.progress,
            )
        )

    def _stretched(self, recipe: Recipe) -> Any:
        from longclip_lab import models

        clip = load_model(self.model or "tiny", self.pretrained, recipe.seed)
        if clip.card["positions"]["method"] != "none":
            return clip
        return models.stretch(clip, self.keep, self.ratio, method=self.stretch, seed=recipe.seed)

    def _with_corners(self, recipe: Recipe) -> Any:
        from longclip_lab import models, training

        if self.model is None:
            return training.new_model(recipe)
        clip = load_model(self.model, self.pretrained, recipe.seed)
        if models.corners_of(clip) is not None:
            return clip
        kind, mask = training.extra_tokens(recipe)
        return models.add_corner_tokens(clip, recipe.num_corner, mask, kind, seed=recipe.seed)


def _predict(clip: Any, recipe: Recipe, processes: int) -> None:
    """What a step will hold, in one line, where there is a formula for it."""
    from longclip_lab.training import memory_of

    held = memory_of(clip, recipe, processes)
    if held is None:
        return
    share = recipe.batch_size // processes
    size = min(recipe.micro_batch or share, share)
    parts = ", ".join(f"{what} {count / 1e9:.2f}" for what, count in held.parts.items())
    each = " a process" if processes > 1 else ""
    say(f"memory, predicted: {held.total / 1e9:.2f} GB{each} for {size} pairs at a time ({parts})")


def _tell(run: Any) -> None:
    """The end of a run in a few lines."""
    last, recipe = run.history[-1], run.recipe
    say(f"{run.model.name}: step {last['step']}, loss {last['loss']:.4f}")
    if recipe.objective in ("longclip", "lit-longclip", "debias-clip"):
        kept = f"{100 * last['variance_kept']:.2f}% of the image features' variance"
        say(f"{recipe.k} primary components keep {kept}")
    for which, count in run.num_truncated.items():
        if count:
            say(f"{count} {which} texts are cut at {run.model.context_length} tokens")
    if run.drawn is not None:
        drawn = run.drawn
        said = ", ".join(f"{who} {count}" for who, count in drawn.by_captioner.items())
        say(
            f"long texts, first epoch: {recipe.subcaptions} sub-captions each ({said}); "
            f"{drawn.fewer} of {drawn.pictures} captions have fewer, all of which were read"
        )
    if run.broken:
        some = ", ".join(list(run.broken)[:5])
        more = f" and {len(run.broken) - 5} more" if len(run.broken) > 5 else ""
        say(f"{len(run.broken)} broken pairs, others stood in for them: {some}{more}")
    if run.folder is not None:
        say(f"written to {run.folder}; the model is in {run.folder / 'model'}")


# --- What `longclip-lab plan` can do; see `longclip_lab.commands` ---

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
    dataset_size: DatasetSize = "3M"
    """The others: which of LoTLIP's published data scales."""
    model: str = "ViT-B-16"
    """longclip: the open_clip architecture that is fine-tuned."""
    pairs: Annotated[int, COUNT] | None = None
    """Pairs in the data set; by default the published number."""
    micro_batch: Annotated[int, COUNT] | None = None
    """Pairs of a process at a time (gradient caching)."""
    batch_size: Annotated[int, COUNT] | None = None
    """Pairs in a global batch; by default the recipe's."""
    cache_image_features: bool = True
    """Whether a locked tower's features are stored, as the recipe has it."""
    sharding: Literal["none", "full"] = "none"
    """full: weights, gradients and moments are shared out over the GPUs."""
    long_tokens: Annotated[int, COUNT] | None = None
    """Tokens of a long text on average; by default as many as the model reads."""
    short_tokens: Annotated[int, COUNT] = 32
    """Tokens of a short text on average."""
    mfu: Annotated[float, SHARE] | None = None
    """Share of the peak that is reached; by default 0.30."""
    data_throughput: Annotated[float, POSITIVE] | None = None
    """Pairs a second that reach each GPU, where that was measured; by default as many as it can
    take."""
    spot: bool = False
    """On spot machines: half the price, and taken away every few hours."""
    dollars: Annotated[float, NOT_NEGATIVE] | None = None
    """Price of a GPU hour on demand."""
    json: bool = False
    """Print one JSON object instead of sentences."""

    def run(self) -> None:
        from longclip_lab.training import plan as planning

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
        from longclip_lab.training import plan as planning

        recipe = recipe_for(self.method, self.scale, self.preset, self.dataset_size)
        changes = {"micro_batch": self.micro_batch, "batch_size": self.batch_size}
        recipe = replace(
            recipe,
            cache_image_features=self.cache_image_features,
            sharding=self.sharding,
            **{name: v for name, v in changes.items() if v is not None},
        )
        tuned = self.method == "longclip"
        given = (self.pairs, recipe.pairs, SHAREGPT4V if tuned else PAIRS[self.dataset_size])
        pairs = next(number for number in given if number is not None)
        return planning.plan(
            recipe,
            self.gpus,
            pairs,
            self.model if tuned else None,
            self.long_tokens,
            self.short_tokens,
            planning.MFU if self.mfu is None else self.mfu,
            self.dollars,
            self.data_throughput,
            self.spot,
        )
