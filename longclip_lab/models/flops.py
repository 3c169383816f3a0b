"""How much a text tower computes, by formula: the red stars of LoTLIP's Figure 4.

T tokens, W width, I inner width of a layer, D embedding, K tokens read off.
"""

from __future__ import annotations

from dataclasses import dataclass

from open_clip.hf_model import ClsPooler, HFTextEncoder
from torch import nn

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
    tokens = length + num_corner
    pooled = 1 + num_corner if read_off is None else read_off
    projections = 8 * tokens * size.width**2
    pairs = 4 * tokens**2 * size.width
    inner = 4 * tokens * size.width * size.inner
    head = 2 * size.width**2 * size.pooler + 2 * size.width * (size.embed_dim or 0)
    return int(size.layers * (projections + pairs + inner) + pooled * head)


def text_tower_size(clip: Clip) -> TextTowerSize:
    """The sizes of the text tower of `clip`.

    Raises LabError for towers that are no plain stacks of attention and a two-layer perceptron.
    """
    tower = text_tower(clip.model)
    if isinstance(tower, HFTextEncoder):
        return _size_of_bert(tower)
    blocks = getattr(getattr(tower, "transformer", None), "resblocks", None)
    if not blocks:
        raise LabError(f"The operations of a {type(tower).__name__} are not known here.")
    width, inner = tower.transformer.width, blocks[0].mlp.c_fc.out_features
    embed_dim = None if tower.text_projection is None else clip.embed_dim
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
