"""What corner tokens attend to, beside what [CLS] does.

T tokens, m corners, L layers, H heads, C = 1 + m tokens that are read off, G groups of words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from open_clip.hf_model import HFTextEncoder

from longclip_lab.attribution.inputs import tokenize_with_spans
from longclip_lab.attribution.recording import record
from longclip_lab.attribution.values import AttentionWeights, tokens_within
from longclip_lab.errors import LabError
from longclip_lab.models import Clip, corners_of, encode_text_corners
from longclip_lab.models.encoding import evaluating
from longclip_lab.models.text_tower import text_tower
from longclip_lab.world import ATTRIBUTES, Caption

SCENE, OTHER = "scene", "other words"


@dataclass(frozen=True)
class CornerLooks:
    """Where [CLS] and the corners look in one layer, as means over texts and heads.

    `shares` [C, G]: of the weight that a token gives to words, the part on each group; rows sum
    to 1. `even` [G] is the part of the words that are in the group. `overlap` [C, C]: how much of
    two tokens' weight lies on the same words, 1 where they look alike.
    """

    labels: tuple[str, ...]
    groups: tuple[str, ...]
    shares: np.ndarray
    even: np.ndarray
    overlap: np.ndarray
    num_texts: int


def corner_attention(clip: Clip, text: str) -> AttentionWeights:
    """The attention weights of a text with its corner (or register) tokens: [L, H, T, T].

    `attention` shows the tower as `encode_text` runs it, which leaves masked corners out. Here
    they are read, as in training. Positions are in the paper's order: [CLS], corners, text; in
    CLIP's towers the corners stand before the end token.

    Raises LabError for a model without corner tokens.
    """
    corner = corners_of(clip)
    if corner is None:
        raise LabError(
            f"'{clip.name}' has no corner tokens: add_corner_tokens gives it some, attention reads "
            "it as it is."
        )
    ids_BT, (spans,), _, _ = tokenize_with_spans(clip, [text])
    with torch.no_grad(), evaluating(clip.model), record(clip, "text") as recording:
        encode_text_corners(clip, ids_BT)
    weights_LHTT = torch.cat(recording.weights).cpu().numpy()
    own = [f"[Cor {i}]" for i in range(1, corner.num_corner + 1)]
    if corner.kind == "register":
        own = [f"[Reg {i}]" for i in range(1, corner.num_corner + 1)]
    words = [text[start:end] for start, end in spans]
    is_bert = isinstance(text_tower(clip.model), HFTextEncoder)
    labels = ["[CLS]" if is_bert else "[start]", *words, "[SEP]" if is_bert else "[end]", *own]
    # In the tower's tensors the corners come last.
    length, ahead = len(words) + 2, 1 if is_bert else len(words) + 1
    order = [*range(ahead), *range(length, len(labels)), *range(ahead, length)]
    return AttentionWeights(
        model=clip.name,
        tower="text",
        weights=weights_LHTT[:, :, order][..., order],
        labels=tuple(labels[i] for i in order),
        pooled=0 if is_bert else len(labels) - 1,
        source=text,
    )


def corner_looks(clip: Clip, captions: Sequence[Caption], layer: int = -1) -> CornerLooks:
    """Where [CLS] and every corner look, by what the words tell of the scene.

    `captions` are the world's, whose words' attributes are known. Weight on the tokens themselves
    and on [CLS], [SEP] or the end token is left out: what remains is shared out among the words.

    Raises LabError as `corner_attention` does, and for no captions.
    """
    if not captions:
        raise LabError("There is no caption to look at.")
    groups = (*ATTRIBUTES, SCENE, OTHER)
    shares, evens, overlaps = [], [], []
    for caption in captions:
        found = corner_attention(clip, caption.text)
        is_word_T = np.array([not label.startswith("[") for label in found.labels])
        readers = [i for i, label in enumerate(found.labels) if label[:4] in ("[Cor", "[Reg")]
        readers = [found.pooled, *readers]
        weights_HCT = found.weights[layer][:, readers][:, :, is_word_T]
        weights_HCT = weights_HCT / weights_HCT.sum(axis=-1, keepdims=True)
        member_GT = _members(clip, caption, groups, int(is_word_T.sum()))
        shares.append(np.einsum("hct,gt->cg", weights_HCT, member_GT) / len(weights_HCT))
        evens.append(member_GT.mean(axis=1))
        pairs_HCCT = np.minimum(weights_HCT[:, :, None], weights_HCT[:, None])
        overlaps.append(pairs_HCCT.sum(axis=-1).mean(axis=0))
    return CornerLooks(
        labels=tuple(found.labels[i] for i in readers),
        groups=groups,
        shares=np.mean(shares, axis=0),
        even=np.mean(evens, axis=0),
        overlap=np.mean(overlaps, axis=0),
        num_texts=len(captions),
    )


def _members(clip: Clip, caption: Caption, groups: Sequence[str], words: int) -> np.ndarray:
    """Which of the words read belong to which group: [G, words], each word to one."""
    spans = clip.tokenizer.tokenize(caption.text).spans[:words]
    member_GT = np.zeros((len(groups), words))
    for fact in caption.facts:
        inside_T = tokens_within(spans, *fact.span)
        group = fact.attribute if fact.attribute in groups else SCENE
        member_GT[groups.index(group), inside_T] = 1
    member_GT[-1] = member_GT[:-1].sum(axis=0) == 0
    return member_GT
