"""`evaluate`: a model on named benchmarks or on your own pairs, with records.

B texts, T tokens, N images, S the shape of one feature.

FOLDER/{model}__{benchmark}__{length}__{hashes}.json   a record, written whole or not at all
FOLDER/features/                             features of images, see `ImageFeatureCache`

What was interrupted goes on: finished runs have their record, and finished images their features.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from open_clip import CLIP, CustomTextCLIP
from torch import nn
from tqdm import tqdm

from longclip_lab import cache
from longclip_lab.data.benchmarks import PROTOCOLS, Benchmark, differing_facts, open_benchmark
from longclip_lab.errors import SEED, LabError, Numbers
from longclip_lab.evaluation.late_interaction import Similarity, SimilarityName, get_similarity
from longclip_lab.evaluation.records import (
    Evaluation,
    Record,
    data_hash,
    model_hash,
    read_record,
)
from longclip_lab.files import atomic_write, json_hash, to_json
from longclip_lab.models import Clip, Tokens
from longclip_lab.models.encoding import Images, how_read, images_hash
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
        # Cut as tokens, the end token at the cut: words have one or several tokens, so that a
        # string that is cut has no certain length.
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


# --- Contamination: was a model trained on the images of a benchmark? ---

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
    # The worst of what is known counts: one training set that holds the images is enough.
    found = [_of_one(card, name) for name in training_sets]
    return min(found, key=lambda one: ORDER.index(one.state), default=None)


def _of_one(card: Mapping[str, Any], wanted: str) -> Contamination:
    verdicts = [_of_words(card, wanted), *_of_runs(card, wanted)]
    return min(verdicts, key=lambda one: ORDER.index(one.state))


def _of_words(card: Mapping[str, Any], wanted: str) -> Contamination:
    """From the sentence on what the starting weights were trained on."""
    if "trained_on" not in card:
        return Contamination("unknown", "the card does not say what the model was trained on")
    # A sentence, not a list: released weights come with no more than what their paper says.
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
    # Papers spell one set in many ways, so anything may stand between its letters and digits.
    letters = r"[^a-z0-9]*".join(re.escape(one) for one in name.lower() if one.isalnum())
    return bool(re.search(rf"(?<![a-z])(?:ms)?{letters}(?![a-z])", str(said).lower()))


# --- What is scored: a benchmark by name, or anybody's own pairs ---

BENCHMARKS = tuple(name for name in PROTOCOLS if name.startswith("world/"))
"""The drawn world's own benchmarks, which need no files; `data.benchmarks.PROTOCOLS` has all."""


def tasks(
    benchmark: Any,
    root: str | Path | None = None,
    allow_partial: bool = False,
    progress: bool = False,
) -> list[Benchmark]:
    """What is scored: one benchmark for a name or an opened one, two for a pairs object.

    Of pairs, anything with the fields `name`, `images`, `long`, `captions`, `skipped` and `source`,
    the long captions are one and all the short `captions` the other; an image without captions is
    left out and counted. Files are read below `root`. Raises LabError for an unknown name, with the
    names near to it, as `data.benchmarks.open_benchmark` does, for an object without these fields,
    for no images and for an empty caption.
    """
    if isinstance(benchmark, Benchmark):
        return [benchmark]
    if isinstance(benchmark, str):
        return [open_benchmark(benchmark, root, allow_partial, progress)]
    fields = ("name", "images", "long", "captions", "skipped", "source")
    missing = [name for name in fields if not hasattr(benchmark, name)]
    if missing:
        raise LabError(
            f"Expected the name of a benchmark or an object with {', '.join(fields)}; "
            f"{type(benchmark).__name__} has no {missing[0]}."
        )
    long = [[text] for text in benchmark.long]
    return [
        _of_pairs(f"{benchmark.name}/long-retrieval", benchmark, long),
        _of_pairs(f"{benchmark.name}/short-retrieval", benchmark, benchmark.captions),
    ]


