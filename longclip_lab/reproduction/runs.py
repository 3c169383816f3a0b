"""Content-addressed cache of runs: each arm trained once, evaluated once.

Two models meet the same images, and what is hard for one is hard for the other: the difference on
each image has a far narrower interval than the two scores have, so hits are kept image by image.

LoTLIP's BERT has read before it meets images. A tiny one that has not would spend most of a short
run on finding out what "boat" is, and arms would be compared by how far they got. So one trunk is
trained on alt-texts of other images, once, and all arms of all seeds start from it: the same text
tower, projection and temperature.

HOME/KEY/arm.json      what the arm is
HOME/KEY/run/          training: log and checkpoints until it is done, then the trained model
HOME/KEY/spent.json    seconds so far, over all interruptions
HOME/KEY/hits.npz      hits by test, image by image
HOME/KEY/result.json   that it is done, and what it took
HOME/sets/KEY/         training images (images.npy, memory-mapped) and what is said of them
HOME/features, HOME/trunks   a locked tower's features, and what arms start from

N images, S states of the locked part, D embedding.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from longclip_lab import world
from longclip_lab.errors import LabError, suggest
from longclip_lab.evaluation import Interval, Similarity, bootstrap_mean, get_similarity
from longclip_lab.evaluation.records import commit, model_hash, versions
from longclip_lab.files import atomic_path, atomic_write, read_json_object, to_json
from longclip_lab.models import (
    Clip,
    add_corner_tokens,
    build_lotlip,
    load,
    pixels,
    stretch,
    world_bert,
)
from longclip_lab.models.anatomy import frozen_part, text_tower
from longclip_lab.models.encoding import images_hash
from longclip_lab.models.tiny import bundled_names
from longclip_lab.models.towers import finish_image, image_states
from longclip_lab.reproduction.arms import ARM_VERSION, DIGITS, TRUNKS, Arm
from longclip_lab.training import Run, new_model, train
from longclip_lab.training.checkpoints import weights_hash
from longclip_lab.training.loop import needs
from longclip_lab.training.recipe import Recipe
from longclip_lab.training.run import extra_tokens
from longclip_lab.world import TEMPLATES, SingleObjects, classes

# --- Test images as a locked image tower sees them: run once for all models that share it ---

AT_ONCE = 256


class LockedImages:
    """Stand in for pictures in `measure`, and give every model its own features of them.

    A lock holds a timm tower's trunk; the linear head behind it, if there is one, is trained. So
    models with one locked tower share what the trunk makes of a picture, not its feature: to ask a
    trained model with the features of its start is a mistake that no shape betrays.

    >>> from longclip_lab import models, world
    >>> clip, images = models.load("tiny"), world.pairs(3).images
    >>> seen = LockedImages(clip, images).features(clip)
    >>> torch.allclose(seen, models.encode_images(clip, images), atol=1e-5)
    True
    """

    def __init__(self, clip: Clip, images: Any):
        self.weights = _weights(clip)
        with torch.no_grad():
            parts = [
                image_states(clip.model.visual, pixels(clip, images[start : start + AT_ONCE]))
                for start in range(0, len(images), AT_ONCE)
            ]
        self.states_NS = torch.cat(parts)

    def __len__(self) -> int:
        return len(self.states_NS)

    def features(self, clip: Clip) -> torch.Tensor:
        """What `encode_images` of `clip` would give [N, D]. Raises LabError for another tower."""
        weights = _weights(clip)
        same = weights.keys() == self.weights.keys() and all(
            torch.equal(weights[name], self.weights[name]) for name in weights
        )
        if not same:
            raise LabError(
                f"These pictures were seen by another image tower than that of '{clip.name}': it "
                "was trained, or is another one. Give the pictures themselves."
            )
        with torch.no_grad():
            return finish_image(clip.model.visual, self.states_NS)


def _weights(clip: Clip) -> dict[str, torch.Tensor]:
    """Copies: training goes on in place."""
    return {k: v.clone() for k, v in frozen_part(clip.model.visual).state_dict().items()}


# --- A model's hits, picture by picture: what a fair comparison of two models needs ---

Test = tuple[Any, Sequence[str]]
"""Pictures, their features where these are known (as `Similarity.encode_images` gives them), or
`LockedImages`; one text for each."""


@dataclass(frozen=True)
class Measured:
    """One model's hits by test, in the pictures' order.

    Of a retrieval test [N]: for each picture the mean of its two hits at rank 1, image to text and
    text to image (0, 0.5 or 1). "kind" and "colour" [N]: right or wrong zero-shot answers.

    With tests called "long" and "short", the figures of trade-offs and of stretching take it as a
    row; both directions then carry the interval of their mean.
    """

    label: str
    stage: str
    hits: dict[str, np.ndarray] = field(repr=False)
    recipe: dict[str, Any] = field(default_factory=dict, repr=False)
    variance_kept: float | None = None

    def score(self, test: str) -> Interval:
        """The mean of a test's hits. Raises LabError for a test that was not done."""
        return bootstrap_mean(self._of(test))

    def against(self, other: Measured, test: str) -> Interval:
        """The mean difference to `other` on the same pictures, a share from -1 to 1.

        Raises LabError for a test that was not done, or one on another number of pictures.
        """
        own_N, other_N = self._of(test), other._of(test)
        if len(own_N) != len(other_N):
            raise LabError(
                f"Expected the same pictures for '{self.label}' and '{other.label}', got "
                f"{len(own_N)} and {len(other_N)}."
            )
        return bootstrap_mean(own_N - other_N)

    @property
    def long_i2t(self) -> Interval:
        return self.score("long")

    @property
    def short_i2t(self) -> Interval:
        return self.score("short")

    long_t2i, short_t2i = long_i2t, short_i2t

    def _of(self, test: str) -> np.ndarray:
        if test not in self.hits:
            raise LabError(f"'{self.label}' has no test {test!r}. {suggest(test, self.hits)}")
        return self.hits[test]


