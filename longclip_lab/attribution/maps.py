"""Maps by the name of their method: scores on patches, scores on tokens.

T tokens, L layers, H heads, h w rows and columns of the patch grid, S side of the picture.

B batch, T tokens, P patches, h w rows and columns of the patch grid, W width, D embedding.

B pairs, N pictures, T tokens, S side of the picture.

Views, lessons and the faithfulness table go through here, so that a method added with
`@patch_method` or `@token_method` is offered, drawn and measured everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from open_clip.hf_model import ClsPooler, HFTextEncoder
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from PIL import Image
from torch import nn

from longclip_lab.errors import LabError, NotFiniteError, suggest
from longclip_lab.models import Clip, pixels
from longclip_lab.models.anatomy import text_tower
from longclip_lab.models.encoding import Images, evaluating
from longclip_lab.models.towers import project
from longclip_lab.plotting import Plottable

# --- What the attribution methods return: scores that lie on words, on a picture, or on both ---


@dataclass(frozen=True)
class TokenMap(Plottable):
    """One score for every token that the model read of a text.

    `spans` [T] are the characters of `text` that each token stands for; start and end tokens have
    no entry. `unread` counts the tokens behind the model's context, which have no score either.
    `details` holds what the method reports beside the scores, such as a convergence delta.
    """

    method: str
    model: str
    text: str
    spans: tuple[tuple[int, int], ...]
    scores: np.ndarray
    unread: int = 0
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.scores.shape != (len(self.spans),):
            raise LabError(
                f"expected one score for each of {len(self.spans)} tokens, got scores of shape "
                f"{self.scores.shape}."
            )
        _check_finite(self)

    def __len__(self) -> int:
        return len(self.spans)

    @property
    def tokens(self) -> list[str]:
        """The characters that each token stands for."""
        return [self.text[start:end] for start, end in self.spans]

    def within(self, start: int, end: int) -> np.ndarray:
        """Which tokens lie in the characters [start, end) of the text: bool [T]."""
        return tokens_within(self.spans, start, end)

    def total(self, start: int, end: int) -> float:
        """The sum of the scores of the tokens in the characters [start, end)."""
        return float(self.scores[self.within(start, end)].sum())


@dataclass(frozen=True)
class PatchMap(Plottable):
    """One score for every patch of a picture.

    `image` uint8 [S, S, 3] is the picture as the model saw it: resized and cropped. `scores`
    [h, w], row 0 at the top. Pixel coordinates are (x, y) from the top left of `image`. `text` is
    what the map was asked about, None for maps of the picture alone. `shift` is how far, in
    pixels, what a patch's token sees lies from an even grid: nothing for square patches, but a
    stem of convolutions may look to one side.
    """

    method: str
    model: str
    image: np.ndarray
    scores: np.ndarray
    text: str | None = None
    details: dict[str, Any] = field(default_factory=dict)
    shift: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        if self.scores.ndim != 2:
            raise LabError(f"expected patch scores [h, w], got shape {self.scores.shape}.")
        _check_finite(self)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.scores.shape

    def centres(self) -> np.ndarray:
        """Pixel coordinates (x, y) of the middle of what every patch sees: [h, w, 2]."""
        rows, columns = self.grid
        height, width = self.image.shape[:2]
        x = (np.arange(columns) + 0.5) * width / columns + self.shift[0]
        y = (np.arange(rows) + 0.5) * height / rows + self.shift[1]
        return np.stack(np.meshgrid(x, y), axis=-1)

    def peak(self) -> tuple[float, float]:
        """Pixel coordinates (x, y) of the middle of the patch with the highest score."""
        row, column = np.unravel_index(int(self.scores.argmax()), self.scores.shape)
        x, y = self.centres()[row, column]
        return float(x), float(y)

    def on_pixels(self, side: int | None = None) -> np.ndarray:
        """The scores where they lie on the picture, [S, S], or on one drawn at another `side`."""
        side = side or self.image.shape[0]
        rows, columns = patch_of_pixels(self.grid, side, self.shift, self.image.shape[0])
        return self.scores[rows[:, None], columns[None, :]]


@dataclass(frozen=True)
class TokenPatches(Plottable):
    """The matrix of every token against every patch, and what each half of it says.

    `scores` [T, h, w]; `similarity` is the cosine of the whole text and the whole picture. The
    papers call slices of such a matrix "cross-attention maps"; CLIP has no cross-attention.
    """

    method: str
    model: str
    image: np.ndarray
    text: str
    spans: tuple[tuple[int, int], ...]
    scores: np.ndarray
    similarity: float
    unread: int = 0
    details: dict[str, Any] = field(default_factory=dict)
    shift: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        _check_finite(self)

    def patches(self, start: int, end: int) -> PatchMap:
        """The patches for the characters [start, end) of the text: the mean over their tokens.

        Raises LabError if the model read no token there.
        """
        inside = tokens_within(self.spans, start, end)
        if not inside.any():
            raise LabError(
                f"no token that the model read lies in the characters {start} to {end} of the "
                f"text ({len(self.spans)} tokens read, {self.unread} not)."
            )
        return PatchMap(
            method=self.method,
            model=self.model,
            image=self.image,
            scores=self.scores[inside].mean(0),
            text=self.text[start:end],
            shift=self.shift,
        )

    def tokens(self, row: int, column: int) -> TokenMap:
        """The tokens for one patch."""
        return TokenMap(
            self.method, self.model, self.text, self.spans, self.scores[:, row, column], self.unread
        )


@dataclass(frozen=True)
class Explanation(Plottable):
    """Why one picture and one text have their cosine similarity: scores on both sides."""

    similarity: float
    tokens: TokenMap
    patches: PatchMap


@dataclass(frozen=True)
class AttentionWeights(Plottable):
    """The attention weights of one tower for one input: [L, H, T, T], rows sum to 1.

    Row q of the last two axes is what position q attends to. `labels` [T] name the positions:
    "[start]", tokens, "[end]" of a text, "[class]" and "row,column" of a picture. `pooled` is the
    position that the tower reads off, None where it averages.
    """

    model: str
    tower: str
    weights: np.ndarray
    labels: tuple[str, ...]
    pooled: int | None
    source: Any = None


def _check_finite(found: TokenMap | PatchMap | TokenPatches) -> None:
    bad = found.scores.size - int(np.isfinite(found.scores).sum())
    if bad:
        raise NotFiniteError(
            f"{found.method} gives {bad} of {found.scores.size} scores of {found.model} that are "
            "no finite numbers. Are the model's weights? Load a checkpoint from before it diverged."
        )


def patch_of_pixels(
    grid: tuple[int, int], side: int, shift: tuple[float, float] = (0.0, 0.0), seen: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The row of patches of each row of pixels [S], and the column of each column.

    `shift` is in pixels of a picture of `seen` (by default `side`). Pixels outside the shifted
    grid belong to its edge.

    >>> patch_of_pixels((2, 2), 6, (1.0, 0.0))[1].tolist()
    [0, 0, 0, 0, 1, 1]
    """
    places = (np.arange(side) + 0.5) * (seen or side) / side
    found = []
    for count, offset in zip(grid, reversed(shift), strict=True):
        index = np.floor((places - offset) * count / (seen or side)).astype(int)
        found.append(np.clip(index, 0, count - 1))
    return found[0], found[1]


