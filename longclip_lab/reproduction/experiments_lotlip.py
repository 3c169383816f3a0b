"""LoTLIP's tables: its method, its ablations, its captioners.

For the paper's pretrained towers stand the image tower of the bundled tiny CLIP, locked, and a
small BERT that has read alt-texts of other pictures (`reproduction.trunks`); for CC3M alt-texts of
which some tell of another picture, for three MLLMs three writers. Long text is tested by two
writers on siblings, four of which share a summary (DCI, IIW, ShareGPT4V-10k), short text by clean
summaries (MSCOCO), classification by pictures of single things (ImageNet). All arms of a seed
start from the same weights and see the same pictures in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from longclip_lab.reproduction.arms import Arm
from longclip_lab.reproduction.experiment import OWN, Claim, Column, Entry, Experiment
from longclip_lab.training import recipes
from longclip_lab.training.recipe import Recipe

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
