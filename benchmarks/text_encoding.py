"""Speed of encoding texts with a 248-token ViT-B/16 text tower, against padding to 248.

    python benchmarks/text_encoding.py [--texts FILE] [--count 32] [--rounds 3]

Random weights, the same in all three: `longclip_lab.models.encode_texts`, open_clip's
`encode_text` and transformers' `CLIPTextModelWithProjection`, these two on texts padded to 248
tokens, as `padding="max_length"` gives them. The time of our tokenizer counts, the peers get
ready token ids. The three take turns, and the fastest round of each counts, which other load on
the machine disturbs least. Prints one JSON object: seconds on the clock and of CPU time, the
peers' ratios to ours, and the largest difference of a normalised feature.

`--texts FILE` takes one text a line. Without it texts of common words are made whose lengths
follow those of real ones, measured with CLIP's tokenizer, both special tokens counted: 795 COCO
captions (80 training and 79 validation images, 13.7 tokens on average) and the 612 descriptions
of ImageInWords (241.1 on average, 207.3 after the cut at 248).

Takes about 3 minutes on one core. Goals: at least 12 for COCO's lengths, 1.3 for ImageInWords'.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from longclip_lab.models import Clip, assemble, encode_texts, stretch
from longclip_lab.models.build import build_model, preprocess_card
from longclip_lab.text import get_tokenizer

BATCH_SIZE = 16
WORDS = ("a", "the", "red", "dog", "on", "grass", "near", "two", "people", "with", "boat", "sky")

# The lengths at the 0th, 10th, ... 100th percentile.
LENGTHS = {
    "coco": [9, 11, 12, 12, 13, 13, 14, 14, 15, 17, 46],
    "iiw": [56, 136, 160, 183, 205, 228, 254, 278, 317, 371, 751],
}
GOALS = {"coco": 12.0, "iiw": 1.3}


def texts_like(name: str, count: int) -> list[str]:
    """Texts of common words, each one token, whose lengths follow `LENGTHS[name]`, shuffled."""
    generator = np.random.default_rng(0)
    shares = (np.arange(count) + 0.5) / count
    lengths = generator.permutation(np.interp(10 * shares, range(11), LENGTHS[name]))
    return [" ".join(generator.choice(WORDS, round(length) - 2)) for length in lengths]


def text_model() -> Clip:
    """ViT-B/16's text tower with random weights, at 77 positions; a picture tower of no weight."""
    model_cfg = open_clip.get_model_config("ViT-B-16")
    model_cfg["vision_cfg"] = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 32}
    torch.manual_seed(0)
    model = build_model(model_cfg)
    card = preprocess_card(model)
    return assemble(model, model_cfg, get_tokenizer("clip"), card, "ViT-B-16 text tower")


def as_transformers(clip: Clip) -> CLIPTextModelWithProjection:
    """The same tower as a module of transformers, with the same weights."""
    text_cfg = clip.card["model_cfg"]["text_cfg"]
    config = CLIPTextConfig(
        vocab_size=text_cfg["vocab_size"],
        hidden_size=text_cfg["width"],
        intermediate_size=4 * text_cfg["width"],
        num_hidden_layers=text_cfg["layers"],
        num_attention_heads=text_cfg["heads"],
        max_position_embeddings=clip.context_length,
        hidden_act="gelu",
        projection_dim=clip.embed_dim,
        eos_token_id=clip.tokenizer.end_id,
    )
    peer = CLIPTextModelWithProjection(config).eval()
    ours = clip.model
    weights = {
        "text_model.embeddings.token_embedding.weight": ours.token_embedding.weight,
        "text_model.embeddings.position_embedding.weight": ours.positional_embedding,
        "text_model.final_layer_norm.weight": ours.ln_final.weight,
        "text_model.final_layer_norm.bias": ours.ln_final.bias,
        "text_projection.weight": ours.text_projection.T,
    }
    names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1"}
    names |= {"mlp.c_proj": "mlp.fc2", "attn.out_proj": "self_attn.out_proj"}
    for index, block in enumerate(ours.transformer.resblocks):
        layer = f"text_model.encoder.layers.{index}"
        for kind in ("weight", "bias"):
            for old, new in names.items():
                weights[f"{layer}.{new}.{kind}"] = block.get_parameter(f"{old}.{kind}")
            thirds = block.get_parameter(f"attn.in_proj_{kind}").chunk(3)
            for part, third in zip("qkv", thirds, strict=True):
                weights[f"{layer}.self_attn.{part}_proj.{kind}"] = third
    peer.load_state_dict({name: weight.detach() for name, weight in weights.items()})
    return peer


def padded(
    encode: Callable[[torch.Tensor], torch.Tensor], tokens_BT: torch.Tensor
) -> Callable[[], torch.Tensor]:
    """A run of `encode` over batches of padded tokens."""
    return lambda: torch.cat([encode(batch_BT) for batch_BT in tokens_BT.split(BATCH_SIZE)])


def timed(run: Callable[[], torch.Tensor]) -> tuple[float, float, torch.Tensor]:
    """Seconds on the clock, seconds of CPU time, and what `run` returned."""
    clock, cpu = time.perf_counter(), time.process_time()
    result = run()
    return time.perf_counter() - clock, time.process_time() - cpu, result


def measure(
    clip: Clip, peer: CLIPTextModelWithProjection, texts: Sequence[str], rounds: int
) -> dict:
    """Seconds, ratios and feature differences for one list of texts."""
    tokens = clip.tokenize(texts)
    runs = {
        "ours": lambda: encode_texts(clip, texts, batch_size=BATCH_SIZE).features_ND,
        "open_clip": padded(clip.model.encode_text, tokens.ids_BT),
        "transformers": padded(lambda ids_BT: peer(input_ids=ids_BT).text_embeds, tokens.ids_BT),
    }
    results = [{name: timed(run) for name, run in runs.items()} for _ in range(rounds)]
    clock, cpu = ({name: min(r[name][i] for r in results) for name in runs} for i in (0, 1))
    features = {name: F.normalize(result, dim=-1) for name, (_, _, result) in results[0].items()}
    peers = ("open_clip", "transformers")
    return {
        "texts": len(texts),
        "mean_tokens": tokens.lengths_B.float().mean().item(),
        "num_truncated": tokens.num_truncated,
        "seconds": clock,
        "cpu_seconds": cpu,
        "ratio": {name: clock[name] / clock["ours"] for name in peers},
        "cpu_ratio": {name: cpu[name] / cpu["ours"] for name in peers},
        "max_feature_difference": {
            name: (features[name] - features["ours"]).abs().max().item() for name in peers
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=Path, help="a file with one text a line")
    parser.add_argument("--count", type=int, default=32, help="texts of each kind")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each way; the best counts")
    arguments = parser.parse_args()
    clip = stretch(text_model())
    peer = as_transformers(clip)
    sets = {name: texts_like(name, arguments.count) for name in LENGTHS}
    if arguments.texts:
        lines = arguments.texts.read_text(encoding="utf-8").splitlines()
        sets = {arguments.texts.name: [line for line in lines if line.strip()][: arguments.count]}
    with torch.no_grad():
        measure(clip, peer, ["a dog"], 1)  # the first call of each pays for its set-up
        results = {
            name: measure(clip, peer, texts, arguments.rounds) for name, texts in sets.items()
        }
    for name, result in results.items():
        result["goal"] = GOALS.get(name)
    settings = {
        "benchmark": "text_encoding",
        "context_length": clip.context_length,
        "batch_size": BATCH_SIZE,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps({**settings, "results": results}, indent=2))


if __name__ == "__main__":
    main()
