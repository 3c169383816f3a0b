"""Readers for classification: ImageNet's folders of classes, CIFAR's batches."""

from __future__ import annotations

import hashlib
import io
import pickle
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from longclip_lab.data.benchmarks.found import TOO_FEW, Found, check_file, check_folder
from longclip_lab.data.benchmarks.places import Place
from longclip_lab.data.benchmarks.protocol import Protocol
from longclip_lab.errors import LabError
from longclip_lab.images import image_names

_NAMED = 5
_SIDE = 32  # of a CIFAR picture


def read_folders(place: Place, protocol: Protocol) -> Found:
    """One folder a class, called by WordNet's id or, with `options["numbers"]`, by its number.

    With `options["only_present"]` the classes are those that have a folder, in the order of the
    labels; otherwise all of the protocol's. `options["per_class"]` is how many pictures each has.
    """
    (home,) = place.files
    check_folder(home)
    names = protocol.class_names
    known = {str(i): i for i in range(len(names))} if protocol.options.get("numbers") else _wnids()
    folders = sorted(path for path in home.iterdir() if path.is_dir())
    labels = {path: known[path.name] for path in folders if path.name in known}
    if not labels:
        raise LabError(_no_classes(home, folders))
    found = Found()
    for path in folders:
        if path not in labels:
            found.note("folder that is no class", path.name)
    for index in sorted(set(known.values()) - set(labels.values())):
        if not protocol.options.get("only_present"):
            found.note("class without a folder", f"{index} ({names[index]})")
    present = sorted(labels.values()) if protocol.options.get("only_present") else None
    for path, label in sorted(labels.items(), key=lambda item: item[1]):
        prefix = path.relative_to(place.home).as_posix()
        at = label if present is None else present.index(label)
        pictures = image_names(path)
        found.labels |= {f"{prefix}/{picture}": at for picture in pictures}
        if len(pictures) < protocol.options.get("per_class", 1):
            found.note(TOO_FEW, f"{prefix}/ has {len(pictures)}")
        found.exact[prefix] = set(pictures).__contains__
    found.class_names = names if present is None else tuple(names[label] for label in present)
    found.read.append(f"{home.name}/: {len(labels):,} folders of classes")
    return found


@cache
def _wnids() -> dict[str, int]:
    """ImageNet's classes by WordNet's id: sorted, as the labels are."""
    from timm.data import ImageNetInfo

    return {name: index for index, name in enumerate(ImageNetInfo("imagenet-1k").label_names())}


def _no_classes(home: Path, folders: list[Path]) -> str:
    if folders:
        has = ", ".join(path.name for path in folders[:_NAMED])
        return f"{home} has no folder called as a class; it has {has}."
    pictures = image_names(home)
    if pictures:
        return (
            f"{home} holds {len(pictures):,} pictures side by side, such as {pictures[0]}: their "
            "classes cannot be known from that. Sort them into folders of classes, n01440764/ and "
            "so on (soumith/imagenetloader.torch's valprep.sh does it)."
        )
    return f"{home} is empty; expected a folder for each class, with its pictures."


def read_cifar(place: Place, protocol: Protocol) -> Found:
    """The test batch of CIFAR's Python version: a pickled dictionary of NumPy's arrays.

    Only the published file is opened, known by its MD5 (`options["md5"]`), and nothing but arrays
    is unpickled.
    """
    (path,) = place.files
    check_file(path)
    content = path.read_bytes()
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if digest != protocol.options["md5"]:
        raise LabError(
            f"{path} is not the published file: its MD5 is {digest}, expected "
            f"{protocol.options['md5']}. Is it complete, and of the version for Python?"
        )
    try:
        batch = _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
        pixels = np.asarray(batch["data"], dtype=np.uint8).reshape(-1, 3, _SIDE, _SIDE)
        labels = [int(label) for label in batch[protocol.options["labels"]]]
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError) as error:
        raise LabError(f"{path} is no batch of CIFAR: {error}.") from None
    if len(labels) != len(pixels):
        raise LabError(f"{path} has {len(labels)} labels for {len(pixels)} pictures.")
    found = Found(arrays=np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)))
    found.labels = {f"{number:05d}": label for number, label in enumerate(labels)}
    found.class_names = protocol.class_names
    found.read.append(f"{path.relative_to(place.home).as_posix()}: {len(labels):,} pictures")
    return found


class _ArraysOnly(pickle.Unpickler):
    """Refuses every class and function but those that NumPy's arrays are made of."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
            ("_codecs", "encode"): _latin1,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it would run {module}.{name}")
        return allowed[module, name]


def _reconstruct(kind: type, shape: tuple[int, ...], code: Any) -> np.ndarray:
    """As NumPy's own: an empty array, which the pickle then fills."""
    if kind is not np.ndarray:
        raise pickle.UnpicklingError(f"it would make a {kind}")
    return np.ndarray.__new__(kind, shape, code)


def _latin1(text: str, encoding: str) -> bytes:
    """How a pickle of Python 3 spells bytes in the old protocols."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it would encode as {encoding}")
    return text.encode("latin1")
