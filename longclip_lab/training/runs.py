"""A training run from its start to its end: model, data, stored features, folder, record."""

from __future__ import annotations

import copy
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator, DistributedDataParallelKwargs

from longclip_lab.data import ShardSet
from longclip_lab.errors import PROCESSES, LabError, LabWarning
from longclip_lab.images import READING
from longclip_lab.models import Clip, save
from longclip_lab.training.batches import TrainingPairs
from longclip_lab.training.checkpoints import claim, describe
from longclip_lab.training.feature_store import stored_features
from longclip_lab.training.fresh import new_model
from longclip_lab.training.launching import train_in_processes
from longclip_lab.training.log import Progress
from longclip_lab.training.loop import Loop
from longclip_lab.training.peers import minding_launcher
from longclip_lab.training.recipe import Recipe
from longclip_lab.training.streaming import StreamedPairs
from longclip_lab.training.streaming_record import all_broken
from longclip_lab.training.texts import Drawn
from longclip_lab.training.towers import needs


@dataclass
class Run:
    """What a training run gave: the trained model and how it got there."""

    model: Clip
    """A trained copy, in eval mode; the model that was given is as it was."""
    history: list[dict[str, Any]]
    """A row for every logged step: step, loss, loss_long, loss_short, variance_kept, lr,
    grad_norm, logit_scale, samples_per_s."""
    folder: Path | None
    """Where the run was written, or None."""
    seconds: float
    """Time spent in this call."""
    recipe: Recipe
    """What was done."""
    num_truncated: dict[str, int | None]
    """How many "long" and "short" texts did not fit the model's context; of shards whose tokens
    were counted otherwise, of those that were read."""
    drawn: Drawn | None = None
    """What the first epoch's draw of sub-captions gave; None where none are drawn."""
    skipped_steps: list[int] = field(default_factory=list)
    """Steps whose loss or gradient was not finite, left out as `Recipe.skip_not_finite` allows."""
    broken: dict[str, str] = field(default_factory=dict)
    """Pairs of shards that could not be used, by name, and why; others stood in for them."""


@minding_launcher()
def train(
    clip: Clip | None,
    recipe: Recipe,
    data: Any = None,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    features: str | Path | None = None,
    processes: int = 1,
) -> Run:
    """Train a copy of `clip` by `recipe`; without one, the recipe's own new model.

    `data` has `.images`, `.short`, `.long` and `.source`, and for sub-captions `.captioners`, or
    are shards (`data.open_shards`); by default the world's training set. With `out`, the folder
    gets the log, checkpoints and at the end `model/`, which `ll.load` reads. `resume=True` goes on
    from the last checkpoint in `out` and ends, on a CPU, at bit-identical weights; if there is none
    yet it starts. `on_step` is called with each logged row. `features` is the folder where a locked
    tower's features of these pictures are kept for all runs that share them; by default they are
    `out`'s own or, without `out`, in memory.

    With `processes` above 1 as many new processes of this machine share the work, a GPU each where
    there are any, from a notebook too; the result is the same but for rounding. In a script, call
    it under `if __name__ == "__main__":`, as always where Python starts processes.

    Raises LabError if `out` holds anything that is not this run or `features` those of another
    tower or other pictures, if the data do not fit the recipe, or if the loss stops being finite;
    the checkpoints before that stay. Raises StoppedError after a SIGTERM, when the state is saved.
    """
    PROCESSES.check("The number of processes", processes)
    if processes > 1:
        return _train_launched(
            processes, clip, recipe, data, out, resume, progress, on_step, features
        )
    began = time.perf_counter()
    # FILIP reads no pooled feature: what only leads there has no gradient.
    unused = DistributedDataParallelKwargs(find_unused_parameters=needs(recipe, "tokens"))
    accelerator = Accelerator(kwargs_handlers=[unused])
    clip = new_model(recipe) if clip is None else clip
    data = _training_data(recipe) if data is None else data
    trained = replace(clip, model=copy.deepcopy(clip.model), card=copy.deepcopy(clip.card))
    pairs = source_of(trained, data, recipe)
    total = recipe.total_steps(len(pairs))
    _check_schedule(recipe, total, accelerator.num_processes)
    folder = None if out is None else Path(out)
    if folder is not None:
        identity = describe(recipe, _source(data), clip.model)
        _settle(accelerator, folder, identity, _facts(pairs, data, clip, total), resume, pairs)
    if recipe.lock_image and recipe.store_features:
        home = features if features is not None or folder is None else folder / "features"
        pairs.stored = _store(accelerator, trained, data, recipe, home, progress)
    loop = Loop(accelerator, trained, recipe, total, folder)
    try:
        loop.run(pairs, progress and accelerator.is_main_process, on_step)
    finally:
        loop.log.close()
    trained.model = loop.trained()
    _finish(trained, recipe, data, total)
    return _run_of(loop, trained, pairs, began)


def _source(data: Any) -> dict[str, Any]:
    """Which data a run is of: where they come from and, of image files, how those are read."""
    drawn = isinstance(getattr(data, "images", None), np.ndarray)
    values = drawn or getattr(data, "pictures", "files") == "values"
    return {**getattr(data, "source", {}), **({} if values else {"images": READING})}


