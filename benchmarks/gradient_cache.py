"""One step of a large batch: at once, by gradient caching, by open_clip's accumulation.

    python benchmarks/gradient_cache.py                      # tiny at 1,024, ViT-B/32 at 64 pairs
    python benchmarks/gradient_cache.py --only tiny --batch 256 --micro 32

`Recipe.micro_batch` against the whole batch at once, and against `open_clip_train.train` itself
with its `accum_freq`. All three take the same step of the same model on the same batch: CLIP's loss
with one text a picture, AdamW, float32. Every text fills the context of 77 tokens and is run as it
is, so that what is compared is the batch alone. ViT-B/32 has random weights and inputs, which costs
no other time; its whole batch must fit into memory here, hence 64.

Each way runs in a process of its own: a small step to warm up, then memory is given back, and the
peak of resident memory above what stands then (weights, AdamW's moments, batch) is that of one
step, gradients included. Linux only. Prints one JSON object. `gradient_difference` is relative to
the whole batch's, over all weights but the logit scale; `scale_gradient_ratio` is that one's, which
open_clip's accumulation adds up once for each of its `parts`.

Takes about 3 minutes on one core.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from open_clip.loss import ClipLoss
from open_clip_train.train import train_one_epoch

from longclip_lab import models, training, world
from longclip_lab.errors import LabWarning
from longclip_lab.models import Clip
from longclip_lab.training.data import Batch, TokenBatch, TrainingPairs
from longclip_lab.training.loop import Loop

WAYS = ("whole", "cached", "open_clip")
SIZES = {"tiny": (1024, 64), "ViT-B-32": (64, 8)}
"""Batch and micro-batch of each model."""


def recipe_of(batch: int, micro: int | None) -> training.Recipe:
    """CLIP's own loss, and a rate that changes nothing: what is left of a step is its gradient."""
    return training.Recipe(
        name="gradient-cache", objective="long", captions="long", label_smoothing=0.0,
        batch_size=batch, steps=2, warmup_steps=0, learning_rate=1e-30, weight_decay=0.0,
        length_buckets=1, micro_batch=micro,
    )  # fmt: skip


def batch_of(clip: Clip, size: int) -> Batch:
    """Pictures and texts of 77 tokens: the world's, for other models random ones."""
    if clip.tokenizer.name == "world":
        data = world.pairs(size, seed=world.TRAIN_SEED)
        return TrainingPairs(clip, data, recipe_of(size, None)).__getitems__(list(range(size)))
    pixels_B3HW = torch.randn(size, 3, clip.image_size, clip.image_size)
    vocabulary = clip.card["model_cfg"]["text_cfg"]["vocab_size"]
    ids_BT = torch.randint(1, vocabulary - 2, (size, clip.context_length))
    ids_BT[:, -1] = vocabulary - 1
    lengths_B = torch.full((size,), clip.context_length)
    return Batch(pixels_B3HW, TokenBatch(ids_BT.flatten(), lengths_B, torch.arange(size)), None)


def ours(clip: Clip, micro: int | None) -> Callable[[Batch], None]:
    """A function that takes a step of the library's loop."""
    # The loop wants to know the batch only for its log.
    loop = Loop(Accelerator(cpu=True), clip, recipe_of(1, micro), total=2, folder=None)
    return loop.step


def theirs(clip: Clip, micro: int) -> Callable[[Batch], None]:
    """A function that takes a step of open_clip's training code, accumulating micro-batches."""
    model = clip.model
    model.output_dict = True
    recipe = recipe_of(1, micro)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.0)

    def step(batch: Batch) -> None:
        cut = [batch.rows(start, start + micro) for start in range(0, batch.pairs, micro)]
        parts = [(part.pixels_B3HW, part.long.padded(0)) for part in cut]
        loader = _Loader(parts)
        arguments = SimpleNamespace(
            device="cpu", precision="fp32", distill=False, accum_freq=len(parts), horovod=False,
            skip_scheduler=True, grad_clip_norm=None, rank=0, world_size=1, batch_size=micro,
            log_every_n_steps=1, wandb=False, log_local=False, distributed=False, local_rank=0,
        )  # fmt: skip
        data = {"train": SimpleNamespace(dataloader=loader, set_epoch=lambda epoch: None)}
        train_one_epoch(model, data, ClipLoss(), 0, optimizer, None, None, None, arguments)

    return step


