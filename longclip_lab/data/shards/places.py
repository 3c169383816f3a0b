"""Where shards lie: a folder, a bucket or a web server, read from front to back.

Everything but http goes through fsspec, with the package that it names for a kind of bucket (s3fs,
gcsfs). A web server is read by one plain request a file: that needs neither another package nor the
many small requests of a file that can be read anywhere.
"""

from __future__ import annotations

import asyncio
import http.client
import io
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

from longclip_lab.errors import LabError

ATTEMPTS = 4
PAUSE = 1.0
"""Seconds before a broken connection is taken up again; twice as many each time."""
BLOCK = 2**23
"""Bytes that are asked of a bucket at a time."""
TIMEOUT = 60.0
_BROKEN_OFF = (OSError, http.client.HTTPException, asyncio.TimeoutError)
_HOPELESS = (PermissionError, IsADirectoryError)


class MissingError(LabError):
    """There is no such file."""


class Stream:
    """A file that is read once, from byte `position` to its last.

    A connection that breaks off is taken up where it broke: what a network lost for a moment is no
    damage. Raises LabError if the file cannot be opened or does not come back.
    """

    def __init__(self, url: str, position: int = 0):
        self.url, self.position, self.size = url, position, None
        self.file: Any = None

    def read(self, count: int = -1) -> bytes:
        """At most `count` bytes; none at the end."""
        problem = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(PAUSE * 2 ** (attempt - 1))
            try:
                if self.file is None:
                    self.file, self.size = _opened(self.url, self.position)
                content = self.file.read(count)
            except (FileNotFoundError, NotADirectoryError) as error:
                raise MissingError(f"{self.url} cannot be read: {_said(error)}.") from None
            except _HOPELESS as error:
                raise LabError(f"{self.url} cannot be read: {_said(error)}.") from None
            except _BROKEN_OFF as error:
                problem = _said(error)
            else:
                self.position += len(content)
                if content or count == 0 or self.size is None or self.position >= self.size:
                    return content
                problem = f"it ended after {self.position} of {self.size} bytes"
            self.close()
        raise LabError(
            f"{self.url} cannot be read on, tried {ATTEMPTS} times: {problem}. A run goes on from "
            "its last checkpoint with resume=True (--resume)."
        )

    def close(self) -> None:
        """Let go of the file."""
        if self.file is not None:
            self.file.close()
            self.file = None


def joined(url: str, name: str) -> str:
    """The address of a file or folder below `url`."""
    return f"{url.rstrip('/')}/{name}"


def content_of(url: str) -> bytes | None:
    """A whole small file, or None if there is none. Raises LabError as `Stream` does."""
    stream, parts = Stream(url), []
    try:
        while part := stream.read():
            parts.append(part)
    except MissingError:
        return None
    finally:
        stream.close()
    return b"".join(parts)


def folders_below(url: str) -> list[str]:
    """The names of the folders in a folder, sorted; none where there is no listing (http)."""
    if _is_web(url):
        return []
    system, path = _system(url)
    if not system.isdir(path):
        return []
    entries = system.ls(path, detail=True)
    return sorted(
        Path(entry["name"].rstrip("/")).name for entry in entries if entry["type"] == "directory"
    )


def _opened(url: str, start: int) -> tuple[BinaryIO, int | None]:
    """The file from byte `start` on, and its whole size where that is said."""
    if not _is_web(url):
        system, path = _system(url)
        file = system.open(path, "rb", block_size=BLOCK)
        if start:
            file.seek(start)
        return file, system.size(path)
    headers = {"Range": f"bytes={start}-"} if start else {}
    try:
        request = urllib.request.Request(url, headers=headers)
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return io.BytesIO(), start  # the file has ended before
        if error.code in (404, 410):
            raise FileNotFoundError(str(error)) from None
        if error.code in (401, 403):
            raise PermissionError(str(error)) from None
        raise
    told = response.headers.get("Content-Length")
    if start and response.status != http.client.PARTIAL_CONTENT:
        # A server without ranges begins again.
        while start and (skipped := response.read(min(start, BLOCK))):
            start -= len(skipped)
        return response, None if told is None else int(told)
    return response, None if told is None else start + int(told)


def _system(url: str) -> tuple[Any, str]:
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise LabError(f"{url} needs another package: {error}.") from None
    except ValueError as error:
        raise LabError(f"{url} is no address that fsspec knows: {error}.") from None


def _is_web(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__