def tokens_within(spans: Sequence[tuple[int, int]], start: int, end: int) -> np.ndarray:
    """Which of the half-open `spans` touch the characters [start, end): bool [T].

    >>> tokens_within([(0, 1), (2, 5), (6, 10)], 2, 5).tolist()
    [False, True, False]
    """
    return np.array([low < end and high > start for low, high in spans], dtype=bool)


# --- Every patch and every token in the space that pictures and texts share ---


@dataclass(frozen=True)
class PatchFeatures:
    """Patches [B, h, w, D] and pictures [B, D] in shared space, not normalised.

    `adds_up` is True if the mean over the patches is the picture's feature.
    """

    patches_BhwD: torch.Tensor
    images_BD: torch.Tensor

    @property
    def adds_up(self) -> bool:
        gap_BD = self.patches_BhwD.mean(dim=(1, 2)) - self.images_BD
        return bool(gap_BD.norm() < 1e-3 * self.images_BD.norm())


def patch_features(clip: Clip, pixels_B3HW: torch.Tensor) -> PatchFeatures:
    """What each patch puts into the picture's feature, as far as the tower lets that be said.

    A tower ends in a pooling of the last layer's tokens, a norm and a projection. Here each patch
    token takes that way out on its own.

    - Average pooling: the mean over the patches is exactly the picture's feature, also where the
      norm stands behind the pooling (timm's order, and the tiny model's): such a norm divides by
      the deviation of the mean token, and here it divides every patch by just that number.
    - Class token: the patches take the class token's way out. They were never trained to be read
      off, so what comes of it is to be measured, not assumed.
    - Attention pooling (CLIP's ResNets, SigLIP): the value and output projections of the pool, as
      with all attention on this one patch (MaskCLIP, Zhou et al., ECCV 2022, Section 3.2).
    - Other poolings (maximum; ConvNeXt's): the tower's head on a picture of this patch alone.

    Raises LabError for a tower that keeps no grid of patches to its end.
    """
    visual = clip.model.visual
    pixels_B3HW = pixels_B3HW.to(clip.device)
    with evaluating(clip.model):
        if isinstance(visual, TimmModel):
            return _timm_patches(visual, pixels_B3HW)
        if isinstance(visual, VisionTransformer):
            return _transformer_patches(visual, pixels_B3HW)
        if isinstance(visual, ModifiedResNet):
            return _resnet_patches(visual, pixels_B3HW)
    raise LabError(f"{type(visual).__name__} is no image tower whose patches are known here.")


