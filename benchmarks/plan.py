"""What a plan predicts, beside what was measured: on this machine, and in the papers.

    python benchmarks/plan.py

Here: two small CLIPs take training steps; the processor's rate, found from the one, predicts the
time of the other. The papers: the share of the GPUs' peak that their published times come to.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace

import torch

from longclip_lab.models.build import build_model
from longclip_lab.objectives import contrastive_loss
from longclip_lab.training import recipe_for
from longclip_lab.training.plan import cost_of, plan

BATCH, STEPS = 16, 10
SIZES = {
    "known": {"width": 192, "layers": 4, "text_layers": 3},
    "predicted": {"width": 256, "layers": 6, "text_layers": 6},
}
LONGCLIP_HOURS = 0.5  # 8 A100, ViT-B/16, an epoch of ShareGPT4V: Long-CLIP's issue 99
LOTLIP_GPU_DAYS = 133  # 100M pictures: LoTLIP, section 7.5


def built(width: int, layers: int, text_layers: int) -> tuple[torch.nn.Module, float]:
    """A CLIP with 248 positions, and the operations of a training step of it."""
    model = build_model(
        {
            "embed_dim": 128,
            "vision_cfg": {"image_size": 128, "layers": layers, "width": width, "patch_size": 16},
            "text_cfg": {
                "context_length": 248,
                "vocab_size": 1000,
                "width": width,
                "heads": width // 64,
                "layers": text_layers,
            },
        }
    ).train()
    cost = cost_of(model, 128)
    return model, 3.0 * BATCH * (cost.image.flops() + cost.text.flops())


def a_step(model: torch.nn.Module) -> float:
    """Seconds of a training step."""
    pixels_B3HW = torch.rand(BATCH, 3, 128, 128)
    ids_BT = torch.randint(1, 999, (BATCH, 248))
    began = time.perf_counter()
    image_BD, text_BD = model.encode_image(pixels_B3HW), model.encode_text(ids_BT)
    contrastive_loss(image_BD, text_BD, model.logit_scale.exp()).backward()
    model.zero_grad()
    return time.perf_counter() - began


def step_seconds(models: list[torch.nn.Module]) -> list[float]:
    """The fastest of a few steps of each, taken in turn: others may use the processor as well."""
    rounds = [[a_step(model) for model in models] for _ in range(STEPS + 1)]
    return [min(taken) for taken in zip(*rounds[1:], strict=True)]


def main() -> None:
    torch.manual_seed(0)
    (known, flops), (predicted, other_flops) = (built(**sizes) for sizes in SIZES.values())
    seconds, other_seconds = step_seconds([known, predicted])
    recipe = replace(recipe_for("lotlip", "paper", data="100M"), cache_image_features=False)
    lotlip = plan(recipe, "A100:8", 100_000_000)
    both_padded = replace(recipe_for("longclip", "paper", "paper"), grad_checkpointing=False)
    longclip = plan(both_padded, "A100:8", 1_245_901, "ViT-B-16", long_tokens=248, short_tokens=248)
    print(
        json.dumps(
            {
                "benchmark": "plan",
                "predicted_over_measured_step": other_flops / flops * seconds / other_seconds,
                "utilisation_implied_by_lotlip": lotlip.mfu * lotlip.gpu_days / LOTLIP_GPU_DAYS,
                "utilisation_implied_by_longclip": longclip.mfu * longclip.hours / LONGCLIP_HOURS,
            }
        )
    )


if __name__ == "__main__":
    main()