def measure(
    clip: Clip,
    label: str,
    stage: str,
    tests: Mapping[str, Test],
    singles: SingleObjects | None = None,
    run: Run | None = None,
) -> Measured:
    """The hits of `clip` on retrieval tests by name, and on pictures of single things.

    Features in place of pictures save time where the image tower is the same for many models, as
    it is after stretching; `LockedImages` do where it is locked but for a head that is trained.
    The model is asked by the similarity that it was last trained for, see `get_similarity`.
    `stage` is "start", "stretched" or "fine-tuned". `run` is the fine-tuning that `clip` comes
    from; it adds the recipe and PCM's share of the variance, the mean over the logged steps.
    """
    how = get_similarity(clip)
    known: dict[int, torch.Tensor] = {}
    hits = {}
    for name, (images, texts) in tests.items():
        if id(images) not in known:
            known[id(images)] = _image_features(clip, how, images)
        found = how.retrieval(known[id(images)], how.encode_texts(clip, texts), bootstrap=0)
        hits[name] = ((found.i2t_ranks == 1).astype(float) + (found.t2i_ranks == 1)) / 2
    if singles is not None:
        seen = _image_features(clip, how, singles.images)
        for name in ("kind", "colour"):
            prompts = how.class_features(clip, classes(name), TEMPLATES)
            named = how.classify(seen, prompts, singles.labels[name], bootstrap=0)
            hits[name] = (named.ranks == 1).astype(float)
    shares = [row["variance_kept"] for row in run.history] if run else []
    is_pcm = run is not None and run.recipe.objective == "longclip"
    return Measured(
        label,
        stage,
        hits,
        recipe=asdict(run.recipe) if run else {},
        variance_kept=sum(shares) / len(shares) if is_pcm else None,
    )


def _image_features(clip: Clip, how: Similarity, images: Any) -> torch.Tensor:
    if isinstance(images, LockedImages):
        return images.features(clip)
    known = torch.is_tensor(images) and images.is_floating_point()
    return images if known else how.encode_images(clip, images)


# --- What arms are asked: sets of tests by name, all on pictures that nothing was chosen by ---

SIBLINGS = 4
"""Pictures of the long captions' pool that share a summary, so that only the details tell them
apart."""


