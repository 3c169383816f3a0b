"""`evaluate`: a model on named benchmarks or on your own pairs, with records.

B texts, T tokens, D embedding.

A benchmark's protocol names the training sets that hold its pictures: "sharegpt4v" (the set and any
part of it), "coco/train2017" (that split of it), "sharegpt4v/all" (only the whole of it, not what
Long-CLIP trains on, which holds the first 1,000 rows out).

FOLDER/{model}__{benchmark}__{length}__{hashes}.json   a record, written whole or not at all
FOLDER/features/                             features of pictures, see `picture_features`

What was interrupted goes on: finished runs have their record, and finished pictures their features.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from longclip_lab.data.benchmarks import PROTOCOLS, Benchmark, differing_facts, open_benchmark
from longclip_lab.data.pairs import KnownWords
from longclip_lab.errors import SEED, LabError, Numbers
from longclip_lab.evaluation.image_features import PictureFeatures
from longclip_lab.evaluation.late_interaction import SimilarityName, get_similarity
from longclip_lab.evaluation.records import Evaluation, Record, aspects, data_hash, model_hash
from longclip_lab.files import atomic_write, read_json, read_json_object, to_json
from longclip_lab.models import Clip, Tokens
from longclip_lab.models.encoding import Images, how_read
from longclip_lab.text.sentences import cut_tokens

# --- The same model reading less of each text ---

SHORTEST = 3
"""Start, one token and end."""


class ShorterTexts:
    """A model that gets every text cut at `length` tokens; in everything else it is `clip`.

    The end token stands at the cut, as for a text that is longer than the context.
    """

    def __init__(self, clip: Clip, length: int):
        self.clip, self.context_length = clip, length

    def __getattr__(self, name: str) -> Any:
        return getattr(self.clip, name)

    def tokenize(self, texts: str | Sequence[str]) -> Tokens:
        """Token ids [B, T] with T = `context_length`; what is longer is cut and counted."""
        tokens, n = self.clip.tokenize(texts), self.context_length
        tokenizer = self.clip.tokenizer
        ids_BT = cut_tokens(
            tokens.ids_BT, tokens.lengths_B, n - 2, tokenizer.end_id, tokenizer.pad_id
        )
        truncated_B = tokens.truncated_B | (tokens.lengths_B > n)
        return Tokens(ids_BT[:, :n], tokens.lengths_B.clamp(max=n), truncated_B)


def at_length(clip: Clip, length: int | None) -> Any:
    """`clip` with texts cut at `length` tokens, both special ones counted; None: at its context.

    Raises LabError for more tokens than the model reads, and for fewer than 3.

    >>> from longclip_lab.models import new_tiny
    >>> short = at_length(new_tiny(), 4)
    >>> short.tokenize(["a red boat", "a red boat on a lake"]).lengths_B.tolist()
    [4, 4]
    """
    if length is None or length == clip.context_length:
        return clip
    if length not in Numbers(at_least=SHORTEST, at_most=clip.context_length, whole=True):
        raise LabError(
            f"{clip.name} reads {SHORTEST} to {clip.context_length} tokens of a text; it cannot be "
            f"evaluated at {length}. Stretch its positions, or give another length."
        )
    return ShorterTexts(clip, length)


# --- Was a model trained on the pictures of a benchmark? What its card says, and what it ---

State = Literal["yes", "unknown", "no"]
ORDER: tuple[State, ...] = ("yes", "unknown", "no")
WHOLE = "all"
DRAWN = "world"
"""Cards of models that were trained on the drawn world begin with it."""


@dataclass(frozen=True)
class Contamination:
    """Whether a model has seen a benchmark's pictures, and how one knows."""

    state: State
    why: str

    def to_dict(self) -> dict[str, str]:
        """JSON-able."""
        return asdict(self)


