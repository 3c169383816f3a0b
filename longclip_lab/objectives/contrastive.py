"""Contrastive losses: InfoNCE, SigLIP, FILIP, HN-CLIP; duplicate captions masked.

Shapes: B batch of one process, G global batch, D embedding, P image tokens, T text tokens, R rows
worked on at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from numbers import Integral

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from longclip_lab.errors import LabError, NotFiniteError
from longclip_lab.objectives.gather import all_reduce_loss, gather, local_rows, pad_to_longest

# --- Validation of features ---


def check_matrix(features_BD: torch.Tensor, name: str) -> None:
    """Raise LabError unless `features_BD` is a non-empty floating-point matrix."""
    if features_BD.ndim != 2 or 0 in features_BD.shape:
        raise LabError(
            f"{name}: expected a non-empty matrix [batch, dimension], got shape "
            f"{list(features_BD.shape)}; pass one feature a row."
        )
    if not features_BD.is_floating_point():
        raise LabError(f"{name}: expected floating-point features, got {features_BD.dtype}.")


def check_finite(**features: torch.Tensor) -> None:
    """Raise LabError naming the first tensor with a NaN or an infinity."""
    # One synchronisation with the device for all of them.
    bad = torch.stack([(~torch.isfinite(values)).sum() for values in features.values()]).tolist()
    for name, values, count in zip(features, features.values(), bad, strict=True):
        if count:
            raise NotFiniteError(
                f"{name}: expected finite numbers, got {int(count)} NaN or infinite of "
                f"{values.numel()}; look for a diverged model, a broken image or fp16 overflow."
            )


def check_pairs(first_BD: torch.Tensor, second_BD: torch.Tensor, names: str) -> None:
    """Raise LabError unless both are matrices of the same shape: row i belongs to row i."""
    check_matrix(first_BD, names)
    check_matrix(second_BD, names)
    if first_BD.shape != second_BD.shape:
        raise LabError(
            f"{names}: expected as many rows and columns on both sides, got "
            f"{list(first_BD.shape)} and {list(second_BD.shape)}; row i must belong to row i."
        )


def check_components(k: int) -> None:
    """Raise LabError unless `k` is a positive whole number."""
    if isinstance(k, bool) or not isinstance(k, Integral) or k < 1:
        raise LabError(f"k: expected a whole number of components >= 1, got {k!r}.")


def check_duplicates(same_GG: torch.Tensor, batch: int) -> None:
    """Raise LabError unless `same_GG` is a square bool mask over `batch` pairs."""
    if same_GG.dtype != torch.bool or same_GG.shape != (batch, batch):
        raise LabError(
            f"same_GG: expected a bool mask [{batch}, {batch}] over the batch of all processes, "
            f"got {same_GG.dtype} {list(same_GG.shape)}; make it with same_text(texts)."
        )


# --- The contrastive loss of CLIP ---


def contrastive_loss(
    image_features_BD: torch.Tensor,
    text_features_BD: torch.Tensor,
    logit_scale: torch.Tensor | float,
    label_smoothing: float = 0.0,
    same_GG: torch.Tensor | None = None,
) -> torch.Tensor:
    """Symmetric InfoNCE over the batch of all processes (CLIP, Radford et al. 2021, fig. 3).

    Features need not be normalised; row i of one side belongs to row i of the other.
    `logit_scale` is the factor itself, `model.logit_scale.exp()`, as in open_clip.ClipLoss.
    `same_GG` (bool, over the batch of all processes; see `same_text`) marks pairs that share
    their text: duplicates are left out of a pair's softmax, on both sides, since they are false
    negatives. The diagonal is not read. Label smoothing spreads evenly over the answers that
    remain.
    Returns the mean of the image-to-text and the text-to-image cross-entropy in nats, a
    scalar. Raises LabError for shapes that do not fit and for NaN features.

    >>> aligned = torch.eye(4)
    >>> round(contrastive_loss(aligned, aligned, logit_scale=1.0).item(), 4)
    0.7437
    """
    image_GD, text_GD = _gathered(image_features_BD, text_features_BD)
    return symmetric_cross_entropy(image_GD, text_GD, logit_scale, label_smoothing, same_GG)


def _gathered(image_BD: torch.Tensor, text_BD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both sides of the global batch, checked and normalised."""
    check_pairs(image_BD, text_BD, "image and text features")
    image_GD, text_GD = gather(image_BD), gather(text_BD)
    check_finite(image_features=image_GD, text_features=text_GD)
    return normalize(image_GD), normalize(text_GD)