@dataclass(frozen=True)
class Suite:
    """Retrieval tests by name (pictures, one text each) and pictures of single things."""

    name: str
    tests: dict[str, tuple[np.ndarray, list[str]]]
    singles: world.SingleObjects | None
    features: dict[tuple[str, str, int], torch.Tensor] = field(default_factory=dict, repr=False)

    def ask(self, clip: Clip) -> Measured:
        """The hits of `clip`, picture by picture. A locked image tower runs only once for all.

        A model that FILIP trained is asked by late interaction, every other one by its pooled
        features.
        """
        how = get_similarity(clip)
        tower = model_hash(clip.model.visual)
        tests = {}
        for name, (images, texts) in self.tests.items():
            key = (tower, how.name, id(images))
            if key not in self.features:
                self.features[key] = how.encode_images(clip, images)
            tests[name] = (self.features[key], texts)
        found = measure(clip, self.name, "", tests, self.singles)
        if self.singles is not None:
            found.hits["thing"] = things(clip, how, self.singles)
        # Towers that are trained never come back; those of the last arm are enough.
        for key in [key for key in self.features if key[0] != tower]:
            del self.features[key]
        return found


def things(clip: Clip, how: Similarity, singles: world.SingleObjects) -> np.ndarray:
    """Hits [N] of naming a single thing's colour and kind together, one of 96 classes."""
    names = [f"{colour} {kind}" for kind in world.KINDS for colour in world.COLOURS]
    labels_N = singles.labels["kind"] * len(world.COLOURS) + singles.labels["colour"]
    classes = how.class_features(clip, names, world.TEMPLATES)
    found = how.classify(how.encode_images(clip, singles.images), classes, labels_N, bootstrap=0)
    return (found.ranks == 1).astype(float)


def _pools(
    n: int, seed: int, writers: tuple[str, ...], siblings: int = SIBLINGS
) -> dict[str, tuple[np.ndarray, list[str]]]:
    """Short captions among pictures with different summaries, long ones among siblings."""
    distinct = world.pairs(n, seed=seed)
    tests = {"short": (distinct.images, distinct.short)}
    images = None
    for writer in writers:
        told = world.pairs(n, seed=seed, captioner=writer, siblings=siblings)
        images = told.images if images is None else images  # the same pictures for every writer
        tests[f"long, {writer}"] = (images, told.long)
    return tests


def _family() -> Suite:
    """LoTLIP's three tasks: long-text retrieval, short-text retrieval, classification."""
    tests = _pools(1000, world.TEST_SEED, ("surveyor", "painter"))
    return Suite("family", tests, world.single_objects(1000, seed=world.TEST_SEED))


def _stretching() -> Suite:
    """Lessons 02 and 03: one writer of long captions, whose words the tiny CLIP has seen."""
    tests = _pools(1000, world.TEST_SEED, ("surveyor",))
    return Suite("stretching", tests, world.single_objects(1000, seed=world.TEST_SEED))


def _micro() -> Suite:
    """A few pictures, for trying out."""
    tests = _pools(24, world.SELECTION_SEED, ("surveyor",), siblings=1)
    return Suite("micro", tests, world.single_objects(24, seed=world.SELECTION_SEED))


SUITES: dict[str, Callable[[], Suite]] = {
    "family": _family,
    "stretching": _stretching,
    "micro": _micro,
}


@lru_cache(maxsize=2)
def suite(name: str) -> Suite:
    """The suite of this name, drawn once. Raises LabError for an unknown name, with near ones."""
    if name not in SUITES:
        raise LabError(f"There is no suite {name!r}. {suggest(name, SUITES)}")
    return SUITES[name]()


# --- The training images of arms: drawn once, kept on disk, shared ---

TEXTS, IMAGES = "texts.json", "images.npy"


@dataclass(frozen=True)
class TrainingSet:
    """What `training.train` reads of a set of pictures."""

    images: np.ndarray
    short: list[str]
    long: list[str]
    captioners: list[dict[str, str]]
    captions: list[list[str]]
    source: dict[str, Any]
    name: str
    skipped: dict[str, list[str]] = field(default_factory=dict)