def _settle(
    accelerator: Accelerator,
    folder: Path,
    identity: dict[str, Any],
    facts: dict[str, Any],
    resume: bool,
    pairs: TrainingPairs | StreamedPairs,
) -> None:
    """Make the folder this run's, for all processes."""
    if accelerator.is_main_process:
        claim(folder, identity, facts, resume)
    accelerator.wait_for_everyone()
    if isinstance(pairs, StreamedPairs):
        pairs.note_in(folder, accelerator.process_index)


def _run_of(loop: Loop, clip: Clip, pairs: TrainingPairs | StreamedPairs, began: float) -> Run:
    """What came of a run that has ended; the model is saved."""
    accelerator, recipe, folder = loop.accelerator, loop.recipe, loop.folder
    if folder is not None and accelerator.is_main_process:
        save(clip, folder / "model")
    accelerator.wait_for_everyone()
    streamed = isinstance(pairs, StreamedPairs)
    return Run(
        clip,
        loop.log.history,
        folder,
        time.perf_counter() - began,
        recipe,
        pairs.num_truncated,
        pairs.drawn if recipe.subcaptions else None,
        loop.skipped,
        all_broken(accelerator, pairs.broken, folder) if streamed else {},
    )


def _train_launched(
    processes: int,
    clip: Clip | None,
    recipe: Recipe,
    data: Any,
    out: str | Path | None,
    resume: bool,
    progress: bool,
    on_step: Callable[[dict[str, Any]], None] | None,
    features: str | Path | None,
) -> Run:
    pairs = recipe.pairs if data is None else len(getattr(data, "images", data))
    bar = Progress(pairs and recipe.total_steps(pairs), 0, recipe.name, progress)
    arguments = {
        "recipe": recipe, "data": data, "out": out, "resume": resume, "features": features
    }  # fmt: skip
    try:
        return train_in_processes(processes, clip, arguments, bar, on_step)
    finally:
        bar.close()


def source_of(clip: Clip, data: Any, recipe: Recipe) -> TrainingPairs | StreamedPairs:
    """What hands out the batches of `data`."""
    if isinstance(data, ShardSet):
        return StreamedPairs(clip, data, recipe)
    if recipe.resample:
        raise LabError(
            "resample draws whole shards, and these data are none: write them with `longclip-lab "
            "data shard`, or leave it off."
        )
    return TrainingPairs(clip, data, recipe)


def _training_data(recipe: Recipe) -> Any:
    if recipe.pairs is None:
        raise LabError(
            f"The recipe {recipe.name!r} has no data of its own: give some (--data coco --root "
            "DIR), or set pairs to draw as many from the world."
        )
    from longclip_lab import world

    if recipe.subcaptions is None:
        return world.pairs(recipe.pairs, seed=world.TRAIN_SEED, siblings=recipe.siblings)
    return world.web_pairs(
        recipe.pairs,
        world.TRAIN_SEED,
        recipe.captioners or tuple(world.CAPTIONERS),
        recipe.hallucination,
        recipe.alt_text_noise,
        siblings=recipe.siblings,
    )


def _facts(
    pairs: TrainingPairs | StreamedPairs, data: Any, clip: Clip, total: int
) -> dict[str, Any]:
    """What `run.json` says beside the run's identity."""
    facts = {
        "total_steps": total,
        "num_truncated": pairs.num_truncated,
        "skipped": dict(getattr(data, "skipped", {})),
        "model": clip.name,
    }
    if pairs.drawn is not None and pairs.drawn.by_captioner:
        facts["drawn"] = pairs.drawn.to_dict()
    return facts


def _store(
    accelerator: Accelerator,
    clip: Clip,
    data: Any,
    recipe: Recipe,
    home: str | Path | None,
    progress: bool,
) -> np.ndarray:
    clip.model.to(accelerator.device)
    return stored_features(
        clip,
        data.images,
        home,
        tokens=needs(recipe, "tokens"),
        half=recipe.precision == "bf16",
        workers=recipe.workers,
        progress=progress,
        accelerator=accelerator,
    )


def _check_schedule(recipe: Recipe, total: int, processes: int) -> None:
    if recipe.batch_size % processes:
        raise LabError(
            f"A batch of {recipe.batch_size} cannot be shared out evenly to {processes} "
            "processes; choose a multiple."
        )
    if total <= recipe.warmup_steps:
        warnings.warn(
            f"The run of {total} steps ends within its warm-up of {recipe.warmup_steps}.",
            LabWarning,
            stacklevel=3,
        )


def _finish(clip: Clip, recipe: Recipe, data: Any, total: int) -> None:
    clip.model.eval()
    if recipe.grad_checkpointing:
        clip.model.set_grad_checkpointing(False)
    record = {"recipe": asdict(recipe), "steps": total, "data": getattr(data, "source", {})}
    # Through JSON, as after a round trip through a file.
    clip.card.setdefault("fine_tuned", []).append(json.loads(json.dumps(record)))
    clip.name = f"{clip.name}+{recipe.name}"
