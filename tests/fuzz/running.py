"""One input after the other: called, timed, judged and, if something is wrong, kept."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import random
import shutil
import signal
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from corpus import Corpus
from safetensors import safe_open
from targets import TARGETS, Call, Target

from longclip_lab.cli import main
from longclip_lab.errors import LabError
from longclip_lab.files import parse_json

CODES = {0: "done", 2: "refused", 69: "peer lost", 75: "stopped"}
LIMIT = 30.0
"""Seconds for one input."""
LONGEST_MESSAGE = 4000


class Hang(BaseException):
    """An input took longer than LIMIT."""


@dataclass
class Report:
    """Inputs by target and outcome, and failures by what and where they are."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: dict[str, list[str]] = field(default_factory=dict)
    """By kind: the inputs (target:number) that fail so."""
    details: dict[str, str] = field(default_factory=dict)
    seconds: Counter[str] = field(default_factory=Counter)

    @property
    def inputs(self) -> int:
        return self.outcomes.total()

    def __str__(self) -> str:
        columns = list(dict.fromkeys(outcome for _, outcome in self.outcomes))
        lines = [f"{'':<12}" + "".join(f"{name:>10}" for name in [*columns, "inputs", "ms each"])]
        for target in dict.fromkeys(target for target, _ in self.outcomes):
            counts = [self.outcomes[target, outcome] for outcome in columns]
            each = 1000 * self.seconds[target] / sum(counts)
            lines.append(
                f"{target:<12}"
                + "".join(f"{n:>10}" for n in [*counts, sum(counts)])
                + f"{each:>10.0f}"
            )
        for kind, inputs in sorted(self.failures.items(), key=lambda one: -len(one[1])):
            lines += [
                "",
                f"{len(inputs)} x {kind}",
                f"  {' '.join(inputs[:6])}",
                self.details[kind],
            ]
        lines += [
            "",
            f"{self.inputs} inputs, {sum(map(len, self.failures.values()))} failures of {len(self.failures)} kinds",
        ]
        return "\n".join(lines)


def fuzz(
    home: Path,
    seed: int = 0,
    seconds: float = float("inf"),
    inputs: int | None = None,
    targets: Mapping[str, tuple[Target, float]] = TARGETS,
    numbers: Iterable[int] | None = None,
    keep: Path | None = None,
    limit: float = LIMIT,
) -> Report:
    """Fuzz for so long, or so many `inputs` of each target, or these `numbers` of each.

    Input i of a target depends on (seed, target, i) and nothing else. `keep` is the folder for the
    first input of every kind of failure, as it was and as it was left.
    """
    report, corpus = Report(), Corpus(home / "corpus")
    queues = {
        name: iter(numbers) if numbers is not None else iter(range(inputs or 10**9))
        for name in targets
    }
    spent = dict.fromkeys(targets, 0.0)
    ends = time.monotonic() + seconds
    with _quiet(home):
        while queues and time.monotonic() < ends:
            name = min(queues, key=lambda one: spent[one] / targets[one][1])
            number = next(queues[name], None)
            if number is None:
                del queues[name]
                continue
            began = time.monotonic()
            _one(report, corpus, name, targets[name][0], seed, number, home / "case", keep, limit)
            spent[name] += time.monotonic() - began
    return report


def _one(
    report: Report, corpus: Corpus, name: str, target: Target, seed: int, number: int,
    home: Path, keep: Path | None, limit: float,
) -> None:  # fmt: skip
    shutil.rmtree(home, ignore_errors=True)
    given, made = home / "given", home / "made"
    given.mkdir(parents=True), made.mkdir()
    os.chdir(made)
    call = target(corpus, random.Random(f"{seed}:{name}:{number}"), given, made)
    before = tree(given), tree(made)
    kept = keep and home.with_name("kept")
    if kept:
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(home, kept, symlinks=True)
        # Where even the interpreter dies, this says of what.
        keep.mkdir(parents=True, exist_ok=True)
        (keep / "now.txt").write_text(f"--seed {seed} --only {name}:{number}\n")
    began = time.perf_counter()
    outcome, wrong = _called(call, limit)
    report.seconds[name] += time.perf_counter() - began
    wrong = wrong or _left(name, outcome, before, given, made)
    report.outcomes[name, outcome] += 1
    if wrong:
        kind, detail = wrong
        kind = f"{name}: {kind}"
        report.failures.setdefault(kind, []).append(f"{name}:{number}")
        if kind in report.details:
            return
        said = " ".join(map(repr, map(str, call))) if isinstance(call, list) else call.__qualname__
        again = f"again: python tests/fuzz --seed {seed} --only {name}:{number}"
        report.details[kind] = "\n".join(
            f"  {line}" for line in (again, f"call: {said}", *detail.splitlines()[-6:])
        )
        if keep:
            place = keep / f"{name}-{number}"
            shutil.rmtree(place, ignore_errors=True)
            shutil.move(kept, place)
            (place / "failure.txt").write_text(
                f"{kind}\n{again}\n{said}\n\n{detail}\n", errors="backslashreplace"
            )


