"""Every method's loss by name, and the gradient of each with respect to the similarities.

Most methods are a loss between images and one kind of text. What else makes a method (a locked
tower, rewritten captions, extra tokens) happens before the loss and is named in `needs`.

Shapes: B batch of one process, C text features of one text (CLS first), D embedding, P image
tokens, T text tokens, G global batch, E dimension of made-up features.
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
from longclip_lab.objectives.longclip import LossParts, Objective, PcaScope, longclip_loss
from longclip_lab.objectives.lotlip import Reduction, lotlip_loss

# --- What a loss reads, and the entry of each method ---


@dataclass(frozen=True)
class ImageFeatures:
    """Output of an image tower: pooled features and, where they are needed, its patch tokens."""

    features_BD: torch.Tensor
    tokens_BPD: torch.Tensor | None = None


@dataclass(frozen=True)
class TextFeatures:
    """Output of a text tower for one text per image.

    `features_BCD`: CLS (or EOT) first, then corners or registers. `tokens_BTD` and the bool
    `mask_BT` for token-wise losses. `identity_B`: a number that equal texts share; if given, they
    are not negatives of each other.
    """

    features_BCD: torch.Tensor
    tokens_BTD: torch.Tensor | None = None
    mask_BT: torch.Tensor | None = None
    identity_B: torch.Tensor | None = None

    @property
    def pooled_BD(self) -> torch.Tensor:
        """CLS (or EOT), the feature that stands for the text at test time."""
        return self.features_BCD[:, 0]

    @property
    def same_GG(self) -> torch.Tensor | None:
        """Which pairs share their text, over all processes."""
        return None if self.identity_B is None else same_identity(self.identity_B)


@dataclass(frozen=True)
class LossConfig:
    """Hyper-parameters of the losses; each method reads its own.

    A recipe has all of these fields under the same names.
    """

    short_weight: float = 1.0
    long_weight: float = 1.0
    """LoTLIP's: with one text feature and m + 1 here, the baseline that m corners must beat."""
    label_smoothing: float = 0.0
    k: int = 32
    match_official: bool = False
    pca_scope: PcaScope | None = None
    reduction: Reduction = "sum"
    margin: float = 1.0


@dataclass(frozen=True)
class LossInputs:
    """One batch as a loss sees it. Scale and bias are factors on the logits, not logarithms."""

    image: ImageFeatures
    short: TextFeatures | None
    long: TextFeatures | None
    logit_scale: torch.Tensor | float
    logit_bias: torch.Tensor | float | None = None
    config: LossConfig = LossConfig()


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
    loss: Callable[[LossInputs], LossParts]


def objective_loss(name: str, inputs: LossInputs) -> LossParts:
    """The loss of the method `name` on one batch.

    Raises LabError for an unknown name (near ones are listed) and for inputs that the method
    needs and the batch does not have.
    """
    name = OLD_OBJECTIVES.get(name, name)
    if name not in OBJECTIVES:
        raise LabError(f"There is no objective {name!r}. {suggest(name, OBJECTIVES)}")
    entry = OBJECTIVES[name]
    # A method of one kind of text takes whichever there is (LoTLIP's Table 2).
    texts = [text for text in (inputs.short, inputs.long) if text is not None]
    given = {
        "short": inputs.short is not None,
        "long": inputs.long is not None,
        "tokens": inputs.image.tokens_BPD is not None
        and all(text.tokens_BTD is not None and text.mask_BT is not None for text in texts),
        "logit_bias": inputs.logit_bias is not None,
    }
    lacking = [need for need in entry.needs if not given.get(need, True)]
    if lacking or not texts:
        raise LabError(
            f"The objective {name!r} needs {' and '.join(lacking) or 'short or long texts'}; the "
            "batch has none."
        )
    return entry.loss(inputs)


# --- From a batch to each loss function ---

PairLoss = Callable[[LossInputs, TextFeatures], torch.Tensor]


def _contrastive(inputs: LossInputs, text: TextFeatures) -> torch.Tensor:
    image_BD, smoothing = inputs.image.features_BD, inputs.config.label_smoothing
    return contrastive_loss(image_BD, text.pooled_BD, inputs.logit_scale, smoothing, text.same_GG)


def _sigmoid(inputs: LossInputs, text: TextFeatures) -> torch.Tensor:
    scale, bias = inputs.logit_scale, inputs.logit_bias
    return sigmoid_loss(inputs.image.features_BD, text.pooled_BD, scale, bias, text.same_GG)


def _late_interaction(inputs: LossInputs, text: TextFeatures) -> torch.Tensor:
    tokens = inputs.image.tokens_BPD, text.tokens_BTD, text.mask_BT
    return filip_loss(*tokens, inputs.logit_scale, inputs.config.label_smoothing, text.same_GG)


def _hard_negative(inputs: LossInputs, text: TextFeatures) -> torch.Tensor:
    features, config = (inputs.image.features_BD, text.pooled_BD), inputs.config
    how = config.margin, config.label_smoothing, text.same_GG
    return hard_negative_loss(*features, inputs.logit_scale, *how)


