"""Zero-shot classification with templates.

Shapes: N images, C classes, P templates (prompts), D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from longclip_lab.errors import LabError
from longclip_lab.evaluation.retrieval import SAME_SCORE
from longclip_lab.models import Clip, encode_images, encode_texts
from longclip_lab.models.encoding import Images
from longclip_lab.stats import Interval, bootstrap_mean


@dataclass(frozen=True)
class ClassFeatures:
    """The weights of a zero-shot classifier: one normalised feature a class."""

    features_CD: torch.Tensor
    names: tuple[str, ...]
    prompts: list[str]
    """The texts that were encoded, classes times templates."""
    num_truncated: int
    """Prompts that were longer than the model's context."""


@dataclass(frozen=True)
class ClassificationScores:
    """Accuracies of a zero-shot classifier, and the rank of every image's own class."""

    top1: Interval
    top5: Interval
    """Share of images with their class among the first five; 1 with five classes or fewer."""
    per_class: dict[str, Interval] = field(repr=False)
    """top1 of the images of each class that has any."""
    ranks: np.ndarray = field(repr=False)
    """Rank, from 1, of each image's own class; behind the classes with the same score."""
    num_truncated: int
    """Prompts that were longer than the model's context."""

    def scores(self) -> dict[str, Interval]:
        """Both accuracies by name."""
        return {"top-1": self.top1, "top-5": self.top5}


def zero_shot(
    clip: Clip,
    images: Images,
    labels: Sequence[int] | np.ndarray,
    class_names: Sequence[str],
    templates: Sequence[str],
    bootstrap: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> ClassificationScores:
    """Top-1 and top-5 of the classifier whose weights are texts (CLIP, section 3.1.4).

    Every template holds one "{}" for the class name. As in CLIP and Long-CLIP: the features of
    a class's prompts are normalised, averaged over the templates, and normalised again.
    `labels` are indices into `class_names`, one an image. Intervals are bootstraps over images.
    Pooled features are asked, which FILIP does not train: see `late_interaction_classify`.
    Raises LabError for labels, names or templates that do not fit.
    """
    check_prompts(class_names, templates)
    checked_labels(labels, len(images), len(class_names))
    classes = class_features(clip, class_names, templates, progress)
    features_ND = encode_images(clip, images, progress=progress)
    return classify(features_ND, classes, labels, bootstrap, seed)


def class_features(
    clip: Clip, class_names: Sequence[str], templates: Sequence[str], progress: bool = False
) -> ClassFeatures:
    """Encode all prompts and average each class's normalised features over the templates.

    Raises LabError for no class, an empty name, a template without exactly one "{}".
    """
    check_prompts(class_names, templates)
    # Class by class, templates inside: `view` below relies on this order.
    prompts = [template.format(name) for name in class_names for template in templates]
    encoded = encode_texts(clip, prompts, progress=progress)
    # Normalised before the mean, so that no template counts more for its feature's length, and
    # after it, so that the product is a cosine again (CLIP, section 3.1.4).
    prompts_CPD = F.normalize(encoded.features_ND, dim=-1).view(
        len(class_names), len(templates), -1
    )
    classes_CD = F.normalize(prompts_CPD.mean(dim=1), dim=-1)
    return ClassFeatures(classes_CD, tuple(class_names), prompts, encoded.num_truncated)


@torch.no_grad()
def classify(
    features_ND: torch.Tensor,
    classes: ClassFeatures,
    labels: Sequence[int] | np.ndarray,
    bootstrap: int = 1000,
    seed: int = 0,
) -> ClassificationScores:
    """Score image features against one feature a class, by cosine.

    A class whose score equals the own one's (to 1e-6) counts as ahead of it, so that a model
    which cannot tell the classes apart gets 0. Raises LabError for NaN features.
    """
    labels_N = checked_labels(labels, len(features_ND), len(classes.names))
    classes_CD = classes.features_CD.to(features_ND)
    for name, features in (("image features", features_ND), ("class features", classes_CD)):
        if not torch.isfinite(features).all():
            raise LabError(f"{name}: expected finite numbers, got NaN or infinity.")
    # In parts, so that 50,000 images by 1,000 classes need no matrix of 200 MB.
    ranks = []
    own_N1 = torch.as_tensor(labels_N, device=features_ND.device)[:, None]
    for rows_ND, of_rows_N1 in zip(features_ND.split(8192), own_N1.split(8192), strict=True):
        ranks.append(ranked_classes(F.normalize(rows_ND, dim=1) @ classes_CD.mT, of_rows_N1))
    ranks_N = torch.cat(ranks).cpu().numpy()
    return scored_classes(ranks_N, labels_N, classes.names, classes.num_truncated, bootstrap, seed)


def ranked_classes(scores_NC: torch.Tensor, own_N1: torch.Tensor) -> torch.Tensor:
    """Rank [N], from 1, of every image's own class; behind the classes with the same score."""
    level_N1 = scores_NC.gather(1, own_N1) - SAME_SCORE
    # The own class itself is at its own level: the count starts at 1, as ranks do. What is not
    # below is ahead, so with NaN an image is found last.
    return (~(scores_NC < level_N1)).sum(dim=1)


def scored_classes(
    ranks_N: np.ndarray,
    labels_N: np.ndarray,
    names: Sequence[str],
    num_truncated: int,
    bootstrap: int,
    seed: int,
) -> ClassificationScores:
    """Accuracies with their intervals, from the rank of every image's own class."""
    hits_N = (ranks_N == 1).astype(float)
    per_class = {
        name: bootstrap_mean(hits_N[labels_N == index], rounds=bootstrap, seed=seed)
        for index, name in enumerate(names)
        if (labels_N == index).any()
    }
    return ClassificationScores(
        top1=bootstrap_mean(hits_N, rounds=bootstrap, seed=seed),
        top5=bootstrap_mean((ranks_N <= 5).astype(float), rounds=bootstrap, seed=seed),
        per_class=per_class,
        ranks=ranks_N,
        num_truncated=num_truncated,
    )


def check_prompts(class_names: Sequence[str], templates: Sequence[str]) -> None:
    """Raises LabError for no class, an empty name, a template without exactly one "{}"."""
    if isinstance(class_names, str) or isinstance(templates, str):
        raise LabError("class_names and templates: expected lists of texts, got a single text.")
    if not len(class_names) or not len(templates):
        raise LabError(
            f"Expected at least one class and one template, got {len(class_names)} and "
            f"{len(templates)}."
        )
    empty = [index for index, name in enumerate(class_names) if not name.strip()]
    if empty:
        raise LabError(f"class_names: expected words, but class {empty[0]} has an empty name.")
    for template in templates:
        if template.count("{}") != 1 or template.count("{") + template.count("}") != 2:
            raise LabError(
                f'templates: expected exactly one "{{}}" for the class name in each, got '
                f"{template!r}."
            )


def checked_labels(labels: Sequence[int] | np.ndarray, images: int, classes: int) -> np.ndarray:
    """As an array [N]. Raises LabError unless there is one class index an image."""
    labels_N = np.asarray(labels)
    if labels_N.shape != (images,) or images == 0 or labels_N.dtype.kind not in "iu":
        raise LabError(
            f"labels: expected one class index for each of {images} images, got "
            f"{labels_N.dtype} of shape {list(labels_N.shape)}."
        )
    outside = labels_N[(labels_N < 0) | (labels_N >= classes)]
    if len(outside):
        raise LabError(f"labels: expected 0 to {classes - 1}, got {int(outside[0])}.")
    return labels_N
