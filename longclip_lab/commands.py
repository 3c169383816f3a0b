"""The commands quickstart, tokens, probe, convert, inspect, faithfulness, reproduce, search.

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

from tyro.conf import Positional, arg

from longclip_lab import __version__
from longclip_lab.errors import COUNT, SEED, LabError, LabWarning, Numbers
from longclip_lab.files import atomic_path, atomic_write, check_place, readable, to_json

# --- What `longclip-lab` can do: a dataclass for each subcommand ---

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
        check_place(self.out)
        from longclip_lab import probing, world

        on_world = self.data == "world"
        data = world.pairs(self.pairs) if on_world else self.open_coco("val2017")
        clip = load_model(self.model, self.pretrained)
        curve = probing.truncation_curve(clip, readable_data(clip, data), progress=self.progress)
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


def readable_data(clip: Any, data: Any) -> Any:
    """Real captions as the model can read them; the tiny ones know the drawn world's words only."""
    from longclip_lab.data import keep_known_words

    readable_data = keep_known_words(data, clip.tokenizer)
    warn_of_words(clip, data.name, readable_data.source.get("words", {}))
    return readable_data


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


# --- What `longclip-lab` can do with attribution maps; see `longclip_lab.commands` ---

RECORD, TABLE = "faithfulness.json", "faithfulness.md"


@dataclass(kw_only=True)
class Faithfulness:
    """Do the maps mean anything? Attribution methods against boxes, curves and chance."""

    model: Positional[str] = "tiny"
    """A bundled model (tiny, tiny-notail), an open_clip name, a checkpoint file or a saved
    folder."""
    pretrained: str | None = None
    """open_clip's tag, or a file of weights, for an open_clip name."""
    stretch: bool = False
    """Stretch the model's positions (KPS) first."""
    n: Annotated[int, COUNT] = 100
    """Pictures to ask about."""
    methods: tuple[str, ...] = ()
    """Names of the methods to test; all of them when none is given."""
    seed: Annotated[int, SEED] = 0
    """Of questions, random orders, shuffled weights and bootstrap."""
    data: DataName = "world"
    """The drawn world, or photographs with boxes in COCO's layout."""
    root: Path | None = None
    """Folder with {split}/*.jpg and annotations/instances_{split}.json."""
    split: str = "val2017"
    """Part of the data set."""
    json: bool = False
    """Print one JSON object instead of tables."""
    out: Path | None = None
    """Folder for faithfulness.json and the same as Markdown tables."""
    progress: bool = True
    """Show a progress bar."""

    def run(self) -> None:
        if self.data == "coco" and self.root is None:
            raise LabError("COCO is read from disk: say where with --root DIR.")
        if self.data == "world" and self.root is not None:
            raise LabError("The world is drawn, not read: --root goes with --data coco.")
        from longclip_lab import attribution, data, models
        from longclip_lab.attribution.verdicts import markdown

        boxed = data.coco_boxes(self.root, self.split) if self.data == "coco" else None
        clip = load_model(self.model, self.pretrained)
        clip = models.stretch(clip) if self.stretch else clip
        result = attribution.faithfulness(
            clip, self.n, self.methods or None, self.seed, boxed, progress=self.progress
        )
        if self.json:
            say(result.to_json().rstrip())
        else:
            say(markdown(result))
            for counts in result.facts["questions"].values():
                say_skipped(counts["skipped"])
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
            atomic_write(self.out / RECORD, result.to_json())
            atomic_write(self.out / TABLE, markdown(result) + "\n")
            if not self.json:
                say(f"written to {self.out / RECORD} and {self.out / TABLE}")


# --- What `longclip-lab` can do with model files; see `longclip_lab.commands` ---

FormatName = Literal["transformers", "diffusers", "openai", "longclip", "open_clip"]
Precision = Literal["float32", "float16", "bfloat16"]