class _Loader(list):
    """Batches, with what open_clip asks a loader for."""

    @property
    def num_batches(self) -> int:
        return len(self)

    @property
    def num_samples(self) -> int:
        return sum(len(images) for images, _ in self)


def peak_bytes() -> int:
    """The most that was resident since it was reset."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (peak,) = (int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return 1024 * peak


def work(way: str, name: str, size: int, micro: int, gradient: Path) -> dict[str, float]:
    """One step one way, in this process; writes the gradient of every weight."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LabWarning)  # random weights, texts that are cut
        clip = models.load(name)
        batch = batch_of(clip, size)
    step = (
        theirs(clip, micro)
        if way == "open_clip"
        else ours(clip, micro if way == "cached" else None)
    )
    step(batch.rows(0, min(2 * micro, size)))
    clip.model.zero_grad()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
    clock, processor = time.perf_counter(), time.process_time()
    step(batch)
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    peak = peak_bytes() - before
    torch.save({name: p.grad for name, p in clip.model.named_parameters()}, gradient)
    return {"seconds": clock, "cpu_seconds": processor, "peak_megabytes": peak / 1e6}


def compare(name: str, size: int, micro: int, repetitions: int) -> dict:
    """All three ways, each in a process of its own, in turns."""
    found: dict[str, list[dict]] = {way: [] for way in WAYS}
    with TemporaryDirectory() as folder:
        for _ in range(repetitions):
            for way in WAYS:
                path = Path(folder) / way
                arguments = [way, name, str(size), str(micro), str(path)]
                command = [sys.executable, __file__, "--work", *arguments]
                printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                found[way].append(json.loads(printed.stdout.splitlines()[-1]))
        gradients = {way: torch.load(Path(folder) / way, weights_only=True) for way in WAYS}
    median = {
        what: {way: float(np.median([row[what] for row in rows])) for way, rows in found.items()}
        for what in ("seconds", "cpu_seconds", "peak_megabytes")
    }
    scales = {way: of_way.pop("logit_scale").item() for way, of_way in gradients.items()}
    flat = {way: torch.cat([g.flatten() for g in of.values()]) for way, of in gradients.items()}
    others = WAYS[1:]
    return {
        "batch": size,
        "micro_batch": micro,
        "parts": -(-size // micro),
        **median,
        "memory_ratio": {
            way: median["peak_megabytes"]["whole"] / median["peak_megabytes"][way] for way in others
        },
        "time_ratio": {way: median["seconds"][way] / median["seconds"]["whole"] for way in others},
        "cpu_time_ratio": {
            way: median["cpu_seconds"][way] / median["cpu_seconds"]["whole"] for way in others
        },
        "gradient_difference": {
            way: ((flat[way] - flat["whole"]).norm() / flat["whole"].norm()).item()
            for way in others
        },
        "scale_gradient_ratio": {way: scales[way] / scales["whole"] for way in others},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=list(SIZES), help="one of the two models")
    parser.add_argument("--batch", type=int, help="by default what fits")
    parser.add_argument("--micro", type=int)
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--work", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        way, name, size, micro, path = options.work
        print(json.dumps(work(way, name, int(size), int(micro), Path(path))))
        return
    sizes = {options.only: SIZES[options.only]} if options.only else SIZES
    results = {
        name: compare(name, options.batch or batch, options.micro or micro, options.repetitions)
        for name, (batch, micro) in sizes.items()
    }
    threads = torch.get_num_threads()
    print(json.dumps({"benchmark": "gradient_cache", "threads": threads, "results": results}))


if __name__ == "__main__":
    main()
