"""`export`: one model in another library's format, whole or not at all.

What is promised in a config is read from the module itself, not from its card, so that nothing is
promised that the module does not do.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transform import PreprocessCfg
from open_clip.transformer import (
    LayerNorm,
    ResidualAttentionBlock,
    TextTransformer,
    Transformer,
    VisionTransformer,
)
from open_clip.transformer import QuickGELU as _QuickGELU
from safetensors.torch import save_file
from torch import nn

from longclip_lab.errors import LabError, NotFiniteError, suggest
from longclip_lab.files import atomic_write, give_rights, to_json
from longclip_lab.models.adapters import Adapter
from longclip_lab.models.anatomy import end_id, pool_type, text_tower
from longclip_lab.models.checkpoint import CHECKPOINT_ENDINGS
from longclip_lab.models.clip import Clip, HubTokenizer, TextTower
from longclip_lab.models.formats.hf import (
    CONFIG,
    EXACT,
    FILE,
    IMAGE,
    QUICK,
    RESAMPLING,
    TANH,
    TEXT,
    Weights,
    prefixed,
    split,
    to_transformers,
)
from longclip_lab.models.formats.openai import HEAD_WIDTH, RESIDUAL, note
from longclip_lab.models.load import stored
from longclip_lab.text.tokenizers import ClipTokenizer

# --- What an open_clip module is made of, or why transformers cannot hold it ---


def preprocessor_config(facts: dict[str, Any]) -> dict[str, Any]:
    """preprocessor_config.json for the facts of `Clip.card["preprocess"]`.

    Raises LabError for what `CLIPImageProcessor` cannot do.
    """
    size = facts["size"]
    # CLIP's pictures are square (`describe_image` refuses others), so one edge says it all.
    edge = size if isinstance(size, int) else size[0]
    mode = facts["resize_mode"]
    if mode not in ("shortest", "squash"):
        raise LabError(f"pictures are resized in the way '{mode}', which CLIPImageProcessor lacks")
    if facts["interpolation"] not in RESAMPLING:
        raise LabError(f"pictures are resized by '{facts['interpolation']}'")
    square = {"height": edge, "width": edge}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "feature_extractor_type": "CLIPFeatureExtractor",  # the name in older versions
        "processor_class": "CLIPProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": square if mode == "squash" else {"shortest_edge": edge},
        "resample": RESAMPLING[facts["interpolation"]],
        "do_center_crop": mode == "shortest",
        # Shortest edge, then the centre: OpenAI's evaluation. "squash" is SigLIP's, and crops
        # nothing.
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(facts["mean"]),
        "image_std": list(facts["std"]),
    }


@dataclass(frozen=True)
class Blocks:
    """A plain pre-norm transformer: what both libraries call the same."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: str
    eps: float


def describe_text(model: nn.Module) -> Blocks:
    """The text tower of an open_clip model, or of a `TextTransformer` alone.

    Raises LabError for a tower that is no causal transformer read off at its end token.
    """
    tower = text_tower(model)
    plain = hasattr(tower, "transformer") and isinstance(tower.transformer, Transformer)
    _refuse(not plain, "its text tower is not CLIP's transformer but " + type(tower).__name__)
    _refuse(getattr(tower, "corner", None) is not None, "corner tokens exist in longclip_lab only")
    pool = pool_type(model)
    # CLIP reads a text from left to right; transformers' CLIPTextModel cannot do otherwise.
    _refuse(tower.attn_mask is None, "its text tower is not causal")
    # Both mean the end token: OpenAI finds it as the largest id, later code by its id.
    _refuse(pool not in ("argmax", "eos"), f"its texts are read off by '{pool}', not at their end")
    _refuse(getattr(tower, "cls_emb", None) is not None, "its texts end in a class token (CoCa)")
    linear = isinstance(tower.text_projection, nn.Linear)
    _refuse(linear, "its text projection has a bias")
    return _describe(tower.transformer, tower.ln_final)


def describe_image(visual: nn.Module) -> Blocks:
    """The image tower of an open_clip model.

    Raises LabError for one that is no plain ViT with a class token.
    """
    kind = type(visual).__name__
    _refuse(
        not isinstance(visual, VisionTransformer), f"its image tower is a {kind}, not CLIP's ViT"
    )
    pooled = visual.attn_pool is not None or visual.pool_type != "tok"
    _refuse(pooled, "its pictures are not read off at a class token")
    _refuse(not isinstance(visual.ln_pre, nn.LayerNorm), "its ViT has no first layer norm")
    square = len({*visual.image_size}) == 1 and len({*visual.patch_size}) == 1
    _refuse(not square, "its pictures or patches are not square")
    return _describe(visual.transformer, visual.ln_post)