def contamination(card: Mapping[str, Any], training_sets: Sequence[str]) -> Contamination | None:
    """What a model's card says of training sets that hold a benchmark's pictures.

    None if there are no such sets. "yes": the card names one of them. "no": it names everything the
    model was trained on, and none of them is among it; weights that were never trained; models of
    the drawn world. "unknown": all else, and what the card does say.

    >>> contamination({"trained_on": "WIT, then ShareGPT4V"}, ["sharegpt4v"]).state
    'yes'
    >>> contamination({"trained_on": "openai"}, ["sharegpt4v"])
    Contamination(state='unknown', why='the card says of its training data only: openai')
    """
    found = [_of_one(card, name) for name in training_sets]
    return min(found, key=lambda one: ORDER.index(one.state), default=None)


def _of_one(card: Mapping[str, Any], wanted: str) -> Contamination:
    verdicts = [_of_words(card, wanted), *_of_runs(card, wanted)]
    return min(verdicts, key=lambda one: ORDER.index(one.state))


def _of_words(card: Mapping[str, Any], wanted: str) -> Contamination:
    """From the sentence on what the starting weights were trained on."""
    if "trained_on" not in card:
        return Contamination("unknown", "the card does not say what the model was trained on")
    said = card["trained_on"]
    if said is None:
        return Contamination("no", "the weights that it started from were random")
    base, _, part = wanted.partition("/")
    if _names(said, base):
        if not part or (part != WHOLE and _names(said, part)):
            return Contamination("yes", f"the card says that it was trained on: {said}")
        return Contamination("unknown", f"trained on {base}; the card says no more than: {said}")
    if str(said).startswith(DRAWN):
        return Contamination("no", "trained on the drawn world")
    return Contamination("unknown", f"the card says of its training data only: {said}")


def _of_runs(card: Mapping[str, Any], wanted: str) -> Iterable[Contamination]:
    """From the records that training leaves in the card."""
    base, _, part = wanted.partition("/")
    for run in card.get("fine_tuned") or ():
        data = run.get("data", {})
        dataset, split = str(data.get("dataset", "unnamed data")), data.get("split")
        trained = f"fine-tuned on {dataset}" + (f", {split}" if split else "")
        if not _names(dataset, base):
            yield Contamination("no", trained)
        elif not part or split == part:
            yield Contamination("yes", trained)
        elif split is None:
            yield Contamination("unknown", f"{trained}; which part of it is not recorded")
        else:
            yield Contamination("no", trained)


def _names(said: Any, name: str) -> bool:
    """Whether a sentence has a name in it, however it is spelt: ShareGPT-4V, MS COCO, coco2017.

    Not inside of other words: "dci" is not in "red circle".
    """
    letters = r"[^a-z0-9]*".join(re.escape(one) for one in name.lower() if one.isalnum())
    return bool(re.search(rf"(?<![a-z])(?:ms)?{letters}(?![a-z])", str(said).lower()))


# --- Tasks: what exactly is scored, of a benchmark by name or of anybody's own pairs ---

BENCHMARKS = tuple(name for name in PROTOCOLS if name.startswith("world/"))
"""The drawn world's own benchmarks, which need no files; `data.benchmarks.PROTOCOLS` has all."""
TIE = "pessimistic"


@dataclass(frozen=True)
class RetrievalTask:
    """Images and the texts that belong to them."""

    name: str
    images: Images
    texts: list[str]
    image_of_text: list[int]
    source: dict[str, Any]
    skipped: dict[str, int] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    """What the protocol says, for a benchmark by name."""
    partial: bool = False
    """Some of what the protocol promises is missing."""

    def encoded(self) -> list[str]:
        """The texts that a model gets."""
        return self.texts

    def settings(self) -> dict[str, Any]:
        """Options that decide the score."""
        return {"tie": self.facts.get("tie", TIE)}


@dataclass(frozen=True)
class ClassificationTask:
    """Images with one class each, and the prompts to find it by."""

    name: str
    images: Images
    labels: np.ndarray
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    source: dict[str, Any]
    skipped: dict[str, int] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    """What the protocol says, for a benchmark by name."""
    partial: bool = False
    """Some of what the protocol promises is missing."""

    def encoded(self) -> list[str]:
        """The texts that a model gets: classes times templates."""
        return [template.format(name) for name in self.class_names for template in self.templates]

    def settings(self) -> dict[str, Any]:
        """Options that decide the score."""
        chosen = {"templates": list(self.templates), "classes": list(self.class_names)}
        return {"tie": self.facts.get("tie", TIE), **chosen}


