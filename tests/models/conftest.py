"""Models and tokens for this room's tests."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from longclip_lab.models import Clip, new_tiny
from longclip_lab.models.inspect import systems

_PLACE = "LONGCLIP_LAB_COMPATIBILITY"
_PASSED = pytest.StashKey[bool]()


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of numbers that were computed with the papers' own code."""
    return Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def tiny() -> Clip:
    """A tiny CLIP with random weights; tests must not change it."""
    return new_tiny(seed=3)


@pytest.fixture(scope="session")
def random_tokens() -> Callable[[list[int], int, int], torch.Tensor]:
    """A function that makes token ids of given lengths."""
    return _random_tokens


@pytest.fixture(scope="session")
def world_texts() -> Callable[[list[int]], list[str]]:
    """A function that makes texts of given numbers of words."""
    return _world_texts


def _random_tokens(lengths: list[int], vocab_size: int, context_length: int) -> torch.Tensor:
    """Token ids [B, context_length], each text ended by the largest id and padded by 0."""
    generator = torch.Generator().manual_seed(0)
    tokens_BT = torch.zeros(len(lengths), context_length, dtype=torch.long)
    for row_T, length in zip(tokens_BT, lengths, strict=True):
        row_T[:length] = torch.randint(3, vocab_size - 1, (length,), generator=generator)
        row_T[length - 1] = vocab_size - 1
    return tokens_BT


def _world_texts(lengths: list[int]) -> list[str]:
    """Texts of words that are all known to the world's tokenizer."""
    words = ["red", "boat", "left", "of", "the", "house"]
    return [" ".join(words[i % len(words)] for i in range(length)) for length in lengths]


@dataclass
class Compatibility:
    """What one test found out about one of `longclip_lab.models.inspect.systems`."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def __call__(
        self, system: str, direction: str, on: str, against: str, difference: float
    ) -> None:
        """Record that weights of `system` went through "in" or "out".

        `on` says what stood in for the real model, in the same words in every test of a kind
        ("tiny ViT, QuickGELU, 248 positions, float32"); `against` is whose implementation the
        features were compared with, with its version; `difference` is the largest one, relative
        to the largest feature.
        """
        assert direction in systems()[system].directions
        assert difference >= 0
        self.rows.append(
            {
                "system": system,
                "direction": direction,
                "on": on,
                "against": against,
                "difference": float(difference),
            }
        )


@pytest.fixture
def compatibility(request: pytest.FixtureRequest) -> Iterator[Compatibility]:
    """The docs' table of systems is made of what tests record through this:

        def test_it(compatibility):
            ...
            assert difference < 1e-5
            compatibility("align", "in", "tiny AlignModel", f"transformers {version}", difference)

    `python book/update_formats.py` runs the tests and writes book/formats.md. The system must be
    in `longclip_lab.models.inspect.systems`: add it there first. Rows of a test that fails count
    for nothing.
    """
    record = Compatibility()
    yield record
    place = os.environ.get(_PLACE)
    if place and request.node.stash.get(_PASSED, False):
        with Path(place).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in record.rows)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Any:
    """Tell `compatibility` how its test ended."""
    report = yield
    if call.when == "call":
        item.stash[_PASSED] = report.passed
    return report


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where a table is to be made, run the tests that record something, and no others."""
    if os.environ.get(_PLACE):
        others = [
            item for item in items if "compatibility" not in getattr(item, "fixturenames", ())
        ]
        items[:] = [item for item in items if item not in others]
        config.hook.pytest_deselected(items=others)
