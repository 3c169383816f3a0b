"""Captioners from a folder or the hub: safetensors only, and none of the model's own code."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, ProcessorMixin

from longclip_lab.errors import LabError, suggest
from longclip_lab.models.checkpoints import sha256
from longclip_lab.recaptioning.captioner import Captioner, prepare
from longclip_lab.recaptioning.families import FAMILIES, family_of

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_PARTS = {".safetensors", ".json", ".model", ".jinja", ".txt"}


def load_captioner(
    model: str | Path,
    family: str | None = None,
    name: str | None = None,
    revision: str | None = None,
    dtype: str | None = None,
    device: str | torch.device | None = None,
) -> Captioner:
    """Load a captioner.

    Args:
        model: a folder that transformers' `save_pretrained` wrote (model and processor), or an id
            on the hub.
        family: one of `FAMILIES`; by default what fits the model's type.
        name: what captions are filed under; by default the family's label, or the model's name.
        revision: of a model on the hub.
        dtype: "float32", "float16" or "bfloat16"; by default bfloat16 on a GPU, else float32.
        device: by default the first GPU, or the CPU.

    Raises LabError for what is not there, has no safetensors, lacks weights, or needs code of its
    own.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or ("bfloat16" if device.type == "cuda" else "float32")
    if dtype not in DTYPES:
        raise LabError(f"There is no dtype {dtype!r} here. {suggest(dtype, DTYPES)}")
    config = _asked(AutoConfig, model, revision)
    family = family_of(config.model_type, family)
    processor = _asked(AutoProcessor, model, revision)
    if not isinstance(processor, ProcessorMixin):
        raise LabError(f"{model} (a {config.model_type}) brings no processor for pictures.")
    network = _network(model, revision, DTYPES[dtype])
    _complete(processor, config, family, model)
    ends = prepare(network, processor)
    own = Path(model).resolve().name if Path(model).is_dir() else str(model)
    return Captioner(
        name=name or FAMILIES[family].label or own,
        family=family,
        model=network.to(device).eval(),
        processor=processor,
        ends=ends,
        facts={
            "model": own,
            "model_type": config.model_type,
            "weights": _identity(Path(model), config),
            "dtype": dtype,
            "transformers": transformers.__version__,
        },
    )


def _asked(auto: Any, model: str | Path, revision: str | None, **options: Any) -> Any:
    """`auto.from_pretrained`, whose complaints fill a page, with a complaint of one line."""
    try:
        return auto.from_pretrained(
            str(model), revision=revision, trust_remote_code=False, **options
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise LabError(
            f"{model} cannot be loaded as a captioner: {first} Expected a folder or a hub id with "
            "the model (safetensors) and its processor, of an architecture that transformers knows."
        ) from error


def _network(model: str | Path, revision: str | None, dtype: torch.dtype) -> nn.Module:
    network, told = _asked(
        AutoModelForImageTextToText,
        model,
        revision,
        dtype=dtype,
        use_safetensors=True,
        output_loading_info=True,
    )
    # transformers would draw missing weights at random and go on.
    missing = sorted(told["missing_keys"])
    if missing:
        raise LabError(
            f"{model} lacks {len(missing)} of the model's weights, such as {missing[0]}. Weights "
            "in the layout of another code have to be converted to transformers' first."
        )
    return network


def _complete(processor: Any, config: Any, family: str, model: str | Path) -> None:
    """What old files do not say of a processor and the model's configuration does."""
    if family == "chat":
        if getattr(processor, "chat_template", None) is None:
            raise LabError(
                f"{model} (a {config.model_type}) brings no chat template, so it is not known how "
                "to ask it. Give a model that has one, or add chat_template.jinja to its folder."
            )
    elif family == "instructblip":
        if processor.num_query_tokens is None:
            processor.num_query_tokens = config.num_query_tokens
    elif processor.patch_size is None or processor.vision_feature_select_strategy is None:
        processor.patch_size = config.vision_config.patch_size
        processor.vision_feature_select_strategy = config.vision_feature_select_strategy
        processor.num_additional_image_tokens = 1  # CLIP's class token


def _identity(folder: Path, config: Any) -> str:
    """The hub's commit, or the SHA-256 of a folder's files."""
    if not folder.is_dir():
        return f"commit:{getattr(config, '_commit_hash', None)}"
    whole = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in _PARTS):
        name = path.relative_to(folder).as_posix()
        whole.update(f"{name}\0{sha256(path)}\n".encode())
    return f"sha256:{whole.hexdigest()}"
