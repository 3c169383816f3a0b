"""A new model for a recipe: towers that have not met yet, with the tokens it asks for."""

from __future__ import annotations

from longclip_lab.errors import LabError
from longclip_lab.models import Clip, build_lotlip
from longclip_lab.models.corner_towers import Kind
from longclip_lab.training.recipe import Recipe


def new_model(recipe: Recipe, seed: int | None = None) -> Clip:
    """The model that `recipe` starts from; two of one `seed` (the recipe's) are the same.

    Whatever the number of corners, towers and projection of one seed are the same too, and two and
    four corners share the first two.
    Raises LabError for a recipe without towers, and as `build_lotlip` does.
    """
    if recipe.image_tower is None or recipe.text_tower is None:
        raise LabError(
            f"The recipe {recipe.name!r} starts from a model that is given; to start a new one set "
            "image_tower and text_tower."
        )
    kind, mask = extra_tokens(recipe)
    return build_lotlip(
        recipe.image_tower,
        recipe.text_tower,
        recipe.num_corner,
        context_length=recipe.token_limit or 128,
        mask=mask,
        kind=kind,
        pretrained_image=recipe.pretrained_towers,
        pretrained_text=recipe.pretrained_towers,
        lock_image=recipe.lock_image,
        seed=recipe.seed if seed is None else seed,
    )


def extra_tokens(recipe: Recipe) -> tuple[Kind, bool]:
    """The kind of the recipe's learned tokens, and whether LoTLIP's mask is between them and CLS.

    >>> extra_tokens(Recipe(objective="register"))
    ('register', False)
    """
    is_register = recipe.objective == "register"
    return ("register", False) if is_register else ("corner", recipe.mask)
