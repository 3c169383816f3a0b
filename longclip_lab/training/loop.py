"""The training loop: the same in one process and under `accelerate launch`.

B pairs of one process, D embedding.
"""

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
from accelerate import Accelerator
from torch import nn

from longclip_lab.errors import LabError, LabWarning
from longclip_lab.models import Clip, save
from longclip_lab.objectives import LossParts, longclip_loss, same_identity
from longclip_lab.training.batches import Batch, StepSampler, TrainingPairs, batches
from longclip_lab.training.checkpoints import (
    checkpoint_paths,
    claim,
    describe,
    load_checkpoint,
    save_checkpoint,
)
from longclip_lab.training.log import Progress, RunLog
from longclip_lab.training.recipes import Recipe
from longclip_lab.training.towers import KeptPositions, parameter_groups, prepare


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


def train(
    clip: Clip,
    recipe: Recipe,
    data: Any = None,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    on_step: Callable[[dict[str, Any]], None] | None = None,
) -> Run:
    """Fine-tune a copy of `clip` by `recipe`.

    `data` has `.images`, `.short`, `.long` and `.source`; by default the world's fine-tuning set.
    With `out`, the folder gets the log, checkpoints and at the end `model/`, which `ll.load`
    reads. `resume=True` goes on from the last checkpoint in `out` and ends, on a CPU, at
    bit-identical weights; if there is none yet it starts. `on_step` is called with each logged row.

    Raises LabError if `out` holds anything that is not this run, if the data do not fit the
    recipe, or if the loss stops being finite; the checkpoints before that stay.
    """
    began = time.perf_counter()
    accelerator = Accelerator()
    data = _training_data(recipe) if data is None else data
    trained = replace(clip, model=copy.deepcopy(clip.model), card=copy.deepcopy(clip.card))
    pairs = TrainingPairs(trained, data)
    total = recipe.total_steps(len(pairs))
    _check_schedule(recipe, total, accelerator.num_processes)
    truncated = {"long": pairs.long.num_truncated, "short": pairs.short.num_truncated}
    folder = None if out is None else Path(out)
    if folder is not None:
        identity = describe(recipe, dict(getattr(data, "source", {})), clip.model)
        facts = {
            "total_steps": total,
            "num_truncated": truncated,
            "skipped": dict(getattr(data, "skipped", {})),
            "model": clip.name,
        }
        if accelerator.is_main_process:
            claim(folder, identity, facts, resume)
        accelerator.wait_for_everyone()
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
    return Run(trained, loop.log.history, folder, seconds, recipe, truncated)


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
            pairs.long.lengths,
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
        recipe = self.recipe
        image_BD, long_BD, short_BD, scale = self.towers(batch)
        masks = recipe.mask_duplicates and not recipe.faithful
        try:
            parts = longclip_loss(
                image_BD,
                long_BD,
                short_BD,
                scale,
                objective=recipe.objective,
                short_weight=recipe.short_weight,
                k=recipe.k,
                faithful=recipe.faithful,
                label_smoothing=recipe.label_smoothing,
                same_short_GG=same_identity(batch.short.identity_B) if masks else None,
            )
        except LabError as error:
            raise LabError(f"Step {self.done + 1}: {error} {self.last_good()}") from None
        return parts, scale.detach().log()

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


def _training_data(recipe: Recipe) -> Any:
    if recipe.pairs is None:
        raise LabError(
            f"The recipe {recipe.name!r} has no data of its own: give some (--data coco --root "
            "DIR), or set pairs to draw as many from the world."
        )
    from longclip_lab import world

    return world.pairs(recipe.pairs, seed=world.TRAIN_SEED, siblings=recipe.siblings)


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
