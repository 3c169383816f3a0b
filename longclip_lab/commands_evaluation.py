"""What `longclip-lab eval` and `longclip-lab table` can do; see `longclip_lab.commands`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from longclip_lab.commands import (
    DataName,
    Files,
    data_facts,
    load_model,
    readable_data,
    say,
    say_skipped,
    write_json,
)
from longclip_lab.errors import COUNT, LabError, LabWarning
from longclip_lab.files import atomic_write


@dataclass(kw_only=True)
class Eval(Files):
    """Retrieval and zero-shot scores of one or more models on named benchmarks, with intervals.

    With --out DIR every run leaves a record, and an interrupted call is gone on with: pictures that
    were encoded stay encoded, and --skip-existing leaves finished runs alone.
    """

    models: Annotated[Positional[tuple[str, ...]], arg(metavar="MODEL [MODEL ...]")]
    """Bundled models, open_clip names, checkpoint files, saved folders."""
    pretrained: str | None = None
    """open_clip's tag, or a file of weights, for those models that are open_clip names."""
    benchmark: tuple[str, ...] = ()
    """Benchmarks by name (`longclip-lab data list`); all of the drawn world's when neither this nor
    --data coco is given."""
    data: DataName = "world"
    """The drawn world, or a folder in COCO's layout that is no benchmark by name."""
    length: tuple[Annotated[int, COUNT], ...] = ()
    """Cut texts at so many tokens, both special ones counted; by default at what the model reads.
    Several give a run each."""
    out: Path | None = None
    """Folder for one JSON record a run and for the pictures' features; a name that ends in .json is
    one file with all records of this call instead."""
    skip_existing: bool = False
    """Leave runs alone whose record is in --out. A record under other settings is replaced, and
    that is said; other weights and other data have a record of their own."""
    allow_partial: bool = False
    """Go on with what is there of an incomplete benchmark; the record says partial."""

    def run(self) -> None:
        self._check()
        files = [self.open_coco("val2017")] if self.data == "coco" else []
        clips = self._loaded()
        lengths = [self._lengths(clip) for clip in clips]
        from longclip_lab import evaluation
        from longclip_lab.evaluation.scoring import Scorer

        named = self.benchmark or (() if files else evaluation.BENCHMARKS)
        opened = list(self._opened(named))
        folder = self.out if self._is_folder() else None
        features = None if folder is None else folder / evaluation.scoring.FEATURES
        records = []
        plans = [
            [
                *(readable_data(clip, task) for task in opened),
                *(task for pairs in files for task in evaluation.tasks(readable_data(clip, pairs))),
            ]
            for clip in clips
        ]
        for clip, plan, at in zip(clips, plans, lengths, strict=True):
            scorer = Scorer(clip, features=features, progress=self.progress)
            made = [self._run(scorer, task, length, folder) for task in plan for length in at]
            frame = evaluation.Evaluation(made).table()
            if len(at) > 1:
                frame.insert(2, "tokens", [record.length for record in made for _ in record.scores])
            say(frame.to_string(index=False))
            records += made
        if self.out is not None and folder is None:
            facts = [data_facts(data) for data in (*files, *opened)]
            write_json(self.out, {"records": [r.to_dict() for r in records], "data": facts})

    def _check(self) -> None:
        if not self.models:
            raise LabError("Name at least one model, for example: longclip-lab eval tiny.")
        if self.skip_existing and not self._is_folder():
            raise LabError("--skip-existing looks for records in a folder: give it with --out DIR.")
        if self._is_folder() and self.out.is_file():
            raise LabError(f"{self.out} is a file; --out needs a folder, or a name in .json.")

    def _loaded(self) -> list[Any]:
        from open_clip import list_models

        of_open_clip = {name for name in self.models if name.replace("/", "-") in list_models()}
        # Without any such name, loading complains of the tag.
        takers = of_open_clip or set(self.models)
        return [
            load_model(name, self.pretrained if name in takers else None)
            for name in dict.fromkeys(self.models)
        ]

    def _is_folder(self) -> bool:
        return self.out is not None and self.out.suffix != ".json"

    def _lengths(self, clip: Any) -> list[int]:
        """The lengths to evaluate a model at; what it cannot read is said, not dropped."""
        if not self.length:
            return [clip.context_length]
        fitting = [n for n in dict.fromkeys(self.length) if 3 <= n <= clip.context_length]
        wrong = [n for n in self.length if n not in fitting]
        if not fitting:
            raise LabError(
                f"{clip.name} reads 3 to {clip.context_length} tokens of a text; none of --length "
                f"{' '.join(map(str, self.length))} is among them."
            )
        if wrong:
            listed = " and ".join(map(str, wrong))
            say(f"left out: {clip.name} at {listed}, it reads 3 to {clip.context_length} tokens")
        return fitting

    def _opened(self, names: Sequence[str]) -> Iterator[Any]:
        from longclip_lab.data.benchmarks import open_benchmark

        for name in dict.fromkeys(names):
            opened = open_benchmark(name, self.root, self.allow_partial, self.progress)
            read = (
                f"{len(opened.texts):,} texts"
                if opened.labels is None
                else (f"{len(opened.class_names):,} classes")
            )
            say(f"{name}: {len(opened.images):,} pictures, {read}")
            say_skipped(opened.skipped)
            if opened.partial:
                message = f"{name} is only partly there: its scores compare with nothing else's."
                warnings.warn(message, LabWarning, stacklevel=2)
            yield opened

    def _run(self, scorer: Any, task: Any, length: int, folder: Path | None) -> Any:
        if folder is None:
            return scorer.record(task, length)
        from longclip_lab.evaluation import run

        done = run(scorer, task, length, folder, self.skip_existing)
        said = {
            "made": "written to",
            "kept": "is there:",
            "replaced": "replaced, " + done.why + ":",
        }
        say(f"{scorer.clip.name} on {task.name} at {length} tokens {said[done.how]} {done.path}")
        return done.record


@dataclass(kw_only=True)
class Table:
    """The records of a folder side by side, with the papers' numbers; differences are named."""

    folder: Annotated[Positional[Path], arg(metavar="DIR")]
    """Where `eval --out DIR` wrote its records."""
    format: Literal["markdown", "csv", "html"] = "markdown"
    """Markdown and HTML: models by benchmarks. CSV: one line a score, with its notes in words."""
    scores: tuple[str, ...] = ()
    """Which scores, such as "i2t R@5"; by default R@1 both ways and top-1."""
    published: bool = True
    """Add the papers' numbers on the same benchmarks."""
    out: Path | None = None
    """File to write; by default it is printed."""

    def run(self) -> None:
        from longclip_lab.evaluation import read_records
        from longclip_lab.evaluation import table as comparison

        records = read_records(self.folder)
        published = ()
        if self.published:
            from longclip_lab.reproduction.experiment import published_scores

            published = published_scores()
        table = comparison.score_table(records, published, self.scores or comparison.SHOWN)
        text = _as(table, self.format)
        if self.out is None:
            print(text, end="")
        else:
            atomic_write(self.out, text)
            say(f"written to {self.out}")


def _as(table: Any, form: str) -> str:
    if form == "html":
        from longclip_lab.views.tables import score_table_page

        return score_table_page(table)
    return table.to_csv() if form == "csv" else table.to_markdown()
