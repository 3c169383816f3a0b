"""The randomised-weights check: does a map depend on what the model has learned?

Adebayo et al. 2018, "Sanity Checks for Saliency Maps", Section 4. A method whose maps look the
same on a tower without learned weights shows the picture, not the model.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from longclip_lab.models import Clip

UNCHANGED = 0.5
"""Maps whose rank correlation with those of the randomised model reaches this hardly changed."""


def randomised(clip: Clip, tower: Literal["image", "text"], seed: int = 0) -> Clip:
    """A copy of the model with the weights of one tower shuffled.

    Every weight tensor keeps its values and loses their order, so that the sizes of weights and
    activations stay like the trained tower's whatever its architecture. The original and the
    caller's random state are left alone.
    """
    model = deepcopy(clip.model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            part = name.split(".")[0]
            if part.startswith("logit_") or (part == "visual") != (tower == "image"):
                continue
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return replace(clip, model=model, name=f"{clip.name}, {tower} tower randomised")


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's correlation of two maps; 0 where one of them is the same everywhere.

    >>> rank_correlation(np.array([1, 2, 9]), np.array([0.3, 0.2, 0.1]))
    -1.0
    """
    first, second = (_mean_ranks(scores) for scores in (one, other))
    first, second = first - first.mean(), second - second.mean()
    size = np.sqrt((first**2).sum() * (second**2).sum())
    return round(float((first * second).sum() / size), 12) if size else 0.0


def _mean_ranks(scores: np.ndarray) -> np.ndarray:
    """Ranks from 1, flat; equal scores share the mean of their ranks."""
    _, which, counts = np.unique(scores.ravel(), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[which]
