"""One kind of model: an open_clip module with its tokenizer and its preprocessing.

B batch, T tokens, D embedding, H W picture.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from longclip_lab.errors import LabError
from longclip_lab.models.anatomy import text_tower
from longclip_lab.models.towers import can_trim, checked_tokens, encode_tokens, end_positions
from longclip_lab.text import TokenBatch, get_tokenizer

if TYPE_CHECKING:
    from open_clip.transformer import TextTransformer
    from PIL import Image

    from longclip_lab.text import Tokenizer


# --- Which tokenizer a text tower was trained with: the lab's own, or one of the hub ---

_OF_THE_LAB = {"bert-base-uncased": "bert"}
"""Tokenizers on the hub that the lab carries itself, and its names for them."""


class HubTokenizer:
    """A tokenizer of the transformers library, as open_clip sets it up, with the lab's interface.

    It makes token ids only, no character spans. Raises LabError if it cannot be fetched.
    """

    def __init__(self, text_cfg: dict[str, Any]):
        from open_clip.tokenizer import HFTokenizer

        self.text_cfg = text_cfg
        self.name = text_cfg["hf_tokenizer_name"]
        try:
            self._tokenize = HFTokenizer(
                self.name,
                tokenizer_mode=text_cfg.get("tokenizer_mode"),
                **text_cfg.get("tokenizer_kwargs", {}),
            )
        except (OSError, ValueError) as error:
            raise LabError(f"The tokenizer '{self.name}' could not be fetched: {error}") from error
        inner = self._tokenize.tokenizer
        self.vocab_size = len(inner)
        self.start_id = inner.cls_token_id if inner.bos_token_id is None else inner.bos_token_id
        self.end_id = inner.sep_token_id if inner.eos_token_id is None else inner.eos_token_id
        self.pad_id = inner.pad_token_id

    def encode_batch(
        self, texts: Sequence[str], context_length: int, policy: str = "head"
    ) -> TokenBatch:
        """Token ids and lengths as the lab's own tokenizers give them; "head" is the only policy.

        Raises LabError for another policy.
        """
        if policy != "head":
            raise LabError(f"The tokenizer '{self.name}' cuts texts in one way, 'head', only.")
        ids_BT = self(texts, context_length)
        # Two more for special tokens that open_clip adds by itself (its mode "clips").
        longest = 2 + max(len(ids) for ids in self._tokenize.tokenizer(list(texts)).input_ids)
        # A second run without a limit: the hub's tokenizers do not say what they cut.
        uncut_BT = self(texts, max(longest, context_length))
        full_lengths_B = (uncut_BT != self.pad_id).sum(dim=1)
        return TokenBatch(
            ids=ids_BT.numpy(),
            lengths=(ids_BT != self.pad_id).sum(dim=1).numpy(),
            full_lengths=full_lengths_B.numpy(),
            truncated=(full_lengths_B > context_length).numpy(),
        )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write its files as transformers writes them."""
        self._tokenize.tokenizer.save_pretrained(folder)

    def __call__(self, texts: str | Sequence[str], context_length: int = 77) -> torch.Tensor:
        """Token ids [B, context_length], as open_clip's tokenizers return them."""
        return self._tokenize(texts if isinstance(texts, str) else list(texts), context_length)


def tokenizer_for(model_name: str, model_cfg: dict[str, Any]) -> Tokenizer | HubTokenizer:
    """The tokenizer of an open_clip config: OpenAI's BPE unless the config names another.

    Raises LabError for a tokenizer that cannot be fetched and for one that the lab cannot build.
    """
    text_cfg = model_cfg["text_cfg"]
    name = text_cfg.get("hf_tokenizer_name")
    plain = not text_cfg.get("tokenizer_kwargs") and not text_cfg.get("tokenizer_mode")
    if name and plain and name in _OF_THE_LAB:
        return get_tokenizer(_OF_THE_LAB[name])
    if name:
        return HubTokenizer(text_cfg)
    if not plain:
        raise LabError(
            f"'{model_name}' cuts its texts in a way of its own ({text_cfg['tokenizer_kwargs']}), "
            "which the lab does not have."
        )
    return get_tokenizer("clip")


