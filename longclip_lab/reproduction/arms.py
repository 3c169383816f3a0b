"""An arm: one way to make a model, as data, with a name that its content gives it.

Experiments share arms: what LoTLIP's Table 2 trains, its Tables 3 and 7 need again. An arm's
folder is the hash of all that decides its numbers, so it is trained once, whoever asks first.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from longclip_lab.errors import LabError
from longclip_lab.training.checkpoints import DISPLAY
from longclip_lab.training.recipe import Recipe

ARM_VERSION = 1
"""Part of every hash. Raise it when a change of the library changes what training or evaluation
gives; `tests/reproduction/test_arms.py` notices such a change."""

DIGITS = 16
NAME = "arm"


@dataclass(frozen=True)
class Arm:
    """How a model is made and what it is asked; everything but the seed.

    Without `start` the recipe builds its own new model from two towers; with it, a bundled model is
    taken and, with `stretch`, its positions are stretched. Without a recipe nothing is trained.
    `suite` names the tests (`reproduction.suites`).

    Raises LabError for an arm that starts from nothing.
    """

    suite: str
    recipe: Recipe | None = None
    start: str | None = None
    stretch: str | None = None
    keep: int = 20

    def __post_init__(self) -> None:
        if self.recipe is None and self.start is None:
            raise LabError("An arm needs a recipe, or a model to start from.")

    def change(self, **fields: Any) -> Arm:
        """The same arm with some fields of its recipe changed."""
        if self.recipe is None:
            raise LabError("This arm is not trained: it has no recipe to change.")
        return replace(self, recipe=replace(self.recipe, **fields))

    def seeded(self, seed: int) -> Recipe | None:
        """The recipe of one seed, under one name, so that equal arms are one run."""
        if self.recipe is None:
            return None
        return replace(self.recipe, name=NAME, seed=seed, tensorboard=False)

    def identity(self, seed: int) -> dict[str, Any]:
        """Everything that decides the numbers, JSON-able. What an arm is called is no part of it,
        and neither is the seed where nothing is drawn.

        >>> arm = Arm("stretching", start="tiny", stretch="kps")
        >>> arm.identity(3)["stretch"], arm.identity(3)["seed"]
        ('kps', None)
        """
        drawn = self.recipe is not None or self.stretch == "random"
        facts: dict[str, Any] = {"version": ARM_VERSION, **asdict(self)}
        facts["seed"] = seed if drawn else None
        if self.recipe is not None:
            fields = asdict(self.seeded(seed))
            facts["recipe"] = {k: v for k, v in fields.items() if k not in DISPLAY}
        return json.loads(json.dumps(facts))

    def key(self, seed: int) -> str:
        """The name of the arm's folder: the hash of `identity`."""
        text = json.dumps(self.identity(seed), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]

    def steps(self) -> int:
        """Optimizer steps of its training, 0 if it is not trained."""
        if self.recipe is None:
            return 0
        return self.recipe.total_steps(self.recipe.pairs)
