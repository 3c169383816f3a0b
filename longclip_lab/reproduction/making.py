"""Arms made: trained once, asked once, kept under the name that their content gives them.

HOME/KEY/arm.json      what the arm is
HOME/KEY/run/          training: log and checkpoints until it is done, then the trained model
HOME/KEY/spent.json    seconds so far, over all interruptions
HOME/KEY/hits.npz      hits by test, picture by picture
HOME/KEY/result.json   that it is done, and what it took
HOME/sets, HOME/features, HOME/trunks   what arms share: drawn pictures, a locked tower's
                       features, what they start from
"""

from __future__ import annotations

import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longclip_lab.errors import LabError
from longclip_lab.evaluation.records import commit, versions
from longclip_lab.files import atomic_path, atomic_write, read_json_object, to_json
from longclip_lab.models import Clip, add_corner_tokens, load, stretch
from longclip_lab.models.pictures import pictures_hash
from longclip_lab.models.text_tower import text_tower
from longclip_lab.models.token_features import frozen_part
from longclip_lab.reproduction.arms import Arm
from longclip_lab.reproduction.sets import training_set
from longclip_lab.reproduction.suites import suite
from longclip_lab.reproduction.trunks import TRUNKS, trunk
from longclip_lab.training import new_model, train
from longclip_lab.training.checkpoints import weights_hash
from longclip_lab.training.fresh import extra_tokens
from longclip_lab.training.recipe import Recipe
from longclip_lab.training.towers import needs

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
    if not (recipe.lock_image and recipe.store_features):
        return None
    tower = weights_hash(frozen_part(clip.model.visual))
    kind = "tokens" if needs(recipe, "tokens") else "pooled"
    parts = [value.removeprefix("sha256:")[:12] for value in (tower, pictures_hash(images))]
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
