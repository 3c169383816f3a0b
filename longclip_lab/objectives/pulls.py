"""What a loss does to a pair, read off its gradient: how hard it pulls, how hard it pushes.

Shapes: B batch, E dimension of the features that are made up here.
"""

from __future__ import annotations

import torch

from longclip_lab.errors import LabError, suggest
from longclip_lab.objectives.checks import check_finite, check_matrix
from longclip_lab.objectives.registry import (
    OBJECTIVES,
    ImageSide,
    Settings,
    Step,
    TextSide,
    objective_loss,
)

ONE_FEATURE = ("clip", "lit", "siglip", "laclip", "register", "hn-clip")
"""Methods whose loss compares one feature of a picture with one of a text."""


def pulls(
    name: str,
    cosines_BB: torch.Tensor,
    logit_scale: float,
    logit_bias: float | None = None,
    text_cosines_BB: torch.Tensor | None = None,
    settings: Settings | None = None,
) -> torch.Tensor:
    """How the loss of a method pulls each picture i and text j together: -dL / dcos(i, j), [B, B].

    Positive on the diagonal, the pairs; below 0 where the two are pushed apart. `cosines_BB` are
    the similarities of pictures (rows) and texts, `text_cosines_BB` those among the texts, which
    only hn-clip reads; by default the texts have in common what the pictures make them have.
    The loss is computed on features that have exactly these cosines, so that any method's own
    code can be asked (those of `ONE_FEATURE`).

    Raises LabError for other methods, and for cosines that no unit vectors have.

    >>> cosines = torch.tensor([[0.5, 0.3, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.5]])
    >>> pulls("clip", cosines, logit_scale=10.0)[0].round(decimals=2).tolist()
    [0.23, -0.39, -0.02]
    """
    if name not in ONE_FEATURE:
        near = suggest(name, ONE_FEATURE) if name not in OBJECTIVES else f"Known: {ONE_FEATURE}."
        raise LabError(f"{name!r} does not compare one feature of each side. {near}")
    cosines_BB = cosines_BB.detach().double().requires_grad_()
    image_BE, text_BE = _features(cosines_BB, text_cosines_BB)
    step = Step(
        ImageSide(image_BE),
        TextSide(text_BE[:, None]),
        None,
        logit_scale,
        logit_bias,
        settings or Settings(),
    )
    (gradient_BB,) = torch.autograd.grad(objective_loss(name, step).total, cosines_BB)
    return -gradient_BB


def _features(
    cosines_BB: torch.Tensor, text_cosines_BB: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors [B, E]: pictures at right angles, texts with these cosines to them.

    They are a function of the cosines and keep their length, so the gradient goes through.
    """
    check_matrix(cosines_BB, "cosines_BB")
    size = len(cosines_BB)
    if cosines_BB.shape != (size, size):
        raise LabError(
            f"cosines_BB: expected as many texts as pictures, got {list(cosines_BB.shape)}."
        )
    check_finite(cosines_BB=cosines_BB)
    shared_BB = cosines_BB.mT @ cosines_BB
    if text_cosines_BB is None:
        own_BB = torch.diag_embed(1 - shared_BB.diagonal())
    else:
        own_BB = text_cosines_BB.double() - shared_BB
    root_BB, failed = torch.linalg.cholesky_ex(own_BB)
    if failed:
        raise LabError(
            "No unit vectors have these cosines: the squares of a text's cosines with pictures at "
            "right angles add up to 1 at most. Give smaller ones."
        )
    pictures_BE = torch.eye(size, 2 * size, dtype=cosines_BB.dtype)
    return pictures_BE, torch.cat([cosines_BB.mT, root_BB], dim=1)
