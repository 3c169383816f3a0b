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
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import torch
from corpus import Corpus
from safetensors import deserialize
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


class Fault(Exception):
    """What is wrong with what came of an input: its kind in a few words, and the whole story."""


@dataclass
class Report:
    """Inputs by target and outcome, and failures by what and where they are."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: dict[str, list[str]] = field(default_factory=dict)
    """By kind: the inputs (target:number) that fail so."""
    details: dict[str, str] = field(default_factory=dict)
    """Of the first input of a kind."""
    seconds: Counter[str] = field(default_factory=Counter)

    @property
    def inputs(self) -> int:
        return self.outcomes.total()

    def __str__(self) -> str:
        columns = list(dict.fromkeys(outcome for _, outcome in self.outcomes))
        heads = [*columns, "inputs", "ms each"]
        lines = [" " * 12 + "".join(f"{name:>10}" for name in heads)]
        for target, seconds in self.seconds.items():
            counts = [self.outcomes[target, outcome] for outcome in columns]
            counts += [sum(counts), round(1000 * seconds / sum(counts))]
            lines.append(f"{target:<12}" + "".join(f"{number:>10}" for number in counts))
        for kind, inputs in sorted(self.failures.items(), key=lambda one: -len(one[1])):
            lines += ["", f"{len(inputs)} x {kind}", f"  {' '.join(inputs[:6])}"]
            lines += [f"  {line}" for line in self.details[kind].splitlines()]
        failures = sum(map(len, self.failures.values()))
        lines += ["", f"{self.inputs} inputs, {failures} failures of {len(self.failures)} kinds"]
        return "\n".join(lines)


def fuzz(
    home: Path,
    seed: int = 0,
    seconds: float = float("inf"),
    inputs: int | None = None,
    targets: Mapping[str, tuple[Target, float]] = TARGETS,
    numbers: Sequence[int] = (),
    keep: Path | None = None,
    limit: float = LIMIT,
) -> Report:
    """Fuzz for so long, or so many `inputs` of each target, or these `numbers` of each.

    Input i of a target depends on (seed, target, i) and nothing else. `keep` is the folder for the
    first input of every kind of failure, as it was before the call.
    """
    report, corpus, case = Report(), Corpus(home / "corpus"), home / "case"
    kept = None if keep is None else home / "kept"
    endless = count() if inputs is None else range(inputs)
    queues = {name: iter(numbers or copy(endless)) for name in targets}
    spent, ends = dict.fromkeys(targets, 0.0), time.monotonic() + seconds
    with _quiet(home):
        while queues and time.monotonic() < ends:
            name = min(queues, key=lambda one: spent[one] / targets[one][1])
            number = next(queues[name], None)
            if number is None:
                del queues[name]
                continue
            began = time.monotonic()
            rng = random.Random(f"{seed}:{name}:{number}")
            again = f"python tests/fuzz --seed {seed} --only {name}:{number}"
            given, made = _emptied(case / "given"), _emptied(case / "made")
            os.chdir(made)
            call = targets[name][0](corpus, rng, given, made)
            if kept is not None:
                shutil.rmtree(kept, ignore_errors=True)
                shutil.copytree(case, kept, symlinks=True)
                # Where the interpreter itself dies, this says of what.
                (_emptied(keep / "now") / "again.txt").write_text(again)
            before = tree(given), tree(made)
            start = time.perf_counter()
            try:
                outcome = _called(call, rng.choice(["utf-8", "cp1252"]), limit)
                _judge_files(before, given, made, outcome == "refused" and name in LASTING)
            except Fault as fault:
                outcome, (what, story) = "fails", fault.args
                kind = f"{name}: {what}"
                report.failures.setdefault(kind, []).append(f"{name}:{number}")
                said = " ".join(map(repr, map(str, call))) if isinstance(call, list) else call
                whole = f"again: {again}\ncall: {said}\n{story}"
                if kind not in report.details and kept is not None:
                    place = _emptied(keep / f"{name}-{number}")
                    shutil.copytree(kept, place, symlinks=True, dirs_exist_ok=True)
                    (place / "failure.txt").write_text(whole, errors="backslashreplace")
                short = whole.splitlines()
                report.details.setdefault(kind, "\n".join(short[:2] + short[2:][-6:]))
            report.seconds[name] += time.perf_counter() - start
            report.outcomes[name, outcome] += 1
            spent[name] += time.monotonic() - began
    return report


LASTING = ("runs", "recaptions")
"""Where a refusal must leave the folder that it refuses as it was; caches may be made anew."""


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _called(call: Call, encoding: str, limit: float) -> str:
    """What came of a call. Raises Fault for anything but success and a refusal in a few words."""
    # Neither a terminal nor a pipe need be of UTF-8.
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding) for _ in "oe")
    code, refusal = 0, ""
    try:
        with _within(limit), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([str(one) for one in call]) if isinstance(call, list) else call() and 0
    except (LabError, OSError) as error:
        # The command line says in a line which file of the user's it was.
        expected = isinstance(error, LabError) or error.filename is not None
        if isinstance(call, list) or not expected:
            raise _fault(error) from error
        code, refusal = 2, str(error)
    except SystemExit as stopped:  # the parser of the command line
        code, refusal = stopped.code, "usage"
    except Hang as hang:
        raise Fault(f"takes more than {limit:g} s", traceback.format_exc()) from hang
    except Exception as error:
        raise _fault(error) from error
    for stream in (out, err):
        stream.flush()
    spoken, complained = (one.buffer.getvalue().decode(encoding, "replace") for one in (out, err))
    refusal = refusal or complained.rpartition("error: ")[2]
    if (code or 0) not in CODES or "Traceback" in complained:
        raise Fault(f"exit code {code}, or a traceback is printed", complained)
    longest = LONGEST_MESSAGE + sum(map(len, map(str, call if isinstance(call, list) else [])))
    if code == 2 and not 0 < len(refusal) < longest:
        raise Fault("a refusal of no or too many words", f"{len(refusal)}: {refusal[:300]}")
    if code == 0 and isinstance(call, list) and call[-1] == "--json":
        _judge_json(spoken, "what is printed")
    return CODES[code or 0]


def _fault(error: Exception) -> Fault:
    """By the innermost line of the library that an error went through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "longclip_lab" in frame.filename] or list(frames)
    place = f"{Path(ours[-1].filename).name}:{ours[-1].name}"
    story = "".join(traceback.format_exception(error))
    return Fault(f"{type(error).__name__} in {place}", story)