def token_features(clip: Clip, ids_BT: torch.Tensor) -> torch.Tensor:
    """The last layer's state at each token, taken the way out of the pooled one: [B, T, D].

    The row at the pooled position (end token, or [CLS]) is the text's feature. All others were
    never trained to be read off. In a causal tower a token's state knows what stands before it
    and nothing of what follows; in BERT it knows the whole text. T is no more than the longest
    text of the batch asks for.

    Raises LabError for a text tower of another make.
    """
    tower = text_tower(clip.model)
    if not isinstance(tower, HFTextEncoder) and not hasattr(tower, "ln_final"):
        raise LabError(f"{type(tower).__name__} is no text tower whose tokens are known here.")
    with evaluating(clip.model), _outputs(tower.transformer) as seen:
        clip.encode_text(ids_BT)
    (states,) = seen
    if not isinstance(tower, HFTextEncoder):
        return project(tower, states)[:, : ids_BT.shape[1]]
    states_BTW = states.last_hidden_state[:, : ids_BT.shape[1]]  # corner tokens stand behind
    pooler = getattr(tower.transformer, "pooler", None)
    if isinstance(tower.pooler, ClsPooler) and tower.pooler.use_pooler_output and pooler:
        states_BTW = pooler(states_BTW.flatten(0, 1).unsqueeze(1)).view_as(states_BTW)
    return tower.proj(states_BTW)


@contextmanager
def _outputs(module: nn.Module) -> Iterator[list[Any]]:
    """A list that collects what `module` returns inside the block."""
    seen: list[Any] = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    try:
        yield seen
    finally:
        handle.remove()


def _transformer_patches(visual: VisionTransformer, pixels_B3HW: torch.Tensor) -> PatchFeatures:
    if getattr(visual, "attn_pool_contrastive", None) is not None:
        raise LabError("An image tower with two attention pools has no patches in shared space.")
    with _outputs(visual.transformer) as seen:
        out = visual(pixels_B3HW)
    tokens_BPW = seen[0][:, 1:]
    if visual.attn_pool is not None:  # over one token alone, attention is all on it
        alone = visual.attn_pool(tokens_BPW.flatten(0, 1).unsqueeze(1))[:, 0]
        normed_BPW = visual.ln_post(alone).unflatten(0, tokens_BPW.shape[:2])
    elif visual.pool_type == "avg" and visual.final_ln_after_pool:
        normed_BPW = _normed_as_mean(visual.ln_post, tokens_BPW)
    else:
        normed_BPW = visual.ln_post(tokens_BPW)
    features_BPD = normed_BPW if visual.proj is None else normed_BPW @ visual.proj
    images_BD = out[0] if isinstance(out, tuple) else out
    return PatchFeatures(features_BPD.unflatten(1, tuple(visual.grid_size)), images_BD)


