"""Processes of a run that watch each other: real ones, which hang, vanish or leave."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from longclip_lab.errors import PeerLostError
from longclip_lab.training.distributed import LOST
from longclip_lab.training.run import free_port

PEER = """
import os, signal, sys, time
import torch.distributed as dist
from longclip_lab.training.distributed import Watch

rank, port, deed = int(sys.argv[1]), sys.argv[2], sys.argv[3]
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
if rank == 0:
    store = dist.TCPStore("127.0.0.1", int(port), is_master=True, wait_for_workers=False)
watch = Watch(rank, 2, every=0.1, silence=float(sys.argv[4]))
watch.start()
while watch.beats < 5:
    time.sleep(0.05)
print("there", flush=True)
if rank == 1 and deed == "hangs":
    os.kill(os.getpid(), signal.SIGSTOP)
if rank == 1 and deed == "vanishes" or rank == 0 and deed == "takes the store along":
    os._exit(0)
if rank == 1 and deed == "says goodbye":
    watch.leave()
    os._exit(0)
time.sleep(2.5 if deed == "says goodbye" else 60)
watch.leave()
"""


def peers(deed: str, silence: float = 1.5) -> list[subprocess.Popen[str]]:
    port = str(free_port())
    command = [sys.executable, "-c", PEER]
    return [
        subprocess.Popen(
            [*command, str(rank), port, deed, str(silence)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


@pytest.mark.parametrize(
    ("deed", "survivor", "lost"),
    [
        ("hangs", 0, "Process 1 of 2"),
        ("vanishes", 0, "Process 1 of 2"),
        ("takes the store along", 1, "Process 0 of 2"),
    ],
)
def test_a_lost_process_ends_the_other_with_a_message(deed, survivor, lost):
    both = peers(deed)
    try:
        _, said = both[survivor].communicate(timeout=60)
        assert both[survivor].returncode == LOST
        assert f"error: {lost} of this run has ended or cannot be reached" in said
        assert "--resume" in said
    finally:
        for process in both:
            process.kill()
            process.communicate()


LAUNCHER = """
import os, subprocess, sys

child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
os._exit(0)
"""
LAUNCHED = """
import time
from longclip_lab.training.distributed import exit_with_parent

@exit_with_parent(every=0.1)
def train():
    print("there", flush=True)
    time.sleep(60)

train()
"""


@pytest.mark.parametrize("already", [False, True])
def test_a_process_ends_with_its_launcher(already):
    environment = {"WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "made up"}
    if already:
        store = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        environment |= {"TORCHELASTIC_USE_AGENT_STORE": "True", **store}
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER, LAUNCHED],
        stderr=subprocess.PIPE,
        text=True,
        timeout=50,  # the pipe is closed when the last process ends
        env={**os.environ, **environment},
    )
    (said,) = [line for line in done.stderr.splitlines() if "The launcher of this run" in line]
    assert said.startswith("error: " if not already else "longclip_lab.errors.PeerLostError: ")


def test_nobody_misses_a_process_that_said_goodbye():
    both = peers("says goodbye")
    for process in both:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
        assert said == ""


def test_the_command_line_exits_with_a_code_of_its_own(monkeypatch, capsys):
    from longclip_lab import cli, training

    def train(*_, **__):
        raise PeerLostError("Another process of this run has ended.")

    monkeypatch.setattr(training, "train", train)
    assert cli.main(["train", "longclip"]) == LOST == cli.PEER_LOST
    assert capsys.readouterr().err == "error: Another process of this run has ended.\n"
