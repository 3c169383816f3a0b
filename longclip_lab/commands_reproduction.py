"""What `longclip-lab reproduce` can do; see `longclip_lab.commands`."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from longclip_lab.commands import say
from longclip_lab.errors import COUNT, LabError
from longclip_lab.files import to_json


@dataclass(kw_only=True)
class Reproduce:
    """Fill a table or figure of the papers on the drawn world, and judge what it claims.

    Arms that experiments share are trained once. An interrupted run is continued by the same
    command.
    """

    name: Annotated[Positional[str | None], arg(metavar="[NAME]")] = None
    """An experiment, such as lotlip/table3; --list names them all."""
    list: bool = False
    """Name all experiments and what the ledger says of them."""
    scale: Literal["tiny"] = "tiny"
    """Size of the models and of the data. Only tiny experiments can be run without other data."""
    seeds: Annotated[int, COUNT] | None = None
    """Training seeds of every arm; by default as many as the experiment's effects need."""
    out: Path = Path("runs/reproduce")
    """Folder for the record, NAME.json."""
    arms: Path = Path("runs/arms")
    """Folder of the arms, which all experiments share."""
    json: bool = False
    """Print the record as JSON instead of tables."""
    progress: bool = True
    """Show what is being made and the time left."""

    def run(self) -> None:
        if self.list == (self.name is not None):
            raise LabError(
                "Name one experiment to run, or give --list to see them all: longclip-lab "
                "reproduce lotlip/table3."
            )
        if self.list:
            say(overview(self.arms))
            return
        from longclip_lab.reproduction import bookkeeping as books
        from longclip_lab.reproduction.experiments import experiment
        from longclip_lab.reproduction.running import reproduce

        chosen = experiment(self.name)
        record = reproduce(
            chosen, self.seeds, self.out, self.arms, scale=self.scale, progress=self.progress
        )
        written = [str(books.file_of(record.name, self.out))]
        if books.is_writable():
            if books.write(record):
                written.append(f"the ledger ({books.file_of(record.name).name})")
            else:
                say(f"The ledger keeps its record of {record.name}: it has more seeds.")
        if self.json:
            say(to_json(record.to_dict(), indent=1))
            return
        say(told(record))
        say(f"written to {' and '.join(written)}")


def overview(arms: Path) -> str:
    """Every experiment, what the ledger says of it, and what is left to make."""
    from longclip_lab.reproduction.bookkeeping import read_all
    from longclip_lab.reproduction.experiments import EXPERIMENTS, experiment
    from longclip_lab.reproduction.running import left_to_make

    records = read_all()
    lines = []
    for name in EXPERIMENTS:
        one = experiment(name)
        left = left_to_make(one, arms=arms)
        made = len(one.entries) * one.seeds
        lines.append(f"{name:<26} {one.title}")
        if name in records:
            record = records[name]
            state = (
                f"{record.verdict}; {len(record.seeds)} seeds, {record.minutes:.0f} min, commit "
                f"{record.commit}"
            )
        else:
            state = "not in the ledger"
        lines.append(f"{'':<26} {state}; {made - left} of {made} arms in {arms}")
    return "\n".join(lines)


def told(record) -> str:
    """A record as text: the table, every claim with its verdict, and the sum of it."""
    lines = [f"{record.name}: {record.title} ({record.source})", ""]
    lines += [record.table().to_string(na_rep="")]
    lines.append(f"in percent, {len(record.seeds)} seeds; ± half of the 95% interval")
    for claim in record.claims:
        source = "" if claim.is_control else f" [{claim.source}]"
        lines += ["", f"{claim.words.upper()}: {claim.text}{source}"]
        paper = "" if claim.published is None else f"; the paper: {claim.published:+.1f}"
        told_of = f"{claim.column}: {claim.arm} against {', '.join(claim.against)}: {claim.reason}"
        lines += textwrap.wrap(f"{told_of}{paper}", 96, initial_indent="  ", subsequent_indent="  ")
    lines += ["", *textwrap.wrap(f"{record.verdict.upper()}. {record.reason}", 98)]
    lines.append(f"{record.minutes:.1f} minutes, {record.cpu_minutes:.1f} of processor time")
    return "\n".join(lines)
