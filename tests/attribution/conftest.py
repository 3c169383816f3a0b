"""Models for this room's tests."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from longclip_lab import world
from longclip_lab.models import Clip, load


@pytest.fixture(scope="session")
def towers() -> ModuleType:
    """The builders of small models in `towers.py`."""
    spec = importlib.util.spec_from_file_location("towers", Path(__file__).with_name("towers.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def trained() -> Clip:
    """The bundled tiny model; tests must not change it."""
    return load("tiny")


@pytest.fixture(scope="session")
def drawn() -> world.WorldPairs:
    """Twelve drawn pictures with their captions."""
    return world.pairs(12, seed=7)
