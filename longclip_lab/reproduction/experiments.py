"""The experiments by name: the tables and figures that are filled again on the drawn world."""

from __future__ import annotations

from collections.abc import Callable

from longclip_lab.errors import LabError, suggest
from longclip_lab.reproduction import experiments_longclip as of_longclip
from longclip_lab.reproduction import experiments_lotlip
from longclip_lab.reproduction import experiments_lotlip as of_lotlip
from longclip_lab.reproduction.experiment import Experiment

EXPERIMENTS: dict[str, Callable[[], Experiment]] = {
    "longclip/stretching": of_longclip.stretching,
    "longclip/stretching-tuned": of_longclip.stretching_tuned,
    "longclip/pcm": of_longclip.pcm,
    "lotlip/table2": of_lotlip.table2,
    "lotlip/table2-rich": of_lotlip.table2_rich,
    "lotlip/table3": of_lotlip.table3,
    "lotlip/tables4-5": experiments_lotlip.tables4_5,
    "lotlip/table7": of_lotlip.table7,
    "lotlip/table8": experiments_lotlip.table8,
    "lotlip/table9": experiments_lotlip.table9,
    "lotlip/tables10-11": experiments_lotlip.tables10_11,
    "lotlip/figure2": experiments_lotlip.figure2,
    "lotlip/figure4": experiments_lotlip.figure4,
    "lotlip/figure5": experiments_lotlip.figure5,
}


def experiment(name: str) -> Experiment:
    """An experiment by name. Raises LabError for an unknown name, with near ones.

    >>> experiment("longclip/stretching").entry("KPS").arm.stretch
    'kps'
    """
    if name not in EXPERIMENTS:
        raise LabError(f"There is no experiment {name!r}. {suggest(name, EXPERIMENTS)}")
    return EXPERIMENTS[name]()
