"""LoTLIP's tables and figures as experiments.

For the paper's pretrained towers stand the image tower of the bundled tiny CLIP, locked, and a
small BERT that has read alt-texts of other pictures (`reproduction.runs`); for CC3M alt-texts of
which some tell of another picture, for three MLLMs three writers. Long text is tested by two
writers on siblings, four of which share a summary (DCI, IIW, ShareGPT4V-10k), short text by clean
summaries (MSCOCO), classification by pictures of single things (ImageNet). All arms of a seed
start from the same weights and see the same pictures in the same order.

The figures' curves are not printed as numbers: only their direction can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from longclip_lab.models.flops import TextTowerSize, text_flops
from longclip_lab.reproduction.arms import Arm
from longclip_lab.reproduction.experiment import OWN, Claim, Column, Entry, Experiment
from longclip_lab.training import recipes
from longclip_lab.training.recipe import Recipe

# --- LoTLIP's tables: its method, its ablations, its captioners ---

PAPER = "LoTLIP"
SMALL_EFFECT = 5
"""Seeds where the paper's differences are one or two points."""
LONG3 = tuple(f"{s} {way}" for s in ("DCI", "IIW", "ShareGPT4V-10k") for way in ("T2I", "I2T"))
MSCOCO = ("MSCOCO T2I", "MSCOCO I2T")
IMAGENET = ("ImageNet",)

SETTING = {
    "image_tower": None,
    "text_tower": None,
    "token_limit": None,
    "pairs": 5120,
    "steps": 160,
    "batch_size": 128,
    "warmup_steps": 10,
    "learning_rate": 2e-3,
    "checkpoint_every": 80,
}
"""What all locked arms share; chosen on the pictures of world.SELECTION_SEED, by LiT alone."""


def columns(table: str | None, long: tuple[str, ...] = LONG3) -> tuple[Column, ...]:
    """Long text, short text, classification, beside the paper's means in `table`."""
    printed = (long, MSCOCO, IMAGENET) if table else ((), (), ())
    return (
        Column("long", "long captions of two writers among siblings, R@1, both directions",
               ("long, surveyor", "long, painter"), table, printed[0]),
        Column("short", "short captions, R@1, both directions", ("short",), table, printed[1]),
        Column("class", "colour and kind of a single thing, one of 96, zero-shot, top-1",
               ("thing",), table, printed[2], chance=100 / 96),
    )  # fmt: skip


def locked(recipe: Recipe, **changes: object) -> Arm:
    """An arm on the locked tower, in the common setting."""
    return Arm("family", replace(recipe, **{**SETTING, **changes}), start="trunk")


LIT = locked(recipes.lit("tiny"))
LIT_LONG = LIT.change(captions="both")
LIT_PCM = locked(recipes.lit_longclip("tiny"))
LOTLIP = locked(recipes.lotlip("tiny"))
REGISTER = locked(recipes.register("tiny"))
HEAVY_LONG = LOTLIP.change(num_corner=0, long_weight=3.0)
"""No corners, but the long loss on [CLS] as heavy as [CLS] and two corners make it together."""

SHORT_TEXT = (("short", "short text"), ("class", "classification"))
HEAVY = "long loss × 3 on CLS"


def claims_of(
    text: str,
    arm: str,
    against: str,
    source: str,
    which: Sequence[str] = ("long", "short", "class"),
) -> list[Claim]:
    """That `arm` is higher than `against` in several columns; `text` has a place for what."""
    names = {"long": "long text", "short": "short text", "class": "classification"}
    return [Claim(text.format(names[name]), arm, "higher", against, name, source) for name in which]


def table2() -> Experiment:
    """LoTLIP's main ablation, with the plain baselines that it lacks."""
    return _ablation(
        "lotlip/table2", "Long texts, PCM and corner tokens in pre-training", "trunk", _NOTES
    )


def table2_rich() -> Experiment:
    """The same on image features with a rich spectrum, which PCM and corners may need."""
    notes = (
        "The image tower is the dense-supervised one with a neck (`tiny-scenes`), told every "
        "attribute of every thing: no few directions hold most of the variance. The text tower "
        "has to find words for all of it, so scores are lower.",
        *_NOTES,
    )
    title = "Long texts, PCM and corner tokens on rich image features"
    return _ablation("lotlip/table2-rich", title, "rich trunk", notes)


