"""Where a benchmark lies: its own folder, or one of the usual names below a common root."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from longclip_lab.data.benchmarks.protocol import Protocol
from longclip_lab.errors import LabError

ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".7z", ".rar")


@dataclass(frozen=True)
class Place:
    """A benchmark's folder, and what of it is there.

    `files` and `folders` are one path for each of the protocol's `needs` and `picture_folders`,
    there or not. `missing` and `missing_folders` name those that are not, in words, with the
    archive that may hold them.
    """

    home: Path
    files: tuple[Path, ...]
    folders: tuple[Path, ...]
    missing: tuple[str, ...]
    missing_folders: tuple[str, ...]


def find_place(protocol: Protocol, root: str | Path | None) -> Place:
    """The folder with most of what the protocol needs: `root` itself or one below it.

    Raises LabError if there is no `root`, or if it is no folder.
    """
    if root is None:
        raise LabError(
            f"{protocol.name} is read from disk: say where with root (--root DIR), a folder that "
            f"holds {protocol.layout}, or a folder above it called {protocol.folders[0]}."
        )
    root = Path(root)
    if root.is_file():
        raise LabError(_file_for_folder(root))
    if not root.is_dir():
        raise LabError(f"There is no folder {root}.")
    homes = [root, *(root / name for name in protocol.folders if (root / name).is_dir())]
    places = [_place(home, protocol) for home in homes]
    return min(places, key=lambda place: (len(place.missing), len(place.missing_folders)))


def whole_place(protocol: Protocol, root: str | Path | None) -> Place:
    """The same, but raises LabError naming what is needed and not there."""
    place = find_place(protocol, root)
    if place.missing:
        raise LabError(
            f"{protocol.name}: {place.home} lacks {'; '.join(place.missing)}. Expected "
            f"{protocol.layout}. How to get it: longclip-lab data verify {protocol.name} "
            f"--root {root}"
        )
    return place


def _place(home: Path, protocol: Protocol) -> Place:
    files, missing = _find(home, protocol.needs, protocol)
    folders, missing_folders = _find(home, protocol.picture_folders, protocol)
    return Place(home, files, folders, missing, missing_folders)


def _find(
    home: Path, wanted: tuple[tuple[str, ...], ...], protocol: Protocol
) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    paths, missing = [], []
    for names in wanted:
        there = [home / name for name in names if (home / name).exists()]
        paths.append(there[0] if there else home / names[0])
        if not there:
            missing.append(" or ".join(names) + _archived(home, names, protocol))
    return tuple(paths), tuple(missing)


def _archived(home: Path, names: tuple[str, ...], protocol: Protocol) -> str:
    wanted = [Path(name).parts[0] for name in names] + list(protocol.folders)
    archives = [path.name for path in sorted(home.iterdir()) if _is_archive(path)]
    likely = [one for one in archives if any(_alike(one, name) for name in wanted)]
    return f" ({likely[0]} is there: unpack it)" if likely else ""


def _is_archive(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in ARCHIVES


def _alike(archive: str, name: str) -> bool:
    """Whether an archive's name begins as a wanted one does, hyphens and case apart."""
    archive, name = (text.lower().replace("-", "").replace("_", "") for text in (archive, name))
    return archive.split(".")[0] == name.split(".")[0]


def _file_for_folder(path: Path) -> str:
    if _is_archive(path):
        return f"{path} is an archive, not a folder: unpack it and give the folder."
    return f"{path} is a file; expected the folder that it lies in."
