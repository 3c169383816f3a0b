"""Long-CLIP in place of a diffusion pipeline's text encoders: Long-CLIP, supplement, section 3.

Stable Diffusion reads a prompt with CLIP's text tower, SDXL with two of them side by side (CLIP-L
and OpenCLIP bigG), at 77 tokens. The supplement replaces CLIP-L by Long-CLIP-L and stretches bigG
by knowledge-preserved stretching alone, "due to heavy training cost"; nothing else is trained.

Diffusers' own pipelines read as many tokens as their tokenizers say, so no code of theirs is
replaced: new encoders and tokenizers go into a pipeline of the same class. It takes the state of
the penultimate layer (SDXL) or of the last one behind its norm (SD 1.5), as the denoiser was
trained on; Long-CLIP's own SDXL code takes the last one for both.

T positions, L longer ones, W width.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CLIPTextConfig

from longclip_lab.errors import LabError
from longclip_lab.models import Clip, TextTower, load, load_text_tower
from longclip_lab.models.formats.export import text_encoder_config, text_encoder_weights
from longclip_lab.models.kps import new_positions

KPS, CLIP_LENGTH, KEEP = "kps", 77, 20
ENCODERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
"""Where pipelines have CLIP's text towers, with their tokenizers; a third encoder is never CLIP."""


