"""Files: written whole or not at all; text and JSON read and written in one way by every room."""

from __future__ import annotations

import codecs
import hashlib
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TextIO, TypeVar, Union, get_args, get_origin, get_type_hints

from longclip_lab.errors import LabError, NotFiniteError

T = TypeVar("T")

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_BLOCK = 2**20  # characters read at a time
_LONGEST = (
    32  # characters of a word or a number of JSON, by which an error may stand before the cut
)
_SPACE = re.compile(r"[ \t\n\r]*")


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
            # The name of a file that is not UTF-8 comes with lone surrogates, which have no bytes:
            # they are written as JSON escapes them.
            content = content.encode("utf-8", "backslashreplace")
        temporary.write_bytes(content)
    return Path(path)


def check_place(path: str | os.PathLike[str] | None) -> None:
    """Raise LabError if no file could be written at `path`: before minutes are spent on it."""
    if path is None:
        return
    path = Path(path)
    if path.is_dir():
        raise LabError(f"{path} is a folder; name a file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise LabError(f"{path} cannot be written: {error.strerror}.") from None


def visible(folder: str | os.PathLike[str], pattern: str = "*") -> list[Path]:
    """What is in a folder, by name, without what desktops leave there: `.DS_Store`, `._x.json`."""
    return sorted(path for path in Path(folder).glob(pattern) if not path.name.startswith("."))


def readable(name: str | os.PathLike[str]) -> str:
    r"""A file's name as text that can be printed, hashed and written: bytes that are not UTF-8
    become \xff and the like.

    >>> print(readable(os.fsdecode(b"caf\xe9.jpg")))
    caf\xe9.jpg
    """
    try:
        return os.fsencode(name).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a surrogate pair: no file is called so
        return str(name).encode("utf-8", "backslashreplace").decode()


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
        # A decoder with a byte order mark counts from behind it.
        start = error.start + (len(content) - len(error.object))
        line = _lines_ended(content[:start].decode("utf-8-sig")).count("\n") + 1
        raise LabError(
            f"{where} is not UTF-8 text: line {line} has the byte {content[start]:#04x}. "
            "Save it as UTF-8, for example with `iconv -f LATIN1 -t UTF-8`."
        ) from None
    if "\0" in text:
        raise LabError(
            f"{where} is not a text file: it holds zero bytes. Is it compressed, or UTF-16? "
            "Save it as UTF-8."
        )
    return _lines_ended(text)


def _lines_ended(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    """A text file to be read piece by piece; what is wrong with it is said as `read_text` does."""
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield file
    except FileNotFoundError:
        raise LabError(f"There is no file {path}.") from None
    except UnicodeDecodeError:
        read_text(path)  # knows the line and the kind of text
        raise LabError(f"{path} changed while it was read.") from None
    except OSError as error:
        raise LabError(f"Cannot read {path}: {error.strerror}.") from None


def read_lines(path: str | os.PathLike[str]) -> Iterator[str]:
    """The lines of a UTF-8 file, one by one; each ends in "\\n", but perhaps the last.

    "\\n", "\\r\\n" and "\\r" end a line, and nothing else does (U+2028 does not). Raises LabError
    as `read_text` does.
    """
    with _opened(path) as file:
        for line in file:
            if "\0" in line:
                decode_text(line.encode(), str(path))
            yield line


def read_json(path: str | os.PathLike[str], allow_nan: bool = False) -> Any:
    """What a JSON file holds. Raises LabError as `read_text` and `parse_json` do."""
    return parse_json(read_text(path), str(path), allow_nan)


def read_json_object(path: str | os.PathLike[str], allow_nan: bool = False) -> dict[str, Any]:
    """The same for a file that holds an object. Raises LabError for anything else."""
    content = read_json(path, allow_nan)
    if not isinstance(content, dict):
        raise LabError(f"{path} holds a JSON {json_kind(content)}; expected an object.")
    return content


def parse_json(text: str | bytes, where: str, allow_nan: bool = False) -> Any:
    """What the JSON `text`, which came from `where`, says: strictly.

    NaN and Infinity are no JSON. With `allow_nan` they come as floats: programs write NaN for a
    missing caption, and the reader of captions names such an entry.

    Raises LabError for text that is not JSON, with the line; for an object that has a name twice,
    of which Python would keep the last alone; and for JSON that Python cannot hold: nested too
    deeply, or a number of thousands of digits.
    """
    if isinstance(text, bytes):
        text = decode_text(text, where)
    if not text.strip():
        raise LabError(f"{where} is empty; expected JSON.")
    with _json_of(where, text):
        return _decoder(where, allow_nan).decode(text)


def read_json_list(
    path: str | os.PathLike[str], allow_nan: bool = False
) -> Iterator[tuple[str, Any]]:
    """The entries of a file with a JSON list, one by one, with where each stands ("entry 0").

    No more is read than is asked for, so that the beginning of a file of gigabytes is read at
    once. Raises LabError as `read_json` does, and for a file that is no list.
    """
    decoder = _decoder(str(path), allow_nan)
    with _opened(path) as file:
        text = file.read(_BLOCK)
        at, number = _behind_space(text, 0), 0
        if not text.strip():
            raise LabError(f"{path} is empty; expected JSON.")
        if "\0" in text:
            decode_text(text.encode(), str(path))
        if text[at] != "[":
            content = parse_json(text + file.read(), str(path), allow_nan)
            raise LabError(
                f"{path} holds a JSON {json_kind(content)}; expected a list [{{...}}, ...]."
            )
        at, last = at + 1, "["
        while True:
            at = _behind_space(text, at)
            if last != "," and text.startswith("]", at):
                break
            if last == "value" and text.startswith(",", at):
                at, last = at + 1, ","
                continue
            try:
                if last == "value":
                    raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
                with _json_of(f"{path}, entry {number}"):
                    value, end = decoder.raw_decode(text, at)
                # What ends where the text read so far does may be the beginning of a number.
                if end == len(text) and not isinstance(value, dict | list | str):
                    raise json.JSONDecodeError("Expecting ',' delimiter", text, end)
            except json.JSONDecodeError as error:
                # Wrong, or only cut by the end of what was read so far.
                cut = error.pos > len(text) - _LONGEST or error.msg.startswith("Unterminated")
                more = file.read(_BLOCK) if cut else ""
                if not more:
                    raise LabError(
                        f"{path} is not JSON: {error.msg} in entry {number}. Is it complete?"
                    ) from None
                text, at = text[at:] + more, 0
                continue
            yield f"entry {number}", value
            at, number, last = end, number + 1, "value"
        if (text[at + 1 :] + file.read()).strip():
            raise LabError(f"{path} is not JSON: there is more behind the list's end.")


def _behind_space(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()


def _decoder(where: str, allow_nan: bool) -> json.JSONDecoder:
    def refuse(constant: str) -> Any:
        raise LabError(f"{where} is not JSON: it holds {constant}, which JSON has no number for.")

    def unlike(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise LabError(
                f"{where}: an object has {twice!r} more than once, so that one of its values would "
                "be lost. Keep one."
            )
        return found

    constants = None if allow_nan else refuse
    return json.JSONDecoder(object_pairs_hook=unlike, parse_constant=constants)


@contextmanager
def _json_of(where: str, text: str | None = None) -> Iterator[None]:
    """Errors of Python's decoder as LabErrors; that of a syntax only where the whole text is."""
    try:
        yield
    except LabError:
        raise
    except json.JSONDecodeError as error:
        if text is None:
            raise
        at = f"line {error.lineno}, column {error.colno}"
        raise LabError(f"{where} is not JSON: {error.msg} in {at}. Is it complete?") from None
    except RecursionError:
        raise LabError(f"{where} is JSON that is nested too deeply to be read.") from None
    except ValueError:  # what else Python's reader refuses
        most = sys.get_int_max_str_digits()
        raise LabError(
            f"{where} is JSON that cannot be read: it has a number of more than {most:,} digits."
        ) from None


def json_hash(value: Any, digits: int = 16) -> str:
    """The first digits of the SHA-256 of a value as JSON with sorted names."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:digits]


def json_kind(value: Any) -> str:
    """What JSON calls a value: object, list, string, number, boolean or null."""
    kinds = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return kinds.get(type(value), "number")


def checked_fields(made: T, where: str) -> T:
    """A dataclass that was made of what a file holds, if every field is of the type it declares.

    Raises LabError that names the first field that is not; numbers may be whole where a float is
    declared.
    """
    for name, hint in _hints(type(made)).items():
        value = getattr(made, name)
        if not _is_a(value, hint):
            raise LabError(f"{where}: {name!r} should be {_spelt(hint)}, got {value!r:.60}.")
    return made


@lru_cache(maxsize=64)
def _hints(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {one.name: hints[one.name] for one in fields(cls)}


def _is_a(value: Any, hint: Any) -> bool:
    kind, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if kind in (Union, UnionType):
        return any(_is_a(value, one) for one in inner)
    if kind is Literal:
        return value in inner
    if kind is list:
        return isinstance(value, list) and all(_is_a(one, inner[0]) for one in value)
    if kind is tuple:
        if not isinstance(value, list | tuple):
            return False
        ends = inner[1:] != (Ellipsis,)
        hints = inner if ends else inner[:1] * len(value)
        return len(value) == len(hints) and all(map(_is_a, value, hints))
    if kind in (dict, Mapping):
        return isinstance(value, dict) and all(
            _is_a(key, inner[0]) and _is_a(one, inner[1]) for key, one in value.items()
        )
    if hint in (int, float):
        allowed = int if hint is int else (int, float)
        return isinstance(value, allowed) and not isinstance(value, bool)
    if is_dataclass(hint):
        return isinstance(value, hint) and all(
            _is_a(getattr(value, name), one) for name, one in _hints(hint).items()
        )
    return isinstance(value, hint)


def _spelt(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)


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