_NOTES = (
    "long loss × 3 on CLS: what two corners must beat; Adam makes it the same as a short loss × "
    "1/3, so it is one end of the sweep of the short loss's weight.",
    "The released code averages where the paper adds: a quarter of the loss with two corners. Adam "
    "divides by the gradient's size, so without clipping both train the same model.",
    "With the mask no text token ever attends to a corner: [CLS] of a trained LoTLIP is the same "
    "with and without them. Corners act through gradients alone.",
)


def _ablation(name: str, title: str, start: str, notes: Sequence[str]) -> Experiment:
    source = f"{PAPER}, Table 2 and section 5.2"
    sweep = (HEAVY, "LiT + long", "short loss × 3")
    arms = {
        "LiT": (LIT, {"method": "LiT", "long_texts": False}, ""),
        "LiT + long": (LIT_LONG, {"method": "LiT", "long_texts": True}, ""),
        "LiT + Long-CLIP": (LIT_PCM, {"method": "LiT+Long-CLIP"}, ""),
        "LoTLIP": (LOTLIP, {"method": "LoTLIP"}, ""),
        "LoTLIP, mean": (LOTLIP.change(reduction="mean"), None,
                         "the average over text features of the released code, not the sum"),
        HEAVY: (HEAVY_LONG, None, "no corners"),
        "short loss × 3": (LIT_LONG.change(short_weight=3.0), None, ""),
        "LiT + long, PCM k=8": (LIT_PCM.change(k=8), None, ""),
    }  # fmt: skip
    return Experiment(
        name,
        title,
        f"{PAPER}, Table 2",
        columns("lotlip/table2"),
        [Entry(label, replace(arm, start=start), printed, about)
         for label, (arm, printed, about) in arms.items()],
        [
            *claims_of("Long texts in training help {}", "LiT + long", "LiT", source),
            Claim("PCM helps long text", "LiT + Long-CLIP", "higher", "LiT + long", "long", source),
            *(Claim(f"PCM costs {what}", "LiT + Long-CLIP", "lower", "LiT + long", column, source)
              for column, what in SHORT_TEXT),
            *claims_of("Corner tokens help {}", "LoTLIP", "LiT + long", source),
            *claims_of("LoTLIP is better than LiT + Long-CLIP at {}", "LoTLIP", "LiT + Long-CLIP",
                   source),
            *claims_of("Corners are more than a heavier long loss, at {}", "LoTLIP", HEAVY, OWN),
            *(Claim(f"{what} does more than turn the short loss's weight", label, "higher", sweep,
                    "long", along="short")
              for what, label in (("LoTLIP", "LoTLIP"), ("PCM", "LiT + Long-CLIP"),
                                  ("PCM with k = 8", "LiT + long, PCM k=8"))),
            *claims_of("The paper's sum beats the code's mean at {}", "LoTLIP", "LoTLIP, mean", OWN,
                   ("long", "short")),
        ],
        seeds=SMALL_EFFECT,
        notes=notes,
    )  # fmt: skip


def table3() -> Experiment:
    """How many corner tokens, and their mask."""
    source = f"{PAPER}, Table 3 and section 5.2"
    entries = [Entry("no corners", LIT_LONG, {"corner_tokens": 0})]
    entries += [
        Entry(f"{m} corner{'s' * (m > 1)}", LOTLIP.change(num_corner=m),
              {"corner_tokens": m, "mask": True})
        for m in (1, 2, 3, 4)
    ]  # fmt: skip
    entries += [
        Entry("2 corners, no mask", LOTLIP.change(mask=False), {"corner_tokens": 2, "mask": False}),
        Entry(HEAVY, HEAVY_LONG, about="no corners"),
    ]
    claims = []
    for m in ("1 corner", "2 corners", "4 corners"):
        claims += claims_of(
            f"{m.capitalize()} help{'s' * (m[0] == '1')} {{}}", m, "no corners", source
        )
    claims += [
        *claims_of("Without the mask the corners help {} less", "2 corners", "2 corners, no mask",
               source),
        *(Claim(f"More than two corners bring little, at {name}", "4 corners", "not higher",
                "2 corners", column, source)
          for column, name in (("long", "long text"), ("short", "short text"))),
        *claims_of("Two corners are more than a heavier long loss, at {}", "2 corners", HEAVY,
               OWN),
    ]  # fmt: skip
    return Experiment(
        "lotlip/table3",
        "Number of corner tokens, and the attention mask",
        f"{PAPER}, Table 3",
        columns("lotlip/table3"),
        entries,
        claims,
        seeds=SMALL_EFFECT,
    )


