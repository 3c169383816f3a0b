"""The report says what the numbers say, and stands alone."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from longclip_lab.errors import LabError
from longclip_lab.reproduction import quickstart
from longclip_lab.reproduction.report import write_report
from longclip_lab.reproduction.results import COLUMNS, claims

VOID = {"meta", "img", "br", "stop", "rect"}


class Document(HTMLParser):
    """Checks that tags close in order; collects texts of cells, addresses and pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[tuple[str, str]] = []
        self.pictures: list[dict] = []
        self.cells: list[list[str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.addresses += [(tag, values[name]) for name in ("src", "href") if name in values]
        if tag == "img":
            self.pictures.append(values)
        if tag == "tr":
            self.cells.append([])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.cells and self.open[-1:] and self.open[-1] in ("td", "th", "strong", "small"):
            self.cells[-1].append(data)


@pytest.fixture(scope="module")
def written(made_up, tmp_path_factory):
    results = made_up.results()
    path = write_report(results, tmp_path_factory.mktemp("report") / "deep" / "report.html")
    return results, path, path.read_text("utf-8")


def test_one_small_file_and_nothing_beside_it(written):
    _, path, _ = written
    assert path.stat().st_size < 3e6
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_it_is_well_formed_and_every_picture_has_a_text(written):
    document = Document(written[2])
    assert document.open == []
    assert len(document.pictures) >= 3
    assert all(picture["alt"] for picture in document.pictures)


def test_it_asks_the_network_for_nothing(written):
    text = written[2]
    for tag, address in Document(text).addresses:
        assert address.startswith("data:") or (tag == "a" and "arxiv.org" in address)
    assert "default-src 'none'" in text
    own = re.sub(r'<script id="plotly">.*?</script>', "", text, flags=re.DOTALL)
    assert {*re.findall(r"https?://([^/\"]+)", own)} == {"arxiv.org"}
    assert "@import" not in own
    assert "url(http" not in own


def test_the_table_holds_the_results_numbers(written):
    results, _, text = written
    rows = {cells[0]: cells[1:] for cells in Document(text).cells if cells}
    for row in results.rows:
        expected = []
        for score in (getattr(row, name) for name in COLUMNS):
            expected += [
                f"{100 * score.value:.1f}",
                f"{100 * score.low:.1f}–{100 * score.high:.1f}",
            ]
        expected.append(f"{row.truncated:,}")
        expected += [f"{100 * row.variance_kept:.2f}"] if row.variance_kept else []
        expected += [f"{row.seconds:.0f}"] if row.seconds else []
        assert rows[row.label] == expected


def test_facts_and_command_are_told(written):
    results, _, text = written
    assert f"<pre>{results.facts['command']}</pre>" in text
    assert "probed 400, training 4000" in text


def test_a_report_that_fails_leaves_the_old_one(made_up, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(LabError, match="no such model"):
        write_report(replace(made_up.results(), best="no such model"), path)
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_every_stretching_of_the_quickstart_is_explained(written):
    for label in quickstart.STRETCHINGS:
        assert re.search(
            rf'<dt class="key"[^>]*>{re.escape(label)}</dt><dd>[^<]{{30,}}', written[2]
        )


def test_the_made_up_models_are_those_of_the_quickstart(made_up):
    assert [*quickstart.STRETCHINGS, *quickstart.FINE_TUNINGS] == list(made_up.SCORES)
    for label, recipe in quickstart.FINE_TUNINGS.items():
        assert recipe.items() <= made_up.RECIPES[label].items()


TURNED = [  # a claim's words, what is changed, the verdict then
    ("KPS) does not", {}, "seen"),
    ("KPS) does not", {"linear": (0.7, 0.755)}, "no difference seen"),
    ("KPS) does not", {"KPS": (0.7, 0.65)}, "not seen"),
    ("Interpolating the positions after 20", {}, "no difference seen"),
    ("Interpolating the positions after 20", {"keep___random": (0.6, 0.755)}, "seen"),
    ("Interpolating the positions after 20", {"keep___random": (0.8, 0.755)}, "the opposite"),
    ("alone costs short", {}, "seen"),
    ("alone costs short", {"long_only": (0.858, 0.76)}, "no difference seen"),
    ("alone costs short", {"long_only": (0.858, 0.9)}, "the opposite"),
    ("protects them", {}, "seen"),
    ("protects them", {"long___1_0_short": (0.8, 0.65)}, "no difference seen"),
    ("(PCM) is better", {}, "no difference seen"),
    ("(PCM) is better", {"long___short__PCM": (0.9, 0.85)}, "seen"),
    ("(PCM) is better", {"long___short__PCM": (0.6, 0.6)}, "the opposite"),
]


@pytest.mark.parametrize(("words", "changed", "verdict"), TURNED)
def test_claims_about_models_follow_their_scores(made_up, words, changed, verdict):
    found = {claim.statement: claim for claim in claims(made_up.results(**changed))}
    (claim,) = [found[statement] for statement in found if words in statement]
    assert claim.verdict == verdict


@pytest.mark.parametrize(
    ("final", "verdict"),
    [
        ({}, "not seen"),
        ({"summary last": (0.7, 11)}, "seen"),
        ({"summary last": (0.7, 11), "positions re-randomised": (0.3, 11)}, "not seen"),
    ],
)
def test_positions_are_blamed_only_if_the_order_does_not_explain_the_curve(made_up, final, verdict):
    results = replace(made_up.results(), before=made_up.effective(**final))
    (claim,) = [c for c in claims(results) if "not trained" in c.statement]
    assert claim.verdict == verdict


@pytest.mark.parametrize(("half", "verdict"), [(11, "seen"), (35, "not seen")])
def test_the_papers_twenty_tokens_are_looked_for(made_up, half, verdict):
    results = replace(made_up.results(), before=made_up.effective(**{"as written": (0.7, half)}))
    assert claims(results)[0].verdict == verdict


@pytest.mark.parametrize(
    ("after", "reads_on", "small_things"),
    [
        ({}, "seen", "no difference seen"),
        ({"small": 0.95}, "seen", "seen"),
        ({"large": 0.5, "medium": 0.5, "small": 0.2}, "no difference seen", "the opposite"),
    ],
)
def test_claims_about_answers_follow_the_probes(made_up, after, reads_on, small_things):
    results = made_up.results()
    probes = {**results.probes, results.best: made_up.probe(results.best, 248, **after)}
    found = {c.statement: c.verdict for c in claims(replace(results, probes=probes))}
    assert found["Stretched and fine-tuned, the model reads what it could not hold before."] == (
        reads_on
    )
    assert found["Long captions teach a model the small things."] == small_things


def test_a_component_count_that_keeps_everything_is_called_mixing(made_up):
    (kept,) = [c for c in claims(made_up.results()) if "PCM" in c.statement]
    assert "99.95% of the variance, so here PCM is mixing" in kept.evidence
    rows = made_up.rows(variance_kept=0.74)
    (real,) = [c for c in claims(replace(made_up.results(), rows=rows)) if "PCM" in c.statement]
    assert "74.00% of the variance." in real.evidence
