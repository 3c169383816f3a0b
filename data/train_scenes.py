"""Train the neck of the bundled image tower `tiny-scenes`, on top of the locked `tiny-tower`.

    python data/train_scenes.py

Supervised as a classifier is, from the one feature of the whole picture: which kinds are in it,
which two are the main ones, each kind's colour, size, pattern, orientation and place, and ground,
sky, light and number of things. Every label is read off by a linear head, so that whoever locks the
tower finds these facts without further depth.

The folder holds `neck.safetensors` (fp16, the neck alone) and `card.json` with the scores.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from longclip_lab import world
from longclip_lab.files import atomic_path, atomic_write
from longclip_lab.models import build_lotlip, pixels
from longclip_lab.models.tiny import SCENE_WIDTH, CellNeck, cells

BATCH, AT_ONCE, HELD_OUT = 256, 1000, 1000
KINDS = len(world.KINDS)
OF_A_KIND = {
    "colour": world.COLOURS,
    "place": world.PLACES,
    "size": world.SIZES,
    "pattern": world.PATTERNS,
    "orientation": world.ORIENTATIONS,
}
OF_THE_PICTURE = {
    "ground": world.GROUNDS,
    "sky": world.SKIES,
    "light": ("left", "middle", "right"),
    "count": tuple(range(5, 9)),
}
WEIGHTS = {"has": 6.0, "main": 6.0, "colour": 2.0, "place": 2.0} | dict.fromkeys(
    OF_THE_PICTURE, 0.5
)


def targets(scenes: list[world.Scene]) -> dict[str, torch.Tensor]:
    """[N, kinds]: presence, main or not, classes (-100 where the kind is absent); [N]: classes."""
    out = {name: torch.zeros(len(scenes), KINDS) for name in ("has", "main")}
    out |= {name: torch.full((len(scenes), KINDS), -100) for name in OF_A_KIND}
    for row, scene in enumerate(scenes):
        for number, thing in enumerate(scene.things):
            kind = world.KINDS.index(thing.kind)
            out["has"][row, kind] = 1
            out["main"][row, kind] = number in scene.main
            for name, values in OF_A_KIND.items():
                out[name][row, kind] = values.index(getattr(thing, name))
    facts = [{**vars(scene), "count": len(scene.things)} for scene in scenes]
    for name, values in OF_THE_PICTURE.items():
        out[name] = torch.tensor([values.index(one[name]) for one in facts])
    return out


def heads() -> nn.ModuleDict:
    """A linear head for each kind of label."""
    sizes = {"has": KINDS, "main": KINDS}
    sizes |= {name: KINDS * len(values) for name, values in OF_A_KIND.items()}
    sizes |= {name: len(values) for name, values in OF_THE_PICTURE.items()}
    return nn.ModuleDict({name: nn.Linear(SCENE_WIDTH, size) for name, size in sizes.items()})


def loss(logits: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> torch.Tensor:
    total = torch.zeros(())
    for name, found in logits.items():
        if name in ("has", "main"):
            one = F.binary_cross_entropy_with_logits(found, truth[name])
        elif name in OF_A_KIND:
            classes = found.unflatten(1, (KINDS, -1)).flatten(0, 1)
            one = F.cross_entropy(classes, truth[name].flatten())
        else:
            one = F.cross_entropy(found, truth[name])
        total = total + WEIGHTS.get(name, 1.0) * one
    return total


def scores(logits: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> dict[str, float]:
    """Accuracy in percent; of a kind's attributes where the kind is there."""
    out = {}
    for name, found in logits.items():
        if name in ("has", "main"):
            right = (found > 0) == (truth[name] > 0)
        elif name in OF_A_KIND:
            there = truth[name] >= 0
            right = (found.unflatten(1, (KINDS, -1)).argmax(-1) == truth[name])[there]
        else:
            right = found.argmax(-1) == truth[name]
        out[name] = round(100 * right.float().mean().item(), 1)
    return out


@torch.no_grad()
def pictures(count: int) -> tuple[torch.Tensor, list[world.Scene]]:
    """The locked trunk's cells [N, 9, D] in fp16, and the scenes."""
    rng = np.random.default_rng((world.PRETRAIN_SEED, 1))
    tower = build_lotlip("tiny-tower", "world", 0)
    scenes, states = [world.random_scene(rng) for _ in range(count)], []
    for start in range(0, count, AT_ONCE):
        drawn = world.draw_all(scenes[start : start + AT_ONCE])
        for part in pixels(tower, drawn).split(BATCH):
            states.append(cells(tower.model.visual.trunk.forward_features(part)).half())
    return torch.cat(states), scenes


def train(steps: int, count: int, seed: int, peak: float = 2e-3) -> tuple[CellNeck, dict]:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    cells_N9D, scenes = pictures(count + HELD_OUT)
    truth = targets(scenes)
    neck, tops = CellNeck(), heads()
    optimizer = torch.optim.AdamW([*neck.parameters(), *tops.parameters()], weight_decay=0.02)
    for step in range(steps):
        rate = peak * min(1, (step + 1) / 100) * 0.5 * (1 + np.cos(np.pi * step / steps))
        optimizer.param_groups[0]["lr"] = rate
        rows = torch.from_numpy(rng.integers(0, count, BATCH))
        features_BE = neck.sum(cells_N9D[rows].float())
        logits = {name: top(features_BE) for name, top in tops.items()}
        wrong = loss(logits, {name: values[rows] for name, values in truth.items()})
        optimizer.zero_grad()
        wrong.backward()
        optimizer.step()
        if (step + 1) % 250 == 0:
            print(f"step {step + 1}  loss {wrong.item():.3f}", flush=True)
    with torch.no_grad():
        features_NE = neck.sum(cells_N9D[count:].float())
        logits = {name: top(features_NE) for name, top in tops.items()}
    return neck, scores(logits, {name: values[count:] for name, values in truth.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--pictures", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "tiny-scenes")
    options = parser.parse_args()
    start = time.process_time()
    neck, result = train(options.steps, options.pictures, options.seed)
    minutes = round((time.process_time() - start) / 60, 1)
    print(json.dumps(result, indent=1))
    with atomic_path(options.out / "neck.safetensors") as path:
        save_file({f"neck.{k}": v.half().contiguous() for k, v in neck.state_dict().items()}, path)
    card = {
        "name": "tiny-scenes",
        "command": f"python data/train_scenes.py --steps {options.steps} "
        f"--pictures {options.pictures} --seed {options.seed}",
        "cpu_minutes": minutes,
        "seed": options.seed,
        "trunk": "tiny-tower",
        "accuracy_percent": result,
    }
    atomic_write(options.out / "card.json", json.dumps(card, indent=2) + "\n")


if __name__ == "__main__":
    main()
