"""The ways to compare a picture with a text, and which one a model was trained for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from longclip_lab.errors import LabError, suggest
from longclip_lab.evaluation.classification import ClassificationScores, class_features, classify
from longclip_lab.evaluation.late_interaction import (
    class_tokens,
    late_interaction_classify,
    late_interaction_retrieval,
)
from longclip_lab.evaluation.retrieval import RetrievalScores, retrieval
from longclip_lab.models import Clip, encode_images, encode_texts
from longclip_lab.models.token_encoding import encode_images_by_token, encode_texts_by_token

SimilarityName = Literal["pooled", "late"]
TOKEN_WISE = ("filip",)
"""Objectives that train tokens and leave the pooled features untrained."""


@dataclass(frozen=True)
class Similarity:
    """How pictures and texts are encoded and compared."""

    name: SimilarityName
    encode_images: Callable[..., Any]
    """(clip, images, progress=False) -> what `retrieval` and `classify` take first."""
    encode_texts: Callable[..., Any]
    """(clip, texts, progress=False) -> what `retrieval` takes second; has `num_truncated`."""
    retrieval: Callable[..., RetrievalScores]
    """(images, texts, image_of_text=None, **options of `evaluation.retrieval`)."""
    class_features: Callable[..., Any]
    """(clip, class_names, templates, progress=False) -> what `classify` takes second."""
    classify: Callable[..., ClassificationScores]
    """(images, classes, labels, bootstrap=1000, seed=0)."""


def _pooled(images: Any, texts: Any, image_of_text: Any = None, **options: Any) -> RetrievalScores:
    return retrieval(images, texts.features_ND, image_of_text, **options)


def _late(images: Any, texts: Any, image_of_text: Any = None, **options: Any) -> RetrievalScores:
    return late_interaction_retrieval(
        images, texts.features_MTD, texts.mask_MT, image_of_text, **options
    )


SIMILARITIES: Mapping[str, Similarity] = {
    "pooled": Similarity("pooled", encode_images, encode_texts, _pooled, class_features, classify),
    "late": Similarity(
        "late",
        encode_images_by_token,
        encode_texts_by_token,
        _late,
        class_tokens,
        late_interaction_classify,
    ),
}


def get_similarity(clip: Clip, name: SimilarityName | None = None) -> Similarity:
    """The similarity of this name; without one, the one that `clip` was last trained for.

    "pooled" is the cosine of one feature a picture and one a text; "late" is FILIP's token-wise
    late interaction. Raises LabError for an unknown name.

    >>> from longclip_lab.models import new_tiny
    >>> get_similarity(new_tiny()).name
    'pooled'
    """
    if name is None:
        trained = getattr(clip, "card", {}).get("fine_tuned") or [{}]
        objective = trained[-1].get("recipe", {}).get("objective")
        name = "late" if objective in TOKEN_WISE else "pooled"
    if name not in SIMILARITIES:
        raise LabError(f"There is no similarity {name!r}. {suggest(str(name), SIMILARITIES)}")
    return SIMILARITIES[name]
