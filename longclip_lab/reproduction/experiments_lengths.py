"""LoTLIP's figures: how many sub-captions to train with, and how many tokens to read.

Their curves are not printed as numbers: only their direction can be compared.
"""

from __future__ import annotations

from longclip_lab.models.flops import TextTowerSize, text_flops
from longclip_lab.reproduction.experiment import OWN, Claim, Entry, Experiment
from longclip_lab.reproduction.experiments_lotlip import (
    LIT,
    LIT_LONG,
    LOTLIP,
    PAPER,
    SHORT_TEXT,
    columns,
)

SUBCAPTIONS = (1, 2, 3, 6)
"""Of long captions with 10 to 17 on average; the paper's have 6 to 10."""
LIMITS = (16, 32, 64, 128, 192, 256)
"""Tokens; the paper's run from 32 to 512 on texts of 173 to 240. Ours have 119 to 174."""
TOWER = TextTowerSize(layers=2, width=64, inner=256, embed_dim=128, pooler=True)
"""The text tower of all arms (`reproduction.trunks`)."""


def _label(method: str, subcaptions: int) -> str:
    return f"{method}, {subcaptions} sub-caption{'s' * (subcaptions != 1)}"


def figure2() -> Experiment:
    """LiT with 0 to 6 sub-captions in training."""
    source = f"{PAPER}, Figure 2 and section 4.2"
    none, one, three, most = (_label("LiT", n) for n in (0, 1, 3, SUBCAPTIONS[-1]))
    entries = [Entry(none, LIT)]
    entries += [Entry(_label("LiT", n), LIT_LONG.change(subcaptions=n)) for n in SUBCAPTIONS]
    claims = [
        Claim(f"One sub-caption helps {name}", one, "higher", none, column, source)
        for column, name in (("long", "long text"), *SHORT_TEXT)
    ]
    claims += [
        Claim("Three sub-captions help long text more than one", three, "higher", one, "long",
              source),
        Claim("From three on long text stays as it is", most, "not higher", three, "long", source),
        *(Claim(f"More sub-captions cost {name}", most, "lower", one, column, source)
          for column, name in SHORT_TEXT),
        *(Claim(f"Three cost {name} against one", three, "lower", one, column, source)
          for column, name in SHORT_TEXT),
    ]  # fmt: skip
    return Experiment(
        "lotlip/figure2",
        "How many sub-captions to train with",
        f"{PAPER}, Figure 2",
        columns(None),
        entries,
        claims,
        notes=("The paper's curve is drawn, not printed; 1 point counts as a difference.",),
    )


def figure5() -> Experiment:
    """LiT and LoTLIP with 1 to 6 sub-captions."""
    source = f"{PAPER}, Figure 5 and appendix 7.2.1"
    methods = {"LiT": LIT_LONG, "LoTLIP": LOTLIP}
    fewest, most = SUBCAPTIONS[0], SUBCAPTIONS[-1]
    entries = [
        Entry(_label(method, n), arm.change(subcaptions=n))
        for method, arm in methods.items()
        for n in (fewest, 3, most)
    ]
    claims = []
    for method in methods:
        low, middle, high = (_label(method, n) for n in (fewest, 3, most))
        claims += [
            Claim(f"More sub-captions help {method} at long text", middle, "higher", low, "long",
                  source),
            Claim(f"Beyond three {method} gains little at long text", high, "not higher", middle,
                  "long", source),
            *(Claim(f"More sub-captions cost {method} {name}", high, "lower", low, column, source)
              for column, name in SHORT_TEXT),
        ]  # fmt: skip
    loses = [
        Claim(f"LoTLIP loses less {name} than LiT as sub-captions are added",
              _label("LoTLIP", most), "higher", _label("LoTLIP", fewest), column, source,
              than=(_label("LiT", most), _label("LiT", fewest)))
        for column, name in SHORT_TEXT
    ]  # fmt: skip
    return Experiment(
        "lotlip/figure5",
        "Sub-captions, for LiT and LoTLIP",
        f"{PAPER}, Figure 5",
        columns(None),
        entries,
        [*claims, *loses],
        notes=("The paper's curve is drawn, not printed; 1 point counts as a difference.",),
    )


def figure4() -> Experiment:
    """LoTLIP with more and more tokens, and what they cost."""
    source = f"{PAPER}, Figure 4 and section 5.2"
    arms = {limit: LOTLIP.change(token_limit=limit) for limit in LIMITS}
    entries = [
        Entry(f"{limit} tokens", arm, about=f"{text_flops(TOWER, limit) / 1e6:.1f} MFLOPs a text")
        for limit, arm in arms.items()
    ]
    claims = [
        Claim(f"{more} tokens are better than {fewer} at long text", f"{more} tokens", "higher",
              f"{fewer} tokens", "long", source)
        for fewer, more in ((32, 64), (64, 128), (128, 192))
    ]  # fmt: skip
    claims += [
        Claim("Beyond 192 tokens nothing is gained at long text", "256 tokens", "not higher",
              "192 tokens", "long", source),
        Claim("Short text does not need more than 32 tokens", "128 tokens", "not higher",
              "32 tokens", "short", OWN),
    ]  # fmt: skip
    return Experiment(
        "lotlip/figure4",
        "The token limit",
        f"{PAPER}, Figure 4",
        columns(None),
        entries,
        claims,
        notes=(
            "The limit holds in training and in the tests. Three sub-captions seldom have more "
            "than 64 tokens, so beyond that what changes is how much of a test's text is read.",
        ),
    )