def _judge_files(before: tuple[dict, dict], given: Path, made: Path, lasting: bool) -> None:
    """Raises Fault if a call has left files that it should not have left like this."""
    changed = [name for name, _ in set(before[0].items()) ^ set(tree(given).items())]
    if changed:
        raise Fault("changes the user's files", ", ".join(changed))
    now = tree(made)
    for name in sorted(name for name in now if now[name] != before[1].get(name)):
        if Path(name).name.startswith(".") and name.endswith(".part"):
            raise Fault("leaves a file half-written", name)
        if (made / name).is_dir():
            continue
        if name.endswith(".json"):
            _judge_json((made / name).read_bytes(), name)
        if name.endswith(".safetensors"):
            deserialize((made / name).read_bytes())  # opens; by bytes: a path may be no UTF-8
    lost = [name for name, digest in before[1].items() if now.get(name) != digest]
    if lasting and lost:
        raise Fault("refuses, and changes what was there", ", ".join(lost))


def _judge_json(content: str | bytes, name: str) -> None:
    try:
        parse_json(content, name)
    except LabError as error:
        raise Fault("gives out JSON that is none", f"{error}\n{content[:500]!r}") from None


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder with its SHA-256, every folder with nothing."""
    found = {}
    for path in folder.rglob("*"):
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[os.fspath(path.relative_to(folder))] = digest
    return found


@contextlib.contextmanager
def _within(limit: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hang

    handler, began = signal.signal(signal.SIGALRM, stop), time.monotonic()
    theirs, interval = signal.setitimer(signal.ITIMER_REAL, limit)  # a test's own time limit
    try:
        yield
    finally:
        left = max(0.1, theirs - time.monotonic() + began) if theirs else 0
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, left, interval)


@contextlib.contextmanager
def _quiet(home: Path) -> Iterator[None]:
    """Nothing of what is called reaches this process, its folder or the user's cache."""
    where, environment = Path.cwd(), dict(os.environ)
    os.environ |= {"LONGCLIP_LAB_CACHE": str(home / "cache"), "HOME": str(home)}
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            yield
    finally:
        os.chdir(where)
        os.environ.clear()
        os.environ.update(environment)
