"""What a generated picture of the drawn world shows, fact by fact of its prompt.

The judge is the bundled dense-supervised tower (`data/train_tower.py`): for each of the nine cells
of a picture it says the kind of thing, or that there is none, its colour, size, pattern and
orientation, and for the whole picture ground, sky and light. On drawn pictures it is right 98 to
100 times in a hundred (`data/tiny-tower/card.json`).

B pictures, D width of the tower, n classes of an attribute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from longclip_lab.errors import LabError
from longclip_lab.models import build_tiny
from longclip_lab.models.tiny import data_folder
from longclip_lab.world import classes
from longclip_lab.world.captions import NUMBERS, Caption, Fact
from longclip_lab.world.scene import GROUNDS, KINDS, LIGHTS, PIXELS, PLACES, SKIES

THINGS = ("kind", "colour", "size", "pattern", "orientation")
PICTURE = {"ground": GROUNDS, "sky": SKIES, "light": LIGHTS}
JUDGED = (*THINGS, "place", *PICTURE, "count")
"""Attributes of facts that are judged; how two things lie to each other is not."""


class DenseTower(nn.Module):
    """Trunk tokens [B, 36, D] of the 6 x 6 grid, averaged to 9 cells, and a linear head each."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = build_tiny(10).visual.trunk
        width = self.trunk.embed_dim
        sizes = {name: len(classes(name)) + (name == "kind") for name in THINGS}  # + an empty cell
        self.cell_heads = nn.ModuleDict({k: nn.Linear(width, n) for k, n in sizes.items()})
        self.image_heads = nn.ModuleDict({k: nn.Linear(width, len(v)) for k, v in PICTURE.items()})

    def forward(self, pixels_B3HW: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits [B, 9, n] of the cells' attributes and [B, n] of the picture's."""
        tokens_BLD = self.trunk.forward_features(pixels_B3HW)
        grid_BDHW = tokens_BLD.transpose(1, 2).unflatten(2, (6, 6))
        cells_B9D = F.avg_pool2d(grid_BDHW, 2).flatten(2).transpose(1, 2)
        logits = {name: head(cells_B9D) for name, head in self.cell_heads.items()}
        pooled_BD = tokens_BLD.mean(1)
        return logits | {name: head(pooled_BD) for name, head in self.image_heads.items()}


@cache
def load_judge() -> DenseTower:
    """The bundled tower with its heads, in float32."""
    weights = load_file(data_folder() / "tiny-tower" / "tower.safetensors")
    tower = DenseTower()
    trunk = {name[6:]: one for name, one in weights.items() if name.startswith("trunk.")}
    heads = {name[6:]: one for name, one in weights.items() if name.startswith("heads.")}
    tower.trunk.load_state_dict(trunk)
    for part in (tower.cell_heads, tower.image_heads):
        part.load_state_dict({name: heads[name] for name in part.state_dict()})
    return tower.float().eval()


@dataclass(frozen=True)
class Seen:
    """What the judge sees: attributes of the thing in each cell (None for an empty one), and
    ground, sky and light."""

    cells: tuple[dict[str, str] | None, ...]
    picture: dict[str, str]

    def shows(self, fact: Fact, kind: str = "") -> bool:
        """Whether a fact is there; for one of a thing, in a cell with a thing of this `kind`.

        Raises LabError for an attribute that is not judged.
        """
        if fact.attribute not in JUDGED:
            raise LabError(f"'{fact.attribute}' is not judged; these are: {', '.join(JUDGED)}.")
        if fact.attribute == "count":
            return sum(cell is not None for cell in self.cells) == NUMBERS.index(fact.value) + 1
        if fact.thing < 0:
            return self.picture[fact.attribute] == fact.value
        return any(
            PLACES[place] == fact.value
            if fact.attribute == "place"
            else cell[fact.attribute] == fact.value
            for place, cell in enumerate(self.cells)
            if cell is not None and cell["kind"] == kind
        )


@torch.inference_mode()
def see(images_BHW3: np.ndarray) -> list[Seen]:
    """What is in pictures [B, 72, 72, 3] of bytes. Raises LabError for another form."""
    if images_BHW3.dtype != np.uint8 or images_BHW3.shape[1:] != (PIXELS, PIXELS, 3):
        raise LabError(
            f"Expected pictures [B, {PIXELS}, {PIXELS}, 3] of uint8, got {images_BHW3.dtype} of "
            f"{list(images_BHW3.shape)}."
        )
    pixels_B3HW = torch.from_numpy(images_BHW3).permute(0, 3, 1, 2).float() / 127.5 - 1
    found = {name: one.argmax(-1).tolist() for name, one in load_judge()(pixels_B3HW).items()}
    seen = []
    for row in range(len(images_BHW3)):
        cells = tuple(
            None
            if found["kind"][row][cell] == len(KINDS)
            else {name: classes(name)[found[name][row][cell]] for name in THINGS}
            for cell in range(9)
        )
        picture = {name: values[found[name][row]] for name, values in PICTURE.items()}
        seen.append(Seen(cells, picture))
    return seen


@dataclass(frozen=True)
class Judged:
    """A fact of a prompt, and whether the picture shows it: `fact.tokens` say where it stands."""

    prompt: int
    fact: Fact
    shown: bool


def judge(images_BHW3: np.ndarray, captions: Sequence[Caption]) -> list[Judged]:
    """Every fact of the prompts that can be judged, in the pictures drawn from them, one each.

    A fact of a thing counts as shown where a thing of the kind that its prompt names has it.
    Raises LabError for other numbers of pictures and prompts.
    """
    if len(images_BHW3) != len(captions):
        raise LabError(
            f"Expected a prompt for each picture, got {len(images_BHW3)} and {len(captions)}."
        )
    found = []
    for number, (seen, caption) in enumerate(zip(see(images_BHW3), captions, strict=True)):
        kinds = {one.thing: one.value for one in caption.facts if one.attribute == "kind"}
        found += [
            Judged(number, fact, seen.shows(fact, kinds.get(fact.thing, "")))
            for fact in caption.facts
            if fact.attribute in JUDGED
        ]
    return found