def _timm_patches(visual: TimmModel, pixels_B3HW: torch.Tensor) -> PatchFeatures:
    trunk = visual.trunk
    states = trunk.forward_features(pixels_B3HW)
    images_BD = visual.head(trunk.forward_head(states))
    if states.ndim == 3:
        features_BPD = _timm_tokens(visual, states)
        grid = tuple(trunk.patch_embed.grid_size)
    elif states.ndim == 4:  # convolutions: the head on one cell at a time
        last = getattr(trunk, "output_fmt", "NCHW") == "NHWC"
        cells_BhwW = states if last else states.permute(0, 2, 3, 1)
        grid = tuple(cells_BhwW.shape[1:3])
        alone = cells_BhwW.flatten(0, 2)
        alone = alone[:, None, None] if last else alone[:, :, None, None]
        features_BPD = visual.head(trunk.forward_head(alone))
    else:
        raise LabError(f"{type(trunk).__name__} keeps no grid of patches to its end.")
    return PatchFeatures(features_BPD.view(len(images_BD), *grid, -1), images_BD)


def _timm_tokens(visual: TimmModel, states_BTW: torch.Tensor) -> torch.Tensor:
    """The patches among the tokens of a timm transformer through its head: [B, P, D]."""
    trunk = visual.trunk
    prefix = trunk.num_prefix_tokens  # class and register tokens
    tokens_BPW = states_BTW[:, prefix:]
    norm = getattr(trunk, "fc_norm", None)
    averages = trunk.global_pool == "avg" and getattr(trunk, "attn_pool", None) is None
    if averages and isinstance(norm, nn.LayerNorm | nn.Identity):
        return visual.head(trunk.head(_normed_as_mean(norm, tokens_BPW)))
    # timm's own head, on one patch at a time; the patch stands in for the prefix tokens too, as
    # one of them may be what is pooled.
    alone = tokens_BPW.flatten(0, 1).unsqueeze(1).expand(-1, prefix + 1, -1)
    return visual.head(trunk.forward_head(alone)).unflatten(0, tokens_BPW.shape[:2])


def _normed_as_mean(norm: nn.LayerNorm | nn.Identity, tokens_BPW: torch.Tensor) -> torch.Tensor:
    """Every token normed with the deviation of their mean, so that the mean is the normed mean."""
    if isinstance(norm, nn.Identity):
        return tokens_BPW
    variance_B11 = tokens_BPW.mean(dim=1, keepdim=True).var(-1, correction=0, keepdim=True)
    centred_BPW = tokens_BPW - tokens_BPW.mean(dim=-1, keepdim=True)
    normed_BPW = centred_BPW * (variance_B11 + norm.eps).rsqrt()
    normed_BPW = normed_BPW if norm.weight is None else normed_BPW * norm.weight
    return normed_BPW if norm.bias is None else normed_BPW + norm.bias


def _resnet_patches(visual: ModifiedResNet, pixels_B3HW: torch.Tensor) -> PatchFeatures:
    pool = visual.attnpool
    with _outputs(visual.layer4) as seen:
        images_BD = visual(pixels_B3HW)
    states_BhwW = seen[0].permute(0, 2, 3, 1)
    positions_hwW = pool.positional_embedding[1:].view(states_BhwW.shape[1:])
    return PatchFeatures(pool.c_proj(pool.v_proj(states_BhwW + positions_hwW)), images_BD)


# --- Pictures and texts as the attribution methods take them: pairs, ready for the model ---

Picture = Image.Image | str | np.ndarray
"""One picture: a PIL picture, a path, or uint8 values [H, W, 3]."""


