"""Similarity of patches with texts and with their tokens: the maps that cost one forward pass.

CLIP has no cross-attention: no patch ever meets a word before both towers have pooled. What papers
draw as "cross-attention maps" of a CLIP is relevance, or similarity in shared space as here.

B batch, T tokens, P patches, h w rows and columns of the patch grid, D embedding.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from longclip_lab.attribution.features import PatchFeatures, token_features
from longclip_lab.attribution.inputs import Pairs, Picture, as_pairs
from longclip_lab.attribution.methods import patch_method
from longclip_lab.attribution.values import PatchMap, TokenPatches
from longclip_lab.attribution.wording import words_of
from longclip_lab.errors import LabError, suggest
from longclip_lab.models import Clip, encode_texts
from longclip_lab.models.encoding import Images

TOKENS = ("alone", "in context")


@patch_method(
    "similarity",
    about="cosine of each patch with the text, in shared space",
    source="MaskCLIP (Zhou et al., ECCV 2022) and many others; see CLIP Surgery (Li et al. 2023)",
)
@torch.no_grad()
def similarity_maps(pairs: Pairs, relative: bool = False) -> list[PatchMap]:
    """Cosine similarity of every patch with the text: a caption, a sub-caption or a single word.

    All texts share a large part of their features, and which patch lies nearest to that part says
    nothing of this text. `relative` subtracts the similarity with the empty text.
    """
    texts_BD = _texts(pairs, relative)
    patches = pairs.patches
    scores_Bhw = torch.einsum("bhwd,bd->bhw", F.normalize(patches.patches_BhwD, dim=-1), texts_BD)
    return _maps(pairs, "similarity-gain" if relative else "similarity", scores_Bhw, patches)


@patch_method(
    "similarity-gain",
    about="how much nearer each patch is to the text than to the empty text (cosines)",
    source="after the redundant features of CLIP Surgery (Li et al. 2023)",
)
def gain_maps(pairs: Pairs) -> list[PatchMap]:
    """`similarity_maps` less those of the empty text: what this text says beyond being a text."""
    return similarity_maps(pairs, relative=True)


@patch_method(
    "similarity-share",
    about="what each patch adds to the similarity of the whole picture and the text",
    source="linearity of average pooling; this library",
)
@torch.no_grad()
def share_maps(pairs: Pairs) -> list[PatchMap]:
    """Every patch's share of the cosine similarity of picture and text.

    The patch's dot product with the text, over the picture's norm and the number of patches. In a
    tower that averages its patches the shares sum to the similarity exactly; `details["adds_up"]`
    says whether they do.
    """
    texts_BD = _texts(pairs, relative=False)
    patches = pairs.patches
    norms_B = patches.images_BD.norm(dim=-1) * patches.patches_BhwD[0, ..., 0].numel()
    dots_Bhw = torch.einsum("bhwd,bd->bhw", patches.patches_BhwD, texts_BD)
    return _maps(pairs, "similarity-share", dots_Bhw / norms_B.view(-1, 1, 1), patches)


def token_patches(
    clip: Clip,
    images: Picture | Images,
    texts: str | list[str],
    tokens: str = "alone",
    relative: bool = True,
) -> list[TokenPatches]:
    """The cosine similarity of every token with every patch, one matrix a pair.

    `tokens="alone"`: a token's feature is that of its word as a text of its own. This asks where
    in the picture the word's meaning lies, whatever the sentence around it.

    `tokens="in context"`: the text tower's last state at the token, through the final norm and the
    projection. No training ever asked that state to mean its word: only the end token's (or
    [CLS]'s) is trained. In a causal tower it knows the words before it, and often sums them up.

    `relative` subtracts the similarity with the empty text, the same for every token: without it
    most maps show one common pattern.

    Raises LabError for another `tokens`, and as `as_pairs` and `patch_features` do.
    """
    return token_patches_of(as_pairs(clip, images, texts), tokens, relative)


@torch.no_grad()
def token_patches_of(
    pairs: Pairs, tokens: str = "alone", relative: bool = True
) -> list[TokenPatches]:
    """`token_patches` of pairs that are ready."""
    if tokens not in TOKENS:
        raise LabError(f"There are no tokens '{tokens}'. {suggest(tokens, TOKENS)}")
    clip, patches = pairs.clip, pairs.patches
    patches_BhwD = F.normalize(patches.patches_BhwD, dim=-1)
    features = _words(pairs) if tokens == "alone" else _states(pairs)
    empty_D = unit_texts(clip, [""])[0] if relative else 0.0
    texts_BD = unit_texts(clip, pairs.texts)
    similarities = (F.normalize(patches.images_BD, dim=-1) * texts_BD).sum(-1)
    return [
        TokenPatches(
            method=f"similarity, tokens {tokens}",
            model=clip.name,
            image=pairs.shown_BSS3[b],
            text=pairs.texts[b],
            spans=pairs.spans[b],
            scores=torch.einsum("td,hwd->thw", tokens_TD - empty_D, patches_BhwD[b]).cpu().numpy(),
            similarity=float(similarities[b]),
            unread=pairs.unread[b],
            details={"tokens": tokens, "relative": relative},
            shift=pairs.shift,
        )
        for b, tokens_TD in enumerate(features)
    ]


def unit_texts(clip: Clip, texts: list[str]) -> torch.Tensor:
    """Features of texts [B, D] of length 1, on the model's device; no gradient."""
    return F.normalize(encode_texts(clip, texts).features_ND, dim=-1).to(clip.device)


def _texts(pairs: Pairs, relative: bool) -> torch.Tensor:
    texts_BD = unit_texts(pairs.clip, pairs.texts)
    return texts_BD - unit_texts(pairs.clip, [""]) if relative else texts_BD


def _words(pairs: Pairs) -> list[torch.Tensor]:
    """Unit features [T, D] of each text's tokens as texts of their own; each word is run once."""
    words = [words_of(*one) for one in zip(pairs.texts, pairs.spans, strict=True)]
    known = sorted({word for row in words for word in row}) or [""]
    features_ND = unit_texts(pairs.clip, known)
    index = {word: i for i, word in enumerate(known)}
    return [features_ND[[index[word] for word in row]] for row in words]


def _states(pairs: Pairs) -> list[torch.Tensor]:
    """Unit features [T, D] of each text's tokens where they stand."""
    states_BTD = F.normalize(token_features(pairs.clip, pairs.ids_BT), dim=-1)
    return [states_TD[where] for states_TD, where in zip(states_BTD, pairs.positions, strict=True)]


def _maps(
    pairs: Pairs, method: str, scores_Bhw: torch.Tensor, patches: PatchFeatures
) -> list[PatchMap]:
    scores = scores_Bhw.cpu().numpy().astype(np.float32)
    adds_up = patches.adds_up
    return [
        PatchMap(method, pairs.clip.name, image, map_hw, text, {"adds_up": adds_up}, pairs.shift)
        for image, map_hw, text in zip(pairs.shown_BSS3, scores, pairs.texts, strict=True)
    ]
