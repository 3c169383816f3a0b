"""Long queries: what is read, what each sentence does, and how the rank improves."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from longclip_lab import models, search
from longclip_lab.errors import LabError, LabWarning
from longclip_lab.views import sentence_ranks_figure


@pytest.fixture
def index(clip, folder, cache):
    return search.index(clip, folder, cache)


@pytest.fixture
def stretched(clip, folder, cache):
    return search.index(models.stretch(clip), folder, cache)


def test_a_query_longer_than_the_context_is_warned_of(index, stretched, pairs):
    text = pairs.long[0]
    with pytest.warns(LabWarning, match=r"tiny reads 75 of the query's \d+ tokens") as caught:
        found = index.search(text)
    assert found.reading.unread
    assert text.endswith(found.reading.unread)
    assert found.reading.unread[:100] in str(caught[0].message)
    read = text.removesuffix(found.reading.unread)
    assert len(index.clip.tokenizer.tokenize(read)) == found.reading.read == 75
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert stretched.search(text).reading.whole
        assert index.search(pairs.short[0]).reading.whole
        assert not index.search(text, warn=False).reading.whole


def test_what_is_not_read_changes_nothing(index, pairs):
    read = index.search(pairs.long[0], warn=False)
    lie = pairs.long[0].removesuffix(read.reading.unread) + " a green tree in a desert." * 9
    other = index.search(lie, warn=False)
    assert other.names == read.names
    assert other.scores == pytest.approx(read.scores, abs=1e-6)


def test_leaving_a_sentence_out_is_searching_without_it(stretched, pairs):
    text = ". ".join(pairs.long[1].split(". ")[:3]) + "."
    found = stretched.search(text, top=3, explain=True)
    assert len(found.owed.sentences) == 3
    assert [text[start:end] for start, end in found.owed.spans] == list(found.owed.sentences)
    for left_out in range(3):
        rest = " ".join(s for n, s in enumerate(found.owed.sentences) if n != left_out)
        scores_N = stretched.scores(rest)[0]
        for hit, name in enumerate(found.names):
            drop = found.scores[hit] - scores_N[stretched.row(name)]
            assert found.owed.drops[hit, left_out] == pytest.approx(drop, abs=1e-5)
            assert found.owed.ranks[hit, left_out] == stretched.rank(rest, name)


def test_a_sentence_that_is_not_read_is_owed_nothing(index, stretched, pairs):
    short, whole = (
        one.search(pairs.long[0], explain=True, warn=False).owed for one in (index, stretched)
    )
    assert len(short.sentences) < len(whole.sentences)
    assert whole.sentences[: len(short.sentences) - 1] == short.sentences[:-1]


def test_ranks_by_sentence_are_ranks_of_begun_queries(index, stretched, pairs):
    names = list(index.names)
    texts = [pairs.long[0], pairs.long[5]]
    wanted = [names[0], names[5]]
    result = search.ranks_by_sentence(stretched, texts, wanted)
    first = pairs.long[5].split(". ")[0] + "."
    assert result.ranks[1, 0] == stretched.rank(first, wanted[1])
    assert result.ranks[0, -1] == stretched.rank(texts[0], wanted[0])
    assert result.whole.all()
    cut = search.ranks_by_sentence(index, texts, wanted)
    assert cut.whole[:, 0].all()
    assert not cut.whole[:, -1].any()
    np.testing.assert_array_equal(cut.ranks[:, 0], result.ranks[:, 0])


def test_medians_and_shares_of_known_ranks():
    ranks = np.array([[9, 1], [7, 1], [5, 2], [3, 3], [1, 1]])
    known = search.SentenceRanks("made up", 10, ranks, np.ones_like(ranks, dtype=bool))
    assert known.median(1).value == 5
    assert known.median(1).low <= 5 <= known.median(1).high
    assert known.median(2).value == 1
    assert known.first(2).value == pytest.approx(0.6)
    assert known.first(1, places=5).value == pytest.approx(0.6)
    assert known.better(2, known, others=1).value == pytest.approx(0.6)  # 3 better, 2 level
    assert known.better(1, known).value == 0


def test_equal_scores_count_as_ahead(clip, folder, cache, pairs):
    (folder / "twin.png").write_bytes((folder / "00.png").read_bytes())
    index = search.index(clip, folder, cache)
    assert index.rank(pairs.short[0], "00.png") == index.rank(pairs.short[0], "twin.png") == 2


def test_ranks_by_sentence_need_a_picture_for_every_text(index, pairs):
    with pytest.raises(LabError, match="2 texts and 1 names"):
        search.ranks_by_sentence(index, pairs.long[:2], ["00.png"])
    with pytest.raises(LabError, match="at least one sentence"):
        search.ranks_by_sentence(index, [" "], ["00.png"])


def test_words_that_the_model_lacks(clip):
    with pytest.warns(LabWarning, match="left out of the query: dog, sofa"):
        assert search.readable_query(clip, "A dog and a red dog sofa.") == "A and a red ."
    assert search.readable_query(clip, "A red boat.") == "A red boat."
    with pytest.raises(LabError, match="none of 'dogs, sofas!'"):
        search.readable_query(clip, "dogs, sofas!")


def test_any_picture_can_be_asked_what_it_owes(stretched, pairs):
    found = stretched.search(pairs.long[2], top=3, explain=True)
    asked = stretched.owed(pairs.long[2], found.names[1:])
    np.testing.assert_allclose(asked.drops, found.owed.drops[1:], atol=1e-6)
    assert asked.most(0) == found.owed.most(1)


def test_the_figure_says_what_the_paragraph_finds():
    ranks = np.array([[9, 1], [7, 1], [1, 2], [3, 1]])
    one = search.SentenceRanks("one", 10, ranks, np.array([[True, False]] * 4))
    two = search.SentenceRanks("two", 10, ranks[:, ::-1], np.ones((4, 2), dtype=bool))
    title = sentence_ranks_figure({"one": one, "two": two}).layout.title.text
    assert "one 25%\u00a0→\u00a075%" in title.replace("<br>", " ")
    assert "two 75%\u00a0→\u00a025%" in title.replace("<br>", " ")
    curve = one.plot(places=3).data[-1]
    assert list(curve.y) == [50, 100]
    assert list(curve.marker.symbol) == ["circle", "circle-open"]
    shorter = search.SentenceRanks("three", 10, ranks[:, :1], ranks[:, :1] > 0)
    with pytest.raises(LabError, match="of the same queries"):
        sentence_ranks_figure({"one": one, "three": shorter})
