"""What `longclip-lab` can do: a dataclass for each subcommand.

A field and its docstring are an option and its help. Everything heavy is imported when a command
runs, so that the help answers at once.
"""

from __future__ import annotations

import os
import textwrap
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional

from longclip_lab import __version__
from longclip_lab.errors import COUNT, SEED, LabWarning
from longclip_lab.files import atomic_write, to_json

NAMED = 100
DataName = Literal["world", "coco"]


@dataclass(kw_only=True)
class Quickstart:
    """The first lesson, headless: probe, stretch, fine-tune, evaluate, and a report to open."""

    out: Path = Path("runs/quickstart")
    """Folder for report.html and results.json."""
    seed: Annotated[int, SEED] = 0
    """Seed of the fine-tuning runs."""
    progress: bool = True
    """Show progress bars."""

    def run(self) -> None:
        from longclip_lab.reproduction import quickstart

        results = quickstart.run(self.out, self.seed, self.progress, announce=say)
        say(results.table().round(1).to_string(index=False, na_rep=""))
        say(f"report: {self.out / 'report.html'}; all numbers: {self.out / 'results.json'}")


@dataclass(kw_only=True)
class Tokens:
    """What a model would never read: texts, sub-captions and tokens of a file or folder."""

    path: Positional[Path]
    """A .txt (a text a line), .jsonl or .json file, or a folder of descriptions in IIW's layout."""
    tokenizer: Literal["clip", "bert", "world"] = "clip"
    """Whose tokens to count."""
    key: str | None = None
    """Where a .jsonl or .json record keeps its text; found by itself for the usual names."""
    json: bool = False
    """Print one JSON object instead of sentences."""

    def run(self) -> None:
        from longclip_lab.text import read_texts, text_statistics

        statistics = text_statistics(read_texts(self.path, self.key), self.tokenizer)
        say(to_json(statistics.to_dict()) if self.json else str(statistics))


@dataclass(kw_only=True)
class Files:
    """What the commands that read a data set have in common."""

    root: Path | None = None
    """Folder of the data set, in COCO's layout: {split}/*.jpg and
    annotations/captions_{split}.json."""
    split: str | None = None
    """Part of the data set; train2017 to train on, otherwise val2017."""
    skip_bad: bool = False
    """Leave out broken or missing pictures and empty captions, counted and named, instead of
    stopping."""
    progress: bool = True
    """Show progress bars."""

    def open_coco(self, split: str) -> Any:
        from longclip_lab.data import open_data

        return announced(
            open_data(
                "coco",
                self.root,
                self.split or split,
                skip_bad=self.skip_bad,
                progress=self.progress,
            )
        )


@dataclass(kw_only=True)
class Probe(Files):
    """How far a model reads: the truncation curve and, on the world, the counterfactual probe."""

    model: Positional[str]
    """A bundled model (tiny, tiny-notail), an open_clip name, a checkpoint file or a saved
    folder."""
    pretrained: str | None = None
    """open_clip's tag, or a file of weights, for an open_clip name."""
    data: DataName = "world"
    """The drawn world, or a folder in COCO's layout."""
    pairs: Annotated[int, COUNT] = 1000
    """Pairs to draw (world)."""
    out: Path | None = None
    """JSON file for the numbers."""

    def run(self) -> None:
        from longclip_lab import probing, world

        on_world = self.data == "world"
        data = world.pairs(self.pairs) if on_world else self.open_coco("val2017")
        clip = load_model(self.model, self.pretrained)
        curve = probing.truncation_curve(clip, readable(clip, data), progress=self.progress)
        say(curve.table().round(1).to_string(index=False))
        results = {"data": data_facts(data), "truncation_curve": curve.to_dict()}
        if on_world:
            questions = world.counterfactuals(self.pairs)
            answers = probing.counterfactual_probe(clip, questions, progress=self.progress)
            say(answers.table(["size"]).round(1).to_string(index=False))
            results["counterfactual_probe"] = answers.to_dict()
        write_json(self.out, results)


@dataclass
class Version:
    """Print the version."""

    def run(self) -> None:
        say(__version__)


def load_model(name: str, pretrained: str | None, seed: int = 0) -> Any:
    import torch

    from longclip_lab import models

    torch.manual_seed(seed)  # An architecture without weights is the same one on the next call.
    return models.load(name, pretrained)


def readable(clip: Any, data: Any) -> Any:
    """Real captions as the model can read them; the tiny ones know the drawn world's words only."""
    from longclip_lab.data import keep_known_words

    readable = keep_known_words(data, clip.tokenizer)
    warn_of_words(clip, data.name, readable.source.get("words", {}))
    return readable


def warn_of_words(clip: Any, name: str, words: dict[str, int]) -> None:
    """Say that a model cannot read all words of a data set."""
    if not words.get("left_out") and "known" not in words:
        return
    if "known" in words:
        left_out = f"all other words of {name} are left out, uncounted"
    else:
        left_out = f"{words['left_out']} of the {words['of']} words of {name} are left out"
    message = (
        f"{clip.name} knows the {len(clip.tokenizer.words)} words of the drawn world; {left_out}. "
        "Expect nothing of the scores."
    )
    warnings.warn(message, LabWarning, stacklevel=3)


def announced(data: Any) -> Any:
    """Say what a data set holds and name what was left out of it."""
    captions = sum(map(len, data.captions))
    say(f"{data.name}: {len(data)} pictures with {captions} captions")
    say_skipped(data.skipped)
    return data


def say_skipped(skipped: dict[str, list[str]]) -> None:
    """Name what was left out, and why."""
    for reason, names in skipped.items():
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        say(f"left out, {reason}: {len(names)}")
        say(textwrap.indent(textwrap.fill(", ".join(names[:NAMED]) + more, 96), "  "))


def data_facts(data: Any) -> dict[str, Any]:
    """What a file of results says of its data."""
    return {"name": data.name, "source": data.source, "skipped": data.skipped}


def write_json(path: Path | None, content: Any) -> None:
    """Write results where they were asked for, if they were."""
    if path is not None:
        atomic_write(path, to_json(content, indent=2) + "\n")
        say(f"written to {path}")


def say(text: str) -> None:
    """Print, once however many processes there are."""
    if os.environ.get("RANK", "0") == "0":
        print(text, flush=True)
