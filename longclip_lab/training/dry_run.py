"""The largest micro-batch that fits, found by taking steps: a dry run before the run.

Random pictures, and texts as long as the model reads, which is the worst that can come. The formula
of `memory` says what to try next, put right by what the steps before have held.

B pairs of a step, S the shape of a stored feature.
"""

from __future__ import annotations

import copy
import json
import os
import warnings
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
import torch
from accelerate import Accelerator

from longclip_lab.errors import POSITIVE, PROCESSES, LabError, LabWarning
from longclip_lab.models import Clip, pixels
from longclip_lab.training.data import Batch, Texts, TextTable, token_limit
from longclip_lab.training.features import stored_features
from longclip_lab.training.loop import Loop, needs
from longclip_lab.training.plan import (
    FILLED,
    SHORT_TOKENS,
    ModelCost,
    cost_of,
    step_memory,
    text_lengths,
)
from longclip_lab.training.recipe import Recipe

GB = 1e9
FIRST, AT_MOST, TRIES = 2, 4, 12
"""The micro-batch to begin with, how many times as large the next one may be, and how many."""
PLAIN = "Here is a sentence for a model that reads English. "
WORLD = "there is a red rocket . "


@dataclass(frozen=True)
class Tried:
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
    tried: tuple[Tried, ...]
    largest: int | None
    """None if not even `FIRST` pairs fit; `share` if gradient caching is not needed."""

    def __str__(self) -> str:
        rows = [
            f"{one.micro_batch:6} pairs at a time: {one.measured / GB:8.3f} GB, predicted "
            f"{one.predicted / GB:8.3f} GB"
            for one in self.tried
        ]
        room = f"{self.memory / GB:.3f} GB"
        if self.largest is None:
            verdict = f"{room} are too few for {self.tried[-1].micro_batch} pairs at a time"
        elif self.largest == self.share:
            verdict = f"{room} hold all {self.share} pairs of a process: no --micro-batch needed"
        else:
            verdict = f"{room} hold --micro-batch {self.largest} of {self.share} pairs of a process"
        return "\n".join([*rows, verdict])


def largest_micro_batch(
    clip: Clip, recipe: Recipe, processes: int = 1, memory: float | None = None
) -> Fit:
    """Find the largest micro-batch with which a process of `processes` needs at most `memory`.

    `memory` in bytes is by default 90% of the GPU's; without one, of the process's share of what is
    free here. Steps are real ones of a copy of `clip` in this process, each on one micro-batch
    alone, and what torch has allocated is measured. What the rest of the batch and other processes
    add (pictures that wait, features and logits of all pairs, copies of gradients) or take over is
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
    step: Callable[[int], Tried], predict: Callable[[int], int], share: int, memory: float
) -> Fit:
    """Take steps until the largest size is known, up to `share`; see `largest_micro_batch`."""
    tried = [step(min(FIRST, share))]
    if tried[0].measured > memory:
        return Fit(share, memory, tuple(tried), None)
    while len(tried) < TRIES and (size := _next(tried, memory, share, predict)) is not None:
        tried.append(step(size))
    largest = max(one.micro_batch for one in tried if one.measured <= memory)
    return Fit(share, memory, tuple(tried), largest)


def _next(
    tried: list[Tried], memory: float, share: int, predict: Callable[[int], int]
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
        copied = replace(clip, model=copy.deepcopy(clip.model), card=copy.deepcopy(clip.card))
        self.cost: ModelCost = cost_of(
            copied.model, copied.card["model_cfg"]["embed_dim"], lock_image=recipe.lock_image
        )
        limit = token_limit(copied, recipe)
        long = limit + recipe.num_corner
        self.lengths = text_lengths(recipe, long, min(SHORT_TOKENS, limit))
        self.recipe, self.processes = recipe, processes
        self.accelerator = Accelerator()
        self.device = self.accelerator.device
        # A rate that changes nothing: the random weights stay as they are.
        quick = replace(
            recipe, learning_rate=1e-30, weight_decay=0.0, warmup_steps=0, steps=2, epochs=None,
            batch_size=FIRST, siblings=1, sharding="none", micro_batch=None,
        )  # fmt: skip
        self.loop = Loop(self.accelerator, copied, quick, 2, None)
        self.pair = self._pair(copied, limit)
        self._step(FIRST)  # from now on the optimizer has its moments

    def _pair(self, clip: Clip, limit: int) -> Batch:
        """One pair: noise, and a long and a short text of as many tokens as there may be."""
        image = np.random.default_rng(0).integers(0, 256, (1, clip.image_size, clip.image_size, 3))
        image = image.astype(np.uint8)
        phrase = WORLD if clip.tokenizer.name == "world" else PLAIN
        long, short = (
            Texts(*TextTable(clip, [phrase * tokens], tokens).batch([0]))
            for tokens in (limit, min(SHORT_TOKENS, limit))
        )
        long = None if self.recipe.captions == "short" else long
        short = None if self.recipe.captions == "long" else short
        if not (self.recipe.lock_image and self.recipe.store_features):
            return Batch(pixels(clip, image), long, short)
        stored_1S = stored_features(
            clip, image, tokens=needs(self.recipe, "tokens"), accelerator=self.accelerator
        )
        return Batch(None, long, short, torch.from_numpy(stored_1S))

    def free(self) -> float:
        """Bytes that a process may have: its GPU's, or its share of what this machine has left."""
        if self.device.type == "cuda":
            return float(torch.cuda.mem_get_info(self.device)[1])
        return psutil.virtual_memory().available / self.processes

    def predict(self, size: int) -> int:
        """Bytes by formula, in a process of the run that is asked about."""
        return step_memory(self.cost, self.recipe, self.lengths, self.processes, size).total

    def step(self, size: int) -> Tried:
        """Take a step of `size` pairs."""
        taken = max(size, FIRST)  # of one pair alone there is no contrastive loss
        try:
            peak = self._peak(lambda: self._step(taken))
        except torch.OutOfMemoryError:
            peak = float("inf")
            torch.cuda.empty_cache()
        there = self.predict(size)
        here = replace(self.recipe, batch_size=taken, siblings=1, sharding="none")
        known = step_memory(self.cost, here, self.lengths, 1, taken).total
        return Tried(size, peak + there - known, there)

    def _step(self, pairs: int) -> None:
        self.loop.done = 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LabWarning)  # so few pairs cannot support PCM
            self.loop.step(_repeated(self.pair, pairs))

    def _peak(self, step: Callable[[], None]) -> float:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            step()
            return float(torch.cuda.max_memory_allocated(self.device))
        self.loop.optimizer.zero_grad()
        return self._standing() + _grown(step)

    def _standing(self) -> int:
        """Bytes that are there between two steps: weights and AdamW's moments."""
        states = self.loop.optimizer.state.values()
        moments = [value for state in states for value in state.values()]
        tensors = (*self.loop.towers.parameters(), *self.loop.towers.buffers(), *moments)
        return sum(tensor.nbytes for tensor in tensors)


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


def _repeated(pair: Batch, pairs: int) -> Batch:
    """The same pair so many times, each with an identity of its own."""
    long, short = (
        texts
        and Texts(texts.ids_BT.repeat(pairs, 1), texts.lengths_B.repeat(pairs), torch.arange(pairs))
        for texts in (pair.long, pair.short)
    )
    pictures = (
        part if part is None else part.repeat(pairs, *(1,) * (part.ndim - 1))
        for part in (pair.pixels_B3HW, pair.stored_BS)
    )
    pixels_B3HW, stored_BS = pictures
    return Batch(pixels_B3HW, long, short, stored_BS)
