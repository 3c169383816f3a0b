"""Every published layout, whole: what is opened, and what a record can say of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from torchvision.datasets import CIFAR10, CIFAR100

from longclip_lab import world
from longclip_lab.data import PROTOCOLS, get_protocol, open_benchmark, verify
from longclip_lab.data.layouts import read_rows
from longclip_lab.data.validation import check_image
from longclip_lab.errors import LabError


def test_a_whole_benchmark_opens(layout, root):
    benchmark = open_benchmark(layout.protocol, root)
    assert sorted(path.name for path in benchmark.images) == ["1.jpg", "10.jpg", "2.jpg"]
    assert all(not check_image(path).defect for path in benchmark.images)
    assert not benchmark.partial
    assert benchmark.skipped == {}
    assert len(benchmark.texts) == layout.protocol.num_texts
    json.dumps(benchmark.source)
    assert str(root) not in json.dumps(benchmark.source)


def test_texts_belong_to_their_pictures(layout, root):
    benchmark = open_benchmark(layout.protocol, root)
    written = {
        name: [layout.protocol.process(text) for text in texts] for name, texts in layout.entries
    }
    opened: dict[str, list[str]] = {}
    for text, image in zip(benchmark.texts, benchmark.image_of_text, strict=True):
        opened.setdefault(benchmark.images[image].name, []).append(text)
    assert opened == written


def test_a_whole_benchmark_is_verified(layout, root):
    result = verify(layout.protocol, root)
    assert result.ok
    assert (result.missing, result.broken) == ([], [])
    assert "3 of 3 pictures can be used" in result.there


def test_it_is_found_below_a_common_root(layout, tmp_path):
    layout.write(tmp_path / layout.protocol.folders[0], layout.entries)
    (tmp_path / "other").mkdir()
    assert len(open_benchmark(layout.protocol, tmp_path)) == 3


def test_the_hash_is_of_the_content_and_not_of_the_place(layout, tmp_path):
    layout.write(tmp_path / "one", layout.entries)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    first = open_benchmark(layout.protocol, tmp_path / "one").source["hash"]
    assert open_benchmark(layout.protocol, tmp_path / "two").source["hash"] == first
    changed = layout.picture(tmp_path / "two")
    shutil.copy(layout.picture(tmp_path / "two", 1), changed)
    assert open_benchmark(layout.protocol, tmp_path / "two").source["hash"] != first


PROCESSED = {  # of "A red boat. It is 3.5 m long.\nA lake, 0.", as each code hands it on
    "urban1k": "A red boat. It is 3.5 m long.",
    "sharegpt4v-1k": "A red boat. It is 3.5 m long. A lake, 0.",
    "dci-full": "A red boat. It is 3. 5 m long. A lake, 0",
    "long-dci": "A red boat. It is 3.5 m long.\nA lake, 0.",
    "iiw": "A red boat. It is 3. 5 m long. A lake, 0",
    "docci": "A red boat. It is 3.5 m long.\nA lake, 0.",
}


@pytest.mark.layouts(*PROCESSED)
def test_texts_are_read_as_the_official_code_reads_them(layout, root):
    assert open_benchmark(layout.protocol, root).texts[0] == PROCESSED[layout.name]


@pytest.mark.layouts("coco-val2017-first5")
def test_of_six_captions_the_first_five_count(layout, tmp_path):
    name, texts = layout.entries[0]
    layout.write(tmp_path, [(name, [*texts, "A sixth."]), *layout.entries[1:]])
    benchmark = open_benchmark(layout.protocol, tmp_path)
    assert not benchmark.partial
    assert "A sixth." not in benchmark.texts


@pytest.mark.layouts("dci-full")
def test_the_test_split_of_dci_under_either_count(layout, root):
    protocol = replace(get_protocol("dci-test"), also_counted=(1,))
    benchmark = open_benchmark(protocol, root)
    assert [path.name for path in benchmark.images] == ["10.jpg"]
    assert benchmark.texts == [layout.entries[2][1][0]]
    assert not benchmark.partial
    with pytest.raises(LabError, match="1 of 112 pictures"):
        open_benchmark(replace(protocol, also_counted=()), root)


@pytest.mark.layouts("sharegpt4v-1k")
def test_no_more_is_read_of_a_large_list_than_is_needed(layout, root):
    path = root / layout.listing
    path.write_text(path.read_text()[:-40])  # the entry behind the benchmark's is cut off
    assert len(open_benchmark(layout.protocol, root)) == 3


def test_the_drawn_world_needs_no_folder():
    benchmark = open_benchmark("world/long-retrieval")
    first = world.pairs(12, seed=world.TEST_SEED, siblings=4)  # a larger set begins with it
    assert np.array_equal(benchmark.images[:12], first.images)
    assert benchmark.texts[:12] == first.long
    assert len(benchmark) == benchmark.protocol.num_images


def test_all_classes_of_imagenet(tmp_path, write_folders):
    from timm.data import ImageNetInfo

    names = ImageNetInfo("imagenet-1k").label_names()
    write_folders(tmp_path / "val", dict.fromkeys(names, 1))
    protocol = replace(get_protocol("imagenet"), num_images=1000, options={"per_class": 1})
    benchmark = open_benchmark(protocol, tmp_path, decode=False)
    assert not benchmark.partial
    hen = benchmark.labels[[path.parent.name for path in benchmark.images].index("n01514859")]
    assert benchmark.class_names[hen] == "hen"  # n01514859 is the hen in WordNet
    assert len(benchmark.templates) == 80


def test_numbered_folders_are_numbers_and_not_texts(tmp_path, write_folders):
    home = tmp_path / "imagenetv2-matched-frequency-format-val"
    write_folders(home, {"2": 1, "10": 1, "0": 1})
    benchmark = open_benchmark("imagenet-v2", tmp_path, allow_partial=True)
    folders = [path.parent.name for path in benchmark.images]
    by_folder = dict(zip(folders, benchmark.labels.tolist(), strict=True))
    assert by_folder == {"0": 0, "2": 2, "10": 10}
    assert benchmark.partial


def test_imagenet_o_has_the_classes_of_its_folders(tmp_path, write_folders):
    write_folders(tmp_path / "imagenet-o", {"n01514859": 2, "n01443537": 1})
    options = {"only_present": True, "classes": 2}
    protocol = replace(get_protocol("imagenet-o"), num_images=3, options=options)
    benchmark = open_benchmark(protocol, tmp_path)
    assert benchmark.class_names == ("goldfish", "hen")
    assert benchmark.labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "cifar10-own", "cifar100-own"])
def test_cifar_is_read_as_torchvision_reads_it(name, tmp_path, write_cifar):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
    protocol = write_cifar(tmp_path, name, pixels, [3, 0, 9, 1])
    benchmark = open_benchmark(protocol, tmp_path)
    # torchvision: the data reshaped to N, 3, 32, 32 and turned to N, 32, 32, 3
    assert np.array_equal(benchmark.images[2, :, :, 1], pixels[2].reshape(3, 32, 32)[1])
    assert benchmark.labels.tolist() == [3, 0, 9, 1]
    assert verify(protocol, tmp_path).ok
    assert len(benchmark.class_names) * len(benchmark.templates) == protocol.num_texts


def test_cifar_is_known_by_the_md5_that_torchvision_has():
    for own in ("", "-own"):
        assert PROTOCOLS[f"cifar10{own}"].options["md5"] == CIFAR10.test_list[0][1]
        assert PROTOCOLS[f"cifar100{own}"].options["md5"] == CIFAR100.test_list[0][1]


def test_a_large_list_is_read_as_json_reads_it(tmp_path):
    rows = [{"n": n, "text": 'é, ]}{[ " \\' * (n % 50)} for n in range(5000)]
    path = tmp_path / "list.json"
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    assert path.stat().st_size > 2**20  # more than is read at a time
    assert [row for _, row in read_rows(path)] == rows
