"""What protocols say: complete, as published, telling each other apart, and as in the book."""

from __future__ import annotations

import importlib.util
import json
import string
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longclip_lab.data import PROTOCOLS, get_protocol
from longclip_lab.data.benchmarks import differing_facts
from longclip_lab.data.benchmarks.catalogue import PROCESSING, SUBCAPTIONS, class_names
from longclip_lab.data.benchmarks.readers import READERS
from longclip_lab.errors import LabError
from longclip_lab.text import split_subcaptions

NAMED = {
    *("urban1k", "urban200", "sharegpt4v-1k", "sharegpt4v-10k", "dci-full", "long-dci"),
    *("dci-test", "iiw", "docci", "coco-val2017-first5", "coco-karpathy-5k", "flickr30k-1k"),
    *("flickr30k-31k", "imagenet", "imagenet-v2", "imagenet-o", "cifar10", "cifar100"),
    *("cifar10-own", "cifar100-own", "world/long-retrieval", "world/short-retrieval"),
    *("world/kind", "world/colour"),
}


def test_the_names():
    assert set(PROTOCOLS) == NAMED


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=lambda protocol: protocol.name)
def test_every_protocol_says_what_decides_a_score(protocol):
    for fact in ("about", "images", "texts", "split", "text_field", "tie", "preprocess", "licence"):
        assert getattr(protocol, fact), fact
    assert protocol.users
    assert protocol.get
    assert protocol.sources
    assert protocol.text_processing in PROCESSING
    assert protocol.reader == "drawn" or (protocol.reader in READERS and protocol.folders)
    json.dumps(protocol.facts())


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=lambda protocol: protocol.name)
def test_numbers_go_together(protocol):
    if protocol.task == "classification":
        classes = protocol.options.get("classes", len(protocol.class_names))
        assert protocol.num_texts == classes * len(protocol.templates)
        assert all(template.count("{}") == 1 for template in protocol.templates)
    elif protocol.texts_per_image:
        assert protocol.num_texts == protocol.num_images * protocol.texts_per_image


COUNTS = {  # LoTLIP, Table 1; field counts of DOCCI's page and of COCO's and Flickr30k's files
    "dci-full": (7805, 7805),
    "iiw": (612, 612),
    "sharegpt4v-1k": (1000, 1000),
    "sharegpt4v-10k": (10_000, 10_000),
    "flickr30k-1k": (1000, 5000),
    "long-dci": (7602, 7602),
    "docci": (5000, 5000),
    "coco-val2017-first5": (5000, 25_000),
    "coco-karpathy-5k": (5000, 25_010),
    "flickr30k-31k": (31_783, 158_915),
}


def test_published_counts():
    counts = {name: (PROTOCOLS[name].num_images, PROTOCOLS[name].num_texts) for name in COUNTS}
    assert counts == COUNTS


@pytest.mark.parametrize(
    ("one", "other", "difference"),
    [
        ("flickr30k-1k", "flickr30k-31k", "num images: 1,000 against 31,783"),
        ("coco-val2017-first5", "coco-karpathy-5k", "split: val2017 against test"),
        ("dci-full", "long-dci", "num images: 7,805 against 7,602"),
        ("cifar10", "cifar10-own", "templates: 80 ('a bad photo of a {}.' ...) against 18"),
        ("sharegpt4v-1k", "sharegpt4v-10k", "text processing: line breaks as blanks against sub-"),
    ],
)
def test_what_papers_call_by_one_name_is_told_apart(one, other, difference):
    told = get_protocol(one).differences(get_protocol(other))
    assert any(sentence.startswith(difference) for sentence in told)


def test_facts_from_a_record_are_compared_as_protocols_are():
    protocol = get_protocol("urban1k")
    read_back = json.loads(json.dumps(protocol.facts()))
    assert differing_facts(read_back, protocol.facts()) == []
    assert differing_facts(read_back, replace(protocol, about="Other words.").facts()) == []
    other = replace(protocol, text_processing="as written").facts()
    assert differing_facts(read_back, other) == ["text processing: first line against as written"]


def test_who_trained_on_sharegpt4v_has_seen_these():
    seen = [name for name, one in PROTOCOLS.items() if "sharegpt4v" in one.contaminated_by]
    assert "sharegpt4v-10k" in seen
    assert "sharegpt4v-1k" not in seen  # Long-CLIP's training leaves it out
    assert PROTOCOLS["sharegpt4v-1k"].contaminated_by == ("sharegpt4v/all", "sharegpt4v/val")


def test_class_names_of_cifar100_are_sorted_as_its_labels_are():
    assert list(class_names("cifar100")) == sorted(class_names("cifar100"))
    assert len(set(class_names("cifar100"))) == 100
    official = get_protocol("cifar100").class_names
    assert official[1] == "aquarium_fish"
    assert official[91] == "trout"


def test_unknown_prompts_are_told():
    with pytest.raises(LabError, match="Did you mean cifar10"):
        class_names("cifar1")


@given(st.text(alphabet=string.ascii_letters + " .\n", max_size=60))
def test_joined_subcaptions_are_split_as_before(text):
    joined = PROCESSING[SUBCAPTIONS](text)
    assert split_subcaptions(joined) == split_subcaptions(text)
    assert PROCESSING[SUBCAPTIONS](joined) == joined


def test_the_page_is_up_to_date():
    book = Path(__file__).parents[3] / "book"
    spec = importlib.util.spec_from_file_location(
        "update_benchmarks", book / "update_benchmarks.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = module.PAGE.read_text(encoding="utf-8")
    assert module.page_block() in page, "run python book/update_benchmarks.py"
    assert all(f"### {name}\n" in page for name in PROTOCOLS)
