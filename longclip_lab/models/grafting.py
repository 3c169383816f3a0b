"""One model's image tower on another's text tower: which of the two brought a change?"""

from __future__ import annotations

import copy
from dataclasses import replace

from longclip_lab.errors import LabError
from longclip_lab.models.clip import Clip


def graft(text: Clip, image: Clip) -> Clip:
    """A copy of `text` that sees with the image tower of `image`.

    Meaningful where both share a space, such as a model and what fine-tuning made of it.
    Raises LabError for image towers of another embedding size or preprocessing.
    """
    for name, of in (("embedding size", lambda clip: clip.embed_dim),
                     ("preprocessing", lambda clip: clip.card["preprocess"])):  # fmt: skip
        if of(text) != of(image):
            raise LabError(
                f"expected two models of one {name}, got {of(text)} for '{text.name}' and "
                f"{of(image)} for '{image.name}'."
            )
    model = copy.deepcopy(text.model)
    model.visual = copy.deepcopy(image.model.visual)
    card = copy.deepcopy(text.card)
    card["provenance"] = f"text tower of '{text.name}', image tower of '{image.name}'"
    card["model_cfg"]["vision_cfg"] = copy.deepcopy(image.card["model_cfg"]["vision_cfg"])
    name = f"text of {text.name}, image of {image.name}"
    return replace(text, model=model, name=name, card=card)
