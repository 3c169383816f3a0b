"""The training loop: the same in one process and under `accelerate launch`."""

from __future__ import annotations

import copy
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import nn

from longclip_lab.errors import LabError, LabWarning
from longclip_lab.models import Clip, save
from longclip_lab.objectives import OBJECTIVES, LossParts, Step, longclip_loss, objective_loss
from longclip_lab.training.batches import Batch, StepSampler, TrainingPairs, batches
from longclip_lab.training.checkpoints import (
    checkpoint_paths,
    claim,
    describe,
    load_checkpoint,
    save_checkpoint,
)
from longclip_lab.training.feature_store import stored_features
from longclip_lab.training.fresh import new_model
from longclip_lab.training.log import Progress, RunLog
from longclip_lab.training.recipe import Recipe
from longclip_lab.training.texts import Drawn
from longclip_lab.training.towers import KeptPositions, needs, parameter_groups, prepare


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
    num_truncated: dict[str, int]
    """How many "long" and "short" texts did not fit the model's context."""
    drawn: Drawn | None = None
    """What the first epoch's draw of sub-captions gave; None where none are drawn."""


def train(
    clip: Clip | None,
    recipe: Recipe,
    data: Any = None,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    features: str | Path | None = None,
) -> Run:
    """Train a copy of `clip` by `recipe`; without one, the recipe's own new model.

    `data` has `.images`, `.short`, `.long` and `.source`, and for sub-captions `.captioners`; by
    default the world's training set. With `out`, the folder gets the log, checkpoints and at the
    end `model/`, which `ll.load` reads. `resume=True` goes on from the last checkpoint in `out`
    and ends, on a CPU, at bit-identical weights; if there is none yet it starts. `on_step` is
    called with each logged row. `features` is the folder where a locked tower's features of these
    pictures are kept for all runs that share them; by default they are `out`'s own or, without
    `out`, in memory.

    Raises LabError if `out` holds anything that is not this run or `features` those of another
    tower or other pictures, if the data do not fit the recipe, or if the loss stops being finite;
    the checkpoints before that stay.
    """
    began = time.perf_counter()
    # FILIP reads no pooled feature: what only leads there has no gradient.
    unused = DistributedDataParallelKwargs(find_unused_parameters=needs(recipe, "tokens"))
    accelerator = Accelerator(kwargs_handlers=[unused])
    clip = new_model(recipe) if clip is None else clip
    data = _training_data(recipe) if data is None else data
    trained = replace(clip, model=copy.deepcopy(clip.model), card=copy.deepcopy(clip.card))
    pairs = TrainingPairs(trained, data, recipe)
    total = recipe.total_steps(len(pairs))
    _check_schedule(recipe, total, accelerator.num_processes)
    folder = None if out is None else Path(out)
    if folder is not None:
        identity = describe(recipe, dict(getattr(data, "source", {})), clip.model)
        if accelerator.is_main_process:
            claim(folder, identity, _facts(pairs, data, clip, total), resume)
        accelerator.wait_for_everyone()
    if recipe.lock_image and recipe.store_features:
        home = features if features is not None or folder is None else folder / "features"
        pairs.stored = _store(accelerator, trained, data, recipe, home, progress)
    loop = _Loop(accelerator, trained, recipe, total, folder)
    try:
        loop.run(pairs, progress and accelerator.is_main_process, on_step)
    finally:
        loop.log.close()
    _finish(trained, recipe, data, total)
    if folder is not None and accelerator.is_main_process:
        save(trained, folder / "model")
    accelerator.wait_for_everyone()
    seconds = time.perf_counter() - began
    drawn = pairs.drawn if recipe.subcaptions else None
    return Run(trained, loop.log.history, folder, seconds, recipe, pairs.num_truncated, drawn)


