"""The training loop: the same in one process and in any number of them."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from longclip_lab.errors import LabError, LabWarning, NotFiniteError, StoppedError
from longclip_lab.models import Clip
from longclip_lab.objectives import LossParts, Step, objective_loss
from longclip_lab.training.batches import Batch, TrainingPairs
from longclip_lab.training.checkpoints import checkpoint_paths, load_checkpoint, save_checkpoint
from longclip_lab.training.faults import (
    NOT_FINITE,
    NotFiniteStepError,
    agreed,
    listening,
    note_not_finite,
    steps_not_finite,
)
from longclip_lab.training.gradient_cache import backward_in_parts
from longclip_lab.training.log import Progress, RunLog
from longclip_lab.training.peers import watching
from longclip_lab.training.recipe import Recipe
from longclip_lab.training.sharding import average_scalars, clip_gradient, shard, whole_state
from longclip_lab.training.towers import KeptPositions, parameter_groups, prepare


class Loop:
    """The state that changes from step to step."""

    def __init__(
        self, accelerator: Accelerator, clip: Clip, recipe: Recipe, total: int, folder: Path | None
    ):
        self.accelerator, self.recipe, self.total, self.folder = accelerator, recipe, total, folder
        towers = prepare(clip, recipe).to(accelerator.device)
        self.plain: nn.Module | None = None
        if recipe.sharding == "full" and accelerator.num_processes > 1:
            self.plain = copy.deepcopy(clip.model).cpu()
            shard(towers, accelerator)
        optimizer = torch.optim.AdamW(
            parameter_groups(towers, recipe),
            lr=recipe.learning_rate,
            betas=recipe.betas,
            eps=recipe.eps,
        )
        self.kept = KeptPositions(clip, recipe)
        self.model: nn.Module = clip.model
        self.done, self.clock, self.saved = 0, 0.0, time.monotonic()
        if folder is not None and (paths := checkpoint_paths(folder)):
            self.done = load_checkpoint(paths[-1], self.model, optimizer)
        self.towers, self.optimizer = towers, optimizer
        if self.plain is None:
            self.towers, self.optimizer = accelerator.prepare(towers, optimizer)
        writes = folder if accelerator.is_main_process else None
        self.log = RunLog(writes, self.done, recipe.tensorboard)
        self.skipped = steps_not_finite(folder, self.done)

    def run(
        self,
        pairs: TrainingPairs,
        progress: bool,
        on_step: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        bar = Progress(self.total, self.done, self.recipe.name, progress)
        devices = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        try:
            self.clock = time.perf_counter()
            with torch.random.fork_rng(devices), watching(self.accelerator), listening() as stop:
                for batch in pairs.batches(self.done, self.total, rank, processes):
                    if isinstance(batch, LabError):
                        raise batch
                    row = self.step_or_skip(batch, pairs)
                    bar.step(row)
                    logged = self.done % self.recipe.log_every == 0 or self.done == self.total
                    logged = logged and row is not None
                    if logged:
                        self.log.add(row)
                    asked, overdue = agreed(self.accelerator, stop.asked, self.overdue)
                    stopping = asked and self.done < self.total
                    self.checkpoint(stopping or overdue)
                    if logged and on_step is not None:
                        on_step(row)
                    if stopping:
                        raise StoppedError(self.stopped())
        finally:
            bar.close()

    def step_or_skip(self, batch: Batch, pairs: TrainingPairs) -> dict[str, Any] | None:
        """One update; None if its loss was not finite and the recipe lets it be skipped."""
        try:
            return self.step(batch)
        except NotFiniteStepError as error:
            where = ""
            if self.folder is not None:
                path = self.folder / NOT_FINITE / f"step-{error.step:06d}.json"
                if self.accelerator.is_main_process:
                    note_not_finite(self.folder, error, pairs.members(self.done))
                where = f" Its pairs are named in {path}."
            if len(self.skipped) >= self.recipe.skip_not_finite:
                raise LabError(f"{error}{where}") from None
            self.skipped.append(error.step)
            warnings.warn(f"Skipped. {error}{where}", LabWarning, stacklevel=2)
            self.optimizer.zero_grad()
            self.done += 1
            return None

    def stopped(self) -> str:
        """What to say when a run stops because it was asked to."""
        if self.folder is None:
            return f"Asked to stop after step {self.done}; there is no folder, so nothing is kept."
        return (
            f"Asked to stop: the state after step {self.done} is saved; the same call with "
            "resume=True (--resume) goes on."
        )

    def step(self, batch: Batch) -> dict[str, Any]:
        """One update; returns its row of the log."""
        recipe = self.recipe
        # Dropout and the like draw from (seed, step, process), not from what was drawn before.
        state = (recipe.seed, self.done, self.accelerator.process_index)
        torch.manual_seed(int(np.random.SeedSequence(state).generate_state(1)[0]))
        lr = recipe.learning_rate_at(self.done, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        parts, logit_scale = self.backward(batch.to(self.accelerator.device))
        self.kept.clear_gradient()
        limit = recipe.max_grad_norm or float("inf")
        grad_norm = clip_gradient(self.towers.parameters(), limit)
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

    def backward(self, batch: Batch) -> tuple[LossParts, torch.Tensor]:
        """Gradients of the loss on the global batch; returns it and the logit scale."""
        if self.recipe.micro_batch is not None:
            parts, step = backward_in_parts(
                self.accelerator, self.towers, batch, self.recipe.micro_batch, self.loss
            )
        else:
            step = self.towers(batch)
            parts = self.loss(step)
            self.accelerator.backward(parts.total)
        if self.plain is not None:
            average_scalars(self.towers, self.accelerator)
        return parts, step.logit_scale.detach().log()

    def loss(self, step: Step) -> LossParts:
        """The loss of the global batch: the objectives gather the features."""
        try:
            parts = objective_loss(self.recipe.objective, step)
        except NotFiniteError as error:
            raise NotFiniteStepError(self.done + 1, f"{error} {self.last_good()}") from None
        except LabError as error:
            raise LabError(f"Step {self.done + 1}: {error} {self.last_good()}") from None
        self.check_finite("loss", parts.total)
        return parts

    def check_finite(self, what: str, value: torch.Tensor) -> None:
        """Stop before a bad gradient reaches the weights."""
        finite = torch.isfinite(value.detach()).float().reshape(1)
        if self.recipe.skip_not_finite and self.accelerator.num_processes > 1:
            finite = self.accelerator.reduce(finite, reduction="mean")
        if finite.item() < 1:
            raise NotFiniteStepError(
                self.done + 1,
                f"the {what} is {value.item()}. Lower the learning rate, lengthen the warm-up or "
                f"set max_grad_norm. {self.last_good()}",
            )

    def last_good(self) -> str:
        """Where to go on from."""
        paths = checkpoint_paths(self.folder) if self.folder is not None else []
        return f"The last good checkpoint is {paths[-1]}." if paths else "There is no checkpoint."

    @property
    def overdue(self) -> bool:
        """Whether the clock asks for a checkpoint; the main process's clock counts."""
        minutes = self.recipe.checkpoint_minutes
        late = minutes is not None and time.monotonic() - self.saved >= 60 * minutes
        return late and self.accelerator.is_main_process

    def checkpoint(self, asked: bool = False) -> None:
        """Write a checkpoint if one is due: by steps, at the end, or because it is asked for."""
        due = asked or self.done % self.recipe.checkpoint_every == 0 or self.done == self.total
        if not due or self.folder is None:
            return
        self.saved = time.monotonic()
        weights = whole_state(self.model.state_dict())
        moments = whole_state(self.optimizer.state_dict())
        if self.accelerator.is_main_process:
            keep = self.recipe.keep_checkpoints
            save_checkpoint(self.folder, self.done, weights, moments, keep)

    def trained(self) -> nn.Module:
        """The model, whole in every process."""
        if self.plain is None:
            return self.model
        self.plain.load_state_dict(whole_state(self.model.state_dict()))
        return self.plain
