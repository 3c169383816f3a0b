"""What a model that is not open_clip's needs to be encoded, evaluated and probed like one.

B batch, T tokens, D embedding, H W picture.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from longclip_lab.errors import LabError
from longclip_lab.models.assembly import build_preprocess
from longclip_lab.models.clip import Clip
from longclip_lab.models.filling import check_finite
from longclip_lab.text import get_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from longclip_lab.text import Tokenizer

BLIP_SPECIAL = 2
"""Rows that BLIP adds to BERT's word embeddings: [DEC] and [ENC]."""


class NotOpenClipError(LabError, AttributeError):
    """A part of open_clip's models was asked of a model that has none.

    Also an AttributeError, so that `hasattr` keeps answering.
    """


class EmbeddingModel(nn.Module):
    """Two towers that give one feature each for a picture and for a text.

    It has the names that the lab reads from every model; whatever else of open_clip's insides is
    asked for, as stretching, exporting and attributing do, is refused with a LabError.
    """

    kind = "model"
    """What the system is called."""
    text_pool_type = "adapter"

    def __init__(self, embed_dim: int, positions: int, vocab_size: int, pad_id: int):
        super().__init__()
        self.embed_dim, self.positions = embed_dim, positions
        self.context_length, self.vocab_size, self.pad_id = positions, vocab_size, pad_id

    def encode_image(self, pixels_B3HW: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        """Preprocessed pictures to features [B, D]."""
        return _scaled(self.image_features(pixels_B3HW), normalize)

    def encode_text(self, ids_BT: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        """Token ids to features [B, D]; padding is masked."""
        return _scaled(self.text_features(ids_BT, ids_BT != self.pad_id), normalize)

    def image_features(self, pixels_B3HW: torch.Tensor) -> torch.Tensor:
        """What `encode_image` gives, not normalised."""
        raise NotImplementedError

    def text_features(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """What `encode_text` gives, not normalised; `mask_BT` is False for padding."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            raise NotOpenClipError(
                f"{self.kind} is not an open_clip model and has no '{name}': it can be encoded, "
                "evaluated and probed, but not stretched, exported, trained or attributed."
            ) from error


def _scaled(features_BD: torch.Tensor, normalize: bool) -> torch.Tensor:
    return nn.functional.normalize(features_BD, dim=-1) if normalize else features_BD


@dataclass
class Adapter(Clip):
    """A model of another kind, with the interface of `Clip`.

    `model` is an `EmbeddingModel`. Everything that only encodes takes it: `encode_texts`,
    `encode_images`, `evaluate`, the probes.
    """

    def encode_text(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        """Token ids to features [B, D], not normalised; any T up to the context length.

        Raises LabError for another shape than [B, T], no texts, and too many tokens.
        """
        if tokens_BT.ndim != 2 or tokens_BT.numel() == 0:
            raise LabError(f"Expected token ids [B, T], got a tensor of {tuple(tokens_BT.shape)}.")
        used_T = (tokens_BT != self.model.pad_id).any(dim=0).nonzero()
        length = int(used_T.max()) + 1 if len(used_T) else 1
        if length > self.context_length:
            raise LabError(
                f"The texts have {length} tokens, but '{self.name}' reads at most "
                f"{self.context_length}."
            )
        return self.model.encode_text(tokens_BT[:, :length].to(self.device))


def adapt(
    model: EmbeddingModel,
    preprocess: dict[str, Any],
    name: str,
    *,
    context_length: int | None = None,
    transform: Callable[..., torch.Tensor] | None = None,
    **facts: Any,
) -> Adapter:
    """An `Adapter` in evaluation mode, float32, with a card of `facts` about its origin.

    `preprocess` is a card as open_clip writes them; `transform` replaces what it would build.
    `context_length` limits the texts: by default the text tower reads all of its positions.

    Raises LabError for a context that the tower has no positions for, NotFiniteError for weights
    that are not finite.
    """
    check_finite(model.float().state_dict(), name)
    length = model.positions if context_length is None else context_length
    if not 2 < length <= model.positions:
        raise LabError(
            f"'{name}' has {model.positions} text positions: expected a context length of 3 to "
            f"{model.positions}, got {context_length}."
        )
    model.context_length = length
    card = {
        "architecture": model.kind,
        "model_cfg": {"embed_dim": model.embed_dim, "text_cfg": {"context_length": length}},
        "preprocess": preprocess,
        "positions": {"method": "none", "keep": 0, "ratio": 1, "length": length},
        **facts,
    }
    card = json.loads(json.dumps(card))
    return Adapter(
        model=model.eval(),
        tokenizer=bert_tokenizer(model.vocab_size, name),
        preprocess=transform or build_preprocess(card["preprocess"]),
        name=name,
        card=card,
    )


def bert_tokenizer(vocab_size: int, name: str) -> Tokenizer:
    """The lab's tokenizer for a BERT of so many word embeddings.

    Raises LabError for another vocabulary than bert-base-uncased's and the world's.
    """
    bert, world = get_tokenizer("bert"), get_tokenizer("world")
    if vocab_size in (bert.vocab_size, bert.vocab_size + BLIP_SPECIAL):
        return bert
    if vocab_size == world.vocab_size:
        return world
    raise LabError(
        f"The text tower of '{name}' has {vocab_size} word embeddings; the lab has tokenizers for "
        f"{bert.vocab_size} (bert-base-uncased), the same with {BLIP_SPECIAL} more (BLIP) and "
        f"{world.vocab_size} (the drawn world)."
    )
