"""`load` and `save`: every way in which a model can be named, and our own folder format.

A file passes five modules to a model: `load` finds its reader, `checkpoint` gets the tensors
without running code, a reader of `formats` says which open_clip module they are and gives them its
names, `build` makes that module, `clip` adds tokenizer and preprocessing.

open_clip resizes positions that do not fit and makes up what is missing without a word. Of files
and folders nothing is taken that way: sizes are the file's, and said, or refused.
"""

from __future__ import annotations

import math
import os
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import Any

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.factory import _find_checkpoint_in_dir
from open_clip.model import convert_to_custom_text_state_dict
from safetensors.torch import save_file
from torch import nn

from longclip_lab.errors import LabError, LabWarning, NotFiniteError, suggest
from longclip_lab.files import atomic_path, atomic_write, read_json, to_json
from longclip_lab.models.adapters import FOLDERS, load_release, model_type, which_release
from longclip_lab.models.build import Converted, assemble, build_model, preprocess_card
from longclip_lab.models.checkpoint import (
    CHECKPOINT_ENDINGS,
    Checkpoint,
    Weights,
    fill,
    fitting,
    not_finite,
    read_checkpoint,
    read_state_dict,
    sha256,
)
from longclip_lab.models.clip import Clip, tokenizer_for, tokenizer_from_record, tokenizer_record
from longclip_lab.models.formats.hf import (
    answering_at_once,
    clip_kind,
    fetch,
    is_hub_id,
    load_transformers,
    read_object,
)
from longclip_lab.models.formats.lotlip import convert_lotlip, is_lotlip
from longclip_lab.models.formats.openai import (
    OURS,
    RESIDUAL,
    convert_declip,
    convert_longclip,
    convert_openai,
    is_declip,
    is_longclip,
    is_openai_layout,
    positions_card,
)
from longclip_lab.models.tiny import bundled_folder, bundled_names
from longclip_lab.text import get_tokenizer

# --- The lab's own format: a folder with `model.safetensors` and `clip.json`. No pickles ---

FORMAT = "longclip-lab-1"
WEIGHTS = "model.safetensors"
CONFIG = "clip.json"


def save(clip: Clip, folder: str | os.PathLike[str], dtype: torch.dtype | None = None) -> Path:
    """Write `clip` to `folder` (made if need be) and return the folder.

    `load(folder)` gives the same model to the last bit. With `dtype=torch.float16` the file is
    half as large and the weights are rounded; they come back as float32.

    Raises LabError if a weight does not fit into `dtype`, and for models that are not open_clip's.
    """
    if "vision_cfg" not in clip.card["model_cfg"]:
        raise LabError(
            f"'{clip.name}' is a {clip.card['architecture']}, not an open_clip model: it cannot be "
            "saved here. Keep the file or folder that it was loaded from."
        )
    folder = Path(folder)
    weights = {
        name: stored(name, tensor, dtype) for name, tensor in clip.model.state_dict().items()
    }
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file(weights, temporary)
        # Of the file as it was written: a folder copied in part is recognised when it is opened.
        digest = sha256(temporary)
    config = {
        "format": FORMAT,
        "name": clip.name,
        "tokenizer": tokenizer_record(clip.tokenizer),
        "weights_sha256": digest,
        "card": clip.card,
    }
    atomic_write(folder / CONFIG, to_json(config, indent=1, ensure_ascii=False) + "\n")
    return folder


def is_saved_clip(folder: Path) -> bool:
    """True if `folder` was written by `save`."""
    return (folder / CONFIG).is_file()


