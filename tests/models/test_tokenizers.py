"""The tokenizer that belongs to a text tower."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import longclip_lab.text
from longclip_lab.errors import LabError
from longclip_lab.models.clip import (
    HubTokenizer,
    tokenizer_for,
    tokenizer_from_record,
    tokenizer_record,
)
from longclip_lab.text import get_tokenizer

TEXTS = ["a red boat", "two dogs run over wet grass near the old stone house at 7.30 in the rain"]


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory) -> str:
    """BERT's tokenizer in the files of transformers, in place of a page on the hub."""
    folder = tmp_path_factory.mktemp("tokenizer")
    words = Path(longclip_lab.text.__file__).parent / "vocabularies" / "bert-base-uncased.txt"
    shutil.copy(words, folder / "vocab.txt")
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return str(folder)


def test_hub_tokenizer_equals_the_labs_own(hub_folder):
    hub, own = HubTokenizer({"hf_tokenizer_name": hub_folder}), get_tokenizer("bert")
    assert (hub.vocab_size, hub.start_id, hub.end_id, hub.pad_id) == (
        own.vocab_size,
        own.start_id,
        own.end_id,
        own.pad_id,
    )
    for length in (10, 40):
        ours, theirs = own.encode_batch(TEXTS, length), hub.encode_batch(TEXTS, length)
        for field in ("ids", "lengths", "full_lengths", "truncated"):
            assert np.array_equal(getattr(theirs, field), getattr(ours, field)), (length, field)
        assert theirs.num_truncated == ours.num_truncated
    with pytest.raises(LabError, match="'head', only"):
        hub.encode_batch(TEXTS, 10, policy="drop")


def test_records_bring_a_tokenizer_back(hub_folder):
    hub = HubTokenizer({"hf_tokenizer_name": hub_folder})
    back = tokenizer_from_record(tokenizer_record(hub))
    assert np.array_equal(back.encode_batch(TEXTS, 30).ids, hub.encode_batch(TEXTS, 30).ids)
    assert tokenizer_from_record(tokenizer_record(get_tokenizer("world"))).name == "world"


@pytest.mark.parametrize(
    ("text_cfg", "name"),
    [({}, "clip"), ({"hf_tokenizer_name": "bert-base-uncased"}, "bert")],
)
def test_configs_of_open_clip(text_cfg, name):
    assert tokenizer_for("some-model", {"text_cfg": text_cfg}).name == name


def test_tokenizers_that_cannot_be_had(tmp_path):
    with pytest.raises(LabError, match="could not be fetched"):
        HubTokenizer({"hf_tokenizer_name": str(tmp_path)})
    with pytest.raises(LabError, match="in a way of its own"):
        tokenizer_for("CLIPA", {"text_cfg": {"tokenizer_kwargs": {"reduction_mask": "syntax"}}})
