"""Give executed lessons to the book's cache, so that the book is built from what was tested.

python book/cache_lessons.py book/_executed/*.ipynb
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn

CACHE = Path(__file__).parent / "_build" / ".jupyter_cache"


def main(paths: list[str]) -> None:
    """Cache each executed notebook, replacing what an older run left for the same code."""
    cache = get_cache(CACHE)
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            # nbmake's times; the cache knows a lesson by its code and its cells' metadata
            cell.metadata.pop("execution", None)
        bundle = CacheBundleIn(notebook, path)
        cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)


if __name__ == "__main__":
    main(sys.argv[1:])
