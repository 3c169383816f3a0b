"""A few pictures as files and drawn, and what is done to shards behind their back."""

from __future__ import annotations

import tarfile

import pytest
from PIL import Image

from longclip_lab import world
from longclip_lab.data import Pairs


@pytest.fixture(scope="session")
def drawn():
    return world.pairs(30, seed=5)


@pytest.fixture(scope="session")
def on_disk(drawn, tmp_path_factory):
    """The same pictures as JPEG, PNG and WebP files in two folders."""
    home = tmp_path_factory.mktemp("pictures")
    paths = []
    for index, image in enumerate(drawn.images):
        suffix = ("jpeg", "png", "webp", "JPG")[index % 4]
        paths.append(home / f"part{index % 2}" / f"a.{index}.{suffix}")
        paths[-1].parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(paths[-1])
    source = {"dataset": "files", "hash": "1"}
    captioners = [
        {"a": long, "b": short} for long, short in zip(drawn.long, drawn.short, strict=True)
    ]
    return Pairs("files", paths, drawn.short, drawn.long, drawn.captions, {}, source, captioners)


@pytest.fixture(scope="session")
def flip():
    """Turns a byte of a pair's picture in a tar."""

    def run(path, key, at=0.5):
        with tarfile.open(path) as tar:
            (info,) = [
                one for one in tar if one.name.startswith(f"{key}.") and "json" not in one.name
            ]
        content = bytearray(path.read_bytes())
        content[info.offset_data + int(at * info.size)] ^= 0xFF
        path.write_bytes(content)

    return run
