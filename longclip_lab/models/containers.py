"""What is in a file of weights, by its bytes, without running any code in it.

safetensors and PyTorch's files are read by their libraries. A TorchScript archive, as OpenAI
released its models, is a zip: `code/` holds programs, `data.pkl` a pickle of the module tree,
`data/` the tensors' bytes. `torch.jit.load` compiles the programs and can run them. Here `code/` is
not opened at all, and the pickle is read by an unpickler that knows seven harmless names: the
archive's own classes become empty boxes for their attributes, and everything else is refused.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import re
import warnings
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors.torch import load_file

from longclip_lab.errors import LabError

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
    if head[8:9] == b"{" and not head.startswith(b"PK"):
        return "safetensors", _read_safetensors(path, size)
    if head.startswith(b"PK"):
        return _read_zip(path)
    if head.startswith(_TORCH_BEFORE_1_6):
        return "PyTorch, before 1.6", _read_torch(path)
    if head.startswith(b"\x80"):
        raise LabError(_refusal(path, "a pickle that torch.save did not write"))
    raise LabError(f"{path} is refused: it is {_other(head)}.")


def _read_safetensors(path: Path, size: int) -> dict[str, torch.Tensor]:
    """safetensors silently lets the last of two equal names win; here they are refused."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
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
    return dict(_tensors(root, ""))


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


def _tensors(module: _Module, prefix: str) -> list[tuple[str, torch.Tensor]]:
    found = []
    for name, value in getattr(module, "state", {}).items():
        if isinstance(value, _Module):
            found += _tensors(value, f"{prefix}{name}.")
        elif torch.is_tensor(value):
            found.append((f"{prefix}{name}", value))
    return found
