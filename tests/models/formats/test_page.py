"""The page of systems says what the tests recorded, about every door there is and no other."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from longclip_lab.errors import LabError
from longclip_lab.models import FORMATS
from longclip_lab.models.inspect import systems

BOOK = Path(__file__).parents[3] / "book"


@pytest.fixture(scope="module")
def update():
    spec = importlib.util.spec_from_file_location("update_formats", BOOK / "update_formats.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_made_of_the_record(update):
    entries = json.loads(update.RECORD.read_text(encoding="utf-8"))
    assert update.table(entries) in update.PAGE.read_text(encoding="utf-8")
    assert max(entry["difference"] for entry in entries) < 1e-5


def test_every_door_was_gone_through(update):
    entries = json.loads(update.RECORD.read_text(encoding="utf-8"))
    gone = [(entry["system"], entry["direction"]) for entry in entries]
    doors = [(name, way) for name, system in systems().items() for way in system.directions]
    assert gone == doors


def test_every_format_is_a_system():
    written = {name for name, system in systems().items() if "out" in system.directions}
    assert FORMATS.keys() <= written


def test_a_door_that_nobody_tried_stops_the_page(update):
    row = {"system": "openai", "direction": "in", "on": "x", "against": "y", "difference": 0.0}
    with pytest.raises(LabError, match="recorded anything about 'openai', out"):
        update.summary([row])