Task = RetrievalTask | ClassificationTask


def pairs_tasks(pairs: Any) -> list[Task]:
    """Retrieval with the long captions of a pairs object, and with its short `captions`.

    Anything with the fields `name`, `images`, `long`, `captions`, `skipped` and `source` will
    do. A picture without captions is left out and counted. Raises LabError for an object
    without these fields, for no pictures and for an empty caption.
    """
    fields = ("name", "images", "long", "captions", "skipped", "source")
    missing = [name for name in fields if not hasattr(pairs, name)]
    if missing:
        raise LabError(
            f"Expected the name of a benchmark or an object with {', '.join(fields)}; "
            f"{type(pairs).__name__} has no {missing[0]}."
        )
    return [long_retrieval(pairs), short_retrieval(pairs)]


def long_retrieval(pairs: Any) -> RetrievalTask:
    """One long caption a picture."""
    return _retrieval_task(f"{pairs.name}/long-retrieval", pairs, [[text] for text in pairs.long])


def short_retrieval(pairs: Any) -> RetrievalTask:
    """All short captions of a picture; the pictures' order is that of `long_retrieval`."""
    return _retrieval_task(f"{pairs.name}/short-retrieval", pairs, pairs.captions)


def _retrieval_task(name: str, pairs: Any, captions: list[list[str]]) -> RetrievalTask:
    if len(captions) != len(pairs.images):
        raise LabError(
            f"{name}: expected captions for every picture, got {len(captions)} for "
            f"{len(pairs.images)} pictures."
        )
    captioned = [index for index, texts in enumerate(captions) if texts]
    if not captioned:
        raise LabError(f"{name}: there is no picture with a caption.")
    for index in captioned:
        if not all(text.strip() for text in captions[index]):
            raise LabError(f"{name}: picture {index} has an empty caption; leave it out.")
    images = pairs.images
    skipped = {reason: len(names) for reason, names in pairs.skipped.items()}
    if len(captioned) < len(images):
        skipped["no caption in the benchmark"] = len(images) - len(captioned)
        images = (
            images[captioned]
            if isinstance(images, np.ndarray)
            else [images[index] for index in captioned]
        )
    return RetrievalTask(
        name=name,
        images=images,
        texts=[text for index in captioned for text in captions[index]],
        image_of_text=[row for row, index in enumerate(captioned) for _ in captions[index]],
        source=dict(pairs.source),
        skipped=skipped,
    )


def benchmark_task(benchmark: Benchmark) -> Task:
    """The task of an opened benchmark."""
    protocol = benchmark.protocol
    shared = {
        "name": protocol.name,
        "images": benchmark.images,
        "source": dict(benchmark.source),
        "skipped": {reason: len(names) for reason, names in benchmark.skipped.items()},
        "facts": protocol.facts(),
        "partial": benchmark.partial,
    }
    if benchmark.labels is None:
        texts, image_of_text = list(benchmark.texts), list(benchmark.image_of_text)
        return RetrievalTask(texts=texts, image_of_text=image_of_text, **shared)
    return ClassificationTask(
        labels=benchmark.labels,
        class_names=tuple(benchmark.class_names),
        templates=tuple(benchmark.templates),
        **shared,
    )


def tasks(
    benchmark: Any,
    root: str | Path | None = None,
    allow_partial: bool = False,
    progress: bool = False,
) -> list[Task]:
    """The tasks of a benchmark: one for a name or an opened one, two for a pairs object.

    Files are read below `root`. Raises LabError for an unknown name, with the names near to it, and
    as `data.benchmarks.open_benchmark` does.
    """
    if isinstance(benchmark, str):
        benchmark = open_benchmark(benchmark, root, allow_partial, progress)
    return (
        [benchmark_task(benchmark)] if isinstance(benchmark, Benchmark) else pairs_tasks(benchmark)
    )


