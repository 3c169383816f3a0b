"""Speed and memory of the retrieval metrics on COCO's shape: five captions a picture.

    python benchmarks/retrieval_captions.py

R@1, R@5 and R@10 both ways for 5,000 images x 25,000 texts of 512 dimensions, random, float32, with
1,000 bootstrap rounds, against the bare matrix product, in turns in one run. Recalls are checked
against a sort of the whole product. Prints one JSON object. Takes about a minute on one core.
Goals: within 3 times the bare product, and less than 1 GB at the peak of the whole process, before
the check needs its own 500 MB.
"""

from __future__ import annotations

import json

import torch
import torch.nn.functional as F
from retrieval import DIM, KS, fastest, peak_megabytes

from longclip_lab.evaluation import retrieval

IMAGES, CAPTIONS = 5000, 5


def sorted_recalls(
    images_ND: torch.Tensor, texts_MD: torch.Tensor, of_text_M: torch.Tensor
) -> dict[str, float]:
    """Recalls read off the best of the whole product."""
    scores_NM = F.normalize(images_ND, dim=1) @ F.normalize(texts_MD, dim=1).T
    first_NK = of_text_M[scores_NM.topk(max(KS), dim=1).indices]
    own_NK = first_NK == torch.arange(len(images_ND))[:, None]
    own_MK = scores_NM.T.topk(max(KS), dim=1).indices == of_text_M[:, None]
    ways = {"i2t": own_NK, "t2i": own_MK}
    return {
        f"{w} R@{k}": o[:, :k].any(1).float().mean().item() for w, o in ways.items() for k in KS
    }


def main() -> None:
    torch.manual_seed(0)
    of_text_M = torch.arange(IMAGES).repeat_interleave(CAPTIONS)
    images_ND = torch.randn(IMAGES, DIM)
    texts_MD = torch.randn(len(of_text_M), DIM).mul_(4.5).add_(images_ND[of_text_M])
    before = peak_megabytes()
    scores = retrieval(images_ND, texts_MD, of_text_M, ks=KS)
    peak = peak_megabytes()  # first of all, because the peak of a process only ever grows
    rounds = [
        (
            fastest(lambda: retrieval(images_ND, texts_MD, of_text_M, ks=KS), 1),
            fastest(lambda: images_ND @ texts_MD.T, 1),
        )
        for _ in range(5)
    ]
    ours, product = (min(seconds) for seconds in zip(*rounds, strict=True))
    expected = sorted_recalls(images_ND, texts_MD, of_text_M)
    result = {
        "benchmark": "retrieval_captions",
        "size": [IMAGES, len(of_text_M), DIM],
        "threads": torch.get_num_threads(),
        "seconds": {"ours": ours, "bare_product": product},
        "ratio_to_bare_product": ours / product,
        "goal_bare_product": 3.0,
        "peak_megabytes": peak,
        "peak_extra_megabytes": peak - before,
        "goal_megabytes": 1000,
        "largest_difference_in_recall": max(
            abs(score.value - expected[name]) for name, score in scores.scores().items()
        ),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
