"""How much towers compute and keep, by formula: FLOPs (LoTLIP's Figure 4), weights, activations.

L layers, T tokens, W width, I inner width of a layer, D embedding, K tokens read off.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from open_clip.hf_model import ClsPooler, HFTextEncoder
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from longclip_lab.errors import COUNT, LabError
from longclip_lab.models.anatomy import text_tower
from longclip_lab.models.clip import Clip
from longclip_lab.models.corner_tokens import check_num_corner


@dataclass(frozen=True)
class TextTowerSize:
    """The sizes that the count depends on.

    `pooler` tells whether the token read off goes through a dense layer before the projection;
    `embed_dim` is None where no projection follows.

    >>> bert_base = TextTowerSize(layers=12, width=768, inner=3072, embed_dim=768, pooler=True)
    >>> round(text_flops(bert_base, 128) / 1e9, 2)
    22.35
    """

    layers: int
    width: int
    inner: int
    embed_dim: int | None
    pooler: bool


def text_flops(
    clip_or_size: Clip | TextTowerSize,
    length: int,
    num_corner: int = 0,
    read_off: int | None = None,
) -> int:
    """Floating point operations of the text tower for one text, a multiply-add counted as two.

    `length` counts the text with start and end; `num_corner` corner (or register) tokens come on
    top, so a released LoTLIP with a token limit of 128 runs `text_flops(clip, 126, 2)` in training
    and, as nothing reads a corner, `text_flops(clip, 126)` at test time. `read_off` is how many
    tokens are pooled and projected: 1 + num_corner unless given (registers: 1).

    Counted are the matrix products, as torch's `FlopCounterMode` counts them with an attention
    that computes every pair of tokens: L (8 T W^2 + 4 T^2 W + 4 T W I) + K (2 W^2 + 2 W D).
    Masked pairs count too, unless a kernel skips them. Embeddings, norms, activations and the
    softmax are left out.

    Raises LabError for lengths that make no sense and for a tower of another make.
    """
    check_num_corner(num_corner)
    COUNT.check("The length of a text in tokens", length)
    size = clip_or_size
    if isinstance(size, Clip):
        size = text_tower_size(size)
    # LoTLIP pools and projects every corner as it does [CLS]; a register is read by nobody.
    pooled = 1 + num_corner if read_off is None else read_off
    # The dense layer of BERT's pooler, if it is used, and the projection.
    head = 2 * size.width**2 * size.pooler + 2 * size.width * (size.embed_dim or 0)
    layers = transformer_flops(size.layers, size.width, size.inner, length + num_corner)
    return int(layers + pooled * head)


def transformer_flops(layers: int, width: int, inner: int, tokens: int) -> int:
    """Operations of a stack of blocks on one item: L (8 T W^2 + 4 T^2 W + 4 T W I)."""
    projections = 8 * tokens * width**2  # queries, keys, values and what attention gives
    pairs = 4 * tokens**2 * width  # every query with every key, and the weighted values
    return layers * (projections + pairs + 4 * tokens * width * inner)


def text_tower_size(clip: Clip | nn.Module) -> TextTowerSize:
    """The sizes of the text tower of `clip`, or of an open_clip module.

    Raises LabError for towers that are no plain stacks of attention and a two-layer perceptron.
    """
    tower = text_tower(clip.model if isinstance(clip, Clip) else clip)
    if isinstance(tower, HFTextEncoder):
        return _size_of_bert(tower)
    blocks = getattr(getattr(tower, "transformer", None), "resblocks", None)
    if not blocks:
        raise LabError(f"The operations of a {type(tower).__name__} are not known here.")
    width, inner = tower.transformer.width, blocks[0].mlp.c_fc.out_features
    projection = tower.text_projection
    weight = projection.weight.mT if isinstance(projection, nn.Linear) else projection
    embed_dim = None if weight is None else weight.shape[1]
    return TextTowerSize(len(blocks), width, inner, embed_dim, pooler=False)


def _size_of_bert(tower: HFTextEncoder) -> TextTowerSize:
    config = tower.config
    inner = getattr(config, "intermediate_size", getattr(config, "hidden_dim", None))
    plain = getattr(config, "embedding_size", config.hidden_size) == config.hidden_size
    if inner is None or not plain or not isinstance(tower.proj, nn.Linear | nn.Identity):
        raise LabError(f"The operations of a '{config.model_type}' tower are not known here.")
    uses_pooler = isinstance(tower.pooler, ClsPooler) and tower.pooler.use_pooler_output
    return TextTowerSize(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        inner=inner,
        embed_dim=tower.proj.out_features if isinstance(tower.proj, nn.Linear) else None,
        pooler=uses_pooler and getattr(tower.transformer, "pooler", None) is not None,
    )


# --- Both towers: operations, weights, and what a forward pass keeps for the backward one ---


@dataclass(frozen=True)
class TowerCost:
    """The sizes of a transformer that its cost depends on.

    `tokens` is what one item has, `stem` the operations before the first layer and `stem_kept` the
    numbers that these keep for the backward pass; `weights` is how many it has in all,
    `layer_weights` how many in one layer.
    """

    layers: int
    width: int
    inner: int
    tokens: int
    stem: int
    weights: int
    layer_weights: int
    stem_kept: int = 0

    def flops(self, tokens: int | None = None) -> int:
        """Operations of a forward pass of one item, a multiply-add counted as two."""
        count = self.tokens if tokens is None else tokens
        return transformer_flops(self.layers, self.width, self.inner, count) + self.stem

    def activations(self, tokens: int | None = None, half: bool = False) -> int:
        """Bytes that one layer keeps of one item for the backward pass.

        Kept are the residual twice, two normed copies, queries, keys, values, what attention gives,
        and the inner layer before and after its activation; no table of attention weights (the
        fused kernels keep none). `half`: under bfloat16 autocast only the residuals stay float32.
        """
        count = self.tokens if tokens is None else tokens
        # In units of the width: two normed copies, Q, K, V and attention's sum; then the inner
        # layer, which is wider, twice.
        others = 6 + 2 * self.inner / self.width
        each = 8 + 2 * others if half else 4 * (2 + others)
        return round(count * self.width * each)


@dataclass(frozen=True)
class ModelCost:
    """Both towers, and the size of the space they share."""

    image: TowerCost
    text: TowerCost
    embed_dim: int
    image_size: int
    trained: int
    """Weights that are trained."""

    @property
    def weights(self) -> int:
        """All weights."""
        return self.image.weights + self.text.weights

    @property
    def largest_layer(self) -> int:
        """Weights of the largest layer."""
        return max(self.image.layer_weights, self.text.layer_weights)

    @property
    def outside(self) -> int:
        """Weights that are in no layer: stems, embeddings, projections."""
        towers = (self.image, self.text)
        return self.weights - sum(tower.layers * tower.layer_weights for tower in towers)


def cost_of(module: nn.Module, embed_dim: int, lock_image: bool = False) -> ModelCost:
    """The cost of an open_clip module; it may be on the meta device."""
    image, image_size = _image_cost(module.visual)
    text = _text_cost(module)
    trained = text.weights + (0 if lock_image else image.weights)
    return ModelCost(image, text, embed_dim, image_size, trained)


def _image_cost(visual: nn.Module) -> tuple[TowerCost, int]:
    if isinstance(visual, TimmModel) and hasattr(visual.trunk, "blocks"):
        trunk, size = visual.trunk, visual.image_size
        blocks, width, embed = trunk.blocks, trunk.embed_dim, trunk.patch_embed
        inner = blocks[0].mlp.fc1.out_features
        # A class token and registers of its own are tokens like the patches.
        tokens = embed.num_patches + trunk.num_prefix_tokens
    elif isinstance(visual, VisionTransformer):
        size, embed, width = visual.image_size, visual.conv1, visual.transformer.width
        blocks = visual.transformer.resblocks
        inner = blocks[0].mlp.c_fc.out_features
        tokens = visual.grid_size[0] * visual.grid_size[1] + 1
    else:
        kind = type(visual).__name__
        raise LabError(f"The cost of an image tower of the kind {kind} is not known.")
    size = size if isinstance(size, int) else size[0]
    stem, kept = _stem(embed, size)
    weights = _count(visual), _count(blocks[0])
    return TowerCost(len(blocks), width, inner, tokens, stem, *weights, kept), size


def _stem(embed: nn.Module, size: int) -> tuple[int, int]:
    """Operations on an image of `size` pixels, and the numbers kept between convolutions: what
    each gives, normed, and activated."""
    given: list[int] = []
    embed = copy.deepcopy(embed).to("meta")  # counted, not computed
    for layer in embed.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda _, inputs, output: given.append(output.numel()))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        embed(torch.empty(1, 3, size, size, device="meta"))
    # What the last convolution gives is the first layer's input, and counted there.
    return counter.get_total_flops(), 3 * sum(given[:-1])


def _text_cost(module: nn.Module) -> TowerCost:
    tower = getattr(module, "text", module)
    try:
        size = text_tower_size(module)
    except LabError:
        kind = type(tower).__name__
        raise LabError(f"The cost of a text tower of the kind {kind} is not known.") from None
    is_hub = hasattr(tower, "config")
    layers = tower.transformer.encoder.layer if is_hub else tower.transformer.resblocks
    weights = _count(module) - _count(module.visual)
    if is_hub:
        weights = _count(tower)
    sizes = (size.layers, size.width, size.inner, tower.context_length)
    return TowerCost(*sizes, 0, weights, _count(layers[0]))


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