def _describe(transformer: Transformer, norm: LayerNorm) -> Blocks:
    plain = all(type(block) is ResidualAttentionBlock for block in transformer.resblocks)
    _refuse(not plain, "its blocks are not CLIP's")
    # All blocks are built from one set of numbers, so the first speaks for the rest.
    first = transformer.resblocks[0]
    return Blocks(
        width=transformer.width,
        layers=len(transformer.resblocks),
        heads=first.attn.num_heads,
        mlp_width=first.mlp.c_fc.out_features,
        activation=_activation(first.mlp.gelu),
        eps=norm.eps,
    )


def _activation(layer: nn.Module) -> str:
    if isinstance(layer, _QuickGELU):
        return QUICK
    _refuse(not isinstance(layer, nn.GELU), f"its activation is {type(layer).__name__}")
    # Three functions go by the name of GELU, and each gives other features.
    return TANH if layer.approximate == "tanh" else EXACT


def _refuse(condition: bool, reason: str) -> None:
    if condition:
        raise LabError(reason)


def text_config(blocks: Blocks, vocab_size: int, length: int, end: int, dim: int) -> dict[str, Any]:
    """A `CLIPTextConfig` as JSON."""
    return {
        "model_type": "clip_text_model",
        "vocab_size": vocab_size,
        "max_position_embeddings": length,
        # In CLIP's vocabulary start and end are the last two entries.
        "bos_token_id": end - 1,
        "eos_token_id": end,
        "pad_token_id": 1,  # transformers' own default; nothing in the model reads it
        **_blocks(blocks, dim),
    }


def vision_config(blocks: Blocks, image_size: int, patch_size: int, dim: int) -> dict[str, Any]:
    """A `CLIPVisionConfig` as JSON."""
    return {
        "model_type": "clip_vision_model",
        "image_size": image_size,
        "patch_size": patch_size,
        "num_channels": 3,
        **_blocks(blocks, dim),
    }


def _blocks(blocks: Blocks, dim: int) -> dict[str, Any]:
    return {
        "hidden_size": blocks.width,
        "intermediate_size": blocks.mlp_width,
        "num_hidden_layers": blocks.layers,
        "num_attention_heads": blocks.heads,
        "hidden_act": blocks.activation,
        "layer_norm_eps": blocks.eps,
        "attention_dropout": 0.0,
        "projection_dim": dim,
    }


# --- CLIP's tokenizer as files that `transformers.CLIPTokenizer` reads ---

_START, _END = "<|startoftext|>", "<|endoftext|>"


def check_tokenizer(tokenizer: Any, vocab_size: int) -> None:
    """Raise LabError for a tokenizer that is not CLIP's, and for a tower that lacks its ids."""
    if not isinstance(tokenizer, ClipTokenizer) or type(tokenizer) is not ClipTokenizer:
        raise LabError(f"its tokenizer '{tokenizer.name}' is not CLIP's")
    if tokenizer.vocab_size > vocab_size:
        raise LabError(
            f"its tower knows {vocab_size} tokens, but the tokenizer makes {tokenizer.vocab_size}"
        )


def write_tokenizer(folder: Path, tokenizer: ClipTokenizer, context_length: int) -> None:
    """vocab.json, merges.txt, tokenizer_config.json and special_tokens_map.json.

    Texts longer than `context_length` are cut by `truncation=True`. The file of merges is
    open_clip's; start and end have the names that transformers gives them. Padding is the end
    token, as in OpenAI's own folders.
    """
    special = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": _END}
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": context_length,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        **special,
    }
    # Same ids, other spelling: open_clip writes the two special entries in its own way.
    entries = [*tokenizer.entries[:-2], _START, _END]
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    atomic_write(folder / "vocab.json", to_json(vocabulary, ensure_ascii=False))
    atomic_write(folder / "merges.txt", "\n".join(["#version: 0.2", *tokenizer.merges, ""]))
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", special)


def write_any_tokenizer(folder: Path, tokenizer: Any, context_length: int) -> None:
    """As `write_tokenizer`; a tokenizer of the hub writes its own files."""
    if isinstance(tokenizer, HubTokenizer):
        tokenizer.save(folder)
    else:
        write_tokenizer(folder, tokenizer, context_length)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """As transformers writes its configs: two blanks, sorted."""
    atomic_write(path, to_json(content, indent=2, sort_keys=True) + "\n")


# --- OpenAI's and Long-CLIP's files of tensors, and folders in open_clip's layout ---

LONG = 248
_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")


