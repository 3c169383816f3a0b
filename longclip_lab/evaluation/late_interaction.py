"""Late interaction (FILIP) in retrieval and classification; which similarity a model is for.

A model that learned to compare tokens has learned nothing of its pooled features: it is to be asked
in its own way.

Shapes: N images, M texts, R images and C texts of a block, S texts worked on at once, P image
tokens, T text tokens, D embedding, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from longclip_lab.errors import LabError, suggest
from longclip_lab.evaluation.classification import (
    ClassificationScores,
    check_prompts,
    checked_labels,
    class_features,
    classify,
    ranked_classes,
    scored_classes,
)
from longclip_lab.evaluation.retrieval import (
    RetrievalScores,
    Tie,
    retrieval,
    scored_retrieval,
    unit_features,
)
from longclip_lab.models import Clip, encode_images, encode_texts
from longclip_lab.models.encoding import TextTokens, encode_images_by_token, encode_texts_by_token

# --- Retrieval and zero-shot classification by FILIP's token-wise late interaction ---

AT_ONCE = 2**20
"""Similarities of tokens in memory, 4 MB: more do not stay in a processor's cache."""
TEXTS_AT_ONCE = 16
"""Texts side by side, of nearly the same length."""


@dataclass(frozen=True)
class ClassTokens:
    """The prompts of a zero-shot classifier, class after class, token by token."""

    tokens: TextTokens
    names: tuple[str, ...]
    prompts: list[str]
    """The texts that were encoded, classes times templates."""

    @property
    def num_truncated(self) -> int:
        """Prompts that were longer than the model's context."""
        return self.tokens.num_truncated