@dataclass(frozen=True)
class Pictures:
    """N pictures, ready for the model, with what is known of them whatever the text.

    `pixels_N3HW` is preprocessed, on the model's device; `shown_NSS3` uint8 is the same for the
    eye. Ask about other texts with the same object, and the image tower does not run again; after
    training the model, prepare the pictures anew.
    """

    clip: Clip
    pixels_N3HW: torch.Tensor
    shown_NSS3: np.ndarray

    @cached_property
    def patches(self) -> PatchFeatures:
        """`patch_features` of the pictures, without gradient. Raises LabError as that does."""
        with torch.no_grad():
            return patch_features(self.clip, self.pixels_N3HW)

    def paired(self, texts: str | Sequence[str]) -> Pairs:
        """The pictures with their texts; one picture goes with every text, one text with every
        picture.

        Raises LabError if neither the counts agree nor one of them is 1.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        pictures = len(self.pixels_N3HW)
        if not texts:
            raise LabError(f"expected pictures and texts, got {pictures} pictures and 0 texts.")
        if pictures != len(texts) and 1 not in (pictures, len(texts)):
            raise LabError(
                f"expected one text a picture, got {pictures} pictures and {len(texts)} texts. "
                "Give lists of one length, or one picture or one text for all."
            )
        texts = texts * max(pictures, len(texts)) if len(texts) == 1 else texts
        ids_BT, spans, positions, unread = tokenize_with_spans(self.clip, texts)
        return Pairs(self, texts, ids_BT.to(self.clip.device), spans, positions, unread)


@dataclass(frozen=True)
class Pairs:
    """B pictures and B texts that belong together.

    `pictures` holds them, or the only one for all texts. `ids_BT` is trimmed
    to the longest text of the batch. `spans[b]` are the characters of the tokens read, which stand
    at `positions[b]` (a slice of T, without start and end); `unread[b]` counts the tokens cut off.
    """

    pictures: Pictures
    texts: list[str]
    ids_BT: torch.Tensor
    spans: list[tuple[tuple[int, int], ...]]
    positions: list[slice]
    unread: list[int]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def clip(self) -> Clip:
        return self.pictures.clip

    @property
    def pixels_B3HW(self) -> torch.Tensor:
        return self.pictures.pixels_N3HW.expand(len(self), -1, -1, -1)

    @property
    def shown_BSS3(self) -> np.ndarray:
        shown_NSS3 = self.pictures.shown_NSS3
        return shown_NSS3.repeat(len(self), 0) if len(shown_NSS3) < len(self) else shown_NSS3

    @property
    def patches(self) -> PatchFeatures:
        """`patch_features` of the B pictures, computed once for all texts; without gradient."""
        found = self.pictures.patches
        return PatchFeatures(
            found.patches_BhwD.expand(len(self), -1, -1, -1), found.images_BD.expand(len(self), -1)
        )

    @property
    def shift(self) -> tuple[float, float]:
        """How far what a patch's token sees lies from an even grid, (x, y) in pixels."""
        trunk = getattr(self.clip.model.visual, "trunk", self.clip.model.visual)
        return getattr(getattr(trunk, "patch_embed", None), "field_shift", (0.0, 0.0))


