"""Which pairs a run could not use: written down as they are found, whole at its end.

FOLDER/broken/process-00000.json    what one process has found, over all restarts of the run
FOLDER/broken-samples.json          what all processes have found, {name: why}
FOLDER/run.json                     how many that are, under "broken"
"""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object

from longclip_lab.errors import LabError
from longclip_lab.files import atomic_write, read_json_object, to_json

BROKEN, RECORD = "broken-samples.json", "run.json"
_PARTS = "broken"


class BrokenPairs:
    """The broken pairs of one process, {name: why}; in a folder they survive its end."""

    def __init__(self, folder: Path | None = None, rank: int = 0):
        self.path = None if folder is None else folder / _PARTS / f"process-{rank:05d}.json"
        self.pairs: dict[str, str] = {}
        if self.path is not None and self.path.exists():
            self.pairs = _read_pairs(self.path)

    def add(self, news: dict[str, str]) -> None:
        """Note more of them."""
        new = {name: why for name, why in news.items() if name not in self.pairs}
        if not new:
            return
        self.pairs |= new
        if self.path is not None:
            atomic_write(self.path, to_json(self.pairs, indent=1) + "\n")


def _read_pairs(path: Path) -> dict[str, str]:
    pairs = read_json_object(path)
    if not all(isinstance(why, str) for why in pairs.values()):
        raise LabError(f"{path} does not say which pairs are broken, and why. Move it away.")
    return pairs


def all_broken(
    accelerator: Accelerator, pairs: dict[str, str], folder: Path | None
) -> dict[str, str]:
    """What all processes have found, by name; with a folder, what was found before a restart too,
    by processes that there may be no more."""
    parts = [pairs]
    if accelerator.num_processes > 1:
        parts = gather_object([pairs])
    if folder is not None:
        paths = sorted((folder / _PARTS).glob("process-*.json"))
        parts += [_read_pairs(path) for path in paths]
    found = {name: why for part in parts for name, why in part.items()}
    found = dict(sorted(found.items()))
    if folder is not None and found and accelerator.is_main_process:
        atomic_write(folder / BROKEN, to_json(found, indent=1) + "\n")
        record = read_json_object(folder / RECORD)
        record["broken"] = {"pairs": len(found), "named_in": BROKEN}
        atomic_write(folder / RECORD, to_json(record, indent=2) + "\n")
    return found