def symmetric_cross_entropy(
    image_GD: torch.Tensor,
    text_GD: torch.Tensor,
    logit_scale: torch.Tensor | float,
    label_smoothing: float,
    same_GG: torch.Tensor | None = None,
) -> torch.Tensor:
    """Both cross-entropies of the scaled inner products, averaged; features as they are."""
    # A process takes its own B rows of the G x G logits, and the losses are added up: so no
    # process holds the whole table.
    rows = local_rows(image_GD)
    # bfloat16 has 8 bits: logits of 100 times a cosine would be whole numbers.
    with torch.autocast(image_GD.device.type, enabled=False):
        to_text_BG = logit_scale * (image_GD[rows] @ text_GD.mT)
        alone = len(to_text_BG) == len(text_GD)
        to_image_BG = to_text_BG.mT if alone else logit_scale * (text_GD[rows] @ image_GD.mT)
        return cross_entropy_both_ways(to_text_BG, to_image_BG, label_smoothing, same_GG, rows)


def cross_entropy_both_ways(
    to_text_BG: torch.Tensor,
    to_image_BG: torch.Tensor,
    label_smoothing: float,
    same_GG: torch.Tensor | None,
    rows: slice,
) -> torch.Tensor:
    """The mean of two cross-entropies whose right answers are on the diagonal, of all processes.

    Rows of `to_text_BG` are images that choose among texts, rows of `to_image_BG` texts that
    choose among images: those of `local_rows`. `same_GG`: see `contrastive_loss`.
    """
    batch, answers = to_text_BG.shape
    right_B = torch.arange(answers, device=to_text_BG.device)[rows]
    duplicates_BG = None
    if same_GG is not None:
        check_duplicates(same_GG, answers)
        duplicates_BG = same_GG[rows].to(to_text_BG.device).scatter(1, right_B[:, None], False)
    both = sum(
        _cross_entropy(logits_BG, right_B, label_smoothing, duplicates_BG)
        for logits_BG in (to_text_BG, to_image_BG)
    )
    return all_reduce_loss(both / 2 * (batch / answers))


def _cross_entropy(
    logits_BG: torch.Tensor,
    right_B: torch.Tensor,
    label_smoothing: float,
    left_out_BG: torch.Tensor | None,
) -> torch.Tensor:
    """Mean cross-entropy of the right answers; those of `left_out_BG` are not in the softmax."""
    if left_out_BG is None:
        return F.cross_entropy(logits_BG, right_B, label_smoothing=label_smoothing)
    # Not by F.cross_entropy: it would smooth over the answers that are left out, at -inf.
    log_shares_BG = logits_BG.masked_fill(left_out_BG, -torch.inf).log_softmax(dim=1)
    log_right_B = log_shares_BG.gather(1, right_B[:, None])[:, 0]
    if label_smoothing == 0:
        return -log_right_B.mean()
    answers_B = (~left_out_BG).sum(dim=1)
    spread_B = log_shares_BG.masked_fill(left_out_BG, 0).sum(dim=1) / answers_B
    return -((1 - label_smoothing) * log_right_B + label_smoothing * spread_B).mean()


def normalize(features_BD: torch.Tensor) -> torch.Tensor:
    """Rows of length 1, in float32 or wider. A row of zeros stays one."""
    # In bfloat16 lengths would be off by up to a percent, and so would every cosine.
    wide_BD = features_BD if features_BD.dtype == torch.float64 else features_BD.float()
    return F.normalize(wide_BD, dim=-1)


# --- Duplicate captions: pairs of one batch that share their text (false negatives) ---


def same_text(texts: Sequence[str], device: torch.device | str | None = None) -> torch.Tensor:
    """Which pairs of the batch of all processes have the same text, bool [G, G].

    Texts are the same when they are equal character by character. `device` is where the
    features are: with several processes the texts travel there as 64-bit hashes, and every
    process must bring as many. Raises LabError for a batch without texts.

    >>> same_text(["a cat", "a dog", "a cat"]).int().tolist()
    [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    """
    if isinstance(texts, str) or len(texts) == 0:
        raise LabError(f"texts: expected one text a pair, got {texts!r}; pass a list of them.")
    # Python's own hash differs from process to process.
    digests = [blake2b(text.encode(), digest_size=8).digest() for text in texts]
    ids = [int.from_bytes(digest, "big", signed=True) for digest in digests]
    return same_identity(torch.tensor(ids, device=device))


def same_identity(identity_B: torch.Tensor) -> torch.Tensor:
    """The same for texts that are known by a number, int [B] -> bool [G, G].

    A text must have the same number in every process. Raises LabError for anything but whole
    numbers in one row.

    >>> same_identity(torch.tensor([7, 3, 7])).int().tolist()
    [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    """
    if identity_B.ndim != 1 or identity_B.is_floating_point() or len(identity_B) == 0:
        raise LabError(
            f"identity_B: expected one whole number a pair, got {identity_B.dtype} "
            f"{list(identity_B.shape)}."
        )
    identity_G = gather(identity_B)
    return identity_G[:, None] == identity_G[None, :]


