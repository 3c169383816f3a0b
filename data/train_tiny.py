"""Train the bundled tiny CLIP models on the drawn world, from its web-like captions.

    python data/train_tiny.py tiny            # captions of 5-20 tokens, one in seven longer
    python data/train_tiny.py tiny-notail --steps 1400     # the control: no caption above 21 tokens

Both start from the dense-supervised image tower (`data/train_tower.py`), as LiT and LoTLIP start
from an ImageNet-21k tower. Its stem and first two blocks stay as they are; its last block, the
projection and the text tower are trained with 2,000 steps (the control: 1,400) of 128 pairs and
AdamW, some 20 minutes on one CPU core. What was run is in the model's card,
`data/<name>/clip.json`; `scores.json` beside it has the scores on held-out pictures, which
`--only-score` makes anew.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

import longclip_lab as ll

HERE = Path(__file__).parent
TAIL = {"tiny": 0.15, "tiny-notail": 0.0}
BATCH, SHORT = 128, 24
TRAINED = ("blocks.2.", "norm.", "fc_norm.")  # of the image trunk


def new_clip(name: str, seed: int) -> ll.models.Clip:
    """A tiny model whose image trunk has the dense-supervised weights; the text tower is random."""
    clip = ll.models.new_tiny(seed=seed, name=name)
    weights = load_file(HERE / "tiny-tower" / "tower.safetensors")
    trunk = {k[len("trunk.") :]: v.float() for k, v in weights.items() if k.startswith("trunk.")}
    clip.model.visual.trunk.load_state_dict(trunk)
    for name, parameter in clip.model.visual.trunk.named_parameters():
        parameter.requires_grad_(name.startswith(TRAINED))
    return clip


def draw_batch(step: int, seed: int, tail: float) -> tuple[np.ndarray, list[str]]:
    """The pictures and captions of a step, a function of the step alone."""
    rng = np.random.default_rng((ll.world.PRETRAIN_SEED, seed, step))
    scenes = [ll.world.random_scene(rng) for _ in range(BATCH)]
    return ll.world.draw_all(scenes), [ll.world.web_caption(s, rng, tail).text for s in scenes]


def encode_captions(clip: ll.models.Clip, texts: list[str]) -> torch.Tensor:
    """Features [B, D]. Short and long captions run apart, so that the short ones pad little."""
    tokens = clip.tokenize(texts)
    features = torch.empty(len(texts), clip.embed_dim)
    for group in (tokens.lengths_B <= SHORT, tokens.lengths_B > SHORT):
        if group.any():
            features[group] = clip.encode_text(tokens.ids_BT[group])
    return features


def parameter_groups(model: nn.Module, peak: float) -> list[dict]:
    """The pretrained trunk moves slower; norms, biases, positions and the scale do not decay."""
    groups: dict[tuple[bool, bool], list] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim >= 2 and "pos" not in name
        groups.setdefault((name.startswith("visual.trunk"), decays), []).append(parameter)
    return [
        {"params": p, "scale": 0.4 if trunk else 1.0, "weight_decay": 0.05 if decays else 0.0}
        for (trunk, decays), p in groups.items()
    ]


def train(
    clip: ll.models.Clip, steps: int, seed: int, tail: float, folder: Path, peak: float = 1e-3
) -> None:
    """Train in place; every 500 steps the model so far is saved to `folder`."""
    model = clip.model.train()
    optimizer = torch.optim.AdamW(parameter_groups(model, peak), lr=peak, betas=(0.9, 0.98))
    labels = torch.arange(BATCH)
    for step in range(steps):
        rate = peak * min(1, (step + 1) / 100) * 0.5 * (1 + np.cos(np.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        images, texts = draw_batch(step, seed, tail)
        image_BD = nn.functional.normalize(clip.encode_image(ll.models.pixels(clip, images)), dim=1)
        text_BD = nn.functional.normalize(encode_captions(clip, texts), dim=1)
        logits = model.logit_scale.exp() * image_BD @ text_BD.T
        cross_entropy = nn.functional.cross_entropy
        loss = (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model.logit_scale.data.clamp_(max=np.log(100))
        if (step + 1) % 100 == 0:
            right = (logits.argmax(1) == labels).float().mean().item()
            scale = model.logit_scale.exp().item()
            print(f"step {step + 1} loss {loss:.3f} in-batch {right:.2f} x{scale:.1f}", flush=True)
        if (step + 1) % 500 == 0:
            ll.save(clip, folder, dtype=torch.float16)
    model.eval()


def score(folder: Path) -> None:
    """Evaluate the saved model and write `scores.json` beside it."""
    result = ll.evaluate(ll.load(str(folder)))
    result.to_json(folder / "scores.json")
    print(result.table().to_string())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=sorted(TAIL))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only-score", action="store_true", help="evaluate what is there")
    options = parser.parse_args()
    folder = options.out or HERE / options.name
    if not options.only_score:
        clip = new_clip(options.name, options.seed)
        start = time.monotonic()
        train(clip, options.steps, options.seed, TAIL[options.name], folder)
        clip.card |= {
            "provenance": f"python data/train_tiny.py {options.name} --steps {options.steps} "
            f"--seed {options.seed}",
            "minutes": round((time.monotonic() - start) / 60, 1),
            "trained_on": f"world web captions, tail {TAIL[options.name]}, "
            f"{options.steps * BATCH} pairs; image trunk from data/train_tower.py",
        }
        ll.save(clip, folder, dtype=torch.float16)
    score(folder)


if __name__ == "__main__":
    main()
