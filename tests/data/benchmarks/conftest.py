"""Small folders of every published layout: one writer a layout, three pictures each."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from longclip_lab.data import Protocol, get_protocol

Entries = list[tuple[str, list[str]]]
"""Pictures by bare name, each with its texts."""

TEXT = "A red boat. It is 3.5 m long.\nA lake, {}."
NAMES = ["1.jpg", "2.jpg", "10.jpg"]
ONE: Entries = [(name, [TEXT.format(i)]) for i, name in enumerate(NAMES)]
FIVE: Entries = [(name, [f"Boat {i}, {j}." for j in range(5)]) for i, name in enumerate(NAMES)]


@dataclass
class Layout:
    """How one benchmark is written small, and where things lie then."""

    name: str
    write: Callable[[Path, Entries], None]
    entries: Entries
    pictures: str
    """Folder of the picture of the first entry."""
    listing: str
    """The file that lists pictures, or the folder of the texts."""

    @property
    def protocol(self) -> Protocol:
        """The published protocol, with the small numbers."""
        texts = sum(len(of_picture) for _, of_picture in self.entries)
        return replace(get_protocol(self.name), num_images=len(self.entries), num_texts=texts)

    def picture(self, root: Path, number: int = 0) -> Path:
        return next(root.rglob(self.entries[number][0]))


def draw(path: Path) -> None:
    """A JPEG of noise, large enough that half of it is not enough; nothing outside the folder."""
    if ".." in path.parts or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = int(hashlib.md5(path.name.encode()).hexdigest()[:8], 16)
    noise = np.random.default_rng(seed).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def put(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_urban(root: Path, entries: Entries) -> None:
    for name, (text,) in entries:
        draw(root / "image" / name)
        put(root / "caption" / f"{Path(name).stem}.txt", text)


def write_coco(root: Path, entries: Entries) -> None:
    content: dict = {"images": [], "annotations": []}
    for number, (name, texts) in enumerate(entries, 1):
        draw(root / "val2017" / name)
        content["images"].append({"id": number, "file_name": name})
        content["annotations"] += [
            {"id": 100 * number + i, "image_id": number, "caption": text}
            for i, text in enumerate(texts)
        ]
    put(root / "annotations" / "captions_val2017.json", content)


def write_karpathy_coco(root: Path, entries: Entries) -> None:
    _karpathy(root, entries, "coco", {"filepath": "val2014"}, "val2014")


def write_karpathy_flickr(root: Path, entries: Entries) -> None:
    _karpathy(root, entries, "flickr30k", {}, "flickr30k-images")


def _karpathy(root: Path, entries: Entries, name: str, extra: dict, folder: str) -> None:
    for picture, _ in entries:
        draw(root / folder / picture)
    images = [
        {"filename": picture, "split": "test", "sentences": [{"raw": t} for t in texts], **extra}
        for picture, texts in entries
    ]
    other = {"filename": "7.jpg", "split": "train", "sentences": [{"raw": "A cat."}], **extra}
    put(root / f"dataset_{name}.json", {"dataset": name, "images": [other, *images]})


def write_flickr(root: Path, entries: Entries) -> None:
    for picture, _ in entries:
        draw(root / "flickr30k-images" / picture)
    put(
        root / "results_20130124.token",
        "".join(f"{name}#{i}\t{t}\n" for name, texts in entries for i, t in enumerate(texts)),
    )


def write_sharegpt4v(root: Path, entries: Entries) -> None:
    rows = []
    for name, (text,) in [*entries, ("later.jpg", ["Not in the benchmark."])]:
        image = f"sam/images/{name}"
        if name != "later.jpg":
            draw(root / image)
        turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": text}]
        rows.append({"id": name, "image": image, "conversations": turns})
    put(root / "share-captioner_coco_lcs_sam_1246k_1107.json", rows)


def write_dci(root: Path, entries: Entries) -> None:
    home = root / "densely_captioned_images"
    splits: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for number, (name, (text,)) in enumerate(entries):
        draw(home / "photos" / name)
        short, _, extra = text.partition("\n")
        row = {"image": name, "short_caption": short, "extra_caption": extra, "mask_data": {}}
        put(home / "annotations" / f"{number}.json", row)
        splits[list(splits)[number % 3]].append(f"{number}.json")
    put(home / "splits.json", splits)


def write_long_dci(root: Path, entries: Entries) -> None:
    rows = []
    for name, (text,) in entries:
        draw(root / name)
        rows.append(f'{name}\t"{text}"\n')
    put(root / "dci_long.csv", "filepath\ttitle\n" + "".join(rows))


def write_iiw(root: Path, entries: Entries) -> None:
    parts = {"DOCCI_Test": "docci", "IIW-400": "docci_aar", "DCI_Test": "dci"}
    keys = {"DOCCI_Test": "image", "IIW-400": "image/key", "DCI_Test": "image"}
    rows: dict[str, list[dict]] = {part: [] for part in parts}
    for number, (name, (text,)) in enumerate(entries):
        part = list(parts)[number % 3]
        draw(root / parts[part] / name)
        bare = name if part == "DCI_Test" else name.removesuffix(".jpg")
        rows[part].append({keys[part]: bare, "IIW": text})
    for part, of_part in rows.items():
        put(root / part / "data.jsonl", lines(of_part))


def write_docci(root: Path, entries: Entries) -> None:
    rows = [{"split": "train", "example_id": "train_1", "image_file": "t.jpg", "description": "A."}]
    for name, (text,) in entries:
        draw(root / "images" / name)
        identity = f"test_{Path(name).stem}"
        rows.append(
            {"split": "test", "example_id": identity, "image_file": name, "description": text}
        )
    put(root / "docci_descriptions.jsonlines", lines(rows))


LAYOUTS = [
    Layout("urban1k", write_urban, ONE, "image", "caption"),
    Layout(
        *("sharegpt4v-1k", write_sharegpt4v, ONE, "sam/images"),
        "share-captioner_coco_lcs_sam_1246k_1107.json",
    ),
    Layout(
        *("dci-full", write_dci, ONE, "densely_captioned_images/photos"),
        "densely_captioned_images/splits.json",
    ),
    Layout("long-dci", write_long_dci, ONE, ".", "dci_long.csv"),
    Layout("iiw", write_iiw, ONE, "docci", "DOCCI_Test/data.jsonl"),
    Layout("docci", write_docci, ONE, "images", "docci_descriptions.jsonlines"),
    Layout(
        *("coco-val2017-first5", write_coco, FIVE, "val2017"),
        "annotations/captions_val2017.json",
    ),
    Layout("coco-karpathy-5k", write_karpathy_coco, FIVE, "val2014", "dataset_coco.json"),
    Layout(
        *("flickr30k-1k", write_karpathy_flickr, FIVE, "flickr30k-images"),
        "dataset_flickr30k.json",
    ),
    Layout(
        *("flickr30k-31k", write_flickr, FIVE, "flickr30k-images"),
        "results_20130124.token",
    ),
]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "layouts(*names): the layouts a test of `layout` runs on")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `layout` runs on every layout of texts, or on those its marker names."""
    if "layout" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("layouts")
        chosen = [one for one in LAYOUTS if marker is None or one.name in marker.args]
        assert marker is None or len(chosen) == len(marker.args)
        metafunc.parametrize("layout", chosen, ids=lambda one: one.name)


@pytest.fixture
def root(layout: Layout, tmp_path: Path) -> Path:
    """The folder with the layout's pictures and texts in it."""
    layout.write(tmp_path, layout.entries)
    return tmp_path


@pytest.fixture
def write_folders() -> Callable[[Path, dict[str, int]], None]:
    """Writes folders of classes, each with so many pictures."""

    def write(root: Path, counts: dict[str, int]) -> None:
        for folder, count in counts.items():
            (root / folder).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (4, 4)).save(root / folder / f"ILSVRC2012_val_{number}.JPEG")

    return write


@pytest.fixture
def write_cifar() -> Callable[..., Protocol]:
    """Writes a test batch and returns the protocol that knows its MD5."""

    def write(root: Path, name: str, pixels: np.ndarray, labels: list[int], **more) -> Protocol:
        protocol = get_protocol(name)
        path = root / protocol.needs[0][0]
        path.parent.mkdir(parents=True)
        batch = {"data": pixels, protocol.options["labels"]: labels, **more}
        path.write_bytes(pickle.dumps(batch, protocol=2))
        digest = hashlib.md5(path.read_bytes()).hexdigest()
        options = {**protocol.options, "md5": digest}
        return replace(protocol, num_images=len(labels), options=options)

    return write
