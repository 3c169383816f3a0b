"""Read the tensors of a checkpoint file without running any code.

safetensors and PyTorch's files are read by their libraries. A TorchScript archive, as OpenAI
released its models, is a zip: `code/` holds programs, `data.pkl` a pickle of the module tree,
`data/` the tensors' bytes. `torch.jit.load` compiles the programs and can run them. Here `code/` is
not opened at all, and the pickle is read by an unpickler that knows seven harmless names: the
archive's own classes become empty boxes for their attributes, and everything else is refused.

What a file is, its bytes say, whatever its name ends in. What training frameworks wrap around a
state dict is taken off, in the file's entries and in the names, and told. Weights are floating
point numbers that are finite: everything else is refused by name.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import pickle
import re
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from longclip_lab.errors import LabError, LabWarning, NotFiniteError

Weights = Mapping[str, torch.Tensor]
"""A state dict."""

# --- What is in a file of weights, by its bytes, without running any code in it ---

_TORCH_BEFORE_1_6 = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_OTHERS = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer to the weights: fetch them with `git lfs pull`",
    ),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"BZh", "a bzip2 archive: unpack it first"),
    (b"\xfd7zXZ\0", "an xz archive: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (b"Rar!", "a RAR archive: unpack it first"),
    (b"GGUF", "a GGUF file, whose weights are quantised: take the original ones"),
    (b"\x89HDF", "an HDF5 file, as Keras writes them: convert it to safetensors"),
    (b"\x93NUMPY", "a NumPy array, not a state dict"),
    (b"\x89PNG", "a picture (PNG)"),
    (b"\xff\xd8\xff", "a picture (JPEG)"),
    (b"%PDF", "a PDF"),
)
"""What else gets a checkpoint's name, by its first bytes, and what to do about it."""


def read_container(path: Path) -> tuple[str, Any]:
    """What kind of file of weights it is, by its bytes, and what is in it.

    Tensors are mapped from the disk where the format allows it.

    Raises LabError if the file is missing, empty, cut short, holds code, or is another kind of file
    (it says which).
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(1024)
    except FileNotFoundError:
        raise LabError(f"There is no checkpoint file {path}.") from None
    except IsADirectoryError:
        raise LabError(f"{path} is a folder: expected a file of weights.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LabError(f"{path} cannot be read: {reason}.") from None
    if size == 0:
        raise LabError(f"{path} is not a whole checkpoint file: it is empty.")
    # safetensors: eight bytes of length, then a JSON header.
    if head[8:9] == b"{" and not head.startswith(b"PK"):
        return "safetensors", _read_safetensors(path, size)
    if head.startswith(b"PK"):
        return _read_zip(path)
    if head.startswith(_TORCH_BEFORE_1_6):
        return "PyTorch, before 1.6", _read_torch(path)
    # The first byte of every pickle of protocol 2 and later.
    if head.startswith(b"\x80"):
        raise LabError(_refusal(path, "a pickle that torch.save did not write"))
    raise LabError(f"{path} is refused: it is {_other(head)}.")


def _read_safetensors(path: Path, size: int) -> dict[str, torch.Tensor]:
    """safetensors silently lets the last of two equal names win; here they are refused."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        # Checked before reading: a damaged length could ask for any amount of memory.
        if length > size - 8:
            raise LabError(
                f"{path} is not a whole checkpoint file: its header of {length:,} bytes does not "
                f"fit into {size:,} bytes. It was cut short, or is no safetensors file."
            )
        header = file.read(length)
    twice: list[str] = []

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        counts = Counter(name for name, _ in found)
        twice.extend(name for name, count in counts.items() if count > 1)
        return dict(found)

    try:
        json.loads(header, object_pairs_hook=pairs)
        if not twice:
            return load_file(path)
    except KeyError as error:
        raise LabError(f"{path} holds numbers of a type that torch has not: {error}.") from error
    except Exception as error:  # of damaged bytes
        raise LabError(
            f"{path} is not a whole checkpoint file: it begins like safetensors, but "
            f"{shorten(str(error), 200)}. It was cut short or damaged."
        ) from error
    raise LabError(f"{path} has the name '{twice[0]}' twice: it was not written by safetensors.")


