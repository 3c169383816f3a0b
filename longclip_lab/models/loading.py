"""`load`: every way in which a model can be named, one kind of model out."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import open_clip

from longclip_lab.errors import LabError, suggest
from longclip_lab.models.adapters import is_release, load_release
from longclip_lab.models.adapters.hub_folders import OPENERS, model_type
from longclip_lab.models.bundled import bundled_folder, bundled_names
from longclip_lab.models.checkpoints import (
    CHECKPOINT_ENDINGS,
    read_checkpoint,
)
from longclip_lab.models.clip import Clip
from longclip_lab.models.declip_checkpoints import is_declip, load_declip
from longclip_lab.models.folder import is_saved_clip, load_folder
from longclip_lab.models.formats.folders import clip_kind
from longclip_lab.models.formats.hub import answering_at_once, fetch, is_hub_id
from longclip_lab.models.formats.open_clip_in import (
    HUB,
    LOCAL,
    OPEN_CLIP_CONFIG,
    load_from_open_clips_hub,
    load_open_clip_folder,
    load_open_clip_name,
)
from longclip_lab.models.formats.openai_layout import load_openai_layout
from longclip_lab.models.formats.transformers_in import load_transformers
from longclip_lab.models.lotlip_checkpoints import is_lotlip, load_lotlip

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
