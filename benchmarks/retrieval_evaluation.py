"""Speed of a retrieval evaluation's text side against clip-benchmark's own, on the same model.

    pip install --no-deps clip-benchmark
    python benchmarks/retrieval_evaluation.py [--pictures 16] [--rounds 3]

Captions of COCO's lengths (see text_encoding.py), five a picture, through ViT-B/16's text tower
with random weights at 77 positions and stretched to 248: `clip_benchmark.metrics.
zeroshot_retrieval.evaluate` in float32, which pads every caption to the context, and the lab's
`encode_texts` and `retrieval` without intervals, both from strings to recalls. The pictures'
features are given to both, so that the text side is what is timed. The two take turns, and the
fastest round of each counts. Prints one JSON object: seconds, ratios, the largest difference of a
recall. Takes about 2 minutes on one core. Goal: at least 3 times clip-benchmark's speed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Iterator

import torch
from text_encoding import BATCH_SIZE, text_model, texts_like, timed
from torch import nn

from longclip_lab.evaluation import retrieval
from longclip_lab.models import Clip, encode_texts, stretch

try:
    from clip_benchmark.metrics import zeroshot_retrieval
except ImportError:
    sys.exit("The peer is missing: pip install --no-deps clip-benchmark (its captioning metrics, "
             "100 MB, are not needed).")  # fmt: skip

CAPTIONS, KS, GOAL = 5, (1, 5), 3.0


class GivenPictures(nn.Module):
    """What clip-benchmark calls a model: features that are given, and the text tower of `clip`."""

    def __init__(self, clip: Clip):
        super().__init__()
        self.clip = clip

    def encode_image(self, features_BD: torch.Tensor) -> torch.Tensor:
        return features_BD

    def encode_text(self, ids_BT: torch.Tensor) -> torch.Tensor:
        return self.clip.model.encode_text(ids_BT)


def batches(
    features_ND: torch.Tensor, texts: list[str]
) -> Iterator[tuple[torch.Tensor, list[list[str]]]]:
    """Pictures with their captions, as clip-benchmark's loaders give them."""
    size = max(1, BATCH_SIZE // CAPTIONS)
    for start in range(0, len(features_ND), size):
        part_BD = features_ND[start : start + size]
        rows = range(start, start + len(part_BD))
        yield part_BD, [texts[CAPTIONS * row : CAPTIONS * (row + 1)] for row in rows]


def theirs(clip: Clip, features_ND: torch.Tensor, texts: list[str]) -> dict[str, float]:
    """Recalls by clip-benchmark; its progress bar is not shown."""
    with contextlib.redirect_stderr(io.StringIO()):
        found = zeroshot_retrieval.evaluate(
            GivenPictures(clip),
            batches(features_ND, texts),
            lambda some: clip.tokenizer(some, clip.context_length),
            "cpu",
            amp=False,
            recall_k_list=list(KS),
        )
    names = {"i2t": "text_retrieval", "t2i": "image_retrieval"}
    return {f"{way} R@{k}": found[f"{names[way]}_recall@{k}"] for way in names for k in KS}


def ours(clip: Clip, features_ND: torch.Tensor, texts: list[str]) -> dict[str, float]:
    of_text_M = torch.arange(len(features_ND)).repeat_interleave(CAPTIONS)
    encoded = encode_texts(clip, texts, batch_size=BATCH_SIZE)
    scores = retrieval(features_ND, encoded.features_ND, of_text_M, KS, bootstrap=0)
    return {name: score.value for name, score in scores.scores().items()}


def measure(clip: Clip, texts: list[str], rounds: int) -> dict:
    """Seconds, ratio and differences for one model."""
    of_picture = encode_texts(clip, texts).features_ND.unflatten(0, (-1, CAPTIONS)).mean(dim=1)
    torch.manual_seed(0)
    features_ND = of_picture + 0.5 * of_picture.std() * torch.randn_like(of_picture)
    ways = {"ours": ours, "clip_benchmark": theirs}
    runs = [
        {name: timed(lambda way=way: way(clip, features_ND, texts)) for name, way in ways.items()}
        for _ in range(rounds)
    ]
    clock, cpu = ({name: min(run[name][i] for run in runs) for name in ways} for i in (0, 1))
    mine, peer = (runs[0][name][2] for name in ways)
    return {
        "context_length": clip.context_length,
        "texts": len(texts),
        "seconds": clock,
        "ratio": clock["clip_benchmark"] / clock["ours"],
        "cpu_ratio": cpu["clip_benchmark"] / cpu["ours"],
        "goal": GOAL,
        "recalls": mine,
        "largest_difference_in_recall": max(abs(mine[name] - peer[name]) for name in mine),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=16, help="with five captions each")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each; the best counts")
    arguments = parser.parse_args()
    texts = texts_like("coco", CAPTIONS * arguments.pictures)
    clip = text_model()
    results = [measure(one, texts, arguments.rounds) for one in (clip, stretch(clip))]
    print(
        json.dumps(
            {
                "benchmark": "retrieval_evaluation",
                "threads": torch.get_num_threads(),
                "results": results,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
