"""The views without a browser: set a control, read the answer, compare with the library's own."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image
from torch.nn import functional as F

from longclip_lab import world
from longclip_lab.errors import LabError
from longclip_lab.evaluation import retrieval
from longclip_lab.models import encode_images, encode_texts, load, stretch
from longclip_lab.objectives import primary_components, rank_meter
from longclip_lab.probing import counterfactual_probe
from longclip_lab.probing.stretching import LONG, StretchingTest
from longclip_lab.views.widgets import Components, CounterfactualBrowser, ReadingCut, Stretcher

LARGEST_STATE, LARGEST_PAGE = 1_000_000, 500_000  # bytes


@pytest.fixture(scope="module")
def clip():
    return load("tiny")


@pytest.fixture(scope="module")
def pairs():
    return world.pairs(50)


@pytest.fixture(scope="module")
def questions():
    return world.counterfactuals(40)


def shown(view) -> str:
    return re.sub(r"<[^>]*>", "", view._panel.value)


def state_size(widget) -> int:
    """Bytes of a view with all its parts, as a notebook stores them."""
    own = len(json.dumps(widget.get_state(), default=str))
    return own + sum(state_size(child) for child in getattr(widget, "children", ()))


def page_data(page: str) -> dict:
    found = re.search(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)
    return json.loads(found.group(1))


def test_the_cut_moves_the_rank_to_that_of_the_text_cut_there(clip, pairs):
    view = ReadingCut(clip, pairs, index=2)
    view.refresh()
    images = F.normalize(encode_images(clip, pairs.images), dim=1)
    words = pairs.long[2].replace(".", "").replace(",", "").split()
    for cut in (1, 4, 6):  # before any punctuation: a word is a token
        view.cut.value = cut
        text = F.normalize(encode_texts(clip, [" ".join(words[:cut])]).features_ND[0], dim=0)
        cosines = images @ text
        rank = int((cosines >= cosines[2] - 1e-6).sum())
        assert view.reading.rank == rank
        assert view.reading.found[0] == int(cosines.argmax())
        assert f"number {rank} of 50" in shown(view)
        unread = re.search(r'class="unread">(.*?)<', view._panel.value).group(1)
        assert pairs.long[2][len(view.reading.read) :].startswith(unread)


def test_the_right_picture_stays_in_front_from_the_first_cut_found(clip, pairs):
    view = ReadingCut(clip, pairs, index=1)
    view.refresh()
    ranks = []
    for cut in range(1, view.cut.max + 1):
        view.cut.value = cut
        ranks.append(view.reading.rank)
    stays = [cut for cut in range(1, len(ranks) + 1) if set(ranks[cut - 1 :]) == {1}]
    assert view.first_found == (stays[0] if stays else None)


def test_a_typed_text_is_read_and_a_chosen_picture_brings_its_caption(clip, pairs):
    view = ReadingCut(clip, pairs)
    view.refresh()
    view.choice.value = 5
    assert view.text.value == pairs.long[5]
    view.text.value = pairs.short[7]
    assert (view.cut.max, view.reading.tokens) == (len(pairs.short[7].split()) + 1,) * 2
    view.cut.value = view.cut.max
    cosines = F.normalize(encode_images(clip, pairs.images), dim=1) @ F.normalize(
        encode_texts(clip, [pairs.short[7]]).features_ND[0], dim=0
    )
    assert view.reading.rank == int((cosines >= cosines[5]).sum())
    assert view.reading.found[0] == int(cosines.argmax())


def test_what_cannot_be_read_is_said_and_the_last_answer_stays(clip, pairs):
    view = ReadingCut(clip, pairs)
    view.refresh()
    before = view._panel.value
    for text, message in (("A xylophone.", "not a word of the drawn world"), (" ", "empty text")):
        view.text.value = text
        assert message in view.error
        assert view._panel.value == before
    view.text.value = pairs.long[1]
    assert view.error == ""
    assert view._sign.value == ""


def test_a_model_with_more_positions_reads_further(pairs, clip):
    view = ReadingCut(stretch(clip), pairs, index=1, cut=100)
    view.refresh()
    assert view.cut.value == 100
    assert view.reading.cut == 100


def test_the_readers_own_pictures_and_texts(clip, tmp_path):
    texts = ["A red boat on a lake.", "A blue tree in a meadow."]
    files = []
    for number, colour in enumerate(("red", "blue")):
        files.append(tmp_path / f"{number}.png")
        Image.new("RGB", (90, 60), colour).save(files[-1])
    pictures = [Image.open(file) for file in files]
    arrays = np.stack([np.asarray(picture.resize((72, 72))) for picture in pictures])
    ranks = []
    for images in (files, pictures, arrays):
        view = ReadingCut(clip, images, texts)
        view.refresh()
        assert view.error == ""
        ranks.append(view.reading.rank)
    assert ranks[0] == ranks[1]
    with pytest.raises(LabError, match="2 pictures, 1 short and 1 long"):
        ReadingCut(clip, files, texts[:1])
    with pytest.raises(LabError, match=r"expected pairs with .images"):
        Components(clip, files)


def test_the_stretcher_measures_what_stretch_and_retrieval_say(clip, pairs):
    view = Stretcher(clip, pairs)
    view.refresh()
    assert view.scores is None
    assert "Not measured yet" in shown(view)
    view.keep.value, view.ratio.value = 30, 2
    view.measure.click()
    model = stretch(clip, keep=30, ratio=2)
    features = encode_images(clip, pairs.images), encode_texts(model, pairs.long).features_ND
    found = retrieval(*features, bootstrap=0)
    expected = (found.i2t[1].value + found.t2i[1].value) / 2
    assert view.scores.length == model.context_length == 124
    assert view.scores.score(LONG).value == pytest.approx(expected)
    assert view.scores.truncated == model.tokenize(pairs.long).num_truncated
    assert "30 positions stay, 47 are stretched to 94: 77 become 124." in shown(view)
    assert view.measure.disabled


def test_bad_combinations_are_explained(clip):
    view = Stretcher(clip)
    view.refresh()
    view.keep.value = 77
    assert "nothing would be left to stretch" in view.error
    view.keep.value, view.ratio.value = 20, 0.5
    assert "ratio must be at least 1" in view.error
    view.ratio.value = 1
    assert view.error == ""
    assert "adds no position" in shown(view)
    view.keep.value, view.ratio.value = 0, 8
    assert "the first positions move too" in shown(view)
    assert "616 positions: attention costs 64 times" in shown(view)


def test_scores_on_disk_are_those_measured(clip, pairs, tmp_path):
    test = StretchingTest(clip, pairs)
    test.grid((10, 20), (2,))
    path = test.save(tmp_path / "scores.json")
    again = StretchingTest(clip, pairs).load(path)
    assert again.measured == [(10, 2.0), (20, 2.0)]
    for key in again.measured:
        for name, hits in test[key].hits.items():
            np.testing.assert_array_equal(again[key].hits[name], hits)
    with pytest.raises(LabError, match="Measure anew"):
        StretchingTest(clip, world.pairs(10)).load(path)
    with pytest.raises(LabError, match="holds no scores"):
        StretchingTest(clip, pairs).load(tmp_path / "none.json")
    for content in ("[]", "{", "{}", '{"rows": [3], "source": 1}', "1" * 4400):
        path.write_text(content)
        with pytest.raises(LabError, match=r"scores\.json holds no scores"):
            StretchingTest(clip, pairs).load(path)


def test_k_moves_variance_error_and_ranks(clip, pairs):
    view = Components(clip, pairs, k=8, batch=48)
    view.refresh()
    full = F.normalize(encode_images(clip, pairs.images[:48]), dim=1)
    texts = encode_texts(clip, pairs.short[:48]).features_ND
    for k in (2, 8, 46):
        view.k.value = k
        coarse = primary_components(full, k)
        kept = view.kept
        assert kept.meter.variance_kept == pytest.approx(rank_meter(full, k).variance_kept)
        assert kept.error == pytest.approx(float((full - coarse).norm(dim=1).mean()), abs=1e-6)
        np.testing.assert_array_equal(kept.after, retrieval(coarse, texts, bootstrap=0).t2i_ranks)
        assert set(kept.changed) == set(np.flatnonzero(kept.before != kept.after))
        assert f"{len(kept.changed)} of 48" in shown(view)


@pytest.mark.parametrize("k", [8, 32])
def test_a_batch_of_k_plus_one_is_the_identity(clip, pairs, k):
    view = Components(clip, pairs, k=k, batch=k + 1)
    view.refresh()
    assert view.kept.meter.is_identity
    assert view.kept.error == 0
    assert "PCM does nothing here" in shown(view)
    view.batch.value = k + 2
    assert not view.kept.meter.is_identity


def test_the_browser_shows_what_the_probe_found(clip, questions):
    view = CounterfactualBrowser(clip, questions)
    view.refresh()
    probe = counterfactual_probe(clip, questions)
    assert (view.answers == "not read").tolist() == probe.unread.tolist()
    assert (view.answers == "right").sum() == (probe.margins > 0).sum()
    seen = []
    for _ in range(8):
        question = view.question
        seen.append(question.index)
        start, end, other = question.change
        assert question.true[start:end].lower() in questions.old[question.index]
        assert question.false[start:other].lower() in questions.new[question.index]
        assert question.true[:start] + question.true[end:] == (
            question.false[:start] + question.false[other:]
        )
        view.next.click()
    assert seen == list(range(8))
    view.go(100)
    assert view.next.disabled
    view.previous.click()
    assert view.question.index == len(questions) - 2


def test_filters_leave_the_questions_they_name(clip, questions):
    view = CounterfactualBrowser(clip, questions)
    view.refresh()
    view.answer.value, view.size.value = "wrong", "small"
    assert len(view.chosen)
    assert set(view.answers[view.chosen]) == {"wrong"}
    assert {questions.size[i] for i in view.chosen} == {"small"}
    view.answer.value, view.position.value = "all", (21, 40)
    assert all(21 <= questions.position[i] <= 40 for i in view.chosen)
    probe = counterfactual_probe(clip, questions)
    mask = np.isin(np.arange(len(questions)), view.chosen) & ~probe.unread
    assert f"{100 * probe.accuracy(mask).value:.1f}%" in shown(view)
    view.size.value, view.answer.value = "large", "not read"
    view.position.value = (0, 1)
    assert view.error == "No question is left: widen the filters."


def test_questions_of_ones_own_need_only_pictures_and_captions(clip, questions):
    class Own:
        images, true, false = questions.images[:6], questions.true[:6], questions.false[:6]

    view = CounterfactualBrowser(clip, Own)
    view.refresh()
    assert view.error == ""
    for i in range(6):  # "at the top left" against "at the top right" differ in their last word
        words_before = len(questions.old[i].split()) - 1
        assert 0 <= view._question(i).position - questions.position[i] <= words_before
    with pytest.raises(LabError, match=r"without .true"):
        CounterfactualBrowser(clip, world.pairs(3))


def views(clip, pairs, questions):
    return {
        "reading cut": ReadingCut(stretch(clip), pairs),
        "stretcher": Stretcher(clip, pairs).prepare((10, 20), (2, 4)),
        "components": Components(clip, pairs),
        "browser": CounterfactualBrowser(clip, questions),
    }


def test_a_notebook_stores_little_of_a_view(clip, pairs, questions):
    for name, view in views(clip, pairs, questions).items():
        view.refresh()
        assert view.error == "", name
        assert 5_000 < state_size(view) < LARGEST_STATE, name


def test_pages_without_a_kernel_are_small_and_whole(clip, pairs, questions):
    made = views(clip, pairs, questions)
    pages = {
        name: view.static(keeps=(10, 20), ratios=(2, 4)) if name == "stretcher" else view.static()
        for name, view in made.items()
    }
    for name, page in pages.items():
        assert len(page) < LARGEST_PAGE, name
        assert "data-picture" not in page.partition('<script type="application/json">')[0], name
        assert "://" not in page, name
        data = page_data(page)
        named = re.findall(r'data-picture="([^"]+)"', json.dumps(data).replace('\\"', '"'))
        assert set(named) == set(data["pictures"]), name


def test_the_page_of_a_cut_says_what_the_view_says(clip, pairs):
    view = ReadingCut(clip, pairs, index=3)
    data = page_data(view.static(states=10))
    cuts = [int(cut) for cut in data["controls"][0]]
    assert cuts[-1] == 75
    for cut, lines in zip(cuts, data["states"], strict=True):
        view.cut.value = cut
        state = "\n".join(data["lines"][line] for line in lines)
        assert f"number {view.reading.rank} of 50" in state


def test_towers_that_are_not_causal_are_read_cut_by_cut(clip, pairs, monkeypatch):
    import longclip_lab.views.widgets.reading_cut as module

    together, alone = ReadingCut(clip, pairs), ReadingCut(clip, pairs)
    together.refresh()
    monkeypatch.setattr(module, "cuts_share_states", lambda _: False)
    alone.refresh()
    for view in (together, alone):
        view.cut.value = 12
    assert alone.reading == together.reading
    assert sorted(alone._caption._known) == [1, 12, 75]
    assert sorted(together._caption._known) == list(range(1, 76))
