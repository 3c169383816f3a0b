"""The drawn world: pictures with captions of which every sentence's object, place and box is known.

Kinds, colours, patterns and places are drawn at random; what a caption says of them, and at which
token, is exact. So it can be known, not guessed, whether a model read token 90.
"""

from longclip_lab.world.captioners import (
    CAPTIONERS,
    background_sentences,
    long_caption,
    summary,
    truth,
    web_caption,
)
from longclip_lab.world.counterfactuals import Counterfactuals, change_fact, counterfactuals
from longclip_lab.world.drawing import draw
from longclip_lab.world.habits import habitual_lie
from longclip_lab.world.language import Caption, Fact, Sentence, build_caption
from longclip_lab.world.one_thing import asked_things, told_things
from longclip_lab.world.scene import PIXELS, Scene, Thing, random_scene, relation
from longclip_lab.world.sets import (
    PRETRAIN_SEED,
    PROBE_SEED,
    SELECTION_SEED,
    TEST_SEED,
    TRAIN_SEED,
    SingleObjects,
    WorldPairs,
    draw_all,
    pairs,
    single_objects,
)
from longclip_lab.world.swaps import FORMS, Swaps, swaps
from longclip_lab.world.vocabulary import (
    ATTRIBUTES,
    COLOURS,
    GROUNDS,
    KINDS,
    ORIENTATIONS,
    PATTERNS,
    PLACES,
    RELATIONS,
    SIZES,
    SKIES,
    TEMPLATES,
    classes,
)
from longclip_lab.world.web import WebPairs, rewrite, web_pairs

__all__ = [
    "ATTRIBUTES", "CAPTIONERS", "COLOURS", "FORMS", "GROUNDS", "KINDS", "ORIENTATIONS", "PATTERNS",
    "PIXELS", "PLACES", "PRETRAIN_SEED", "PROBE_SEED", "RELATIONS", "SELECTION_SEED", "SIZES",
    "SKIES", "TEMPLATES", "TEST_SEED", "TRAIN_SEED", "Caption", "Counterfactuals", "Fact", "Scene",
    "Sentence", "SingleObjects", "Swaps", "Thing", "WebPairs", "WorldPairs",
    "asked_things", "background_sentences", "build_caption", "change_fact", "classes",
    "counterfactuals", "draw", "draw_all", "habitual_lie", "long_caption", "pairs",
    "random_scene", "relation", "rewrite", "single_objects", "summary", "swaps", "told_things",
    "truth", "web_caption", "web_pairs",
]  # fmt: skip
