"""What `longclip-lab` can do: a dataclass for each subcommand.

A field and its docstring are an option and its help. Everything heavy is imported when a command
runs, so that the help answers at once.
"""

from __future__ import annotations

import json
import os
import textwrap
import warnings
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from longclip_lab import __version__
from longclip_lab.errors import LabError, LabWarning
from longclip_lab.files import atomic_write
from longclip_lab.training.recipes import Preset, Recipe, Scale, longclip

NAMED = 100
DataName = Literal["world", "coco"]


@dataclass(kw_only=True)
class Quickstart:
    """The first lesson, headless: probe, stretch, fine-tune, evaluate, and a report to open."""

    out: Path = Path("runs/quickstart")
    """Folder for report.html and results.json."""
    seed: int = 0
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
        print(json.dumps(statistics.to_dict()) if self.json else statistics)


@dataclass(kw_only=True)
class _Files:
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
class Probe(_Files):
    """How far a model reads: the truncation curve and, on the world, the counterfactual probe."""

    model: Positional[str]
    """A bundled model (tiny, tiny-notail), an open_clip name, a checkpoint file or a saved
    folder."""
    pretrained: str | None = None
    """open_clip's tag, or a file of weights, for an open_clip name."""
    data: DataName = "world"
    """The drawn world, or a folder in COCO's layout."""
    pairs: int = 1000
    """Pairs to draw (world)."""
    out: Path | None = None
    """JSON file for the numbers."""

    def run(self) -> None:
        from longclip_lab import probing, world

        on_world = self.data == "world"
        data = world.pairs(self.pairs) if on_world else self.open_coco("val2017")
        clip = load_model(self.model, self.pretrained)
        curve = probing.truncation_curve(clip, _readable(clip, data), progress=self.progress)
        say(curve.table().round(1).to_string(index=False))
        results = {"data": _facts(data), "truncation_curve": curve.to_dict()}
        if on_world:
            questions = world.counterfactuals(self.pairs)
            answers = probing.counterfactual_probe(clip, questions, progress=self.progress)
            say(answers.table(["size"]).round(1).to_string(index=False))
            results["counterfactual_probe"] = answers.to_dict()
        _write_json(self.out, results)


@dataclass(kw_only=True)
class Eval(_Files):
    """Retrieval and zero-shot scores of one or more models, with intervals."""

    models: Annotated[Positional[tuple[str, ...]], arg(metavar="MODEL [MODEL ...]")]
    """Bundled models, open_clip names, checkpoint files, saved folders."""
    pretrained: str | None = None
    """open_clip's tag, or a file of weights, for open_clip names."""
    benchmark: tuple[str, ...] = ()
    """World benchmarks by name; all of them when neither this nor --data coco is given."""
    data: DataName = "world"
    """The drawn world, or a folder in COCO's layout."""
    out: Path | None = None
    """JSON file for the records and for what was left out of the data."""

    def run(self) -> None:
        if not self.models:
            raise LabError("Name at least one model, for example: longclip-lab eval tiny.")
        files = [self.open_coco("val2017")] if self.data == "coco" else []
        clips = [load_model(name, self.pretrained) for name in self.models]
        from longclip_lab import evaluation

        records = []
        for clip in clips:
            benchmarks = [*self.benchmark, *(_readable(clip, data) for data in files)]
            result = evaluation.evaluate(clip, *benchmarks, progress=self.progress)
            say(result.table().to_string(index=False))
            records += [record.to_dict() for record in result]
        _write_json(self.out, {"records": records, "data": [_facts(data) for data in files]})


@dataclass(frozen=True)
class RecipeOptions(Recipe):
    """Fields of longclip_lab.training.Recipe; --scale and --preset set the defaults shown."""

    def __post_init__(self) -> None:
        """Nothing yet: `checked` makes a Recipe, whose complaint becomes one line."""

    def checked(self, default: Recipe) -> Recipe:
        """The recipe. Whichever of steps and epochs was changed stands in for the other."""
        values = {f.name: getattr(self, f.name) for f in fields(Recipe)}
        if self.steps is not None and self.epochs is not None:
            changed_epochs = self.epochs != default.epochs
            if changed_epochs != (self.steps != default.steps):
                values["steps" if changed_epochs else "epochs"] = None
        return Recipe(**values)


