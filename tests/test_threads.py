"""Threads on a machine that others use too."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from longclip_lab.errors import LabError
from longclip_lab.threads import SPINS, be_a_good_neighbour, lent_cores, rank_and_size


@pytest.fixture
def quota(tmp_path):
    def write(text: str):
        (tmp_path / "cpu.max").write_text(text)
        return tmp_path / "cpu.max"

    return write


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("max 100000\n", None),
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),
        ("5000 100000\n", 1),
        ("200000 0\n", None),
        ("garbage", None),
        ("", None),
    ],
)
def test_cores_that_a_container_lends(quota, text, cores):
    assert lent_cores(quota(text)) == cores


def test_no_control_group(tmp_path):
    assert lent_cores(tmp_path / "none") is None


def test_waiting_threads_sleep_early(tmp_path):
    environment = {}
    be_a_good_neighbour(environment, tmp_path / "none")
    assert environment == {"GOMP_SPINCOUNT": str(SPINS)}


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_what_the_user_has_set_stays(tmp_path, name):
    environment = {name: "7"}
    be_a_good_neighbour(environment, tmp_path / "none")
    assert environment == {name: "7"}


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_no_more_threads_than_cores_are_lent(quota):
    environment = {}
    be_a_good_neighbour(environment, quota("100000 100000"))
    assert environment["OMP_NUM_THREADS"] == "1"
    environment = {"OMP_NUM_THREADS": "2"}
    be_a_good_neighbour(environment, quota("100000 100000"))
    assert environment["OMP_NUM_THREADS"] == "2"


def test_it_is_set_before_torch_is_imported():
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    code = (
        "import sys, os, longclip_lab;print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(SPINS), "False"]


@pytest.mark.parametrize(
    ("name", "value"), [("WORLD_SIZE", "two"), ("WORLD_SIZE", "0"), ("RANK", "-1")]
)
def test_a_rank_that_no_launcher_sets_is_named(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(LabError, match=rf"{name} is '{value}'; expected a whole number"):
        rank_and_size()


def test_without_a_launcher_there_is_one_process(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert rank_and_size() == (0, 1)