def _of_pairs(pair_loss: PairLoss) -> Callable[[LossInputs], LossParts]:
    """A loss between images and one kind of text, added up over the kinds that there are."""

    def loss(inputs: LossInputs) -> LossParts:
        features_BD = inputs.image.features_BD
        # LoTLIP's Table 2 adds long texts to LiT and CLIP in this way: one more loss, weight 1.
        long, short = (
            features_BD.new_zeros(()) if text is None else pair_loss(inputs, text)
            for text in (inputs.long, inputs.short)
        )
        total = long + inputs.config.short_weight * short
        return LossParts(total, long, short, features_BD.new_ones(()))

    return loss


def _longclip(inputs: LossInputs, objective: Objective = "longclip") -> LossParts:
    config, short = inputs.config, inputs.short
    return longclip_loss(
        inputs.image.features_BD,
        inputs.long.pooled_BD,
        None if short is None else short.pooled_BD,
        inputs.logit_scale,
        objective=objective,
        short_weight=config.short_weight,
        k=config.k,
        match_official=config.match_official,
        pca_scope=config.pca_scope,
        label_smoothing=config.label_smoothing,
        same_short_GG=None if short is None else short.same_GG,
    )


def _lotlip(inputs: LossInputs) -> LossParts:
    config = inputs.config
    return lotlip_loss(
        inputs.image.features_BD,
        inputs.long.features_BCD,
        # The raw caption is matched by its CLS alone (LoTLIP, section 4.3).
        inputs.short.pooled_BD,
        inputs.logit_scale,
        reduction=config.reduction,
        short_weight=config.short_weight,
        long_weight=config.long_weight,
        label_smoothing=config.label_smoothing,
        same_long_GG=inputs.long.same_GG,
        same_short_GG=inputs.short.same_GG,
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
        _of_pairs(_late_interaction),
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


# --- The gradient of a loss with respect to each pair's similarity ---

ONE_FEATURE = ("clip", "lit", "siglip", "laclip", "register", "hn-clip")
"""Methods whose loss compares one feature of an image with one of a text."""


def pulls(
    name: str,
    cosines_BB: torch.Tensor,
    logit_scale: float,
    logit_bias: float | None = None,
    text_cosines_BB: torch.Tensor | None = None,
    config: LossConfig | None = None,
) -> torch.Tensor:
    """Negative gradient of a method's loss w.r.t. each similarity: -dL / dcos(i, j), [B, B].

    Positive where image i and text j are pulled together (the diagonal), negative where they are
    pushed apart. `cosines_BB` are the similarities of images (rows) and texts, `text_cosines_BB`
    those among the texts, which only hn-clip reads; by default what the images imply.

    Raises LabError for methods not in `ONE_FEATURE`, and for cosines that no unit vectors have.

    >>> cosines = torch.tensor([[0.5, 0.3, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.5]])
    >>> pulls("clip", cosines, logit_scale=10.0)[0].round(decimals=2).tolist()
    [0.23, -0.39, -0.02]
    """
    if name not in ONE_FEATURE:
        near = suggest(name, ONE_FEATURE) if name not in OBJECTIVES else f"Known: {ONE_FEATURE}."
        raise LabError(f"{name!r} does not compare one feature of each side. {near}")
    cosines_BB = cosines_BB.detach().double().requires_grad_()
    # Features with exactly these cosines, as a function of them: so the method's own code is
    # asked, and the gradient goes through it to the cosines.
    image_BE, text_BE = _features_with(cosines_BB, text_cosines_BB)
    text = TextFeatures(text_BE[:, None])
    inputs = LossInputs(
        ImageFeatures(image_BE), text, None, logit_scale, logit_bias, config or LossConfig()
    )
    (gradient_BB,) = torch.autograd.grad(objective_loss(name, inputs).total, cosines_BB)
    return -gradient_BB


def _features_with(
    cosines_BB: torch.Tensor, text_cosines_BB: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors [B, E = 2 B]: orthogonal images, and texts with these cosines to them."""
    check_matrix(cosines_BB, "cosines_BB")
    size = len(cosines_BB)
    if cosines_BB.shape != (size, size):
        raise LabError(
            f"cosines_BB: expected as many texts as images, got {list(cosines_BB.shape)}."
        )
    check_finite(cosines_BB=cosines_BB)
    # A text's first B coordinates are its cosines; the other B make up the rest of its length
    # and of the cosines among texts: a Cholesky factor of what is left of their Gram matrix.
    shared_BB = cosines_BB.mT @ cosines_BB
    if text_cosines_BB is None:
        own_BB = torch.diag_embed(1 - shared_BB.diagonal())
    else:
        own_BB = text_cosines_BB.double() - shared_BB
    root_BB, failed = torch.linalg.cholesky_ex(own_BB)
    if failed:
        raise LabError(
            "No unit vectors have these cosines: the squares of a text's cosines with orthogonal "
            "images add up to 1 at most. Give smaller ones."
        )
    # Images at right angles, in the first half of the space.
    images_BE = torch.eye(size, 2 * size, dtype=cosines_BB.dtype)
    return images_BE, torch.cat([cosines_BB.mT, root_BB], dim=1)
