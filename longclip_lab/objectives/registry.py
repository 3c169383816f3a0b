"""Every method's loss by name, and the gradient of each with respect to the similarities.

Most methods are a loss between pictures and one kind of text; with short and long captions at
hand, both are added, as LoTLIP's Table 2 does for "LiT + long texts". What else makes a method
(a locked tower, rewritten captions, extra tokens) happens before the loss and is named in `needs`.

Shapes: B batch of one process, C text features of one text (CLS first), D embedding, P image
tokens, T text tokens.

Shapes: B batch, E dimension of the features that are made up here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from longclip_lab.constants import OLD_OBJECTIVES
from longclip_lab.errors import LabError, suggest
from longclip_lab.objectives.contrastive import (
    check_finite,
    check_matrix,
    contrastive_loss,
    filip_loss,
    hard_negative_loss,
    same_identity,
    sigmoid_loss,
)
from longclip_lab.objectives.longclip import ComponentsOf, LossParts, Objective, longclip_loss
from longclip_lab.objectives.lotlip import Reduction, lotlip_loss

# --- The whole family behind one call: every method's loss on the same features, by name ---


@dataclass(frozen=True)
class ImageSide:
    """What an image tower gives: pooled features and, where they are needed, its tokens."""

    features_BD: torch.Tensor
    tokens_BPD: torch.Tensor | None = None


@dataclass(frozen=True)
class TextSide:
    """What a text tower gives for one text a picture.

    `features_BCD`: CLS (or EOT) first, then corners or registers. `tokens_BTD` and the bool
    `mask_BT` for token-wise losses. `identity_B`: a number that equal texts share; given, they are
    no negatives of each other.
    """

    features_BCD: torch.Tensor
    tokens_BTD: torch.Tensor | None = None
    mask_BT: torch.Tensor | None = None
    identity_B: torch.Tensor | None = None

    @property
    def pooled_BD(self) -> torch.Tensor:
        """The one feature that stands for the text."""
        return self.features_BCD[:, 0]

    @property
    def same_GG(self) -> torch.Tensor | None:
        """Which pairs share their text, over all processes."""
        return None if self.identity_B is None else same_identity(self.identity_B)


@dataclass(frozen=True)
class Settings:
    """What a loss may be told; each method reads what concerns it."""

    short_weight: float = 1.0
    long_weight: float = 1.0
    """LoTLIP's alone: with one text feature and m + 1 here, the baseline of m corners."""
    label_smoothing: float = 0.0
    k: int = 32
    faithful: bool = False
    """Long-CLIP's: the coarse feature as the official code makes it (see `longclip_loss`)."""
    components_of: ComponentsOf | None = None
    reduction: Reduction = "sum"
    margin: float = 1.0


@dataclass(frozen=True)
class Step:
    """One batch as a loss sees it; scale and bias are the factors themselves."""

    image: ImageSide
    short: TextSide | None
    long: TextSide | None
    logit_scale: torch.Tensor | float
    logit_bias: torch.Tensor | float | None = None
    settings: Settings = Settings()


@dataclass(frozen=True)
class ObjectiveEntry:
    """A method of the family: its loss, what it needs, and where it comes from.

    `needs` names inputs of the loss ("short", "long", "tokens", "logit_bias") and what must
    happen before it ("locked image tower", "rewritten captions", "registers", "corners",
    "summary dropped").
    """

    name: str
    about: str
    source: str
    needs: Sequence[str]
    loss: Callable[[Step], LossParts]


def objective_loss(name: str, step: Step) -> LossParts:
    """The loss of the method `name` on one batch.

    Raises LabError for an unknown name (near ones are listed) and for what the method needs and
    the batch does not have.
    """
    name = OLD_OBJECTIVES.get(name, name)
    if name not in OBJECTIVES:
        raise LabError(f"There is no objective {name!r}. {suggest(name, OBJECTIVES)}")
    entry = OBJECTIVES[name]
    texts = [text for text in (step.short, step.long) if text is not None]
    has_tokens = step.image.tokens_BPD is not None and all(
        text.tokens_BTD is not None and text.mask_BT is not None for text in texts
    )
    given = {
        "short": step.short is not None,
        "long": step.long is not None,
        "tokens": has_tokens,
        "logit_bias": step.logit_bias is not None,
    }
    lacking = [need for need in entry.needs if not given.get(need, True)]
    if lacking or not texts:
        raise LabError(
            f"The objective {name!r} needs {' and '.join(lacking) or 'short or long texts'}; the "
            "batch has none."
        )
    return entry.loss(step)


def _contrastive(step: Step, text: TextSide) -> torch.Tensor:
    return contrastive_loss(
        step.image.features_BD,
        text.pooled_BD,
        step.logit_scale,
        step.settings.label_smoothing,
        text.same_GG,
    )


def _sigmoid(step: Step, text: TextSide) -> torch.Tensor:
    image_BD, pooled_BD = step.image.features_BD, text.pooled_BD
    return sigmoid_loss(image_BD, pooled_BD, step.logit_scale, step.logit_bias, text.same_GG)


def _late(step: Step, text: TextSide) -> torch.Tensor:
    return filip_loss(
        step.image.tokens_BPD,
        text.tokens_BTD,
        text.mask_BT,
        step.logit_scale,
        step.settings.label_smoothing,
        text.same_GG,
    )


