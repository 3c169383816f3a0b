"""Files: written whole or not at all; text and JSON read and written in one way by every room."""

from __future__ import annotations

import codecs
import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from longclip_lab.errors import LabError, NotFiniteError

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block ends well.

    For writers that want a file name (torch.save, safetensors). On an exception the
    temporary file is removed and `path` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        give_rights(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def give_rights(path: str | os.PathLike[str]) -> None:
    """Give a file, or a folder and all in it, the rights that the umask allows.

    Temporary files and safetensors' own are private to their maker, for nobody's good.
    """
    path = Path(path)
    mask = os.umask(0)
    os.umask(mask)
    for one in (path, *(path.rglob("*") if path.is_dir() else ())):
        one.chmod((0o777 if one.is_dir() else 0o666) & ~mask)


def leftovers(folder: str | os.PathLike[str]) -> list[Path]:
    """What writers that were killed have left in `folder` itself: files and folders `.NAME.part`.

    Nobody reads them; whoever knows that nobody else writes there may remove them.
    """
    return sorted(Path(folder).glob(".*.part"))


def atomic_write(path: str | os.PathLike[str], content: str | bytes) -> Path:
    """Write `content` to `path` in one step and return the path."""
    with atomic_path(path) as temporary:
        if isinstance(content, str):
            temporary.write_text(content, encoding="utf-8")
        else:
            temporary.write_bytes(content)
    return Path(path)


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a UTF-8 file, with or without a byte order mark; every line end becomes "\\n".

    Raises LabError for a file that is missing, cannot be read, or is not UTF-8 text: it says what
    the bytes are, as far as they show it.
    """
    path = Path(path)
    try:
        return decode_text(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise LabError(f"There is no file {path}.") from None
    except OSError as error:
        raise LabError(f"Cannot read {path}: {error.strerror}.") from None


def decode_text(content: bytes, where: str) -> str:
    """As `read_text`, for bytes that came from `where`."""
    if content.startswith(_UTF16):
        raise LabError(
            f"{where} is UTF-16 text. Save it as UTF-8, for example with "
            "`iconv -f UTF-16 -t UTF-8`."
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise LabError(
            f"{where} is not UTF-8 text: line {line} has the byte {content[error.start]:#04x}. "
            "Save it as UTF-8, for example with `iconv -f LATIN1 -t UTF-8`."
        ) from None
    if "\0" in text:
        raise LabError(
            f"{where} is not a text file: it holds zero bytes. Is it compressed, or UTF-16? "
            "Save it as UTF-8."
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """What a JSON file holds. Raises LabError as `read_text` and `parse_json` do."""
    return parse_json(read_text(path), str(path))


def parse_json(text: str | bytes, where: str) -> Any:
    """What the JSON `text`, which came from `where`, says: strictly, so NaN and Infinity are none.

    Raises LabError for text that is not JSON, with the line, and for JSON that Python cannot
    hold: nested too deeply, or a number of thousands of digits.
    """
    if isinstance(text, bytes):
        text = decode_text(text, where)
    if not text.strip():
        raise LabError(f"{where} is empty; expected JSON.")

    def refuse(constant: str) -> Any:
        raise LabError(f"{where} is not JSON: it holds {constant}, which JSON has no number for.")

    try:
        return json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise LabError(
            f"{where} is not JSON: {error.msg} in line {error.lineno}, column {error.colno}. "
            "Is it complete?"
        ) from None
    except LabError:
        raise
    except RecursionError:
        raise LabError(f"{where} is JSON that is nested too deeply to be read.") from None
    except ValueError as error:  # more digits than Python turns into a number
        raise LabError(f"{where} is JSON that cannot be read: {error}.") from None


def to_json(value: Any, **options: Any) -> str:
    """`value` as strict JSON; `options` are those of `json.dumps`.

    Raises NotFiniteError, naming the place, for a number that JSON has no form for: what is
    written must be readable by every other program.
    """
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        place = _not_finite(value)
        if place is None:
            raise
        raise NotFiniteError(
            f"Cannot write {place or 'the result'} as JSON: it is not a finite number. Look for "
            "what made it: weights that are not finite, or an average over nothing."
        ) from None


def _not_finite(value: Any, place: str = "") -> str | None:
    """Where in nested dicts and lists the first number that is not finite stands."""
    if isinstance(value, float):
        return None if math.isfinite(value) else place
    if isinstance(value, dict):
        inner: Iterator[tuple[str, Any]] = ((f"{place}.{key}", one) for key, one in value.items())
    elif isinstance(value, list | tuple):
        inner = ((f"{place}[{index}]", one) for index, one in enumerate(value))
    else:
        return None
    found = (_not_finite(one, where.lstrip(".")) for where, one in inner)
    return next((one for one in found if one is not None), None)
