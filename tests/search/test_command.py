"""`longclip-lab search`, and the page that it writes."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

from longclip_lab import search
from longclip_lab.cli import main
from longclip_lab.errors import LabError, LabWarning
from longclip_lab.views import found_html
from longclip_lab.views.widgets import SearchBox


@pytest.fixture(autouse=True)
def users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LONGCLIP_LAB_CACHE", str(tmp_path / "users-cache"))


def run(*arguments) -> int:
    return main(["search", *map(str, arguments), "--no-progress"])


def test_the_command_finds_explains_and_writes_a_page(folder, pairs, tmp_path, capsys):
    (folder / "letter.jpg").write_text("Dear reader,")
    page = tmp_path / "found.html"
    assert run(folder, pairs.long[0], pairs.short[3], "--explain", "--html", page) == 0
    out, err = capsys.readouterr()
    assert "12 pictures (12 encoded, 0 known" in out
    assert "left out, broken picture: 1" in out
    assert "letter.jpg (not a picture)" in out
    assert str(folder / "00.png") in out
    assert "owes most to" in out
    assert "read: 75 of" in out
    assert "warning: tiny reads 75 of" in err
    written = page.read_text(encoding="utf-8")
    assert written.count('src="data:image/jpeg;base64,') == 10
    assert "77 positions end here" in written
    assert "letter.jpg" not in written
    assert 'src="http' not in written
    assert "data-picture" not in written


def test_the_command_speaks_json(folder, pairs, capsys):
    for _ in range(2):
        assert run(folder, pairs.short[0], "--json", "--top", "2") == 0
    decoder, out = json.JSONDecoder(), capsys.readouterr().out
    first, end = decoder.raw_decode(out)
    second, _ = decoder.raw_decode(out[end:].lstrip())
    assert (first["update"]["encoded"], second["update"]["encoded"]) == (12, 0)
    assert first["queries"] == second["queries"]
    hits = first["queries"][0]["hits"]
    assert [hit["rank"] for hit in hits] == [1, 2]
    assert hits[0]["picture"] == "00.png"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "a boat"], "There is no folder nowhere"),
        (["{folder}"], "Say what to look for"),
        (["{folder}", "sofas"], "none of 'sofas'"),
        (["{folder}", "a boat", "--model", "tinny"], "tiny"),
        (["{folder}", "a boat", "--top", "0"], "--top must be a whole number from 1"),
    ],
)
def test_bad_input_gets_one_line(folder, arguments, message, capsys):
    assert run(*(one.format(folder=folder) for one in arguments)) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_the_pictures_of_a_page_are_those_found(clip, folder, cache, pairs):
    index = search.index(clip, folder, cache)
    name = 'a "quoted" & <odd> name.png'
    Image.fromarray(pairs.images[2]).save(folder / name)
    index = search.index(clip, folder, cache)
    shown = found_html(index.search(pairs.short[2], top=2), wanted=name)
    assert "&#34;quoted&#34; &amp; &lt;odd&gt;" in shown
    assert "<odd>" not in shown
    assert shown.count("class=wanted") == 1
    (folder / name).unlink()  # gone after it was found
    assert 'src=""' in found_html(index.search(pairs.short[2], top=2))


def test_the_search_box_answers_as_the_index_does(clip, folder, cache, pairs):
    index = search.index(clip, folder, cache)
    box = SearchBox(index, [pairs.short[0], pairs.long[1]], top=3)
    box.refresh()
    assert box.error == ""
    assert box.found.names == index.search(pairs.short[0], 3).names
    box.choice.value = pairs.long[1]
    assert box.text.value == pairs.long[1]
    assert "77 positions end here" in box._panel.value
    box.text.value = "a xylophone"
    assert "not a word of the drawn world" in box.error
    box.text.value = pairs.short[4]
    assert box.error == ""
    assert box.found.names[0] == "04.png"
    page = box.static()
    data = json.loads(re.search(r'json">(.*?)</script>', page, re.DOTALL)[1])
    assert len(data["states"]) == 2
    assert "data-picture" not in page.partition("json")[0]


def test_an_answer_shows_itself_and_writes_its_page(clip, folder, cache, pairs, tmp_path):
    found = search.index(clip, folder, cache).search(pairs.short[0], top=2)
    shown = found.html(tmp_path / "out" / "found.html")
    assert shown == found._repr_html_()
    page = (tmp_path / "out" / "found.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == shown.count("data:image/jpeg;base64,") == 2


def test_a_model_that_diverged_finds_nothing(clip, folder, cache):
    broken = replace(clip, model=copy.deepcopy(clip.model))
    with torch.no_grad():  # finite, as all weights that are written, but too large to work with
        next(broken.model.visual.parameters()).fill_(3e38)
    with pytest.raises(LabError, match="no finite numbers for 12 of 12 pictures"):
        search.index(broken, folder, cache)
    assert not list(cache.rglob("*.safetensors"))


def test_stored_features_that_are_no_numbers_are_made_again(clip, folder, cache, pairs):
    made = search.index(clip, folder, cache)
    (path,) = made.cache.glob("all.safetensors")
    with safe_open(path, framework="numpy") as block:
        tensors = {name: block.get_tensor(name) for name in block.keys()}  # noqa: SIM118
        identity = block.metadata()
    tensors["features"] = tensors["features"].copy()
    tensors["features"][2] = np.nan
    save_file(tensors, path, identity)
    with pytest.warns(LabWarning, match="no finite numbers"):
        again = search.index(clip, folder, cache)
    assert again.update.encoded == 12
    assert np.isfinite(again.search(pairs.short[0], top=12).scores).all()
