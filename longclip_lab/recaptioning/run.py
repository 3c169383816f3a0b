"""Recaptioning a data set: resumable, in any number of processes, and back into training data.

A file of captions is whole or not there. `counts/NAME.json` holds its sums, and the names of the
pictures of its run that could not be read.

Processes do not speak to each other: each takes every W-th file, and whoever finds the last one
written counts them all. A process that dies costs its own unfinished files only.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from longclip_lab.data import Pairs, ShardSet
from longclip_lab.data.shards import Broken, Sample
from longclip_lab.data.shards.read import NO_CAPTION
from longclip_lab.errors import COUNT, LabError
from longclip_lab.files import (
    atomic_write,
    checked_fields,
    json_kind,
    parse_json,
    read_json_object,
    readable,
    to_json,
)
from longclip_lab.files import read_lines as read_text_lines
from longclip_lab.images import NO_IMAGES, READING, ImageError, decode_image, list_images
from longclip_lab.models.encoding import images_hash
from longclip_lab.recaptioning.captioner import Asking, Captioner
from longclip_lab.text import text_statistics
from longclip_lab.threads import rank_and_size

# --- The files of a recaptioning: lines of captions, and `recaption.json`, which says what ---

RECORD, COUNTS = "recaption.json", "counts"
_SETTINGS = {"captioner", "model", "weights", "asking", "data"}
"""What a record must say of how the captions were made."""
CONTEXTS = (77, 128, 248)
"""CLIP's context, LoTLIP's and Long-CLIP's."""


@dataclass(frozen=True)
class Line:
    """One line of a file of captions; `tokens` are the captioner's own, the end not counted."""

    key: str
    captioner: str
    caption: str
    tokens: int
    finished: bool


def write_lines(folder: Path, name: str, lines: list[Line], skipped: dict[str, list[str]]) -> None:
    """Write the captions of one run, their counts and the pictures that it left out."""
    counted = {"counts": _counts(lines), "skipped": skipped}
    atomic_write(folder / COUNTS / f"{name}.json", to_json(counted, indent=1) + "\n")
    # Last, as the file of captions is what says that the run is done.
    atomic_write(
        folder / f"{name}.jsonl",
        "".join(to_json(asdict(line), ensure_ascii=False) + "\n" for line in lines),
    )


def read_lines(folder: str | Path) -> list[Line]:
    """All captions in a folder that `recaption` wrote, in the order of its files.

    Raises LabError for a line of another form, and for two captions of one picture.
    """
    lines, seen = [], set()
    for path in sorted(Path(folder).glob("[!.]*.jsonl")):
        for number, text in enumerate(read_text_lines(path), 1):
            line = _line(path, number, text)
            if line.key in seen:
                raise LabError(
                    f"{path}, line {number}: there already is a caption of {line.key}. Give every "
                    "captioner a folder of its own."
                )
            seen.add(line.key)
            lines.append(line)
    return lines


def _line(path: Path, number: int, text: str) -> Line:
    where = f"{path}, line {number}"
    try:
        values = parse_json(text, where)
        if not isinstance(values, dict):
            raise LabError(f"it is a JSON {json_kind(values)}.")
        return checked_fields(Line(**values), where)
    except (LabError, TypeError) as error:
        why = shorten(str(error).removeprefix(f"{where}: ").removesuffix("."), 300)
        raise LabError(
            f"{where}: expected a caption as `longclip-lab recaption` writes it: {why}."
        ) from error


