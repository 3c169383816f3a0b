"""Test pictures as a locked image tower sees them: run once for all models that share the tower.

N pictures, S states of the locked part, D embedding.
"""

from __future__ import annotations

from typing import Any

import torch

from longclip_lab.errors import LabError
from longclip_lab.models import Clip, pixels
from longclip_lab.models.token_features import finish_image, frozen_part, image_states

AT_ONCE = 256


class LockedPictures:
    """Stand in for pictures in `measure`, and give every model its own features of them.

    A lock holds a timm tower's trunk; the linear head behind it, if there is one, is trained. So
    models with one locked tower share what the trunk makes of a picture, not its feature: to ask a
    trained model with the features of its start is a mistake that no shape betrays.

    >>> from longclip_lab import models, world
    >>> clip, images = models.load("tiny"), world.pairs(3).images
    >>> seen = LockedPictures(clip, images).features(clip)
    >>> torch.allclose(seen, models.encode_images(clip, images), atol=1e-5)
    True
    """

    def __init__(self, clip: Clip, images: Any):
        self.weights = _weights(clip)
        with torch.no_grad():
            parts = [
                image_states(clip.model.visual, pixels(clip, images[start : start + AT_ONCE]))
                for start in range(0, len(images), AT_ONCE)
            ]
        self.states_NS = torch.cat(parts)

    def __len__(self) -> int:
        return len(self.states_NS)

    def features(self, clip: Clip) -> torch.Tensor:
        """What `encode_images` of `clip` would give [N, D]. Raises LabError for another tower."""
        weights = _weights(clip)
        same = weights.keys() == self.weights.keys() and all(
            torch.equal(weights[name], self.weights[name]) for name in weights
        )
        if not same:
            raise LabError(
                f"These pictures were seen by another image tower than that of '{clip.name}': it "
                "was trained, or is another one. Give the pictures themselves."
            )
        with torch.no_grad():
            return finish_image(clip.model.visual, self.states_NS)


def _weights(clip: Clip) -> dict[str, torch.Tensor]:
    """Copies: training goes on in place."""
    return {k: v.clone() for k, v in frozen_part(clip.model.visual).state_dict().items()}
