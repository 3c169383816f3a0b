"""Recaptioning a data set: file by file, in any number of processes, from where it stopped.

Processes do not speak to each other: each takes every W-th file, and whoever finds the last one
written counts them all. A process that dies costs its own unfinished files only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from longclip_lab.errors import COUNT
from longclip_lab.recaptioning.captioner import Asking, Captioner
from longclip_lab.recaptioning.pictures import (
    PER_FILE,
    PictureRuns,
    Run,
    decoded_content,
    picture_runs,
)
from longclip_lab.recaptioning.records import Line, claim, summary, write_lines, write_record

BROKEN = "broken picture"


@dataclass(frozen=True)
class Recaptioned:
    """What a call has done: how many of its `files` (this process's share) it wrote, the rest were
    there; whether it found the last one whole and `counted` them all, and what `recaption.json`
    says."""

    folder: Path
    files: int
    written: int
    counted: bool
    record: dict[str, Any]

    @property
    def finished(self) -> bool:
        """Whether every picture of the data has been looked at, by whatever process."""
        return bool(self.record["finished"])


def recaption(
    captioner: Captioner,
    data: Any,
    folder: str | os.PathLike[str],
    asking: Asking | None = None,
    *,
    root: str | os.PathLike[str] | None = None,
    batch_size: int = 8,
    per_file: int = PER_FILE,
    place: tuple[int, int] | None = None,
    progress: bool = False,
) -> Recaptioned:
    """Describe every picture of `data` (LoTLIP, section 4.1).

    In `folder` every run of pictures becomes one file of lines {"key", "captioner", "caption",
    "tokens", "finished"}; `recaption.json` says how they were made and, at the end, what they count
    to. Files that are there are kept, so the same call goes on where it was interrupted. Pictures
    that cannot be read are counted and named in the record.

    Args:
        captioner: from `load_captioner`.
        data: `Pairs`, the world, a folder (`open_folder`), shards, or `PictureRuns`.
        asking: prompt and settings of generation.
        root: folder that the pictures' keys are relative to.
        batch_size: pictures at a time. It does not change what is said, but for float noise.
        per_file: pictures to a file; shards keep their own.
        place: (number of this process, number of processes); by default what torchrun
            says in RANK and WORLD_SIZE.

    Raises LabError if the folder holds captions by another model or prompt, or of other data.
    """
    COUNT.check("batch_size", batch_size)
    asking, folder = asking or Asking(), Path(folder)
    number, processes = place or current_place()
    source = data if isinstance(data, PictureRuns) else picture_runs(data, root, per_file)
    record = claim(folder, _settings(captioner, asking, source))
    mine = source.runs[number::processes]
    todo = [run for run in mine if not _is_whole(folder, run)]
    for run in tqdm(todo, "recaptioning", unit="file", disable=not progress or number > 0):
        lines, skipped = _describe(captioner, run, asking, batch_size, progress and number == 0)
        write_lines(folder, run.name, lines, skipped)
    counts = not record["finished"] and all(_is_whole(folder, run) for run in source.runs)
    if counts:
        counted = summary(folder, [run.name for run in source.runs], source.skipped)
        record = {**record, "finished": True, **counted}
        write_record(folder, record)
    return Recaptioned(folder, len(mine), len(todo), counts, record)


def current_place() -> tuple[int, int]:
    """This process's number and how many there are, by the launcher's environment."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def current_device() -> torch.device:
    """The GPU that the launcher means this process to use, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def _settings(captioner: Captioner, asking: Asking, source: PictureRuns) -> dict[str, Any]:
    return {
        "captioner": captioner.name,
        "family": captioner.family,
        **captioner.facts,
        "asking": asking.to_dict(),
        "data": {"name": source.name, "files": len(source.runs), **source.source},
    }


def _is_whole(folder: Path, run: Run) -> bool:
    return (folder / f"{run.name}.jsonl").exists()


def _describe(
    captioner: Captioner, run: Run, asking: Asking, batch_size: int, progress: bool
) -> tuple[list[Line], dict[str, list[str]]]:
    """The lines of one run, and the pictures that it leaves out."""
    lines: list[Line] = []
    skipped: dict[str, list[str]] = {}
    with tqdm(unit="picture", desc=run.name, leave=False, disable=not progress) as bar:
        readable = _readable(run, skipped)
        while batch := list(islice(readable, batch_size)):
            keys, images = zip(*batch, strict=True)
            for key, said in zip(keys, captioner.describe(images, keys, asking), strict=True):
                lines.append(Line(key, captioner.name, *said))
            bar.update(len(batch))
    return lines, skipped


def _readable(run: Run, skipped: dict[str, list[str]]) -> Iterator[tuple[str, Image.Image]]:
    for key, content in run.pictures():
        picture = decoded_content(content)
        if isinstance(picture, str):
            skipped.setdefault(BROKEN, []).append(f"{key} ({picture})")
        else:
            yield key, picture