def training_set(recipe: Recipe, home: Path, seed: int = world.TRAIN_SEED) -> TrainingSet:
    """The world's pictures for `recipe`, from `home`/sets if they have been drawn before.

    They are those that `training.train` would draw: with `subcaptions` noisy alt-texts and long
    captions by three writers, otherwise clean short and long captions by one.
    """
    facts = {
        "version": ARM_VERSION,
        "kind": "pairs" if recipe.subcaptions is None else "web",
        "pairs": recipe.pairs,
        "siblings": recipe.hard_negative_group,
        "seed": seed,
    }
    if recipe.subcaptions is not None:
        facts |= {"noise": recipe.alt_text_noise, "hallucination": recipe.hallucination}
    return _open(json.dumps(facts, sort_keys=True), Path(home))


@lru_cache(maxsize=2)
def _open(facts: str, home: Path) -> TrainingSet:
    folder = home / "sets" / hashlib.sha256(facts.encode()).hexdigest()[:DIGITS]
    texts, images = folder / TEXTS, folder / IMAGES
    if not texts.exists():
        drawn = _draw(**json.loads(facts))
        with atomic_path(images) as temporary, temporary.open("wb") as file:
            np.save(file, drawn.images)
        told = {
            "short": drawn.short,
            "long": drawn.long,
            "captioners": getattr(drawn, "captioners", []),
            "captions": drawn.captions,
            "source": drawn.source,
            "name": drawn.name,
        }
        atomic_write(texts, to_json(told))  # last: where it is, the pictures are
    try:
        return TrainingSet(images=np.load(images, mmap_mode="r"), **read_json_object(texts))
    except (LabError, TypeError, ValueError, EOFError, OSError) as error:
        raise LabError(f"{folder} cannot be read ({error}). Remove it to draw it anew.") from None


def _draw(
    kind: str, pairs: int, siblings: int, seed: int, version: int, **rates: float
) -> world.WorldPairs:
    if kind == "pairs":
        return world.pairs(pairs, seed=seed, siblings=siblings)
    return world.web_pairs(pairs, seed, siblings=siblings, **rates)


# --- The trunk that LoTLIP's arms start from: a locked image tower, a text tower that has read ---

CONTEXT = 256


def trunk(name: str, home: Path) -> Clip:
    """The trunk of this name, trained now (on from its last checkpoint) if it is not in `home`."""
    one = TRUNKS[name]
    folder = Path(home) / "trunks" / one.key()
    if not (folder / "done").exists():
        config = world_bert(CONTEXT)
        config.hidden_size, config.intermediate_size = one.width, 4 * one.width
        config.num_hidden_layers = one.layers
        is_clip = one.image_tower in bundled_names()
        tower = load(one.image_tower) if is_clip else one.image_tower
        start = build_lotlip(tower, config, 0, context_length=CONTEXT)
        data = training_set(one.recipe, home, world.PRETRAIN_SEED)
        train(start, one.recipe, data, out=folder / "run", resume=True, progress=False)
        (folder / "done").touch()
    return load(folder / "run" / "model")


# --- Arms made: trained once, asked once, kept under the name that their content gives them ---

ARM, RESULT, HITS, SPENT, RUN = "arm.json", "result.json", "hits.npz", "spent.json", "run"

OnStep = Callable[[int], None]
"""Called with the number of steps done."""


@dataclass(frozen=True)
class Made:
    """One arm of one seed: its hits by test [N] and what it took."""

    key: str
    hits: dict[str, np.ndarray]
    facts: dict[str, Any]
    """seconds, cpu_seconds, commit, versions, history's last row, variance_kept, drawn."""

    @property
    def seconds(self) -> float:
        return self.facts["seconds"]