def _read_zip(path: Path) -> tuple[str, Any]:
    try:
        with zipfile.ZipFile(path) as file:
            names = {name.partition("/")[2] or name for name in file.namelist()}
    except Exception as error:  # of damaged bytes
        raise LabError(
            f"{path} is not a whole checkpoint file: it is cut short or damaged ({error})."
        ) from error
    if "data.pkl" not in names:
        what = "NumPy's archive" if all(n.endswith(".npy") for n in names) else "a zip archive"
        some = ", ".join(sorted(names)[:3])
        raise LabError(f"{path} is refused: it is {what} ({some}), not a file of PyTorch.")
    if is_archive(path):
        return "TorchScript archive", _read_torch(path)
    return "PyTorch zip", _read_torch(path)


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's hints on odd files; the errors below say more
            if is_archive(path):
                return read_archive(path)
            if path.suffix == ".safetensors" or not zipfile.is_zipfile(path):
                with path.open("rb") as file:  # of a path torch would believe the ending
                    return torch.load(file, map_location="cpu", weights_only=True)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it holds a {named[1]}" if named else "it holds other objects, or is damaged"
        raise LabError(_refusal(path, what)) from error
    except Exception as error:  # torch raises whatever it likes for damaged bytes
        raise LabError(
            f"{path} is not a whole checkpoint file: it is cut short or damaged "
            f"({shorten(str(error), 120)})."
        ) from error


def _refusal(path: Path, what: str) -> str:
    return (
        f"{path} is refused: it is not a file of plain tensors ({what}), and other pickles could "
        "run code when opened. Save the model's state_dict alone "
        "(torch.save(model.state_dict(), FILE)) or use safetensors."
    )


def _other(head: bytes) -> str:
    """What a file that is no checkpoint is, as far as its first bytes show."""
    for magic, what in _OTHERS:
        if head.startswith(magic):
            return what
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it first"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start[:1] == b"<":
        return "a web page, not the weights: its address needs a login, or is another one"
    try:
        text = head.decode("utf-8", errors="strict" if len(head) < 1024 else "ignore")
    except UnicodeDecodeError:
        text = ""
    if text and all(char.isprintable() or char.isspace() for char in text):
        return f"text, not weights: it begins {text[:40]!r}"
    return "neither safetensors nor PyTorch's, or its beginning is damaged"


_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "BoolStorage": torch.bool,
}


