"""The experiments by name: the tables and figures that are filled again on the drawn world."""

from __future__ import annotations

from collections.abc import Callable

from longclip_lab.errors import LabError, suggest
from longclip_lab.reproduction import experiments_longclip as of_longclip
from longclip_lab.reproduction.experiment import Experiment

EXPERIMENTS: dict[str, Callable[[], Experiment]] = {
    "longclip/stretching": of_longclip.stretching,
    "longclip/stretching-tuned": of_longclip.stretching_tuned,
    "longclip/pcm": of_longclip.pcm,
}


def experiment(name: str) -> Experiment:
    """An experiment by name. Raises LabError for an unknown name, with near ones.

    >>> experiment("longclip/stretching").entry("KPS").arm.stretch
    'kps'
    """
    if name not in EXPERIMENTS:
        raise LabError(f"There is no experiment {name!r}. {suggest(name, EXPERIMENTS)}")
    return EXPERIMENTS[name]()
