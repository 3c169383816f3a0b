"""The anatomy of a tower: its blocks, its attention, its grid of patches, its pooling.

open_clip builds four kinds of towers out of other libraries' parts: its own transformers and
ResNets, timm's image models, transformers' text models. Where each keeps its parts is asked here
and nowhere else, so that attribution, training, export and counting see one kind.

T positions, W width.
"""

from __future__ import annotations

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import TextTransformer, VisionTransformer
from torch import nn

from longclip_lab.errors import LabError

# --- Text towers ---


def text_tower(model: nn.Module) -> nn.Module:
    """The module that holds the text tower's parts: `model.text`, or the model where it has none.

    open_clip's `CLIP` keeps the parts on itself, `CustomTextCLIP` in `.text`.
    """
    return getattr(model, "text", model)


def pool_type(model: nn.Module) -> str:
    """How the tower pools: "argmax", "eos", "first", "last"; "hub" for those of transformers."""
    tower = text_tower(model)
    if isinstance(tower, HFTextEncoder):
        return "hub"
    return tower.pool_type if isinstance(tower, TextTransformer) else tower.text_pool_type


def position_table(model: nn.Module) -> torch.Tensor:
    """The text tower's learned positions [T, W], the weights themselves; T may pass the context.

    Raises LabError for a tower of transformers that has no such table.
    """
    tower = text_tower(model)
    if hasattr(tower, "position_table"):
        return tower.position_table
    if not isinstance(tower, HFTextEncoder):
        return tower.positional_embedding
    embeddings = getattr(tower.transformer, "embeddings", None)
    if not isinstance(getattr(embeddings, "position_embeddings", None), nn.Embedding):
        raise LabError(f"A {type(tower.transformer).__name__} has no table of learned positions.")
    return embeddings.position_embeddings.weight


def token_embedding(tower: nn.Module) -> nn.Embedding:
    """The layer of a text tower that turns token ids into vectors.

    Raises LabError for a tower of another make.
    """
    if isinstance(tower, HFTextEncoder):
        return tower.transformer.get_input_embeddings()
    if not hasattr(tower, "token_embedding"):
        raise LabError(f"{type(tower).__name__} is no text tower whose tokens are known here.")
    return tower.token_embedding


def end_id(model: nn.Module) -> int:
    """The token at which a text is read off: the largest id, or the one that was named."""
    tower = text_tower(model)
    if pool_type(model) != "eos":
        return int(tower.vocab_size) - 1
    # `TextTransformer` and `CLIP`, which keeps its text tower's parts itself, name it differently.
    return int(tower.eos_id if isinstance(tower, TextTransformer) else tower.text_eos_id)


def pooled_token(model: nn.Module) -> str:
    """Which token of a text is read off: "end", "first", "last" or "mean" (towers that average)."""
    tower = text_tower(model)
    if isinstance(tower, HFTextEncoder):
        # open_clip's poolers that read one token say where it stands: at 0.
        return "first" if getattr(tower.pooler, "cls_token_position", None) == 0 else "mean"
    kind = pool_type(model)
    if kind in ("argmax", "eos") and getattr(tower, "cls_emb", None) is None:
        return "end"
    return "first" if kind == "first" else "last"  # CoCa's class token stands behind the text


# --- Image towers ---


def frozen_part(visual: nn.Module) -> nn.Module:
    """What `lock_image_tower` freezes: a timm tower's trunk, all of any other tower."""
    return visual.trunk if isinstance(visual, TimmModel) else visual


def patch_grid(visual: nn.Module) -> tuple[int, int] | None:
    """Rows and columns of the patches that an image tower begins with; None where it has none."""
    part = visual
    if not isinstance(visual, VisionTransformer):
        part = getattr(frozen_part(visual), "patch_embed", None)
    grid = getattr(part, "grid_size", None)
    return None if grid is None else tuple(grid)


def patch_tokens(visual: nn.Module) -> tuple[tuple[int, int], int, str] | None:
    """Grid, tokens before the patches, and pooling of a tower that keeps its patches to the end.

    The pooling is "token" (the class token), "avg", timm's other names, "all positions" (an
    average of prefix and patches) or "attention with several queries". None for other towers.
    """
    if isinstance(visual, VisionTransformer):
        pool = "token" if visual.pool_type == "tok" else visual.pool_type
        pool = pool if visual.attn_pool is None else "attention with several queries"
        return tuple(visual.grid_size), 1, pool
    trunk, grid = frozen_part(visual), patch_grid(visual)
    if grid is None or not hasattr(trunk, "num_prefix_tokens"):
        return None
    pool = "all positions" if getattr(trunk, "pool_include_prefix", False) else trunk.global_pool
    return grid, trunk.num_prefix_tokens, pool


def attention_pool(visual: nn.Module) -> nn.Module | None:
    """The attention that reads off timm's towers with "map" pooling (SigLIP's), else None."""
    return getattr(visual.trunk, "attn_pool", None) if isinstance(visual, TimmModel) else None


def image_layers(visual: nn.Module) -> list[nn.Module]:
    """The layers that keep a grid of places: the patches (or the stem), then every block or stage.

    Raises LabError for a tower of another make.
    """
    trunk = frozen_part(visual)
    if isinstance(visual, VisionTransformer):
        return [visual.conv1, *visual.transformer.resblocks]
    if isinstance(visual, ModifiedResNet):
        return [visual.avgpool, visual.layer1, visual.layer2, visual.layer3, visual.layer4]
    if isinstance(visual, TimmModel) and hasattr(trunk, "blocks") and hasattr(trunk, "patch_embed"):
        return [trunk.patch_embed, *trunk.blocks]
    if isinstance(visual, TimmModel) and getattr(trunk, "feature_info", None):
        return [trunk.get_submodule(stage["module"]) for stage in trunk.feature_info]
    raise LabError(f"{type(visual).__name__} is no image tower whose layers are known here.")


# --- Both ---


def self_attention(tower: nn.Module) -> list[nn.Module] | None:
    """The modules of a tower's self-attention, first layer first; None for a tower without."""
    if isinstance(tower, HFTextEncoder):
        # transformers' names: BertSelfAttention, RobertaSelfAttention, ..
        modules = [
            module
            for module in tower.transformer.modules()
            if type(module).__name__.endswith("SelfAttention")
        ]
    elif isinstance(tower, TimmModel):
        modules = [getattr(block, "attn", None) for block in getattr(tower.trunk, "blocks", ())]
    else:
        blocks = getattr(getattr(tower, "transformer", None), "resblocks", ())
        modules = [block.attn for block in blocks]
    plain = bool(modules) and all(isinstance(module, nn.Module) for module in modules)
    return modules if plain else None


def averaged_states(tower: nn.Module) -> nn.Module | None:
    """The module that puts out the states whose mean a tower takes; None where it takes none."""
    if isinstance(tower, HFTextEncoder):
        return None if hasattr(tower.pooler, "cls_token_position") else tower.transformer
    tokens = patch_tokens(tower) if isinstance(tower, VisionTransformer | TimmModel) else None
    if tokens is None or tokens[2] != "avg":
        return None
    if isinstance(tower, VisionTransformer):
        return tower.transformer if tower.final_ln_after_pool else tower.ln_post
    return tower.trunk.norm
