"""How fast the world is drawn on one core, against what training on it needs.

    python benchmarks/world_drawing.py

Prints one JSON object: pictures a second (drawing alone, and with scene and long caption), the
same for a tiny CLIP's forward and backward pass, and their ratio: above 1, drawing pictures on the
fly does not hold training up.
"""

from __future__ import annotations

import json
import time

import numpy as np
import torch

from longclip_lab import models, world


def rate(call, count: int) -> float:
    call()  # sprites and backgrounds are drawn once
    best = 0.0
    for _ in range(3):
        start = time.perf_counter()
        call()
        best = max(best, count / (time.perf_counter() - start))
    return best


def main() -> None:
    torch.set_num_threads(1)
    scenes = [world.random_scene(np.random.default_rng(i)) for i in range(1000)]
    clip = models.new_tiny()
    pixels_B3HW = models.pixels(clip, world.draw_all(scenes[:64]))

    def step() -> None:
        clip.encode_image(pixels_B3HW).sum().backward()

    drawing = rate(lambda: world.draw_all(scenes), len(scenes))
    telling = rate(lambda: world.pairs(500, seed=0), 500)
    training = rate(step, 64)
    found = {
        "pictures_per_second": round(drawing),
        "pairs_with_long_captions_per_second": round(telling),
        "image_tower_training_pictures_per_second": round(training),
        "drawing_over_training": round(drawing / training, 2),
        "threads": 1,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
