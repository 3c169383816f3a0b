"""The tensors of a TorchScript archive, as OpenAI released its models, without running it.

Such a file is a zip: `code/` holds programs, `data.pkl` a pickle of the module tree, `data/` the
tensors' bytes. `torch.jit.load` compiles the programs and can run them. Here `code/` is not opened
at all, and the pickle is read by an unpickler that knows seven harmless names: the archive's own
classes become empty boxes for their attributes, and everything else is refused.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

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