@dataclass(kw_only=True)
class Convert:
    """Write a model in another library's format, and check that it is still the same model."""

    source: Positional[str]
    """What to convert: a checkpoint file, a folder, a hub id, an open_clip name, a bundled
    model."""
    out: Positional[Path]
    """Where to: a file for openai and longclip, otherwise a folder."""
    format: FormatName = "transformers"
    """transformers: CLIPModel with tokenizer and processor. diffusers: text_encoder/ and
    tokenizer/. openai, longclip: a file of tensors for the official codes. open_clip: a folder for
    local-dir:."""
    pretrained: str | None = None
    """open_clip's tag, or a file of weights, for an open_clip name."""
    subfolder: str | None = None
    """Take a text tower alone, from here in a pipeline of diffusers: text_encoder (the default for
    pipelines) or text_encoder_2."""
    dtype: Precision = "float32"
    """Round the weights to this."""
    overwrite: bool = False
    """Replace files that are there."""
    check: bool = True
    """Have the format's own library read it back, and compare features and logits."""
    seed: Annotated[int, SEED] = 0
    """Of the random pictures and texts, and of weights where none are given."""
    json: bool = False
    """Print one JSON object instead of sentences."""

    def run(self) -> None:
        from longclip_lab import models

        source = self._open()
        models.export(source, self.out, self.format, self.dtype, self.overwrite)
        facts = {"source": source.name, "out": str(self.out), "format": self.format}
        if not self.json:
            say(f"{source.name}: {source.context_length} positions, written to {self.out}")
        if self.check:
            try:
                parity = models.parity(source, self.out, self.format, self.dtype, self.seed)
            except LabError as error:
                raise LabError(f"{self.out} was written, but do not use it: {error}") from error
            facts["parity"] = parity.to_dict()
            if not self.json:
                say(str(parity))
        if self.json:
            say(to_json(facts))
        if self.check and not parity.ok:
            raise LabError(
                f"{self.out} was written, but is not the same model: features or logits differ by "
                f"{parity.difference:.1e}. Do not use it."
            )

    def _open(self) -> Any:
        from longclip_lab import models
        from longclip_lab.models.formats.hf import clip_kind

        folder = Path(self.source)
        alone = folder.is_dir() and clip_kind(folder) in ("clip_text_model", "diffusers")
        if self.subfolder or alone:
            if self.pretrained:
                raise LabError("--pretrained goes with an open_clip name, not with a text tower.")
            return models.load_text_tower(self.source, self.subfolder)
        return load_model(self.source, self.pretrained, self.seed)


@dataclass(kw_only=True)
class Inspect:
    """Explain a checkpoint: format, architecture, positions, types, sizes, what is missing."""

    path: Positional[Path]
    """A file of weights, or a folder of the lab, open_clip, transformers or diffusers."""
    original: Path | None = None
    """The CLIP that a longer one was made from: its positions are compared."""
    digest: bool = True
    """Compute the sha256 of the files and look for values that are not finite, for which they are
    read."""
    json: bool = False
    """Print one JSON object instead of the table."""

    def run(self) -> None:
        from longclip_lab import models

        found = models.inspect(self.path, self.original, self.digest)
        say(to_json(found.to_dict(), indent=1) if self.json else str(found))


# --- What `longclip-lab reproduce` can do; see `longclip_lab.commands` ---


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
    """Print the record, or with --list all names, as JSON instead of tables."""
    progress: bool = True
    """Show what is being made and the time left."""

    def run(self) -> None:
        if self.list == (self.name is not None):
            raise LabError(
                "Name one experiment to run, or give --list to see them all: longclip-lab "
                "reproduce lotlip/table3."
            )
        if self.list:
            states = states_of(self.arms)
            say(to_json(states, indent=1) if self.json else overview(states, self.arms))
            return
        from longclip_lab.reproduction import bookkeeping as books
        from longclip_lab.reproduction.bookkeeping import reproduce
        from longclip_lab.reproduction.experiments import experiment

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