def _called(call: Call, limit: float) -> tuple[str, tuple[str, str] | None]:
    """What came of a call: (outcome, what is wrong with it and the whole story)."""
    # Every other terminal and pipe is not of UTF-8.
    out, err = (
        io.TextIOWrapper(io.BytesIO(), "cp1252" if len(str(call)) % 2 else "utf-8") for _ in "oe"
    )
    code, said = 0, ""
    try:
        with _within(limit), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            if isinstance(call, list):
                code = main([str(one) for one in call])
            else:
                call()
    except LabError as error:
        code, said = (2, str(error)) if not isinstance(call, list) else (1, "")
    except SystemExit as stopped:  # the parser of the command line
        code = stopped.code if isinstance(stopped.code, int) else 1
    except Hang:
        return "hangs", ("takes too long", traceback.format_exc())
    except KeyboardInterrupt:
        raise
    except OSError as error:  # of a file that the user named: the command line says it in a line
        if error.filename is None or isinstance(call, list):
            return "fails", (f"{type(error).__name__} in {_place(error)}", traceback.format_exc())
        code, said = 2, str(error)
    except BaseException as error:
        return "fails", (f"{type(error).__name__} in {_place(error)}", traceback.format_exc())
    spoken, complained = (
        stream.buffer.getvalue().decode(stream.encoding, "replace")
        for stream in map(_flushed, (out, err))
    )
    if code not in CODES:
        return "fails", (f"exit code {code}", complained)
    if "Traceback" in complained:
        return "fails", ("a traceback is printed", complained)
    said = said or complained.rpartition("error: ")[2]
    if code == 2 and not said.strip():
        return "fails", ("refused without a word", spoken)
    if code == 2 and len(said) > LONGEST_MESSAGE:
        return "fails", (f"a message of {len(said)} characters", said[:300])
    if code == 0 and isinstance(call, list) and call[-1] == "--json":
        try:
            parse_json(spoken, "what is printed")
        except LabError as error:
            return "fails", ("--json prints no JSON", f"{error}\n{spoken[:500]}")
    return CODES[code], None


def _flushed(stream: Any) -> Any:
    stream.flush()
    return stream


def _left(
    name: str, outcome: str, before: tuple[dict, dict], given: Path, made: Path
) -> tuple[str, str] | None:
    """What is wrong with the files that a call leaves."""
    now = tree(given)
    if changed := sorted(
        name for name in before[0].keys() | now.keys() if before[0].get(name) != now.get(name)
    ):
        return "changes the user's files", ", ".join(changed)
    left = tree(made)
    news = [name for name in sorted(left) if before[1].get(name) != left[name]]
    parts = [name for name in news if Path(name).name.startswith(".") and name.endswith(".part")]
    if parts:
        return "leaves a file half-written", ", ".join(parts)
    for new in news:
        try:
            if new.endswith(".json"):
                parse_json((made / new).read_bytes(), new)
            if new.endswith(".safetensors"):
                with safe_open(made / new, "pt"):
                    pass
        except Exception as error:
            return "writes a file that cannot be read", f"{new}: {error}"
    lost = [name for name in before[1] if left.get(name) != before[1][name]]
    if outcome == "refused" and name in ("runs", "recaptions") and lost:
        return "refuses, and changes what was there", ", ".join(lost)
    return None


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder with its SHA-256, every folder with nothing."""
    return {
        os.fspath(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else ""
        for path in folder.rglob("*")
    }


def _place(error: BaseException) -> str:
    """The innermost line of the library that an error went through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "longclip_lab" in frame.filename] or frames
    return f"{Path(ours[-1].filename).name}:{ours[-1].name}"


@contextlib.contextmanager
def _within(limit: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    left = signal.setitimer(signal.ITIMER_REAL, limit)  # a test's own time limit, say
    began = time.monotonic()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left[0]:
            signal.setitimer(
                signal.ITIMER_REAL, max(0.1, left[0] - time.monotonic() + began), left[1]
            )


@contextlib.contextmanager
def _quiet(home: Path) -> Iterator[None]:
    """Nothing of what is called reaches this process, its folder or the user's cache."""
    where, environment = Path.cwd(), dict(os.environ)
    os.environ |= {
        "LONGCLIP_LAB_CACHE": str(home / "cache"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    os.environ |= {"HOME": str(home)}
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            yield
    finally:
        os.chdir(where)
        os.environ.clear()
        os.environ.update(environment)
