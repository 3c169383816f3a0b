"""Maps from similarities: patches with tokens, and occlusion.

CLIP has no cross-attention: no patch ever meets a word before both towers have pooled. What papers
draw as "cross-attention maps" of a CLIP is relevance, or similarity in shared space as here.

B batch, T tokens, P patches, h w rows and columns of the patch grid, D embedding.

No gradient, any model, and what is measured is what is said. But a text without a word and a
picture with a grey square are unlike anything seen in training, and what two places show alike
is hidden by neither of them alone.

B pairs, T tokens, N rows that are run, K squares, D embedding, h w rows and columns of patches.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F

from longclip_lab.attribution.maps import (
    Pairs,
    PatchFeatures,
    PatchMap,
    Picture,
    TokenMap,
    TokenPatches,
    as_pairs,
    patch_method,
    token_features,
    token_method,
)
from longclip_lab.errors import LabError, suggest
from longclip_lab.models import Clip, anatomy, encode_texts
from longclip_lab.models.encoding import Images, evaluating
from longclip_lab.models.towers import can_pack, encode_variants
from longclip_lab.text import split_sentences

# --- Which tokens make up a word or a sentence ---

UNITS = ("word", "token", "sentence")
_WORD = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")


def words_of(text: str, spans: Sequence[tuple[int, int]]) -> list[str]:
    """The word that each token is a piece of.

    >>> words_of("a sunflower.", ((0, 1), (2, 5), (5, 11), (11, 12)))
    ['a', 'sunflower', 'sunflower', '.']
    """
    found = list(spans)
    words = [match.span() for match in _WORD.finditer(text)]
    for index, owner in enumerate(_owners(spans, words)):
        if owner:
            found[index] = words[owner - 1]
    return [text[start:end] for start, end in found]


def groups_of(text: str, spans: Sequence[tuple[int, int]], unit: str) -> list[np.ndarray]:
    """The indices of the tokens of each word, token or sentence, in order.

    Raises LabError for another unit.

    >>> groups_of("a sunflower", ((0, 1), (2, 5), (5, 11)), "word")
    [array([0]), array([1, 2])]
    """
    if unit not in UNITS:
        raise LabError(f"There is no unit '{unit}'. {suggest(unit, UNITS)}")
    if unit == "token":
        return [np.array([index]) for index in range(len(spans))]
    sentence = unit == "sentence"
    units = split_sentences(text) if sentence else [m.span() for m in _WORD.finditer(text)]
    owners = _owners(spans, units)
    return [np.flatnonzero(owners == owner) for owner in np.unique(owners)]


def _owners(spans: Sequence[tuple[int, int]], units: Sequence[tuple[int, int]]) -> np.ndarray:
    """For each token the number, from 1, of the last unit that starts no later; 0 for none."""
    firsts = np.array([start for start, _ in units], dtype=int)
    return np.searchsorted(firsts, [start for start, _ in spans], side="right")


# --- Similarity of patches with texts and with their tokens: the maps that cost one forward ---

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


# --- Occlusion: take a word or a square away and see by how much the similarity drops ---

WAYS = ("delete", "pad")
FILLS = ("grey", "average")
PLAIN_GRID = (7, 7)
"""For towers that have no grid of patches of their own."""


@token_method(
    "occlusion",
    about="drop of the similarity when a word is taken away",
    source="Li, Monroe and Jurafsky 2016, Understanding Neural Networks through Erasure",
)
@torch.no_grad()
def occluded_words(
    pairs: Pairs, unit: str = "word", by: str = "delete", batch_size: int = 128
) -> list[TokenMap]:
    """Similarity of the text less that of the text without a word; tokens of a word share it.

    `unit` is what goes at a time: "word", "token" or "sentence". `by="delete"` closes the gap, so
    that later words move to the left, as in a text written without the word; `by="pad"` puts
    padding in its place. Words behind the context cut stay unread either way.

    Raises LabError for another `unit` or `by`.
    """
    _check("by", by, WAYS)
    clip = pairs.clip
    pad_id = clip.tokenizer.pad_id
    rows, owners, origins, groups = [], [], [], []
    for b, (text, spans) in enumerate(zip(pairs.texts, pairs.spans, strict=True)):
        ids_T = pairs.ids_BT[b, : pairs.positions[b].stop + 1]
        groups.append(groups_of(text, spans, unit))
        owners += [b] * (1 + len(groups[-1]))
        origins += [len(rows)] * (1 + len(groups[-1]))
        rows.append(ids_T)
        for group in groups[-1]:
            rows.append(_without(ids_T, group + pairs.positions[b].start, by, pad_id))
    ids_NT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_id)
    with evaluating(clip.model):
        images_BD = F.normalize(clip.encode_image(pairs.pixels_B3HW), dim=-1)
        texts_ND = _encode_variants(clip, ids_NT, torch.tensor(origins), batch_size)
    similarity_N = (F.normalize(texts_ND, dim=-1) * images_BD[owners]).sum(-1).cpu().numpy()
    maps, first = [], 0
    for b, found in enumerate(groups):
        drops = similarity_N[first] - similarity_N[first + 1 : first + 1 + len(found)]
        first += 1 + len(found)
        scores_T = np.zeros(len(pairs.spans[b]), dtype=np.float32)
        for group, drop in zip(found, drops, strict=True):
            scores_T[group] = drop / len(group)
        maps.append(
            TokenMap(
                method="occlusion",
                model=clip.name,
                text=pairs.texts[b],
                spans=pairs.spans[b],
                scores=scores_T,
                unread=pairs.unread[b],
                details={"unit": unit, "by": by},
            )
        )
    return maps


@patch_method(
    "occlusion",
    about="drop of the similarity when a grey square covers the place",
    source="Zeiler and Fergus, ECCV 2014, Section 4.2",
)
@torch.no_grad()
def occluded_patches(
    pairs: Pairs,
    window: int | None = None,
    stride: int | None = None,
    fill: str = "grey",
    batch_size: int = 64,
) -> list[PatchMap]:
    """Similarity with the picture less that with a square of it covered.

    Squares of `window` x `window` patches are slid by `stride` patches; a patch has the mean of
    the drops of all squares that cover it. Without numbers squares move by about a seventh of the
    picture and are twice as wide. `fill="grey"` is the mean colour that the model subtracts,
    "average" the picture's own mean colour.

    Raises LabError for another `fill`, and for squares larger than the picture.
    """
    _check("fill", fill, FILLS)
    clip = pairs.clip
    squares_Khw = squares(anatomy.patch_grid(clip.model.visual) or PLAIN_GRID, window, stride)
    texts_BD = unit_texts(clip, pairs.texts)
    # One picture may come with many texts: its squares are run once.
    first_of: dict[bytes, int] = {}
    same = [first_of.setdefault(image.tobytes(), b) for b, image in enumerate(pairs.shown_BSS3)]
    drops_BK = np.empty((len(pairs), len(squares_Khw)), dtype=np.float32)
    with evaluating(clip.model):
        for first in first_of.values():
            rows = [row for row, owner in enumerate(same) if owner == first]
            pictures = _covered(pairs.pixels_B3HW[first], squares_Khw, fill, batch_size)
            images_ND = torch.cat([clip.encode_image(part_B3HW) for part_B3HW in pictures])
            similarity_NR = F.normalize(images_ND, dim=-1) @ texts_BD[rows].T
            drops_BK[rows] = (similarity_NR[0] - similarity_NR[1:]).T.cpu().numpy()
    squares_Khw = squares_Khw.astype(np.float32)
    scores_Bhw = np.tensordot(drops_BK, squares_Khw, axes=1) / squares_Khw.sum(axis=0)
    details = {"squares": len(squares_Khw), "fill": fill}
    return [
        PatchMap("occlusion", clip.name, image, scores_hw, text, details)
        for image, scores_hw, text in zip(pairs.shown_BSS3, scores_Bhw, pairs.texts, strict=True)
    ]


def squares(grid: tuple[int, int], window: int | None, stride: int | None) -> np.ndarray:
    """The patches under each square, bool [K, h, w]; the last squares end at the edge.

    >>> squares((2, 3), window=2, stride=1).astype(int).tolist()
    [[[1, 1, 0], [1, 1, 0]], [[0, 1, 1], [0, 1, 1]]]
    """
    step = max(1, round(max(grid) / 7))
    stride = min(step, window or step) if stride is None else stride
    window = min(2 * stride, *grid) if window is None else window
    if not 1 <= window <= min(grid) or not 1 <= stride <= window:
        raise LabError(
            f"expected squares of 1 to {min(grid)} patches that move by no more than their width, "
            f"got window {window} and stride {stride} on a grid of {grid[0]} x {grid[1]}."
        )
    rows, columns = (sorted({*range(0, side - window, stride), side - window}) for side in grid)
    found = np.zeros((len(rows) * len(columns), *grid), dtype=bool)
    for square_hw, (row, column) in zip(found, product(rows, columns), strict=True):
        square_hw[row : row + window, column : column + window] = True
    return found


def _covered(
    pixels_3HW: torch.Tensor, squares_Khw: np.ndarray, fill: str, batch_size: int
) -> Iterator[torch.Tensor]:
    """The picture as it is, then under each square, in batches [B, 3, H, W]."""
    height, width = pixels_3HW.shape[1:]
    rows = np.arange(height) * squares_Khw.shape[1] // height
    columns = np.arange(width) * squares_Khw.shape[2] // width
    nothing_1hw = np.zeros_like(squares_Khw[:1])
    covers_Nhw = torch.from_numpy(np.concatenate([nothing_1hw, squares_Khw]))
    colour_311 = pixels_3HW.mean(dim=(1, 2), keepdim=True) if fill == "average" else 0.0
    for covers_Bhw in covers_Nhw.split(batch_size):
        covers_B1HW = covers_Bhw[:, rows][:, :, columns].unsqueeze(1).to(pixels_3HW.device)
        yield torch.where(covers_B1HW, colour_311, pixels_3HW)


def _without(ids_T: torch.Tensor, taken: np.ndarray, by: str, pad_id: int) -> torch.Tensor:
    """The ids without those at the positions `taken`."""
    if by == "pad":
        return ids_T.index_fill(0, torch.from_numpy(taken).to(ids_T.device), pad_id)
    kept_T = torch.ones(len(ids_T), dtype=torch.bool)
    kept_T[taken] = False
    return ids_T[kept_T.to(ids_T.device)]


def _encode_variants(
    clip: Clip, ids_NT: torch.Tensor, origin_N: torch.Tensor, batch_size: int
) -> torch.Tensor:
    """Features [N, D] of texts, each behind the one that it is a variant of, `origin_N`."""
    if clip.device.type != "cpu" or not can_pack(clip.model):
        return torch.cat([clip.encode_text(part_BT) for part_BT in ids_NT.split(batch_size)])
    parts = zip(ids_NT.split(batch_size), origin_N.split(batch_size), strict=True)
    found = []
    for number, (part_BT, origin_B) in enumerate(parts):
        first = number * batch_size
        # A batch that begins within the variants of a text runs that text again.
        before = int(origin_B[0] < first)
        part_BT = torch.cat([ids_NT[origin_B[:before]], part_BT])
        origin_B = torch.cat([origin_B.new_zeros(before), (origin_B - first + before).clamp(min=0)])
        found.append(encode_variants(clip.model, part_BT, origin_B)[before:])
    return torch.cat(found)


def _check(what: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise LabError(f"There is no {what}='{given}'. {suggest(given, known)}")
