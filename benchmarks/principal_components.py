"""Speed of the coarse features of one PCM step against torch.linalg.svd with autograd.

    python benchmarks/principal_components.py

Forward and backward of k = 32 components of 2048 x 512 normalised float32 features, the two
ways in turn in the same process; the ratio is that of the fastest rounds, which other load on
the machine disturbs least. Prints one JSON object. Takes about 10 seconds on one core.
Goal: at least 2.

The limit is what any exact way must do: the Gram matrix in float64 (half of it, as it is
symmetric), and the thin products of forward and backward with k columns; `ratio_to_limit` says how
far from it we are. What we do beyond is the reduction of the Gram matrix to tridiagonal form, a few
eigenvectors of that, and passes over the batch (mean, centring, widening).
"""

from __future__ import annotations

import json
import time

import torch
import torch.nn.functional as F
from scipy.linalg import blas

from longclip_lab.objectives import primary_components, primary_components_svd

BATCH, DIM, K, ROUNDS = 2048, 512, 32, 15


def step(function, features_BD: torch.Tensor, grad_BD: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Seconds of one forward and backward, and the gradient."""
    leaf_BD = features_BD.clone().requires_grad_()
    start = time.perf_counter()
    function(leaf_BD, K).backward(grad_BD)
    return time.perf_counter() - start, leaf_BD.grad


def limit(features_BD: torch.Tensor, grad_BD: torch.Tensor) -> float:
    """Seconds of the products that no exact way can leave out."""
    wide_BD, some_DK = features_BD.double(), features_BD[:DIM, :K].contiguous()
    start = time.perf_counter()
    blas.dsyrk(1.0, wide_BD.numpy().T)
    scores_BK = features_BD @ some_DK  # forward: scores, and back
    scores_BK @ some_DK.mT
    grad_BK = grad_BD @ some_DK  # backward: both sides of the symmetric product, and back
    features_BD.mT @ grad_BK
    grad_BD.mT @ scores_BK
    features_BD @ some_DK
    torch.cat([grad_BK, scores_BK], 1) @ torch.cat([some_DK, some_DK], 1).mT
    return time.perf_counter() - start


def main() -> None:
    torch.manual_seed(0)
    # Decaying variances, as features have: the SVD's own gradient is well-conditioned here.
    features_BD = F.normalize(torch.randn(BATCH, DIM) * torch.linspace(3, 0.3, DIM), dim=1)
    grad_BD = torch.randn(BATCH, DIM)
    ours, svd, least = [], [], []
    for _ in range(ROUNDS):
        seconds, grad_ours_BD = step(primary_components, features_BD, grad_BD)
        ours.append(seconds)
        seconds, grad_svd_BD = step(primary_components_svd, features_BD, grad_BD)
        svd.append(seconds)
        least.append(limit(features_BD, grad_BD))
    exact_BD = step(primary_components_svd, features_BD.double(), grad_BD.double())[1]
    result = {
        "benchmark": "principal_components",
        "batch": BATCH,
        "dimension": DIM,
        "k": K,
        "threads": torch.get_num_threads(),
        "seconds": {"ours": min(ours), "svd": min(svd), "limit": min(least)},
        "ratio": min(svd) / min(ours),
        "goal": 2.0,
        "ratio_to_limit": min(ours) / min(least),
        "gradient_error_against_float64_svd": {
            "ours": relative_error(grad_ours_BD, exact_BD),
            "svd": relative_error(grad_svd_BD, exact_BD),
        },
    }
    print(json.dumps(result, indent=2))


def relative_error(grad_BD: torch.Tensor, exact_BD: torch.Tensor) -> float:
    return ((grad_BD - exact_BD).norm() / exact_BD.norm()).item()


if __name__ == "__main__":
    main()