def states_of(arms: Path) -> list[dict[str, Any]]:
    """Every experiment, what the ledger says of it (None if nothing), and what is made of it."""
    from longclip_lab.reproduction.bookkeeping import left_to_make, read_all
    from longclip_lab.reproduction.experiments import EXPERIMENTS, experiment

    records, states = read_all(), []
    for name in EXPERIMENTS:
        one, record = experiment(name), records.get(name)
        of = len(one.entries) * one.seeds
        state: dict[str, Any] = {"name": name, "title": one.title, "arms": of}
        state |= {"made": of - left_to_make(one, arms=arms), "ledger": None}
        if record is not None:
            facts = {"verdict": record.verdict, "seeds": len(record.seeds)}
            state["ledger"] = facts | {"minutes": record.minutes, "commit": record.commit}
        states.append(state)
    return states


def overview(states: list[dict[str, Any]], arms: Path) -> str:
    """The same as text, for a terminal."""
    lines = []
    for state in states:
        known = state["ledger"]
        said = (
            "not in the ledger"
            if known is None
            else (
                f"{known['verdict']}; {known['seeds']} seeds, {known['minutes']:.0f} min, commit "
                f"{known['commit']}"
            )
        )
        lines.append(f"{state['name']:<26} {state['title']}")
        lines.append(f"{'':<26} {said}; {state['made']} of {state['arms']} arms in {arms}")
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


# --- What `longclip-lab` can do with the reader's own pictures; see `longclip_lab.commands` ---


@dataclass(kw_only=True)
class Search:
    """Find pictures in a folder of yours with a sentence, or with a paragraph."""

    folder: Positional[Path]
    """Your pictures; folders in it are searched too, and nothing is written there."""
    query: Annotated[Positional[tuple[str, ...]], arg(metavar='"QUERY" ["QUERY" ...]')]
    """What to look for; several queries are answered one after the other."""
    model: str = "tiny"
    """A bundled model (tiny, which knows the drawn world only), an open_clip name, a checkpoint
    file or a saved folder."""
    pretrained: str | None = None
    """open_clip's tag, or a file of weights, for an open_clip name."""
    stretch: bool = False
    """Stretch the model's positions (KPS) first, for queries longer than its context."""
    top: Annotated[int, COUNT] = 5
    """Pictures to find."""
    explain: bool = False
    """Say what each sentence of the query does for each picture found."""
    html: Path | None = None
    """A page with the pictures, to open in a browser."""
    json: bool = False
    """Print one JSON object instead of sentences."""
    cache: Path | None = None
    """Folder for the pictures' features; your user's cache folder unless given."""
    verify: bool = False
    """Compare the content of every picture with what is cached, not only size and time."""
    progress: bool = True
    """Show a progress bar."""

    def run(self) -> None:
        if not self.query:
            raise LabError('Say what to look for: longclip-lab search DIR "a red boat on a lake".')
        check_place(self.html)
        if not self.folder.is_dir():  # before seconds are spent on a model
            from longclip_lab.images import list_images

            list_images(self.folder)
        from longclip_lab import models, search

        clip = load_model(self.model, self.pretrained)
        clip = models.stretch(clip) if self.stretch else clip
        queries = [search.readable_query(clip, text) for text in self.query]
        index = search.index(clip, self.folder, self.cache, self.verify, progress=self.progress)
        found = index.search(queries, self.top, self.explain)
        if self.json:
            say(to_json(_facts(index) | {"queries": [one.to_dict() for one in found]}))
        else:
            head = f"{readable(self.folder)}: {len(index):,} pictures ({index.update})"
            say(f"{head}; cache: {readable(index.cache)}")
            say_skipped(index.left_out)
            for one in found:
                say(_told(one))
        if self.html is not None:
            asked = [text for text in self.query if text not in queries]
            atomic_write(self.html, _page(index, found, asked))
            if not self.json:
                say(f"\nwritten to {self.html}")


