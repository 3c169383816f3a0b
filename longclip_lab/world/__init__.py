"""The drawn world: pictures with captions of which every sentence's object, place and box is known.

Kinds, colours, patterns and places are drawn at random; what a caption says of them, and at which
token, is exact. So it can be known, not guessed, whether a model read token 90.
"""

from longclip_lab.world.captions import (
    CAPTIONERS,
    Caption,
    Fact,
    Sentence,
    background_sentences,
    build_caption,
    habitual_lie,
    long_caption,
    summary,
    truth,
    web_caption,
)
from longclip_lab.world.datasets import (
    PRETRAIN_SEED,
    PROBE_SEED,
    SELECTION_SEED,
    TEST_SEED,
    TRAIN_SEED,
    SingleObjects,
    WebPairs,
    WorldPairs,
    draw_all,
    pairs,
    rewrite,
    single_objects,
    web_pairs,
)
from longclip_lab.world.drawing import draw
from longclip_lab.world.probes import (
    FORMS,
    Counterfactuals,
    Swaps,
    asked_things,
    change_fact,
    counterfactuals,
    swaps,
    told_things,
)
from longclip_lab.world.scene import (
    ATTRIBUTES,
    COLOURS,
    GROUNDS,
    KINDS,
    ORIENTATIONS,
    PATTERNS,
    PIXELS,
    PLACES,
    RELATIONS,
    SIZES,
    SKIES,
    TEMPLATES,
    Scene,
    Thing,
    classes,
    random_scene,
    relation,
)

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