def _of_pairs(name: str, pairs: Any, captions: list[list[str]]) -> Benchmark:
    images = pairs.images
    if len(captions) != len(images):
        raise LabError(
            f"{name}: expected captions for every picture, got {len(captions)} for "
            f"{len(images)} pictures."
        )
    captioned = [index for index, texts in enumerate(captions) if texts]
    if not captioned:
        raise LabError(f"{name}: there is no picture with a caption.")
    for index in captioned:
        if not all(text.strip() for text in captions[index]):
            raise LabError(f"{name}: picture {index} has an empty caption; leave it out.")
    skipped = dict(pairs.skipped)
    # All of them stay as they are: the same object is encoded once for both benchmarks.
    if len(captioned) < len(images):
        # As a distractor, an image without a text would make this pool larger than the long one's.
        bare = [f"picture {index}" for index, texts in enumerate(captions) if not texts]
        skipped["no caption in the benchmark"] = bare
        is_array = isinstance(images, np.ndarray)
        images = images[captioned] if is_array else [images[index] for index in captioned]
    texts = [text for index in captioned for text in captions[index]]
    image_of_text = [row for row, index in enumerate(captioned) for _ in captions[index]]
    source = dict(pairs.source)
    return Benchmark(name, images, texts, image_of_text, skipped=skipped, source=source)


# --- Features of images, kept in a folder between calls ---

RUN = 64
"""Pictures that are made, and made safe, together."""

_MEANING = {
    "tower": "another image tower",
    "preprocess": "other preprocessing",
    "pictures": "other pictures",
    "images": "pictures that were read by other rules",
    "similarity": "another kind",
    "shape": "another shape",
    "dtype": "another precision",
    "format": "another version of the lab",
}