def table7() -> Experiment:
    """Corner tokens against register tokens."""
    source = f"{PAPER}, Table 7 and appendix 7.2.2"
    return Experiment(
        "lotlip/table7",
        "Corner tokens against register tokens",
        f"{PAPER}, Table 7",
        columns("lotlip/table7"),
        [
            Entry("none", LIT_LONG, {"added_tokens": None}),
            Entry("2 registers", REGISTER, {"added_tokens": "Register"}),
            Entry("2 corners", LOTLIP, {"added_tokens": "Corner"}),
            Entry(HEAVY, HEAVY_LONG, about="no corners"),
        ],
        [
            *(Claim(f"Registers do not help {name}", "2 registers", "not higher", "none", column,
                    source)
              for column, name in (("long", "long text"), ("short", "short text"),
                                   ("class", "classification"))),
            *claims_of("Corners help {}", "2 corners", "none", source),
            *claims_of("Corners beat registers at {}", "2 corners", "2 registers", source),
        ],
        seeds=SMALL_EFFECT,
    )  # fmt: skip


# --- LoTLIP's figures: how many sub-captions to train with, and how many tokens to read ---

SUBCAPTIONS = (1, 2, 3, 6)
"""Of long captions with 10 to 17 on average; the paper's have 6 to 10."""
LIMITS = (16, 32, 64, 128, 192, 256)
"""Tokens; the paper's run from 32 to 512 on texts of 173 to 240. Ours have 119 to 174."""
TOWER = TextTowerSize(layers=2, width=64, inner=256, embed_dim=128, pooler=True)
"""The text tower of all arms (`reproduction.runs`)."""


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


# --- LoTLIP's tables beyond its method: who writes the captions, and how many there are ---

# Towers from random weights: the pictures pass a tower at every step, so fewer steps fit.
SCRATCH = {
    "pairs": 5120,
    "steps": 320,
    "batch_size": 64,
    "warmup_steps": 20,
    "learning_rate": 1e-3,
    "checkpoint_every": 80,
}
CLIP = Arm("family", replace(recipes.clip("tiny"), **SCRATCH))
SIGLIP = Arm("family", replace(recipes.siglip("tiny"), **SCRATCH))
FILIP = Arm("family", replace(recipes.filip("tiny"), **SCRATCH))
LACLIP = Arm("family", replace(recipes.laclip("tiny"), **SCRATCH))
SCRATCH_LOTLIP = CLIP.change(objective="lotlip", captions="both", num_corner=2)
_SCRATCH_NOTES = (
    "Trained from random weights for 320 steps of 64 pictures: far from what these methods reach "
    "on the world with more time.",
)


EPOCHS = 4


def table9() -> Experiment:
    """Three writers in the place of three MLLMs, and what they make up."""
    source = f"{PAPER}, Table 9 and appendix 7.2.4"
    writers = {"reporter": "InstructBLIP", "painter": "LLaVA", "surveyor": "ShareGPT4V"}
    rates = {"1 fact in 5 wrong": 0.2, "1 fact in 2 wrong": 0.5}
    entries = [
        Entry(who, LOTLIP.change(captioners=(who,)), {"captions_by": mllm})
        for who, mllm in writers.items()
    ]
    entries.append(Entry("all three", LOTLIP, {"captions_by": "All"}))
    entries += [
        Entry(label, LOTLIP.change(hallucination=rate), about="details by all three writers")
        for label, rate in rates.items()
    ]
    claims = []
    for who in writers:
        text = f"Captions by all are better than by the {who} alone, at {{}}"
        claims += claims_of(text, "all three", who, source, ("long", "short"))
    limitation = f"{PAPER}, appendix 7.4"
    for label in rates:
        claims += [
            Claim(f"Hallucinated details cost {name} ({label})", label, "lower", "all three",
                  column, limitation)
            for column, name in (("long", "long text"), ("short", "short text"))
        ]  # fmt: skip
    return Experiment(
        "lotlip/table9",
        "Long captions by different writers, and hallucination",
        f"{PAPER}, Table 9",
        columns("lotlip/table9"),
        entries,
        claims,
        notes=(
            "The writers stand for no particular MLLM: surveyor and painter also write the tests, "
            "as ShareGPT4V's captioner wrote ShareGPT4V-10k.",
            "A rate of wrong facts counts in detail sentences; summaries stay true.",
        ),
    )


