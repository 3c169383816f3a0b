"""LongCLIPScore against its formula, alone and in two processes."""

from __future__ import annotations

import sys
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from longclip_lab import evaluation, models, world
from longclip_lab.errors import LabError, LabWarning
from longclip_lab.evaluation import LongCLIPScore
from tests import processes


@pytest.fixture(scope="module")
def clip():
    return models.load("tiny")


@pytest.fixture(scope="module")
def pairs():
    return world.pairs(12, seed=3)


def literal(clip, images, texts) -> float:
    """One pair at a time, as the formula reads."""
    scores = []
    for index, text in enumerate(texts):
        with torch.no_grad():
            image = clip.encode_image(models.pixels(clip, images[index : index + 1]))[0]
            words = clip.encode_text(clip.tokenize([text]).ids_BT)[0]
        cosine = image @ words / (image.norm() * words.norm())
        scores.append(100 * max(cosine.item(), 0))
    return sum(scores) / len(scores)


def test_is_the_formula(clip, pairs):
    metric = LongCLIPScore(clip)
    texts = [*pairs.short[:6], *pairs.short[6:][::-1]]  # some of the wrong picture
    cosines = F.cosine_similarity(
        models.encode_images(clip, pairs.images), models.encode_texts(clip, texts).features_ND
    )
    assert (cosines < 0).any()  # else the clamp would not be tested
    assert metric(pairs.images, texts).item() == pytest.approx(literal(clip, pairs.images, texts))
    metric.reset()
    for start in range(0, 12, 5):
        metric.update(pairs.images[start : start + 5], texts[start : start + 5])
    assert metric.compute().item() == pytest.approx(literal(clip, pairs.images, texts))


def test_a_longer_model_reads_on(clip, pairs):
    short, long = LongCLIPScore(clip), LongCLIPScore(models.stretch(clip))
    with pytest.warns(LabWarning, match=r"12 of 12 texts are not read whole by tiny \(77 tokens\)"):
        short.update(pairs.images, pairs.long)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        long.update(pairs.images, pairs.long)
    assert (short.num_truncated, long.num_truncated) == (12, 0)
    assert short.compute() != long.compute()


def test_two_metrics_become_one(clip, pairs):
    one, other, whole = (LongCLIPScore(clip) for _ in range(3))
    one.update(pairs.images[:3], pairs.short[:3])
    other.update(pairs.images[3:], pairs.short[3:])
    whole.update(pairs.images, pairs.short)
    one.merge_state(other)
    assert one.compute().item() == pytest.approx(whole.compute().item())


def score_in_the_other_process(meeting, out):
    dist.init_process_group("gloo", init_method=meeting, rank=1, world_size=2)
    pairs, metric = world.pairs(12, seed=3), LongCLIPScore(models.load("tiny"))
    metric.update(pairs.images[5:], pairs.short[5:])
    out.write_text(str(metric.compute().item()))


def test_two_processes_give_the_score_of_one(clip, pairs, tmp_path):
    meeting = f"file://{tmp_path / 'meeting'}"
    other = processes.start(score_in_the_other_process, meeting, tmp_path / "score")
    dist.init_process_group("gloo", init_method=meeting, rank=0, world_size=2)
    try:
        metric = LongCLIPScore(clip)
        metric.update(pairs.images[:5], pairs.short[:5])
        scores = [metric.compute().item()]
        other.join(120)
        scores.append(float((tmp_path / "score").read_text()))
    finally:
        other.kill()
        dist.destroy_process_group()
    assert scores == pytest.approx([literal(clip, pairs.images, pairs.short)] * 2)


def test_the_model_stays_out_of_the_metrics_state(clip):
    metric = LongCLIPScore(clip)
    assert not list(metric.parameters())
    assert not metric.state_dict()


@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")  # torchmetrics' own
def test_bad_input(clip, pairs):
    metric = LongCLIPScore(clip)
    with pytest.raises(LabError, match="no pictures and texts yet"):
        metric.compute()
    with pytest.raises(LabError, match="12 pictures and 1 texts"):
        metric.update(pairs.images, "a boat.")
    assert metric.num_truncated == 0


def test_without_torchmetrics_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.delitem(sys.modules, "longclip_lab.evaluation.long_clip_score")
    with pytest.raises(LabError, match=r"pip install 'longclip-lab\[metrics\]'"):
        _ = evaluation.LongCLIPScore