def write_openai(source: Clip | TextTower, path: Path, dtype: torch.dtype) -> None:
    """A state dict that OpenAI's `clip.load` reads, with the three numbers its own files hold.

    Raises LabError for what that code, which asks nothing but shapes, would build otherwise.
    """
    weights = _openai_weights(source, dtype)
    facts = (source.image_size, source.context_length, source.vocab_size)
    for name, value in zip(
        ("input_resolution", "context_length", "vocab_size"), facts, strict=True
    ):
        # OpenAI's archives hold them as buffers, and its loader deletes them by name.
        weights[name] = torch.tensor(value)
    torch.save(weights, path)


def write_longclip(source: Clip | TextTower, path: Path, dtype: torch.dtype) -> None:
    """A state dict that Long-CLIP's `longclip.load` reads: the positions stand in both tables.

    Raises LabError as `write_openai` does, and for another length than 248.
    """
    weights = _openai_weights(source, dtype)
    if source.context_length != LONG:
        raise LabError(
            f"Long-CLIP's code reads {LONG} positions, this model {source.context_length}: stretch "
            "it first, or use 'openai'"
        )
    # Long-CLIP reads rows 0-19 of one table and the later ones of the other.
    weights[RESIDUAL] = weights["positional_embedding"].clone()
    torch.save(weights, path)


def write_open_clip(source: Clip | TextTower, folder: Path, dtype: torch.dtype) -> None:
    """open_clip_config.json, open_clip_model.safetensors and the tokenizer's files.

    Raises LabError for a model that open_clip alone could not build.
    """
    source = _whole(source)
    model_cfg = deepcopy(source.card["model_cfg"])
    if "corner_tokens" in model_cfg or "hf_config" in model_cfg["text_cfg"]:
        raise LabError("corner tokens and towers of a stated config exist in longclip_lab only")
    image_model = model_cfg["vision_cfg"].get("timm_model_name")
    if image_model and not timm.model_entrypoint(image_model).__module__.startswith("timm."):
        raise LabError(
            f"its image tower '{image_model}' exists in longclip_lab only; save() keeps it"
        )
    if not isinstance(source.tokenizer, HubTokenizer):
        check_tokenizer(source.tokenizer, source.vocab_size)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {n: stored(n, tensor, dtype) for n, tensor in source.model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    preprocess = {name: source.card["preprocess"][name] for name in _PREPROCESSING}
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess}
    write_json(folder / "open_clip_config.json", config | note(source.name, source.card))
    write_any_tokenizer(folder, source.tokenizer, source.context_length)


def _whole(source: Clip | TextTower) -> Clip:
    if isinstance(source, TextTower):
        raise LabError("it is a text tower alone, without an image tower")
    return source


def _openai_weights(source: Clip | TextTower, dtype: torch.dtype) -> Weights:
    source = _whole(source)
    _check_openai(source)
    weights = {
        name.removeprefix("text."): stored(name, tensor, dtype)
        for name, tensor in source.model.state_dict().items()
    }
    # OpenAI's is a scalar; some open_clip models keep it as a row of one.
    weights["logit_scale"] = weights["logit_scale"].reshape(())
    return weights


def _check_openai(source: Clip) -> None:
    """Whatever OpenAI's code takes for granted."""
    model = source.model
    text = describe_text(model)
    _check_blocks(text, "text")
    if text.activation != QUICK:
        raise LabError(f"OpenAI's code knows QuickGELU only, its activation is {text.activation}")
    if not isinstance(model.visual, ModifiedResNet):
        image = describe_image(model.visual)
        _check_blocks(image, "image")
        if image.activation != QUICK:
            raise LabError("OpenAI's code knows QuickGELU only")
    if getattr(model, "logit_bias", None) is not None:
        raise LabError("its logits have a bias")
    if getattr(model, "text_projection", getattr(model, "text", None)) is None:
        raise LabError("its text tower has no projection")
    if source.tokenizer.name != "clip":
        raise LabError(f"OpenAI's code has CLIP's tokenizer, this model '{source.tokenizer.name}'")
    theirs = asdict(PreprocessCfg())
    told = source.card["preprocess"]
    # A model that is handed other pixels than it was trained on answers, only worse: nobody would
    # notice, so it is refused.
    other = [n for n in _PREPROCESSING if _plain(told[n]) != _plain(theirs[n])]
    if other:
        raise LabError(f"OpenAI's code prepares pictures in another way ({', '.join(other)})")


