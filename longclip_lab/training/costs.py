"""What a step of training computes and holds, by formula: operations and bytes.

L layers, W width, I inner width of a layer, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import open_clip
import torch
import transformers
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import nn

from longclip_lab.errors import LabError
from longclip_lab.models.assembly import build_model
from longclip_lab.models.lotlip import config_of_towers
from longclip_lab.models.tower_sources import world_bert
from longclip_lab.training.recipe import Recipe

BERTS = {
    "bert-base-uncased": transformers.BertConfig,
    "minilm": lambda: transformers.BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    ),
    "world": world_bert,
}
"""Sizes of the recipes' text towers, so that a plan needs neither weights nor a network."""


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
        """Operations of a forward pass of one item, a multiply-add counted as two.

        L (8 T W^2 + 4 T^2 W + 4 T W I) and the stem, as `models.text_flops` counts.
        """
        count = self.tokens if tokens is None else tokens
        layer = 8 * count * self.width**2 + 4 * count**2 * self.width
        return self.layers * (layer + 4 * count * self.width * self.inner) + self.stem

    def activations(self, tokens: int | None = None, half: bool = False) -> int:
        """Bytes that one layer keeps of one item for the backward pass.

        Kept are the residual twice, two normed copies, queries, keys, values, what attention gives,
        and the inner layer before and after its activation; no table of attention weights (the
        fused kernels keep none). `half`: under bfloat16 autocast only the residuals stay float32.
        """
        count = self.tokens if tokens is None else tokens
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


def model_cost(recipe: Recipe, model: str | None = None, context_length: int = 248) -> ModelCost:
    """The cost of the model that `recipe` trains: `model` (an open_clip name) read at
    `context_length` tokens, or by default the recipe's own towers.

    Nothing is allocated or fetched. Raises LabError for a model that open_clip does not know, for
    a recipe without towers, and for towers that are no plain transformers.
    """
    if model is not None:
        config = open_clip.get_model_config(model)
        if config is None:
            raise LabError(f"open_clip knows no architecture '{model}'.")
        config["text_cfg"]["context_length"] = context_length
    elif recipe.image_tower is None or recipe.text_tower is None:
        raise LabError(f"The recipe {recipe.name!r} trains a model that is given: name it.")
    else:
        text = BERTS.get(recipe.text_tower)
        tower = text() if text else recipe.text_tower
        config = config_of_towers(recipe.image_tower, tower, recipe.token_limit or 128)
    with torch.device("meta"):
        module = build_model(config)
    return cost_of(module, config["embed_dim"], lock_image=recipe.lock_image)


def cost_of(module: nn.Module, embed_dim: int, lock_image: bool = False) -> ModelCost:
    """The cost of an open_clip module; it may be on the meta device."""
    image, image_size = _image_cost(module.visual)
    text = _text_cost(module)
    trained = text.weights + (0 if lock_image else image.weights)
    return ModelCost(image, text, embed_dim, image_size, trained)


def _image_cost(visual: nn.Module) -> tuple[TowerCost, int]:
    weights = _count(visual)
    if isinstance(visual, TimmModel) and hasattr(visual.trunk, "blocks"):
        trunk = visual.trunk
        patches = trunk.patch_embed.num_patches
        size = visual.image_size if isinstance(visual.image_size, int) else visual.image_size[0]
        stem, kept = _stem(trunk.patch_embed, size)
        tokens = patches + trunk.num_prefix_tokens
        inner, layer = trunk.blocks[0].mlp.fc1.out_features, _count(trunk.blocks[0])
        sizes = (len(trunk.blocks), trunk.embed_dim, inner, tokens)
        return TowerCost(*sizes, stem, weights, layer, kept), size
    if isinstance(visual, VisionTransformer):
        blocks = visual.transformer.resblocks
        patches = visual.grid_size[0] * visual.grid_size[1]
        stem = 2 * patches * visual.conv1.weight.numel()
        inner = blocks[0].mlp.c_fc.out_features
        width = visual.transformer.width
        sizes = (len(blocks), width, inner, patches + 1)
        return TowerCost(*sizes, stem, weights, _count(blocks[0])), visual.image_size[0]
    raise LabError(f"The cost of an image tower of the kind {type(visual).__name__} is not known.")


def _stem(embed: nn.Module, size: int) -> tuple[int, int]:
    """Operations on a picture of `size` pixels, and the numbers kept between convolutions: what
    each gives, normed, and activated."""
    operations, between = 0, []
    for layer in embed.modules():
        if isinstance(layer, nn.Conv2d):
            kernel, stride, padding = layer.kernel_size[0], layer.stride[0], layer.padding[0]
            size = (size + 2 * padding - kernel) // stride + 1
            operations += 2 * size**2 * layer.weight.numel()
            between.append(3 * size**2 * layer.out_channels)
    return operations, sum(between[:-1])


def _text_cost(module: nn.Module) -> TowerCost:
    if hasattr(module, "text") and hasattr(module.text, "config"):
        config = module.text.config
        width, layers = config.hidden_size, config.num_hidden_layers
        inner, tokens = config.intermediate_size, module.text.context_length
        layer = _count(module.text.transformer.encoder.layer[0])
        return TowerCost(layers, width, inner, tokens, 0, _count(module.text), layer)
    tower = getattr(module, "text", module)
    blocks = getattr(getattr(tower, "transformer", None), "resblocks", None)
    if not blocks:
        raise LabError(f"The cost of a text tower of the kind {type(tower).__name__} is not known.")
    weights = _count(module) - _count(module.visual)
    inner = blocks[0].mlp.c_fc.out_features
    width = tower.transformer.width
    sizes = (len(blocks), width, inner, tower.context_length)
    return TowerCost(*sizes, 0, weights, _count(blocks[0]))


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