def read_record(folder: str | Path) -> dict[str, Any]:
    """What `recaption.json` says. Raises LabError if there is none."""
    path = Path(folder) / RECORD
    if not path.exists():
        raise LabError(
            f"{folder} holds no {RECORD}. Give a folder that `longclip-lab recaption` wrote."
        )
    try:
        record = read_json_object(path)
    except LabError as error:
        raise LabError(f"{path} is damaged: {error} Give another folder.") from error
    settings = record.get("settings")
    whole = isinstance(record.get("finished"), bool) and isinstance(settings, dict)
    whole = whole and settings.keys() >= _SETTINGS and isinstance(settings["captioner"], str)
    parts = [settings["data"], settings["asking"]] if whole else []
    if not parts or not all(isinstance(one, dict) for one in parts) or "prompt" not in parts[1]:
        raise LabError(
            f"{path} is damaged: it does not say how the captions were made. Give another folder."
        )
    return record


def claim(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Make the folder this recaptioning's own, or find that it already is; returns its record.

    Raises LabError if the captions in it are of another model, prompt or data.
    """
    if (folder / RECORD).exists():
        record = read_record(folder)
        differing = _differing(record.get("settings", {}), json.loads(json.dumps(settings)))
        if differing:
            raise LabError(
                f"{folder} holds captions made otherwise ({'; '.join(differing)}). Choose another "
                "folder, or repeat that command to go on with it."
            )
        return record
    if any(folder.glob("[!.]*.jsonl")):
        raise LabError(
            f"{folder} holds files of lines and no {RECORD} that says whose they are. Choose "
            "another folder."
        )
    record = {"finished": False, "settings": settings}
    write_record(folder, record)
    return record


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write `recaption.json`."""
    atomic_write(folder / RECORD, to_json(record, indent=1, ensure_ascii=False) + "\n")


def _differing(before: Any, now: Any, name: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = dict.fromkeys([*before, *now])
        return [
            said
            for key in keys
            for said in _differing(before.get(key), now.get(key), f"{name}.{key}".lstrip("."))
        ]
    return [] if before == now else [f"{name} was {before!r}, now {now!r}"]


def summary(folder: Path, names: Iterable[str], left_out: dict[str, list[str]]) -> dict[str, Any]:
    """What a finished recaptioning counts to: captions, pictures skipped, statistics.

    `left_out` are those that the data set itself was opened without. Only the files' own counts
    are read, so that millions of captions are counted as fast as they were shared out.
    """
    skipped = {reason: list(keys) for reason, keys in left_out.items()}
    total: Counter[str] = Counter()
    for name in names:
        path = folder / COUNTS / f"{name}.json"
        counted = read_json_object(path)
        if not all(isinstance(counted.get(part), dict) for part in ("counts", "skipped")):
            raise LabError(
                f"{path} does not hold the counts of {name}.jsonl. Remove both, and the same "
                "command makes them anew."
            )
        total.update(counted["counts"])
        for reason, keys in counted["skipped"].items():
            skipped.setdefault(reason, []).extend(keys)
    captions = total["captions"]
    lacking = (len(keys) for reason, keys in skipped.items() if reason not in NO_IMAGES)
    return {
        "pictures": captions + sum(lacking),
        "captions": captions,
        "skipped": skipped,
        "statistics": _means(total) if captions else None,
    }


def _counts(lines: list[Line]) -> dict[str, int]:
    """Sums over the captions of one file."""
    if not lines:
        return {"captions": 0}
    texts = [line.caption for line in lines]
    by_bert = text_statistics(texts, "bert", contexts=())
    by_clip = text_statistics(texts, "clip", contexts=CONTEXTS)
    times = Counter(texts)
    return {
        "captions": len(texts),
        "subcaptions": round(by_bert.subcaptions_per_text * len(texts)),
        "tokens": round(by_bert.tokens_per_text * len(texts)),
        "generated": sum(line.tokens for line in lines),
        **{f"over {cut.context}": cut.texts for cut in by_clip.cuts},
        "unfinished": sum(not line.finished for line in lines),
        "empty": sum(not text for text in texts),
        "repeated": sum(bool(text) and times[text] > 1 for text in texts),
    }


def _means(total: Counter[str]) -> dict[str, Any]:
    """Counts as in LoTLIP's Tables 1 and 6, and what tells a captioner gone wrong.

    Sub-captions and BERT's tokens (without its two special ones) are means per text; a text is
    `longer_than` a context by CLIP's tokens, start and end included. `repeated` are captions that
    another picture of the same file has as well. All but the means are shares of the captions.
    """

    def share(name: str) -> float:
        return round(total[name] / total["captions"], 6)

    return {
        "subcaptions_per_text": share("subcaptions"),
        "tokens_per_text": share("tokens"),
        "generated_per_text": share("generated"),
        "longer_than": {str(context): share(f"over {context}") for context in CONTEXTS},
        "unfinished": share("unfinished"),
        "empty": share("empty"),
        "repeated": share("repeated"),
    }


# --- Pictures by key, in runs of which each becomes one file of captions ---

Content = Path | bytes | np.ndarray | str
"""A picture file, its bytes, or uint8 values [H, W, 3]; or, as a text, why there is none."""

PER_FILE = 1000


@dataclass(frozen=True)
class Run:
    """Pictures whose captions are written together, under this `name`."""

    name: str
    pictures: Callable[[], Iterator[tuple[str, Content]]]


@dataclass(frozen=True)
class ImageRuns:
    """All pictures of a data set, in a fixed order. `source` says which they are (JSON-able),
    `skipped` names what the data set was opened without, by reason."""

    name: str
    source: dict[str, Any]
    runs: list[Run]
    skipped: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Folder:
    """The pictures of a folder and the folders below it, without any text."""

    name: str
    images: list[Path]
    source: dict[str, Any]
    skipped: dict[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)


def open_folder(root: str | os.PathLike[str]) -> Folder:
    """Every picture file below `root` (`images.list_images`); `skipped` names what else is there.

    Raises LabError if there is no such folder, or no picture in it.
    """
    listing = list_images(root)
    images = sorted(file.path for file in listing.files)
    if not images:
        raise LabError(f"{root} holds no picture (JPEG, PNG, WebP, ...).")
    source = {"dataset": "folder", "pictures": len(images), "hash": images_hash(images)}
    return Folder("folder", images, source, listing.left_out)


def image_runs(
    data: Any, root: str | os.PathLike[str] | None = None, per_file: int = PER_FILE
) -> ImageRuns:
    """The pictures of `data` (`Pairs`, the world, a `Folder`), `per_file` to a file; or of shards.

    A picture on disk has its path below `root` as key, or below the folder that all of them share;
    a drawn one its number, one in a shard the shard's own key. Raises LabError for a picture
    outside `root`.
    """
    if isinstance(data, ShardSet):
        runs = [_shard_run(data, number) for number in range(len(data.shards))]
        read = {} if data.pictures == "values" else {"images": READING}
        return ImageRuns(data.name, {**data.source, **read}, runs, data.skipped)
    COUNT.check("per_file", per_file)
    if len(data.images) == 0:
        raise LabError(f"{data.name} holds no picture.")
    keys = image_keys(data.images, root)
    pictures = list(zip(keys, data.images, strict=True))
    parts = (pictures[start : start + per_file] for start in range(0, len(pictures), per_file))
    runs = [Run(f"{n:06d}", lambda part=part: iter(part)) for n, part in enumerate(parts)]
    read = {} if isinstance(data.images, np.ndarray) else {"images": READING}
    return ImageRuns(data.name, {**data.source, **read, "per_file": per_file}, runs, data.skipped)


def image_keys(
    images: Sequence[Path] | np.ndarray, root: str | os.PathLike[str] | None = None
) -> list[str]:
    """What each picture is called in files of captions; see `image_runs`."""
    if isinstance(images, np.ndarray):
        return [f"{number:06d}" for number in range(len(images))]
    paths = [Path(os.path.abspath(image)) for image in images]
    if root is None:
        home = Path(os.path.commonpath([path.parent for path in paths]))
    else:
        home = Path(os.path.abspath(root))
    outside = [path for path in paths if not path.is_relative_to(home)]
    if outside:
        raise LabError(f"{outside[0]} does not lie below {home}; give the folder of the pictures.")
    keys = [readable(path.relative_to(home).as_posix()) for path in paths]
    path_of: dict[str, Path] = {}
    for key, path in zip(keys, paths, strict=True):
        if path_of.setdefault(key, path) != path:
            raise LabError(f"Two pictures below {home} would both be called {key}; rename one.")
    return keys


def decoded_content(content: Content) -> Image.Image | str:
    """The picture in RGB, or what is wrong with it."""
    if isinstance(content, str):
        return content
    if isinstance(content, np.ndarray):
        return Image.fromarray(content)
    try:
        return decode_image(content if isinstance(content, bytes) else content.read_bytes())
    except ImageError as error:
        return str(error)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _shard_run(shards: ShardSet, number: int) -> Run:
    """Joined sets have the set's name in front: one folder of captions holds them all."""
    name = shards.shards[number].name.removesuffix(".tar").replace("/", ".")
    return Run(name, lambda: map(_sample, shards.samples(number)))


def _sample(sample: Sample | Broken) -> tuple[str, Content]:
    if isinstance(sample, Broken):
        return sample.name, sample.detail or sample.reason
    return sample.key, sample.image


# --- Recaptioning a data set: file by file, in any number of processes, from where it ---

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
        data: `Pairs`, the world, a folder (`open_folder`), shards, or `ImageRuns`.
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
    number, processes = place or rank_and_size()
    source = data if isinstance(data, ImageRuns) else image_runs(data, root, per_file)
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


def current_device() -> torch.device:
    """The GPU that the launcher means this process to use, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def _settings(captioner: Captioner, asking: Asking, source: ImageRuns) -> dict[str, Any]:
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


# --- Captions on their way back into training data ---


def with_captions(data: Any, *folders: str | os.PathLike[str]) -> Pairs | ShardSet:
    """The pairs, or shards, with the captions in these folders (one each) as their `captioners`.

    LoTLIP trains on a raw text and several long ones a picture; `long` becomes the first new one.
    Captioners that the data had are kept. A picture is found by the end of its path, so it does not
    matter where the data lie now. Pictures without any new caption (broken, empty) are left out,
    counted and named in `skipped`; those of shards when they are read. `source` says how many
    pictures each captioner has described.

    Raises LabError for captions of other pictures, of a world drawn otherwise or of other shards,
    by a captioner that is already there, and if no picture is left.
    """
    if not folders:
        raise LabError("Say which folders of captions to add.")
    if isinstance(data, ShardSet):
        return _with_captions_of_shards(data, folders)
    before = [dict(by) for by in getattr(data, "captioners", None) or [{}] * len(data)]
    new: list[dict[str, str]] = [{} for _ in range(len(data))]
    for folder in folders:
        for index, line in enumerate(_captions_of(data, folder)):
            if line is not None and line.caption:
                _add(line, new[index], before[index])
    kept = np.flatnonzero([bool(by_captioner) for by_captioner in new])
    if not len(kept):
        raise LabError(f"{' and '.join(map(str, folders))}: no caption of {data.name}'s pictures.")
    missing = sorted(set(range(len(data))) - set(kept.tolist()))
    names = _at(image_keys(data.images), missing)
    return Pairs(
        name=data.name,
        images=data.images[kept] if isinstance(data.images, np.ndarray) else _at(data.images, kept),
        short=_at(data.short, kept),
        long=[next(iter(new[index].values())) for index in kept],
        captions=_at(data.captions, kept),
        skipped={**data.skipped, **({NO_CAPTION: names} if names else {})},
        source={**data.source, "recaptioned": _facts(folders, new)},
        captioners=[before[index] | new[index] for index in kept],
    )


def to_sharegpt4v(folder: str | os.PathLike[str], path: str | os.PathLike[str]) -> int:
    """Write a folder's captions as ShareGPT4V publishes its own; returns how many.

    A JSON list of {"id", "image", "conversations"} whose pictures are named by their keys;
    `data.recaptioned(root, "sharegpt4v", table=path)` reads it. Empty captions are left out.
    Raises LabError if nothing is left, and for pictures that are no files.
    """
    settings = read_record(folder)["settings"]
    check_files(settings["data"].get("dataset"))
    prompt = settings["asking"]["prompt"]
    entries = [
        {
            "id": line.key,
            "image": line.key,
            "conversations": [
                {"from": "human", "value": f"<image>\n{prompt}"},
                {"from": "gpt", "value": line.caption},
            ],
        }
        for line in read_lines(folder)
        if line.caption
    ]
    if not entries:
        raise LabError(f"{folder} holds no caption to write.")
    atomic_write(path, to_json(entries, ensure_ascii=False, indent=1) + "\n")
    return len(entries)


def check_files(dataset: str | None) -> None:
    """Raise LabError for pictures that ShareGPT4V's layout cannot name."""
    if dataset in ("world", "shards"):
        raise LabError(
            f"ShareGPT4V's layout names picture files, and those of {dataset} are none. Bring "
            "their captions into training with recaptioning.with_captions."
        )


def _captions_of(data: Any, folder: str | os.PathLike[str]) -> list[Line | None]:
    """The line of each picture of `data`."""
    lines = {line.key: line for line in read_lines(folder)}
    if isinstance(data.images, np.ndarray):
        _check_same(data, folder)
        return [lines.get(key) for key in image_keys(data.images)]
    keys = [_key(Path(image), lines) for image in data.images]
    claimed = [key for key in keys if key is not None]
    if len(set(claimed)) < len(claimed):
        twice = next(key for key in claimed if claimed.count(key) > 1)
        raise LabError(f"{folder}: the caption of {twice} would go to two pictures of {data.name}.")
    return [None if key is None else lines[key] for key in keys]


def _with_captions_of_shards(data: ShardSet, folders: Sequence[str | os.PathLike[str]]) -> ShardSet:
    captions: dict[str, dict[str, str]] = {}
    for folder in folders:
        _check_same(data, folder)
        for line in read_lines(folder):
            if line.caption:
                _add(line, captions.setdefault(line.key, {}), data.captioners)
    return data.with_captions(captions, _facts(folders, captions.values()))


def _check_same(data: Any, folder: str | os.PathLike[str]) -> None:
    """Keys that are numbers fit any data: the hash says whether these are meant."""
    told = read_record(folder)["settings"]["data"].get("hash")
    if told != data.source.get("hash"):
        raise LabError(
            f"{folder} describes other pictures than {data.name} (hash {told}, expected "
            f"{data.source.get('hash')}). Give the same shards, or draw the world with the same "
            "size and seed."
        )


def _add(line: Line, new: dict[str, str], before: Collection[str]) -> None:
    if line.captioner in new or line.captioner in before:
        raise LabError(
            f"There are two sets of captions by {line.captioner}; write one under another name."
        )
    new[line.captioner] = line.caption


def _key(path: Path, lines: dict[str, Line]) -> str | None:
    """The longest end of a picture's path that is a key."""
    ends = ("/".join(path.parts[start:]) for start in range(len(path.parts)))
    return next((end for end in ends if end in lines), None)


def _facts(
    folders: Sequence[str | os.PathLike[str]], new: Iterable[dict[str, str]]
) -> list[dict[str, Any]]:
    """What `source` says of new captions: by whom, and of how many pictures."""
    pictures = Counter(who for by_captioner in new for who in by_captioner)
    settings = [read_record(folder)["settings"] for folder in folders]
    return [
        {key: one[key] for key in ("captioner", "model", "weights", "asking")}
        | {"pictures": pictures[one["captioner"]]}
        for one in settings
    ]


def _at(values: Any, indices: Iterable[int]) -> list[Any]:
    return [values[index] for index in indices]