class ImageFeatureCache:
    """Features of pictures, made once for a model and a way to compare.

    Without a folder those of the last pictures are remembered. In `folder` everything is kept,
    memory-mapped, under a name made of weights, preprocessing and pictures; what was interrupted
    goes on after the last 64 pictures that were finished.
    """

    def __init__(
        self, clip: Clip, how: Similarity, folder: Path | None = None, progress: bool = False
    ):
        self.clip, self.how, self.folder, self.progress = clip, how, folder, progress
        self._images: Any = None

    def __call__(self, images: Images) -> torch.Tensor:
        """Features [N, *S], not normalised. Raises LabError for pictures that cannot be read."""
        if self._images is not images:
            self._features = self._found(images)
            self._images = images
        return self._features

    def _found(self, images: Images) -> torch.Tensor:
        is_stored = isinstance(images, np.ndarray) or all(
            isinstance(image, str | Path) for image in images
        )
        if self.folder is None or not is_stored:
            return self.how.encode_images(self.clip, images, progress=self.progress)
        shape = (len(images), *self.how.encode_images(self.clip, images[:1]).shape[1:])
        identity = self._identity(images, shape)
        home = self.folder / json_hash(identity)
        cache.claim(home, identity, _MEANING, RUN)
        if not cache.is_whole(home):
            cache.fill(home, RUN, self._made(images, cache.missing_runs(home)))
            cache.finish(home)
        # A copy in memory: torch has no tensors that must not be written to.
        return torch.from_numpy(np.array(cache.read(home)))

    def _made(self, images: Images, runs: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        parts = {run: images[run * RUN : (run + 1) * RUN] for run in runs}
        total = sum(map(len, parts.values()))
        before = len(images) - total
        with tqdm(
            total=len(images), initial=before, unit="image", disable=not self.progress
        ) as bar:
            for run, part in parts.items():
                yield run, self.how.encode_images(self.clip, part).numpy()
                bar.update(len(part))

    def _identity(self, images: Images, shape: tuple[int, ...]) -> dict[str, Any]:
        return {
            "format": "longclip-lab-picture-features-1",
            "tower": model_hash(_image_part(self.clip.model)),
            "preprocess": self.clip.card["preprocess"],
            "pictures": images_hash(images, contents=True),
            "images": how_read(images),
            "similarity": self.how.name,
            "shape": list(shape),
            "dtype": "float32",
        }


def _image_part(model: nn.Module) -> nn.Module:
    """What makes an image feature: open_clip's image tower; of other models, all of it."""
    return model.visual if isinstance(model, CLIP | CustomTextCLIP) else model


# --- One model on benchmarks: the conditions of a score, known beforehand, and the score ---

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
        # Once a model, not once a record: hashing a large tower takes seconds.
        self.weights = model_hash(clip.model)
        self.features = ImageFeatureCache(clip, self.how, features, progress)

    def conditions(self, task: Benchmark, length: int | None = None) -> dict[str, Any]:
        """Everything a record says that is known before the score is; fields of `Record`.

        Raises LabError for a `length` that the model does not read.
        """
        texts, clip, facts = task.encoded_texts(), self.clip, task.facts
        # Stated with the score, where a reader of the record cannot miss it.
        seen = contamination(clip.card, facts.get("contaminated_by", ()))
        settings: dict[str, Any] = {
            "bootstrap": BOOTSTRAP,
            "context_length": clip.context_length,
            "similarity": self.how.name,
        }
        # Image files are read by rules that changed; records before that say nothing of them.
        if read := how_read(task.images):
            settings["images"] = read
        settings["tie"] = task.tie
        if task.labels is not None:
            settings |= {"templates": list(task.templates), "classes": list(task.class_names)}
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
            "skipped": {reason: len(names) for reason, names in task.skipped.items()},
            "settings": settings,
            "source": task.source,
            "seed": self.seed,
            "device": str(clip.device),
            "dtype": str(next(clip.model.parameters()).dtype).removeprefix("torch."),
            "length": at_length(clip, length).context_length,
            "resolution": clip.image_size,
            "partial": task.partial,
            "facts": facts,
            "contamination": seen.to_dict() if seen else {},
        }

    def record(self, task: Benchmark, length: int | None = None) -> Record:
        """The score with its conditions; texts are cut at `length` tokens."""
        start = time.perf_counter()
        # Only the reader of texts is cut: images and weights are the same at every length.
        reader, how = at_length(self.clip, length), self.how
        if task.labels is None:
            texts = how.encode_texts(reader, task.texts, progress=self.progress)
            images = self.features(task.images)
            options = {"tie": task.tie, "bootstrap": BOOTSTRAP, "seed": self.seed}
            scores = how.retrieval(images, texts, task.image_of_text, **options)
        else:
            # The classifier's weights are the classes' averaged prompts (CLIP, section 3.1.4).
            texts = how.class_features(reader, task.class_names, task.templates, self.progress)
            images = self.features(task.images)
            scores = how.classify(images, texts, task.labels, BOOTSTRAP, self.seed)
        conditions = self.conditions(task, length)
        return Record(
            **conditions,
            scores=scores.scores(),
            num_truncated=texts.num_truncated,
            share_truncated=texts.num_truncated / conditions["counts"]["texts"],
            seconds=time.perf_counter() - start,
        )


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
    # Opened first, all of them: a folder that is missing shows before anything is scored.
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
    images a benchmark, and neither record may take the place of the other.

    >>> facts = {"model": "ViT-B-16/openai", "protocol": "world/kind", "length": 77}
    >>> hashes = {"model_hash": "0f1e2d3c4b5a6978", "data_hash": "8796a5b4c3d2e1f0"}
    >>> run_path(Path("runs"), facts | hashes).as_posix()
    'runs/ViT-B-16-openai__world-kind__77__0f1e2d3c-8796a5b4.json'
    """
    model, benchmark = (
        re.sub(r"[^\w.+-]+", "-", conditions[name]) for name in ("model", "protocol")
    )
    while len(model.encode()) > 120:  # a file's name has at most 255 bytes
        model = model[:-1]
    hashes = "-".join(conditions[name][:DIGITS] for name in HASHES)
    return folder / f"{model}__{benchmark}__{conditions['length']}__{hashes}.json"


def _existing(folder: Path, conditions: Mapping[str, Any]) -> tuple[Path, Record | None]:
    """Where the record of these conditions lies or will lie, and the one that is there."""
    path = run_path(folder, conditions)
    # In earlier versions of the lab a record's name had no hashes.
    earlier = path.with_name(f"{path.name.rpartition('__')[0]}.json")
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


def run(
    scorer: Scorer, task: Benchmark, length: int, folder: Path, skip_existing: bool = False
) -> Run:
    """Score and write one record; with `skip_existing` only if there is none of the same run.

    A record is of the same run if weights, data, length and everything else that decides a score
    are the same. One of other weights, pictures or texts stays beside the new one; one of the same
    under other settings is replaced, and `Run.why` says which.
    Raises LabError for a file of that name that is no record, or of anything else.
    """
    conditions = scorer.conditions(task, length)
    path, old = _existing(folder, conditions)
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
    # Through JSON, as the record on disk went: there tuples are lists.
    now = json.loads(json.dumps({name: conditions[name] for name in CHECKED}))
    names = [what for name, what in CHECKED.items() if getattr(record, name) != now[name]]
    if differing_facts(record.facts, json.loads(json.dumps(conditions["facts"]))):
        names.append("another protocol")
    return names