def load_pipeline(name: str | os.PathLike[str], **options: Any) -> Any:
    """A diffusers pipeline from a folder or the hub: safetensors only, and no code of its own.

    Raises LabError if diffusers is not installed, and for what it cannot open.
    """
    try:
        import diffusers
    except ImportError as error:
        raise LabError(
            "Pictures need diffusers: pip install 'longclip-lab[generation]'."
        ) from error
    try:
        return diffusers.DiffusionPipeline.from_pretrained(
            str(name), use_safetensors=True, trust_remote_code=False, **options
        )
    except (OSError, ValueError, KeyError, ImportError, AttributeError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise LabError(
            f"{name} cannot be opened as a pipeline: {first} Expected a folder that diffusers "
            "saved (with model_index.json and safetensors), or its id on the hub."
        ) from error


def clip_encoders(pipe: Any) -> dict[str, nn.Module]:
    """The pipeline's text encoders that are CLIP's, by their names.

    Raises LabError if there is none.
    """
    found = {name: getattr(pipe, name, None) for name in ENCODERS}
    found = {
        name: one
        for name, one in found.items()
        if getattr(getattr(one, "config", None), "model_type", None) == "clip_text_model"
    }
    if not found:
        raise LabError(
            f"A {type(pipe).__name__} has no text encoder of CLIP's, so there is nothing that "
            "Long-CLIP could replace. Expected a pipeline of Stable Diffusion 1, 2, XL or 3, or "
            "Flux."
        )
    return found


def use_long_clip(
    pipe: Any,
    clip_l: Clip | TextTower | str | os.PathLike[str] = KPS,
    big_g: Clip | TextTower | str | os.PathLike[str] = KPS,
) -> Any:
    """A pipeline like `pipe` whose own `pipe(prompt)` reads 248 tokens.

    Args:
        pipe: a pipeline of diffusers: Stable Diffusion 1.5, XL or 3 (both CLIP encoders), or Flux
            (its pooled CLIP input). It is left as it was; the denoiser and the VAE are shared.
        clip_l: what replaces CLIP-L, the first or only CLIP encoder: a model or text tower of the
            lab, a file of Long-CLIP's release, a folder that holds one; or "kps", the pipeline's
            own encoder, stretched and not trained.
        big_g: the same for the second CLIP encoder, where there is one.

    Source: Long-CLIP, supplement, section 3.

    Raises LabError for a pipeline without CLIP, an encoder of another width, depth, projection or
    vocabulary than that which it replaces, one that reads more or less than 77 tokens and should be
    stretched, and encoders of two lengths.
    """
    own = clip_encoders(pipe)
    wanted = dict(zip(own, (clip_l, big_g), strict=False))
    if big_g != KPS and len(own) == 1:
        raise LabError(f"This {type(pipe).__name__} has no second CLIP encoder; leave big_g out.")
    new = {
        name: _stretched(encoder, name)
        if isinstance(wanted[name], str) and wanted[name] == KPS
        else _replaced(encoder, wanted[name], name)
        for name, encoder in own.items()
    }
    lengths = {name: one.config.max_position_embeddings for name, one in new.items()}
    if len(set(lengths.values())) > 1:
        told = " and ".join(f"{name} {length}" for name, length in lengths.items())
        raise LabError(
            f"The encoders would read two lengths ({told} tokens), and their states lie side by "
            "side. Give models of one length."
        )
    tokenizers = {}
    for name, length in lengths.items():
        tokenizers[ENCODERS[name]] = copy.deepcopy(getattr(pipe, ENCODERS[name]))
        tokenizers[ENCODERS[name]].model_max_length = length
    # As diffusers' `from_pipe`, which would round the shared parts to float32.
    known = pipe.components
    options = {name: value for name, value in pipe.config.items() if name in _options(pipe)}
    made = type(pipe)(**(options | known | new | tokenizers))
    made.set_progress_bar_config(**getattr(pipe, "_progress_bar_config", {}))
    return made


def _options(pipe: Any) -> set[str]:
    """The arguments of the pipeline's class that are no parts."""
    return type(pipe)._get_signature_keys(type(pipe))[1]


def _stretched(encoder: nn.Module, name: str) -> nn.Module:
    """A copy of a text encoder with 248 positions by KPS."""
    table = _positions(encoder)
    length, width = table.weight.shape
    if length != CLIP_LENGTH:
        raise LabError(
            f"The pipeline's {name} reads {length} tokens; stretching is for CLIP's {CLIP_LENGTH}."
        )
    longer_LW = new_positions(table.weight.detach().float(), KPS, KEEP)
    made = copy.deepcopy(encoder)
    embedding = nn.Embedding(len(longer_LW), width).to(table.weight)
    embedding.weight.data.copy_(longer_LW)
    embedding.requires_grad_(table.weight.requires_grad)
    parent = next(one for one in made.modules() if hasattr(one, "position_embedding"))
    parent.position_embedding = embedding
    ids_1L = torch.arange(len(longer_LW), device=table.weight.device)[None]
    parent.register_buffer("position_ids", ids_1L, persistent=False)
    made.config.max_position_embeddings = len(longer_LW)
    return made


def _positions(encoder: nn.Module) -> nn.Embedding:
    return next(
        one.position_embedding for one in encoder.modules() if hasattr(one, "position_embedding")
    )


def _replaced(
    encoder: nn.Module, wanted: Clip | TextTower | str | os.PathLike[str], name: str
) -> nn.Module:
    """A text encoder of the same class, place and numbers with the weights of a model of ours."""
    source = _source(wanted) if isinstance(wanted, str | os.PathLike) else wanted
    config = CLIPTextConfig(**text_encoder_config(source))
    facts = ("hidden_size", "num_hidden_layers", "vocab_size")
    if hasattr(encoder, "text_projection"):
        facts += ("projection_dim",)
    differing = [
        f"{fact} {getattr(config, fact)} in place of {getattr(encoder.config, fact)}"
        for fact in facts
        if getattr(config, fact) != getattr(encoder.config, fact)
    ]
    if differing:
        raise LabError(
            f"'{source.name}' cannot replace the pipeline's {name}: {', '.join(differing)}. The "
            "denoiser was trained on states of the encoder that it comes with; give a Long-CLIP of "
            "the same size (Long-CLIP-L for CLIP-L)."
        )
    # By transformers' own reader, as when a pipeline is loaded: its names differ by release.
    weights = text_encoder_weights(source.model)
    made, told = type(encoder).from_pretrained(
        None, config=config, state_dict=weights, output_loading_info=True
    )
    if missing := sorted(told["missing_keys"]):
        raise LabError(f"'{source.name}' lacks weights of a {type(encoder).__name__}: {missing}.")
    return made.to(encoder.device, encoder.dtype).eval()


def _source(path: str | os.PathLike[str]) -> Clip | TextTower:
    """A model with both towers, or a text tower alone."""
    try:
        return load(path)
    except LabError:
        if not Path(path).is_dir():
            raise
        return load_text_tower(path)
