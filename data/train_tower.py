"""Train the bundled dense-supervised image tower, `data/tiny-tower`.

    python data/train_tower.py --steps 2800

The world's counterpart of a tower pretrained on ImageNet-21k: for each of the nine cells of a
picture it is told the kind (or that the cell is empty), colour, size, pattern and orientation, and
for the whole picture ground, sky and light. A tower trained so knows the small things too, which
gives position stretching, PCM and corner tokens features rich enough to be tested on.

The folder holds `tower.safetensors` (fp16: the weights of an open_clip visual tower under
`trunk.*` and the linear heads under `heads.*`) and `card.json` with the scores.
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
from longclip_lab.generation.judge import PICTURE, THINGS, DenseTower

BATCH = 96


def targets(scenes: list[world.Scene]) -> dict[str, torch.Tensor]:
    """Class indices: [B, 9] for cells (-100 where a cell has no thing), [B] for pictures."""
    out = {name: torch.full((len(scenes), 9), -100) for name in THINGS}
    out["kind"].fill_(len(world.KINDS))
    for b, scene in enumerate(scenes):
        for thing in scene.things:
            for name in THINGS:
                value = world.classes(name).index(getattr(thing, name))
                out[name][b, thing.cell] = value
    for name, values in PICTURE.items():
        out[name] = torch.tensor([values.index(getattr(scene, name)) for scene in scenes])
    return out


def to_pixels(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def scores(tower: DenseTower, n: int = 2000) -> dict[str, float]:
    """Accuracy in percent on held-out scenes, by attribute and, for kind and colour, by size."""
    tower.eval()
    rng = [np.random.default_rng((world.SELECTION_SEED, i)) for i in range(n)]
    scenes = [world.random_scene(one) for one in rng]
    truth = targets(scenes)
    found: dict[str, list[torch.Tensor]] = {name: [] for name in truth}
    with torch.inference_mode():
        for start in range(0, n, 250):
            logits = tower(to_pixels(world.draw_all(scenes[start : start + 250])))
            for name in found:
                found[name].append(logits[name].argmax(-1))
    out = {}
    for name, target in truth.items():
        mask = target >= 0
        right = torch.cat(found[name]) == target
        out[name] = round(100 * right[mask].float().mean().item(), 1)
        if name in ("kind", "colour"):
            for k, size in enumerate(world.SIZES):
                out[f"{name} ({size})"] = round(
                    100 * right[truth["size"] == k].float().mean().item(), 1
                )
    return out


def train(steps: int, seed: int, peak: float = 2e-3) -> DenseTower:
    torch.manual_seed(seed)
    rng = np.random.default_rng((world.PRETRAIN_SEED, seed))
    tower = DenseTower()
    optimizer = torch.optim.AdamW(tower.parameters(), lr=peak, weight_decay=0.02)
    for step in range(steps):
        rate = peak * min(1, (step + 1) / 100) * 0.5 * (1 + np.cos(np.pi * step / steps))
        optimizer.param_groups[0]["lr"] = rate
        scenes = [world.random_scene(rng) for _ in range(BATCH)]
        truth = targets(scenes)
        logits = tower(to_pixels(world.draw_all(scenes)))
        loss = sum(F.cross_entropy(logits[k].flatten(0, -2), truth[k].flatten()) for k in truth)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}  loss {loss.item():.3f}  lr {rate:.1e}", flush=True)
    return tower


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=2800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "tiny-tower")
    options = parser.parse_args()
    start = time.monotonic()
    tower = train(options.steps, options.seed)
    minutes = round((time.monotonic() - start) / 60, 1)
    result = scores(tower)
    print(json.dumps(result, indent=1))
    weights = {f"trunk.{k}": v for k, v in tower.trunk.state_dict().items()}
    for part in ("cell_heads", "image_heads"):
        weights |= {f"heads.{k}": v for k, v in getattr(tower, part).state_dict().items()}
    with atomic_path(options.out / "tower.safetensors") as path:
        save_file({k: v.half().contiguous() for k, v in weights.items()}, path)
    card = {
        "name": "tiny-tower",
        "command": f"python data/train_tower.py --steps {options.steps} --seed {options.seed}",
        "minutes": minutes,
        "seed": options.seed,
        "pictures": options.steps * BATCH,
        "accuracy_percent": result,
    }
    atomic_write(options.out / "card.json", json.dumps(card, indent=2) + "\n")


if __name__ == "__main__":
    main()