def _facts(index: Any) -> dict[str, Any]:
    update = {name: getattr(index.update, name) for name in index.update.__dataclass_fields__}
    return {
        "folder": readable(index.root),
        "model": index.clip.name,
        "pictures": len(index),
        "update": update | {"seconds": round(update["seconds"], 3)},
        "left_out": index.left_out,
        "cache": str(index.cache),
    }


def _told(found: Any) -> str:
    lines = [f"\n“{found.query}”"]
    if not found.reading.whole:
        lines.append(f"  read: {found.reading.read} of {found.reading.tokens} tokens")
    for hit, (path, score) in enumerate(zip(found.paths, found.scores, strict=True)):
        lines.append(f"{hit + 1:4}  {score:.4f}  {readable(path)}")
        if found.owed is not None and len(found.owed.sentences) > 1:
            most = found.owed.most(hit)
            lines.append(
                f"              owes most to “{found.owed.sentences[most]}” "
                f"({found.owed.drops[hit, most]:+.3f}; without it: {found.owed.ranks[hit, most]})"
            )
    return "\n".join(lines).encode("utf-8", "replace").decode()


def _page(index: Any, found: list[Any], asked: list[str]) -> str:
    from longclip_lab.views.search import found_page

    notes = [f"{index.clip.name} on {len(index):,} pictures of {readable(index.root.resolve())}."]
    notes += [f"{index.clip.name} does not know all words of “{text}”." for text in asked]
    notes += [f"Left out, {why}: {len(names)}." for why, names in index.left_out.items()]
    return found_page(found, notes)


# --- Pictures from long prompts ---


@dataclass(kw_only=True)
class Generate:
    """Draw a picture from a prompt of any length, and say what of it was read."""

    prompt: Positional[str]
    """What to draw."""
    pipeline: str
    """A pipeline of diffusers: a folder, or an id on the hub (Stable Diffusion 1.5, 2 or XL)."""
    long_clip: str | None = None
    """A Long-CLIP in place of the pipeline's CLIP-L: a file of weights, a folder or a bundled
    model."""
    strategy: Literal["truncate", "chunk", "average", "kps", "tuned"] | None = None
    """truncate: the first 77 tokens. chunk, average: pieces of 77, their states in a row or
    averaged. kps: 248 stretched positions, untrained. tuned: --long-clip, which is the default
    where it is given."""
    cut: Literal["token", "comma", "sentence"] = "token"
    """Where pieces may end."""
    negative_prompt: str | None = None
    """What not to draw."""
    steps: Annotated[int, COUNT] = 25
    """Steps of sampling."""
    guidance_scale: Annotated[float, Numbers(at_least=0, at_most=1000)] = 5.0
    """Weight of classifier-free guidance; up to 1 is none."""
    seed: Annotated[int, SEED] = 0
    """Seed of the noise."""
    out: Path = Path("picture.png")
    """The picture's file."""
    progress: bool = True
    """Show a progress bar."""

    def run(self) -> None:
        check_place(self.out)
        from longclip_lab import generation

        strategy = self.strategy or ("truncate" if self.long_clip is None else "tuned")
        pipe = generation.load_pipeline(self.pipeline)
        drawn = generation.draw(
            pipe,
            self.prompt,
            strategy,
            clip_l=self.long_clip,
            cut=self.cut,
            negative_prompt=self.negative_prompt,
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            seed=self.seed,
            progress=self.progress,
        )
        with atomic_path(self.out) as path:
            drawn.image.save(path, "PNG")
        encoded, reading = drawn.encoded, drawn.encoded.reading
        pieces = f", in {len(encoded.pieces)} pieces" if len(encoded.pieces) > 1 else ""
        say(f"{strategy}: {reading.read} of {reading.tokens} tokens read{pieces}")
        if not reading.whole:
            say(f"not read: {reading.unread}")
        say(f"written to {readable(self.out)}")
