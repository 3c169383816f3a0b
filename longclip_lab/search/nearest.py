"""The nearest features of a query: by scikit-learn, or by faiss where it is installed.

N pictures, M queries, D embedding, K answers.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Literal, get_args

import numpy as np

from longclip_lab.errors import LabError, suggest

Backend = Literal["auto", "sklearn", "faiss"]
Nearest = Callable[[np.ndarray, int], np.ndarray]
"""Normalised queries [M, D] and K to the rows [M, K] of the K most alike features, in any order."""


def nearest_neighbours(features_ND: np.ndarray, backend: Backend = "auto") -> tuple[str, Nearest]:
    """An exact index over normalised features, and its name.

    "auto" takes faiss if it is installed (`pip install 'longclip-lab[search]'`), else scikit-learn.
    Both compare with every feature, so they find the same.

    Raises LabError for another backend, and for faiss where it is not installed.
    """
    if backend not in get_args(Backend):
        raise LabError(f"There is no index '{backend}'. {suggest(backend, get_args(Backend))}")
    has_faiss = find_spec("faiss") is not None
    if backend == "faiss" and not has_faiss:
        raise LabError(
            "faiss is not installed: pip install 'longclip-lab[search]', or use 'sklearn'."
        )
    if backend == "sklearn" or not has_faiss:
        return "sklearn", _sklearn(features_ND)
    return "faiss", _faiss(features_ND)


def _sklearn(features_ND: np.ndarray) -> Nearest:
    from sklearn.neighbors import NearestNeighbors

    fitted = NearestNeighbors(algorithm="brute", metric="cosine").fit(features_ND)
    return lambda queries_MD, k: fitted.kneighbors(queries_MD, k, return_distance=False)


def _faiss(features_ND: np.ndarray) -> Nearest:
    import faiss

    flat = faiss.IndexFlatIP(features_ND.shape[1])
    flat.add(np.ascontiguousarray(features_ND, np.float32))
    return lambda queries_MD, k: flat.search(np.ascontiguousarray(queries_MD, np.float32), k)[1]