def tables4_5() -> Experiment:
    """The methods side by side at the smallest scale."""
    source = f"{PAPER}, Tables 4 and 5"
    models = {"FILIP": FILIP, "LaCLIP": LACLIP, "SigLIP": SIGLIP, "LiT": LIT}
    entries = [
        Entry(name, arm, {"short_texts": "3M", "long_texts": None, "model": name})
        for name, arm in models.items()
    ]
    entries += [
        Entry("LoTLIP", LOTLIP, {"short_texts": "3M", "model": "LoTLIP"}),
        Entry("LiT + long", LIT_LONG, about="LoTLIP without corners"),
    ]
    claims = []
    for name in models:
        claims += claims_of(f"LoTLIP is better than {name} at {{}}", "LoTLIP", name, source)
    claims += claims_of("LiT is the second best at {}", "LiT", "LaCLIP", source)
    claims += claims_of("LoTLIP's gain is more than that of its long texts, at {}", "LoTLIP",
                    "LiT + long", OWN)  # fmt: skip
    return Experiment(
        "lotlip/tables4-5",
        "The family on the smallest data",
        source,
        _two_tables("lotlip/table4", "lotlip/table5"),
        entries,
        claims,
        notes=(
            *_SCRATCH_NOTES,
            "No fair contest: LiT and LoTLIP start from trained towers, FILIP, LaCLIP and SigLIP "
            "from nothing, and in this time they hardly learn. That they are beaten says no more "
            "than that a trained start is better; the fair comparison is with LiT + long.",
            "FILIP is asked as it is trained, by token-wise late interaction; its pooled features "
            "are never trained. All others are asked by the cosine of pooled features.",
        ),
    )


def table8() -> Experiment:
    """Without pretrained weights for either tower."""
    source = f"{PAPER}, Table 8 and appendix 7.2.3"
    return Experiment(
        "lotlip/table8",
        "Both towers from random weights",
        f"{PAPER}, Table 8",
        columns("lotlip/table8"),
        [
            Entry("CLIP", CLIP, {"method": "CLIP", "long_texts": False}),
            Entry("CLIP + long", CLIP.change(captions="both"),
                  {"method": "CLIP", "long_texts": True}),
            Entry("LoTLIP", SCRATCH_LOTLIP, {"method": "LoTLIP"}),
        ],
        [
            *claims_of("Long texts in training help {}", "CLIP + long", "CLIP", source),
            *claims_of("Corner tokens help {}", "LoTLIP", "CLIP + long", source),
        ],
        notes=_SCRATCH_NOTES,
    )  # fmt: skip


def tables10_11() -> Experiment:
    """LiT and LoTLIP on more and more pictures."""
    source = f"{PAPER}, Tables 10 and 11"
    sizes = {"3M": 1280, "12M": 2560, "30M": 5120, "100M": 10240}
    entries = []
    for scale, pairs in sizes.items():
        for model, arm in (("LiT", LIT), ("LoTLIP", LOTLIP)):
            printed = {"architecture": "ViT-B/16", "data": scale, "model": model}
            sized = arm.change(pairs=pairs, steps=EPOCHS * pairs // arm.recipe.batch_size)
            entries.append(Entry(f"{model}, {pairs}", sized, printed))
    claims = []
    counts = list(sizes.values())
    for pairs in counts:
        claims += claims_of(f"On {pairs} pictures LoTLIP is better than LiT at {{}}",
                        f"LoTLIP, {pairs}", f"LiT, {pairs}", source)  # fmt: skip
    for model in ("LiT", "LoTLIP"):
        claims += claims_of(f"More data help {model} at {{}}", f"{model}, {counts[-1]}",
                        f"{model}, {counts[0]}", source)  # fmt: skip
    return Experiment(
        "lotlip/tables10-11",
        "The scale of the data",
        source,
        _two_tables("lotlip/table10", "lotlip/table11"),
        entries,
        claims,
        notes=(
            "1,280 to 10,240 pictures stand for 3M to 100M; the epochs are the same, so larger "
            "sets also train longer, as in the paper.",
            "Between 12M and 30M the paper's LiT loses on long text: its sets also differ in kind.",
        ),
    )


def _two_tables(long: str, short: str) -> tuple[Column, ...]:
    """Columns beside the tables of long and of short text that the paper prints apart."""
    of_long, of_short, of_class = columns(None)
    at_1 = tuple(f"MSCOCO {way} R@1" for way in ("I2T", "T2I"))
    return (
        replace(of_long, table=long, printed=("Avg",)),
        replace(of_short, table=short, printed=at_1),
        replace(of_class, table=short, printed=IMAGENET),
    )
