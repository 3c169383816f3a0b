"""Sentences scored against their picture, and captions without the lowest."""

from __future__ import annotations

import pytest
from sklearn.metrics import auc as area_under

from longclip_lab import models, world
from longclip_lab.errors import LabError
from longclip_lab.probing import drop_lowest, pair_scores, sentence_scores


@pytest.fixture(scope="module")
def lying():
    return world.pairs(24, hallucination=0.1)


@pytest.fixture(scope="module")
def clip():
    return models.load("tiny")


@pytest.fixture(scope="module")
def found(clip, lying):
    return sentence_scores(clip, lying.images, lying.long_captions, lying.scenes)


def test_every_sentence_about_a_thing_has_its_cosine(clip, lying, found):
    assert len(found) == sum(len(scene.things) for scene in lying.scenes)
    i, number = found.caption[5], found.sentence[5]
    sentence = lying.long_captions[i].sentences[number]
    same = [sentence.text]
    alone = pair_scores(clip, lying.images[i : i + 1], same, same)
    assert found.cosines[5] == pytest.approx(alone.true[0], abs=1e-5)
    assert found.lies[5] == sum(not fact.true for fact in sentence.facts)
    assert found.size[5] == lying.scenes[i].things[sentence.thing].size


def test_the_area_is_the_share_of_pairs_in_the_right_order(found):
    true, lies = found.cosines[found.lies == 0], found.cosines[found.lies > 0]
    area = found.auc(rounds=50)
    assert area.value == pytest.approx((true[:, None] > lies).mean())
    assert area.low < area.value < area.high
    lies_kept, true_kept = found.roc()
    assert area_under(lies_kept, true_kept) == pytest.approx(area.value)
    large = found.of("large")
    assert set(large.size) == {"large"}
    assert len(large) == (found.size == "large").sum()


def test_the_lowest_sentences_go_and_nothing_else(lying, found):
    texts, kept = drop_lowest(lying.long_captions, found, 0.25)
    assert (~kept).sum() == round(0.25 * len(found))
    assert found.cosines[~kept].max() <= found.cosines[kept].min()
    for i, (text, caption) in enumerate(zip(texts, lying.long_captions, strict=True)):
        gone = set(found.sentence[(found.caption == i) & ~kept])
        sentences = [s.text for number, s in enumerate(caption.sentences) if number not in gone]
        assert text == " ".join(sentences)
        assert caption.sentences[0].text in text
    assert drop_lowest(lying.long_captions, found, 0)[0] == lying.long
    honest = drop_lowest(lying.long_captions, found, 0.3, by=-found.lies)[1]
    assert found.lies[honest].mean() < found.lies.mean()


def test_bad_input_is_refused(clip, lying, found):
    with pytest.raises(LabError, match="24 pictures"):
        sentence_scores(clip, lying.images, lying.long_captions[:2], lying.scenes)
    with pytest.raises(LabError, match="share"):
        drop_lowest(lying.long_captions, found, 2)
    with pytest.raises(LabError, match="huge"):
        found.of("huge")
    honest = world.pairs(2)
    with pytest.raises(LabError, match="both"):
        sentence_scores(clip, honest.images, honest.long_captions, honest.scenes).auc()
