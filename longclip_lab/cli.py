"""The command `longclip-lab`: reads its arguments, runs a command, turns errors into one line."""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from io import TextIOWrapper
from typing import Annotated, Any, get_args, get_type_hints

import tyro
from tyro.conf import subcommand

from longclip_lab.commands import (
    Convert,
    Faithfulness,
    Generate,
    Inspect,
    Probe,
    Quickstart,
    Reproduce,
    Search,
    Tokens,
    Version,
    say,
)
from longclip_lab.commands_data import Data, Recaption
from longclip_lab.commands_evaluation import Eval, Table
from longclip_lab.commands_training import PlanRun, Train, default_options
from longclip_lab.constants import refuse_renamed
from longclip_lab.errors import LabError, LabWarning, Numbers, PeerLostError, StoppedError

BAD_INPUT, INTERRUPTED, STOPPED, PEER_LOST = 2, 130, 75, 69
"""75 is EX_TEMPFAIL of sysexits.h: try again. 69 is its EX_UNAVAILABLE."""
LONGEST_NAME = 300
TOO_LARGE = "There is not enough memory for this here; ask for less at a time."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it went well, 2 for bad input, 130 when interrupted, 75 if a run was
    asked to stop and can go on, 69 if another process of it is gone."""
    for stream in (sys.stdout, sys.stderr):
        # A pipe may take ASCII only, and a file's name may be no text in any encoding.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            return _run(list(sys.argv[1:] if arguments is None else arguments))
        except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
            _drop_output()
            return 0
        except OSError as error:  # what the system refuses: no space, no permission, no network
            try:
                sys.stdout.flush()
            except OSError:
                _drop_output()
            return _complain(_told(error), BAD_INPUT)
        except MemoryError as error:
            return _complain(f"{TOO_LARGE} {error}".strip(), BAD_INPUT)
        except RuntimeError as error:
            if not _of_memory(error):
                raise
            return _complain(f"{TOO_LARGE} {str(error).splitlines()[0]}", BAD_INPUT)
        except UnicodeEncodeError as error:  # what is not UTF-8 reaches Python as lone surrogates
            part = ascii(error.object[max(0, error.start - 20) : error.end + 20])
            message = f"The text {part} is not valid Unicode: was it given in another encoding?"
            return _complain(message, BAD_INPUT)


def _run(arguments: list[str]) -> int:
    command = None
    try:
        command = _parse(arguments)
        began = time.perf_counter()
        command.run()
        if isinstance(command, Quickstart | Probe | Eval | Train):
            say(_cost(time.perf_counter() - began))
        sys.stdout.flush()
    except StoppedError as error:
        return _complain(str(error), STOPPED)
    except PeerLostError as error:
        return _complain(str(error), PEER_LOST)
    except LabError as error:
        return _complain(str(error), BAD_INPUT)
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
    except SystemExit:  # help was printed, or bad options named
        sys.stdout.flush()
        raise
    return 0


def check_options(command: Any) -> None:
    """Raise LabError for a number that its option's type does not allow, `Annotated[int, COUNT]`.

    Before anything is loaded: no minutes are spent on a run that cannot be meant.
    """
    hints = get_type_hints(type(command), include_extras=True)
    for field in fields(command):
        value = getattr(command, field.name)
        if is_dataclass(value):
            check_options(value)
            continue
        for numbers in _numbers_in(hints[field.name]):
            for one in value if isinstance(value, tuple) else (value,):
                if one is not None:
                    numbers.check(f"--{field.name.replace('_', '-')}", one)


def _numbers_in(hint: Any) -> list[Numbers]:
    """The ranges that a type is annotated with, in unions and tuples too."""
    own = [one for one in getattr(hint, "__metadata__", ()) if isinstance(one, Numbers)]
    return own + [one for part in get_args(hint) for one in _numbers_in(part)]


def _told(error: OSError) -> str:
    """What the system refused, with the file where there is one."""
    what = error.strerror or str(error) or type(error).__name__
    if error.filename is None:
        return what
    name = os.fsdecode(error.filename)
    if len(name) > LONGEST_NAME:  # data may name anything as a file; its beginning tells where
        name = f"{name[:LONGEST_NAME]}... ({len(name):,} characters)"
    return f"{name}: {what}"


def _of_memory(error: RuntimeError) -> bool:
    """Whether torch says that there is not enough memory; torch need not be loaded to ask."""
    named = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    return named or "can't allocate memory" in str(error)


def _drop_output() -> None:
    """Send what else is printed nowhere: at its end Python would try to write it again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def _parse(arguments: list[str]) -> Any:
    refuse_renamed(arguments, flags=True)
    # The defaults of a recipe depend on the method and three options: these are read first.
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--scale", default="tiny")
    first.add_argument("--preset", default="repository")
    first.add_argument("--dataset-size", default="3M")
    chosen, _ = first.parse_known_args(arguments)
    named = arguments[:1] == ["train"] and len(arguments) > 1 and not arguments[1].startswith("-")
    method = arguments[1] if named else "longclip"
    options = default_options(method, chosen.scale, chosen.preset, chosen.dataset_size)
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
        | Annotated[Generate, subcommand("generate")]
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
    check_options(command)
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