# --- Real captions for the tiny models, which know the drawn world's words only ---


def readable_task(task: Task, tokenizer: Any) -> Task:
    """Leave out the words of a task's texts that a word-level tokenizer does not have.

    As `data.keep_known_words` does for pairs: the whole path runs, scores mean nothing, and
    `source["words"]` counts what is missing. A task of the drawn world, or for any other tokenizer,
    comes back as it is.
    """
    if not hasattr(tokenizer, "words"):
        return task
    filtered = KnownWords(tokenizer.words)
    if isinstance(task, RetrievalTask):
        changed = {"texts": [filtered(text) for text in task.texts]}
    else:
        changed = {
            "class_names": tuple(filtered(name) for name in task.class_names),
            "templates": tuple(_template(template, filtered) for template in task.templates),
        }
    if not filtered.counts["left_out"]:
        return task
    return replace(task, **changed, source={**task.source, "words": filtered.counts.copy()})


def _template(template: str, filtered: KnownWords) -> str:
    parts = (filtered(part) if part.strip() else "" for part in template.split("{}"))
    return " {} ".join(parts).strip()


# --- One model on tasks: the conditions of a score, known beforehand, and the score ---

BOOTSTRAP = 1000


class Scorer:
    """A model that is scored on tasks at any number of tokens.

    Its weights are hashed once, and pictures that tasks share are encoded once; with `features`, a
    folder, also across calls.
    """

    def __init__(
        self,
        clip: Clip,
        similarity: SimilarityName | None = None,
        features: Path | None = None,
        seed: int = 0,
        progress: bool = False,
    ):
        SEED.check("The seed of the bootstrap", seed)
        self.clip, self.seed, self.progress = clip, seed, progress
        self.how = get_similarity(clip, similarity)
        self.weights = model_hash(clip.model)
        self.features = PictureFeatures(clip, self.how, features, progress)

    def conditions(self, task: Task, length: int | None = None) -> dict[str, Any]:
        """Everything a record says that is known before the score is; fields of `Record`.

        Raises LabError for a `length` that the model does not read.
        """
        texts, clip = task.encoded(), self.clip
        seen = contamination(clip.card, task.facts.get("contaminated_by", ()))
        return {
            "protocol": task.name,
            "model": clip.name,
            "model_hash": self.weights,
            "data_hash": data_hash(task.images, texts, task.source),
            "counts": {
                "images": len(task.images),
                "texts": len(texts),
                "different texts": len(set(texts)),
            },
            "skipped": task.skipped,
            "settings": {
                "bootstrap": BOOTSTRAP,
                "context_length": clip.context_length,
                "similarity": self.how.name,
                **({"images": read} if (read := how_read(task.images)) else {}),
                **task.settings(),
            },
            "source": task.source,
            "seed": self.seed,
            "device": str(clip.device),
            "dtype": str(next(clip.model.parameters()).dtype).removeprefix("torch."),
            "length": at_length(clip, length).context_length,
            "resolution": clip.image_size,
            "partial": task.partial,
            "facts": task.facts,
            "contamination": seen.to_dict() if seen else {},
        }

    def record(self, task: Task, length: int | None = None) -> Record:
        """The score with its conditions; texts are cut at `length` tokens."""
        start = time.perf_counter()
        reader = at_length(self.clip, length)
        score = self._retrieved if isinstance(task, RetrievalTask) else self._classified
        scores, num_truncated = score(reader, task)
        conditions = self.conditions(task, length)
        return Record(
            **conditions,
            scores=scores.scores(),
            num_truncated=num_truncated,
            share_truncated=num_truncated / conditions["counts"]["texts"],
            seconds=time.perf_counter() - start,
        )

    def _retrieved(self, reader: Any, task: Task) -> tuple[Any, int]:
        texts = self.how.encode_texts(reader, task.texts, progress=self.progress)
        scores = self.how.retrieval(
            self.features(task.images),
            texts,
            task.image_of_text,
            tie=task.settings()["tie"],
            bootstrap=BOOTSTRAP,
            seed=self.seed,
        )
        return scores, texts.num_truncated

    def _classified(self, reader: Any, task: Task) -> tuple[Any, int]:
        classes = self.how.class_features(reader, task.class_names, task.templates, self.progress)
        features = self.features(task.images)
        scores = self.how.classify(features, classes, task.labels, BOOTSTRAP, self.seed)
        return scores, classes.num_truncated