def _check_blocks(blocks: Blocks, tower: str) -> None:
    # OpenAI's code divides the width by 64 to find the heads; the file cannot tell it otherwise.
    if blocks.heads * HEAD_WIDTH != blocks.width:
        raise LabError(
            f"OpenAI's code makes heads of {HEAD_WIDTH}, its {tower} tower has {blocks.heads} in a "
            f"width of {blocks.width}"
        )
    if blocks.mlp_width != 4 * blocks.width or blocks.eps != 1e-5:
        raise LabError(f"its {tower} tower's inner width or eps is not OpenAI's")


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


# --- Folders for transformers, and text encoders for diffusers ---

WEIGHTS = "model.safetensors"
_OLD_SCALE = 2.6592


def write_transformers(source: Clip | TextTower, folder: Path, dtype: torch.dtype) -> None:
    """`CLIPModel` with processor and tokenizer; of a text tower alone `CLIPTextModel`.

    Raises LabError, without a word about the model's name, for what transformers cannot hold.
    """
    if isinstance(source, TextTower):
        _write_text(source, folder, dtype)
        write_tokenizer(folder, source.tokenizer, source.context_length)
        return
    model = source.model
    if getattr(model, "logit_bias", None) is not None:
        raise LabError("its logits have a bias, as SigLIP's, which CLIPModel has not")
    image, text = describe_image(model.visual), text_encoder_config(source)
    check_tokenizer(source.tokenizer, source.vocab_size)
    preprocessor = preprocessor_config(source.card["preprocess"])
    visual = split(_weights(model), "visual.")
    weights = text_encoder_weights(model) | {"logit_scale": model.logit_scale.detach().reshape(())}
    weights["visual_projection.weight"] = visual.pop("proj").T
    weights |= prefixed(to_transformers(visual, IMAGE), "vision_model.")
    patch, dim = model.visual.patch_size[0], source.embed_dim
    if "text_projection.weight" not in weights:
        raise LabError("its text tower has no projection, which CLIPModel must have")
    config = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": dim,
        "logit_scale_init_value": _OLD_SCALE,
        "text_config": text,
        "vision_config": vision_config(image, source.image_size, patch, dim),
    }
    _write(folder, config, weights, source, dtype)
    write_json(folder / FILE, preprocessor)
    write_tokenizer(folder, source.tokenizer, source.context_length)


def write_diffusers(source: Clip | TextTower, folder: Path, dtype: torch.dtype) -> None:
    """text_encoder/ and tokenizer/ as in a pipeline of diffusers; the image tower is not needed.

    Raises LabError as `write_transformers` does.
    """
    _write_text(source, folder / "text_encoder", dtype)
    write_tokenizer(folder / "tokenizer", source.tokenizer, source.context_length)


def _write_text(source: Clip | TextTower, folder: Path, dtype: torch.dtype) -> None:
    """`CLIPTextModelWithProjection`, which `CLIPTextModel` reads too; the latter without one."""
    config, weights = text_encoder_config(source), text_encoder_weights(source.model)
    check_tokenizer(source.tokenizer, source.vocab_size)
    projected = "text_projection.weight" in weights
    kind = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
    _write(folder, {"architectures": [kind], **config}, weights, source, dtype)


def text_encoder_config(source: Clip | TextTower) -> dict[str, Any]:
    """The text tower's sizes as transformers' CLIPTextConfig names them."""
    model = source.model
    blocks = describe_text(model)
    length, dim = source.context_length, source.embed_dim
    return text_config(blocks, source.vocab_size, length, end_id(model), dim)


def text_encoder_weights(model: nn.Module) -> Weights:
    """The text tower's weights by the names that transformers' CLIPTextModel has."""
    weights = _weights(text_tower(model))
    if not isinstance(model, TextTransformer) and text_tower(model) is model:
        weights = {
            name: tensor
            for name, tensor in weights.items()
            if not name.startswith("visual.") and name not in ("logit_scale", "logit_bias")
        }
    projection = weights.pop("text_projection", None)
    renamed = prefixed(to_transformers(weights, TEXT), "text_model.")
    if projection is not None:
        renamed["text_projection.weight"] = projection.T
    return renamed


def _weights(model: nn.Module) -> Weights:
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def _write(
    folder: Path,
    config: dict[str, Any],
    weights: Weights,
    source: Clip | TextTower,
    dtype: torch.dtype,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: stored(name, tensor, dtype) for name, tensor in weights.items()}
    # Versions of transformers before 5 refuse safetensors that do not name a format.
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})
    precision = str(dtype).removeprefix("torch.")
    noted = note(source.name, source.card)
    write_json(folder / CONFIG, {**config, "torch_dtype": precision, **noted})


# --- `export`: one model in another library's format, whole or not at all ---


