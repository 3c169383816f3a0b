"""The files of a recaptioning: lines of captions, and `recaption.json`, which says what they are.

A file of captions is whole or not there. `counts/NAME.json` holds its sums, and the names of the
pictures of its run that could not be read.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

from longclip_lab.errors import LabError
from longclip_lab.files import (
    atomic_write,
    checked_fields,
    json_kind,
    parse_json,
    read_json_object,
    to_json,
)
from longclip_lab.files import read_lines as read_text_lines
from longclip_lab.images import NO_PICTURES
from longclip_lab.text import text_statistics

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
    lacking = (len(keys) for reason, keys in skipped.items() if reason not in NO_PICTURES)
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