# --- `evaluate`: a model on named benchmarks or on your own pairs, with records ---


def evaluate(
    clip: Clip,
    *benchmarks: Any,
    progress: bool = False,
    seed: int = 0,
    similarity: SimilarityName | None = None,
    length: int | None = None,
    root: str | Path | None = None,
    allow_partial: bool = False,
    features: str | Path | None = None,
) -> Evaluation:
    """Scores of a model on benchmarks, one record each.

    A benchmark is a name, an opened one (`data.benchmarks.open_benchmark`), or an object with
    pictures and captions (`world.pairs(...)`, `data.coco(...)`), which is scored twice: "<its
    name>/long-retrieval" and "<its name>/short-retrieval". Without any, those of the drawn world
    run, which need no files:

    - "world/long-retrieval", "world/short-retrieval": 1,000 held-out pictures of the drawn
      world against their long captions, their short ones.
    - "world/kind", "world/colour": zero-shot classification of 1,000 held-out pictures of
      single things, templates averaged.

    The others (`data.benchmarks.PROTOCOLS`) are read below `root`, and half a benchmark is refused
    without `allow_partial`. `seed` is the bootstrap's; the pictures are always the same. Texts
    longer than `length` tokens, by default the model's context, are cut and counted in the record.
    `similarity` is "pooled", the cosine of one feature a picture and a text, or "late", the
    token-wise late interaction that FILIP trains; by default the one that the model was last
    trained for. In `features`, a folder, the pictures' features are kept, so that the next call
    need not make them. Raises LabError for an unknown name, an object without the fields, an empty
    caption, a broken picture, a length that the model does not read.
    """
    planned = [
        task
        for benchmark in benchmarks or BENCHMARKS
        for task in tasks(benchmark, root, allow_partial, progress)
    ]
    folder = None if features is None else Path(features)
    scorer = Scorer(clip, similarity, folder, seed, progress)
    return Evaluation([scorer.record(task, length) for task in planned])


# --- A folder of records, one JSON file a run: a model on a benchmark at a length ---

FEATURES = "features"
HASHES, DIGITS = ("model_hash", "data_hash"), 8
"""What of a record identifies its model and its data, and how much of it its file is named by."""

CHECKED = {
    "model_hash": "other weights",
    "data_hash": "other pictures or texts",
    "length": "another length",
    "resolution": "another resolution",
    "dtype": "another precision",
    "settings": "other settings",
    "seed": "another seed",
    "partial": "another part of the data",
}
"""Fields that an existing record must share, and what it is called when it does not."""


@dataclass(frozen=True)
class Run:
    """A record, where it is, and how it came there."""

    record: Record
    path: Path
    how: Literal["made", "kept", "replaced"]
    why: str = ""
    """What was wrong with the record that was replaced."""


def run_path(folder: Path, conditions: Mapping[str, Any]) -> Path:
    """Where the record of a run with these `Scorer.conditions` lies.

    Its name holds the first digits of both hashes: two models may share a name and two sets of
    pictures a benchmark, and neither record may take the place of the other.

    >>> facts = {"model": "ViT-B-16/openai", "protocol": "world/kind", "length": 77}
    >>> hashes = {"model_hash": "0f1e2d3c4b5a6978", "data_hash": "8796a5b4c3d2e1f0"}
    >>> run_path(Path("runs"), facts | hashes).as_posix()
    'runs/ViT-B-16-openai__world-kind__77__0f1e2d3c-8796a5b4.json'
    """
    hashes = "-".join(conditions[name][:DIGITS] for name in HASHES)
    return folder / f"{_named(conditions)}__{hashes}.json"


