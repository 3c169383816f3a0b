"""The trunk that LoTLIP's arms start from: a locked image tower and a text tower that knows words.

LoTLIP's BERT has read before it meets pictures. A tiny one that has not would spend most of a short
run on finding out what "boat" is, and arms would be compared by how far they got. So one trunk is
trained on alt-texts of other pictures, once, and all arms of all seeds start from it: the same text
tower, projection and temperature.
"""

from __future__ import annotations

from pathlib import Path

from longclip_lab import world
from longclip_lab.models import Clip, build_lotlip, load, world_bert
from longclip_lab.models.bundled import bundled_names
from longclip_lab.reproduction.arms import TRUNKS
from longclip_lab.reproduction.sets import training_set
from longclip_lab.training import train

CONTEXT = 256


def trunk(name: str, home: Path) -> Clip:
    """The trunk of this name, trained now (on from its last checkpoint) if it is not in `home`."""
    one = TRUNKS[name]
    folder = Path(home) / "trunks" / one.key()
    if not (folder / "done").exists():
        config = world_bert(CONTEXT)
        config.hidden_size, config.intermediate_size = one.width, 4 * one.width
        config.num_hidden_layers = one.layers
        is_clip = one.image_tower in bundled_names()
        tower = load(one.image_tower) if is_clip else one.image_tower
        start = build_lotlip(tower, config, 0, context_length=CONTEXT)
        data = training_set(one.recipe, home, world.PRETRAIN_SEED)
        train(start, one.recipe, data, out=folder / "run", resume=True, progress=False)
        (folder / "done").touch()
    return load(folder / "run" / "model")