class LateInteraction:
    """The scores of tokens (FILIP, Yao et al. 2022, equations 3 and 4), see `ranking.Scores`.

    A picture looks for a text by the mean over image tokens of their best text token, a text for a
    picture by the mean over text tokens of their best image token.
    """

    def __init__(
        self, images_NPD: torch.Tensor, texts_MTD: torch.Tensor, mask_MT: torch.Tensor
    ) -> None:
        dims = "number, tokens, dimension"
        self.images_NPD = unit_features(images_NPD, "image tokens", dims)
        texts_MTD = unit_features(texts_MTD, "text tokens", dims).to(self.images_NPD)
        mask_MT = torch.as_tensor(mask_MT, device=texts_MTD.device)
        if images_NPD.shape[2] != texts_MTD.shape[2]:
            raise LabError(
                "Expected images and texts of the same embedding size, got "
                f"{images_NPD.shape[2]} and {texts_MTD.shape[2]}."
            )
        if mask_MT.dtype != torch.bool or mask_MT.shape != texts_MTD.shape[:2]:
            raise LabError(
                f"text_mask: expected bools {list(texts_MTD.shape[:2])}, one a token, got "
                f"{mask_MT.dtype} {list(mask_MT.shape)}."
            )
        empty_M = ~mask_MT.any(dim=1)
        if empty_M.any():
            raise LabError(f"Text {int(empty_M.nonzero()[0])} has no tokens to compare.")
        self.num_images, self.num_texts = len(images_NPD), len(texts_MTD)
        self.device = self.images_NPD.device
        # With a token of its own in the place of padding, no text finds a better one there.
        first_M = mask_MT.int().argmax(dim=1)
        some_M1D = texts_MTD[torch.arange(len(texts_MTD)), first_M][:, None]
        self.texts_MTD = torch.where(mask_MT[..., None], texts_MTD, some_M1D)
        # 1 / number of tokens at each token: the mean of equation 4 becomes a weighted sum.
        self.weights_MT = mask_MT.to(texts_MTD) / mask_MT.sum(dim=1, keepdim=True)
        positions_T = torch.arange(1, mask_MT.shape[1] + 1, device=mask_MT.device)
        # The last token's place, not their number: a mask may have holes.
        self.lengths_M = (mask_MT * positions_T).amax(dim=1)

    def own(self, image_of_text_M: torch.Tensor, chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
        # So many pairs that their similarities of tokens fit into the cache.
        pairs = max(1, min(chunk, AT_ONCE // (self.images_NPD.shape[1] * self.texts_MTD.shape[1])))
        parts = []
        for start in range(0, self.num_texts, pairs):
            texts = slice(start, start + pairs)
            images_CPD = self.images_NPD[image_of_text_M[texts]]
            similarity_CPT = images_CPD @ self.texts_MTD[texts].mT
            # Equation 4: each text token's best image token, averaged over the tokens there are.
            of_text_C = (similarity_CPT.amax(dim=1) * self.weights_MT[texts]).sum(dim=1)
            # Equation 3: each image token's best text token, averaged over all image tokens.
            parts.append((similarity_CPT.amax(dim=2).mean(dim=1), of_text_C))
        of_image, of_text = zip(*parts, strict=True)
        return torch.cat(of_image), torch.cat(of_text)

    def block(self, rows: slice, columns: slice) -> tuple[torch.Tensor, torch.Tensor]:
        rows_RPD, lengths_C = self.images_NPD[rows], self.lengths_M[columns]
        of_image_RC = rows_RPD.new_empty(len(rows_RPD), len(lengths_C))
        of_text_RC = torch.empty_like(of_image_RC)
        # Texts of like length together: a short one is not compared at the longest one's padding.
        for some_S in torch.argsort(lengths_C).split(TEXTS_AT_ONCE):
            length = int(lengths_C[some_S].max())
            texts_STD = self.texts_MTD[columns][some_S, :length]
            weights_ST = self.weights_MT[columns][some_S, :length]
            # The same bound, for a block of images by a group of texts.
            images = max(1, AT_ONCE // (rows_RPD.shape[1] * weights_ST.numel()))
            for start in range(0, len(rows_RPD), images):
                part = slice(start, start + images)
                of_image_RC[part, some_S], of_text_RC[part, some_S] = _interact(
                    rows_RPD[part], texts_STD, weights_ST
                )
        return of_image_RC, of_text_RC


def _interact(
    images_RPD: torch.Tensor, texts_STD: torch.Tensor, weights_ST: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    # One large matrix product, then both reductions: a product a pair would be far slower.
    flat = images_RPD.flatten(0, 1) @ texts_STD.flatten(0, 1).mT
    similarity_RPST = flat.view(*images_RPD.shape[:2], *weights_ST.shape)
    best_RST = similarity_RPST.amax(dim=1)
    return similarity_RPST.amax(dim=3).mean(dim=1), (best_RST * weights_ST).sum(dim=2)


@torch.no_grad()
def late_interaction_retrieval(
    image_tokens_NPD: torch.Tensor,
    text_tokens_MTD: torch.Tensor,
    text_mask_MT: torch.Tensor,
    image_of_text_M: Sequence[int] | torch.Tensor | None = None,
    ks: Sequence[int] = (1, 5, 10),
    tie: Tie = "pessimistic",
    chunk: int = 1024,
    bootstrap: int = 1000,
    seed: int = 0,
) -> RetrievalScores:
    """R@k as `retrieval` gives it, by the similarities that FILIP trains, one a direction.

    Tokens need not be normalised; `text_mask_MT` (bool) says which exist. Image to text is ranked
    by FILIP's equation 3, text to image by equation 4. Everything else is as for `retrieval`;
    memory beyond the normalised tokens: three blocks of chunk x chunk scores and some 10 MB.
    Raises LabError as `retrieval` does, and for a text without tokens.

    >>> eye = torch.eye(3)[:, None]
    >>> mask = torch.ones(3, 1, dtype=torch.bool)
    >>> late_interaction_retrieval(eye, eye[[0, 2, 1]], mask).t2i_ranks.tolist()
    [1, 3, 3]
    """
    scores = LateInteraction(image_tokens_NPD, text_tokens_MTD, text_mask_MT)
    return scored_retrieval(scores, image_of_text_M, ks, tie, chunk, bootstrap, seed)


def class_tokens(
    clip: Clip, class_names: Sequence[str], templates: Sequence[str], progress: bool = False
) -> ClassTokens:
    """Encode all prompts, token by token. Raises LabError as `class_features` does."""
    check_prompts(class_names, templates)
    prompts = [template.format(name) for name in class_names for template in templates]
    tokens = encode_texts_by_token(clip, prompts, progress=progress)
    return ClassTokens(tokens, tuple(class_names), prompts)


@torch.no_grad()
def late_interaction_classify(
    image_tokens_NPD: torch.Tensor,
    classes: ClassTokens,
    labels: Sequence[int] | np.ndarray,
    bootstrap: int = 1000,
    seed: int = 0,
) -> ClassificationScores:
    """Score pictures against the prompts of each class, as FILIP does.

    A picture's score for a class is the mean over the class's templates of its similarity with the
    prompt (image to text, FILIP's equation 3): tokens of different prompts cannot be averaged.
    Ties and errors as for `classify`.
    """
    labels_N = checked_labels(labels, len(image_tokens_NPD), len(classes.names))
    texts = classes.tokens
    scores = LateInteraction(image_tokens_NPD, texts.features_MTD, texts.mask_MT)
    # FILIP classifies images among texts: only its equation 3 is asked, not equation 4.
    scores_NM = scores.block(slice(0, scores.num_images), slice(0, scores.num_texts))[0]
    scores_NK = scores_NM.unflatten(1, (len(classes.names), -1)).mean(dim=2)
    own_N1 = torch.as_tensor(labels_N, device=scores_NK.device)[:, None]
    ranks_N = ranked_classes(scores_NK, own_N1).cpu().numpy()
    return scored_classes(ranks_N, labels_N, classes.names, classes.num_truncated, bootstrap, seed)


# --- The ways to compare a picture with a text, and which one a model was trained for ---

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
        # The last run decides: its loss trained one of the two, and may have spoilt the other.
        trained = getattr(clip, "card", {}).get("fine_tuned") or [{}]
        objective = trained[-1].get("recipe", {}).get("objective")
        name = "late" if objective in TOKEN_WISE else "pooled"
    if name not in SIMILARITIES:
        raise LabError(f"There is no similarity {name!r}. {suggest(str(name), SIMILARITIES)}")
    return SIMILARITIES[name]
