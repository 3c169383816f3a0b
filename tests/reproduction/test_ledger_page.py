"""The committed ledger: every record is whole, follows from its own numbers, and is on the page."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from longclip_lab.reproduction.bookkeeping import LedgerRecord, file_of, read_all, summary
from longclip_lab.reproduction.experiments import EXPERIMENTS, experiment
from longclip_lab.reproduction.verdicts import judge, overall

BOOK = Path(__file__).parents[2] / "book"
RECORDS = read_all()


@pytest.fixture(scope="module")
def pages():
    spec = importlib.util.spec_from_file_location("update_ledger", BOOK / "update_ledger.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("record", RECORDS.values(), ids=list(RECORDS))
def test_records_follow_from_their_numbers(record: LedgerRecord):
    """Up to rounding: verdicts at an interval's very edge are left alone."""
    assert record.name in EXPERIMENTS
    assert file_of(record.name).exists()
    assert record.verdict == overall([c.verdict for c in record.claims if not c.is_control])
    assert record.reason == summary(record.claims)
    for claim in record.claims:
        scores = None
        if len(claim.against) == 1:
            lines = (record.line(claim.arm), record.line(claim.against[0]))
            one, other = (line.ours[claim.column].value for line in lines)
            assert claim.ours.value == pytest.approx(one - other, abs=0.002)
            scores = (one, other)
        chance = experiment(record.name).column(claim.column).chance
        edge = min(abs(bound) for bound in (claim.ours.low, claim.ours.high))
        if edge > 0.002:
            again = judge(claim.relation, claim.ours, claim.published, scores, chance)
            assert again.verdict == claim.verdict


@pytest.mark.parametrize("record", RECORDS.values(), ids=list(RECORDS))
def test_records_are_of_the_experiments_as_they_are(record: LedgerRecord):
    one = experiment(record.name)
    assert [line.label for line in record.lines] == [entry.label for entry in one.entries]
    assert [claim.text for claim in record.claims] == [claim.text for claim in one.claims]
    for line, entry in zip(record.lines, one.entries, strict=True):
        assert line.keys == [entry.arm.key(seed) for seed in record.seeds]
    for claim, own in zip(record.claims, one.claims, strict=True):
        published = one.published_difference(own)
        assert claim.published == (
            None if published is None else pytest.approx(published, abs=1e-3)
        )


def test_the_page_is_made_of_the_ledger(pages):
    page = (BOOK / "ledger.md").read_text(encoding="utf-8")
    block = pages.MARKS.search(page)
    assert block is not None
    assert pages.page_block(RECORDS) in page, "run python book/update_ledger.py"


def test_experiments_that_were_not_run_are_on_the_page(pages):
    told = pages.page_block({})
    assert all(f"`{name}`" in told for name in EXPERIMENTS)
    assert told.count("not run") == len(EXPERIMENTS)