def tokenizer_record(tokenizer: Tokenizer | HubTokenizer) -> dict[str, Any]:
    """What a saved model says about its tokenizer; JSON-able."""
    if isinstance(tokenizer, HubTokenizer):
        return {"name": tokenizer.name, "hub": tokenizer.text_cfg}
    return {"name": tokenizer.name}


def tokenizer_from_record(record: dict[str, Any]) -> Tokenizer | HubTokenizer:
    """The tokenizer that `tokenizer_record` described."""
    return HubTokenizer(record["hub"]) if "hub" in record else get_tokenizer(record["name"])


# --- One kind of model: an open_clip module with its tokenizer and its preprocessing ---


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
        `longclip_lab.models.towers.encode_tokens`.

        Raises LabError if T is larger than the context length.
        """
        return encode_tokens(self.model, tokens_BT.to(self.device), self.tokenizer.pad_id)

    def tokenize(self, texts: str | Sequence[str]) -> Tokens:
        """Texts to token ids of the full context length; longer ones are cut and counted.

        Raises LabError if the tokenizer makes ids that the text tower has no embedding for.
        """
        return to_tokens(self, texts)


@dataclass
class TextTower:
    """The text side of a CLIP; `stretch` and `export` take it as they take a `Clip`."""

    model: TextTransformer
    tokenizer: Tokenizer
    name: str
    card: dict[str, Any]
    """As a `Clip`'s: model_cfg (embed_dim, text_cfg), provenance, positions, pad_id."""

    @property
    def context_length(self) -> int:
        """The largest number of tokens that the tower reads, start and end included."""
        return int(self.model.context_length)

    @property
    def vocab_size(self) -> int:
        """Rows of the token embedding."""
        return int(self.model.vocab_size)

    @property
    def embed_dim(self) -> int:
        """D: the shared space's, or the tower's width where it has no projection."""
        return int(self.card["model_cfg"]["embed_dim"])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.positional_embedding.device

    @property
    def num_parameters(self) -> int:
        """Weights of the tower."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def tokenize(self, texts: str | Sequence[str]) -> Tokens:
        """Texts to token ids of the full context length, padded as the tower's folder says.

        What stands behind a text changes no feature of it, but it has hidden states of its own.
        Raises LabError if the tokenizer makes ids that the tower has no embedding for.
        """
        tokens = to_tokens(self, texts)
        # Behind the last end token: one may stand in the text itself.
        ends_BT = tokens.ids_BT == self.tokenizer.end_id
        behind_BT = ends_BT.flip(1).int().cumsum(1).flip(1) == 0
        tokens.ids_BT[behind_BT] = self.card["pad_id"]
        return tokens

    def encode_text(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        """Token ids to features [B, D], not normalised: projected, where there is a projection."""
        return encode_tokens(self.model, tokens_BT.to(self.device))

    def hidden_states(self, tokens_BT: torch.Tensor) -> list[torch.Tensor]:
        """What goes into the first block and comes out of each, [B, T, W]: layers + 1 of them.

        Stable Diffusion XL reads the last but one; older ones read `ln_final` of the last, which
        is `.model.ln_final(states[-1])`. Raises LabError as `encode_text` does.
        """
        tokens_BT = checked_tokens(self.model, tokens_BT.to(self.device))
        length = tokens_BT.shape[1]
        tower = self.model
        states = [tower.token_embedding(tokens_BT) + tower.positional_embedding[:length]]
        # Block by block, as diffusers reads the states between them.
        for block in tower.transformer.resblocks:
            states.append(block(states[-1], attn_mask=tower.attn_mask[:length, :length]))
        return states


def to_tokens(clip: Clip | TextTower, texts: str | Sequence[str]) -> Tokens:
    """What `Clip.tokenize` returns, for whatever has a tokenizer and a text tower."""
    if clip.tokenizer.vocab_size > clip.vocab_size:
        raise LabError(
            f"The text tower of '{clip.name}' knows {clip.vocab_size} tokens, but its "
            f"tokenizer '{clip.tokenizer.name}' makes {clip.tokenizer.vocab_size}. "
            "Give token ids to encode_text, or set .tokenizer to the one it was trained with."
        )
    # A string is one text, not a list of its characters.
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
