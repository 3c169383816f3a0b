"""`load` and `save`: every way in which a model can be named, and our own folder format."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

from longclip_lab.errors import LabError, NotFiniteError, suggest
from longclip_lab.files import atomic_path, atomic_write, read_json, to_json
from longclip_lab.models.adapters import OPENERS, is_release, load_release, model_type
from longclip_lab.models.build import assemble, build_model
from longclip_lab.models.checkpoint import (
    CHECKPOINT_ENDINGS,
    fill,
    fitting,
    not_finite,
    read_checkpoint,
    read_state_dict,
    sha256,
)
from longclip_lab.models.clip import Clip, tokenizer_from_record, tokenizer_record
from longclip_lab.models.formats.declip import is_declip, load_declip
from longclip_lab.models.formats.hf import answering_at_once, fetch, is_hub_id, load_transformers
from longclip_lab.models.formats.hf_config import clip_kind
from longclip_lab.models.formats.lotlip import is_lotlip, load_lotlip
from longclip_lab.models.formats.open_clip import (
    HUB,
    LOCAL,
    OPEN_CLIP_CONFIG,
    load_from_open_clips_hub,
    load_open_clip_folder,
    load_open_clip_name,
)
from longclip_lab.models.formats.openai import load_openai_layout
from longclip_lab.models.tiny import bundled_folder, bundled_names

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
    if sha256(path) != config["weights_sha256"]:
        raise LabError(
            f"{path} is not the file that {CONFIG} was written with: it was cut short or replaced."
        )
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


# --- `load`: every way in which a model can be named, one kind of model out ---

_FILES = ((is_lotlip, load_lotlip), (is_declip, load_declip), (is_release, load_release))
"""Which state dicts who opens; Long-CLIP's is the last resort, and says what it expected."""


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
    if name in bundled_names():
        return load_folder(bundled_folder(name))
    path = Path(name)
    if path.is_dir():
        return _load_any_folder(path)
    if path.is_file():
        checkpoint = read_checkpoint(path)
        for matches, opener in _FILES:
            if matches(checkpoint.weights):
                return opener(path, checkpoint.weights)
        return load_openai_layout(path, checkpoint)
    if name.startswith(LOCAL):
        return load_open_clip_folder(Path(name.removeprefix(LOCAL)))
    if name.startswith(HUB):
        with answering_at_once(name.removeprefix(HUB)):
            return load_from_open_clips_hub(name)
    if name.lower().endswith(CHECKPOINT_ENDINGS) or path.is_absolute() or name.startswith("."):
        raise LabError(f"There is no model file or folder {name}.")
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
    if not is_saved_clip(folder) and (opener := OPENERS.get(model_type(folder))):
        return opener(folder)
    if not is_saved_clip(folder) and (folder / OPEN_CLIP_CONFIG).is_file():
        return load_open_clip_folder(folder)
    if not is_saved_clip(folder) and clip_kind(folder):
        return load_transformers(folder)
    return load_folder(folder)


def _load_from_hub(name: str) -> Clip:
    """Models with open_clip's config are open_clip's; the others are tried as transformers'."""
    try:
        return load_from_open_clips_hub(HUB + name)
    except LabError:
        try:
            folder = fetch(name)
        except LabError:
            folder = None
        opener = OPENERS.get(model_type(folder)) if folder else None
        if folder is None or not (opener or clip_kind(folder)):
            raise
    return replace(opener(folder), name=name) if opener else load_transformers(folder, name)
