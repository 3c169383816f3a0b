"""Corner tokens (LoTLIP) and register tokens, given to a model.

B texts, T tokens, m corners, D embedding.
"""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any

import open_clip
import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.model import convert_to_custom_text_state_dict
from torch import nn

from longclip_lab.errors import LabError
from longclip_lab.models.assembly import build_model
from longclip_lab.models.bert_towers import config_dict
from longclip_lab.models.clip import Clip
from longclip_lab.models.corner_masks import check_num_corner
from longclip_lab.models.corner_towers import (
    CornerTokens,
    Kind,
    Positions,
    check_tower,
    draw_corners,
)
from longclip_lab.models.text_tower import (
    text_tower,
)


def add_corner_tokens(
    clip: Clip,
    num_corner: int = 2,
    mask: bool | None = None,
    kind: Kind = "corner",
    positions: Positions = "shifted",
    seed: int = 0,
) -> Clip:
    """A copy of `clip` whose text tower has `num_corner` learned tokens; `clip` is untouched.

    Every old weight is kept and no token id moves: the tower puts the tokens in by itself, after
    [CLS] in BERT-like towers and before the end token in CLIP's. `encode_text` gives the feature
    of [CLS] (or of the end token) alone, `encode_text_corners` those of the corners too.

    - `mask`: LoTLIP's attention mask (`corner_attention_mask`); None is on for corners and off
      for registers. With it nothing reads a corner, so `encode_text` leaves them out: exact, and
      as fast as without corners.
    - `kind`: "corner" tokens are meant to be read off and trained by a loss; "register" tokens
      (Darcet et al., 2024; LoTLIP's Table 7) are the same without mask and without a loss.
    - `positions`: "shifted" gives the corners positions of their own, as the released code does:
      text behind [CLS] (the end token of CLIP's) moves on by m and the context shrinks by m.
      "kept" puts them all at the place of [CLS] (or of the end token): nothing moves, and with
      the mask `encode_text` is that of `clip` to rounding.
    - `seed`: the tokens are drawn from a normal distribution, each by itself; two and four of one
      seed share the first two.

    `num_corner=0` is a plain copy. A plain `open_clip.CLIP` becomes a `CustomTextCLIP`, which
    holds the same weights. `card["model_cfg"]["corner_tokens"]` records the arguments.

    Source: LoTLIP (Wu et al., NeurIPS 2024), section 4.3; the code of its release for CLIP's
    towers.

    Raises LabError for a negative number, for more tokens than the context has room for, for a
    masked register, and for towers that have no one token to pool (averaging ones, CoCa).
    """
    check_num_corner(num_corner)
    if num_corner == 0:
        return copy.deepcopy(clip)
    mask = (kind == "corner") if mask is None else bool(mask)
    corner = CornerTokens(int(num_corner), mask, kind, positions)
    card = copy.deepcopy(clip.card)
    card["model_cfg"] = _config_with(clip, corner)
    model = _rebuilt(clip.model, card["model_cfg"])
    with torch.no_grad():
        model.text.corner_embedding.copy_(draw_corners(model.text, seed))
    card["architecture"] = type(model).__name__
    return Clip(
        model=model.to(clip.device).train(clip.model.training),
        tokenizer=clip.tokenizer,
        preprocess=clip.preprocess,
        name=f"{clip.name}+{num_corner}{kind}",
        card=card,
    )


def _config_with(clip: Clip, corner: CornerTokens) -> dict[str, Any]:
    """The `model_cfg` of `clip` with corner tokens; needs neither hub nor folder to be built."""
    model_cfg = copy.deepcopy(clip.card["model_cfg"])
    tower = text_tower(clip.model)
    if isinstance(tower, open_clip.CLIP):
        model_cfg["custom_text"] = True
    else:
        check_tower(tower)
    if isinstance(tower, HFTextEncoder):
        model_cfg["text_cfg"]["hf_config"] = config_dict(tower.config)
    return model_cfg | {"corner_tokens": asdict(corner)}


def _rebuilt(model: nn.Module, model_cfg: dict[str, Any]) -> nn.Module:
    """The module of `model_cfg` with the weights of `model`, and their `requires_grad`."""
    with torch.random.fork_rng(devices=[]):
        new = build_model(model_cfg)
    weights = convert_to_custom_text_state_dict(model.state_dict())
    missing, unexpected = new.load_state_dict(weights, strict=False)
    if unexpected or missing != ["text.corner_embedding"]:
        raise LabError(
            f"The weights of a {type(model).__name__} do not fit its card: "
            f"missing {missing}, unexpected {unexpected}."
        )
    trained = {name: weight.requires_grad for name, weight in model.named_parameters()}
    trained = convert_to_custom_text_state_dict(trained)
    for name, weight in new.named_parameters():
        weight.requires_grad_(trained.get(name, True))
    return new