@dataclass(frozen=True)
class Format:
    """Who writes it, and whether into a folder or one file."""

    write: Callable[[Clip | TextTower, Path, torch.dtype], None]
    is_folder: bool


FORMATS: dict[str, Format] = {
    "transformers": Format(write_transformers, is_folder=True),
    "diffusers": Format(write_diffusers, is_folder=True),
    "openai": Format(write_openai, is_folder=False),
    "longclip": Format(write_longclip, is_folder=False),
    "open_clip": Format(write_open_clip, is_folder=True),
}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def export(
    clip: Clip | TextTower,
    path: str | os.PathLike[str],
    format: str = "transformers",
    dtype: torch.dtype | str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write `clip` so that another library reads it, and return `path`.

    - "transformers": a folder for `CLIPModel`, `CLIPTextModel`, `CLIPProcessor`, `CLIPTokenizer`,
      at any number of positions; of a text tower alone for the text models;
    - "diffusers": a folder with text_encoder/ and tokenizer/, as pipelines have them;
    - "openai", "longclip": one file of tensors for the official codes; Long-CLIP's wants 248
      positions;
    - "open_clip": a folder for `open_clip.create_model_and_transforms("local-dir:" + path)`.

    Folders hold safetensors. `dtype` rounds the weights, float32 by default.
    `longclip_lab.models.parity` compares what was written with `clip`.

    Raises NotFiniteError for weights that are not finite, LabError for an unknown format (with the
    near ones), a model that the format cannot hold (with the reason), weights too large for
    `dtype`, a `path` whose ending is of another kind, and one that exists, unless `overwrite`
    is given: then the files of the same names are replaced, and other weights in a folder, which
    would be mixed up with the new ones, are named and nothing is written.
    """
    writer = find_format(format)
    if isinstance(clip, Adapter):
        raise LabError(f"'{clip.name}' is an adapter: only open_clip's models can be written.")
    dtype = find_dtype(dtype)
    path = Path(path)
    _check_place(path, format, writer, overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LabError(f"{path.parent} cannot be made a folder: {error.strerror}.") from error
    # Written beside its place and moved: whole, or not at all.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as temporary:
        made = Path(temporary) / "made"
        try:
            if writer.is_folder:
                made.mkdir()
            writer.write(clip, made, dtype)
        except NotFiniteError:
            raise
        except LabError as error:
            reason = str(error).rstrip(".")
            raise LabError(f"'{clip.name}' cannot be written as '{format}': {reason}.") from error
        give_rights(made)
        _move(made, path)
    return path


def find_format(name: str) -> Format:
    """The format of that name; raises LabError for another, with the near ones."""
    if name not in FORMATS:
        raise LabError(f"There is no format '{name}'. {suggest(str(name), FORMATS)}")
    return FORMATS[name]


def find_dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    """float32, float16 or bfloat16; raises LabError for anything else."""
    found = DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype or torch.float32
    if found not in DTYPES.values():
        raise LabError(f"Expected a dtype among {', '.join(DTYPES)}, got {dtype}.")
    return found


def _check_place(path: Path, format: str, writer: Format, overwrite: bool) -> None:
    ending = path.suffix.lower()
    if writer.is_folder and ending in CHECKPOINT_ENDINGS and not path.exists():
        raise LabError(f"'{format}' is a folder: name one without {path.suffix}, not {path}.")
    if not writer.is_folder and ending == ".safetensors":
        raise LabError(
            f"'{format}' is a file of PyTorch, which the official code reads: name it .pt, not "
            f"{path.name}."
        )
    if not path.exists() or (path.is_dir() and writer.is_folder and not any(path.iterdir())):
        return
    if path.is_dir() != writer.is_folder:
        kinds = ("a file", "a folder")
        raise LabError(
            f"This format is {kinds[writer.is_folder]}, but {path} is {kinds[path.is_dir()]}."
        )
    if not overwrite:
        raise LabError(f"{path} exists. Name another place, or say that it may be overwritten.")


def _move(made: Path, path: Path) -> None:
    """Put what was made in its place, file by file where a folder is there already."""
    if not made.is_dir():
        made.replace(path)
        return
    new = {file.relative_to(made) for file in made.rglob("*") if file.is_file()}
    if path.is_dir():
        kinds = (".safetensors", ".bin", ".pt", ".index.json")
        there = {file.relative_to(path) for file in path.rglob("*") if file.name.endswith(kinds)}
        if others := sorted(str(name) for name in there - new):
            raise LabError(
                f"{path} holds other weights, which would be mixed up with the new ones: "
                f"{', '.join(others[:5])}. Nothing was written."
            )
    for name in sorted(new):
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(made / name, target)