class _Loop:
    """The state that changes from step to step."""

    def __init__(
        self, accelerator: Accelerator, clip: Clip, recipe: Recipe, total: int, folder: Path | None
    ):
        self.accelerator, self.recipe, self.total, self.folder = accelerator, recipe, total, folder
        towers = prepare(clip, recipe)
        optimizer = torch.optim.AdamW(
            parameter_groups(towers, recipe),
            lr=recipe.learning_rate,
            betas=recipe.betas,
            eps=recipe.eps,
        )
        self.kept = KeptPositions(clip, recipe)
        self.model: nn.Module = clip.model
        self.done, self.clock = 0, 0.0
        if folder is not None and (paths := checkpoint_paths(folder)):
            self.done = load_checkpoint(paths[-1], self.model, optimizer)
        self.towers, self.optimizer = accelerator.prepare(towers, optimizer)
        writes = folder if accelerator.is_main_process else None
        self.log = RunLog(writes, self.done, recipe.tensorboard)

    def run(
        self,
        pairs: TrainingPairs,
        progress: bool,
        on_step: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        sampler = StepSampler(
            self.recipe,
            pairs.lengths,
            self.done,
            self.total,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        bar = Progress(self.total, self.done, self.recipe.name, progress)
        devices = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        try:
            self.clock = time.perf_counter()
            with torch.random.fork_rng(devices):
                for batch in batches(pairs, sampler):
                    if isinstance(batch, LabError):
                        raise batch
                    row = self.step(batch)
                    bar.step(row)
                    logged = self.done % self.recipe.log_every == 0 or self.done == self.total
                    if logged:
                        self.log.add(row)
                    self.checkpoint()
                    if logged and on_step is not None:
                        on_step(row)
        finally:
            bar.close()

    def step(self, batch: Batch) -> dict[str, Any]:
        """One update; returns its row of the log."""
        recipe = self.recipe
        # Dropout and the like draw from (seed, step, process), not from what was drawn before.
        state = (recipe.seed, self.done, self.accelerator.process_index)
        torch.manual_seed(int(np.random.SeedSequence(state).generate_state(1)[0]))
        lr = recipe.learning_rate_at(self.done, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        parts, logit_scale = self.loss(batch.to(self.accelerator.device))
        self.check_finite("loss", parts.total)
        self.optimizer.zero_grad()
        self.accelerator.backward(parts.total)
        self.kept.clear_gradient()
        limit = recipe.max_grad_norm or float("inf")
        grad_norm = self.accelerator.clip_grad_norm_(self.towers.parameters(), limit)
        self.check_finite("gradient", grad_norm)
        self.optimizer.step()
        self.kept.restore()
        if recipe.max_logit_scale is not None:
            with torch.no_grad():
                self.model.logit_scale.clamp_(max=recipe.max_logit_scale)
        self.done += 1
        return {
            "step": self.done,
            "loss": parts.total.item(),
            "loss_long": parts.long.item(),
            "loss_short": parts.short.item(),
            "variance_kept": parts.variance_kept.item(),
            "lr": lr,
            "grad_norm": float(grad_norm),
            "logit_scale": logit_scale.item(),
            "samples_per_s": recipe.batch_size / self.lap(),
        }

    def lap(self) -> float:
        """Seconds since the step before, waiting for data and writing included."""
        before, self.clock = self.clock, time.perf_counter()
        return self.clock - before

    def loss(self, batch: Batch) -> tuple[LossParts, torch.Tensor]:
        """The loss of the global batch (the objectives gather it) and the logit scale."""
        step = self.towers(batch)
        try:
            parts = _loss_of(step, self.recipe)
        except LabError as error:
            raise LabError(f"Step {self.done + 1}: {error} {self.last_good()}") from None
        return parts, step.logit_scale.detach().log()

    def check_finite(self, what: str, value: torch.Tensor) -> None:
        """Stop before a bad gradient reaches the weights."""
        if not torch.isfinite(value):
            raise LabError(
                f"Step {self.done + 1}: the {what} is {float(value)}. Lower the learning rate, "
                f"lengthen the warm-up or set max_grad_norm. {self.last_good()}"
            )

    def last_good(self) -> str:
        """Where to go on from."""
        paths = checkpoint_paths(self.folder) if self.folder is not None else []
        return f"The last good checkpoint is {paths[-1]}." if paths else "There is no checkpoint."

    def checkpoint(self) -> None:
        """Write a checkpoint if one is due."""
        due = self.done % self.recipe.checkpoint_every == 0 or self.done == self.total
        if due and self.folder is not None and self.accelerator.is_main_process:
            keep = self.recipe.keep_checkpoints
            save_checkpoint(self.folder, self.done, self.model, self.optimizer, keep)


def _loss_of(step: Step, recipe: Recipe) -> LossParts:
    if recipe.objective in OBJECTIVES:
        return objective_loss(recipe.objective, step)
    short = step.short
    return longclip_loss(
        step.image.features_BD,
        step.long.pooled_BD,
        None if short is None else short.pooled_BD,
        step.logit_scale,
        objective=recipe.objective,
        short_weight=recipe.short_weight,
        k=recipe.k,
        faithful=recipe.faithful,
        label_smoothing=recipe.label_smoothing,
        same_short_GG=None if short is None else short.same_GG,
    )


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


def _facts(pairs: TrainingPairs, data: Any, clip: Clip, total: int) -> dict[str, Any]:
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