def _hard_negative(step: Step, text: TextSide) -> torch.Tensor:
    return hard_negative_loss(
        step.image.features_BD,
        text.pooled_BD,
        step.logit_scale,
        step.settings.margin,
        step.settings.label_smoothing,
        text.same_GG,
    )


def _of_pairs(pair_loss: Callable[[Step, TextSide], torch.Tensor]) -> Callable[[Step], LossParts]:
    """A loss between pictures and one kind of text, for whichever kinds there are."""

    def loss(step: Step) -> LossParts:
        features_BD = step.image.features_BD
        long, short = (
            features_BD.new_zeros(()) if text is None else pair_loss(step, text)
            for text in (step.long, step.short)
        )
        total = long + step.settings.short_weight * short
        return LossParts(total, long, short, features_BD.new_ones(()))

    return loss


def _longclip(step: Step, objective: Objective = "longclip") -> LossParts:
    settings = step.settings
    return longclip_loss(
        step.image.features_BD,
        step.long.pooled_BD,
        None if step.short is None else step.short.pooled_BD,
        step.logit_scale,
        objective=objective,
        short_weight=settings.short_weight,
        k=settings.k,
        faithful=settings.faithful,
        components_of=settings.components_of,
        label_smoothing=settings.label_smoothing,
        same_short_GG=None if step.short is None else step.short.same_GG,
    )


def _lotlip(step: Step) -> LossParts:
    settings = step.settings
    return lotlip_loss(
        step.image.features_BD,
        step.long.features_BCD,
        step.short.pooled_BD,
        step.logit_scale,
        reduction=settings.reduction,
        short_weight=settings.short_weight,
        long_weight=settings.long_weight,
        label_smoothing=settings.label_smoothing,
        same_long_GG=step.long.same_GG,
        same_short_GG=step.short.same_GG,
    )


_LOCKED = "locked image tower"
_LOTLIP = "LoTLIP, Wu et al., NeurIPS 2024"
_ENTRIES = [
    ObjectiveEntry(
        "clip",
        "Symmetric cross-entropy over the batch.",
        "CLIP, Radford et al. 2021, figure 3",
        (),
        _of_pairs(_contrastive),
    ),
    ObjectiveEntry(
        "lit",
        "CLIP's loss; only the text tower learns.",
        "LiT, Zhai et al. 2022, section 3",
        (_LOCKED,),
        _of_pairs(_contrastive),
    ),
    ObjectiveEntry(
        "siglip",
        "Every pair judged by itself: sigmoid with a trained bias.",
        "SigLIP, Zhai et al. 2023, section 3.2",
        ("logit_bias",),
        _of_pairs(_sigmoid),
    ),
    ObjectiveEntry(
        "filip",
        "CLIP's loss over token-wise similarities: each token with its best partner.",
        "FILIP, Yao et al. 2022, section 3.1",
        ("tokens",),
        _of_pairs(_late),
    ),
    ObjectiveEntry(
        "laclip",
        "CLIP's loss; the short text is drawn from the caption and its rewrites "
        "(data.choose_caption).",
        "LaCLIP, Fan et al. 2023, section 3.3",
        ("short", "rewritten captions"),
        _of_pairs(_contrastive),
    ),
    ObjectiveEntry(
        "longclip",
        "CLIP's loss on long texts, and on short ones against the image feature's primary "
        "components.",
        "Long-CLIP, Zhang et al. 2024, section 3.3",
        ("short", "long"),
        _longclip,
    ),
    ObjectiveEntry(
        "mixed",
        "CLIP's loss on long and on short texts, both against the whole image feature.",
        "Long-CLIP, Zhang et al. 2024, section 4.3 (the baseline without PCM)",
        ("short", "long"),
        partial(_longclip, objective="mixed"),
    ),
    ObjectiveEntry(
        "long",
        "CLIP's loss on long texts alone.",
        "Long-CLIP, Zhang et al. 2024, section 3.3 (directly fine-tuning)",
        ("long",),
        partial(_longclip, objective="long"),
    ),
    ObjectiveEntry(
        "lit-longclip",
        "Long-CLIP's loss; only the text tower learns.",
        f"{_LOTLIP}, Table 2 (LiT+Long-CLIP)",
        ("short", "long", _LOCKED),
        _longclip,
    ),
    ObjectiveEntry(
        "register",
        "CLIP's loss on CLS; the added tokens take part in attention and have no loss.",
        f"{_LOTLIP}, section 7.2.2; registers: Darcet et al. 2024",
        ("registers", _LOCKED),
        _of_pairs(_contrastive),
    ),
    ObjectiveEntry(
        "lotlip",
        "CLIP's loss on the short text's CLS, the long text's CLS and each of its corners.",
        f"{_LOTLIP}, equations 1 to 6",
        ("short", "long", "corners", _LOCKED),
        _lotlip,
    ),
    ObjectiveEntry(
        "debias-clip",
        "Long-CLIP's loss; the short text is sampled from the long one without its summary "
        "(text.sample_sentences).",
        "DeBias-CLIP, arXiv 2602.22419",
        ("short", "long", "summary dropped"),
        _longclip,
    ),
    ObjectiveEntry(
        "hn-clip",
        "CLIP's loss with the texts' own similarity as a margin on the negatives.",
        "HN-CLIP, arXiv 2608.18521",
        (),
        _of_pairs(_hard_negative),
    ),
]
OBJECTIVES = {entry.name: entry for entry in _ENTRIES}


# --- What a loss does to a pair, read off its gradient: how hard it pulls, how hard it ---

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
