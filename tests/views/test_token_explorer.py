"""View 1 without a browser: values are set, and what lights up is read."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from ipywidgets.embed import dependency_state, embed_data

import longclip_lab as ll
from longclip_lab.attribution import PATCH_METHODS, PatchMap, TokenMap, patch_maps, token_patches
from longclip_lab.errors import LabError
from longclip_lab.models import Clip, assemble
from longclip_lab.models.build import build_model, preprocess_card
from longclip_lab.text import get_tokenizer
from longclip_lab.views import explorer_figure
from longclip_lab.views.explorer import MATRICES, Lighting, Strip
from longclip_lab.views.widgets.token_explorer import TokenExplorer, quantised

TEXT = "A red boat lies on the snowfield. A small kite is above the tree."


@pytest.fixture(scope="module")
def clip() -> Clip:
    return ll.load("tiny")


@pytest.fixture(scope="module")
def pairs():
    return ll.world.pairs(3, seed=5)


@pytest.fixture
def explorer(clip, pairs) -> TokenExplorer:
    return ll.views.TokenExplorer(clip, pairs.images, pairs.long)


@pytest.fixture(scope="module")
def large() -> Clip:
    """A model that reads 248 tokens and looks at 14 x 14 patches, of little weight."""
    model_cfg = open_clip.get_model_config("ViT-B-16")
    model_cfg["embed_dim"] = 32
    model_cfg["vision_cfg"] |= {"layers": 1, "width": 64}
    model_cfg["text_cfg"] |= {"layers": 1, "width": 64, "heads": 1, "context_length": 248}
    torch.manual_seed(0)
    model = build_model(model_cfg)
    return assemble(model, model_cfg, get_tokenizer("clip"), preprocess_card(model), "large")


def words_of(explorer) -> list[str]:
    return [explorer.text[start:end] for start, end in explorer.scene["words"]]


def restored(answer) -> np.ndarray:
    levels = np.array(answer["scores"])
    return answer["low"] + levels / 255 * (answer["high"] - answer["low"])


def test_a_word_lights_up_the_patches_that_its_method_says(explorer, clip, pairs):
    found = explorer.light("red tree")
    (asked,) = patch_maps(clip, pairs.images[0], "red tree", method="similarity-gain")
    assert isinstance(found, PatchMap)
    np.testing.assert_allclose(found.scores, asked.scores, atol=1e-6)
    np.testing.assert_allclose(restored(explorer.answer), asked.scores.ravel(), atol=3e-3)
    assert explorer.answer["side"] == "patches"


@pytest.mark.parametrize("method", sorted({*MATRICES, *PATCH_METHODS}))
def test_every_method_lights_up_words_in_the_picture(clip, pairs, method):
    explorer = ll.views.TokenExplorer(clip, pairs.images, pairs.long, method=method)
    assert explorer.error == ""
    assert len(explorer.answer["scores"]) == 36
    assert explorer.answer["high"] > explorer.answer["low"]


@pytest.mark.parametrize("method", MATRICES)
def test_a_patch_lights_up_words_by_the_matrix(clip, pairs, method):
    explorer = ll.views.TokenExplorer(clip, pairs.images, pairs.long, method=method)
    found = explorer.light(patch=(2, 3))
    kind = method.removeprefix("words ")
    (matrix,) = token_patches(clip, pairs.images[0], pairs.long[0], tokens=kind)
    assert isinstance(found, TokenMap)
    np.testing.assert_array_equal(found.scores, matrix.scores[:, 2, 3])
    assert len(explorer.answer["scores"]) == explorer.scene["read"]
    # The browser has the same numbers: a byte for each word and patch.
    levels = np.frombuffer(explorer.matrix, np.uint8).reshape(-1, 36)[:, 2 * 6 + 3]
    low, high = explorer.scene["low"], explorer.scene["high"]
    np.testing.assert_allclose(low + levels / 255 * (high - low), found.scores, atol=5e-3)


def test_the_whole_picture_lights_up_words_by_their_method(explorer):
    relevance = explorer.light()
    first = explorer.answer
    assert len(first["scores"]) == explorer.scene["read"]
    explorer.words_method = "rollout"
    assert explorer.answer["method"] == "rollout"
    assert explorer.answer["scores"] != first["scores"]
    assert relevance.method == "relevance"


def test_layer_and_head_are_offered_where_a_method_has_them(explorer):
    offers = {offer["name"]: offer["options"] for offer in explorer.offers["patch"]}
    assert offers["attention"] == ["layer", "head"]
    assert offers["similarity"] == []
    assert explorer.offers["sizes"] == {"image": [3, 4], "text": [3, 4]}
    explorer.method = "attention"
    mean = explorer.answer["scores"]
    explorer.head = 2
    assert explorer.answer["scores"] != mean
    explorer.head, explorer.layer = None, 0
    assert explorer.answer["scores"] != mean


def test_choosing_a_picture_chooses_its_text_and_lets_another_beside_it(explorer, pairs):
    explorer.picture = 1
    assert explorer.text == pairs.long[1]
    assert explorer.scene["text"] == pairs.long[1]
    similarity = explorer.scene["similarity"]
    explorer.text = pairs.long[2]
    assert explorer.picture == 1
    assert explorer.scene["similarity"] < similarity


def test_a_typed_text_is_read_or_refused_in_the_view(explorer):
    explorer.text = TEXT
    assert explorer.scene["tokens"] == [16, 16]
    assert words_of(explorer)[:3] == ["A", "red", "boat"]
    explorer.text = "A zeppelin."
    assert "'zeppelin' is not a word" in explorer.error
    assert explorer.scene["text"] == TEXT
    explorer.text = "A red boat."
    assert explorer.error == ""


def test_words_behind_the_cut_stay_dark(explorer):
    scene = explorer.scene
    read, every = scene["tokens"]
    assert (read, every) == (75, len(scene["words"]))
    assert scene["read"] == 75
    start, end = scene["words"][75]
    explorer.lit = {"kind": "words", "start": start, "end": end}
    assert explorer.error == "the model never read these words: they lie behind its cut."
    with pytest.raises(LabError, match="never read"):
        explorer.light("There are seven things in the picture.")


def test_the_browser_asks_and_is_answered(explorer, monkeypatch):
    sent = []
    monkeypatch.setattr(explorer, "send", sent.append)
    unit = {"kind": "words", "start": 2, "end": 7}
    explorer._handle_custom_msg({"ask": unit}, [])
    explorer._handle_custom_msg({"ask": {"kind": "patch", "row": 9, "column": 0}}, [])
    answer, refusal = sent
    assert answer["answer"]["unit"] == unit
    assert "within 6 rows and 6 columns" in refusal["error"]
    json.dumps(sent)


def test_maps_are_remembered(explorer, monkeypatch):
    explorer.light("red tree")
    monkeypatch.setattr(explorer._lighting, "_prepared", None)
    explorer.light("red tree")


def test_the_picture_passes_its_tower_once_for_all_words(explorer, clip, monkeypatch):
    explorer.light("red tree")
    seen = []
    handle = clip.model.visual.register_forward_hook(lambda *_: seen.append(1))
    words = [explorer.text[start:end] for start, end in explorer.scene["words"][:3]]
    for method in ("similarity", "similarity-gain", "similarity-share", "words in context"):
        explorer.method = method
        for word in words:
            explorer.light(word)
    handle.remove()
    assert not seen


def test_what_a_method_imports_is_there_before_it_is_asked(explorer):
    assert PATCH_METHODS["grad-cam"].imports == ("captum.attr",)
    assert "captum.attr" in sys.modules


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "similarty"}, "Did you mean similarity"),
        ({"words_method": "relevence"}, "Did you mean relevance"),
        ({"texts": []}, "expected pictures and texts, got 3 and 0"),
        ({"texts": ["A zeppelin."]}, "'zeppelin' is not a word"),
    ],
)
def test_bad_input_is_refused(clip, pairs, arguments, message):
    with pytest.raises(LabError, match=message):
        TokenExplorer(clip, pairs.images, **{"texts": pairs.long, **arguments})


def test_pointing_at_what_is_not_there_is_refused(explorer):
    with pytest.raises(LabError, match="“zeppelin” is not in the text"):
        explorer.light("zeppelin")
    with pytest.raises(LabError, match="within 6 rows"):
        explorer.light(patch=(6, 0))
    explorer.picture = 7
    assert "from 0 to 2" in explorer.error


def test_one_picture_and_one_text_in_every_form(clip, pairs):
    from PIL import Image

    for image in (pairs.images[0], Image.fromarray(pairs.images[0]), [pairs.images[0]]):
        explorer = TokenExplorer(clip, image, TEXT)
        assert explorer.offers["pictures"] == 1
        assert explorer.scene["grid"] == [6, 6]


def test_a_saved_view_of_the_longest_text_is_small(large):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (224, 224, 3), np.uint8)  # no picture is harder to pack
    words = ["a red boat on the wide lake"] * 60
    explorer = TokenExplorer(large, noise, ". ".join(words))
    assert explorer.scene["tokens"][0] == 246
    assert explorer.scene["grid"] == [14, 14]
    saved = json.dumps(embed_data([explorer], state=dependency_state([explorer])))
    assert len(saved) < 200_000
    assert saved.count("base64,") == 1
    chart = explorer.figure()
    assert len(chart.to_json()) < 500_000


def test_words_of_several_tokens_and_partly_read_ones():
    text = "sunflowers, everywhere. And unread"
    strip = Strip(text, ((0, 3), (3, 10), (10, 11), (12, 17)), unread=4)
    assert [text[slice(*word)] for word in strip.words] == [
        "sunflowers", ",", "everywhere", ".", "And", "unread",
    ]  # fmt: skip
    assert strip.words_read == 3
    assert strip.tokens_of_words.tolist() == [[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert strip.cut_off(strip.sentences[0]) == (0, 17)
    with pytest.raises(LabError, match="never read"):
        strip.cut_off(strip.sentences[1])


def test_an_empty_text_lights_nothing_up(clip, pairs):
    assert Lighting(clip, [pairs.images[0]]).strip("").words_read == 0
    with pytest.raises(LabError, match="expected a text with words"):
        TokenExplorer(clip, pairs.images[0], "")


def test_quantised_values_of_one_size_are_all_least():
    levels, low, high = quantised(np.full(3, 0.5))
    assert (levels.tolist(), low, high) == ([0, 0, 0], 0.5, 0.5)


def test_the_figure_has_a_step_for_the_text_its_sentences_and_its_words(clip, pairs):
    chart = explorer_figure(clip, pairs.images[0], TEXT, limit=6)
    (slider,) = chart.layout.sliders
    assert [step.label for step in slider.steps] == [
        "nothing", "the whole text", "sentence 1", "sentence 2", "“red”", "“boat”", "“lies”",
    ]  # fmt: skip
    (asked,) = patch_maps(clip, pairs.images[0], "boat", method="similarity-gain")
    changed, layout = slider.steps[5].args
    np.testing.assert_allclose(changed["z"][0], asked.scores, rtol=6e-3)
    assert '<b style="color:#a94700">boat</b>' in layout["annotations[0].text"]
    assert "lights up: " in chart.data[0].text[0][0]


def test_the_figure_tells_what_was_never_read(clip, pairs):
    chart = explorer_figure(clip, pairs.images[0], pairs.long[0], method="words alone")
    assert "more lines" in chart.layout.annotations[0].text
    assert len(chart.layout.sliders[0].steps) == 25
    with pytest.raises(LabError, match="at least one step"):
        explorer_figure(clip, pairs.images[0], TEXT, limit=0)


def test_without_the_extra_a_widget_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    monkeypatch.delitem(sys.modules, TokenExplorer.__module__)
    with pytest.raises(LabError, match=r"pip install 'longclip-lab\[notebooks\]'"):
        _ = ll.views.TokenExplorer


def test_only_widgets_import_the_extra():
    room = Path(ll.views.__file__).parent
    extra = re.compile(r"^\s*(import|from) (anywidget|ipywidgets|traitlets|IPython)", re.M)
    users = [path.name for path in room.glob("*.py") if extra.search(path.read_text("utf-8"))]
    assert users == []