def made(arm: Arm, seed: int, home: Path) -> Made | None:
    """The arm if it has been made whole, otherwise None, as for one whose files are damaged."""
    folder = Path(home) / arm.key(seed)
    try:
        facts = _read_times(folder / RESULT)
        with np.load(folder / HITS) as stored:
            hits = {name: stored[name] for name in stored.files}
    except (LabError, OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    return Made(folder.name, hits, facts)


def _read_times(path: Path) -> dict[str, Any]:
    """A JSON object with what an arm has taken. Raises LabError for anything else."""
    facts = read_json_object(path)
    for name in ("seconds", "cpu_seconds"):
        value = facts.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise LabError(
                f"{path} does not say how long its arm took ({name}: {value!r}). Remove "
                "the file to count anew."
            )
    return facts


def make(arm: Arm, seed: int, home: Path, on_step: OnStep = lambda step: None) -> Made:
    """The arm of one seed: what is there already, or trained (on from its last checkpoint) and
    asked now.

    Raises LabError as `training.train` does.
    """
    found = made(arm, seed, home)
    if found is not None:
        return found
    home = Path(home)
    folder = home / arm.key(seed)
    atomic_write(folder / ARM, to_json(arm.identity(seed), indent=2) + "\n")
    with _counting(folder / SPENT) as spent:
        clip, facts = _model(arm, seed, home, folder / RUN, on_step)
        hits = suite(arm.suite).ask(clip).hits
    with atomic_path(folder / HITS) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **hits)
    shutil.rmtree(folder / RUN / "checkpoints", ignore_errors=True)
    facts |= {**spent, "commit": commit(), "versions": versions()}
    atomic_write(folder / RESULT, to_json(facts, indent=2) + "\n")
    return Made(folder.name, hits, facts)


def _model(
    arm: Arm, seed: int, home: Path, out: Path, on_step: OnStep
) -> tuple[Clip, dict[str, Any]]:
    start = _start(arm, seed, home)
    if arm.recipe is None:
        return start, {}
    recipe = arm.seeded(seed)
    data = training_set(recipe, home)
    if out.exists() and not (out / "run.json").exists():
        shutil.rmtree(out)  # killed before it had begun
    run = train(
        start,
        recipe,
        data,
        out=out,
        resume=True,
        progress=False,
        on_step=lambda row: on_step(row["step"]),
        features=_features(start, recipe, data.images, home),
    )
    shares = [row["variance_kept"] for row in run.history]
    facts = {
        "last": run.history[-1],
        "variance_kept": sum(shares) / len(shares),
        "num_truncated": run.num_truncated,
        "drawn": None if run.drawn is None else run.drawn.to_dict(),
    }
    return run.model, facts


def _start(arm: Arm, seed: int, home: Path) -> Clip:
    recipe = arm.recipe
    if arm.start is None:
        return new_model(arm.seeded(seed))
    if arm.start not in TRUNKS:
        clip = load(arm.start)
        if arm.stretch is None:
            return clip
        return stretch(clip, keep=arm.keep, method=arm.stretch, seed=seed)
    clip = trunk(arm.start, home)
    if recipe is not None and recipe.num_corner:
        kind, mask = extra_tokens(recipe)
        # At the place of [CLS], so that all arms of a seed read the text at the same positions.
        clip = add_corner_tokens(
            clip, recipe.num_corner, mask=mask, kind=kind, positions="kept", seed=seed
        )
    if recipe is not None and recipe.token_limit is not None:
        text_tower(clip.model).context_length = recipe.token_limit
    return clip


def _features(clip: Clip, recipe: Recipe, images: np.ndarray, home: Path) -> Path | None:
    """Where a locked tower's features of these pictures are; all arms that can, share them."""
    if not (recipe.lock_image and recipe.cache_image_features):
        return None
    tower = weights_hash(frozen_part(clip.model.visual))
    kind = "tokens" if needs(recipe, "tokens") else "pooled"
    parts = [value.removeprefix("sha256:")[:12] for value in (tower, images_hash(images))]
    return home / "features" / "-".join([*parts, kind])


@contextmanager
def _counting(path: Path) -> Iterator[dict[str, float]]:
    """Seconds inside the block, added to those of interrupted calls before it."""
    spent = _read_times(path) if path.exists() else {"seconds": 0.0, "cpu_seconds": 0.0}
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield spent
    finally:
        spent["seconds"] += time.perf_counter() - wall
        spent["cpu_seconds"] += time.process_time() - cpu
        atomic_write(path, to_json(spent) + "\n")
