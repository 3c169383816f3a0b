"""One kind of model: an open_clip module with its tokenizer and its preprocessing.

B batch, T tokens, D embedding, H W picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from longclip_lab.errors import LabError
from longclip_lab.models.text_tower import can_trim, encode_tokens, end_positions, text_tower
from longclip_lab.models.tokenizers import HubTokenizer

if TYPE_CHECKING:
    from PIL import Image

    from longclip_lab.models.formats.text_towers import TextTower
    from longclip_lab.text import Tokenizer


@dataclass
class Tokens:
    """Texts as a model takes them: ids_BT int64, padded to the full context length.

    `lengths_B` counts the tokens that are read, start and end included; `truncated_B` are the texts
    of which an end is not: they did not fit, or hold an end token themselves.
    """

    ids_BT: torch.Tensor
    lengths_B: torch.Tensor
    truncated_B: torch.Tensor

    @property
    def num_truncated(self) -> int:
        """Of how many texts an end is not read."""
        return int(self.truncated_B.sum())


@dataclass
class Clip:
    """An open_clip model and all that is needed to feed it pictures and texts.

    Features are not normalised. Gradients flow through `encode_image` and `encode_text`; for many
    pictures or texts use `encode_images` and `encode_texts` of this room.
    """

    model: nn.Module
    """An open_clip `CLIP` or `CustomTextCLIP`."""
    tokenizer: Tokenizer
    """The tokenizer that the text tower was trained with."""
    preprocess: Callable[[Image.Image], torch.Tensor]
    """A PIL picture to a normalised float tensor [3, H, W]."""
    name: str
    """What to call the model in tables and records."""
    card: dict[str, Any]
    """JSON-able facts: architecture, model_cfg, preprocess, provenance, trained_on, positions."""

    @property
    def context_length(self) -> int:
        """The largest number of tokens that the text tower reads, start and end included."""
        return int(text_tower(self.model).context_length)

    @property
    def vocab_size(self) -> int:
        """Rows of the token embedding."""
        return int(text_tower(self.model).vocab_size)

    @property
    def embed_dim(self) -> int:
        """The size D of the shared space."""
        return int(self.card["model_cfg"]["embed_dim"])

    @property
    def image_size(self) -> int:
        """Height of the pictures that the image tower takes, in pixels."""
        size = self.card["preprocess"]["size"]
        return int(size[0] if isinstance(size, Sequence) else size)

    @property
    def image_mean(self) -> tuple[float, float, float]:
        """Mean that is subtracted from the colour channels (0 to 1)."""
        return tuple(self.card["preprocess"]["mean"])

    @property
    def image_std(self) -> tuple[float, float, float]:
        """Deviation by which the colour channels are divided."""
        return tuple(self.card["preprocess"]["std"])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def num_parameters(self) -> int:
        """Weights of both towers."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def encode_image(self, pixels_B3HW: torch.Tensor) -> torch.Tensor:
        """Preprocessed pictures to features [B, D], not normalised."""
        return self.model.encode_image(pixels_B3HW.to(self.device), normalize=False)

    def encode_text(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        """Token ids to features [B, D], not normalised; any T up to the context length.

        The batch is trimmed to its longest text where that changes nothing, see
        `longclip_lab.models.text_tower.encode_tokens`.

        Raises LabError if T is larger than the context length.
        """
        return encode_tokens(self.model, tokens_BT.to(self.device), self.tokenizer.pad_id)

    def tokenize(self, texts: str | Sequence[str]) -> Tokens:
        """Texts to token ids of the full context length; longer ones are cut and counted.

        Raises LabError if the tokenizer makes ids that the text tower has no embedding for.
        """
        return to_tokens(self, texts)


def to_tokens(clip: Clip | TextTower, texts: str | Sequence[str]) -> Tokens:
    """What `Clip.tokenize` returns, for whatever has a tokenizer and a text tower."""
    if clip.tokenizer.vocab_size > clip.vocab_size:
        raise LabError(
            f"The text tower of '{clip.name}' knows {clip.vocab_size} tokens, but its "
            f"tokenizer '{clip.tokenizer.name}' makes {clip.tokenizer.vocab_size}. "
            "Give token ids to encode_text, or set .tokenizer to the one it was trained with."
        )
    texts = [texts] if isinstance(texts, str) else list(texts)
    batch = clip.tokenizer.encode_batch(texts, clip.context_length)
    ids_BT = torch.as_tensor(batch.ids, dtype=torch.long)
    lengths_B = torch.as_tensor(batch.lengths, dtype=torch.long)
    truncated_B = torch.as_tensor(batch.truncated, dtype=torch.bool)
    if isinstance(clip.tokenizer, HubTokenizer) and can_trim(clip.model):
        # The lab's own tokenizers know that an end token in a text ends it; the hub's do not.
        read_B = end_positions(clip.model, ids_BT) + 1
        truncated_B |= read_B < lengths_B
        lengths_B = torch.minimum(lengths_B, read_B)
    return Tokens(ids_BT, lengths_B, truncated_B)