def _named(conditions: Mapping[str, Any]) -> str:
    """Model, benchmark and length: all of a record's name in earlier versions of the lab."""
    model, benchmark = (
        re.sub(r"[^\w.+-]+", "-", conditions[name]) for name in ("model", "protocol")
    )
    while len(model.encode()) > 120:  # a file's name has at most 255 bytes
        model = model[:-1]
    return f"{model}__{benchmark}__{conditions['length']}"


def _found(folder: Path, conditions: Mapping[str, Any]) -> tuple[Path, Record | None]:
    """Where the record of these conditions lies or will lie, and the one that is there."""
    path, earlier = run_path(folder, conditions), folder / f"{_named(conditions)}.json"
    if not path.exists() and earlier.exists():
        record = read_record(earlier)
        if all(getattr(record, name) == conditions[name] for name in HASHES):
            return earlier, record
    record = read_record(path) if path.exists() else None
    others = [name for name in HASHES if record and getattr(record, name) != conditions[name]]
    if others:
        raise LabError(
            f"{path} holds another record than its name says: {CHECKED[others[0]]}. Move it away, "
            "or give another folder."
        )
    return path, record


def run(scorer: Scorer, task: Task, length: int, folder: Path, skip_existing: bool = False) -> Run:
    """Score and write one record; with `skip_existing` only if there is none of the same run.

    A record is of the same run if weights, data, length and everything else that decides a score
    are the same. One of other weights, pictures or texts stays beside the new one; one of the same
    under other settings is replaced, and `Run.why` says which.
    Raises LabError for a file of that name that is no record, or of anything else.
    """
    conditions = scorer.conditions(task, length)
    path, old = _found(folder, conditions)
    why = ""
    if old is not None:
        others = differing_runs(old, conditions)
        if skip_existing and not others:
            return Run(old, path, "kept")
        why = "the one there was of " + ", ".join(others) if others else "asked for again"
    record = scorer.record(task, length)
    atomic_write(path, to_json(record.to_dict(), indent=2) + "\n")
    return Run(record, path, "replaced" if why else "made", why)


def differing_runs(record: Record, conditions: Mapping[str, Any]) -> list[str]:
    """In what a record differs from what would be measured now; [] if it is the same run."""
    now = json.loads(json.dumps({name: conditions[name] for name in CHECKED}))
    names = [what for name, what in CHECKED.items() if getattr(record, name) != now[name]]
    if differing_facts(record.facts, json.loads(json.dumps(conditions["facts"]))):
        names.append("another protocol")
    return names


def read_record(path: Path) -> Record:
    """The record in a file. Raises LabError for a file that holds anything else."""
    try:
        return _whole(read_json_object(path))
    except LabError as error:
        raise LabError(
            f"{path} is not a record of an evaluation ({error}). Move it away, or give another "
            "folder."
        ) from error


def read_records(folder: str | Path) -> list[Record]:
    """The records in a folder, by file name; files of several, as `--out FILE.json` writes, too.

    Raises LabError for a folder without records and for a JSON file that holds none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise LabError(f"There is no folder {folder}; expected one that `eval --out` wrote.")
    records = [record for path in sorted(folder.glob("*.json")) for record in _records_of(path)]
    if not records:
        raise LabError(
            f"{folder} holds no records (*.json); write some with `eval --out {folder}`."
        )
    return records


def _whole(values: Any) -> Record:
    """A record that can be compared with others. Raises LabError for anything else."""
    record = Record.from_dict(values)
    aspects(record)
    return record


def _records_of(path: Path) -> list[Record]:
    try:
        content = read_json(path)
        values = content.get("records", [content]) if isinstance(content, dict) else content
        if not isinstance(values, list):
            raise LabError("It holds no list of records.")
        return [_whole(value) for value in values]
    except LabError as error:
        raise LabError(f"{path} is not a record of an evaluation ({error}).") from error
