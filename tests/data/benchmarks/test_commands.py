"""`longclip-lab data`: what a reader sees."""

from __future__ import annotations

import json

import pytest

from longclip_lab.cli import main
from longclip_lab.commands_data import beside_paper
from longclip_lab.data import PROTOCOLS, statistics


def test_the_list_has_them_all(capsys):
    assert main(["data", "list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in PROTOCOLS)
    assert "31,783 158,915" in printed


def test_all_about_one(capsys):
    assert main(["data", "list", "urban1k"]) == 0
    printed = capsys.readouterr().out
    assert "first line" in printed
    assert "592.txt" in printed
    assert main(["data", "list", "urban1k", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["num_images"] == 1000


@pytest.mark.layouts("urban1k")
def test_verify_exits_with_2_and_tells_how_to_get_it(layout, root, capsys):
    layout.picture(root).unlink()
    assert main(["data", "verify", "urban1k", "--root", str(root), "--no-progress"]) == 2
    out, err = capsys.readouterr()
    assert "  image/1.jpg" in out
    assert "1. download Urban-1k.zip" in out
    assert err.startswith("error: urban1k is not whole")


def test_verify_of_something_whole(capsys):
    assert main(["data", "verify", "world/kind"]) == 0
    assert capsys.readouterr().out.startswith("world/kind: whole")


@pytest.mark.layouts("iiw")
def test_stats_beside_the_papers(root, capsys):
    assert main(["data", "stats", "--root", str(root), "--no-progress"]) == 0
    assert "iiw (partial)" in capsys.readouterr().out
    row = beside_paper(statistics(root, ["iiw"]).table()).iloc[0]
    assert (row["paper's sub-captions"], row["paper's tokens"]) == (10.16, 239.73)


def test_the_paper_counts_raw_captions_by_set(tmp_path):
    table = '"Image Path","raw_caption","longSV_captions"\na.jpg,a dog,A dog runs.\n'
    (tmp_path / "cc3m_captions.csv").write_text(table)
    printed = beside_paper(statistics(tmp_path, ["dreamlip"]).table())["paper's tokens"]
    assert printed[0] == 11.29  # LoTLIP, Table 6, CC3M
    assert printed.isna()[1]


def test_stats_needs_a_root(capsys):
    assert main(["data", "stats"]) == 2
    assert "--root DIR" in capsys.readouterr().err