def load_folder(folder: str | os.PathLike[str]) -> Clip:
    """Read what `save` wrote.

    Raises LabError if a file is missing, not in our format, cut short, or if the weights are not
    the ones that the config was written with.
    """
    folder = Path(folder)
    config = _read_config(folder / CONFIG)
    path = folder / WEIGHTS
    if not path.is_file():
        raise LabError(f"{folder} has a {CONFIG} but no {WEIGHTS}: it was copied only in part.")
    # Weights of another run would fit the same shapes: only the hash tells them apart.
    if sha256(path) != config["weights_sha256"]:
        raise LabError(
            f"{path} is not the file that {CONFIG} was written with: it was cut short or replaced."
        )
    # No more parameters than the file has bytes: see `build_model`.
    with fitting(folder / CONFIG, "describes no model"):
        card = dict(config["card"])
        model = build_model(card["model_cfg"], at_most=path.stat().st_size)
    with fitting(path, f"does not fit the model of its {CONFIG}"):
        fill(model, read_state_dict(path))
    with fitting(folder / CONFIG, "describes no model"):
        return assemble(
            model,
            card.pop("model_cfg"),
            tokenizer_from_record(config["tokenizer"]),
            card.pop("preprocess"),
            config["name"],
            **card,
        )


def stored(name: str, tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """A contiguous copy on the CPU, rounded to `dtype`; safetensors refuses shared memory.

    Raises LabError if a value is too large for `dtype`, NotFiniteError if one is not finite.
    """
    stored = tensor.detach().cpu().contiguous().clone()
    # A model that can answer nothing is not worth a file.
    if bad := not_finite({name: stored}):
        raise NotFiniteError(
            f"The weights '{name}' are not finite in {bad[name]} of {stored.numel()} values: "
            "such a model is not written."
        )
    if dtype is None or not stored.is_floating_point():
        return stored
    rounded = stored.to(dtype)
    if not_finite({name: rounded}):
        raise LabError(f"The weights '{name}' are too large for {dtype}: save without a dtype.")
    return rounded


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise LabError(f"{path.parent} is not a saved model: it has no {CONFIG}.")
    config = read_json(path)
    wanted = {"format", "name", "tokenizer", "weights_sha256", "card"}
    if not isinstance(config, dict) or not wanted <= config.keys() or config["format"] != FORMAT:
        raise LabError(f"{path} is not in the format '{FORMAT}' that longclip_lab.save writes.")
    return config


# --- Checkpoint files: one table of readers, for `load` and `inspect` alike ---


@dataclass(frozen=True)
class Reader:
    """One layout of checkpoint files that open_clip modules are made of."""

    maker: str
    """Whose layout it is."""
    matches: Callable[[Weights], bool]
    """Whether a state dict has it, by names alone."""
    convert: Callable[[Checkpoint, Path], Converted]
    """Config and renamed weights; tensors without values (on the meta device) do, too."""
    misfit: str
    """What is said of a file that `matches`, but cannot be converted or filled in."""


_NOT_OPENAI = "is a checkpoint of another architecture, not OpenAI's ViT or ResNet"
READERS = (
    Reader("Long-CLIP", is_longclip, convert_longclip, _NOT_OPENAI),
    Reader(
        "LoTLIP",
        is_lotlip,
        convert_lotlip,
        "does not fit a timm image tower and a BERT as LoTLIP has them",
    ),
    Reader("DeCLIP", is_declip, convert_declip, "does not fit DeCLIP's two transformers"),
    Reader("OpenAI", is_openai_layout, convert_openai, _NOT_OPENAI),
)
"""In this order: the names of OpenAI's layout are in Long-CLIP's files, too."""


def find_reader(weights: Weights) -> Reader | None:
    """The first reader whose layout a state dict has; None for an unknown one."""
    return next((reader for reader in READERS if reader.matches(weights)), None)


def load_file(path: Path, checkpoint: Checkpoint | None = None) -> Clip:
    """A checkpoint file as a `Clip`; `checkpoint` spares reading it again.

    Raises LabError as `read_checkpoint` does, for an unknown layout and weights that do not fit.
    A LabWarning says so where the file may as well be open_clip's.
    """
    checkpoint = read_checkpoint(path) if checkpoint is None else checkpoint
    if which_release(checkpoint.weights):
        return load_release(path, checkpoint.weights)
    reader = find_reader(checkpoint.weights)
    if reader is None:
        raise LabError(
            f"{path} is a checkpoint of another architecture: neither OpenAI's nor Long-CLIP's (no "
            f"'{RESIDUAL}'), nor LoTLIP's or DeCLIP's. Weights of another architecture need its "
            'name, such as load("ViT-B-16", pretrained=FILE). Its names begin with: '
            f"{_beginnings(checkpoint.weights)}."
        )
    with fitting(path, reader.misfit):
        converted = reader.convert(checkpoint, path)
        model = build_model(converted.model_cfg)
        fill(model, converted.weights)
    if converted.warning:
        warnings.warn(converted.warning, LabWarning, stacklevel=3)
    name = path
    while name.suffix.lower() in CHECKPOINT_ENDINGS:  # ".pth.tar" is one ending
        name = name.with_suffix("")
    clip = assemble(
        model,
        converted.model_cfg,
        get_tokenizer(converted.tokenizer),
        preprocess_card(model, **converted.preprocess),
        name.name,
        provenance=f"{reader.maker} checkpoint file {path.name}",
        trained_on="not stated in the file",
        **converted.facts,
    )
    clip.card["positions"] = converted.positions or clip.card["positions"]
    return clip


def _beginnings(weights: Weights, most: int = 5) -> str:
    """Under which first parts of their names how many weights there are."""
    counts = Counter(name.partition(".")[0] for name in weights).most_common()
    some = ", ".join(f"{name} ({count})" for name, count in counts[:most])
    return some + (f" and {len(counts) - most} more" if len(counts) > most else "")


# --- open_clip's models: by name with a tag's or a file's weights, on the hub, in folders ---

HUB, LOCAL = "hf-hub:", "local-dir:"
OPEN_CLIP_CONFIG = "open_clip_config.json"


def load_open_clip_name(name: str, pretrained: str | os.PathLike[str] | None) -> Clip:
    """An architecture of open_clip's list: random, with a tag's weights, or with a file's."""
    model_cfg = open_clip.get_model_config(name)
    weights = None if pretrained is None else os.fspath(pretrained)
    tag_cfg = open_clip.get_pretrained_cfg(name, weights) if weights else {}
    longer = False
    if weights and not tag_cfg:
        checkpoint = _checkpoint_of_file(name, weights)
        # Such a file says all sizes by its shapes, so the name beside it is only a hope.
        if checkpoint.from_openai or is_longclip(checkpoint.weights):
            clip = load_file(Path(weights), checkpoint)
            _warn_of_another_size(name, model_cfg, clip)
            return clip
        with fitting(weights, f"holds weights that are not those of a {name}"):
            longer = _take_context_length(model_cfg, checkpoint.weights)
            _take_image_size(model_cfg, checkpoint.weights, name, weights)
    if tag_cfg.get("quick_gelu"):
        # The weights say which activation they were trained with; the plain names do not.
        model_cfg["quick_gelu"] = True
    tokenizer = tokenizer_for(name, model_cfg)
    with fitting(name, "could not be built"):
        model = build_model(model_cfg)
    if tag_cfg:
        _fetch_weights(model, name, weights, tag_cfg)
    elif weights:
        with fitting(weights, f"holds weights that are not those of a {name}"):
            _fill_open_clip(model, checkpoint.weights)
    else:
        _warn_of_random_weights(name)
    clip = assemble(
        model,
        model_cfg,
        tokenizer,
        preprocess_card(model, **tag_cfg),
        f"{name}/{Path(weights).stem}" if weights else f"{name}/random",
        provenance=f"open_clip {name}, weights: {weights or 'random'}",
        trained_on=weights,
    )
    if longer:
        clip.card["positions"] = positions_card({}, clip.context_length)
    return clip


def _warn_of_another_size(name: str, model_cfg: dict[str, Any], clip: Clip) -> None:
    """Files of OpenAI and Long-CLIP say their sizes themselves: say where a name says others."""
    parts = {"vision_cfg": ("image_size", "patch_size", "width", "layers"), "text_cfg": ("width",)}
    others = [
        f"{part.removesuffix('_cfg')} {size} {theirs}, not {ours}"
        for part, sizes in parts.items()
        for size in sizes
        if (ours := model_cfg[part].get(size)) is not None
        and (theirs := clip.card["model_cfg"][part].get(size)) not in (ours, None)
    ]
    if others:
        warnings.warn(
            f"{clip.name} is not of the size of {name}, and was opened as what it is: "
            f"{'; '.join(others)}.",
            LabWarning,
            stacklevel=4,
        )


def _checkpoint_of_file(name: str, weights: str) -> Checkpoint:
    if Path(weights).is_file():
        return read_checkpoint(weights)
    tags = open_clip.list_pretrained_tags_by_model(name)
    hint = suggest(weights, tags) if tags else "It has no tags."
    raise LabError(f"'{weights}' is neither a file nor a tag of {name}. {hint}")


def _take_context_length(model_cfg: dict[str, Any], state_dict: dict[str, torch.Tensor]) -> bool:
    """As many positions as the file holds, where open_clip would resize them; True if others."""
    text_cfg = model_cfg["text_cfg"]
    before = text_cfg.get("context_length", 77)
    tables = {
        name: len(state_dict[name])
        # `open_clip.CLIP` has its text tower's weights on top, `CustomTextCLIP` under "text."
        for name in ("positional_embedding", "text.positional_embedding")
        if name in state_dict
    }
    if len(tables) > 1:
        told = " and ".join(f"{name} of {length}" for name, length in tables.items())
        raise LabError(f"it has two tables of text positions, {told}: two models in one file")
    # CoCa's context leaves out the class token that its table counts.
    if tables and not text_cfg.get("embed_cls"):
        text_cfg["context_length"] = next(iter(tables.values()))
    return text_cfg.get("context_length", before) != before


def _take_image_size(
    model_cfg: dict[str, Any], state_dict: dict[str, torch.Tensor], name: str, path: str
) -> None:
    """The pictures' size that the file's grid of positions is for, where open_clip would resize
    it; a LabWarning says so. Other image towers than ViT and ResNet are not resized by anybody."""
    vision_cfg = model_cfg["vision_cfg"]
    usual = vision_cfg.get("image_size", 224)
    tables = {
        "visual.positional_embedding": vision_cfg.get("patch_size", 16),
        "visual.attnpool.positional_embedding": 32,  # by which a ResNet shrinks its pictures
    }
    found = [(state_dict[key], patch) for key, patch in tables.items() if key in state_dict]
    if not found or "timm_model_name" in vision_cfg or not isinstance(found[0][1], int):
        return
    table, patch = found[0]
    # One position belongs to the class token, the others to a square of patches.
    side = math.isqrt(max(len(table) - 1, 0))
    if side * side + 1 != len(table):
        raise LabError(f"its {len(table)} positions of patches are no square and a class token")
    size = side * patch
    if size != usual and [size, size] != list(usual if isinstance(usual, list | tuple) else ()):
        vision_cfg["image_size"] = size
        warnings.warn(
            f"{Path(path).name} takes pictures of {size} pixels, not of {usual} as {name}: "
            f"{size} it is.",
            LabWarning,
            stacklevel=4,
        )


def _fill_open_clip(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """What `open_clip.load_checkpoint` does, but nothing is resized or made up."""
    weights = convert_state_dict(model, weights)
    # A file of a plain CLIP for a model whose text tower is a module of its own.
    if "positional_embedding" in weights and not hasattr(model, "positional_embedding"):
        weights = convert_to_custom_text_state_dict(weights)
    for scalar in ("logit_scale", "logit_bias"):
        own = getattr(model, scalar, None)
        if scalar in weights and own is not None:
            # Older versions of open_clip stored them as [1].
            weights[scalar] = weights[scalar].reshape(own.shape)
    own_names = model.state_dict().keys()
    unneeded = ("position_ids", "attn_mask")  # of older versions, or traced with the weights
    fill(model, {n: t for n, t in weights.items() if n in own_names or not n.endswith(unneeded)})


def _fetch_weights(model: nn.Module, name: str, pretrained: str, tag_cfg: dict[str, Any]) -> None:
    try:
        path = open_clip.download_pretrained(tag_cfg)
    except (OSError, RuntimeError, ValueError) as error:
        raise LabError(
            f"The weights '{pretrained}' of {name} cannot be fetched: {shorten(str(error), 300)}"
        ) from error
    try:
        open_clip.load_checkpoint(model, path)
    except (RuntimeError, KeyError, AssertionError) as error:
        reason = shorten(str(error), 300)
        raise LabError(f"The weights in {path} are not those of a {name}: {reason}") from error


def _warn_of_random_weights(name: str) -> None:
    tags = open_clip.list_pretrained_tags_by_model(name)
    message = f"{name} has random weights: its features mean nothing until it is trained."
    if tags:
        message += (
            f" Trained ones: load({name!r}, pretrained={tags[0]!r}); tags: {', '.join(tags)}."
        )
    warnings.warn(message, LabWarning, stacklevel=4)


def load_open_clip_hub(name: str) -> Clip:
    """A model with its own config beside it, on the hub."""
    try:
        model_cfg = open_clip.get_model_config(name)
        tokenizer = tokenizer_for(name, model_cfg)
        # Without `require_pretrained` a page without weights would give a random model, unsaid.
        model = open_clip.create_model(name, pretrained_text=False, require_pretrained=True)
    except Exception as error:  # open_clip checks nothing of a config
        if isinstance(error, LabError):
            raise
        reason = shorten(str(error), 300)
        raise LabError(
            f"No open_clip model '{name.removeprefix(HUB)}' could be read on the hub (nor is it a "
            f"file or folder here): {reason}"
        ) from error
    return assemble(
        model,
        model_cfg,
        tokenizer,
        dict(open_clip.get_model_preprocess_cfg(model)),
        name.removeprefix(HUB),
        provenance=name,
        trained_on="see its page",
    )


def load_open_clip_folder(folder: Path) -> Clip:
    """A folder of open_clip's layout: the file that it would take, with nothing resized."""
    config = read_object(folder / OPEN_CLIP_CONFIG)
    name = f"{LOCAL}{folder}"
    weights = read_state_dict(_open_clip_weights(folder))
    with fitting(folder / OPEN_CLIP_CONFIG, "describes no model of open_clip"):
        model_cfg = config["model_cfg"]
        model = build_model(model_cfg, sum(tensor.nbytes for tensor in weights.values()))
        preprocess = preprocess_card(model, **config.get("preprocess_cfg", {}))
    with fitting(folder, f"holds weights that do not fit its {OPEN_CLIP_CONFIG}"):
        _fill_open_clip(model, weights)
    with fitting(folder / OPEN_CLIP_CONFIG, "describes no model of open_clip"):
        tokenizer = tokenizer_for(name, _with_tokenizer_beside(folder, model_cfg))
        facts = {"provenance": name, "trained_on": None}
        clip = assemble(model, model_cfg, tokenizer, preprocess, os.fspath(folder), **facts)
        if OURS in config:
            clip.card["positions"] = positions_card(config, clip.context_length)
    return clip


def _open_clip_weights(folder: Path) -> Path:
    """The file that open_clip would take. Raises LabError if there is none."""
    found = _find_checkpoint_in_dir(folder)
    if found is None:
        there = ", ".join(sorted(path.name for path in folder.iterdir()))
        raise LabError(f"There are no weights in {folder}: it holds {there}.")
    return Path(found)


def _with_tokenizer_beside(folder: Path, model_cfg: dict[str, Any]) -> dict[str, Any]:
    """As open_clip does for a folder: its own tokenizer files go before a name on the hub."""
    text_cfg = model_cfg["text_cfg"]
    beside = (folder / "tokenizer_config.json").is_file()
    if not beside or "hf_tokenizer_name" not in text_cfg:
        return model_cfg
    return {**model_cfg, "text_cfg": {**text_cfg, "hf_tokenizer_name": os.fspath(folder)}}


# --- `load`: every way in which a model can be named, one kind of model out ---


def load(
    name_or_path: str | os.PathLike[str], pretrained: str | os.PathLike[str] | None = None
) -> Clip:
    """A model by name or path, in evaluation mode, float32, on the CPU.

    - "tiny", "tiny-notail": the models that come with the lab (a folder of that name: "./tiny");
    - an open_clip name such as "ViT-B-16", with `pretrained` one of its tags or a file of weights;
      without, the weights are random and a LabWarning says so;
    - "OWNER/NAME": an open_clip model ("hf-hub:OWNER/NAME", too) or a `CLIPModel` on the hub;
    - a checkpoint file of OpenAI (also as a TorchScript archive, of which nothing is run),
      Long-CLIP, LoTLIP or DeCLIP;
    - one of BLIP, PTP-BLIP, X-VLM or X2-VLM (an `Adapter`: it encodes, and is evaluated and
      probed; nothing else);
    - a folder of transformers' `CLIPModel`, or of its ALIGN or BLIP (an `Adapter`, too);
    - a folder written by `save`, or one in open_clip's own layout.

    Nothing is read from the network for the bundled models, files and folders.

    Raises LabError for an unknown name (with the near ones), a file that is missing, damaged, of
    another architecture or a pickle with code in it, and weights that could not be fetched.
    """
    name = os.fspath(name_or_path)
    if name in open_clip.list_models() or name.replace("/", "-") in open_clip.list_models():
        return load_open_clip_name(name.replace("/", "-"), pretrained)
    if pretrained is not None:
        raise LabError(
            f"pretrained={os.fspath(pretrained)!r} goes with an open_clip name, but '{name}' is "
            f"none. {_near(name, open_clip.list_models())}"
        )
    # Before paths: a folder of that name is meant by "./tiny".
    if name in bundled_names():
        return load_folder(bundled_folder(name))
    path = Path(name)
    if path.is_dir():
        return _load_any_folder(path)
    if path.is_file():
        return load_file(path)
    if name.startswith(LOCAL):
        return load_open_clip_folder(Path(name.removeprefix(LOCAL)))
    if name.startswith(HUB):
        with answering_at_once(name.removeprefix(HUB)):
            return load_open_clip_hub(name)
    if name.lower().endswith(CHECKPOINT_ENDINGS) or path.is_absolute() or name.startswith("."):
        raise LabError(f"There is no model file or folder {name}.")
    # Last: what looks like OWNER/NAME may be a path, and asking the hub takes time.
    if is_hub_id(name):
        with answering_at_once(name):
            return _load_from_hub(name)
    known = [*bundled_names(), *open_clip.list_models()]
    raise LabError(f"No model is called '{name}', and there is no such file. {_near(name, known)}")


def _near(name: str, known: list[str]) -> str:
    """Near names, or only the bundled ones: open_clip knows more than a hundred."""
    sentence = suggest(name, known)
    if sentence.startswith("Did you mean"):
        return sentence
    bundled = ", ".join(bundled_names()) or "none in this installation"
    return f"Bundled models: {bundled}; open_clip's names: open_clip.list_models()."


def _load_any_folder(folder: Path) -> Clip:
    if not is_saved_clip(folder) and (opener := FOLDERS.get(model_type(folder))):
        return opener(folder)
    if not is_saved_clip(folder) and (folder / OPEN_CLIP_CONFIG).is_file():
        return load_open_clip_folder(folder)
    if not is_saved_clip(folder) and clip_kind(folder):
        return load_transformers(folder)
    return load_folder(folder)


def _load_from_hub(name: str) -> Clip:
    """Models with open_clip's config are open_clip's; the others are tried as transformers'."""
    try:
        return load_open_clip_hub(HUB + name)
    except LabError:
        try:
            folder = fetch(name)
        except LabError:
            folder = None
        opener = FOLDERS.get(model_type(folder)) if folder else None
        if folder is None or not (opener or clip_kind(folder)):
            raise
    return replace(opener(folder), name=name) if opener else load_transformers(folder, name)
