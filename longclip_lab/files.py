"""Files that are either whole or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