def as_pairs(clip: Clip, images: Picture | Images, texts: str | Sequence[str]) -> Pairs:
    """Check and prepare pictures with their texts; one picture may stand alone, so may one text.

    One picture with several texts, or several pictures with one text, are paired with each.
    Raises LabError if neither the counts agree nor one of them is 1, and as `pixels` does.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    images = _as_batch(images)
    if not len(images) or not texts:
        raise LabError(
            f"expected pictures and texts, got {len(images)} pictures and {len(texts)} texts."
        )
    return as_images(clip, images).paired(texts)


def as_images(clip: Clip, images: Picture | Images) -> Pictures:
    """Check and prepare pictures, to ask about more than once. Raises LabError as `pixels` does."""
    pixels_N3HW = pixels(clip, _as_batch(images))
    return Pictures(clip, pixels_N3HW.to(clip.device), shown(clip, pixels_N3HW))


def tokenize_with_spans(
    clip: Clip, texts: Sequence[str]
) -> tuple[torch.Tensor, list[tuple[tuple[int, int], ...]], list[slice], list[int]]:
    """Token ids [B, T], the spans and the positions of the tokens read, and how many were not.

    T is the longest text's length; the first position holds the start token.
    """
    tokens = clip.tokenize(texts)
    longest = int(tokens.lengths_B.max())
    spans, positions, unread = [], [], []
    for text, length in zip(texts, tokens.lengths_B.tolist(), strict=True):
        all_spans = clip.tokenizer.tokenize(text).spans
        read = length - 2
        spans.append(tuple(map(tuple, all_spans[:read])))
        positions.append(slice(1, 1 + read))
        unread.append(len(all_spans) - read)
    return tokens.ids_BT[:, :longest], spans, positions, unread


def shown(clip: Clip, pixels_B3HW: torch.Tensor) -> np.ndarray:
    """Preprocessed pictures for the eye again: uint8 [B, H, W, 3]."""
    mean_311 = torch.tensor(clip.image_mean).view(3, 1, 1)
    std_311 = torch.tensor(clip.image_std).view(3, 1, 1)
    values = pixels_B3HW.detach().cpu() * std_311 + mean_311
    return (values.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def _as_batch(images: Picture | Images) -> Images:
    """A single picture as a batch of one."""
    if isinstance(images, np.ndarray | torch.Tensor):
        return images[None] if images.ndim == 3 else images
    if isinstance(images, Sequence) and not isinstance(images, str):
        if images and all(isinstance(image, np.ndarray) for image in images):
            return np.stack(images) if len({i.shape for i in images}) == 1 else _pil(images)
        return images
    return [images]


def _pil(images: Sequence[np.ndarray]) -> list[Image.Image]:
    return [Image.fromarray(image) for image in images]


# --- Every method by name, behind two functions: scores on patches, scores on tokens ---

Map = TypeVar("Map", PatchMap, TokenMap)


@dataclass(frozen=True)
class Method:
    """A named method: what it does in one line, its source, and the function on pairs.

    `asks_text` is False for maps of the picture alone, which are the same for every text.
    `needs_gradient` tells a reader why it takes longer. `imports` names modules that are loaded at
    the first use, for whoever would rather wait for them earlier.
    """

    name: str
    about: str
    source: str
    run: Callable[..., list[Any]]
    asks_text: bool = True
    needs_gradient: bool = False
    imports: tuple[str, ...] = ()


PATCH_METHODS: dict[str, Method] = {}
TOKEN_METHODS: dict[str, Method] = {}


def patch_method(name: str, **facts: Any) -> Callable:
    """Register `run(pairs: Pairs, **options) -> list[PatchMap]` under a name."""

    def register(run: Callable[..., list[PatchMap]]) -> Callable[..., list[PatchMap]]:
        PATCH_METHODS[name] = Method(name=name, run=run, **facts)
        return run

    return register


def token_method(name: str, **facts: Any) -> Callable:
    """Register `run(pairs: Pairs, **options) -> list[TokenMap]` under a name."""

    def register(run: Callable[..., list[TokenMap]]) -> Callable[..., list[TokenMap]]:
        TOKEN_METHODS[name] = Method(name=name, run=run, **facts)
        return run

    return register


def patch_maps(
    clip: Clip,
    images: Picture | Images,
    texts: str | Sequence[str],
    method: str = "relevance",
    **options: Any,
) -> list[PatchMap]:
    """One map on the patches for every pair of a picture and a text.

    `method` is a name of `PATCH_METHODS`; `options` are those of the method (such as `layer`).
    Raises LabError for an unknown method (near ones listed) and as `as_pairs` does.
    """
    return _run(PATCH_METHODS, method, as_pairs(clip, images, texts), options)


def token_maps(
    clip: Clip,
    images: Picture | Images,
    texts: str | Sequence[str],
    method: str = "relevance",
    **options: Any,
) -> list[TokenMap]:
    """One map on the tokens for every pair of a picture and a text; see `patch_maps`."""
    return _run(TOKEN_METHODS, method, as_pairs(clip, images, texts), options)


def _run(known: dict[str, Method], name: str, pairs: Pairs, options: dict[str, Any]) -> list[Any]:
    if name not in known:
        raise LabError(f"There is no method '{name}' here. {suggest(name, known)}")
    return known[name].run(pairs, **options)
