"""The book's page of benchmarks is what the protocols say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from longclip_lab.data import PROTOCOLS

BOOK = Path(__file__).parents[3] / "book"


def test_the_page_is_up_to_date():
    spec = importlib.util.spec_from_file_location(
        "update_benchmarks", BOOK / "update_benchmarks.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = module.PAGE.read_text(encoding="utf-8")
    assert module.page_block() in page, "run python book/update_benchmarks.py"
    assert all(f"### {name}\n" in page for name in PROTOCOLS)