# --- HN-CLIP's margin: a negative is the harder the more its text resembles the right one ---


def hard_negative_loss(
    image_features_BD: torch.Tensor,
    text_features_BD: torch.Tensor,
    logit_scale: torch.Tensor | float,
    margin: float = 1.0,
    label_smoothing: float = 0.0,
    same_GG: torch.Tensor | None = None,
) -> torch.Tensor:
    """Contrastive loss with the similarity of the two texts added to every negative, a scalar.

    The logit of image i and text j is scale * (x_i . y_j + margin * y_i . y_j) for i != j and
    scale * x_i . y_i for the pair itself, with no gradient through y_i . y_j (HN-CLIP, "Which
    Negatives Matter? Ask Your Text Encoder", arXiv 2608.18521). So a negative counts as if it
    were nearer than it is, most of all where its caption says nearly the same, which keeps a
    gradient alive when dense captions have made all others easy. `margin=0` is
    `contrastive_loss`. We know the method from its summary; where the scale stands and the
    margin's size are our reading of it.
    Raises LabError for shapes that do not fit and for NaN features.
    """
    image_GD, text_GD = _gathered(image_features_BD, text_features_BD)
    rows = local_rows(image_GD)
    own_B1 = torch.arange(len(image_GD), device=image_GD.device)[rows, None]
    with torch.autocast(image_GD.device.type, enabled=False):
        # Detached: the margin says how hard a negative is, it does not push texts apart.
        alike_BG = (text_GD[rows] @ text_GD.mT).detach().scatter(1, own_B1, 0)
        both_BG = [
            logit_scale * (asking_GD[rows] @ answers_GD.mT + margin * alike_BG)
            for asking_GD, answers_GD in ((image_GD, text_GD), (text_GD, image_GD))
        ]
        return cross_entropy_both_ways(*both_BG, label_smoothing, same_GG, rows)


# --- The pairwise sigmoid loss of SigLIP ---

JUDGED_AT_ONCE = 2**24
"""Pairs in a chunk: 64 MiB of float32 logits."""


