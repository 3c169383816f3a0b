"""Long-CLIP's experiments: stretching without training, after training, and PCM.

The bundled tiny CLIP stands for CLIP; long captions are read among siblings, four of which share a
summary, and single things stand for ImageNet.
"""

from __future__ import annotations

from dataclasses import replace

from longclip_lab.reproduction.arms import Arm
from longclip_lab.reproduction.experiment import Claim, Column, Entry, Experiment
from longclip_lab.training.recipes import longclip

POSITIONS = "Long-CLIP, section 3.2"
COMPONENTS = "Long-CLIP, section 3.3"
RATES = {"1e-4": 1e-4, "3e-4": 3e-4, "1e-3": 1e-3}
"""Learning rates; the middle one is the tiny recipe's."""

LONG = Column(
    "long",
    "long captions among siblings, R@1, mean of both directions",
    ("long, surveyor",),
    "longclip/supplement-table1",
    ("I2T", "T2I"),
)
SHORT = Column("short", "short captions, R@1, mean of both directions", ("short",))
KIND = Column("kind", "kind of a single thing, zero-shot, top-1", ("kind",), chance=100 / 12)
COLUMNS = (LONG, SHORT, KIND)
_CLIP = {"architecture": "ViT-B/16", "model": "CLIP"}
_LONG_CLIP = {"architecture": "ViT-B/16", "model": "Long-CLIP"}

_START = Arm("stretching", start="tiny")
_KPS = replace(_START, stretch="kps")
_BASE = replace(
    _KPS,
    recipe=replace(longclip("tiny"), steps=40, warmup_steps=8, batch_size=64, pairs=2560),
)


def stretching() -> Experiment:
    """Four ways from 77 positions to 248, without any training."""
    no_tail = replace(_START, start="tiny-notail")
    ways = {"linear": "linear", "KPS": "kps", "keep + random": "random"}
    entries = [Entry("not stretched", _START, _CLIP)]
    entries += [Entry(label, replace(_START, stretch=way)) for label, way in ways.items()]
    entries += [
        Entry(f"{label}, no tail", replace(no_tail, stretch=way))
        for label, way in ways.items()
        if way != "linear"
    ]
    return Experiment(
        "longclip/stretching",
        "Ways to stretch positions, without training",
        POSITIONS,
        COLUMNS,
        entries,
        [
            Claim("Interpolating all positions harms short captions", "linear", "lower",
                  "not stretched", "short", POSITIONS),
            Claim("Interpolating all positions harms classification", "linear", "lower",
                  "not stretched", "kind", POSITIONS),
            Claim("KPS leaves short captions as they were", "KPS", "not lower", "not stretched",
                  "short", POSITIONS),
            Claim("KPS leaves classification as it was", "KPS", "not lower", "not stretched",
                  "kind", POSITIONS),
            Claim("With KPS more of a long caption is read", "KPS", "higher", "not stretched",
                  "long", POSITIONS),
            Claim("KPS reads long captions better than interpolating all positions", "KPS",
                  "higher", "linear", "long", POSITIONS),
            Claim("Interpolated positions are better than random ones", "KPS", "higher",
                  "keep + random", "long"),
            Claim("Where positions behind 21 were never trained, they are not", "KPS, no tail",
                  "not higher", "keep + random, no tail", "long"),
        ],
        notes=(
            "keep + random keeps all 77 positions and fills the other 171 with random vectors of "
            "the same mean and spread; it is drawn once for each seed.",
            "no tail: the bundled control that was trained on no caption longer than 21 tokens.",
            "The paper gives no table of untrained models; its Urban-1k score of CLIP stands "
            "beside ours. KPS leaves captions of up to 20 tokens alone by construction.",
        ),
    )  # fmt: skip


