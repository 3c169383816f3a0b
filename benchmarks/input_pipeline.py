"""Pictures and texts out of shards: pairs a second, against webdataset's own and against the step.

    python benchmarks/input_pipeline.py [--pairs 512] [--batch 64] [--repetitions 3]

Drawn pictures as JPEG files of a photograph's size (640 x 480, with noise: about as many bytes as
one of COCO's), written once by `data.write_shards`. Both pipelines read the same shards, decode,
shuffle, preprocess to 224 x 224 by open_clip's transform and tokenise the long and the short text,
in the training process or in one worker process. Ours is `StreamedPairs`, which also checks every
pair's checksum, and whose order does not depend on the number of processes; the peer is a pipeline
of webdataset as its documentation writes one. They must give the same pictures. Prints one JSON
object: pairs a second, medians over alternating repetitions of an epoch each, starting up included.

The steps beside them are training steps of this machine: the tiny model's on 128 pairs of the
world, and ViT-B/32's with random weights on 8 pairs from the shards. `pipeline_over_step` is how
many times as fast the pipeline alone is (no worker process); a GPU's step is another matter.

Takes about 3 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import webdataset as wds
from accelerate import Accelerator
from PIL import Image

from longclip_lab import models, training, world
from longclip_lab.data import Pairs, write_shards
from longclip_lab.data.shards import ShardSet
from longclip_lab.errors import LabError, LabWarning
from longclip_lab.models import Clip
from longclip_lab.training.data import Batch, TrainingPairs
from longclip_lab.training.loop import Loop
from longclip_lab.training.streaming import StreamedPairs

SHARDS, SIZE, NOISE = 8, (640, 480), 12.0
WORKERS = (0, 1)
STEPS = 3


def photographs(count: int, folder: Path) -> Pairs:
    """Pairs of the world whose pictures are JPEG files like photographs."""
    drawn = world.pairs(count, seed=world.TRAIN_SEED)
    rng = np.random.default_rng(0)
    paths = []
    for index, values in enumerate(drawn.images):
        large = np.asarray(Image.fromarray(values).resize(SIZE), dtype=np.float32)
        noisy = large + rng.normal(0, NOISE, large.shape)
        paths.append(folder / f"{index:06d}.jpg")
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return Pairs("photographs", paths, drawn.short, drawn.long, drawn.captions)


def ours(clip: Clip, shards: ShardSet, batch: int, workers: int) -> Iterator[torch.Tensor]:
    """The pictures of an epoch, batch by batch."""
    recipe = replace(
        training.longclip("tiny"),
        batch_size=batch,
        hard_negative_group=1,
        workers=workers,
        num_streams=SHARDS,
    )
    pairs = StreamedPairs(clip, shards, recipe)
    for got in pairs.batches(0, len(pairs) // batch):
        if isinstance(got, LabError):
            raise got
        yield got.pixels_B3HW


def theirs(clip: Clip, folder: Path, batch: int, workers: int) -> Iterator[torch.Tensor]:
    """The same by webdataset's own pipeline."""

    def texts(said: dict) -> np.ndarray:
        return clip.tokenizer.encode_batch([said["long"], said["short"]], clip.context_length).ids

    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    pipeline = (
        wds.WebDataset(urls, shardshuffle=len(urls), seed=0, detshuffle=True)
        .shuffle(1024)
        .decode("pil")
        .to_tuple("jpg", "json")
        .map_tuple(clip.preprocess, texts)
        .batched(batch, partial=False)
    )
    loader = wds.WebLoader(pipeline, batch_size=None, num_workers=workers)
    return (pixels_B3HW for pixels_B3HW, _ in loader)


def epoch(pictures: Iterator[torch.Tensor]) -> tuple[float, list[float]]:
    """Pairs a second, and a number that stands for each picture."""
    began, sums = time.perf_counter(), []
    for pixels_B3HW in pictures:
        sums += pixels_B3HW.double().sum(dim=(1, 2, 3)).tolist()
    return len(sums) / (time.perf_counter() - began), sorted(sums)


def steps_per_second(clip: Clip, batch: Batch) -> float:
    """Pairs a second that training steps on one batch take in, the first left out."""
    size = len(batch.pixels_B3HW)
    recipe = replace(training.longclip("tiny"), batch_size=size, learning_rate=1e-6, k=4)
    loop = Loop(Accelerator(cpu=True), clip, recipe, total=STEPS + 1, folder=None)
    return statistics.median([loop.step(batch)["samples_per_s"] for _ in range(STEPS + 1)][1:])


def step_rates(clip: Clip, shards: ShardSet) -> dict[str, float]:
    """Pairs a second of two models' steps."""
    recipe = replace(
        training.longclip("tiny"), batch_size=8, hard_negative_group=1, num_streams=SHARDS
    )
    photographed = next(iter(StreamedPairs(clip, shards, recipe).batches(0, 1)))
    tiny = models.stretch(models.load("tiny"))
    drawn = TrainingPairs(tiny, world.pairs(128, seed=world.TRAIN_SEED))
    return {
        "tiny": steps_per_second(tiny, drawn.__getitems__(list(range(128)))),
        "ViT-B-32": steps_per_second(clip, photographed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=512, help="of an epoch")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LabWarning)  # random weights are what is asked for
        clip = models.stretch(models.load("ViT-B-32"))
    with TemporaryDirectory() as home:
        folder, pictures = Path(home) / "shards", Path(home) / "pictures"
        pictures.mkdir()
        data = photographs(options.pairs, pictures)
        shards = write_shards(data, folder, per_shard=-(-options.pairs // SHARDS))
        ways: dict[str, Callable[[int], Iterator[torch.Tensor]]] = {
            "ours": lambda workers: ours(clip, shards, options.batch, workers),
            "webdataset": lambda workers: theirs(clip, folder, options.batch, workers),
        }
        rates: dict[tuple[int, str], list[float]] = {(n, way): [] for n in WORKERS for way in ways}
        seen: dict[str, list[float]] = {}
        for _ in range(options.repetitions):
            for workers, way in rates:
                rate, seen[way] = epoch(ways[way](workers))
                rates[workers, way].append(rate)
        bytes_each = sum(path.stat().st_size for path in data.images) / len(data)
        steps = step_rates(clip, shards)
    if not np.allclose(seen["ours"], seen["webdataset"], rtol=1e-6):
        raise SystemExit("the two pipelines give other pictures")
    medians = {key: statistics.median(values) for key, values in rates.items()}
    alone = medians[0, "ours"]
    result = {
        "benchmark": "input_pipeline",
        "pairs": options.pairs,
        "batch": options.batch,
        "kilobytes_per_picture": bytes_each / 1000,
        "threads": torch.get_num_threads(),
        "pairs_per_s": {f"{n} workers": {way: medians[n, way] for way in ways} for n in WORKERS},
        "ratio_to_webdataset": {
            f"{n} workers": medians[n, "ours"] / medians[n, "webdataset"] for n in WORKERS
        },
        "step_pairs_per_s": steps,
        "pipeline_over_step": {name: alone / rate for name, rate in steps.items()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