def is_archive(path: Path) -> bool:
    """True for a zip of TorchScript: a pickle beside the constants of its code."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        names = [name.partition("/")[2] for name in file.namelist()]
    return "data.pkl" in names and "constants.pkl" in names


def read_archive(path: Path) -> dict[str, torch.Tensor]:
    """Names and tensors of an archive's modules, as `state_dict` would give them.

    Tensors that are plain attributes come along; for the towers of CLIP that is the causal mask.

    Raises pickle.UnpicklingError for a pickle of anything but modules and tensors, and what zipfile
    raises for a damaged zip.
    """
    with zipfile.ZipFile(path) as file:
        root = _Tree(file).load()
    if not isinstance(root, _Module):
        raise pickle.UnpicklingError("the archive's pickle is not a module")
    return dict(_module_tensors(root, ""))


class _Module:
    """Stands in for every class of the archive: it has attributes and can do nothing."""

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}


class _Tree(pickle.Unpickler):
    """The pickle of an archive; looks nothing up by name that is not listed here."""

    def __init__(self, file: zipfile.ZipFile):
        self.file, self.folder = file, file.namelist()[0].partition("/")[0]
        self.storages: dict[str, torch.Tensor] = {}
        super().__init__(io.BytesIO(file.read(f"{self.folder}/data.pkl")))

    def find_class(self, module: str, name: str) -> Any:
        # The archive's own classes: boxes, whatever their names say.
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle" and name.startswith("build_") and name.endswith("list"):
            return list
        raise pickle.UnpicklingError(f"{module}.{name} is neither a module nor a tensor")

    def persistent_load(self, pid: Any) -> torch.Tensor:
        kind, dtype, key, _, numel = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"unknown reference {pid}")
        # Tensors share storages, such as the views of one weight: read once.
        if key not in self.storages:
            content = bytearray(self.file.read(f"{self.folder}/data/{key}"))
            values = torch.frombuffer(content, dtype=dtype, count=numel) if numel else None
            self.storages[key] = torch.empty(0, dtype=dtype) if values is None else values
        return self.storages[key]


def _tensor(
    storage: torch.Tensor, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> torch.Tensor:
    """A view of a storage; torch refuses one that reaches beyond it."""
    if math.prod(shape) == 0:
        return storage.new_empty(shape)
    return torch.as_strided(storage, shape, stride, offset)


def _module_tensors(module: _Module, prefix: str) -> list[tuple[str, torch.Tensor]]:
    found = []
    for name, value in getattr(module, "state", {}).items():
        if isinstance(value, _Module):
            found += _module_tensors(value, f"{prefix}{name}.")
        elif torch.is_tensor(value):
            found.append((f"{prefix}{name}", value))
    return found


# --- Weights into modules: finite floating point numbers, all of them and nothing else ---

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_BUFFERS = re.compile(
    r"(.*\.)?(n_averaged|num_batches_tracked|position_ids|relative_position_index|attn_mask"
    r"|\w*(queue|ptr)\w*)"
)
"""Indices, counters and masks: beside the weights, and rarely floating point numbers."""


def fill(module: nn.Module, weights: Weights) -> None:
    """`module.load_state_dict(weights)`, all of them and nothing else, after `check_floats`.

    Raises LabError for what are no floating point numbers, RuntimeError for other names or shapes.
    """
    # load_state_dict casts silently: quantised numbers would be taken as they stand.
    own = module.state_dict()
    places = {name for name, tensor in own.items() if tensor.is_floating_point()}
    check_floats({name: tensor for name, tensor in weights.items() if name in places})
    module.load_state_dict(weights)


def is_buffer(name: str) -> bool:
    """True for the names of indices, counters and masks that stand beside weights."""
    return _BUFFERS.fullmatch(name) is not None


def check_floats(weights: Weights) -> None:
    """Raise LabError unless all are plain tensors of 16 to 64 bit floating point numbers.

    Loading would take quantised numbers as they are stored, without their scales, and drop the
    imaginary part of complex ones.
    """
    kinds = {name: kind for name, tensor in weights.items() if (kind := not_floats(tensor))}
    if kinds:
        name, kind = next(iter(kinds.items()))
        raise LabError(
            f"{len(kinds)} of {len(weights)} weights are no floating point numbers, such as "
            f"'{name}', which is {kind}. If they are quantised, their scales are kept elsewhere: "
            "save the model in float16, bfloat16 or float32."
        )


def not_floats(tensor: torch.Tensor) -> str | None:
    """What a tensor is that is no plain one of 16 to 64 bit floating point numbers; else None."""
    if tensor.layout != torch.strided:
        return str(tensor.layout).removeprefix("torch.")
    return None if tensor.dtype in _FLOATS else str(tensor.dtype).removeprefix("torch.")


def not_finite(weights: Weights) -> dict[str, int]:
    """How many values of which weights are infinite or not a number.

    Causal masks, which are meant to be infinite, do not count.
    """
    found = {}
    for name, tensor in weights.items():
        # On the meta device there are no values to look at.
        if tensor.dtype not in _FLOATS or tensor.is_meta or name.endswith("attn_mask"):
            continue
        # A sum is finite only if all its terms are, and much faster than a look at each.
        if not tensor.sum().isfinite() and (count := int((~tensor.isfinite()).sum())):
            found[name] = count
    return found


def check_finite(weights: Weights, name: str) -> None:
    """Raise NotFiniteError, naming the weights, if those of the model `name` are not finite."""
    if bad := not_finite(weights):
        first, count = next(iter(bad.items()))
        raise NotFiniteError(
            f"{len(bad)} of the {len(weights)} weights of '{name}' are not finite, such as "
            f"'{first}' in {count} of {weights[first].numel()} values: its training has diverged, "
            "or the file is damaged. Take an earlier checkpoint."
        )


@contextmanager
def fitting(path: str | os.PathLike[str], complaint: str) -> Iterator[None]:
    """Inside the block a model is made of what stands in a file: whatever goes wrong is its fault.

    Raises LabError, "PATH COMPLAINT: reason", for any error; a LabError keeps its own words.
    """
    try:
        yield
    except NotFiniteError:
        raise
    except LabError as error:
        raise error if str(path) in str(error) else LabError(f"{path}: {error}") from error
    except Exception as error:  # sizes that do not fit raise whatever torch and others like
        reason = f"it has no weight {error}" if isinstance(error, KeyError) else str(error)
        reason = shorten(reason or type(error).__name__, 300)
        raise LabError(f"{path} {complaint}: {reason}") from error


# --- The tensors of a checkpoint file, whoever wrote it, without running any code ---

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
    Of an archive only the tensors are read, see `longclip_lab.models.checkpoint`.

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


def renamed(weights: Weights, rename: Callable[[str], str]) -> dict[str, torch.Tensor]:
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
        # In pieces: checkpoints are larger than memory should have to be.
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def count_blocks(names: Iterable[str], pattern: str) -> int:
    r"""How many different numbers the group of `pattern` takes at the beginning of `names`.

    >>> count_blocks(["blocks.0.norm", "blocks.0.bias", "blocks.1.norm"], r"blocks\.(\d+)\.")
    2
    """
    return len({match[1] for name in names if (match := re.match(pattern, name))})


def _checkpoint(path: Path, container: str, content: Any) -> Checkpoint:
    beside: list[str] = []
    unwrapped: list[str] = []
    # Wrappings nest: {"state_dict": {"model": ..}}.
    while (entry := _entry(path, content)) is not None:
        beside += [str(name) for name in content if name != entry]
        unwrapped.append(str(entry))
        content = content[entry]
    tensors = dict(_nested_tensors(content))
    if empty := [name for name, tensor in tensors.items() if tensor.is_meta]:
        raise LabError(f"{path} holds names without values (torch's meta device): {empty[0]} ..")
    if not tensors:
        raise LabError(
            f"{path} holds no state dict: expected names and tensors{_entries_seen(content)}."
        )
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
        and any(True for _ in _nested_tensors(value))
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
    names = [name for name, _ in _nested_tensors(value)]
    return any(_IMAGE_TOWER.search(name) for name in names) and len(names) > 1


def _nested_tensors(
    content: Any, prefix: str = "", above: tuple[int, ...] = ()
) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of nested dicts, their names joined by dots, without those of optimisers."""
    if not isinstance(content, Mapping) or "param_groups" in content or id(content) in above:
        return
    for name, value in content.items():
        if torch.is_tensor(value):
            yield f"{prefix}{name}", value.detach()
        else:
            yield from _nested_tensors(value, f"{prefix}{name}.", (*above, id(content)))


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
        # Buffers are named otherwise by some trainers and do not veto a shared prefix.
        weights = [name for name in tensors if not is_buffer(name)]
        shared = [p for p in _PREFIXES if weights and all(n.startswith(p) for n in weights)]
        towers = {name.partition(".")[0] + "." for name in weights if _IMAGE_TOWER.search(name)}
        # One part with an image tower is the model; what stands beside it is the trainer's.
        if not shared and len(towers) == 1:
            shared = [p for p in _PREFIXES if p in towers]
        if not shared:
            return tensors
        prefix = shared[0]
        unwrapped.append(prefix)
        beside += [name for name in tensors if not name.startswith(prefix)]
        tensors = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _entries_seen(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f", got a {type(content).__name__}"
    some = ", ".join(str(name) for name in list(content)[:5])
    return f", got entries without any: {some}" if some else ", got an empty dict"


# --- Ignored checkpoint keys: named and counted, never just dropped ---


def leave_out(
    weights: Weights, parts: Collection[str]
) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """`weights` without the modules and buffers called `parts`, and how many tensors each had.

    A part is the beginning of a name up to a dot: "cls" or "text_encoder.cls". What is neither
    needed nor among `parts` stays, so that a strict load names it.

    >>> kept, left = leave_out({"head.w": torch.ones(1), "temp": torch.ones(1)}, {"head"})
    >>> sorted(kept), left
    (['temp'], {'head': 1})
    """
    kept: dict[str, torch.Tensor] = {}
    left: Counter[str] = Counter()
    for name, tensor in weights.items():
        found = [part for part in parts if name == part or name.startswith(f"{part}.")]
        if found:
            left[max(found, key=len)] += 1
        else:
            kept[name] = tensor
    return kept, dict(sorted(left.items()))