def default_options(scale: Scale = "tiny", preset: Preset = "repository") -> RecipeOptions:
    return RecipeOptions(**asdict(longclip(scale, preset)))


@dataclass(kw_only=True)
class Train(_Files):
    """Fine-tune a model: stretch its positions if need be, then follow a recipe."""

    method: Positional[Literal["longclip"]]
    """longclip: long captions, and short ones against the primary components (PCM)."""
    model: str = "tiny"
    """A bundled model, an open_clip name, a checkpoint file or a saved folder."""
    pretrained: str | None = None
    """open_clip's tag, or a file of weights, for an open_clip name."""
    stretch: Literal["kps", "linear", "random", "none"] = "kps"
    """How to stretch the positions of a model that has not been stretched yet."""
    keep: int = 20
    """Positions that stretching keeps."""
    ratio: float = 4
    """How many times as many the others become."""
    scale: Scale = "tiny"
    """Size of the run; sets the recipe's defaults."""
    preset: Preset = "repository"
    """Which of the two published settings; sets the recipe's defaults."""
    data: DataName = "world"
    """The world's fine-tuning set, or a folder in COCO's layout."""
    out: Path | None = None
    """Folder for log, checkpoints and the trained model."""
    resume: bool = False
    """Go on from the last checkpoint in --out."""
    recipe: OmitArgPrefixes[RecipeOptions] = field(default_factory=default_options)

    def run(self) -> None:
        recipe = self.recipe.checked(longclip(self.scale, self.preset))
        data = self.open_coco("train2017") if self.data == "coco" else None
        from longclip_lab import models, training

        clip = load_model(self.model, self.pretrained, recipe.seed)
        if clip.card["positions"]["method"] == "none":
            clip = models.stretch(
                clip, self.keep, self.ratio, method=self.stretch, seed=recipe.seed
            )
        data = data and _readable(clip, data)
        run = training.train(clip, recipe, data, self.out, self.resume, progress=self.progress)
        last = run.history[-1]
        say(f"{run.model.name}: step {last['step']}, loss {last['loss']:.4f}")
        if recipe.objective == "pcm":
            kept = f"{100 * last['variance_kept']:.2f}% of the image features' variance"
            say(f"{recipe.k} primary components keep {kept}")
        for which, count in run.num_truncated.items():
            if count:
                say(f"{count} {which} texts are cut at {run.model.context_length} tokens")
        if run.folder is not None:
            say(f"written to {run.folder}; the model is in {run.folder / 'model'}")


@dataclass
class Version:
    """Print the version."""

    def run(self) -> None:
        print(__version__)


def load_model(name: str, pretrained: str | None, seed: int = 0) -> Any:
    import torch

    from longclip_lab import models

    torch.manual_seed(seed)  # An architecture without weights is the same one on the next call.
    return models.load(name, pretrained)


def _readable(clip: Any, data: Any) -> Any:
    """Real captions as the model can read them; the tiny ones know the drawn world's words only."""
    from longclip_lab.data import keep_known_words

    readable = keep_known_words(data, clip.tokenizer)
    words = readable.source.get("words", {})
    if words.get("left_out"):
        message = (
            f"{clip.name} knows the {len(clip.tokenizer.words)} words of the drawn world; "
            f"{words['left_out']} of the {words['of']} words of {data.name} are left out. "
            "Expect nothing of the scores."
        )
        warnings.warn(message, LabWarning, stacklevel=2)
    return readable


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


def _facts(data: Any) -> dict[str, Any]:
    return {"name": data.name, "source": data.source, "skipped": data.skipped}


def _write_json(path: Path | None, content: Any) -> None:
    if path is not None:
        atomic_write(path, json.dumps(content, indent=2) + "\n")
        say(f"written to {path}")


def say(text: str) -> None:
    """Print, once however many processes there are."""
    if os.environ.get("RANK", "0") == "0":
        print(text, flush=True)