def stretching_tuned() -> Experiment:
    """The same ways, each fine-tuned by Long-CLIP's recipe, with a sweep of the learning rate."""
    ways = {"linear": "linear", "KPS": "kps", "keep + random": "random"}
    entries = []
    for rate, value in RATES.items():
        for label, way in ways.items():
            arm = replace(_BASE, stretch=way).change(learning_rate=value)
            printed = _LONG_CLIP if (rate, label) == ("3e-4", "KPS") else None
            entries.append(Entry(f"{label}, {rate}", arm, printed))
    claims = []
    for rate in RATES:
        claims += [
            Claim(f"After fine-tuning at {rate}, KPS is better than linear on {column}",
                  f"KPS, {rate}", "higher", f"linear, {rate}", column, POSITIONS)
            for column in ("long", "short")
        ]  # fmt: skip
        claims.append(
            Claim(f"After fine-tuning at {rate}, interpolated positions beat random ones",
                  f"KPS, {rate}", "higher", f"keep + random, {rate}", "long")
        )  # fmt: skip
    return Experiment(
        "longclip/stretching-tuned",
        "Ways to stretch positions, after fine-tuning",
        POSITIONS,
        COLUMNS,
        entries,
        claims,
        notes=(
            "40 steps of 64 pairs with PCM; the learning rate is the number after the comma.",
            "keep + random is the baseline that the paper does not have.",
        ),
    )


def pcm() -> Experiment:
    """PCM against what anybody can do: long captions alone, and the short loss's weight."""
    changes = {
        "long only": {"objective": "long"},
        "short × 0.3": {"objective": "mixed", "short_weight": 0.3},
        "short × 1": {"objective": "mixed", "short_weight": 1.0},
        "short × 3": {"objective": "mixed", "short_weight": 3.0},
        "PCM, k=32": {"objective": "longclip", "k": 32},
        "PCM, k=8": {"objective": "longclip", "k": 8},
    }
    elsewhere = ("long only", "short × 1", "PCM, k=32")
    entries = [Entry("CLIP", _START, _CLIP), Entry("KPS, not tuned", _KPS)]
    for rate, value in RATES.items():
        for label, change in changes.items():
            if rate == "3e-4" or label in elsewhere:
                arm = _BASE.change(learning_rate=value, **change)
                printed = _LONG_CLIP if (rate, label) == ("3e-4", "PCM, k=32") else None
                entries.append(Entry(f"{label}, {rate}", arm, printed))
    sweep = tuple(f"{label}, 3e-4" for label in changes if "PCM" not in label)
    claims = [
        Claim("Long-CLIP reads long captions better than CLIP", "PCM, k=32, 3e-4", "higher",
              "CLIP", "long", "Long-CLIP, supplement, Table 1"),
    ]  # fmt: skip
    for rate in RATES:
        claims += [
            Claim(f"Long captions alone cost short ones (rate {rate})", f"long only, {rate}",
                  "lower", "KPS, not tuned", "short", COMPONENTS),
            Claim(f"The short caption in the loss protects them (rate {rate})",
                  f"short × 1, {rate}", "higher", f"long only, {rate}", "short", COMPONENTS),
            Claim(f"PCM reads short captions better than mixing does (rate {rate})",
                  f"PCM, k=32, {rate}", "higher", f"short × 1, {rate}", "short", COMPONENTS),
            Claim(f"PCM reads long captions better than mixing does (rate {rate})",
                  f"PCM, k=32, {rate}", "higher", f"short × 1, {rate}", "long", COMPONENTS),
        ]  # fmt: skip
    claims += [
        Claim(f"PCM with k = {k} does more than turn the short loss's weight",
              f"PCM, k={k}, 3e-4", "higher", sweep, "long", along="short")
        for k in (32, 8)
    ]  # fmt: skip
    return Experiment(
        "longclip/pcm",
        "Primary component matching against the weight of the short loss",
        COMPONENTS,
        COLUMNS,
        entries,
        claims,
        notes=(
            "40 steps of 64 pairs, siblings two by two; the learning rate is the last number of a "
            "label. k is 32 in the paper, of 512 dimensions; here the features have 128.",
            "The main paper's own ablation is not transcribed here; LoTLIP's of the same method "
            "is in lotlip/table2.",
        ),
    )
