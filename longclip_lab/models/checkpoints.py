"""The tensors of a checkpoint file, whoever wrote it, without running any code.

What a file is, its bytes say, whatever its name ends in. What training frameworks wrap around a
state dict is taken off, in the file's entries and in the names, and told. Weights are floating
point numbers that are finite: everything else is refused by name.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from longclip_lab.errors import LabError, LabWarning
from longclip_lab.models.containers import read_container
from longclip_lab.models.filling import is_buffer

OPENAI_FACTS = ("input_resolution", "context_length", "vocab_size")
"""What OpenAI's files hold beside the weights; nobody else writes them."""
CHECKPOINT_ENDINGS = (".pt", ".pth", ".th", ".tar", ".bin", ".ckpt", ".safetensors")

_ENTRIES = (
    *("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network"),
    *("weights", "params", "clip", "clip_model"),
    *("state_dict_ema", "model_ema", "ema_model", "ema_state_dict", "ema", "shadow_params"),
)
"""Under what training scripts keep a model's weights; of several in one file the first counts."""
_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
"""Parts of a name, anywhere in it, that torch.compile, DDP, FSDP and checkpointing put there."""
_PREFIXES = tuple(
    f"{name}."
    for name in (
        *("_forward_module", "state_dict", "model", "net", "network", "clip", "clip_model"),
        *("student", "ema", "ema_model", "model_ema"),
    )
)
"""What whole models are called inside trainers; taken off where every weight has it."""
_IMAGE_TOWER = re.compile(r"(?:^|\.)(?:visual|vision)(?:\.|_)")


@dataclass(frozen=True)
class Checkpoint:
    """What a file of weights holds.

    The tensors are mapped from the disk where the format allows it: their values are read when
    they are looked at.
    """

    weights: dict[str, torch.Tensor]
    """By name, without what training frameworks put before the names."""
    from_openai: bool
    """The three numbers are in it that only OpenAI's code writes, or it is an archive as theirs."""
    container: str = "safetensors"
    """What kind of file it is: "safetensors", "PyTorch zip", "PyTorch, before 1.6" .."""
    beside: list[str] = field(default_factory=list)
    """What else a training state holds: "optimizer", "epoch" .."""
    unwrapped: list[str] = field(default_factory=list)
    """What was taken off: the entry "model", the prefix "module." .."""


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """The tensors of a file of safetensors or PyTorch, or of a TorchScript archive.

    An entry such as `state_dict` or `model`, and what torch.compile, DDP, FSDP and trainers put
    into the names (`_orig_mod.`, `module.`, `model.`), are unwrapped in whatever order they come.
    Of an archive only the tensors are read, see `longclip_lab.models.containers`.

    Raises LabError if the file is missing, empty, cut short, another kind of file (it says which),
    holds code, holds no tensors, or several models that cannot be told apart.
    """
    container, content = read_container(Path(path))
    return _checkpoint(Path(path), container, content)


def read_checkpoints(paths: Collection[Path]) -> Checkpoint:
    """The shards of one model as one checkpoint.

    Raises LabError as `read_checkpoint` does, and for a weight that is in two shards.
    """
    merged: dict[str, Any] = {}
    home: dict[str, Path] = {}
    container = ""
    for path in paths:
        container, content = read_container(path)
        for name, value in content.items() if isinstance(content, Mapping) else ():
            if name in home and torch.is_tensor(value):
                raise LabError(
                    f"'{name}' is both in {home[name].name} and in {path.name} of {path.parent}: "
                    "remove the file that is not of this model."
                )
            merged[name], home[name] = value, path
    first = next(iter(paths))
    return _checkpoint(first if len(paths) == 1 else first.parent, container, merged)


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """The weights of `read_checkpoint`; raises LabError as it does."""
    return read_checkpoint(path).weights


def renamed(
    weights: Mapping[str, torch.Tensor], rename: Callable[[str], str]
) -> dict[str, torch.Tensor]:
    """The weights under other names. Raises LabError if two of them would get the same."""
    result: dict[str, torch.Tensor] = {}
    old: dict[str, str] = {}
    for name, tensor in weights.items():
        new = rename(name)
        if new in result:
            shapes = f"{list(result[new].shape)} and {list(tensor.shape)}"
            raise LabError(
                f"the weights '{old[new]}' and '{name}' would both be '{new}' ({shapes}): two "
                "models in one file. Save the one that is meant."
            )
        result[new], old[new] = tensor, name
    return result


