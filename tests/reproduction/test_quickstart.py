"""The quickstart, end to end on small sizes, and the bundled models it stands on."""

from __future__ import annotations

import json

import pytest

from longclip_lab import world
from longclip_lab.data.benchmarks import load as drawn
from longclip_lab.evaluation import evaluate
from longclip_lab.models import encode_images, encode_texts, load
from longclip_lab.reproduction import quickstart

POOL = 250
"""Pictures that are searched: the lesson has 1,000."""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("quickstart")
    sizes = quickstart.Sizes(
        probed_pairs=40, questions=60, training_pairs=80, steps=2, batch_size=40, warmup_steps=1
    )
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(drawn, "POOL", POOL)
        for pool in (drawn.drawn_pairs, drawn.drawn_objects):
            pool.cache_clear()
        results = quickstart.run(out, progress=False, announce=said.append, sizes=sizes)
    for pool in (drawn.drawn_pairs, drawn.drawn_objects):
        pool.cache_clear()
    return results, out, said


def test_every_model_of_the_lesson_has_its_row(found):
    results, _, said = found
    labels = [row.label for row in results.rows]
    assert labels == [*quickstart.STRETCHINGS, *quickstart.FINE_TUNINGS]
    assert len(said) == 4
    assert len(results.table()) == len(labels)


def test_only_the_model_that_was_not_stretched_cuts_long_captions(found):
    results, _, _ = found
    cut = {row.label: row.truncated for row in results.rows}
    assert cut.pop("not stretched") == POOL
    assert set(cut.values()) == {0}


def test_short_scores_of_kps_are_those_of_the_model_it_keeps(found):
    """Short captions end before position 20, which KPS keeps."""
    results, _, _ = found
    rows = {row.label: row for row in results.rows}
    assert rows["KPS"].short_i2t == rows["not stretched"].short_i2t
    assert rows["KPS"].kind == rows["not stretched"].kind
    assert rows["linear"].short_i2t.value < rows["KPS"].short_i2t.low


def test_files_hold_what_was_found(found):
    results, out, _ = found
    written = json.loads((out / "results.json").read_text())
    assert written == json.loads(json.dumps(results.to_dict()))
    report = (out / "report.html").read_text()
    assert len(report) < 3e6
    assert "PCM" in report


def test_bundled_tiny_model_scores_as_its_card_says():
    clip = load("tiny")
    record = evaluate(clip, "world/short-retrieval").records[0]
    assert record.scores["i2t R@1"].value > 0.8
    assert clip.context_length == 77
    again = load("tiny")
    pairs = world.pairs(4)
    assert (encode_images(clip, pairs.images) == encode_images(again, pairs.images)).all()
    texts = encode_texts(clip, pairs.long)
    assert texts.num_truncated == 4
