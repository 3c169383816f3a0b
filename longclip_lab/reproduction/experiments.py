"""The experiments by name: the tables and figures that are filled again on the drawn world."""

from __future__ import annotations

from collections.abc import Callable

from longclip_lab.errors import LabError, suggest
from longclip_lab.reproduction import experiments_longclip as longclip
from longclip_lab.reproduction import experiments_lotlip as lotlip
from longclip_lab.reproduction.experiment import Experiment

EXPERIMENTS: dict[str, Callable[[], Experiment]] = {
    "longclip/stretching": longclip.stretching,
    "longclip/stretching-tuned": longclip.stretching_tuned,
    "longclip/pcm": longclip.pcm,
    "lotlip/table2": lotlip.table2,
    "lotlip/table2-rich": lotlip.table2_rich,
    "lotlip/table3": lotlip.table3,
    "lotlip/tables4-5": lotlip.tables4_5,
    "lotlip/table7": lotlip.table7,
    "lotlip/table8": lotlip.table8,
    "lotlip/table9": lotlip.table9,
    "lotlip/tables10-11": lotlip.tables10_11,
    "lotlip/figure2": lotlip.figure2,
    "lotlip/figure4": lotlip.figure4,
    "lotlip/figure5": lotlip.figure5,
}


def experiment(name: str) -> Experiment:
    """An experiment by name. Raises LabError for an unknown name, with near ones.

    >>> experiment("longclip/stretching").entry("KPS").arm.stretch
    'kps'
    """
    if name not in EXPERIMENTS:
        raise LabError(f"There is no experiment {name!r}. {suggest(name, EXPERIMENTS)}")
    return EXPERIMENTS[name]()