def sigmoid_loss(
    image_features_BD: torch.Tensor,
    text_features_BD: torch.Tensor,
    logit_scale: torch.Tensor | float,
    logit_bias: torch.Tensor | float,
    same_GG: torch.Tensor | None = None,
) -> torch.Tensor:
    """A binary classification of every pair (SigLIP, Zhai et al. 2023, section 3.2), in nats.

    The mean over images i of the sum over texts j of -log sigmoid(z_ij (scale x_i . y_j + bias)),
    z_ij = 1 for pairs that belong together and -1 for all others. Scale and bias are trained; the
    paper starts them at 10 and -10, so that the many negatives do not swamp the start. Features
    need not be normalised. `same_GG`: duplicates count neither as positives nor as negatives.

    A process takes its own images against all texts, in chunks that are computed again for the
    gradient: there is never a table of G x G logits (section 3.3, with a gather of the texts
    instead of the paper's ring).
    Raises LabError for shapes that do not fit and for NaN features.

    >>> aligned = torch.eye(4)
    >>> round(sigmoid_loss(aligned, aligned, logit_scale=10.0, logit_bias=-10.0).item(), 4)
    0.6933
    """
    check_pairs(image_features_BD, text_features_BD, "image and text features")
    text_GD = gather(text_features_BD)
    # All processes must come to the same verdict. A row with a NaN has no finite sum.
    sums_G = gather(image_features_BD.detach().float().sum(dim=1))
    check_finite(image_features=sums_G, text_features=text_GD)
    image_BD, text_GD = normalize(image_features_BD), normalize(text_GD)
    mine_B = torch.arange(len(text_GD), device=text_GD.device)[local_rows(text_GD)]
    duplicates_BG = None
    if same_GG is not None:
        check_duplicates(same_GG, len(text_GD))
        duplicates_BG = same_GG[local_rows(text_GD)].to(text_GD.device)
    size = max(1, JUDGED_AT_ONCE // len(text_GD))
    share = image_BD.new_zeros(())
    for start in range(0, len(image_BD), size):
        rows = slice(start, start + size)
        duplicates_RG = None if duplicates_BG is None else duplicates_BG[rows]
        chunk = (image_BD[rows], text_GD, mine_B[rows], logit_scale, logit_bias, duplicates_RG)
        if size >= len(image_BD):
            share = share + _judged(*chunk)
        else:
            share = share + checkpoint(_judged, *chunk, use_reentrant=False)
    return all_reduce_loss(share / len(text_GD))


def _judged(
    image_RD: torch.Tensor,
    text_GD: torch.Tensor,
    own_R: torch.Tensor,
    logit_scale: torch.Tensor | float,
    logit_bias: torch.Tensor | float,
    duplicates_RG: torch.Tensor | None,
) -> torch.Tensor:
    """The sum over pairs of R images and all texts; `own_R` are the right ones."""
    with torch.autocast(image_RD.device.type, enabled=False):
        # Equation of section 3.2: z_ij times the logit, through log sigmoid.
        logits_RG = logit_scale * (image_RD @ text_GD.mT) + logit_bias
        right_RG = torch.zeros_like(logits_RG, dtype=torch.bool).scatter(1, own_R[:, None], True)
        losses_RG = -F.logsigmoid(torch.where(right_RG, logits_RG, -logits_RG))
        if duplicates_RG is not None:
            losses_RG = losses_RG.masked_fill(duplicates_RG & ~right_RG, 0)
        return losses_RG.sum()


# --- The token-wise late interaction of FILIP ---

ROWS_AT_ONCE = 64


def filip_loss(
    image_tokens_BPD: torch.Tensor,
    text_tokens_BTD: torch.Tensor,
    text_mask_BT: torch.Tensor,
    logit_scale: torch.Tensor | float,
    label_smoothing: float = 0.0,
    same_GG: torch.Tensor | None = None,
) -> torch.Tensor:
    """Contrastive loss over token-wise similarities (FILIP, Yao et al. 2022, section 3.1).

    Image to text: every image token is compared with its most similar text token, and the mean
    over image tokens is the similarity of image and text (equations 3 and 4); text to image:
    the other way round, over the tokens of the text that `text_mask_BT` (bool) marks. The result
    is the mean of both cross-entropies, a scalar in nats. The paper's reduction of tokens to the
    top 25% before they are gathered is a saving that we leave out.

    Tokens need not be normalised. T may differ between processes. Only R rows of the
    [G, G, P, T] similarities exist at a time.
    Raises LabError for shapes that do not fit, a text without tokens, NaN features.
    """
    _check(image_tokens_BPD, text_tokens_BTD, text_mask_BT)
    image_GPD = normalize(gather(image_tokens_BPD))
    text_GTD = normalize(gather(pad_to_longest(text_tokens_BTD)))
    # Not every backend gathers bools.
    mask_GT = gather(pad_to_longest(text_mask_BT.to(torch.uint8))).bool()
    check_finite(image_tokens=image_GPD, text_tokens=text_GTD)
    with torch.autocast(image_GPD.device.type, enabled=False):
        rows = [
            checkpoint(late_interaction, part_RPD, text_GTD, mask_GT, use_reentrant=False)
            for part_RPD in image_GPD.split(ROWS_AT_ONCE)
        ]
        of_image_GG, of_text_GG = (torch.cat(part) for part in zip(*rows, strict=True))
        own = local_rows(image_GPD)
        to_text_BG, to_image_BG = of_image_GG[own], of_text_GG.mT[own]
        return cross_entropy_both_ways(
            logit_scale * to_text_BG, logit_scale * to_image_BG, label_smoothing, same_GG, own
        )


def late_interaction(
    image_RPD: torch.Tensor, text_GTD: torch.Tensor, mask_GT: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Late interaction of images and texts in both directions, both [R, G]; tokens of length 1."""
    similarity_RGPT = torch.einsum("rpd,gtd->rgpt", image_RPD, text_GTD)
    # Equation 3: the mean over image tokens of the best text token, padding left out.
    shown = similarity_RGPT.masked_fill(~mask_GT[None, :, None, :], -torch.inf)
    of_image_RG = shown.amax(dim=3).mean(dim=2)
    # Equation 4: the mean over the text's own tokens of the best image token.
    best_RGT = similarity_RGPT.amax(dim=2).masked_fill(~mask_GT, 0)
    return of_image_RG, best_RGT.sum(dim=2) / mask_GT.sum(dim=1)


def _check(image_BPD: torch.Tensor, text_BTD: torch.Tensor, mask_BT: torch.Tensor) -> None:
    fits = (
        image_BPD.ndim == text_BTD.ndim == 3
        and 0 not in (*image_BPD.shape, *text_BTD.shape)
        and image_BPD.shape[::2] == text_BTD.shape[::2]
        and mask_BT.shape == text_BTD.shape[:2]
    )
    if not fits or mask_BT.dtype != torch.bool:
        raise LabError(
            "FILIP compares image tokens [B, P, D] with text tokens [B, T, D] under a bool mask "
            f"[B, T]; got {list(image_BPD.shape)}, {list(text_BTD.shape)} and {mask_BT.dtype} "
            f"{list(mask_BT.shape)}."
        )
    empty_B = ~mask_BT.any(dim=1)
    if empty_B.any():
        raise LabError(f"Text {int(empty_B.nonzero()[0])} of the batch has no tokens to compare.")
