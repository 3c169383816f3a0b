"""The command `longclip-lab`: reads its arguments, runs a command, turns errors into one line."""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import tyro
from tyro.conf import subcommand

from longclip_lab.commands import (
    Probe,
    Quickstart,
    Tokens,
    Version,
    say,
)
from longclip_lab.commands_attribution import Faithfulness
from longclip_lab.commands_data import Data
from longclip_lab.commands_evaluation import Eval, Table
from longclip_lab.commands_models import Convert, Inspect
from longclip_lab.commands_plan import PlanRun
from longclip_lab.commands_recaption import Recaption
from longclip_lab.commands_reproduction import Reproduce
from longclip_lab.commands_search import Search
from longclip_lab.commands_training import Train, default_options
from longclip_lab.errors import LabError, LabWarning, PeerLostError, StoppedError

BAD_INPUT, INTERRUPTED, STOPPED, PEER_LOST = 2, 130, 75, 69
"""75 is EX_TEMPFAIL of sysexits.h: try again. 69 is its EX_UNAVAILABLE."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it went well, 2 for bad input, 130 when interrupted, 75 if a run was
    asked to stop and can go on, 69 if another process of it is gone."""
    command = None
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            command = _parse(list(sys.argv[1:] if arguments is None else arguments))
            began = time.perf_counter()
            command.run()
            if isinstance(command, Quickstart | Probe | Eval | Train):
                say(_cost(time.perf_counter() - began))
        except StoppedError as error:
            return _complain(str(error), STOPPED)
        except PeerLostError as error:
            return _complain(str(error), PEER_LOST)
        except LabError as error:
            return _complain(str(error), BAD_INPUT)
        except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError as error:
            if error.filename is None:
                raise
            return _complain(f"{error.filename}: {error.strerror}", BAD_INPUT)
        except KeyboardInterrupt:
            resumable = isinstance(command, Train) and command.out is not None
            hint = "; the same command with --resume goes on" if resumable else ""
            hint = (
                "; the same command goes on"
                if isinstance(command, Reproduce | Search | Recaption)
                else hint
            )
            if isinstance(command, Eval) and command.out is not None:
                hint = "; the same command with --skip-existing goes on"
            return _complain(f"interrupted{hint}", INTERRUPTED)
    return 0


def _complain(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def _parse(arguments: list[str]) -> Any:
    # The defaults of a recipe depend on the method and three options: these are read first.
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--scale", default="tiny")
    first.add_argument("--preset", default="repository")
    first.add_argument("--data-scale", default="3M")
    chosen, _ = first.parse_known_args(arguments)
    named = arguments[:1] == ["train"] and len(arguments) > 1 and not arguments[1].startswith("-")
    method = arguments[1] if named else "longclip"
    options = default_options(method, chosen.scale, chosen.preset, chosen.data_scale)
    train = Train(method=tyro.MISSING, recipe=options)
    command = tyro.cli(
        Annotated[Quickstart, subcommand("quickstart")]
        | Annotated[Tokens, subcommand("tokens")]
        | Annotated[Probe, subcommand("probe")]
        | Annotated[Train, subcommand("train", default=train)]
        | Annotated[Eval, subcommand("eval")]
        | Annotated[Table, subcommand("table")]
        | Annotated[Data, subcommand("data")]
        | Annotated[Convert, subcommand("convert")]
        | Annotated[Inspect, subcommand("inspect")]
        | Annotated[Faithfulness, subcommand("faithfulness")]
        | Annotated[Reproduce, subcommand("reproduce")]
        | Annotated[Search, subcommand("search")]
        | Annotated[PlanRun, subcommand("plan")]
        | Annotated[Recaption, subcommand("recaption")]
        | Annotated[Version, subcommand("version")],
        prog="longclip-lab",
        description="See, measure and train long-text CLIP.",
        args=arguments,
    )
    if isinstance(command, Train) and command.method != method:
        raise LabError(
            f"Name the method first, its defaults depend on it: train {command.method} ..."
        )
    return command


def _cost(seconds: float) -> str:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    gigabytes = peak / 2**30 if sys.platform == "darwin" else peak / 2**20
    minutes, rest = divmod(seconds, 60)
    spent = f"{minutes:.0f} min {rest:.0f} s" if minutes else f"{rest:.1f} s"
    return f"took {spent}, peak memory {gigabytes:.2f} GB"


def _show_warning(message: Warning | str, category: type[Warning], *place: Any) -> None:
    if issubclass(category, LabWarning):
        from tqdm import tqdm

        tqdm.write(f"warning: {message}", file=sys.stderr)  # above a progress bar, not into it
    else:
        _SHOW(message, category, *place)


_SHOW = warnings.showwarning

if __name__ == "__main__":
    sys.exit(main())