def sha256(path: Path) -> str:
    """The file's digest, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:  # hashlib.file_digest is not in Python 3.10
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def count_layers(state_dict: Mapping[str, torch.Tensor], tower: str) -> int:
    """Blocks of a transformer named as OpenAI names them: `{tower}.resblocks.0` and so on."""
    pattern = re.compile(rf"{re.escape(tower)}\.resblocks\.(\d+)\.")
    return len({match[1] for name in state_dict if (match := pattern.match(name))})


def _checkpoint(path: Path, container: str, content: Any) -> Checkpoint:
    beside: list[str] = []
    unwrapped: list[str] = []
    while (entry := _entry(path, content)) is not None:
        beside += [str(name) for name in content if name != entry]
        unwrapped.append(str(entry))
        content = content[entry]
    tensors = dict(_tensors(content))
    if empty := [name for name, tensor in tensors.items() if tensor.is_meta]:
        raise LabError(f"{path} holds names without values (torch's meta device): {empty[0]} ..")
    if not tensors:
        raise LabError(f"{path} holds no state dict: expected names and tensors{_found(content)}.")
    holding = {name.partition(".")[0] for name in tensors}
    beside += [str(name) for name in content if str(name).partition(".")[0] not in holding]
    try:
        tensors = _plain_names(tensors, unwrapped, beside)
    except LabError as error:
        raise LabError(f"{path}: {error}") from error
    if tensors.pop("n_averaged", None) is not None:  # the counter of torch's averaged models
        beside.append("n_averaged")
    weights = {name: tensor for name, tensor in tensors.items() if name not in OPENAI_FACTS}
    theirs = len(weights) < len(tensors) or container.startswith("TorchScript")
    return Checkpoint(weights, theirs, container, beside, unwrapped)


def _entry(path: Path, content: Any) -> Any:
    """Under which entry of a training state the model is; None if `content` is its state dict.

    Raises LabError for several that nothing tells apart.
    """
    if not isinstance(content, Mapping):
        return None
    inside = {
        name: value
        for name, value in content.items()
        if isinstance(value, Mapping)
        and value is not content
        and any(True for _ in _tensors(value))
    }
    if known := [name for name in _ENTRIES if name in inside]:
        if len(known) > 1:
            warnings.warn(
                f"{path.name} holds the weights of several models: '{known[0]}' is taken, not "
                f"{', '.join(map(repr, known[1:]))}.",
                LabWarning,
                stacklevel=6,
            )
        return known[0]
    # A tensor beside them may be a step, or the temperature of a module kept as nested dicts.
    plain = any(torch.is_tensor(v) and v.is_floating_point() and v.ndim for v in content.values())
    if not inside or plain:
        return None
    whole = [name for name, value in inside.items() if _has_towers(value)]
    if len(whole) > 1:
        raise LabError(
            f"{path} holds several models: {', '.join(map(str, whole))}. Save the state dict of "
            "the one that is meant."
        )
    return whole[0] if whole else None


def _has_towers(value: Any) -> bool:
    """Whether a mapping is a model by itself, and not a tower of one."""
    names = [name for name, _ in _tensors(value)]
    return any(_IMAGE_TOWER.search(name) for name in names) and len(names) > 1


def _tensors(
    content: Any, prefix: str = "", above: tuple[int, ...] = ()
) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of nested dicts, their names joined by dots, without those of optimisers."""
    if not isinstance(content, Mapping) or "param_groups" in content or id(content) in above:
        return
    for name, value in content.items():
        if torch.is_tensor(value):
            yield f"{prefix}{name}", value.detach()
        else:
            yield from _tensors(value, f"{prefix}{name}.", (*above, id(content)))


def _plain_names(
    tensors: dict[str, torch.Tensor], unwrapped: list[str], beside: list[str]
) -> dict[str, torch.Tensor]:
    """The names without what frameworks put into them.

    Appends to `unwrapped` what that was, and to `beside` what stands beside the only model in a
    trainer: the parts of a loss, say.
    """
    unwrapped += dict.fromkeys(part for name in tensors for part in _WRAPPERS.findall(name))
    tensors = renamed(tensors, lambda name: _WRAPPERS.sub("", name))
    while True:
        weights = [name for name in tensors if not is_buffer(name)]
        shared = [p for p in _PREFIXES if weights and all(n.startswith(p) for n in weights)]
        towers = {name.partition(".")[0] + "." for name in weights if _IMAGE_TOWER.search(name)}
        if not shared and len(towers) == 1:
            shared = [p for p in _PREFIXES if p in towers]
        if not shared:
            return tensors
        prefix = shared[0]
        unwrapped.append(prefix)
        beside += [name for name in tensors if not name.startswith(prefix)]
        tensors = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _found(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f", got a {type(content).__name__}"
    some = ", ".join(str(name) for name in list(content)[:5])
    return f", got entries without any: {some}" if some else ", got an empty dict"
